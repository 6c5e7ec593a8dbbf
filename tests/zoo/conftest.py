"""Small towers reduced by each method, the caches of users and hubs, and what must not be unpickled."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from lively import Build

import zoo


@pytest.fixture(params=sorted(zoo.METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def half(method: str, tiny: Build) -> zoo.ReducedViT:
    """Build a tiny tower that ends with 32 of its 64 patch tokens, by each method in turn."""
    return tiny(f"clip_vit_b16_{method}50")


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
