"""TorchScript archives are read as torch.jit reads them, and run nothing."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.weight_file import read_weights

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


def scripted(model: nn.Module) -> Any:
    return torch.jit.script(model)


def traced(model: nn.Module) -> Any:
    return torch.jit.trace(model, torch.randn(3, 8).half())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.jit.save(scripted(Clip()), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def repacked(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Write an archive anew with its records changed."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, change(name.partition("/")[2], content))
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    return repacked(path, lambda name, content: data if name == "data.pkl" else content)


@pytest.mark.parametrize("make", [scripted, traced])
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


def test_torch_jit_has_no_part_in_it(archive: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("run")

    for owner, name in ((torch.jit, "load"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    assert read_weights(archive)["logit_scale"] == pytest.approx(4.6, abs=0.01)


def test_without_source_every_tensor_of_a_module_counts(archive: Path):
    expected = torch.jit.load(archive).state_dict()
    repacked(archive, lambda name, c: b"" if name.startswith("code/") else c)
    weights = read_weights(archive)
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
def test_pickles_that_say_more_than_modules_and_tensors(data: bytes, why: str, archive: Path):
    with pytest.raises(ValueError, match=rf"weights file '.*clip\.pt' .*{why}"):
        read_weights(with_pickle(archive, data))


def test_what_a_pickle_would_run_is_not_run(archive: Path, evil: Any):
    data = pickle.dumps(evil, protocol=2)
    with pytest.raises(ValueError, match=r"names '.*', which holds no weights and could run code"):
        read_weights(with_pickle(archive, data))
    assert not evil.mark.exists()
    pickle.loads(data)
    assert evil.mark.exists()


def small(tmp_path: Path) -> tuple[Path, bytes]:
    """Return an archive with a (4, 2) weight in a storage of 8, and its pickle."""
    torch.jit.save(scripted(nn.Linear(2, 4, bias=False)), tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as archive:
        return tmp_path / "small.pt", archive.read("small/data.pkl")


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


def test_modules_without_end(archive: Path):
    ring = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    with pytest.raises(ValueError, match=r"modules within modules without end"):
        read_weights(with_pickle(archive, ring))
    bush = b"\x80\x02c__torch__\nM\n)\x81q\x00"
    for level in range(1, 60):
        two = b"X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%c" % (level - 1, level - 1)
        bush += b"c__torch__\nM\n)\x81q%c}(%sub" % (level, two)
    with pytest.raises(ValueError, match=r"modules within modules without end"):
        read_weights(with_pickle(archive, bush + b"."))


def test_records_that_are_changed_on_the_way(tmp_path: Path):
    path, _ = small(tmp_path)
    with zipfile.ZipFile(path) as opened:
        values = opened.read("small/data/0")
    raw = path.read_bytes()
    place = raw.index(values)
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    with pytest.raises(ValueError, match=r"is cut short or damaged \(Bad CRC-32 .*\); get it"):
        read_weights(path)


def test_archives_of_big_endian_machines(archive: Path):
    repacked(archive, lambda name, c: b"big" if name == "byteorder" else c)
    with pytest.raises(ValueError, match=r"was written on a big-endian machine"):
        read_weights(archive)
