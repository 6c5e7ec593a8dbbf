"""Drawings that no training saw: each once, and whole on a white square."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools import fetch_openclipart as module


def drawing(path: Path, size: tuple[int, int], colour: str) -> bytes:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGBA", size, colour).save(path)
    return path.read_bytes()


def test_links_copies_and_what_is_too_large_are_left_out(tmp_path: Path):
    first, second = drawing(tmp_path / "a" / "1.png", (9, 5), "red"), drawing(tmp_path / "2.png", (5, 9), "blue")
    (tmp_path / "b.png").write_bytes(first)
    (tmp_path / "c.png").symlink_to(tmp_path / "2.png")
    (tmp_path / "d.png").write_bytes(b"not a PNG")
    side = (100_000).to_bytes(4, "big")
    (tmp_path / "e.png").write_bytes(first[:16] + side + side + first[24:])
    found = module.drawings(tmp_path)
    assert list(found) == sorted(found)
    assert sorted(path.read_bytes() for path in found.values()) == sorted((first, second))


@pytest.mark.parametrize(("size", "shown"), [((500, 100), (224, 45)), ((60, 80), (60, 80))])
def test_a_drawing_is_whole_in_the_middle_of_white(size: tuple[int, int], shown: tuple[int, int], tmp_path: Path):
    drawing(tmp_path / "1.png", size, "red")
    pixels = np.asarray(Image.open(io.BytesIO(module.on_white(tmp_path / "1.png"))))
    assert pixels.shape == (224, 224, 3)
    rows, columns = np.nonzero((pixels != 255).any(axis=2))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == shown
    assert np.abs(np.array([columns.mean(), rows.mean()]) - 111.5).max() <= 0.5


def test_another_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "any.deb").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        module.main(["--source", str(tmp_path / "any.deb"), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"expected {module.SHA256}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
