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
from harness.cli.entry import main
from harness.datasets import decoded as module
from harness.datasets import get_dataset, names_of
from harness.datasets.decoded import decode_all
from harness.datasets.folder import FolderDataset
from zoo.core.files import cache_folder

BAD = ("folder-pets/test/dog/2.png", "folder-pets/train/cat/1.png")
QUIET = Progress()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of two classes in train and in test; one of each is damaged."""
    folder = tmp_path / "pets"
    for seed, (split, kind, i) in enumerate(itertools.product(("train", "test"), ("cat", "dog"), range(3))):
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

    def watch(self, name):
        split = real(self, name)
        render, ids = split._render, split.image_ids
        split._render = lambda index, variant: seen.append(ids[index]) or render(index, variant)
        return split

    monkeypatch.setattr(FolderDataset, "_split", watch)
    return seen


def test_what_cannot_be_read_is_found_and_alone_tried_again(folder: Path, calls: list[str]):
    first = decode_all(FolderDataset(folder), QUIET)
    assert set(first.bad) == set(BAD)
    assert all("can't be read" in why for why in first.bad.values())
    lost = {name: [i for i, digest in enumerate(d) if not digest] for name, d in first.digests.items()}
    assert lost == {"train": [1], "val": [], "test": [5]}
    assert len(calls) == 12
    calls.clear()
    assert decode_all(FolderDataset(folder), QUIET) == first
    assert sorted(calls) == sorted(BAD)
    calls.clear()
    assert decode_all(FolderDataset(folder), QUIET, known=False) == first
    assert len(calls) == 12
    [path] = (cache_folder() / "decoded").iterdir()
    path.write_text('{"digests": {}, "bad": {}}')
    assert decode_all(FolderDataset(folder), QUIET) == first


def test_digests_are_of_pixels(folder: Path):
    image = Image.open(folder / "test" / "cat" / "0.png")
    image.save(folder / "test" / "cat" / "same.bmp")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "test" / "cat" / "turned.png")
    Image.new("RGB", (2, 8)).save(folder / "test" / "dog" / "tall.png")
    Image.new("RGB", (8, 2)).save(folder / "test" / "dog" / "wide.png")
    dataset = FolderDataset(folder)
    digests = decode_all(dataset, QUIET).digests["test"]
    by_name = {Path(i).name: d for i, d in zip(dataset.split("test").image_ids[:5], digests, strict=False)}
    assert by_name["0.png"] == by_name["same.bmp"] != by_name["turned.png"]
    assert len(set(digests)) == len(digests) - 1


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
    assert set(decode_all(FolderDataset(folder), QUIET, known=False).bad) == set(BAD)
    assert len(calls) == 4 + 1  # the bad one of the first pass is tried again


def test_bad_images_are_counted_listed_and_left_out(folder: Path):
    console = Console(record=True, width=300)
    [name] = names_of([f"folder:{folder}"], skip_bad=True, progress=Progress(console))
    said = console.export_text()
    assert "folder-pets: left out, as they can't be read: 2 images" in said
    assert "dog/2.png' can't be read" in said
    assert len(Path(re.search(r"listed in (\S+)", said)[1]).read_text().splitlines()) == 2
    dataset, whole = get_dataset(name), FolderDataset(folder)
    assert (dataset.left_out, dataset.asked_with) == (set(BAD), ("--skip-bad",))
    assert dataset.revision != whole.revision
    for split in ("train", "test"):
        assert list(dataset.split(split).image_ids) == [i for i in whole.split(split).image_ids if i not in BAD]
    assert [example.label for example in dataset.split("test")] == [0, 0, 0, 1, 1]


def test_what_was_found_before_is_refused_at_once(folder: Path):
    assert names_of([f"folder:{folder}"], skip_bad=False) == ["folder-pets"]  # nobody looked yet
    decode_all(FolderDataset(folder), QUIET)
    with pytest.raises(ValueError, match=r"folder-pets that can't be read.*: 2; the first: i"):
        names_of([f"folder:{folder}"], skip_bad=False)
    for bad in BAD:
        Image.new("RGB", (9, 9)).save(folder.parent / bad.replace("folder-pets", "pets"))
    assert names_of([f"folder:{folder}"], skip_bad=False) == ["folder-pets"]


def test_eval_stops_with_the_image_s_name_or_leaves_it_out(folder: Path, capsys: pytest.CaptureFixture[str]):
    command = ["eval", "--model", "clip_vit_s14_random60", "--dataset", f"folder:{folder}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"error: image '{folder / 'test' / 'dog' / '2.png'}' can't be read" in error
    assert "--skip-bad" in error
    assert main([*command, "--skip-bad"]) == 0
    assert "(test, 5 images" in capsys.readouterr().out
