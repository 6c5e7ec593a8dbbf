"""Folders of class folders as datasets: splits, captions, parting and refusals."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import SplitName, get_dataset, list_datasets, names_of
from harness.datasets.few_shot import draw
from harness.datasets.folder import FolderDataset, FolderParted, ImageFolder, captions_of
from harness.datasets.images import folder_images

Make = Callable[..., Path]
PLAIN = ["dog/b.png", "ankle_boot/2.png", "ankle_boot/1.png", "dog/deeper/a.png"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@pytest.fixture
def make(tmp_path: Path, write_images) -> Make:
    """Write images at paths below a folder; return the folder."""

    def call(paths: Iterable[str], folder: str = "My Shop") -> Path:
        write_images(tmp_path / folder, paths)
        return tmp_path / folder

    return call


def images(count: int, name: str) -> list[str]:
    return [f"{name}/{i}.png" for i in range(count)]


def test_class_folders_without_splits_are_test(make: Make, pixels, monkeypatch: pytest.MonkeyPatch):
    before, folder = list_datasets(), make(PLAIN)
    for file in ("dog/notes.txt", "readme.md", ".hidden"):
        (folder / file).write_text("no image")
    dataset = get_dataset(f"folder:{folder}")
    assert (dataset.name, dataset.title) == ("folder-my-shop", "Images of the folder My Shop")
    assert dataset.classes == ("ankle boot", "dog")
    paths = ["ankle_boot/1.png", "ankle_boot/2.png", "dog/b.png", "dog/deeper/a.png"]
    split = dataset.split("test")
    assert split.image_ids == tuple(f"folder-my-shop/{path}" for path in paths)
    assert split.labels.tolist() == [0, 0, 1, 1]
    assert all(np.array_equal(e.image, pixels(path)) for e, path in zip(split, paths, strict=True))
    assert len(dataset.split("train")) == len(dataset.split("val")) == 0
    assert get_dataset("folder-my-shop") is dataset
    assert list_datasets() == before
    monkeypatch.chdir(folder)
    assert names_of(["fashion", "folder:."]) == ["fashion", "folder-my-shop"]
    monkeypatch.setattr(Image, "open", None)
    assert len(FolderDataset(folder).split("test").image_ids) == 4


@pytest.mark.parametrize("val", ["Validation"])
def test_split_folders(val: str, make: Make):
    dataset = FolderDataset(make(["train/cat/1.png", "train/dog/1.png", f"{val}/dog/2.png", "test/bird/1.png"]))
    assert dataset.classes == ("bird", "cat", "dog")
    assert [dataset.labels(name).tolist() for name in SPLITS] == [[1, 2], [2], [0]]
    dataset = FolderDataset(make(["bus/1.png", "train/1.png", "train/2.png"], "other"))
    assert dataset.classes == ("bus", "train")  # a class may be called like a split
    with pytest.raises(ValueError, match="splits of its own; give folder:PATH"):
        FolderParted(make([], "My Shop"))


def test_names_and_revisions_stay_when_a_folder_moves_and_tell_other_content(make: Make, tmp_path: Path):
    before = FolderDataset(make(PLAIN))
    (tmp_path / "disk").mkdir()
    folder = (tmp_path / "My Shop").rename(tmp_path / "disk" / "My Shop")
    (tmp_path / "link").symlink_to(folder)
    (folder / "dog" / "b.png").rename(folder / "dog" / "c.png")
    (folder / "dog" / "b.png").symlink_to("c.png")
    after = FolderDataset(tmp_path / "link")
    assert after.name == before.name
    assert after.labels("test").tolist() == [0, 0, 1, 1, 1]
    assert not any(str(tmp_path) in text for text in (*after.split("test").image_ids, after.title))
    revisions = [before.revision, after.revision]
    (folder / "dog" / "c.png").unlink()
    (folder / "dog" / "b.png").unlink()
    make(["dog/b.png"], "disk/My Shop")
    assert FolderDataset(folder).revision == before.revision
    for change in (
        lambda: (folder / "dog" / "b.png").write_bytes(b"x"),
        lambda: (folder / "classes.txt").write_text("boots\ndogs\n"),
    ):
        change()
        revisions.append(FolderDataset(folder).revision)
    assert len(set(revisions)) == 4


@pytest.mark.parametrize("link", ["dog/out.png", "bird"])
def test_links_that_leave_the_folder(link: str, make: Make, tmp_path: Path):
    folder = make(PLAIN)
    make(["x.png"], "secret")
    (folder / link).symlink_to(tmp_path / "secret" / ("x.png" if "." in link else ""))
    for kind in (FolderDataset, ImageFolder):
        with pytest.raises(ValueError, match=f"image '{link}.*' is a link out of"):
            kind(folder)


@pytest.mark.parametrize(("paths", "match"), [
    ([*PLAIN, "1.png"], "image '1.png' lies beside"),
    (["test/dog/1.png", "test/1.png", "train/dog/1.png"], "the images of 'test' are in none"),
    (["test/dog/1.png", "val/dog/1.png", "valid/dog/1.png"], "val and valid"),
    (["a-b/1.png", "a_b/1.png"], "'a-b' and 'a_b' would both be class 'a b'"),
    (["__/1.png"], "'__' can't be put into a prompt"),
    ([*PLAIN, "cat/model.pkl.png/none"], "class folder 'cat' has no images"),
])  # fmt: skip
def test_layouts_that_are_refused(paths: list[str], match: str, make: Make, tmp_path: Path):
    folder = make([path for path in paths if path.endswith(".png")])
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=match):
        FolderDataset(folder)


def test_parted_folders_share_classes_out_by_bytes_alone(make: Make):
    paths = [*images(20, "many"), *images(3, "three"), *images(2, "two"), *images(1, "one")]
    folder = make(paths)
    dataset = FolderParted(folder)
    assert (dataset.name, dataset.asked_as) == ("folder-parted-my-shop", f"folder-parted:{folder}")
    sizes = {n: np.bincount(dataset.labels(n), minlength=4).tolist() for n in SPLITS}
    # In order: many, one, three, two.
    assert sizes == {"train": [12, 0, 1, 1], "val": [4, 0, 1, 0], "test": [4, 1, 1, 1]}
    assert sorted(i for n in SPLITS for i in dataset.split(n).image_ids) == sorted(f"{dataset.name}/{p}" for p in paths)
    before = {s: {e.image.tobytes() for e in dataset.split(s)} for s in SPLITS}
    for number, path in enumerate(sorted((folder / "many").iterdir())):
        path.rename(folder / "many" / f"x{19 - number:02d}.png")
    for name in ("x00.png", "x05.png"):  # a copy goes where its original is, in whatever class
        (folder / "one" / name).write_bytes((folder / "many" / name).read_bytes())
    after = FolderParted(folder)
    assert {s: {e.image.tobytes() for e in after.split(s)} for s in SPLITS} == before
    with pytest.raises(ValueError, match=f"check --dataset folder:{folder}` .*folder-parted:{folder}, "):
        draw(FolderDataset(folder), 4, seed=0)


def test_images_without_classes_are_parted_by_their_bytes(make: Make, pixels):
    folder = make([*images(40, "a/deeper"), *images(40, "b"), "top.png"])
    dataset = ImageFolder(folder)
    assert (dataset.name, dataset.classes, dataset.labelled) == ("images-my-shop", (), False)
    assert (dataset.asked_as, dataset.templates) == (f"images:{folder}", ())
    ids = {name: set(dataset.split(name).image_ids) for name in SPLITS}
    assert dataset.revision == folder_images(folder).revision
    assert sorted(set.union(*ids.values())) == sorted(folder_images(folder).split.image_ids)
    for name, low, high in (("train", 0, 60), ("val", 60, 80), ("test", 80, 100)):
        assert all(low <= int(image_id, 16) % 100 < high for image_id in ids[name])
        assert (dataset.labels(name) == -1).all()
    for path in sorted((folder / "b").iterdir()):
        path.with_stem(f"copy {path.stem}").write_bytes(path.read_bytes())
        path.rename(folder / path.name)
    make(["new.png"])
    after = {name: set(ImageFolder(folder).split(name).image_ids) for name in SPLITS}
    assert sum(ids[name] <= after[name] for name in SPLITS) == 3
    assert sum(map(len, after.values())) == sum(map(len, ids.values())) + 1


NAMES = ["ankle_boot", "bag", "dog", "dog_house"]


@pytest.mark.parametrize("file", ["classnames.txt"])
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
    ("a\nb\nc", "classes.txt: 3 lines for 4 class folders"),
    ("bag x\nbag y\ndog z\ndog_house w", "folder 'bag' is there twice"),
    ("bag x\nankle_boot y\ndog z", "no line for the folder 'dog_house'"),
    ("x\ny\nz\nx", "'ankle_boot' and 'dog_house' would both be class 'x'"),
    ("bag\nankle_boot\ndog\ndog_house", "line 1: 'bag' would be the caption of the folder 'ankle_boot'"),
])  # fmt: skip
def test_files_that_contradict(text: str, match: str, tmp_path: Path):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=match):
        captions_of(tmp_path, NAMES, "here")
    (tmp_path / "classnames.txt").write_text("a")
    with pytest.raises(ValueError, match=r"both classes.txt and classnames.txt"):
        captions_of(tmp_path, NAMES, "here")
