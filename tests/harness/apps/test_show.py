"""Which images a figure is asked for, and what it shows beside them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.apps import show as module
from harness.apps.show import ShowConfig, find_subject, make_reduced, most_important, show, tokens_at_end
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.measure.rows import run
from harness.models.towers import Tower
from harness.report.pictures import PatchSheet, draw
from zoo.core.tokens import tokens_of
from zoo.loading.clip import class_features
from zoo.ranking.golden import SCORES, GoldenConfig, golden_importance


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two images and a text."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("red.png")
    Image.new("RGBA", (8, 8), (0, 0, 255, 128)).save("blue.png")
    Path("words.txt").write_text("no image")
    return tmp_path


def test_files_and_images_of_datasets(here: Path):
    places = ["emoji:val:2", "red.png", "fashion:test:0"]
    assert [(one.name, one.label) for one in map(find_subject, places)] == [
        ("emoji:val:2", "smiley or emotion"), ("red.png", ""), ("fashion:test:0", "t-shirt"),
    ]  # fmt: skip


@pytest.mark.parametrize(("place", "match"), [
    ("words.txt", r"image 'words.txt' can't be read .* or leave it out"),
    ("fasion:val:3", "no dataset is called 'fasion'. Did you mean 'fashion'?"),
    ("fashion:vla:3", "'fashion:vla:3': split must be one of train, val, test"),
    ("fashion:val:100000", r"index '100000': fashion val has images 0 to \d+"),
    ("emoji-captions:val:0", "emoji-captions val has no images"),
])  # fmt: skip
def test_refusals(place: str, match: str, here: Path):
    with pytest.raises(ValueError, match=match):
        find_subject(place)


GOLDEN = GoldenConfig(window=2, stride=2)
ALWAYS = (*SCORES, "patchrank", "clsattn")
Show = Callable[..., PatchSheet]


@pytest.fixture
def sheet_of(tower: Tower, toy: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Show:
    """Look at toy images, of classes that the text tower has words for, with the miniature tower."""
    monkeypatch.setattr(type(toy), "classes", ("cat", "dog", "house", "dog house"))
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)
    monkeypatch.setattr(module, "draw", lambda sheet, scale: b"drawn")

    def call(places: tuple[str, ...] = ("toy:test:5", "toy:test:6"), **config: object) -> PatchSheet:
        settings = {"golden": GOLDEN} | config
        subjects = [find_subject(place) for place in places]
        sheet = show("any", subjects, ShowConfig(**settings), tmp_path / "show.png", progress=Progress())
        assert (tmp_path / "show.png").read_bytes() == b"drawn"
        return sheet

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(3).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_panels_hold_what_the_model_computes(sheet_of: Show, tower: Tower, toy: Dataset):
    """Every ranking and every kept patch, against the same things computed one by one."""
    sheet = sheet_of(keeps=(0.6, 0.25))
    assert tuple(sheet.columns) == (*ALWAYS, "patchrank 60", "patchrank 25")
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
        maps[method] = make_reduced(tower, method, 0.5, 3).vit.trace(images).scores
    for keep in (0.25, 0.6):
        trace = make_reduced(tower, "patchrank", keep, 3).vit.trace(images)
        kept[keep] = tokens_of(trace.reductions, 64) == torch.arange(64)
    for i, example in enumerate(examples):
        assert sheet.views[i] == pytest.approx(np.asarray(example.image) / 255, abs=1e-6)
        for column, importance in maps.items():
            assert sheet.panels[column][i] == pytest.approx(importance[i].numpy(), rel=1e-5)
        for percent, keep in ((60, 0.6), (25, 0.25)):
            assert ((sheet.panels[f"patchrank {percent}"][i] >= 0) == kept[keep][i].numpy()).all()


def test_what_is_kept_is_what_the_trace_says(tower: Tower, toy: Dataset):
    images = torch.stack([tower.preprocess(toy.split("test")[i].image) for i in range(3)])
    row = make_reduced(tower, "evitfuse", 0.6, 4)  # whose last token is no patch
    trace, tokens = row.vit.trace(images), tokens_at_end(run([row], images)[row.key], 64)
    for own, places in zip(tokens, trace.reductions[-1].after, strict=True):
        assert own[own >= 0].tolist() == sorted(place for place in places.tolist() if place >= 0)
    assert make_reduced(tower, "clsattn", 0.6, 4).vit.reducer.config.reduce_at == (4,)
    for tied, kept in (([1, 5, 5, 5, 0], [-1, 1, 2, -1, -1]), ([2, 2, 2, 2, 2], [0, 1, -1, -1, -1])):
        assert most_important(np.array(tied, dtype=np.float32), 0.4).tolist() == kept  # of equals the first


def test_what_methods_and_the_golden_ranking_leave(sheet_of: Show, tower: Tower, toy: Dataset):
    sheet = sheet_of(left=("golden", "rankmerge", "evit"), keeps=(0.5, 0.25))
    assert list(sheet.columns) == [f"{m} {k}" for k in (50, 25) for m in ("golden", "rankmerge", "evit")]
    images = torch.stack([tower.preprocess(toy.split("test")[i].image) for i in (5, 6)])
    for method in ("rankmerge", "evit"):
        trace = make_reduced(tower, method, 0.5, 3).vit.trace(images)
        tokens = tokens_of(trace.reductions, 64).numpy()
        assert (tokens < 0).any() == (method == "evit")
        assert (np.stack([sheet.panels[f"{method} 50"][i] for i in (0, 1)]) == tokens).all()
    for i, image in enumerate(images):
        importance = golden_importance(tower.vit, image[None], GoldenConfig(stride=2))[0].numpy()
        assert (sheet.panels["golden 25"][i] == most_important(importance, 0.25)).all()


def test_a_file_has_no_class_and_a_class_needs_words(sheet_of: Show, toy: Dataset, photo: Path, monkeypatch):
    sheet = sheet_of(places=(str(photo), "toy:test:5"))
    assert tuple(sheet.columns) == (*ALWAYS, "patchrank 60")
    [note] = sheet.notes[1:]
    assert "golden confidence" in note
    assert "of photo.png: its class is not known" in note
    assert list(sheet.panels["label"]) == [1]
    monkeypatch.setattr(type(toy), "classes", ("cat", "zebra", "house", "dog house"))
    assert "class 'zebra': " in sheet_of().notes[1]


def test_towers_without_text_or_predictor(sheet_of: Show, tower: Tower, predictor_file: Path, monkeypatch):
    predictor_file.unlink()
    monkeypatch.setattr(module, "load_tower", lambda name: tower._replace(clip=None))
    assert tuple(sheet_of(places=("toy:val:0",)).columns) == ("preservation", "clsattn", "golden 60")
    with pytest.raises(FileNotFoundError, match="no predictor for clip_vit_b16"):
        sheet_of(left=("patchrank",))


def test_the_command(sheet_of: Show, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "draw", draw)
    out = tmp_path / "new" / "figure.png"
    command = ["show", "toy:val:1", str(photo), "--keeps", "0.5", "0.25"]
    command += ["--stride", "2", "--output", str(out)]
    assert main(command) == 0
    assert Image.open(io.BytesIO(out.read_bytes())).width > 1600
