"""The painter of patches: images, and which of their patches matter or are kept."""

import base64
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from harness.report.charts import OPTIONS, encode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colours = NDArray[np.floating]  # (height, width, 3) in [0, 1]
Size = tuple[int, int]  # height and width, in pixels or in patches

IMAGE = "image"  # column of the image itself
COLOURS = "viridis"  # perceptually uniform, and in order for every colour vision
DETAIL = 0.5  # contrast of the image's detail over the colours
# Colour of dropped patches, and how much of the image is left in it: a contrast of 3 to white and to
# black, and a tint that no grey image has, so they are told from kept patches; patterns make moiré.
DIM, LEFT = (0.40, 0.44, 0.62), 0.12
BORDER = 0.8  # grey of the lines between patches
DPI = 100  # pixels per inch at scale 1
WIDTH, PANEL = 20.0, (1.5, 4.8)  # inches of a sheet, and of a panel: least and most
LETTER = 0.115  # inches of a letter of text


@dataclass(kw_only=True)
class PatchSheet:
    """Images in rows, one or several in each, with columns that colour their N patches."""

    names: Sequence[str]
    labels: Sequence[str]  # classes, empty where unknown
    views: Colours  # (n, H, W, 3), the images as the model sees them
    grid: Size
    columns: dict[str, str] = field(default_factory=dict)  # titles; the image itself comes before them
    # (n, N) by column. Floats are importance, higher = keep; integers the position of the token that a patch is in: its
    # own if it is kept, below 0 if it is dropped.
    panels: dict[str, NDArray[np.number]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # lines below
    per_row: int = 1  # images in a row, each with all columns


def draw(sheet: PatchSheet, scale: float = 1.0, form: str = "png", **options: object) -> bytes:
    """Draw a sheet as "png" or "jpg" bytes, about 2000 pixels wide at scale 1; ``options`` are those of `encode`."""
    import matplotlib as mpl

    with mpl.rc_context(OPTIONS | {"font.size": 15, "axes.titlesize": 16}), warnings.catch_warnings():
        # A file's name may be in a script that the font lacks; boxes do for it.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        return encode(_figure(sheet, scale), form, round(DPI * scale), bbox_inches="tight", **options)


def _figure(sheet: PatchSheet, scale: float) -> "Figure":
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    own = [IMAGE, *sheet.columns]
    columns = own * sheet.per_row
    across = min(max((WIDTH - 1) / len(columns) - 0.1, PANEL[0]), PANEL[1])
    size = fit(sheet.views.shape[1:3], sheet.grid, DPI * scale * across)
    down, rows = across * size[0] / size[1], -(-len(sheet.views) // sheet.per_row)
    coloured = any(values.dtype.kind == "f" for values in sheet.panels.values())
    width = len(columns) * (across + 0.1) + 1
    notes = [line for note in sheet.notes for line in textwrap.wrap(note, int(width / LETTER))]
    height = rows * (down + 0.2) + 1.2 + coloured + 0.3 * len(notes)
    figure = Figure(figsize=(width, height), layout="compressed", facecolor="white")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(sheet.columns.get(column, IMAGE))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    letters = int(down / LETTER)
    for i, (name, label) in enumerate(zip(sheet.names, sheet.labels, strict=True)):
        panels = axes.reshape(-1, len(own))[i]
        for axis, column in zip(panels, own, strict=True):
            axis.imshow(panel(sheet, i, column, size))
        lines = [name, *textwrap.wrap(label, letters)[:2]]
        panels[0].set_ylabel("\n".join(shorten(line, letters) for line in lines))
    if coloured:
        bar = figure.colorbar(
            ScalarMappable(cmap=COLOURS), ax=axes, location="bottom",
            ticks=[0, 0.5, 1], fraction=0.05, aspect=80, shrink=0.6, pad=0.01,
        )  # fmt: skip
        bar.ax.set_xticklabels(["least important", "rank within the image", "most important"], fontsize=13)
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
    if notes:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=13)
    return figure


def panel(sheet: PatchSheet, row: int, column: str, size: Size) -> Colours:
    """Return the pixels of a column."""
    view = sheet.views[row]
    if column == IMAGE:
        return image_panel(view, size)
    values = sheet.panels[column][row]
    return (heat_panel if values.dtype.kind == "f" else token_panel)(view, values, sheet.grid, size)


def fit(image: Size, grid: Size, width: float) -> Size:
    """Return the size of a panel of about that width, with as many pixels for every patch."""
    across = max(1, round(width / grid[1]))
    down = max(1, round(across * grid[1] * image[0] / image[1] / grid[0]))
    return down * grid[0], across * grid[1]


def ranks(importance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each patch within the image, (N,) in [0, 1], 1 the most important; ties share the mean."""
    return np.asarray((rankdata(importance) - 1) / max(1, len(importance) - 1))


def image_panel(view: Colours, size: Size) -> Colours:
    """Show an image."""
    pixels = Image.fromarray(np.rint(view * 255).astype(np.uint8))
    return np.asarray(pixels.resize(size[::-1], Image.Resampling.LANCZOS)) / 255


def heat_panel(view: Colours, importance: NDArray[np.floating], grid: Size, size: Size) -> Colours:
    """Colour each patch by its rank, with the image's detail over it.

    The detail is what differs from the patch's mean, so that a patch has the colour bar's colour on average, be the
    image light or dark.
    """
    from matplotlib import colormaps

    grey = _split_patches(image_panel(view, size), grid) @ np.array([0.299, 0.587, 0.114])
    detail = grey - grey.mean(axis=(1, 3), keepdims=True)
    colours = colormaps[COLOURS](ranks(importance).reshape(grid))[:, None, :, None, :3]
    return np.asarray((colours + DETAIL * detail[..., None]).clip(0.0, 1.0).reshape(*size, 3))


def token_panel(view: Colours, token: NDArray[np.integer], grid: Size, size: Size) -> Colours:
    """Show kept patches as they are, dropped ones dimmed, and those that share a token in their mean colour.

    ``token`` is as in `PatchSheet`. Lines are between patches that don't share a token.
    """
    patches = _split_patches(image_panel(view, size), grid)
    distinct = np.where(token < 0, -1 - np.arange(len(token)), token)  # every dropped patch by itself
    means = patches.mean(axis=(1, 3)).reshape(-1, 3)
    _, group, count = np.unique(distinct, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(group, channel) for channel in means.T], axis=1) / count[:, None]
    merged = np.where(_align(count[group] > 1, grid), _align(mean[group], grid), patches)
    pixels = np.where(_align(token < 0, grid), dim(patches), merged).reshape(*size, 3)
    cells = np.broadcast_to(_align(distinct, grid)[..., 0], patches.shape[:4]).reshape(size)
    pixels[1:][cells[1:] != cells[:-1]] = BORDER
    pixels[:, 1:][cells[:, 1:] != cells[:, :-1]] = BORDER
    return pixels


def dim(image: Colours) -> Colours:
    """Return what dropped patches are drawn as: nearly one colour."""
    return np.asarray((1 - LEFT) * np.array(DIM) + LEFT * image)


def shorten(name: str, letters: int) -> str:
    """Cut the middle out of a name that is too long; what tells files apart is at its ends."""
    keep = letters - 1
    return name if len(name) <= letters else f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"


def _split_patches(pixels: Colours, grid: Size) -> Colours:
    """Split pixels into patches: (rows, height, columns, width, 3)."""
    (height, width), (rows, columns) = pixels.shape[:2], grid
    return pixels.reshape(rows, height // rows, columns, width // columns, 3)


def _align(values: NDArray[np.generic], grid: Size) -> NDArray[np.generic]:
    """Return values of patches, (N,) or (N, channels), so that they broadcast with split pixels."""
    return values.reshape(grid[0], 1, grid[1], 1, -1)


class Gallery(NamedTuple):
    """A picture that `compare` drew of what its methods leave of a few images of a dataset."""

    title: str
    alt: str  # for those who can't see it
    base64: str  # of the JPEG


def read_galleries(folders: Iterable[Path]) -> list[Gallery]:
    """Read the galleries in the folders of runs; raise ValueError for one that can't be read."""
    galleries = list[Gallery]()
    for path in sorted({path for folder in folders for path in folder.glob("gallery_*.jpg")}):
        title, separator, alt = read_comment(path).partition("\n")
        if not separator:
            raise ValueError(f"{str(path)!r} is no gallery; delete it, and `compare` draws it again")
        galleries.append(Gallery(title, alt, base64.b64encode(path.read_bytes()).decode()))
    return galleries


def read_comment(path: Path) -> str:
    """Return the comment in a picture's file; an empty string if there is none, or no picture."""
    try:
        with Image.open(path) as image:
            comment: bytes = image.info.get("comment", b"")
            return comment.decode()
    except (OSError, ValueError):
        return ""
