"""Recoveries from datasets, and as rows that stand apart from those without training."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import replace

import zoo
from harness.apps.compare import compare
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.learning import recovery
from harness.learning.recovery import train_recovery
from harness.learning.settings import Sources
from harness.measure.settings import Plan
from harness.records.averages import training_free
from harness.records.record import Record
from zoo.core.digests import digest
from zoo.core.files import cache_folder
from zoo.core.recipes import RecoveryConfig
from zoo.learning.recovery import distance
from zoo.loading.learned_files import RecoveryFile

ARCH = "clip_vit_b16"
NAME = f"{ARCH}_evit50"
PLAN = Plan(models=(ARCH,), methods=("evit", "random"), keeps=(0.5,), datasets=("toy",), limit=None, batches=())
RECIPE = RecoveryConfig(rounds=2, steps=6, batch=8, learning_rate=5e-4, rank=2, precision="float32")
TOY = Sources(datasets=("toy",))
QUIET = Progress()


@pytest.fixture(autouse=True)
def _toy(benchmark: None, toy: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.learning.sources.get_dataset", lambda name: toy)


def trained(what: str = "norm", **options: Any) -> RecoveryFile:
    return train_recovery(ARCH, "evit", {"keep": 0.5}, TOY, replace(RECIPE, what=what), progress=QUIET, **options)


def all_of(**changes: Any) -> list[Record]:
    [group] = compare(replace(PLAN, **changes), [], QUIET)
    return group


def test_the_file_says_what_it_is_of(toy: Dataset, tmp_path: Path):
    file = trained(out=tmp_path / "r.safetensors")
    [facts] = file.datasets
    assert facts["after"] < facts["before"]
    expected = {"name": "toy", "revision": toy.revision, "images": 12, "held_out": 9}
    assert expected.items() <= facts.items()
    assert not list((cache_folder() / "fits").iterdir())  # the checkpoint has done its work
    cached = trained().path
    assert (cached.parent, digest(cached)) == (cache_folder() / "recoveries", digest(file.path))


def test_a_run_that_was_killed_goes_on(monkeypatch: pytest.MonkeyPatch):
    whole, rounds = digest(trained().path), list[int]()

    def on_round(done: int, *_: float) -> None:
        rounds.append(done)
        if len(rounds) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "recover", partial(recovery.recover, on_round=on_round))
    with pytest.raises(KeyboardInterrupt):
        trained()
    assert list((cache_folder() / "fits").iterdir())
    assert (digest(trained().path), rounds) == (whole, [0, 1])


def test_a_row_of_its_own_with_the_right_distance(dense: zoo.ReducedViT, toy: Dataset, parts: Any):
    file = trained("lora")
    records = all_of(recoveries=(file.path,), batches=(1,), rounds=6)
    assert [(r.method, r.recovered) for r in records[1:]] == [("evit", False), ("random", False), ("evit", True)]
    assert [[r.recovered for r in rows] for rows in training_free(records)] == [[False] * 3, [False, True]]
    mine, plain = records[3], records[1]
    assert plain.method_config.items() <= mine.method_config.items()
    judged = [e for e in toy.split("test") if e.label < 3]
    images = torch.stack([parts.preprocess(example.image) for example in judged])
    vit = zoo.reduce(dense, method="evit", keep=0.5, recovery=file.path).eval()
    with torch.no_grad():
        expected = distance(vit(images), dense(images)).mean().item()
    assert mine.mean("cosine_distance") == pytest.approx(expected, rel=2e-2)
    assert mine.tokens_per_block == plain.tokens_per_block
    assert mine.mean("gflops") == plain.mean("gflops")
    with pytest.raises(ValueError, match=r"is of clip_vit_b16\.openai, which is not measured"):
        all_of(models=("clip_vit_l14",), recoveries=(file.path,))
    with pytest.raises(FileNotFoundError, match="no recovery at"):
        all_of(recoveries=(file.path.with_name("none"),))


@pytest.mark.command("fit recovery", "eval")
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.datasets.names_of", lambda names, _: list(names), raising=False)
    path = str(tmp_path / "r.safetensors")
    fit = f"fit recovery --model {NAME} --dataset emoji --validations 1 --steps 2 --batch 2".split()
    assert main([*fit, "--precision", "float32", "--output", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == path
    assert main(["eval", "--model", NAME, "--dataset", "emoji", "--recovery", path]) == 0
    assert "with recovery, trained without labels" in capsys.readouterr().out
    assert main(["fit", "recovery", "--model", ARCH, "--dataset", "emoji"]) == 2
    assert "expected a reduced model" in capsys.readouterr().err
