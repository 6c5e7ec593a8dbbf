"""Images of `hfds:` that can't be read, or that a table only names."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.cli import main
from harness.datasets import forget, get_dataset, names_of
from harness.datasets.huggingface import HfDataset

FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}


@pytest.fixture(autouse=True)
def _own_cache_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    forget()


def image(shade: int = 0) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def parquet(folder: Path, images: list[Any], labels: list[int]) -> Path:
    """Write rows as they are; the library's own ways look for images that are only named."""
    told, features = {"image": images, "label": labels}, datasets.Features(FEATURES)
    folder.mkdir()
    rows = datasets.Dataset.from_dict(told, features=features)
    pq.write_table(rows.data.table, folder / "test.parquet")
    return folder


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (
            {"bytes": b"\x89PNG", "path": None},
            "in row 1 of split 'test' of folder .* can't be read",
        ),
        ({"bytes": None, "path": "a.png"}, "row 1 of .* only named, as 'a.png', which is none of"),
        ({"bytes": None, "path": "http://127.0.0.1/a.png"}, "which is none of the dataset's files"),
        ({"bytes": b"", "path": None}, "in row 1 of .* the row has none"),
    ],
)
def test_bad_images_stop_with_their_row_and_can_be_left_out(
    bad: dict[str, Any], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = [image(0), bad, image(2)]
    folder = parquet(tmp_path / "pets", images, [0, 1, 1])
    split = HfDataset(folder).split("test")
    assert [example.label for example in (split[0], split[2])] == [0, 1]
    with pytest.raises(ValueError, match=match):
        split[1]
    [name] = names_of([f"hfds:{folder}"], skip_bad=True)
    assert get_dataset(name).split("test").image_ids == ("hfds-pets/test/0", "hfds-pets/test/2")
    assert get_dataset(name).revision != HfDataset(folder).revision
    assert main(["datasets", "check", f"hfds:{folder}"]) == 1
    assert "problem: 1 unreadable image; --skip-bad leaves them out" in capsys.readouterr().out


def test_images_that_are_only_named_may_not_lie_elsewhere(tmp_path: Path):
    """Neither by their path nor by a link."""
    outside, folder = tmp_path / "secret.png", tmp_path / "pets"
    outside.write_bytes(image()["bytes"])
    inside = {"bytes": None, "path": str(folder / "b.png")}
    parquet(folder, [{"bytes": None, "path": str(outside)}, inside], [0, 1])
    (folder / "b.png").symlink_to(outside)
    dataset = HfDataset(folder)
    for row in range(2):
        with pytest.raises(ValueError, match=rf"image in row {row} of .* is none of the dataset's"):
            dataset.split("test")[row]
    before = dataset.revision
    (folder / "b.png").unlink()
    (folder / "b.png").write_bytes(image()["bytes"])
    assert HfDataset(folder).split("test")[1].label == 1
    assert HfDataset(folder).revision != before


def test_images_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    split = HfDataset(parquet(tmp_path / "pets", [image()], [0])).split("test")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with pytest.raises(ValueError, match=r"image in row 0 of .* is too large to be trusted"):
        split[0]
