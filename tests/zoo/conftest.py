"""Towers small enough for a test, with weights lively enough to tell methods apart."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from torch import Tensor, nn

import zoo

TINY = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """Build any timm name as a tower of 64 patches, 6 blocks, 48 channels and 7 outputs."""

    @torch.no_grad()
    def build(name: str, *, noise: float = 0.1, **overrides: object) -> nn.Module:
        model = timm.create_model(name, **{**TINY, "num_classes": 7, **overrides})
        # Fresh weights attend uniformly and LayerScale is near zero.
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
        return model.eval()

    return build


@pytest.fixture(params=sorted(zoo.METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def half(method: str, tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """Build a tiny tower that ends with 32 of its 64 patch tokens, by each method in turn."""
    return tiny(f"clip_vit_b16_{method}50")


@pytest.fixture
def tower(tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """Build a tower lively enough that every window of patches matters."""
    return tiny("clip_vit_b16", noise=0.3)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run a test without gradients: ``pytestmark = pytest.mark.usefixtures("no_grad")``."""
    with torch.no_grad():
        yield


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the Hugging Face cache, and the user's own, at empty folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def fill(hub: Path) -> Callable[..., Path]:
    """Put a file into the cache as the hub's client lays it out."""

    def put(repo: str, name: str, write: Callable[[Path], Any]) -> Path:
        folder = hub / f"models--{repo.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        for part in ("refs", "blobs", f"snapshots/{commit}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        write(folder / "blobs" / "new")
        digest = hashlib.sha256((folder / "blobs" / "new").read_bytes()).hexdigest()
        (folder / "blobs" / "new").rename(folder / "blobs" / digest)
        (folder / "snapshots" / commit / name).symlink_to(Path("../../blobs") / digest)
        return folder

    return put


class Evil:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def evil(tmp_path: Path) -> Evil:
    return Evil(tmp_path / "mark")
