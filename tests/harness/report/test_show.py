"""Which images a figure is asked for, what it shows beside them, and where, pixel by pixel."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import replace
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from harness.base.terminal import Progress
from harness.cli import main
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.golden.maps import method_maps, most_important, reduced
from harness.models.towers import Tower
from harness.report import show as module
from harness.report.show import (
    BORDER,
    DIM,
    Drawn,
    Figure,
    Row,
    Sheet,
    ShowConfig,
    dimmed,
    draw,
    find_pictures,
    fit,
    heat_panel,
    image_panel,
    kept_panel,
    merged_panel,
    ranks,
    short,
    show,
    width_of,
    wrapped,
)
from zoo.core.reducer import METHODS
from zoo.core.tokens import tokens_of
from zoo.loading.clip import class_features
from zoo.ranking.golden import SCORES, GoldenConfig, golden_importance

GRID = (4, 6)
CELLS = 24
VIRIDIS = colormaps["viridis"]


View = NDArray[np.float64]


@pytest.fixture
def view() -> View:
    """A picture 40 high and 60 wide, neither dark nor light."""
    return np.random.default_rng(0).uniform(0.4, 0.6, (40, 60, 3))


def sheet(view: View, rows: int = 2, columns: int = 3) -> Sheet:
    """A figure whose last row lacks the first ranking."""
    drawn = np.random.default_rng(1).random((rows, columns, CELLS))
    names = [f"ranking {j}" for j in range(columns)]
    return Sheet(
        rows=[
            Row(
                name=f"a rather long file name {i}.jpeg",
                label="ankle boot" if i else "",
                view=view,
                importance={name: drawn[i, j] for j, name in enumerate(names) if (i, j) != (rows - 1, 0)},
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


def test_the_most_important_patch_is_the_brightest(view: View):
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


def test_a_patch_has_the_colour_of_its_rank_be_the_image_dark_or_light(view: View):
    importance = np.random.default_rng(3).random(CELLS)
    wanted = VIRIDIS(ranks(importance).reshape(GRID))[..., :3]
    inner = slice(4, 20)  # the colours of either end leave no room for the image's detail
    for image in (view - 0.35, view, view + 0.35):
        cells = heat_panel(image, importance, GRID, (80, 120)).reshape(4, 20, 6, 20, 3)
        off = np.abs(cells.mean(axis=(1, 3)) - wanted).reshape(CELLS, 3)
        assert off[np.argsort(importance)[inner]].max() < 0.01
        assert cells.std(axis=(1, 3)).mean() > 0.005  # and yet the image shows


def test_kept_patches_are_as_they_were_and_dropped_ones_dimmed(view: View):
    kept = np.random.default_rng(4).random(CELLS) < 0.5
    panel = kept_panel(view, kept, GRID, (80, 120)).reshape(4, 20, 6, 20, 3)
    image = image_panel(view, (80, 120)).reshape(4, 20, 6, 20, 3)
    for cell, stays in enumerate(kept):
        row, column = divmod(cell, 6)
        inner = panel[row, 1:, column, 1:]
        if stays:
            assert (inner == image[row, 1:, column, 1:]).all()
        else:
            assert inner == pytest.approx(dimmed(image[row, 1:, column, 1:]))
            assert np.abs(inner - DIM).max() < 0.08
    assert (panel[1:, 0] == BORDER).all()
    assert (panel[:, :, 1:, 0] == BORDER).all()


@pytest.mark.parametrize("grid", [(14, 14), (4, 6), (7, 3), (1, 1), (37, 37)])
@pytest.mark.parametrize("width", [150, 231.7, 480])
def test_every_patch_has_as_many_pixels(grid: tuple[int, int], width: float):
    height, across = fit((grid[0] * 16, grid[1] * 16), grid, width)
    assert height % grid[0] == across % grid[1] == 0
    assert height // grid[0] == across // grid[1]
    assert abs(across - width) <= grid[1] / 2


def test_panels_are_where_the_figure_says(view: View):
    figure = sheet(view)
    drawn = draw(figure)
    page = pixels(drawn)
    assert set(drawn.boxes) == {(i, c) for i in range(2) for c in ("image", *figure.columns)}
    for (i, column), box in drawn.boxes.items():
        row = figure.rows[i]
        if column == "image":
            panel = image_panel(view, box.size)
        elif column == "kept 50":
            panel = kept_panel(view, row.kept[column], GRID, box.size)
        elif column in row.importance:
            panel = heat_panel(view, row.importance[column], GRID, box.size)
        else:
            assert (i, column) == (1, "ranking 0")
            continue
        found = page[box.top : box.bottom, box.left : box.right]
        assert np.abs(found - panel * 255).max() <= 0.51


def test_what_is_missing_is_a_dash(view: View):
    drawn = draw(sheet(view))
    box = drawn.boxes[1, "ranking 0"]
    panel = pixels(drawn)[box.top : box.bottom, box.left : box.right]
    dark = np.argwhere(panel.max(axis=2) < 120)
    assert len(dark) > 5
    assert np.abs(dark.mean(axis=0) / panel.shape[:2] - 0.5).max() < 0.1
    assert (panel[:40] == panel[0, 0]).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 6), (2, 11), (4, 3)])
def test_figures_are_wide_enough_and_nothing_overlaps(rows: int, columns: int, view: View):
    drawn = draw(sheet(view, rows, columns))
    height, width = pixels(drawn).shape[:2]
    assert 1500 <= width <= 2400
    boxes = list(drawn.boxes.values())
    assert len(boxes) == rows * (columns + 2)
    for i, one in enumerate(boxes):
        assert 0 < one.left < one.right < width
        assert 0 < one.top < one.bottom < height
        for other in boxes[:i]:
            apart = one.left >= other.right or other.left >= one.right
            assert apart or one.top >= other.bottom or other.top >= one.bottom


def test_the_same_bytes_every_time_and_smaller_with_scale(view: View):
    once = draw(sheet(view))
    assert draw(sheet(view)).png == once.png
    height, width = pixels(once).shape[:2]
    half = pixels(draw(sheet(view), scale=0.5)).shape
    assert half[1] == pytest.approx(width / 2, rel=0.02)
    assert half[0] == pytest.approx(height / 2, rel=0.05)


def test_names_in_any_script_are_taken_as_they_are(view: View):
    plain = sheet(view, rows=1)
    named = replace(plain.rows[0], name="猫 $x_1$ " + "name" * 20 + ".png")
    drawn = draw(replace(plain, rows=[named], notes=["$"]))
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


def test_an_svg_is_as_large_as_the_bitmap_and_has_its_panels(view: View):
    drawn = draw(sheet(view), 0.5, vector=True)
    height, width, _ = pixels(drawn).shape
    head = drawn.svg[: drawn.svg.index(b">", drawn.svg.index(b"<svg"))].decode()
    assert f'width="{width}px" height="{height}px" viewBox="0 0 {width} {height}"' in head
    assert drawn.svg.count(b"<image ") == 2 * 5 + 1  # the colour bar
    assert draw(sheet(view), 0.5).svg == b""


def test_captions_stand_below_their_panels(view: View):
    plain = sheet(view)
    rows = [replace(row, captions={"image": "right"}) for row in plain.rows]
    without, with_captions = draw(plain), draw(replace(plain, rows=rows))
    assert with_captions.boxes[0, "image"] == without.boxes[0, "image"]
    below = with_captions.boxes[0, "image"].bottom
    assert with_captions.boxes[1, "image"].top - below > without.boxes[1, "image"].top - below
    left, right = with_captions.boxes[0, "image"].left, with_captions.boxes[0, "image"].right
    strip = pixels(with_captions)[below : with_captions.boxes[1, "image"].top, left:right]
    assert strip.min() < 100  # ink


def test_patches_that_share_a_token_have_their_mean_colour(view: View):
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
    assert (panel[3, 1:, 2, 1:] == dimmed(image[3, 1:, 2, 1:])).all()  # dropped


@pytest.mark.parametrize("ground", [0.0, 1.0])
def test_dropped_patches_are_told_from_white_and_from_black_images(ground: float):
    linear = ((dimmed(np.full((1, 1, 3), ground)) + 0.055) / 1.055) ** 2.4  # luminance of sRGB, as WCAG defines it
    light = 0.05 + float((linear @ [0.2126, 0.7152, 0.0722]).item())
    assert max(light, 0.05 + ground) / min(light, 0.05 + ground) >= 3


@pytest.mark.parametrize("ground", [0.0, 0.25, 0.38, 0.47, 0.56, 0.75, 1.0])
@pytest.mark.parametrize("size", [(24, 36), (80, 120)])
def test_a_dropped_patch_looks_like_no_kept_one_on_any_plain_image(ground: float, size: tuple[int, int]):
    view, kept = np.full((40, 60, 3), ground), np.arange(CELLS) % 2 == 0
    own = np.where(kept, np.arange(CELLS), -1)
    side = size[0] // 4
    for panel in (kept_panel(view, kept, GRID, size), merged_panel(view, own, GRID, size)):
        cells = panel.reshape(4, side, 6, side, 3).transpose(0, 2, 1, 3, 4).reshape(CELLS, -1)
        inner = cells.reshape(CELLS, side, side, 3)[:, 1:-1, 1:-1]
        assert np.abs(inner[kept] - ground).max() < 0.005
        off = np.abs(inner[~kept] - ground).max(axis=3)
        assert ((off > 0.08).mean(axis=(1, 2)) > 0.35).all()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two images and a text."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("red.png")
    Image.new("RGBA", (8, 8), (0, 0, 255, 128)).save("blue.png")
    Path("words.txt").write_text("no image")
    return tmp_path


def test_a_place_in_a_dataset():
    [picture] = find_pictures(["fashion:val:3"])
    fashion = get_dataset("fashion")
    example = fashion.split("val")[3]
    assert picture.name == "fashion:val:3"
    assert (np.asarray(picture.image) == np.asarray(example.image)).all()
    assert picture.classes[picture.label] == "dress"
    assert (picture.label, picture.classes) == (example.label, fashion.classes)
    assert picture.templates == fashion.templates


def test_files_alone(here: Path):
    [red, blue] = find_pictures([str(here / "red.png"), "blue.png"])
    assert (red.name, red.label, red.classes) == ("red.png", None, ())
    assert (red.image.size, red.image.getpixel((5, 5))) == ((30, 20), (255, 0, 0))
    assert blue.image.mode == "RGB"


def test_one_label_serves_all_files_and_one_file_may_have_several(here: Path):
    pictures = find_pictures(["red.png", "blue.png"], classes=["cat", "dog"], labels=["dog"])
    assert [picture.label for picture in pictures] == [1, 1]
    twice = find_pictures(["red.png"] * 2, classes=["cat", "dog"], labels=["dog", "cat"])
    assert [picture.label for picture in twice] == [1, 0]
    places = ["emoji:val:2", "red.png", "fashion:test:0", "blue.png"]
    pictures = find_pictures(places, dataset="fashion", labels=["bag", "coat"])
    assert [picture.name for picture in pictures] == places
    labels = [picture.classes[picture.label] for picture in pictures]
    assert labels == ["smiley or emotion", "bag", "t-shirt", "coat"]
    assert pictures[1].templates == get_dataset("fashion").templates
    [unlabelled] = find_pictures(["red.png"], classes=["cat", "dog"])
    assert (unlabelled.label, unlabelled.classes) == (None, ("cat", "dog"))


def test_a_file_goes_before_a_place_of_its_name(here: Path):
    Image.new("RGB", (5, 5)).save(here / "x.png")
    (here / "x.png").rename(here / "fashion:val:3")
    [picture] = find_pictures(["fashion:val:3"])
    assert picture.image.size == (5, 5)
    assert picture.label is None


@pytest.mark.parametrize("place", ["gone.png", "sub/gone.jpg", ".", "C:pictures"])
def test_files_that_are_not_there(place: str, here: Path):
    with pytest.raises(FileNotFoundError, match=f"image {re.escape(repr(place))} does not exist"):
        find_pictures([place])


@pytest.mark.parametrize(
    ("places", "names", "match"),
    [
        (["words.txt"], {}, r"image 'words.txt' can't be read .* or leave it out$"),
        (["fasion:val:3"], {}, "no dataset is called 'fasion'. Did you mean 'fashion'?"),
        (["fashion:vla:3"], {}, "'fashion:vla:3': split must be one of train, val, test"),
        (["fashion:val:100000"], {}, r"index '100000': fashion val has images 0 to \d+"),
        (["fashion:val:-1"], {}, "index '-1': fashion val has images 0 to"),
        (["fashion:val:x"], {}, "index 'x': fashion val has images 0 to"),
        (["fashion:val:"], {}, "index '': fashion val has images 0 to"),
        (["emoji-names:val:0"], {}, "emoji-names val has no images"),
        (["red.png"], {"labels": ["bag"]}, "--label 'bag': a label needs the classes"),
        (["red.png"], {"labels": ["bga"], "dataset": "fashion"}, "'bga': did you mean 'bag'"),
        (["red.png"], {"dataset": "fashoin"}, "no dataset is called 'fashoin'"),
        (["red.png"], {"dataset": "fashion", "classes": ["a"]}, "both name classes"),
        (["red.png"], {"classes": ["a", "b", "a"]}, "--classes 'a,b,a': expected names, each once"),
        (["red.png"], {"classes": ["a", ""]}, "--classes 'a,': expected names"),
        (["fashion:val:3"], {"dataset": "emoji"}, "are for image files, and there is none among"),
        (["red.png"] * 3, {"classes": ["a", "b"], "labels": ["a", "b"]}, "2 labels for 3 files"),
    ],
)
def test_refusals(places: list[str], names: dict, match: str, here: Path):
    with pytest.raises(ValueError, match=match):
        find_pictures(places, **names)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"left": ("tmoe",)}, "--left 'tmoe': did you mean 'tome'"),
        ({"left": ("goldn",)}, "--left 'goldn': did you mean 'golden'"),
        ({"methods": ("golden",)}, "--methods 'golden': "),
        ({"left": ("tome",), "methods": ("evit",)}, "--left shows what methods leave, and no rankings"),
        ({"left": ("tome",), "by": "golden"}, "expected no --methods and no --by with it"),
    ],
)
def test_refusals_of_what_is_left(settings: dict, match: str):
    with pytest.raises(ValueError, match=match):
        ShowConfig(**settings)


GOLDEN = GoldenConfig(window=2, stride=2)
ALWAYS = ("image", *SCORES, "patchrank", "clsattn")
Show = Callable[..., Figure]


@pytest.fixture
def figure_of(
    tower: Tower, toy: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Show:  # fmt: skip
    """Draw toy images, of classes that the text tower has words for, with the miniature tower."""
    monkeypatch.setattr(type(toy), "classes", ("cat", "dog", "house", "dog house"))
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)

    def call(places: tuple[str, ...] = ("toy:test:5", "toy:test:6"), **config: object) -> Figure:
        settings = {"golden": GOLDEN, "scale": 0.5} | config
        names = ("dataset", "classes", "labels")
        files = {key: settings.pop(key) for key in names if key in settings}
        pictures = find_pictures([str(place) for place in places], **files)
        out = tmp_path / "show.png"
        return show("any", pictures, ShowConfig(**settings), out, progress=Progress())

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(3).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def page(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.path.read_bytes())).convert("RGB"))


def panel(figure: Figure, row: int, column: str) -> np.ndarray:
    left, top, right, bottom = figure.boxes[row, column]
    return page(figure)[top:bottom, left:right] / 255


def test_panels_hold_what_the_model_computes(figure_of: Show, tower: Tower, toy: Dataset):
    """Every heat map and every kept patch, against the same things computed one by one."""
    figure = figure_of(keeps=(0.6, 0.25))
    assert figure.columns == (*ALWAYS, "kept 60", "kept 25")
    assert set(figure.boxes) == {(i, column) for i in (0, 1) for column in figure.columns}
    [conditions] = figure.notes
    assert conditions.startswith("clip_vit_b16.openai. Golden scores: windows of 2 × 2 patches")
    examples = [toy.split("test")[i] for i in (5, 6)]
    images = torch.stack([tower.preprocess(example.image) for example in examples])
    model, _, tokenizer = tower.clip
    text = class_features(model, tokenizer, toy.classes, toy.templates)
    kept, maps = {}, {}
    for score in SCORES:
        config = GoldenConfig(score=score, stride=2)
        maps[score] = [  # one by one, as rounding may swap patches that all but tie
            golden_importance(tower.vit, image[None], config, text=text, scale=20.0, labels=torch.tensor([label]))[0]
            for image, label in zip(images, (e.label for e in examples), strict=True)
        ]
    for method in ("patchrank", "clsattn"):
        for keep in (0.25, 0.6):
            vit = reduced(tower, method, keep=keep, block=3)
            maps[method], kept[method, keep] = method_maps(vit, images)
    for i, example in enumerate(examples):
        view = np.asarray(example.image) / 255
        size = panel(figure, i, "image").shape[:2]
        for column, importance in maps.items():
            wanted = heat_panel(view, importance[i].numpy(), (8, 8), size)
            assert np.abs(panel(figure, i, column) - wanted).max() < 0.005
        for percent, keep in ((60, 0.6), (25, 0.25)):
            wanted = kept_panel(view, kept["patchrank", keep][i].numpy(), (8, 8), size)
            assert np.abs(panel(figure, i, f"kept {percent}") - wanted).max() < 0.005


@pytest.mark.parametrize("by", ["golden", "confidence", "predictor", "random", "evit"])
def test_any_ranking_may_decide_what_is_kept(
    by: str, figure_of: Show, tower: Tower, toy: Dataset, monkeypatch: pytest.MonkeyPatch
):
    sheets: list[Sheet] = []
    monkeypatch.setattr(module, "draw", lambda sheet, scale: sheets.append(sheet) or draw(sheet, scale))
    figure_of(by=by, keeps=(0.3,))
    [sheet] = sheets
    name = module.ALIASES.get(by, by)
    for i, row in enumerate(sheet.rows):
        importance = torch.from_numpy(row.importance[name])[None]
        assert row.kept["kept 30"].sum() == round(0.3 * 64)
        assert (row.kept["kept 30"] == most_important(importance, 0.3)[0].numpy()).all(), i
    title = {"golden": "golden preservation", "confidence": "golden confidence"}.get(by, by)
    assert sheet.columns["kept 30"] == f"30 % kept\nby {title}"


def test_what_methods_leave(figure_of: Show, tower: Tower, toy: Dataset):
    """Without rankings: dropped patches grey, merged ones in their mean colour, as the panels draw them."""
    figure = figure_of(left=("rankmerge", "evit"), keeps=(0.5,))
    assert figure.columns == ("image", "rankmerge 50", "evit 50")
    assert "rankmerge: patches that share a token have their mean colour" in figure.notes[0]
    examples = [toy.split("test")[i] for i in (5, 6)]
    images = torch.stack([tower.preprocess(example.image) for example in examples])
    for method in ("rankmerge", "evit"):
        trace = reduced(tower, method, keep=0.5, block=3).trace(images)
        tokens = tokens_of(trace.reductions, 64).numpy()
        assert (tokens < 0).any() == (method == "evit")
        for i, example in enumerate(examples):
            shown = panel(figure, i, f"{method} 50")
            wanted = merged_panel(np.asarray(example.image) / 255, tokens[i], (8, 8), shown.shape[:2])
            assert np.abs(shown - wanted).max() < 0.005


def test_what_the_golden_ranking_leaves_beside_others(figure_of: Show, tower: Tower, toy: Dataset):
    figure = figure_of(left=("golden", "clsattn"), keeps=(0.5, 0.25))
    assert figure.columns == ("image", "golden 50", "clsattn 50", "golden 25", "clsattn 25")
    assert "golden: preservation before block 3, windows of 2 x 2 by 2" in figure.notes[0]
    for i, example in enumerate(toy.split("test")[at] for at in (5, 6)):
        image = tower.preprocess(example.image)[None]
        importance = golden_importance(tower.vit, image, GoldenConfig(stride=2))
        for keep in (0.5, 0.25):
            tokens = np.where(most_important(importance, keep)[0].numpy(), np.arange(64), -1)
            panels = panel(figure, i, f"golden {100 * keep:g}")
            wanted = merged_panel(np.asarray(example.image) / 255, tokens, (8, 8), panels.shape[:2])
            assert np.abs(panels - wanted).max() < 0.005


def test_every_registered_method_can_have_a_column(figure_of: Show):
    figure = figure_of(places=("toy:val:0",), methods=tuple(METHODS))
    assert set(figure.columns) == {*ALWAYS, *METHODS, "kept 60"}
    assert len(figure.columns) == len(set(figure.columns))


def test_a_file_without_label_leaves_its_panels_empty(figure_of: Show, photo: Path):
    figure = figure_of(places=("toy:test:5", photo))
    assert figure.columns == (*ALWAYS, "kept 60")
    assert figure.notes[1:] == (
        "Left out: golden label and golden confidence of photo.png: its classes are not known "
        '(--dataset NAME or --classes "a,b,c" names them).',
    )
    assert np.ptp(panel(figure, 1, "label")[:20]) == 0
    assert np.ptp(panel(figure, 0, "label")[:20]) > 0.1


def test_classes_give_confidence_and_a_label_gives_all(figure_of: Show, photo: Path):
    figure = figure_of(places=(photo,), classes=["cat", "dog"])
    scores = ("preservation", "confidence")
    assert figure.columns == ("image", *scores, "patchrank", "clsattn", "kept 60")
    note = "Left out: golden label: its true class is not known (--label CLASS names it)."
    assert figure.notes[1:] == (note,)
    figure = figure_of(places=(photo,), classes=["cat", "dog"], labels=["dog"])
    assert (figure.columns, figure.notes[1:]) == ((*ALWAYS, "kept 60"), ())
    figure = figure_of(places=(photo,), classes=["cat", "zebra"], labels=["cat"])
    assert figure.columns == ("image", "preservation", "patchrank", "clsattn", "kept 60")
    assert "golden label and golden confidence: class 'zebra': " in figure.notes[1]


def test_towers_without_text_or_predictor(
    figure_of: Show, tower: Tower, predictor_file: Path, monkeypatch: pytest.MonkeyPatch
):
    predictor_file.unlink()
    monkeypatch.setattr(module, "load_tower", lambda name: tower._replace(clip=None))
    figure = figure_of(places=("toy:val:0",))
    assert figure.columns == ("image", "preservation", "clsattn", "kept 60")
    first, second = sorted(figure.notes[1:])
    assert first.endswith("confidence: clip_vit_b16.openai has no text tower here.")
    assert re.fullmatch("Left out: predictor: no predictor for .* patchrank fit .* NAME.", second)
    with pytest.raises(FileNotFoundError, match="no predictor for clip_vit_b16"):
        figure_of(by="predictor")
    with pytest.raises(ValueError, match=r"--by 'label' can't be had: .* has no text tower"):
        figure_of(by="label")


def test_a_predictor_of_another_block_is_left_out(figure_of: Show):
    figure = figure_of(places=("toy:val:0",), golden=GoldenConfig(block=2, stride=2))
    assert figure.columns == ("image", *SCORES, "clsattn", "kept 60")
    assert "predictor: no predictor for clip_vit_b16.openai at block 2: " in figure.notes[1]
    assert "removed before block 2" in figure.notes[0]


def test_a_figure_is_written_whole_or_not_at_all(figure_of: Show, monkeypatch: pytest.MonkeyPatch):
    figure = figure_of(places=("toy:val:0",))
    before = figure.path.read_bytes()

    def stop(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(OSError, match="the disk is full"):
        figure_of(places=("toy:val:1",))
    assert figure.path.read_bytes() == before
    assert list(figure.path.parent.iterdir()) == [figure.path]


def test_the_command(figure_of: Show, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "figure.png"
    command = ["show", "toy:val:1", str(photo), "--classes", "cat, dog", "--keep", "0.5", "0.25"]
    command += ["--stride", "2", "--methods", "tome", "--by", "tome", "--out", str(out)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    reason = "its true class is not known (--label CLASS names it)"
    assert lines[1:] == [f"Left out: golden label of photo.png: {reason}.", f"wrote {out}"]
    assert Image.open(io.BytesIO(out.read_bytes())).width > 1600
