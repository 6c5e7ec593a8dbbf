"""Figures pixel by pixel: colours are ranks, dropped patches are hatched, all is in its place."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from harness.golden.panels import (
    BORDER,
    HATCH,
    fit,
    heat_panel,
    image_panel,
    kept_panel,
    ranks,
)
from harness.golden.sheet import Drawn, Row, Sheet, draw
from harness.golden.text import short, width_of, wrapped

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
