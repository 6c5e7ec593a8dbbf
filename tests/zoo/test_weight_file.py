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

from zoo.loading.weight_file import read_weights


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
        ({"a.weight": torch.ones(2, dtype=torch.int8)}, r"has 'a.weight' of int8; weights are floating-point"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, r"has 'a.weight' of bool; weights are"),
        ({"a.weight": torch.ones(2, dtype=torch.complex64)}, r"has 'a.weight' of complex64; weights are"),
        ({"a.weight": torch.tensor([1.0, torch.nan])}, r"has values in 'a.weight' that are NaN or infinite"),
        ({"a.bias": torch.tensor([torch.inf]).half()}, r"has values in 'a.bias' that are NaN or infinite"),
    ],
)
def test_contents_that_are_no_state_dict(content: Any, why: str, tmp_path: Path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=why):
        read_weights(tmp_path / "w.pt")


def test_a_changed_byte_in_an_archive_is_seen_by_its_checksum(state: dict, tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save(state, path)
    whole = path.read_bytes()
    at = whole.index(state["ln.weight"][1000:1002].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"is cut short or damaged \(Bad CRC-32 .*get it again"):
        read_weights(path)


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


pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*:Warning")


class Block(nn.Module):
    """One block of OpenAI's transformer, its mask an attribute that is no buffer."""

    attn_mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.ln_1 = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.attn_mask = torch.full((3, 3), 0.5).half()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_1(x)) + self.attn_mask.sum()


class Clip(nn.Module):
    """A tower shaped like OpenAI's: half precision, nested modules, settings among the buffers."""

    sizes: list[int]
    kept: dict[str, Tensor]
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes = 8, [3, 4]
        self.kept, self.rows = {"a": torch.ones(2)}, [torch.ones(1)]
        self.conv1 = nn.Conv2d(3, 8, 4, bias=False)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.positional_embedding = nn.Parameter(torch.randn(3, 8))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.tied = nn.Linear(8, 16)
        self.tied.weight = self.blocks[0].mlp[0].weight
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("turned", torch.arange(12.0).view(3, 4).t()[1:])
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.half()
        self.exact = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.tied(x + self.positional_embedding).float().sum() + self.exact


def scripted_model(model: nn.Module) -> Any:
    return torch.jit.script(model)


def traced(model: nn.Module) -> Any:
    return torch.jit.trace(model, torch.randn(3, 8).half())


