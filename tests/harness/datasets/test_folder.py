"""Folders of class folders as datasets: splits, captions, parting and refusals."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import SplitName, get_dataset, list_datasets, names_of
from harness.datasets.base import lines_of, require_template, slug
from harness.datasets.few_shot import draw
from harness.datasets.folder import FolderDataset, FolderParted, ImageFolder, captions_of
from harness.datasets.images import folder_images

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, write_images) -> Make:
    """Write images at paths below a folder; return the folder."""

    def call(paths: Iterable[str], folder: str = "My Shop") -> Path:
        write_images(tmp_path / folder, paths)
        return tmp_path / folder

    return call


PLAIN = ["dog/b.png", "ankle_boot/2.png", "ankle_boot/1.png", "dog/deeper/a.png"]


def test_class_folders_without_splits_are_test(make: Make, pixels: Callable[[str], np.ndarray]):
    folder = make(PLAIN)
    (folder / "dog" / "notes.txt").write_text("no image")
    (folder / "readme.md").write_text("no image")
    (folder / ".hidden").mkdir()
    dataset = FolderDataset(folder)
    assert (dataset.name, dataset.title) == ("folder-my-shop", "Images of the folder My Shop")
    assert dataset.classes == ("ankle boot", "dog")
    assert dataset.captions_seen == (True, True)
    split = dataset.split("test")
    paths = ["ankle_boot/1.png", "ankle_boot/2.png", "dog/b.png", "dog/deeper/a.png"]
    assert split.image_ids == tuple(f"folder-my-shop/{path}" for path in paths)
    assert split.labels.tolist() == [0, 0, 1, 1]
    assert split.labels.dtype == np.int64
    for example, path in zip(split, paths, strict=True):
        assert np.array_equal(example.image, pixels(path))
    assert len(dataset.split("train")) == len(dataset.split("val")) == 0


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits_that_are_there_are_used(val: str, make: Make):
    folder = make(["train/dog/1.png", "train/cat/1.png", f"{val}/dog/2.png", "test/bird/3.png"])
    dataset = FolderDataset(folder)
    assert dataset.classes == ("bird", "cat", "dog")
    labels = {name: dataset.labels(name).tolist() for name in ("train", "val", "test")}
    assert labels == {"train": [1, 2], "val": [2], "test": [0]}
    assert dataset.split("val").image_ids == (f"folder-my-shop/{val}/dog/2.png",)
    dataset = FolderDataset(make(["bus/1.png", "train/1.png", "train/2.png"], "other"))
    assert dataset.classes == ("bus", "train")  # a class may be called like a split
    assert dataset.labels("test").tolist() == [0, 1, 1]


def test_names_and_revisions_stay_when_a_folder_moves(make: Make, tmp_path: Path):
    before = FolderDataset(make(PLAIN))
    (tmp_path / "disk").mkdir()
    moved = (tmp_path / "My Shop").rename(tmp_path / "disk" / "My Shop")
    after = FolderDataset(moved)
    assert (after.name, after.revision) == (before.name, before.revision)
    assert after.split("test").image_ids == before.split("test").image_ids
    assert after.asked_as == f"folder:{moved}"
    told = (*after.split("test").image_ids, after.name, after.title, after.revision)
    assert not any(str(tmp_path) in text for text in told)


def test_the_revision_tells_other_images_captions_and_splits(make: Make):
    folder = make(PLAIN)
    revisions = [FolderDataset(folder).revision]
    for change in (
        lambda: make(["dog/c.png"]),
        lambda: (folder / "dog" / "c.png").write_bytes(b"x"),
        lambda: (folder / "classes.txt").write_text("boots\ndogs\n"),
    ):
        change()
        revisions.append(FolderDataset(folder).revision)
    assert len(set(revisions)) == 4
    assert set(map(len, revisions)) == {12}


def test_nothing_is_decoded_before_it_is_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch):
    folder = make(PLAIN)
    monkeypatch.setattr(Image, "open", None)
    split = FolderDataset(folder).split("test")
    assert len(split) == len(split.image_ids) == len(split.labels) == 4
    with pytest.raises(ValueError, match="can't be read"):
        split[0]


def test_it_is_found_by_path_then_by_name(make: Make, monkeypatch: pytest.MonkeyPatch):
    before, folder = list_datasets(), make(PLAIN)
    dataset = get_dataset(f"folder:{folder}")
    assert get_dataset("folder-my-shop") is dataset
    assert list_datasets() == before
    monkeypatch.chdir(folder.parent)
    assert get_dataset("folder:My Shop").asked_as == f"folder:{folder}"
    monkeypatch.chdir(folder)
    assert names_of(["fashion", "folder:."]) == ["fashion", "folder-my-shop"]


@pytest.mark.parametrize("link", ["dog/out.png", "bird"])
def test_links_that_leave_the_folder(link: str, make: Make, tmp_path: Path):
    folder = make(PLAIN)
    make(["x.png"], "secret")
    (folder / link).symlink_to(tmp_path / "secret" / ("x.png" if "." in link else ""))
    with pytest.raises(ValueError, match=f"image '{link}.*' is a link out of the folder of images"):
        FolderDataset(folder)


def test_links_inside_and_to_the_folder(make: Make, tmp_path: Path):
    folder = make(PLAIN)
    (folder / "dog" / "c.png").symlink_to(folder / "dog" / "b.png")
    (tmp_path / "link").symlink_to(folder)
    dataset = FolderDataset(tmp_path / "link")
    assert dataset.name == "folder-my-shop"
    assert dataset.labels("test").tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(("paths", "match"), [
    (["1.png"], "image '1.png' lies beside the class folders of 'My Shop' and so has no class"),
    ([*PLAIN, "1.png"], "image '1.png' lies beside the class folders"),
    (["test/dog/1.png", "test/1.png", "train/dog/1.png"], "the images of 'test' are in none"),
    (["test/dog/1.png", "extra/x/1.png"], "the images of 'extra' are in none of the splits te"),
    (["test/dog/1.png", "val/dog/1.png", "valid/dog/1.png"], "val and valid would both be the"),
    (["a-b/1.png", "a_b/1.png"], "folders 'a-b' and 'a_b' would both be class 'a b'"),
    (["__/1.png"], "the folder's name '__' can't be put into a prompt"),
])  # fmt: skip
def test_layouts_that_are_refused(paths: list[str], match: str, make: Make):
    with pytest.raises(ValueError, match=match):
        FolderDataset(make(paths))


def test_what_is_no_folder_of_classes(make: Make, tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    folder = make([*PLAIN, "cat/1.png"])
    (folder / "cat" / "1.png").rename(folder / "cat" / "model.pkl")
    for name, error, match in (
        (f"folder:{tmp_path / 'gone'}", FileNotFoundError, r"folder '.*gone' does not exist"),
        (f"folder:{tmp_path / 'file'}", NotADirectoryError, "file' is a file; give the folder"),
        (f"folder:{tmp_path / 'empty'}", ValueError, "has no subfolders; expected one for each"),
        (f"folder:{folder}", ValueError, "class folder 'cat' has no images; remove it"),
        ("folder:", ValueError, "'folder:': expected folder:PATH of a folder of class"),
        ("folder-x", ValueError, r"'folder-x' is made from a folder of .*give folder:PATH"),
        ("folder-parted-x", ValueError, r"'folder-parted-x' is made from .*give folder-parted:PA"),
    ):
        with pytest.raises(error, match=match):
            get_dataset(name)


def test_images_that_vanish_or_are_damaged(make: Make, monkeypatch: pytest.MonkeyPatch):
    folder = make(PLAIN)
    split = FolderDataset(folder).split("test")
    (folder / "ankle_boot" / "1.png").unlink()
    os.truncate(folder / "ankle_boot" / "2.png", 60)
    (folder / "dog" / "b.png").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"1.png' of folder-my-shop is missing; it was"):
        split[0]
    with pytest.raises(ValueError, match=r"image '.*2.png' can't be read .*--skip-bad"):
        split[1]
    with pytest.raises(ValueError, match=r"b.png' can't be read \(in no known format\)"):
        split[2]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ValueError, match=r"a.png' is too large to be trusted"):
        split[3]


def images(count: int, name: str) -> list[str]:
    return [f"{name}/{i}.png" for i in range(count)]


SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def test_parted_folders_share_classes_out(make: Make):
    paths = [*images(20, "many"), *images(3, "three"), *images(2, "two"), *images(1, "one")]
    folder = make(paths)
    dataset = FolderParted(folder)
    assert (dataset.name, dataset.asked_as) == ("folder-parted-my-shop", f"folder-parted:{folder}")
    sizes = {n: np.bincount(dataset.labels(n), minlength=4).tolist() for n in SPLITS}
    # In order: many, one, three, two.
    assert sizes == {"train": [12, 0, 1, 1], "val": [4, 0, 1, 0], "test": [4, 1, 1, 1]}
    ids = [image_id for name in SPLITS for image_id in dataset.split(name).image_ids]
    assert sorted(ids) == sorted(f"folder-parted-my-shop/{path}" for path in paths)


def test_parting_goes_by_the_bytes_alone(make: Make):
    folder = make(images(12, "cat"))
    before = {s: {e.image.tobytes() for e in FolderParted(folder).split(s)} for s in SPLITS}
    for place, path in enumerate(sorted((folder / "cat").iterdir())):
        path.rename(folder / "cat" / f"x{11 - place:02d}.png")
    after = {s: {e.image.tobytes() for e in FolderParted(folder).split(s)} for s in SPLITS}
    assert after == before


def test_copies_are_on_one_side(make: Make):
    folder = make([*images(10, "cat"), *images(10, "dog")])
    for i in range(10):
        content = (folder / "cat" / f"{i}.png").read_bytes()
        (folder / "cat" / f"copy {i}.png").write_bytes(content)
        if i < 3:
            (folder / "dog" / f"copy {i}.png").write_bytes(content)
    dataset = FolderParted(folder)
    seen = [{e.image.tobytes() for e in dataset.split(name)} for name in SPLITS]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20
    assert sum(len(dataset.split(name)) for name in SPLITS) == 33


def test_folders_that_are_for_testing_only_name_the_way_to_splits(make: Make):
    folder = make(images(10, "cat"))
    with pytest.raises(ValueError, match=rf"check folder:{folder}` .* or folder-parted:{folder}, "):
        draw(FolderDataset(folder), 4, seed=0)
    with pytest.raises(ValueError, match="has splits of its own; give folder:PATH for these"):
        FolderParted(make(["test/dog/1.png"], "split"))


def test_images_without_classes_are_parted_by_their_bytes(make: Make, pixels: Callable[[str], np.ndarray]):
    folder = make([*images(40, "a/deeper"), *images(40, "b"), "top.png"])
    dataset = ImageFolder(folder)
    assert (dataset.name, dataset.classes, dataset.labelled) == ("images-my-shop", (), False)
    assert (dataset.asked_as, dataset.templates) == (f"images:{folder}", ())
    ids = {name: set(dataset.split(name).image_ids) for name in SPLITS}
    every = folder_images(folder)
    assert dataset.revision == every.revision
    assert sorted(set.union(*ids.values())) == sorted(every.split.image_ids)
    assert sum(map(len, ids.values())) == len(every.split) == 81
    assert len(ids["train"]) > 40 > len(ids["val"]) > 5 < len(ids["test"]) < 40
    for name, low, high in (("train", 0, 60), ("val", 60, 80), ("test", 80, 100)):
        assert all(low <= int(image_id, 16) % 100 < high for image_id in ids[name])
        assert (dataset.labels(name) == -1).all()
    for path in sorted((folder / "b").iterdir()):
        path.with_stem(f"copy {path.stem}").write_bytes(path.read_bytes())
        path.rename(folder / path.name)
    make(["new.png"])
    for name in SPLITS:
        after = set(ImageFolder(folder).split(name).image_ids)
        assert ids[name] <= after
        assert not after & set.union(*(ids[other] for other in SPLITS if other != name))
    shown = {example.image.tobytes() for name in SPLITS for example in ImageFolder(folder).split(name)}
    assert pixels("new.png").tobytes() in shown
    assert len(shown) == 82


def test_refusals_of_images_without_classes(make: Make, tmp_path: Path):
    folder = make(images(9, "a"))
    make(["x.png"], "secret")
    (tmp_path / "empty").mkdir()
    for path, error, match in (
        ("gone", FileNotFoundError, r"folder '.*gone': there is no such folder"),
        ("empty", ValueError, r"folder '.*empty': no images below this folder"),
        ("", ValueError, "'images:': expected images:PATH of a folder of images"),
    ):
        with pytest.raises(error, match=match):
            get_dataset(f"images:{tmp_path / path if path else ''}")
    with pytest.raises(ValueError, match="--templates: 'images-my-shop' has no classes"):
        names_of([f"images:{folder}"], templates=["a {}"])
    dataset = ImageFolder(folder)
    bad = dataset.split("train").image_ids
    with pytest.raises(ValueError, match=f"'images-my-shop' has no images left in train: all {len(bad)} can't"):
        dataset.without(bad)
    less = dataset.without(bad[:1])
    assert less.split("train").image_ids == bad[1:]
    assert less.revision != dataset.revision
    (folder / "a" / "bad.png").write_text("no image")
    broken = [e for name in SPLITS for e in _messages(ImageFolder(folder), name)]
    assert len(broken) == 1
    assert "bad.png' can't be read" in broken[0]
    assert "--skip-bad" in broken[0]
    (folder / "out.png").symlink_to(tmp_path / "secret" / "x.png")
    with pytest.raises(ValueError, match=r"image 'out.png' is a link out of the folder of images"):
        ImageFolder(folder)


def _messages(dataset: ImageFolder, name: SplitName) -> list[str]:
    split, messages = dataset.split(name), []
    for index in range(len(split)):
        try:
            split[index]
        except ValueError as error:
            messages.append(str(error))
    return messages


NAMES = ["ankle_boot", "bag", "dog", "dog_house"]


def test_names_are_captions_where_no_file_is(tmp_path: Path):
    """Underscores and dashes are spaces."""
    names = ["ankle_boot", "t-shirt", "__a--b_ ", "Köter"]
    assert captions_of(tmp_path, names, "here") == ("ankle boot", "t shirt", "a b", "Köter")


@pytest.mark.parametrize("name", ["_", "- _", "a\nb", "a\x1b[31m", "\udc80"])
def test_names_that_no_prompt_takes(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"here: the folder's name .* can't be put into a prompt"):
        captions_of(tmp_path, [name], "here")


@pytest.mark.parametrize("file", ["classes.txt", "classnames.txt"])
@pytest.mark.parametrize("text", [
    "boots\nhandbag\na dog\nkennel\n",
    "dog_house kennel\nbag\thandbag\nankle_boot   boots\ndog a dog",
    "\ufeffankle_boot boots\r\nbag handbag\r\ndog a dog\r\ndog_house kennel\r\n\r\n",
])  # fmt: skip
def test_a_file_says_what_folders_mean(file: str, text: str, tmp_path: Path):
    (tmp_path / file).write_bytes(text.encode())
    assert captions_of(tmp_path, NAMES, "here") == ("boots", "handbag", "a dog", "kennel")
    (tmp_path / file).write_text("a b c x\na y\n")  # the longest folder is meant
    assert captions_of(tmp_path, ["a", "a b c"], "here") == ("y", "x")


@pytest.mark.parametrize(("text", "match"), [
    ("a\nb\nc", "here: classes.txt: 3 lines for 4 class folders"),
    ("bag x\nbag y\ndog z\ndog_house w", "classes.txt: folder 'bag' is there twice"),
    ("bag x\nankle_boot y\ndog z", "classes.txt: no line for the folder 'dog_house'"),
    ("x\ny\nz\nx", "folders 'ankle_boot' and 'dog_house' would both be class 'x'"),
    ("bag\nankle_boot\ndog\ndog_house", "line 1: 'bag' would be the caption of the folder 'an"),
    ("x\n\ny\nz", r"classes.txt', line 2: expected a name, got ''"),
    ("x\ny\x07\nw\nz", r"classes.txt', line 2: expected a name"),
    (b"\xff\xfe", "classes.txt' is not text in UTF-8"),
])  # fmt: skip
def test_files_that_contradict(text: str | bytes, match: str, tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        captions_of(tmp_path, NAMES, "here")


def test_two_files_and_huge_ones(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("a")
    (tmp_path / "classnames.txt").write_text("a")
    with pytest.raises(ValueError, match=r"both classes.txt and classnames.txt are there"):
        captions_of(tmp_path, ["a"], "here")
    with (tmp_path / "classes.txt").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ValueError, match="more than 4,194,304 bytes and is no list of names"):
        lines_of(tmp_path / "classes.txt")


def test_slugs():
    names = ("My Photos (2)", "..x", "Bäume")
    assert [slug(name, "here") for name in names] == ["my-photos-2", "x", "bäume"]
    with pytest.raises(ValueError, match="here: its name becomes the dataset's"):
        slug("-", "here")


@pytest.mark.parametrize(
    "template", ["", "a photo", "{} {}", "{0}", "{c}", "{!r}", "{:>9}", "{", "}", "{{}}", "{{{}}}"]
)
def test_texts_that_are_no_prompts(template: str):
    with pytest.raises(ValueError, match=r"expected one {} where the class goes"):
        require_template(template)
    for prompt in ("{}", "a photo of a {}.", "100 % {}, it is"):
        require_template(prompt)
