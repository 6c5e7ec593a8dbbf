"""Which images a figure is asked for, and what it shows beside them."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.cli import main
from harness.console.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.golden.maps import method_maps, most_important, reduced
from harness.models.towers import Tower
from harness.report import show as module
from harness.report.sheet import heat_panel, kept_panel
from harness.report.show import Figure, ShowConfig, find_pictures, show
from zoo.clip import ClipParts, class_features
from zoo.golden import SCORES, GoldenConfig, golden_importance
from zoo.reducer import METHODS


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


def test_a_file_alone(here: Path):
    [red, blue] = find_pictures([str(here / "red.png"), "blue.png"])
    assert (red.name, red.label, red.classes) == ("red.png", None, ())
    assert red.image.size == (30, 20)
    assert red.image.getpixel((5, 5)) == (255, 0, 0)
    assert blue.image.mode == "RGB"


def test_files_beside_places_have_the_classes_that_are_named(here: Path):
    places = ["emoji:val:2", "red.png", "fashion:test:0", "blue.png"]
    found = find_pictures(places, dataset="fashion", labels=["bag", "coat"])
    assert [picture.name for picture in found] == places
    labels = [picture.classes[picture.label] for picture in found]
    assert labels == ["smiley or emotion", "bag", "t-shirt", "coat"]
    assert found[1].templates == get_dataset("fashion").templates


def test_one_label_serves_all_files_and_one_file_may_have_several(here: Path):
    found = find_pictures(["red.png", "blue.png"], classes=["cat", "dog"], labels=["dog"])
    assert [picture.label for picture in found] == [1, 1]
    twice = find_pictures(["red.png"] * 2, classes=["cat", "dog"], labels=["dog", "cat"])
    assert [picture.label for picture in twice] == [1, 0]
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
    ("places", "told", "match"),
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
        (
            ["red.png"],
            {"labels": ["bga"], "dataset": "fashion"},
            "--label 'bga': did you mean 'bag'",
        ),
        (["red.png"], {"dataset": "fashoin"}, "no dataset is called 'fashoin'"),
        (["red.png"], {"dataset": "fashion", "classes": ["a"]}, "both name classes"),
        (["red.png"], {"classes": ["a", "b", "a"]}, "--classes 'a,b,a': expected names, each once"),
        (["red.png"], {"classes": ["a", ""]}, "--classes 'a,': expected names"),
        (["fashion:val:3"], {"dataset": "emoji"}, "are for image files, and there is none among"),
        (
            ["red.png"] * 3,
            {"classes": ["a", "b"], "labels": ["a", "b"]},
            "2 labels for 3 files; give one, or one each",
        ),
    ],
)
def test_refusals(places: list[str], told: dict, match: str, here: Path):
    with pytest.raises(ValueError, match=match):
        find_pictures(places, **told)


GOLDEN = GoldenConfig(window=2, stride=2)
ALWAYS = ("image", *SCORES, "patchrank", "clsattn")
Show = Callable[..., Figure]


@pytest.fixture
def tower(parts: ClipParts) -> Tower:
    return Tower(parts.model.visual, parts.preprocess, "clip_vit_b16.openai", parts)


@pytest.fixture
def draw(
    tower: Tower,
    toy: Dataset,
    predictor_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Show:
    """Draw toy images, of classes that the text tower has words for, with the miniature tower."""
    monkeypatch.setattr(type(toy), "classes", ("cat", "dog", "house", "dog house"))
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)

    def call(places: tuple[str, ...] = ("toy:test:5", "toy:test:6"), **config: object) -> Figure:
        told = {"golden": GOLDEN, "scale": 0.5} | config
        files = {key: told.pop(key) for key in ("dataset", "classes", "labels") if key in told}
        found = find_pictures([str(place) for place in places], **files)
        out = tmp_path / "show.png"
        return show("any", found, ShowConfig(**told), out, progress=Progress())

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(3).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def page(shown: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shown.path.read_bytes())).convert("RGB"))


def panel(shown: Figure, row: int, column: str) -> np.ndarray:
    left, top, right, bottom = shown.boxes[row, column]
    return page(shown)[top:bottom, left:right] / 255


def test_all_rankings_stand_beside_the_image(draw: Show):
    shown = draw(scale=1.0)
    assert shown.columns == (*ALWAYS, "kept 60")
    assert set(shown.boxes) == {(i, column) for i in (0, 1) for column in shown.columns}
    height, width, _ = page(shown).shape
    assert 1600 <= width <= 2400
    assert 500 <= height <= 1200
    [conditions] = shown.notes
    assert conditions.startswith("clip_vit_b16.openai. Golden scores: windows of 2 × 2 patches")
    assert "rank of a patch within its image" in conditions


def test_panels_hold_what_the_model_computes(draw: Show, tower: Tower, toy: Dataset):
    """Every heat map and every kept patch, against the same things computed one by one."""
    shown = draw(keeps=(0.6, 0.25))
    examples = [toy.split("test")[i] for i in (5, 6)]
    images = torch.stack([tower.preprocess(example.image) for example in examples])
    model, _, tokenizer = tower.clip
    text = class_features(model, tokenizer, toy.classes, toy.templates)
    kept, maps = {}, {}
    for score in SCORES:
        maps[score] = [  # one by one, as rounding may swap patches that all but tie
            golden_importance(
                tower.vit,
                images[i : i + 1],
                GoldenConfig(score=score, stride=2),
                text=text,
                scale=20.0,
                labels=torch.tensor([example.label]),
            )[0]
            for i, example in enumerate(examples)
        ]
    for method in ("patchrank", "clsattn"):
        for keep in (0.25, 0.6):
            vit = reduced(tower, method, keep=keep, block=3)
            maps[method], kept[method, keep] = method_maps(vit, images)
    for i, example in enumerate(examples):
        view = np.asarray(example.image) / 255
        size = panel(shown, i, "image").shape[:2]
        for column, importance in maps.items():
            wanted = heat_panel(view, importance[i].numpy(), (8, 8), size)
            assert np.abs(panel(shown, i, column) - wanted).max() < 0.005
        for percent, keep in ((60, 0.6), (25, 0.25)):
            wanted = kept_panel(view, kept["patchrank", keep][i].numpy(), (8, 8), size)
            assert np.abs(panel(shown, i, f"kept {percent}") - wanted).max() < 0.005


@pytest.mark.parametrize("by", ["golden", "confidence", "predictor", "random", "evit"])
def test_any_ranking_may_decide_what_is_kept(
    by: str, draw: Show, tower: Tower, toy: Dataset, monkeypatch: pytest.MonkeyPatch
):
    sheets = []
    real = module.draw
    monkeypatch.setattr(
        module, "draw", lambda sheet, scale: sheets.append(sheet) or real(sheet, scale)
    )
    draw(by=by, keeps=(0.3,))
    [sheet] = sheets
    name = {"golden": "preservation", "predictor": "patchrank"}.get(by, by)
    for i, row in enumerate(sheet.rows):
        importance = torch.from_numpy(row.importance[name])[None]
        assert row.kept["kept 30"].sum() == round(0.3 * 64)
        assert (row.kept["kept 30"] == most_important(importance, 0.3)[0].numpy()).all(), i
    title = {"golden": "golden preservation", "confidence": "golden confidence"}.get(by, by)
    assert sheet.columns["kept 30"] == f"30 % kept\nby {title}"


def test_every_registered_method_can_have_a_column(draw: Show):
    shown = draw(places=("toy:val:0",), methods=tuple(METHODS))
    assert set(shown.columns) == {*ALWAYS, *METHODS, "kept 60"}
    assert len(shown.columns) == len(set(shown.columns))


def test_a_file_without_label_leaves_its_panels_empty(draw: Show, photo: Path):
    shown = draw(places=("toy:test:5", photo))
    assert shown.columns == (*ALWAYS, "kept 60")
    assert shown.notes[1:] == (
        "Left out: golden label and golden confidence of photo.png: its classes are not known "
        '(--dataset NAME or --classes "a,b,c" names them).',
    )
    assert np.ptp(panel(shown, 1, "label")[:20]) == 0
    assert np.ptp(panel(shown, 0, "label")[:20]) > 0.1


def test_classes_give_confidence_and_a_label_gives_all(draw: Show, photo: Path):
    shown = draw(places=(photo,), classes=["cat", "dog"])
    assert shown.columns == (
        "image",
        "preservation",
        "confidence",
        "patchrank",
        "clsattn",
        "kept 60",
    )
    note = "Left out: golden label: its true class is not known (--label CLASS names it)."
    assert shown.notes[1:] == (note,)
    shown = draw(places=(photo,), classes=["cat", "dog"], labels=["dog"])
    assert (shown.columns, shown.notes[1:]) == ((*ALWAYS, "kept 60"), ())
    shown = draw(places=(photo,), classes=["cat", "zebra"], labels=["cat"])
    assert shown.columns == ("image", "preservation", "patchrank", "clsattn", "kept 60")
    assert "golden label and golden confidence: class 'zebra': " in shown.notes[1]


def test_towers_without_text_or_predictor(
    draw: Show, tower: Tower, predictor_file: Path, monkeypatch: pytest.MonkeyPatch
):
    predictor_file.unlink()
    monkeypatch.setattr(module, "load_tower", lambda name: tower._replace(clip=None))
    shown = draw(places=("toy:val:0",))
    assert shown.columns == ("image", "preservation", "clsattn", "kept 60")
    first, second = sorted(shown.notes[1:])
    text = (
        "Left out: golden label and golden confidence: clip_vit_b16.openai has no text tower here."
    )
    assert first == text
    assert re.fullmatch("Left out: predictor: no predictor for .* patchrank fit .* NAME.", second)
    with pytest.raises(FileNotFoundError, match="no predictor for clip_vit_b16"):
        draw(by="predictor")
    with pytest.raises(ValueError, match=r"--by 'label' can't be had: .* has no text tower"):
        draw(by="label")


def test_a_predictor_of_another_block_is_left_out(draw: Show):
    shown = draw(places=("toy:val:0",), golden=GoldenConfig(block=2, stride=2))
    assert shown.columns == ("image", *SCORES, "clsattn", "kept 60")
    assert (
        "Left out: predictor: no predictor for clip_vit_b16.openai at block 2: " in shown.notes[1]
    )
    assert "removed before block 2" in shown.notes[0]


def test_a_figure_is_written_whole_or_not_at_all(draw: Show, monkeypatch: pytest.MonkeyPatch):
    shown = draw(places=("toy:val:0",))
    before = shown.path.read_bytes()

    def stop(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(OSError, match="No space left"):
        draw(places=("toy:val:1",))
    assert shown.path.read_bytes() == before
    assert list(shown.path.parent.iterdir()) == [shown.path]


def test_the_command(draw: Show, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "figure.png"
    command = ["show", "toy:val:1", str(photo), "--classes", "cat, dog", "--keep", "0.5", "0.25"]
    assert (
        main([*command, "--stride", "2", "--methods", "tome", "--by", "tome", "--out", str(out)])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    reason = "its true class is not known (--label CLASS names it)"
    assert lines[1:] == [f"Left out: golden label of photo.png: {reason}.", f"wrote {out}"]
    assert Image.open(io.BytesIO(out.read_bytes())).width > 1600
