"""Figures pixel by pixel: colours are ranks, dropped patches are hatched, all is in its place."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from harness.report.show import (
    BORDER,
    HATCH,
    Drawn,
    Row,
    Sheet,
    draw,
    fit,
    hatch,
    heat_panel,
    image_panel,
    kept_panel,
    merged_panel,
    ranks,
    short,
    width_of,
    wrapped,
)

GRID = (4, 6)
CELLS = 24
VIRIDIS = colormaps["viridis"]


@pytest.fixture
def view() -> NDArray[np.float64]:
    """A picture 40 high and 60 wide, neither dark nor light."""
    return np.random.default_rng(0).uniform(0.4, 0.6, (40, 60, 3))


def sheet(view: NDArray[np.float64], rows: int = 2, columns: int = 3) -> Sheet:
    """A figure whose last row lacks the first ranking."""
    drawn = np.random.default_rng(1).random((rows, columns, CELLS))
    names = [f"ranking {j}" for j in range(columns)]
    return Sheet(
        rows=[
            Row(
                name=f"a rather long file name {i}.jpeg",
                label="ankle boot" if i else "",
                view=view,
                importance={
                    name: drawn[i, j] for j, name in enumerate(names) if (i, j) != (rows - 1, 0)
                },
                kept={"kept 50": np.arange(CELLS) % 2 == 0},
            )
            for i in range(rows)
        ],
        grid=GRID,
        columns={name: name.replace(" ", "\n") for name in names} | {"kept 50": "50 % kept"},
        notes=["What this rests on.", "What is left out: " + "words " * 60],
    )


def pixels(drawn: Drawn) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(drawn.png)).convert("RGB"))


def test_ranks_equal_a_slow_count():
    values = np.random.default_rng(2).integers(0, 8, 20).astype(np.float32)
    for value, rank in zip(values, ranks(values), strict=True):
        below, tied = (values < value).sum(), (values == value).sum() - 1
        assert rank == pytest.approx((below + tied / 2) / 19)
    assert ranks(np.full(9, 3.0)).tolist() == [0.5] * 9
    assert ranks(np.array([2.0, -np.inf, np.inf])).tolist() == [0.5, 0.0, 1.0]


def test_the_most_important_patch_is_the_brightest(view: NDArray[np.float64]):
    importance = np.linspace(0, 1, CELLS)
    importance[15] = 7.0  # row 2, column 3
    importance[4] = -9.0  # row 0, column 4
    panel = heat_panel(view, importance, GRID, (80, 120))
    cells = panel.reshape(4, 20, 6, 20, 3).mean(axis=(1, 3))
    assert cells[2, 3] == pytest.approx(VIRIDIS(1.0)[:3], abs=0.02)
    assert cells[0, 4] == pytest.approx(VIRIDIS(0.0)[:3], abs=0.02)
    light = cells @ np.array([0.299, 0.587, 0.114])
    assert np.unravel_index(light.argmax(), GRID) == (2, 3)
    assert np.unravel_index(light.argmin(), GRID) == (0, 4)


def test_a_patch_has_the_colour_of_its_rank_be_the_image_dark_or_light(view: NDArray[np.float64]):
    importance = np.random.default_rng(3).random(CELLS)
    wanted = VIRIDIS(ranks(importance).reshape(GRID))[..., :3]
    inner = slice(4, 20)  # the colours of either end leave no room for the image's detail
    for image in (view - 0.35, view, view + 0.35):
        cells = heat_panel(image, importance, GRID, (80, 120)).reshape(4, 20, 6, 20, 3)
        off = np.abs(cells.mean(axis=(1, 3)) - wanted).reshape(CELLS, 3)
        assert off[np.argsort(importance)[inner]].max() < 0.01
        assert cells.std(axis=(1, 3)).mean() > 0.005  # and yet the image shows


def test_only_the_order_is_shown(view: NDArray[np.float64]):
    importance = np.random.default_rng(3).random(CELLS)
    same = heat_panel(view, np.exp(9 * importance), GRID, (80, 120))
    assert (same == heat_panel(view, importance, GRID, (80, 120))).all()


def test_kept_patches_are_as_they_were_and_dropped_ones_hatched(view: NDArray[np.float64]):
    kept = np.random.default_rng(4).random(CELLS) < 0.5
    panel = kept_panel(view, kept, GRID, (80, 120)).reshape(4, 20, 6, 20, 3)
    image = image_panel(view, (80, 120)).reshape(4, 20, 6, 20, 3)
    for cell, stays in enumerate(kept):
        row, column = divmod(cell, 6)
        inner = panel[row, 1:, column, 1:]
        if stays:
            assert (inner == image[row, 1:, column, 1:]).all()
        else:
            assert set(np.unique(inner)) == set(HATCH)
            assert (inner == inner[..., :1]).all()  # grey: no colour vision is asked for
    assert (panel[1:, 0] == BORDER).all()
    assert (panel[:, :, 1:, 0] == BORDER).all()


@pytest.mark.parametrize("grid", [(14, 14), (4, 6), (7, 3), (1, 1), (37, 37)])
@pytest.mark.parametrize("width", [150, 231.7, 480])
def test_every_patch_has_as_many_pixels(grid: tuple[int, int], width: float):
    height, across = fit((grid[0] * 16, grid[1] * 16), grid, width)
    assert height % grid[0] == across % grid[1] == 0
    assert height // grid[0] == across // grid[1]
    assert abs(across - width) <= grid[1] / 2


def test_panels_are_where_the_figure_says(view: NDArray[np.float64]):
    given = sheet(view)
    drawn = draw(given)
    page = pixels(drawn)
    assert set(drawn.boxes) == {(i, c) for i in range(2) for c in ("image", *given.columns)}
    for (i, column), box in drawn.boxes.items():
        size = (box.bottom - box.top, box.right - box.left)
        row = given.rows[i]
        if column == "image":
            panel = image_panel(view, size)
        elif column == "kept 50":
            panel = kept_panel(view, row.kept[column], GRID, size)
        elif column in row.importance:
            panel = heat_panel(view, row.importance[column], GRID, size)
        else:
            assert (i, column) == (1, "ranking 0")
            continue
        found = page[box.top : box.bottom, box.left : box.right]
        assert np.abs(found - panel * 255).max() <= 0.51


def test_what_is_missing_is_a_dash(view: NDArray[np.float64]):
    drawn = draw(sheet(view))
    box = drawn.boxes[1, "ranking 0"]
    panel = pixels(drawn)[box.top : box.bottom, box.left : box.right]
    dark = np.argwhere(panel.max(axis=2) < 120)
    assert len(dark) > 5
    assert np.abs(dark.mean(axis=0) / panel.shape[:2] - 0.5).max() < 0.1
    assert (panel[:40] == panel[0, 0]).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 6), (2, 11), (4, 3)])
def test_figures_are_wide_enough_and_nothing_overlaps(
    rows: int, columns: int, view: NDArray[np.float64]
):
    drawn = draw(sheet(view, rows, columns))
    height, width = pixels(drawn).shape[:2]
    assert 1500 <= width <= 2400
    boxes = list(drawn.boxes.values())
    assert len(boxes) == rows * (columns + 2)
    for i, one in enumerate(boxes):
        assert one.left > 0
        assert one.top > 0
        assert one.right < width
        assert one.bottom < height
        for other in boxes[:i]:
            apart = one.left >= other.right or other.left >= one.right
            assert apart or one.top >= other.bottom or other.top >= one.bottom


def test_text_stays_inside_and_below_the_panels(view: NDArray[np.float64]):
    """Nothing is written over a panel or cut off at the edge."""
    drawn = draw(sheet(view, rows=3))
    page = pixels(drawn).copy()
    below = max(box.bottom for box in drawn.boxes.values())
    assert (page[-10:] == 255).all()
    assert (page[:, :10] == 255).all()
    assert (page[:, -10:] == 255).all()
    assert (page[below + 30 :].min(axis=(1, 2)) < 100).any()


def test_the_same_bytes_every_time_and_smaller_with_scale(view: NDArray[np.float64]):
    once = draw(sheet(view))
    assert draw(sheet(view)).png == once.png
    height, width = pixels(once).shape[:2]
    half = pixels(draw(sheet(view), scale=0.5)).shape
    assert half[1] == pytest.approx(width / 2, rel=0.02)
    assert half[0] == pytest.approx(height / 2, rel=0.05)


def test_names_in_any_script_are_taken_as_they_are(view: NDArray[np.float64]):
    given = sheet(view, rows=1)
    row = given.rows[0]
    named = Row(
        name="猫 $x_1$ " + "name" * 20 + ".png",
        label="",
        view=view,
        importance=row.importance,
        kept=row.kept,
    )
    drawn = draw(Sheet(rows=[named], grid=GRID, columns=given.columns, notes=["$"]))
    box = drawn.boxes[0, "image"]
    strip = pixels(drawn)[:, : box.left].min(axis=(1, 2)) < 100
    assert strip[box.top : box.bottom].any()
    assert not strip[: box.top - 2].any()
    assert not strip[box.bottom + 2 : box.bottom + 40].any()  # the notes are further down


def test_lines_fit():
    text = "What is left out: " + "www iii mmm " * 40
    lines = wrapped(text, 19, 300)
    assert " ".join(lines) == text.strip()
    assert max(width_of(line, 19) for line in lines) <= 300
    nexts = [following.split()[0] for following in lines[1:]]
    joined = [f"{line} {word}" for line, word in zip(lines, nexts, strict=False)]
    assert min(width_of(line, 19) for line in joined) > 300
    assert wrapped("", 19, 300) == []
    assert wrapped("unbreakable", 19, 5) == ["unbreakable"]


def test_names_keep_their_ends():
    name = "IMG_2024_" + "m" * 50 + "_0042.jpeg"
    found = short(name, 21, 200)
    assert width_of(found, 21) <= 200
    start, end = found.split("…")
    assert name.startswith(start)
    assert name.endswith(end)
    assert 0 <= len(start) - len(end) <= 1
    assert short("fine.png", 21, 200) == "fine.png"


def test_an_svg_is_as_large_as_the_bitmap_and_has_its_panels(view: NDArray[np.float64]):
    drawn = draw(sheet(view), 0.5, vector=True)
    height, width, _ = pixels(drawn).shape
    head = drawn.svg[: drawn.svg.index(b">", drawn.svg.index(b"<svg"))].decode()
    assert f'width="{width}px" height="{height}px" viewBox="0 0 {width} {height}"' in head
    assert drawn.svg.count(b"<image ") == 2 * 5 + 1  # the colour bar
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


def luminance(grey: float) -> float:
    """Return that of an sRGB grey in [0, 1], as WCAG defines it."""
    return grey / 12.92 if grey <= 0.04045 else ((grey + 0.055) / 1.055) ** 2.4


@pytest.mark.parametrize("ground", [1.0, 0.0])
def test_hatching_is_told_from_white_and_from_black_images(ground: float):
    for grey in HATCH:
        lights = sorted((luminance(grey) + 0.05, luminance(ground) + 0.05))
        assert lights[1] / lights[0] >= 3


@pytest.mark.parametrize("ground", [0.0, 0.25, 0.38, 0.47, 0.56, 0.75, 1.0])
@pytest.mark.parametrize("size", [(24, 36), (80, 120)])
def test_a_dropped_patch_looks_like_no_kept_one_on_any_plain_image(
    ground: float, size: tuple[int, int]
):
    view, kept = np.full((40, 60, 3), ground), np.arange(CELLS) % 2 == 0
    own = np.where(kept, np.arange(CELLS), -1)
    side = size[0] // 4
    for panel in (kept_panel(view, kept, GRID, size), merged_panel(view, own, GRID, size)):
        cells = panel.reshape(4, side, 6, side, 3).transpose(0, 2, 1, 3, 4).reshape(CELLS, -1)
        inner = cells.reshape(CELLS, side, side, 3)[:, 1:-1, 1:-1]
        assert np.abs(inner[kept] - ground).max() < 0.005
        off = np.abs(inner[~kept] - ground).max(axis=3)
        assert ((off > 0.08).mean(axis=(1, 2)) > 0.35).all()


@pytest.mark.parametrize("side", [3, 6, 11, 40])
def test_stripes_are_wide_enough_and_several_to_a_patch(side: int):
    row = hatch((4, 6), (4 * side, 6 * side))[0, :, 0]
    changes = np.flatnonzero(np.diff(row))
    assert np.diff(changes).min() >= 2
    assert len(changes) >= 6 * side / max(2, side / 4) - 2
