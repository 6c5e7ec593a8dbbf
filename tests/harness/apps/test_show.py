"""Which images a figure is asked for, and what it shows beside them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from some_budgets import file_of

import zoo
from harness.apps import show as module
from harness.apps.show import ShowConfig, find_kept, find_subjects, make_reduced, show, tokens_at_end
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.measure.rows import run
from harness.report.pictures import PatchSheet, draw
from zoo.core.recipes import GoldenConfig
from zoo.core.tokens import tokens_of
from zoo.deploy.setup import Setup
from zoo.loading.towers import Tower
from zoo.ranking.golden import golden_importance


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("red.png")
    Image.new("RGBA", (8, 8), (0, 0, 255, 128)).save("blue.png")
    Path("words.txt").write_text("no image")
    return tmp_path


def test_files_and_images_of_datasets(here: Path):
    (here / "more").mkdir()
    Image.new("L", (9, 9)).save("more/grey.png")
    places = ["emoji:val:2", "red.png", "fashion:test:0", "more"]
    subjects = [load() for place in places for load in find_subjects(place)]
    assert [(one.name, one.label) for one in subjects] == [
        ("emoji:val:2", "smiley or emotion"), ("red.png", ""), ("fashion:test:0", "t-shirt"), ("grey.png", ""),
    ]  # fmt: skip
    assert len(find_subjects("photos:val:all")) == 49


@pytest.mark.parametrize(("place", "match"), [
    ("words.txt", r"image 'words.txt' can't be read .* or leave it out"),
    ("fashion:vla:3", "'fashion:vla:3': split must be one of train, val, test"),
    ("fashion:val:100000", r"index '100000': fashion val has images 0 to \d+, or all"),
    ("emoji-captions:val:0", "emoji-captions val has no images"),
])  # fmt: skip
def test_refusals(place: str, match: str, here: Path):
    with pytest.raises(ValueError, match=match):
        [load() for load in find_subjects(place)]


GOLDEN = GoldenConfig(score="preservation", window=2, stride=2)
Show = Callable[..., PatchSheet]


@pytest.fixture
def sheet_of(tower: Tower, toy: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Show:
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)
    monkeypatch.setattr(module, "draw", lambda sheet, scale, form: b"drawn")

    def call(places: tuple[str, ...] = ("toy:test:5", "toy:test:6"), **config: object) -> PatchSheet:
        settings = {"golden": GOLDEN} | config
        subjects = [load for place in places for load in find_subjects(place)]
        sheet = show(Setup(model="any"), subjects, ShowConfig(**settings), tmp_path / "show.png")
        assert (tmp_path / "show.png").read_bytes() == b"drawn"
        return sheet

    return call


def test_panels_hold_what_the_model_computes(sheet_of: Show, tower: Tower, toy: Dataset):
    sheet = sheet_of(keeps=(0.6, 0.25))
    assert tuple(sheet.columns) == ("golden", "patchrank", "clsattn", "patchrank 60", "patchrank 25")
    examples = [toy.split("test")[i] for i in (5, 6)]
    assert sheet.labels == [toy.classes[example.label] for example in examples]
    images = torch.stack([tower.preprocess(example.image) for example in examples])
    maps = {"golden": torch.cat([golden_importance(tower.vit, image[None], GOLDEN) for image in images])}
    for method in ("patchrank", "clsattn"):
        maps[method] = make_reduced(tower, method, 0.5, 3).vit.trace(images).scores
    for column, importance in maps.items():
        assert sheet.panels[column] == pytest.approx(importance.numpy(), rel=1e-5)
    for percent, keep in ((60, 0.6), (25, 0.25)):
        trace = make_reduced(tower, "patchrank", keep, 3).vit.trace(images)
        kept = tokens_of(trace.reductions, 64) == torch.arange(64)
        assert ((sheet.panels[f"patchrank {percent}"] >= 0) == kept.numpy()).all()
    for view, example in zip(sheet.views, examples, strict=True):
        assert view == pytest.approx(np.asarray(example.image) / 255, abs=1e-6)


def test_what_is_kept_is_what_the_trace_says(tower: Tower, toy: Dataset):
    images = torch.stack([tower.preprocess(toy.split("test")[i].image) for i in range(3)])
    row = make_reduced(tower, "evitfuse", 0.6, 4)  # whose last token is no patch
    trace, tokens = row.vit.trace(images), tokens_at_end(run([row], images)[row.key], 64)
    for own, places in zip(tokens, trace.reductions[-1].after, strict=True):
        assert own[own >= 0].tolist() == sorted(place for place in places.tolist() if place >= 0)
    assert make_reduced(tower, "clsattn", 0.6, 4).vit.reducer.config.reduce_at == (4,)
    tied = np.array([[1, 5, 5, 5, 0], [2, 2, 2, 2, 2]], dtype=np.float32)
    assert find_kept(tied, 0.4).tolist() == [[-1, 1, 2, -1, -1], [0, 1, -1, -1, -1]]  # of equals the first


def test_what_methods_and_the_golden_ranking_leave(sheet_of: Show, tower: Tower, toy: Dataset):
    sheet = sheet_of(left=("golden", "rankmerge", "evit"), keeps=(0.5, 0.25))
    assert list(sheet.columns) == [f"{m} {k}" for k in (50, 25) for m in ("golden", "rankmerge", "evit")]
    images = torch.stack([tower.preprocess(toy.split("test")[i].image) for i in (5, 6)])
    for method in ("rankmerge", "evit"):
        tokens = tokens_of(make_reduced(tower, method, 0.5, 3).vit.trace(images).reductions, 64).numpy()
        assert (tokens < 0).any() == (method == "evit")
        assert (sheet.panels[f"{method} 50"] == tokens).all()
    importance = torch.cat([golden_importance(tower.vit, image[None], GOLDEN) for image in images]).numpy()
    assert (sheet.panels["golden 25"] == find_kept(importance, 0.25)).all()


def test_without_a_predictor_the_golden_ranking_says_what_is_kept(sheet_of: Show, predictor_file: Path):
    predictor_file.unlink()
    sheet = sheet_of(places=("toy:val:0",))
    assert tuple(sheet.columns) == ("golden", "clsattn", "golden 60")
    assert sheet.notes[1].startswith("Left out: patchrank: no predictor for clip_vit_b16")
    with pytest.raises(FileNotFoundError, match="no predictor for clip_vit_b16"):
        sheet_of(left=("patchrank",))


def test_pictures_from_cheap_to_costly(toy: Dataset, sheet_of: Show, tower: Tower, tmp_path: Path, monkeypatch):
    """Each shows what its own budget leaves; of many some are shown, from the least signal to the largest."""
    images = torch.stack([tower.preprocess(example.image) for example in toy.split("test")])
    dense = tower.vit
    file = str(file_of(dense, images, tmp_path))
    setup = Setup.of("toy", budgets=file)
    monkeypatch.setattr(module, "MOST", 7)
    monkeypatch.setattr(Setup, "load", lambda self: tower._replace(vit=self.reduce(tower)))
    places = find_subjects("toy:test:all")
    sheet = show(setup, places, ShowConfig(), tmp_path / "show.png")
    assert len(places) > len(sheet.names) == 7
    vit = zoo.reduce(dense, method="rankmerge", budgets=file).eval()
    shown = images[[int(name.rpartition(":")[2]) for name in sheet.names]]
    with torch.no_grad():
        signals, keeps = vit.signals(shown), vit.assign(shown)
        traces = [vit.trace(image[None]).reductions for image in shown]
    tokens = torch.cat([tokens_of(each, 64) if each else torch.arange(64)[None] for each in traces])
    assert torch.equal(signals, signals.sort().values)
    assert len(keeps.unique()) > 1
    assert sheet.panels["budget"].tolist() == tokens.tolist()
    counts = [len(set(row)) for row in tokens.tolist()]
    assert sheet.labels == [f"keep {100 * keep:g} %: {n}" for keep, n in zip(keeps.tolist(), counts, strict=True)]
    with pytest.raises(ValueError, match="--left or --keeps with --budgets"):
        show(setup, places, ShowConfig(left=("evit",)), tmp_path / "show.png")
    with pytest.raises(ValueError, match=r"images: expected up to 7, or --budgets"):
        show(Setup(model="any"), places, ShowConfig(), tmp_path / "show.png")


@pytest.mark.command("show")
@pytest.mark.usefixtures("sheet_of", "here")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "draw", draw)
    out = tmp_path / "new" / "figure.png"
    Image.new("RGB", (64, 64), "red").save("photo.png")
    command = ["show", "toy:val:1", "photo.png", "--keeps", "0.5", "0.25"]
    command += ["--stride", "2", "--output", str(out)]
    assert main(command) == 0
    assert Image.open(io.BytesIO(out.read_bytes())).width > 1600