@pytest.fixture
def scripted_archive(tmp_path: Path) -> Path:
    torch.jit.save(scripted_model(Clip()), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def repacked(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Write an scripted_archive anew with its records changed."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, change(name.partition("/")[2], content))
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    return repacked(path, lambda name, content: data if name == "data.pkl" else content)


@pytest.mark.parametrize("make", [scripted_model, traced])
def test_parameters_and_buffers_are_torchs_own(make: Callable[..., Any], tmp_path: Path):
    torch.jit.save(make(Clip()), tmp_path / "clip.pt")
    expected = torch.jit.load(tmp_path / "clip.pt").state_dict()
    assert expected.pop("input_resolution") == 224
    weights = read_weights(tmp_path / "clip.pt")
    assert weights.keys() == expected.keys()
    assert "blocks.0.attn_mask" not in weights
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name
        assert weights[name].dtype == tensor.dtype
        assert weights[name].stride() == tensor.stride()
    assert weights["positional_embedding"].dtype == torch.float16
    assert weights["tied.weight"].data_ptr() == weights["blocks.0.mlp.0.weight"].data_ptr()


def test_torch_jit_has_no_part_in_it(scripted_archive: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("run")

    for owner, name in ((torch.jit, "load"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    assert read_weights(scripted_archive)["logit_scale"] == pytest.approx(4.6, abs=0.01)


def test_without_source_every_tensor_of_a_module_counts(scripted_archive: Path):
    expected = torch.jit.load(scripted_archive).state_dict()
    repacked(scripted_archive, lambda name, c: b"" if name.startswith("code/") else c)
    weights = read_weights(scripted_archive)
    assert "blocks.1.attn_mask" in weights
    assert weights.keys() >= expected.keys() - {"input_resolution"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", r"names 'os\.system', which holds"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", r"names 'builtins\.eval'"),
        (b"\x80\x02ctorch.hub\nload\n.", r"names 'torch\.hub\.load'"),
        (b"\x80\x02c__torch__evil\nX\n.", r"names '__torch__evil\.X'"),
        (pickle.dumps([1], protocol=4), r"a pickle of protocol 4, where torch writes 2"),
        (b"\x80\x02(ios\nsystem\n.", r"a pickle with INST, which torch doesn't write"),
        (b"\x80\x02K\x01.", r"holds no module"),
        (b"\x80\x02c__torch__\nM\nK\x01R.", r"damaged pickle"),
        (b"\x80\x02c__torch__\nM\n)\x81}b", r"damaged pickle|without an end"),
        (b"\x80\x02h\x07.", r"damaged pickle"),
        (b"\x80\x02(.", r"damaged pickle"),
        (b"\x80\x02}]K\x01s.", r"damaged pickle"),
        (b"", r"damaged pickle"),
        # A memo that would take 16 GB; a class without end of attributes; a stub given a state.
        (b"\x80\x02Nr\xff\xff\xff\x7f.", r"damaged pickle"),
        (b"\x80\x02c__torch__\nM\nN}X\x01\x00\x00\x00aK\x01s\x86b.", r"damaged pickle"),
        (b"\x80\x02ctorch\ndevice\nN}X\x01\x00\x00\x00aK\x01s\x86b.", r"damaged pickle"),
        # Hashing the key would take 2**60 steps, and would overflow the stack.
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.", r"tuples within tuples"),
        (b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.", r"tuples within tuples"),
    ],
)
def test_pickles_that_say_more_than_modules_and_tensors(data: bytes, why: str, scripted_archive: Path):
    with pytest.raises(ValueError, match=rf"weights file '.*clip\.pt' .*{why}"):
        read_weights(with_pickle(scripted_archive, data))


def test_what_a_pickle_would_run_is_not_run(scripted_archive: Path, evil: Any):
    data = pickle.dumps(evil, protocol=2)
    with pytest.raises(ValueError, match=r"names '.*', which holds no weights and could run code"):
        read_weights(with_pickle(scripted_archive, data))
    assert not evil.mark.exists()
    pickle.loads(data)
    assert evil.mark.exists()


def small(tmp_path: Path) -> tuple[Path, bytes]:
    """Return an scripted_archive with a (4, 2) weight in a storage of 8, and its pickle."""
    torch.jit.save(scripted_model(nn.Linear(2, 4, bias=False)), tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as scripted_archive:
        return tmp_path / "small.pt", scripted_archive.read("small/data.pkl")


SHAPE = b"(K\x04K\x02t(K\x02K\x01t"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (SHAPE, b"(K\x04K\x02t(K\x03K\x01t", r"'weight' of size \(4, 2\) and stride \(3, 1\)"),
        (SHAPE, b"(K\x05K\x02t(K\x02K\x01t", r"beyond its storage of 8"),
        (SHAPE, b"(K\x7fK\x7ft(K\x00K\x00t", r"beyond its storage of 8"),
        (SHAPE, b"(K\x04K\x02t(K\x02t", r"damaged tensor 'weight'"),
        (SHAPE, b"(J\xfc\xff\xff\xffK\x02t(K\x02K\x01t", r"damaged tensor 'weight'"),
        (SHAPE, b"(\x8a\x09\0\0\0\0\0\0\0\0\x01K\x00t(K\x02K\x01t", r"damaged tensor 'weight'"),
        (SHAPE, b"(K\x04\x88t(K\x02K\x01t", r"damaged tensor 'weight'"),
        (SHAPE, b"NN", r"damaged tensor 'weight'"),
        (b"K\x08t", b"K\x09t", r"has 32 bytes where tensor 'weight' says 9 x 4"),
        (b"FloatStorage", b"QInt8Storage", r"names 'torch.QInt8Storage'"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009", r"lacks its record 'data/9'"),
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00storeys", r"a kind that weights don't"),
    ],
)
def test_tensors_stay_within_their_storage(old: bytes, new: bytes, why: str, tmp_path: Path):
    path, data = small(tmp_path)
    assert data.count(old) == 1
    with pytest.raises(ValueError, match=rf"weights file '.*small\.pt' .*{why}"):
        read_weights(with_pickle(path, data.replace(old, new)))


def test_modules_without_end(scripted_archive: Path):
    ring = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    with pytest.raises(ValueError, match=r"modules within modules without end"):
        read_weights(with_pickle(scripted_archive, ring))
    bush = b"\x80\x02c__torch__\nM\n)\x81q\x00"
    for level in range(1, 60):
        two = b"X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%c" % (level - 1, level - 1)
        bush += b"c__torch__\nM\n)\x81q%c}(%sub" % (level, two)
    with pytest.raises(ValueError, match=r"modules within modules without end"):
        read_weights(with_pickle(scripted_archive, bush + b"."))


def test_records_that_are_changed_on_the_way(tmp_path: Path):
    path, _ = small(tmp_path)
    with zipfile.ZipFile(path) as opened:
        values = opened.read("small/data/0")
    raw = path.read_bytes()
    place = raw.index(values)
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    with pytest.raises(ValueError, match=r"is cut short or damaged \(Bad CRC-32 .*\); get it"):
        read_weights(path)


def test_archives_of_big_endian_machines(scripted_archive: Path):
    repacked(scripted_archive, lambda name, c: b"big" if name == "byteorder" else c)
    with pytest.raises(ValueError, match=r"was written on a big-endian machine"):
        read_weights(scripted_archive)
