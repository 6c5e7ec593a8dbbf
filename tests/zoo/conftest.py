"""Small towers reduced by each method, and what must not be unpickled."""

from pathlib import Path
from typing import Any

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


class Evil:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def evil(tmp_path: Path) -> Evil:
    return Evil(tmp_path / "mark")
