"""What galleries need of sheets: an SVG, captions, and patches that share a token."""

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.golden.panels import BORDER, hatch, image_panel, merged_panel
from harness.golden.sheet import Drawn, Row, Sheet, draw

GRID = (4, 6)
CELLS = 24


@pytest.fixture
def view() -> NDArray[np.float64]:
    """A picture 40 high and 60 wide, neither dark nor light."""
    return np.random.default_rng(0).uniform(0.4, 0.6, (40, 60, 3))


def sheet(view: NDArray[np.float64]) -> Sheet:
    """A figure of two images, a ranking and what is kept."""
    rank, kept = {"rank": np.arange(CELLS)}, {"kept": np.arange(CELLS) % 2 == 0}
    rows = [Row(name=name, label="", view=view, importance=rank, kept=kept) for name in "ab"]
    return Sheet(rows=rows, grid=GRID, columns={"rank": "rank", "kept": "kept"}, notes=())


def pixels(drawn: Drawn) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(drawn.png)).convert("RGB"))


def test_an_svg_is_as_large_as_the_bitmap_and_has_its_panels(view: NDArray[np.float64]):
    drawn = draw(sheet(view), 0.5, vector=True)
    height, width, _ = pixels(drawn).shape
    head = drawn.svg[: drawn.svg.index(b">", drawn.svg.index(b"<svg"))].decode()
    assert f'width="{width}px" height="{height}px" viewBox="0 0 {width} {height}"' in head
    assert drawn.svg.count(b"<image ") == 2 * 3 + 1  # the colour bar
    assert draw(sheet(view), 0.5).svg == b""


def test_captions_stand_below_their_panels(view: NDArray[np.float64]):
    plain = sheet(view)
    rows = [replace(row, captions={"image": "right"}) for row in plain.rows]
    without, told = draw(plain), draw(replace(plain, rows=rows))
    assert told.boxes[0, "image"] == without.boxes[0, "image"]
    below = told.boxes[0, "image"].bottom
    assert told.boxes[1, "image"].top - below > without.boxes[1, "image"].top - below
    left, right = told.boxes[0, "image"].left, told.boxes[0, "image"].right
    strip = pixels(told)[below : told.boxes[1, "image"].top, left:right]
    assert strip.min() < 100  # ink


def test_patches_that_share_a_token_have_their_mean_colour(view: NDArray[np.float64]):
    token = np.arange(CELLS)
    token[[0, 1, 7]] = 7  # rows 0 and 1
    token[20] = -1
    panel = merged_panel(view, token, GRID, (80, 120)).reshape(4, 20, 6, 20, 3)
    image = image_panel(view, (80, 120)).reshape(4, 20, 6, 20, 3)
    mean = np.mean([image[0, :, 0], image[0, :, 1], image[1, :, 1]], axis=(0, 1, 2))
    for row, column in ((0, 0), (0, 1), (1, 1)):
        assert panel[row, 2:, column, 2:] == pytest.approx(np.broadcast_to(mean, (18, 18, 3)))
    assert (panel[0, 1:, 1, 0] != BORDER).any()  # no line within a token
    assert (panel[0, :, 2, 0] == BORDER).all()
    assert (panel[2, 1:, 4, 1:] == image[2, 1:, 4, 1:]).all()
    hatched = hatch(GRID, (80, 120)).reshape(4, 20, 6, 20, 3)
    assert (panel[3, 1:, 2, 1:] == hatched[3, 1:, 2, 1:]).all()  # dropped
