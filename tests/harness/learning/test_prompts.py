"""Tuning from a dataset: the right images, once; kept, taken up again, refused."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from timm.models import save_for_hf

import zoo
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.datasets.few_shot import draw
from harness.datasets.text_features import text_classifier
from harness.learning import prompts as module
from harness.learning.prompts import Tuner, load_tuner
from harness.measure import rows as measured_rows
from harness.measure.rows import Variant, variants
from harness.records.metrics import predicted
from zoo.core.digests import blocks_fingerprint, fingerprint
from zoo.core.files import cache_folder
from zoo.core.recipes import TuneConfig
from zoo.loading.clip import ClipParts
from zoo.loading.learned_files import PromptFile, save_prompts
from zoo.loading.towers import Tower, load_tower

ARCH = "clip_vit_b16"
Command = Callable[..., int]
QUICK: dict[str, Any] = {"count": 2, "rounds": 2, "steps": 2, "batch": 3, "precision": "float32"}


@pytest.fixture
def rows(tower: Tower, predictor_file: Path) -> list[Variant]:
    return variants(tower, ["dense", "random", "patchrank"], [0.5])


@pytest.fixture
def tuner(tower: Tower, named: Dataset) -> Tuner:
    return Tuner(tower, named, weights=fingerprint(tower.vit), progress=Progress(Console(quiet=True)))


@pytest.mark.parametrize("tokens", ["t", "vt"])
def test_each_row_gets_its_own_and_keeps_it(tuner, rows, tokens, toy, monkeypatch):
    counts, whole = [], measured_rows.run_split
    monkeypatch.setattr(measured_rows, "run_split", lambda r, s, *a, **k: counts.append(len(s)) or whole(r, s, *a, **k))
    config = TuneConfig(**QUICK, tokens=tokens)
    found = tuner.tune(rows, 1, 0, config)
    assert list(found) == [row.key for row in rows]
    assert len({one.digest for one in found.values()}) == 3
    for row in rows:
        one = found[row.key]
        assert (one.vit.prompts is None) == (tokens == "t")
        assert one.vit.blocks[0] is row.vit.blocks[0]
        assert one.classifier.shape == (3, 7)
        facts = one.file.provenance
        assert (facts["shots"], facts["draw"], facts["tuned_on"]) == (1, 0, row.model)
    assert counts == ([3, 3] if tokens == "t" else [])  # 1 and min(1, 4) of 3 classes, shared by all rows
    monkeypatch.setattr(module, "tune", None)  # to tune again is an error
    again = replace(tuner).tune(rows, 1, 0, config)  # which remembers nothing
    assert {k: v.digest for k, v in again.items()} == {k: v.digest for k, v in found.items()}
    for shots, seed, other in ((2, 0, config), (1, 1, config), (1, 0, TuneConfig(**QUICK, seed=9))):
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            replace(tuner).tune(rows, shots, seed, other)
    with pytest.raises(ValueError, match="toy: tokens are learned for every class; --skip-unknown-classes leaves"):
        replace(tuner, dataset=toy).tune(rows, 1, 0, config)


def test_what_cannot_be_loaded_any_more_is_made_anew(tuner, rows):
    config = TuneConfig(**QUICK)
    one = tuner.tune(rows[:1], 1, 0, config)[rows[0].key]
    whole = one.file.path.read_bytes()
    one.file.path.write_bytes(whole[: len(whole) // 2])
    notes = io.StringIO()
    replace(tuner, progress=Progress(Console(file=notes, width=400))).tune(rows[:1], 1, 0, config)
    assert one.file.path.read_bytes() == whole
    assert "prompts of an earlier run are tuned anew: " in notes.getvalue()


@pytest.mark.parametrize("tokens", ["t", "v"])
def test_learned_from_the_drawn_images(tuner, rows, tokens, monkeypatch):
    calls, whole = [], module.tune
    monkeypatch.setattr(module, "tune", lambda *a, **k: calls.append(a[4:6]) or whole(*a, **k))
    tuner.tune(rows[:1], 2, 5, TuneConfig(**QUICK, tokens=tokens))
    for data, split in zip(*calls, draw(tuner.dataset, 2, 5), strict=True):
        assert data.labels.tolist() == split.labels.tolist()
        images = torch.stack([tuner.parts.preprocess(split[i].image) for i in range(len(split))])
        with torch.no_grad():
            expected = images if tokens == "v" else F.normalize(rows[0].vit(images), dim=-1)
        assert torch.allclose(data.images, expected, atol=1e-5)


def test_a_stopped_run_goes_on(tuner, rows, monkeypatch):
    config = TuneConfig(**QUICK)
    wanted = tuner.tune(rows[2:], 1, 0, config)[rows[2].key]
    path, weights = wanted.file.path, wanted.file.path.read_bytes()
    path.unlink()
    rounds: list[int] = []
    whole = module.tune

    def stop(done: int, *_: float) -> None:
        rounds.append(done)
        if len(rounds) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "tune", lambda *args, **kwargs: whole(*args, on_round=stop, **kwargs))
    with pytest.raises(KeyboardInterrupt):
        replace(tuner).tune(rows[2:], 1, 0, config)
    [checkpoint] = (cache_folder() / "fits").iterdir()
    replace(tuner).tune(rows[2:], 1, 0, config)
    assert rounds == [0, 1]
    assert path.read_bytes() == weights
    assert not checkpoint.exists()


@pytest.fixture
def command(parts: ClipParts, named: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr("harness.datasets.get_dataset", lambda name: named)
    monkeypatch.setattr("zoo.loading.towers.create_clip", lambda name: parts)

    def call(*words: str) -> int:
        small = ["--model", f"{ARCH}_patchrank50", "--num-tokens", "2", "--tune", "batch=3,rounds=1"]
        return main(["fit", "prompts", "--dataset", "named", "--shots", "1", *small, *words])

    return call


@pytest.mark.parametrize(("words", "options"), [
    (["--tokens", "x"], "tokens='x'"),
    (["--shots", "9"], "--shots 9"),
    (["--tune", "class_specific=true"], "use coupling='none'"),
    (["--draws", "coop"], "--draws coop: 'named' isn't read from a list that CoOp draws from"),
])  # fmt: skip
def test_the_command_refuses(command, words, options, capsys):
    assert command(*words) == 2
    assert options in capsys.readouterr().err


def test_judged_by_text_and_by_what_was_learned(tuner, rows, named):
    one = tuner.tune(rows[:1], 1, 0, TuneConfig(**QUICK, tokens="vt"))[rows[0].key]
    split = named.split("test")
    plain, own = tuner.judge(rows[0], one, split)
    images = torch.stack([tuner.parts.preprocess(split[i].image) for i in range(len(split))])
    text, _ = text_classifier(tuner.parts, named)
    for vit, classifier, judged in ((rows[0].vit, text, plain), (one.vit, one.classifier, own)):
        with torch.no_grad():
            features = F.normalize(vit(images), dim=-1)
        assert judged == (predicted(features, classifier) == split.labels).mean()


@pytest.mark.command("fit prompts")
@pytest.mark.parametrize("foreign", ["open_clip"], indirect=True)
def test_open_clips_towers_are_tuned(foreign, named, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.datasets.get_dataset", lambda name: named)
    out = tmp_path / "p.safetensors"
    words = ["--model", foreign, "--dataset", "named", "--shots", "1", "--tokens", "vt"]
    small = ["--num-tokens", "3", "--tune", "rounds=1", "--output", str(out)]
    assert main(["fit", "prompts", *words, *small]) == 0
    file = PromptFile.read(out)
    assert file.provenance["parameters"] == 3 * 16 + 16 * 48
    assert str(tmp_path) not in f"{file.model} {file.tag} {file.provenance}"
    model = zoo.add_prompts(load_tower(foreign).vit, file)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    pruned = zoo.reduce(model, method="tome", keep=0.5).eval()
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_a_reduced_model_of_ours_by_name(named):
    row, tuner = load_tuner("clip_vit_s14_tome50", named, draws="ours", device="cpu", progress=Progress())
    assert (row.model, row.method, row.keep) == ("clip_vit_s14_tome50", "tome", 0.5)
    assert tuner.tower.name == "clip_vit_s14.imgfocus_lit"
    assert row.vit is tuner.parts.model.visual


def test_a_tuned_model_that_was_saved_is_a_dense_tower_again(tmp_path):
    dense = load_tower("clip_vit_s14").vit
    tensors = {"visual": torch.randn(2, 384), "classifier": F.normalize(torch.randn(3, 256), dim=-1)}
    tensors["logit_scale"] = torch.tensor(3.0)
    facts = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "width": 384, "dataset": "toy"}
    facts |= {"weights": blocks_fingerprint(dense.state_dict()), "recipe": {}, "provenance": {}}
    file = save_prompts(tmp_path / "p.safetensors", tensors, classes=("a", "b", "c"), **facts)
    save_for_hf(zoo.add_prompts(dense, file), str(tmp_path / "saved"), safe_serialization=True)
    tower = load_tower(f"local-dir:{tmp_path}/saved")
    images = torch.randn(2, 3, 196, 196)
    with torch.no_grad():
        expected = zoo.add_prompts(dense, file, classify=False)(images)
        torch.testing.assert_close(tower.vit(images), expected)
    assert tower.vit.num_classes == 256
