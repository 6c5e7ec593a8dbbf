"""One contract over all public datasets, on small copies packed as their sources ship them."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import get_dataset, list_datasets
from harness.datasets.base import SPLITS
from harness.datasets.rooted import RootedDataset

NAMES = [name for name in list_datasets() if isinstance(get_dataset(name), RootedDataset)]
Ship = Callable[..., object]


def file_of(dataset: RootedDataset, image_id: str) -> Path:
    """Find the file of an image; many a class has one of the same name."""
    *_, folder, name = image_id.split("/")
    found = [path for path in dataset.place.rglob("*") if path.name == name]
    [file] = [path for path in found if path.parent.name == folder] or found
    return file


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_known_without_a_root(name: str, tmp_path: Path):
    dataset = get_dataset(name)
    assert dataset.captions_seen == (True,) * dataset.class_count
    assert dataset.templates[0].count("{}") == 1
    for archive in dataset.archives:
        assert all(url.startswith("https://") for url in (archive.page, archive.url or archive.page))
        assert {len(s.partition(":")[2]) for s in archive.checksums} <= {32, 64}
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*--root FOLDER"):
        dataset.split("test")
    with pytest.raises(FileNotFoundError, match=r"--root '.*none'"):
        dataset.at(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as caught:
        dataset.at(tmp_path)
    needed = [archive for archive in dataset.archives if not archive.optional]
    assert all(text in str(caught.value) for a in needed for text in (a.file, a.page, str(tmp_path / dataset.folder)))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_unpacked_and_read(name: str, ship: Ship, tmp_path: Path):
    copy = ship(name)
    dataset = get_dataset(name).at(tmp_path)
    problems = "\n".join(dataset.problems())
    for split in SPLITS:
        wanted, found = sorted(copy.examples[split]), dataset.split(split)
        assert sorted(zip(found.image_ids, found.labels.tolist(), strict=True)) == [one[:2] for one in wanted]
        pictures = {example.image_id: example for example in found}
        for image_id, label, content in wanted:
            assert pictures[image_id].label == label
            assert np.array_equal(pictures[image_id].image, Image.open(io.BytesIO(content)).convert("RGB"))
        assert (f"{split}: {len(found)} images instead of {dataset.counts[split]:,}" in problems) == (
            len(found) != dataset.counts[split]
        )
    assert "md5" not in problems
    assert not list(tmp_path.rglob("*.unpacking"))
    # Unpacked by hand does as well.
    for file in (file for file in copy.archives if not file.endswith(".json")):
        (dataset.place / file).unlink()
    shutil.move(dataset.place, tmp_path / "elsewhere")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / dataset.folder).symlink_to(tmp_path / "elsewhere")
    second = get_dataset(name).at(tmp_path / "moved")
    assert (second.revision, second.split("test").image_ids) == (dataset.revision, dataset.split("test").image_ids)


@pytest.mark.parametrize("name", ["dtd"])
def test_what_differs_from_the_whole(name: str, ship: Ship, tmp_path: Path):
    ship(name)
    dataset = get_dataset(name).at(tmp_path)
    before, file = dataset.revision, file_of(dataset, dataset.split("test").image_ids[1])
    file.write_bytes(file.read_bytes()[:100])
    archive = dataset.archives[0].find(dataset.place)
    archive.write_bytes(b"another")
    changed = get_dataset(name).at(tmp_path)
    with pytest.raises(ValueError, match=f"image '.*{file.name}' can't be read"):
        changed.split("test")[1]
    assert changed.revision != before
    assert any(str(archive) in line and dataset.archives[0].checksums[0] in line for line in changed.problems())
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"image '.*{file.name}' is missing"):
        changed.split("test")[1]


@pytest.mark.parametrize(("file", "content", "match"), [
    ("variants.txt", b"Yo_Yo\nYo_Yo\n", "variants.txt'.*'Yo_Yo'"),
    ("variants.txt", b"Yo\xff", "variants.txt'.*UTF-8"),
    ("images_variant_val.txt", b"1000000 MiG\n", "val.txt', line 1: '1000000 MiG'"),
    ("images_variant_val.txt", b"../x Yo_Yo\n", "line 1: '../x Yo_Yo'"),
    ("images_variant_test.txt", b"0000000 Yo_Yo\n1000000 apse/indoor\n", "'0000000.jpg' is in train and again in test"),
])  # fmt: skip
def test_lists_of_aircraft_that_lie(file: str, content: bytes, match: str, ship: Ship, tmp_path: Path):
    ship("fgvc-aircraft")
    found = get_dataset("fgvc-aircraft").at(tmp_path)
    (found.place / file).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        found.split("test")
    (found.place / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file}' of 'fgvc-aircraft' is missing; it is in 'fgvc-aircraft"):
        found.split("test")
