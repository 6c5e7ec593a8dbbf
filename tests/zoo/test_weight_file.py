"""Every format of weights gives the same tensors; other files are refused by what they are."""

import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.weight_file import read_weights


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {"visual.proj": torch.randn(4, 3).half(), "ln.weight": torch.randn(4000)}


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVED: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": save_file,
    "torch.save": torch.save,
    "before torch 1.6": old_format,
    "parameters": lambda s, p: torch.save({k: nn.Parameter(v) for k, v in s.items()}, p),
    "training checkpoint": lambda s, p: torch.save(
        {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{k}": v for k, v in s.items()},
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        },
        p,
    ),
    "timm's": lambda s, p: torch.save({"model": s, "arch": "vit"}, p),
    "compiled": lambda s, p: torch.save({f"module._orig_mod.{k}": v for k, v in s.items()}, p),
    "OpenAI's settings": lambda s, p: torch.save({**s, "vocab_size": torch.tensor(49408)}, p),
}


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin", "x"])
def test_the_content_decides_not_the_suffix(how: str, suffix: str, state: dict, tmp_path: Path):
    path = tmp_path / f"w.{suffix}"
    SAVED[how](state, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = read_weights(str(path))
    assert weights.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
        assert not weights[name].requires_grad
        assert type(weights[name]) is Tensor


def test_a_prefix_is_only_what_all_names_have(tmp_path: Path):
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w")
    assert read_weights(tmp_path / "w").keys() == {"module.a", "b"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", r"is empty; get it again"),
        (b"<!DOCTYPE html><html>", r"is a web page, not weights: a page was saved in their place"),
        (b"\n <html lang='en'>", r"is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid s", r"is .*: run 'git lfs pull' in"),
        (pickle.dumps({"a": 1}), r"is a pickle, which can run code, and is never unpickled: expec"),
        (b'{"weight_map": {}}', r"holds no weights \(it starts with b'.\"weight_map'"),
        (b"\x08\x07\x12\x07pytorch", r"holds no weights .*expected safetensors, a state dict"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", r"is cut short: it ends within its header"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", r"holds no state dict but dict"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{]", r"is cut short or damaged \(.*\); get it again"),
        (b"PK\x03\x04", r"is cut short or damaged \(.*\); get it again"),
    ],
)
def test_files_that_hold_no_weights(content: bytes, why: str, tmp_path: Path):
    (tmp_path / "ViT-B-32.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^weights file '.*ViT-B-32\.pt' {why}"):
        read_weights(tmp_path / "ViT-B-32.pt")


def test_no_file_at_all(tmp_path: Path):
    for path in (tmp_path, tmp_path / "w.pt"):
        with pytest.raises(FileNotFoundError, match=r"weights file '.*': no such file"):
            read_weights(path)


@pytest.mark.parametrize("save", [save_file, torch.save, old_format])
def test_files_cut_short(save: Callable[..., None], state: dict, tmp_path: Path):
    path = tmp_path / "w.pt"
    save(state, path)
    whole = path.read_bytes()
    for count in (4, len(whole) * 2 // 3):
        path.write_bytes(whole[:-count])
        with pytest.raises(ValueError, match=r"weights file '.*w\.pt' .*; get it again"):
            read_weights(path)


@pytest.mark.parametrize("save", [torch.save, old_format])
def test_nothing_in_a_file_is_run(save: Callable[..., None], tmp_path: Path, evil: Any):
    path = tmp_path / "w.pt"
    save({"state_dict": evil}, path)
    with pytest.raises(ValueError, match=r"names '.*', which holds no .*; nothing of it was run"):
        read_weights(path)
    assert not evil.mark.exists()
    torch.load(path, weights_only=False)
    assert evil.mark.exists()
    save(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match=r"names 'torch\.nn\.modules\.linear\.Linear', .*save its"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([torch.ones(1)], r"holds no state dict but list"),
        ({}, r"holds no state dict but dict"),
        ({"a": 1}, r"holds no state dict: 'a' is int, not a tensor with values"),
        ({1: torch.ones(1)}, r"holds no state dict: 1 is Tensor"),
        ({"a": torch.ones(1).to_sparse()}, r"holds no state dict: 'a' is Tensor"),
        ({"a": torch.empty(2, device="meta")}, r"holds no state dict: 'a' is Tensor"),
        ({"state_dict": {"a": {"b": torch.ones(1)}}}, r"holds no state dict: 'a' is dict"),
    ],
)
def test_contents_that_are_no_state_dict(content: Any, why: str, tmp_path: Path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=why):
        read_weights(tmp_path / "w.pt")


def test_other_zip_files(tmp_path: Path):
    np.savez(tmp_path / "w.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match=r"is a zip file, but none that torch wrote"):
        read_weights(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("folder/readme.txt", json.dumps("no weights"))
    with pytest.raises(ValueError, match=r"w\.zip' can't be read \(.*\); get it again"):
        read_weights(tmp_path / "w.zip")


def with_record(path: Path, name: str, content: bytes, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(name, content, how)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(8.0), "b": torch.randn(500)}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_compressed_records_are_not_unpacked(archive: Path):
    """torch itself would unpack them."""
    with_record(archive, "w/code/fine.py", b" " * 2**16, zipfile.ZIP_DEFLATED)
    assert read_weights(archive).keys() == {"a", "b"}
    for name, size in (("data/2", 2**22), ("code/bomb.py", 2**25)):
        path = archive.with_name("bomb.pt")
        path.write_bytes(archive.read_bytes())
        with_record(path, f"w/{name}", b"\0" * size, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 2**16
        with pytest.raises(ValueError, match=f"has a compressed record '{name}' of {size} bytes"):
            read_weights(path)


def test_records_that_overlap(archive: Path):
    """The sizes in the table of contents are changed; their sum is more than the file has."""
    raw = archive.read_bytes()
    place = raw.rindex(b"w/data/0") - 46  # the record's entry there, with its sizes at 20 and 24
    assert raw[place + 20 : place + 28] == (32).to_bytes(4, "little") * 2
    big = (2**30).to_bytes(4, "little")
    archive.write_bytes(raw[: place + 20] + big * 2 + raw[place + 28 :])
    with pytest.raises(ValueError, match=r"has records of 107\d+ bytes in a file of \d+: they o"):
        read_weights(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            ("w/../../evil", "w//evil", "w/a\\..\\evil", "w/./evil", "w/data/../evil", "w/evil/"),
            r"has a record named '.*evil/?', as torch names none",
        ),
        (("/evil", "other/evil", "evil"), "none that torch wrote: it has no single folder"),
        (("w/data/0",), "has two records named 'data/0'"),
    ],
)
def test_names_of_records(names: tuple[str, ...], why: str, archive: Path):
    whole = archive.read_bytes()
    for name in names:
        archive.write_bytes(whole)
        with pytest.raises(ValueError, match=why):
            read_weights(with_record(archive, name, b"x"))
    assert list(archive.parent.parent.rglob("*evil*")) == []


def scripted(state: dict[str, Tensor], path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 2)))
    torch.jit.save(torch.jit.script(module), path)


@pytest.mark.filterwarnings("ignore:.*jit.*:Warning")
@pytest.mark.parametrize("save", [scripted, torch.save, old_format, save_file])
def test_changed_bytes_give_tensors_or_an_error(save: Callable[..., None], state: dict, tmp_path: Path):
    path = tmp_path / "w.pt"
    save({name: tensor[:4] for name, tensor in state.items()}, path)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(250):
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
    assert 20 < refused < 250
