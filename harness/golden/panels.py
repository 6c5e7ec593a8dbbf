"""Pixels of one panel of a sheet: an image, an importance over it, or its kept patches."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

Colours = NDArray[np.floating]  # (height, width, 3) in [0, 1]
Size = tuple[int, int]  # height and width, in pixels or in patches

COLOURS = "viridis"  # perceptually uniform, and in order for every colour vision
DETAIL = 0.5  # contrast of the image's detail over the colours
# Greys of the stripes of dropped patches. Each has a contrast of 3 to white and to black, so they
# are told from kept patches of light and dark images, and the stripes from those of grey ones.
HATCH = (0.38, 0.56)
STRIPE = 5  # stripes to a patch's side, where they are wide enough to be seen
BORDER = 0.8  # grey of the lines between patches


def fit(image: Size, grid: Size, width: float) -> Size:
    """Return the size of a panel of about that width, with as many pixels for every patch."""
    across = max(1, round(width / grid[1]))
    down = max(1, round(across * grid[1] * image[0] / image[1] / grid[0]))
    return down * grid[0], across * grid[1]


def ranks(importance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each patch within the image, (N,) in [0, 1], 1 the most important.

    Ties share the mean of their ranks.
    """
    return np.asarray((rankdata(importance) - 1) / max(1, len(importance) - 1))


def image_panel(view: Colours, size: Size) -> Colours:
    """Show an image."""
    pixels = Image.fromarray(np.rint(view * 255).astype(np.uint8))
    return np.asarray(pixels.resize(size[::-1], Image.Resampling.LANCZOS)) / 255


def heat_panel(view: Colours, importance: NDArray[np.floating], grid: Size, size: Size) -> Colours:
    """Colour each patch by its rank, with the image's detail over it.

    The detail is what differs from the patch's mean, so that a patch has the colour bar's colour
    on average, be the image light or dark.
    """
    from matplotlib import colormaps

    colours = colormaps[COLOURS](ranks(importance).reshape(grid))[..., :3]
    grey = image_panel(view, size) @ np.array([0.299, 0.587, 0.114])
    tiles = grey.reshape(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1])
    detail = (tiles - tiles.mean(axis=(1, 3), keepdims=True)).reshape(size)
    blended = _spread(colours, size) + DETAIL * detail[..., None]
    return np.asarray(blended.clip(0.0, 1.0))


def kept_panel(view: Colours, kept: NDArray[np.bool_], grid: Size, size: Size) -> Colours:
    """Show the kept patches as they are and the others hatched in grey, with lines between."""
    stays = _spread(kept.reshape(grid)[..., None], size)
    panel = np.where(stays, image_panel(view, size), hatch(grid, size))
    panel[np.arange(1, grid[0]) * (size[0] // grid[0])] = BORDER
    panel[:, np.arange(1, grid[1]) * (size[1] // grid[1])] = BORDER
    return panel


def merged_panel(view: Colours, token: NDArray[np.integer], grid: Size, size: Size) -> Colours:
    """Show which patches share a token: in their mean colour, with lines around them.

    Patches that have a token to themselves are as they are, dropped ones hatched.

    Args:
        view: the image.
        token: (N,) position of the token that each patch is in, below 0 where it was dropped.
        grid: rows and columns of patches.
        size: of the panel.
    """
    image, own = image_panel(view, size), np.arange(len(token))
    apart = np.where(token < 0, -1 - own, token)  # what is dropped is in no token together
    tiles = image.reshape(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1], 3)
    means = tiles.mean(axis=(1, 3)).reshape(-1, 3)
    _, group, count = np.unique(apart, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(group, channel) for channel in means.T], axis=1) / count[:, None]
    shared = (count[group] > 1).reshape(grid)[..., None]
    panel = np.where(_spread(shared, size), _spread(mean[group].reshape(*grid, 3), size), image)
    dropped = _spread((token < 0).reshape(grid)[..., None], size)
    panel = np.where(dropped, hatch(grid, size), panel)
    pixels = _spread(apart.reshape(grid)[..., None], size)[..., 0]
    panel[1:][pixels[1:] != pixels[:-1]] = BORDER
    panel[:, 1:][pixels[:, 1:] != pixels[:, :-1]] = BORDER
    return panel


def hatch(grid: Size, size: Size) -> Colours:
    """Return what dropped patches are filled with: diagonal stripes in two greys."""
    width = max(2, round(size[0] / grid[0] / STRIPE))
    down, across = np.indices(size)
    grey = np.array(HATCH)[(down + across) // width % 2]
    return np.stack([grey] * 3, axis=2)


def _spread(cells: NDArray[np.generic], size: Size) -> NDArray[np.generic]:
    """Blow values of patches (rows, columns, channels) up to pixels."""
    rows = cells.repeat(size[0] // cells.shape[0], axis=0)
    return rows.repeat(size[1] // cells.shape[1], axis=1)
