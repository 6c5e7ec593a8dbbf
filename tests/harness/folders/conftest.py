"""Folders of class folders with noise in their images."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _pixels(path: str) -> np.ndarray:
    drawn = np.random.default_rng(list(path.encode()))
    return drawn.integers(0, 256, (*drawn.integers(9, 20, 2), 3), dtype=np.uint8)


@pytest.fixture
def pixels() -> Callable[[str], np.ndarray]:
    """Draw noise that belongs to a path."""
    return _pixels


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write images at paths below a folder; return the folder."""

    def call(paths: Iterable[str], folder: str = "My Shop") -> Path:
        for path in paths:
            place = tmp_path / folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels(path)).save(place)
        return tmp_path / folder

    return call
