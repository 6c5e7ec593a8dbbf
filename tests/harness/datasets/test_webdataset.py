"""Tars in CLIP_benchmark's layout: read where they lie, and refused where they can't be trusted."""

import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from packing import Member, encoded, header, noise, tarred

from harness.datasets import get_dataset
from harness.datasets.webdataset import TarDataset

Make = Callable[..., Path]
EVIL = pickle.dumps(pytest.fail)


def samples(*labels: int, first: int = 0) -> list[Member]:
    """Samples as webdataset writes them, keys counting on."""
    members: list[Member] = []
    for number, label in enumerate(labels, start=first):
        kind = "webp" if number % 2 else "png"
        members.append((f"s{number:07d}.cls", str(label).encode()))
        members.append((f"s{number:07d}.{kind}", encoded(str(number), kind)))
    return members


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def call(*shards: Sequence[Member], split: str = "test", names: str = "cat\ndog\n", **files: str) -> Path:
        folder = tmp_path / "Pets"
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number, members in enumerate(shards):
            (folder / split / f"{number}.tar").write_bytes(tarred(members))
        (folder / "classnames.txt").write_text(names)
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text)
        return folder

    return call


def test_images_labels_and_ids(make: Make):
    templates = "a photo of a {c}.\nart of {c}\n"
    make(samples(1, 0), split="train", dataset_type="classification\n", zeroshot_classification_templates=templates)
    folder = make(samples(0, 1, 1), samples(0, first=3))
    dataset = TarDataset(folder)
    assert (dataset.name, dataset.classes, dataset.asked_as) == ("wds-pets", ("cat", "dog"), f"wds:{folder}")
    assert dataset.templates == ("a photo of a {}.", "art of {}")
    split = dataset.split("test")
    assert split.labels.tolist() == [0, 1, 1, 0]
    assert split.image_ids == tuple(f"wds-pets/test/s{i:07d}" for i in range(4))
    for seed in (3, 0, 2, 1):
        assert np.array_equal(split[seed].image, noise(str(seed)))
    assert (dataset.labels("train").tolist(), len(dataset.split("val"))) == ([1, 0], 0)
    dataset = TarDataset(make(*(samples(i % 2, first=i) for i in range(11))))  # 10.tar is last
    assert dataset.split("test").image_ids == tuple(f"wds-pets/test/s{i:07d}" for i in range(11))
    make(samples(1))  # another label
    assert TarDataset(folder).revision != dataset.revision


def test_keys_may_lie_in_folders_and_other_members_are_left_alone(make: Make):
    folder = make([
        ("a/1.jpg", encoded("1")), ("a/1.cls", b" 1\n"), ("a/1.json", b"{}"), ("a/1.pyd", EVIL), (".hidden", b""),
        ("../../up.txt", b"out"), ("/etc/x.pkl", EVIL), ("b/1.cls", b"0"), ("b/1.PNG", encoded("2")),
        header("s9.png", tarfile.SYMTYPE, "/etc/passwd"), header("s8.png", tarfile.CHRTYPE),
    ])  # fmt: skip
    before = sorted(folder.parent.rglob("*"))
    split = TarDataset(folder).split("test")
    assert split.image_ids == ("wds-pets/test/a/1", "wds-pets/test/b/1")
    assert all(np.array_equal(e.image, noise(s)) for e, s in zip(split, ("1", "2"), strict=True))
    assert sorted(folder.parent.rglob("*")) == before


def test_tars_that_are_cut_damaged_or_compressed(make: Make):
    file = make(samples(0, 1, 1)) / "test" / "0.tar"
    content = file.read_bytes()
    with tarfile.open(file) as tar:
        third = tar.getmembers()[2].offset
    after = f"truncated or damaged after byte {third:,}"
    for damaged, match in (
        (content[:third], after), (content[:third] + b"\x07" * 512 + content[third + 512 :], after),
        (content[:300], "0.tar' is truncated"), (tarred(samples(0), "w:gz"), "0.tar' is truncated"),
    ):  # fmt: skip
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=match):
            TarDataset(file.parents[1])


def test_captions_are_the_lines_of_texts(make: Make):
    pictures = [("1.png", encoded("1")), ("2.png", encoded("2"))]
    german = ("2.txt", "ein Hund, süß".encode())
    folder = make([*pictures, ("1.txt", b"a cat\nthe cat sits \r\n\n"), german], dataset_type="retrieval\n")
    (folder / "classnames.txt").unlink()
    dataset = get_dataset(f"wds:{folder}")
    assert (dataset.classes, dataset.templates, dataset.captioned) == ((), (), True)
    split = dataset.split("test")
    assert split.labels.tolist() == [-1] * 2
    texts = [dataset.captions_of(image_id) for image_id in split.image_ids]
    assert texts == [("a cat", "the cat sits"), ("ein Hund, süß",)]
    assert np.array_equal(split[1].image, noise("2"))
    make([*pictures, ("1.txt", b"a cat\nthe dog sits"), german])
    assert TarDataset(folder).revision != dataset.revision


IMAGE, LABEL = ("a.png", b"x"), ("a.cls", b"0")


@pytest.mark.parametrize(("members", "files", "match"), [
    ([LABEL], {}, "'a' has 0 images"),
    ([LABEL, LABEL], {}, "member 'a.cls' is a second"),
    *(([("a.cls", label), IMAGE], {}, f"a.cls: expected the number of a class, got '{label[:9].decode()}")
      for label in (b"-1", b"1" * 999, b"")),
    ([("a.cls", b"2"), IMAGE], {}, "'a' has the label 2; classnames.txt has 2 lines"),
    ([("a\n.png", b"x"), ("a\n.cls", b"0")], {}, r"'a\\n' can't be printed"),
    ([], {}, "has no tars with images"),
    (samples(0), {"test/nshards": "3"}, "nshards.txt' says '3', but 1 tars"),
    (samples(0), {"dataset_type": "clustering"}, "dataset_type.txt says 'clustering'"),
    (samples(0), {"zeroshot_classification_templates": "a {}{c}"}, r"templates.txt.*: template 'a \{\}\{\}'"),
    ([IMAGE, LABEL], {"dataset_type": "retrieval"}, "'a' has no a.txt"),
    ([("a.txt", b" \n\n"), IMAGE], {"dataset_type": "retrieval"}, "a.txt holds no caption"),
    ([("a.txt", b"\xff"), IMAGE], {"dataset_type": "retrieval"}, "a.txt is not text in UTF-8"),
])  # fmt: skip
def test_refusals(members: list[Member], files: dict[str, str], match: str, make: Make):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        TarDataset(make(members, **files))


def test_a_key_is_there_once_in_all_tars(make: Make):
    with pytest.raises(ValueError, match=r"1.tar': 's0000000' is in test twice"):
        TarDataset(make(samples(0), samples(1)))
