"""Every format of weights gives the same tensors; other files are refused by what they are."""

import pickle
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.loading.weights import read_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*:Warning")


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {"visual.proj": torch.randn(4, 3).half(), "ln.weight": torch.randn(400)}


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVED: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": save_file,
    "torch.save": torch.save,
    "before torch 1.6": old_format,
    "parameters": lambda s, p: torch.save({k: nn.Parameter(v) for k, v in s.items()}, p),
    "training checkpoint": lambda s, p: torch.save({"state_dict": {f"module.{k}": v for k, v in s.items()}}, p),
    "timm's": lambda s, p: torch.save({"model": s, "arch": "vit"}, p),
    "compiled": lambda s, p: torch.save({f"module._orig_mod.{k}": v for k, v in s.items()}, p),
    "OpenAI's settings": lambda s, p: torch.save({**s, "vocab_size": torch.tensor(49408)}, p),
}


@pytest.mark.parametrize("how", SAVED)
def test_the_content_decides_not_the_suffix(how: str, state: dict, tmp_path: Path):
    SAVED[how](state, tmp_path / "w.pt")
    for suffix in ("pt", "safetensors", "x"):
        path = (tmp_path / "w.pt").rename(tmp_path / f"w.{suffix}")
        weights = read_weights(str(path))
        torch.testing.assert_close(weights, state, rtol=0, atol=0)
        assert all(type(value) is Tensor and not value.requires_grad for value in weights.values())
        path.rename(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", r"starts with b''"),
        (b"<!DOCTYPE html><html>", r"is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid s", r"git lfs pull"),
        (pickle.dumps({"a": 1}), r"can't be read .*safetensors"),
        (b"\x08\x07\x12\x07pytorch", r"holds no weights .*safetensors"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", r"cut short"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", r"no state dict but dict"),
        (b"PK\x03\x04", r"can't be read .*get it again"),
        ({}, r"no state dict but dict"),
        ({"a": 1}, r"'a' is int"),
        ({"a": torch.ones(1).to_sparse()}, r"'a' is Tensor"),
        ({"state_dict": {"a": {"b": torch.ones(1)}}}, r"'a' is dict"),
        ({"a.weight": torch.ones(2, dtype=torch.int8)}, r"'a.weight' of torch.int8"),
        ({"a.weight": torch.tensor([1.0, torch.nan])}, r"'a.weight' that are NaN or infinite"),
    ],
)
def test_files_that_hold_no_weights(content: Any, why: str, tmp_path: Path):
    if isinstance(content, bytes):
        (tmp_path / "w.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"^weights file '.*w\.pt' .*{why}"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match=r"weights file '.*': no such file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("save", [torch.save, old_format])
def test_nothing_in_a_file_is_run(save: Callable[..., None], tmp_path: Path, evil: Any):
    path = tmp_path / "w.pt"
    save({"state_dict": evil}, path)
    with pytest.raises(ValueError, match=r"names '.*', .*; nothing of it was run"):
        read_weights(path)
    assert not evil.mark.exists()
    torch.load(path, weights_only=False)
    assert evil.mark.exists()
    save(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"):
        read_weights(path)


def test_an_archive_with_code_is_refused_with_the_line_that_converts_it(state: dict, tmp_path: Path):
    path = tmp_path / "ViT's.pt"
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.register_buffer("input_resolution", torch.tensor(224))
    torch.jit.save(torch.jit.script(model), path)
    with pytest.raises(ValueError, match=r"TorchScript.*nothing in it was run") as caught:
        read_weights(path)
    command = shlex.split(str(caught.value).partition("convert it: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    weights = read_weights(path.with_suffix(".safetensors"))
    expected = {k: v for k, v in model.state_dict().items() if k != "input_resolution"}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("save", [torch.save, old_format, save_file])
def test_files_cut_short_or_changed_give_tensors_or_an_error(save: Callable[..., None], state: dict, tmp_path: Path):
    path = tmp_path / "w.pt"
    save({name: tensor[:4] for name, tensor in state.items()}, path)
    whole = path.read_bytes()
    for count in (4, len(whole) // 3):
        path.write_bytes(whole[:-count])
        with pytest.raises(ValueError, match=r"w\.pt' .*; get it again"):
            read_weights(path)
    draw = random.Random(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            content[draw.randrange(len(content))] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(content)
        try:
            weights = read_weights(path)
        except ValueError as error:
            assert str(error).startswith(f"weights file {str(path)!r} ")  # noqa: PT017
            refused += 1
        else:
            assert all(type(tensor) is Tensor for tensor in weights.values())
    assert 5 < refused < 100
