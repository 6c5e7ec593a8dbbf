"""Images decoded once: what is found, kept, gone on with and tried again."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from harness.base.terminal import Progress
from harness.datasets import Dataset, get_dataset, names_of
from harness.datasets import decoded as module
from harness.datasets.decoded import bad_images, decode_all, require_readable
from harness.datasets.folder import FolderDataset
from zoo.core.files import cache_folder

BAD = ("folder-pets/test/dog/2.png", "folder-pets/train/cat/1.png")
QUIET = Progress()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of two classes in train and in test; one of each is damaged."""
    folder = tmp_path / "pets"
    places = itertools.product(("train", "test"), ("cat", "dog"), range(3))
    for seed, (split, kind, i) in enumerate(places):
        name = f"{split}/{kind}/{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    os.truncate(folder / "test" / "dog" / "2.png", 60)
    (folder / "train" / "cat" / "1.png").write_bytes(b"")
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the images that are decoded."""
    seen: list[str] = []
    real = FolderDataset._split

    def counted(self, name):
        split = real(self, name)
        render, ids = split._render, split.image_ids
        split._render = lambda index, variant: seen.append(ids[index]) or render(index, variant)
        return split

    monkeypatch.setattr(FolderDataset, "_split", counted)
    return seen


def test_what_cannot_be_read_is_found(folder: Path):
    found = decode_all(FolderDataset(folder), QUIET)
    assert set(found.bad) == set(BAD)
    assert all("can't be read" in why for why in found.bad.values())
    lost = {name: [i for i, digest in enumerate(d) if not digest] for name, d in found.digests.items()}
    assert lost == {"train": [1], "val": [], "test": [5]}


def test_digests_are_of_pixels(folder: Path):
    image = Image.open(folder / "test" / "cat" / "0.png")
    image.save(folder / "test" / "cat" / "same.bmp")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "test" / "cat" / "turned.png")
    Image.new("RGB", (2, 8)).save(folder / "test" / "dog" / "tall.png")
    Image.new("RGB", (8, 2)).save(folder / "test" / "dog" / "wide.png")
    dataset = FolderDataset(folder)
    ids = [Path(image_id).name for image_id in dataset.split("test").image_ids]
    digests = dict(zip(ids[:5], decode_all(dataset, QUIET).digests["test"], strict=False))
    assert digests["0.png"] == digests["same.bmp"] != digests["turned.png"]
    whole = [digest for digest in decode_all(dataset, QUIET).digests["test"] if digest]
    assert len(whole) == len(set(whole)) + 1


def test_a_second_pass_reads_only_what_was_bad(folder: Path, calls: list[str]):
    dataset = FolderDataset(folder)
    first = decode_all(dataset, QUIET)
    assert len(calls) == 12
    calls.clear()
    assert decode_all(dataset, QUIET) == first
    assert sorted(calls) == sorted(BAD)
    calls.clear()
    assert decode_all(dataset, QUIET, known=False) == first
    assert len(calls) == 12


def test_a_stopped_pass_goes_on(folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    real, chunks = module._decoder, []

    def stopping(split):
        chunks.append(split)
        if len(chunks) == 5:
            raise KeyboardInterrupt
        return real(split)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_decoder", stopping)
        with pytest.raises(KeyboardInterrupt):
            decode_all(FolderDataset(folder), QUIET)
    assert len(calls) == 8
    calls.clear()
    found = decode_all(FolderDataset(folder), QUIET, known=False)
    assert len(calls) == 4 + 1  # the bad one of the first pass is tried again
    assert set(found.bad) == set(BAD)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digests": {}, "bad": {}}', "\x00"])
def test_a_state_that_is_none_is_made_anew(text: str, folder: Path):
    dataset = FolderDataset(folder)
    first = decode_all(dataset, QUIET)
    [path] = (cache_folder() / "decoded").iterdir()
    path.write_text(text)
    assert decode_all(dataset, QUIET) == first


def skipped(folder: Path) -> Dataset:
    [name] = names_of([f"folder:{folder}"], skip_bad=True)
    return get_dataset(name)


def test_bad_images_are_counted_listed_and_left_out(folder: Path):
    console = Console(record=True, width=300)
    [name] = names_of([f"folder:{folder}"], skip_bad=True, progress=Progress(console))
    said = console.export_text()
    assert "folder-pets: left out, as they can't be read: 2 images; all are listed in " in said
    assert "dog/2.png' can't be read" in said
    listed = Path(re.search(r"listed in (\S+)", said)[1])
    assert len(listed.read_text().splitlines()) == 2
    dataset, whole = get_dataset(name), FolderDataset(folder)
    assert whole.revision != dataset.revision == skipped(folder).revision
    assert dataset.without(()).revision == dataset.revision
    assert dataset.left_out == set(BAD)
    assert dataset.asked_with == ("--skip-bad",)
    for split in ("train", "test"):
        kept = [i for i in whole.split(split).image_ids if i not in BAD]
        assert list(dataset.split(split).image_ids) == kept
        assert len(dataset.labels(split)) == 5
    assert [example.label for example in dataset.split("test")] == [0, 0, 0, 1, 1]
    assert dataset.split("test").variant(2).image_ids[0] == "folder-pets/test/cat/0.png/2"


def test_nothing_is_left_out_of_a_whole_dataset(folder: Path):
    (folder / "test" / "dog" / "2.png").unlink()
    (folder / "train" / "cat" / "1.png").unlink()
    assert bad_images(FolderDataset(folder), QUIET) == frozenset()
    assert skipped(folder).revision == FolderDataset(folder).revision
    require_readable(FolderDataset(folder))


def test_too_few_readable_images(folder: Path):
    for pattern, match in (
        ("test/dog/*.png", "class 'dog' of 'folder-pets' has no images left in test"),
        ("*/*/*.png", "none of the 12 images of folder-pets can be read"),
    ):
        for path in folder.glob(pattern):
            path.write_text("no")
        with pytest.raises(ValueError, match=match):
            skipped(folder)


def test_what_was_found_before_is_refused_at_once(folder: Path):
    assert names_of([f"folder:{folder}"], skip_bad=False) == ["folder-pets"]  # nobody looked yet
    decode_all(FolderDataset(folder), QUIET)
    match = "that can't be read, as was found before: 2; the first: i"
    with pytest.raises(ValueError, match=match):
        names_of([f"folder:{folder}"], skip_bad=False)
    assert names_of([f"folder:{folder}"]) == ["folder-pets"]
    Image.new("RGB", (9, 9)).save(folder / "train" / "cat" / "1.png")
    assert names_of([f"folder:{folder}"], skip_bad=False) == ["folder-pets"]
