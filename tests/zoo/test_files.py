"""Files are there whole or not at all, and damaged ones are refused by their names."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.core.files import read_facts, write_learned, write_whole
from zoo.core.predictor import Predictor
from zoo.learning.fit import FitConfig, save_predictor
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


KINDS = pytest.mark.parametrize("kind", ["predictor", "prompts"])
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


def contents(kind: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = read_facts(path, kind)
    facts.pop("hash")
    return facts, load_file(path)


@KINDS
def test_one_flipped_bit_anywhere_is_refused_by_the_file_s_name(kind: str, tmp_path: Path):
    path = make(kind, tmp_path)
    whole = path.read_bytes()
    assert load(kind, path)
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"learned\.safetensors'"):
            load(kind, path)


@KINDS
def test_values_that_are_not_finite_are_refused(kind: str, tmp_path: Path):
    path = make(kind, tmp_path)
    facts, tensors = contents(kind, path)
    write_learned(path, kind, {name: torch.full_like(each, math.nan) for name, each in tensors.items()}, facts)
    with pytest.raises(ValueError, match=r"learned\.safetensors' has values that aren't finite in '") as caught:
        load(kind, path)
    assert caught.value.wanted == (kind, facts)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[("predictor", metadata) for metadata in ("[]", "{", "[" * 100_000)],
        *[("prompts", facts) for facts in ({"model": 3}, {"path": "/etc/passwd"})],
        ("predictor", {"options": {"arch": "mlp", "width": 10**12}}),
        ("predictor", {"options": {"arch": ["mlp"], "width": 8}}),
        ("prompts", {"classes": "abc"}),
        ("prompts", {"classes": ["a", "b"]}),
        ("prompts", {"width": 10**12}),
        ("prompts", {"shape": {"depth": 1, "tokens": 2, "classes": 10**12, "features": 3}}),
        ("prompts", {"shape": {"depth": 1}}),
    ],
)
def test_metadata_of_another_form_is_refused_in_one_line(kind: str, change: Any, tmp_path: Path):
    path = make(kind, tmp_path)
    facts, tensors = contents(kind, path)
    if isinstance(change, str):
        save_file(tensors, path, {kind: change})
    else:
        write_learned(path, kind, tensors, facts | change)
    with pytest.raises(ValueError, match=rf"learned\.safetensors' holds no {kind}: ") as error:
        load(kind, path)
    assert "\n" not in str(error.value)
