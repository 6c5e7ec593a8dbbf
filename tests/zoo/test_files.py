"""Files are there whole or not at all, and a stopped fit goes on from one."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.core.files import read_facts, write_learned, write_whole
from zoo.core.predictor import Predictor
from zoo.learning.fit import FitConfig, RankedTokens, fit_predictor, save_predictor
from zoo.loading.learned_files import PromptFile, save_prompts
from zoo.loading.predictor_file import PredictorFile


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_whole(path, b"first")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full; 6 bytes needed"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


KINDS = ("predictor", "prompts")
MADE: dict[str, Any] = {"model": "m", "tag": "t", "provenance": {"images": 9}}
TUNED: dict[str, Any] = {"weights": "0" * 16, "width": 48, "classes": ("a", "b", "c"), "dataset": "toy", "recipe": {}}


def make(kind: str, folder: Path) -> Path:
    path = folder / "learned.safetensors"
    if kind == "predictor":
        config = FitConfig(arch="mlp", width=8)
        save_predictor(Predictor("mlp", 48, 8, (8, 8), None, None), path, config=config, block=3, **MADE)
    else:
        tensors = {"classifier": torch.eye(3), "logit_scale": torch.tensor(1.0), "visual": torch.ones(1, 2, 48)}
        save_prompts(path, tensors, **MADE, **TUNED)
    return path


def load(kind: str, path: Path) -> dict[str, Tensor]:
    return PredictorFile.read(path).tensors() if kind == "predictor" else PromptFile.read(path).load()


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_anywhere_is_refused_by_the_file_s_name(kind: str, tmp_path: Path):
    path = make(kind, tmp_path)
    whole = path.read_bytes()
    assert load(kind, path)
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"learned\.safetensors'"):
            load(kind, path)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_refused(kind: str, tmp_path: Path):
    path = make(kind, tmp_path)
    facts, tensors = read_facts(path, kind), load_file(path)
    facts.pop("hash")
    write_learned(path, kind, {name: torch.full_like(each, math.nan) for name, each in tensors.items()}, facts)
    with pytest.raises(ValueError, match=r"learned\.safetensors' has values that aren't finite in '") as caught:
        load(kind, path)
    assert caught.value.wanted == (kind, facts)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[("predictor", metadata) for metadata in ("{}", "[]", "{", "[" * 100_000)],
        *[("prompts", facts) for facts in ({"model": 3}, {"more": 3}, {"path": "/etc/passwd"})],
        ("predictor", {"block": "3"}),
        ("predictor", {"options": "conv"}),
        ("predictor", {"options": {"arch": "mlp", "width": 10**12}}),
        ("predictor", {"options": {"arch": "mlp", "width": "8"}}),
        ("prompts", {"classes": "abc"}),
        ("prompts", {"classes": ["a", "b"]}),
        ("prompts", {"width": 10**12}),
        ("prompts", {"shape": {"depth": 1, "tokens": 2, "classes": 10**12, "features": 3}}),
        ("prompts", {"shape": [1, 2, 3, 3]}),
        ("prompts", {"shape": {"depth": 1}}),
    ],
)
def test_metadata_of_another_form_is_refused_in_one_line(kind: str, change: Any, tmp_path: Path):
    path = make(kind, tmp_path)
    facts, tensors = read_facts(path, kind), load_file(path)
    facts.pop("hash")
    if isinstance(change, str):
        save_file(tensors, path, {kind: change})
    else:
        write_learned(path, kind, tensors, facts | change)
    with pytest.raises(ValueError, match=rf"learned\.safetensors' holds no {kind}: ") as error:
        load(kind, path)
    assert "\n" not in str(error.value)


CONFIG = FitConfig(width=16, epochs=8, patience=3, learning_rate=1e-2)
LONG = replace(CONFIG, epochs=2000, patience=2000, learning_rate=1e-3)
DIRECTION = torch.linspace(-1, 1, 12)


def planted(count: int, seed: int) -> RankedTokens:
    tokens = torch.randn(count, 17, 12, generator=torch.Generator().manual_seed(seed))
    return RankedTokens(tokens=tokens, importance=tokens[:, 1:] @ DIRECTION, prefix=1, grid=(4, 4))


TRAIN, VAL = planted(80, 0), planted(24, 1)


class Stopped(Exception):  # noqa: N818  (what happens to a run, no error of its own)
    """Whatever ends a run."""


class Breaking:
    """Tokens that end the run when they are asked for the n-th time."""

    def __init__(self, tokens: Any, calls: int) -> None:
        self.tokens, self.left = tokens, calls
        self.shape = tokens.shape

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return self.tokens[rows]


def same(first: Predictor, second: Predictor) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def whole() -> tuple[Predictor, list[Any]]:
    """Fit without a break and without a checkpoint; also the facts of each epoch."""
    epochs: list[Any] = []
    predictor = fit_predictor(TRAIN, VAL, CONFIG, on_epoch=lambda *facts: epochs.append(facts))
    return predictor, epochs


@pytest.mark.parametrize("calls", [0, 51])
def test_stopped_within_an_epoch(calls: int, whole: tuple[Predictor, list[Any]], tmp_path: Path):
    """16 or more steps make an epoch: the one that broke off is done again, the others are not."""
    path = tmp_path / "fit.pt"
    broken = replace(TRAIN, tokens=Breaking(TRAIN.tokens, calls))
    epochs: list[Any] = []
    with pytest.raises(Stopped):
        fit_predictor(broken, VAL, CONFIG, on_epoch=lambda *f: epochs.append(f), checkpoint=path)
    assert len(epochs) == calls // 18
    assert path.is_file() == bool(epochs)
    options: dict[str, Any] = {"on_epoch": lambda *f: epochs.append(f), "checkpoint": path}
    assert same(fit_predictor(TRAIN, VAL, CONFIG, **options), whole[0])
    assert epochs == whole[1]  # every epoch once, with the same losses
    assert [file.name for file in tmp_path.iterdir()] == ["fit.pt"]
    nothing = replace(TRAIN, tokens=Breaking(TRAIN.tokens, 0))  # a finished fit is not done again
    assert same(fit_predictor(nothing, VAL, CONFIG, checkpoint=path), whole[0])


@pytest.mark.parametrize(
    "other",
    [
        {"config": replace(CONFIG, epochs=1, seed=1)},
        {"train": replace(TRAIN, importance=-TRAIN.importance)},
        {"val": planted(25, 1)},
    ],
    ids=["recipe", "importance", "images for early stopping"],
)
def test_checkpoints_of_another_fit(other: dict[str, Any], tmp_path: Path):
    path = tmp_path / "fit.pt"
    fit = {"train": TRAIN, "val": VAL, "config": replace(CONFIG, epochs=1)}
    fit_predictor(**fit, checkpoint=path)
    with pytest.raises(ValueError, match="is of another recipe or of other rankings"):
        fit_predictor(**fit | other, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"fit\.pt' can't be read .*; delete it, and the fit"):
        fit_predictor(**fit | other, checkpoint=path)


def test_early_stopping_counts_over_the_break(tmp_path: Path):
    """Nothing can be learnt, so that patience ends it: after the same epoch, with the same best."""
    chance = torch.rand(len(TRAIN) + len(VAL), 16, generator=torch.Generator().manual_seed(0))
    parts = chance.split([len(TRAIN), len(VAL)])
    data = [replace(d, importance=c) for d, c in zip((TRAIN, VAL), parts, strict=True)]
    config = replace(CONFIG, epochs=40)
    epochs: list[int] = []
    undisturbed = fit_predictor(*data, config, on_epoch=lambda epoch, *_: epochs.append(epoch))
    assert len(epochs) < 20
    path = tmp_path / "fit.pt"
    again: list[int] = []

    def stop(epoch: int, *_: float) -> None:
        again.append(epoch)
        if epoch in (epochs[-2], 1):
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            fit_predictor(*data, config, on_epoch=stop, checkpoint=path)
    assert same(fit_predictor(*data, config, on_epoch=stop, checkpoint=path), undisturbed)
    assert again == epochs


def test_really_killed(tmp_path: Path):
    """SIGKILL in another process; this one goes on, and ends where a third ends undisturbed."""
    code = (
        "import sys, torch; from pathlib import Path\n"
        "torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_files import LONG, TRAIN, VAL, fit_predictor\n"
        "fit_predictor(TRAIN, VAL, LONG, checkpoint=Path(sys.argv[1]))\n"
    )
    path = tmp_path / "fit.pt"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path)])
    limit = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    last = torch.load(path, weights_only=True)["epoch"] + 2

    def stop(epoch: int, *_: float) -> None:
        if epoch >= last:
            raise Stopped

    files = (path, tmp_path / "undisturbed.pt")
    for file in files:
        with pytest.raises(Stopped):
            fit_predictor(TRAIN, VAL, LONG, on_epoch=stop, checkpoint=file)
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert first["epoch"] == second["epoch"] == last + 1
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in second["model"])
    assert first["best"] == second["best"]
