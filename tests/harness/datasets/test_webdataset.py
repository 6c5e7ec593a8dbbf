"""Tars in CLIP_benchmark's layout: read where they lie, and refused where they can't be trusted."""

import io
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets import get_dataset, names_of
from harness.datasets import webdataset as tar_index
from harness.datasets.webdataset import TarDataset
from zoo.core.files import cache_folder

Member = tuple[str, bytes]
Make = Callable[..., Path]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (7 + seed, 9, 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, kind, lossless=True)
    return file.getvalue()


def samples(*labels: int, first: int = 0) -> list[Member]:
    """Samples as webdataset writes them, keys counting on."""
    members: list[Member] = []
    for number, label in enumerate(labels, start=first):
        kind = "webp" if number % 2 else "png"
        members.append((f"s{number:07d}.cls", str(label).encode()))
        members.append((f"s{number:07d}.{kind}", encoded(number, kind)))
    return members


def write_tar(path: Path, members: Sequence[Any], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write tars and what lies beside them; return the folder."""

    def call(shards: Sequence[Sequence[Any]] = (), names: str = "cat\ndog\n", **files: str) -> Path:
        folder = tmp_path / "Pets"
        for number, members in enumerate(shards or [samples(0, 1, 1), samples(0, first=3)]):
            write_tar(folder / "test" / f"{number}.tar", members)
        (folder / "classnames.txt").write_text(names)
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text)
        return folder

    return call


def test_images_labels_and_ids(make: Make):
    templates = "a photo of a {c}.\nart of {c}\n"
    folder = make(zeroshot_classification_templates=templates, dataset_type="classification\n")
    write_tar(folder / "train" / "0.tar", samples(1, 0))
    (folder / "test" / "nshards.txt").write_text("2\n")
    dataset = TarDataset(folder)
    assert (dataset.name, dataset.classes) == ("wds-pets", ("cat", "dog"))
    assert dataset.templates == ("a photo of a {}.", "art of {}")
    assert dataset.captions_seen == (True, True)
    assert dataset.asked_as == f"wds:{folder}"
    split = dataset.split("test")
    assert split.labels.tolist() == [0, 1, 1, 0]
    assert split.image_ids == tuple(f"wds-pets/test/s{i:07d}" for i in range(4))
    for seed in (3, 0, 2, 1):
        assert np.array_equal(split[seed].image, pixels(seed))
    assert dataset.labels("train").tolist() == [1, 0]
    assert len(dataset.split("val")) == 0
    assert names_of([f"wds:{folder}"]) == ["wds-pets"]
    (folder / "test" / "nshards.txt").unlink()
    dataset = TarDataset(make([samples(i % 2, first=i) for i in range(11)]))  # 10.tar is last
    assert dataset.split("test").image_ids == tuple(f"wds-pets/test/s{i:07d}" for i in range(11))


def test_keys_may_lie_in_folders_and_other_fields_are_left_alone(make: Make):
    evil = pickle.dumps(pytest.fail)
    members = [
        ("a/1.jpg", encoded(1)), ("a/1.cls", b" 1\n"), ("a/1.json", b"{}"), ("a/1.pyd", evil),
        ("../../up.txt", b"out"), ("/etc/x.pkl", evil), ("b/1.cls", b"0"), ("b/1.PNG", encoded(2)), (".hidden", b""),
    ]  # fmt: skip
    folder = make([members])
    before = sorted(folder.parent.rglob("*"))
    split = TarDataset(folder).split("test")
    assert split.image_ids == ("wds-pets/test/a/1", "wds-pets/test/b/1")
    assert all(np.array_equal(e.image, pixels(s)) for e, s in zip(split, (1, 2), strict=True))
    assert sorted(folder.parent.rglob("*")) == before


def test_links_and_devices_hold_nothing_and_keys_are_there_once(make: Make):
    link, device = tarfile.TarInfo("s9.png"), tarfile.TarInfo("s8.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    assert len(TarDataset(make([[*samples(0), link, device]])).split("test")) == 1
    with pytest.raises(ValueError, match="'s9' has no image"):
        TarDataset(make([[*samples(0), link, ("s9.cls", b"0")]]))
    with pytest.raises(ValueError, match=r"1.tar': 's0000000' is in test twice"):
        TarDataset(make([samples(0), samples(1)]))


def test_an_index_is_kept_and_not_believed_of_another_tar(make: Make, monkeypatch):
    monkeypatch.setattr(tar_index, "KEPT", 2)
    folder = make([samples(0, 1, 1)])
    before = TarDataset(folder)
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_samples", None)
        assert TarDataset(folder).split("test").image_ids == before.split("test").image_ids
        assert TarDataset(folder).revision == before.revision
    write_tar(folder / "test" / "0.tar", samples(0, 1, 1, 0))
    assert len(TarDataset(folder).split("test")) == 4
    for kept in (cache_folder() / "tars").iterdir():
        kept.write_text("[[0")
    assert len(TarDataset(folder).split("test")) == 4


def test_tars_that_are_cut_damaged_or_compressed(make: Make):
    folder = make([samples(0, 1, 1)])
    file = folder / "test" / "0.tar"
    content = file.read_bytes()
    with tarfile.open(file) as tar:
        third = tar.getmembers()[2].offset
    for damaged in (content[:third], content[:third] + b"\x07" * 512 + content[third + 512 :]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"truncated or damaged after byte {third:,}"):
            TarDataset(folder)
    for cut in (1, 300, 700, 1100):
        file.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"0.tar' is truncated"):
            TarDataset(folder)
    for mode in ("w:gz", "w:xz"):
        write_tar(file, samples(0), mode)
        with pytest.raises(ValueError, match=r"0.tar' is truncated or no plain tar .*uncompressed"):
            TarDataset(folder)


@pytest.mark.parametrize(("members", "match"), [
    ([("a.png", b"x"), ("a.npy", b"x")], "'a' has no a.cls"),
    ([("a.cls", b"0")], "'a' has no image"),
    ([("a.png", b"x"), ("a.jpg", b"x")], "member 'a.jpg' is a second"),
    ([("a.cls", b"0"), ("a.cls", b"0")], "member 'a.cls' is a second"),
    *(([("a.cls", label), ("a.png", b"x")], f"a.cls is '{label[:9].decode()}")
      for label in (b"cat", b"-1", b"1" * 999, b"1 2", b"")),
    ([("a.cls", b"2"), ("a.png", b"x")], "'a' has the label 2; classnames.txt has 2 lines"),
    ([("a\n.png", b"x"), ("a\n.cls", b"0")], r"'a\\n' can't be printed"),
    ([], "has no tars with images"),
])  # fmt: skip
def test_samples_that_are_refused(members: list[Member], match: str, make: Make):
    with pytest.raises(ValueError, match=match):
        TarDataset(make([members]))


@pytest.mark.parametrize("count", ["3", "²"])
def test_numbers_of_tars_that_are_others(count: str, make: Make):
    folder = make()
    (folder / "test" / "nshards.txt").write_text(count)
    match = "nshards.txt': expected the number of tars"
    if count.strip() == "3":
        match = "2.tar' is missing; nshards.txt beside it says 3"
    with pytest.raises((FileNotFoundError, ValueError), match=match):
        TarDataset(folder)


def described(*captions: str) -> list[Member]:
    """Samples with captions, as CLIP_benchmark exports them."""
    texts = [(f"s{number:07d}.txt", text.encode()) for number, text in enumerate(captions)]
    images = [(f"s{number:07d}.png", encoded(number)) for number in range(len(captions))]
    return [*images, *texts]


def test_captions_are_the_lines_of_texts(make: Make):
    shards = [
        described("a cat\nthe cat sits \r\n\n", "ein Hund, süß"),
        [("z/9.JPG", encoded(2)), ("z/9.txt", b"a cat")],
    ]
    folder = make(shards, dataset_type="retrieval\n")
    (folder / "classnames.txt").unlink()
    dataset = get_dataset(f"wds:{folder}")
    assert (dataset.classes, dataset.templates, dataset.captioned) == ((), (), True)
    assert dataset.condition == dataset.revision
    split = dataset.split("test")
    assert split.labels.tolist() == [-1] * 3
    texts = [dataset.captions_of(image_id) for image_id in split.image_ids]
    assert texts == [("a cat", "the cat sits"), ("ein Hund, süß",), ("a cat",)]
    assert np.array_equal(split[1].image, pixels(1))
    other = make([described("a cat\nthe dog sits", "ein Hund, süß"), shards[1]], dataset_type="retrieval")
    assert TarDataset(other).revision != dataset.revision
    (folder / "dataset_type.txt").unlink()
    assert TarDataset(make()).captions_of("wds-pets/test/s0000000") == ()


@pytest.mark.parametrize(("members", "match"), [
    ([("a.png", b"x"), ("a.cls", b"0")], "'a' has no a.txt"),
    ([("a.txt", b" \n\n"), ("a.png", b"x")], "a.txt holds no caption"),
    ([("a.txt", b"\xff"), ("a.png", b"x")], "a.txt is not text in UTF-8"),
    ([("a.txt", b"a" * 70_000), ("a.png", b"x")], "'a.txt' has 70,000 bytes"),
])  # fmt: skip
def test_captions_that_are_refused(members: list[Member], match: str, make: Make):
    with pytest.raises(ValueError, match=match):
        TarDataset(make([members], dataset_type="retrieval"))
