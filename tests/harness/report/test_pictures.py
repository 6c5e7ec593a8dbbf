"""The painter of patches, panel by panel."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from harness.report.pictures import (
    BORDER,
    DIM,
    PatchSheet,
    dim,
    draw,
    heat_panel,
    image_panel,
    panel,
    ranks,
    token_panel,
)

GRID, CELLS, SIZE = (4, 6), 24, (80, 120)
View = NDArray[np.float64]


@pytest.fixture
def view() -> View:
    """A picture 40 high and 60 wide, neither dark nor light."""
    return np.random.default_rng(0).uniform(0.4, 0.6, (40, 60, 3))


def tiles(pixels: View) -> View:
    """Split a panel into (rows, columns, height, width, 3)."""
    return pixels.reshape(4, 20, 6, 20, 3).transpose(0, 2, 1, 3, 4)


def test_ranks_equal_a_slow_count():
    values = np.random.default_rng(2).integers(0, 8, 20).astype(np.float32)
    for value, rank in zip(values, ranks(values), strict=True):
        below, tied = (values < value).sum(), (values == value).sum() - 1
        assert rank == pytest.approx((below + tied / 2) / 19)
    assert ranks(np.array([2.0, -np.inf, np.inf])).tolist() == [0.5, 0.0, 1.0]


def test_a_patch_has_the_colour_of_its_rank_be_the_image_dark_or_light(view: View):
    importance = np.random.default_rng(3).random(CELLS)
    wanted = colormaps["viridis"](ranks(importance).reshape(GRID))[..., :3]
    inner = np.argsort(importance)[4:20]  # the colours of either end leave no room for the image's detail
    for image in (view - 0.35, view, view + 0.35):
        cells = tiles(heat_panel(image, importance, GRID, SIZE))
        off = np.abs(cells.mean(axis=(2, 3)) - wanted).reshape(CELLS, 3)
        assert off[inner].max() < 0.01
        assert cells.std(axis=(2, 3)).mean() > 0.005  # and yet the image shows


def test_kept_patches_are_as_they_were_and_dropped_ones_dimmed(view: View):
    kept = np.random.default_rng(4).random(CELLS) < 0.5
    pixels = token_panel(view, np.where(kept, np.arange(CELLS), -1), GRID, SIZE)
    cells, image = tiles(pixels), tiles(image_panel(view, SIZE))
    for cell, stays in enumerate(kept):
        inner, own = (each[divmod(cell, 6)][1:, 1:] for each in (cells, image))
        assert (inner == (own if stays else dim(own))).all()
        assert stays or np.abs(inner - DIM).max() < 0.08
    assert (cells[1:, :, 0] == BORDER).all()
    assert (cells[:, 1:, :, 0] == BORDER).all()


def test_patches_that_share_a_token_have_their_mean_colour_and_no_line_between(view: View):
    token = np.arange(CELLS)
    token[[0, 1, 7]] = 7  # rows 0 and 1
    token[20] = -1
    cells, image = tiles(token_panel(view, token, GRID, SIZE)), tiles(image_panel(view, SIZE))
    mean = np.mean([image[0, 0], image[0, 1], image[1, 1]], axis=(0, 1, 2))
    for place in ((0, 0), (0, 1), (1, 1)):
        assert cells[place][2:, 2:] == pytest.approx(np.broadcast_to(mean, (18, 18, 3)))
    assert (cells[0, 1, 1:, 0] != BORDER).any()
    assert (cells[0, 2, :, 0] == BORDER).all()
    assert (cells[2, 4, 1:, 1:] == image[2, 4, 1:, 1:]).all()
    assert (cells[3, 2, 1:, 1:] == dim(image[3, 2, 1:, 1:])).all()


@pytest.mark.parametrize("ground", [0.0, 1.0])
def test_dropped_patches_are_told_from_white_and_from_black_images(ground: float):
    linear = ((dim(np.full((1, 1, 3), ground)) + 0.055) / 1.055) ** 2.4  # luminance of sRGB, as WCAG defines it
    light = 0.05 + float((linear @ [0.2126, 0.7152, 0.0722]).item())
    assert max(light, 0.05 + ground) / min(light, 0.05 + ground) >= 3


def test_a_sheet_is_a_picture_of_any_names_the_same_bytes_every_time(view: View):
    names = ["猫 $x_1$ " + "name" * 20, "red.png"]
    sheet = PatchSheet(names=names, labels=["boot", ""], views=np.stack([view] * 2), grid=GRID)
    sheet.columns |= {"rank": "golden\nlabel", "kept": "kept"}
    sheet.panels |= {"rank": np.stack([np.arange(24.0)] * 2), "kept": np.stack([np.arange(CELLS)] * 2)}
    sheet.notes.append("words " * 60)
    assert (panel(sheet, 0, "rank", SIZE) == heat_panel(view, np.arange(24.0), GRID, SIZE)).all()
    assert (panel(sheet, 1, "kept", SIZE) == token_panel(view, np.arange(24), GRID, SIZE)).all()
    drawn = draw(sheet)
    assert draw(sheet) == drawn
    large, small = (Image.open(io.BytesIO(each)).size for each in (drawn, draw(sheet, scale=0.5)))
    assert 1000 < large[0] < 2100
    assert small[0] == pytest.approx(large[0] / 2, rel=0.05)
