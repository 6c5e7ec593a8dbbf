"""Images of the user's as a dataset: class folders, a folder without classes, or what a split file of CoOp lists.

Files may come from elsewhere, so nothing of them is trusted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from reprlib import repr as brief
from typing import Any, NamedTuple

import numpy as np

from harness.datasets.base import (
    SPLIT_NAMES,
    SPLITS,
    OwnDataset,
    SplitName,
    lines_of,
    require_folder,
    require_unique,
)
from harness.datasets.images import (
    KNOWN,
    SKIP_BAD,
    ImageList,
    ListedDataset,
    folder_images,
    image_files,
    is_image,
    list_files,
    require_inside,
)
from zoo.core.files import digest

PARTS = (60, 20, 20)  # per cent of a class, train, val and test
CAPTION_FILES = ("classes.txt", "classnames.txt")


class FolderDataset(OwnDataset, ListedDataset):
    """The images in class folders, or in train, val (valid, validation) and test of class folders.

    Classes are the sorted names of the folders, over all splits. Without split folders every image
    is in test. Links may not leave the folder. Names of everything are made from the folder's own
    name, so they are the same on every machine.
    """

    prefix, expected = "folder", "folder of class folders"
    what = f"a {expected}, or of train, val and test with such"
    source = "a folder of class folders"

    def __init__(self, place: Path) -> None:
        self.asked_path = self.folder = folder = place.expanduser().absolute()
        where = f"folder {str(folder)!r}"
        require_folder(folder, where, "the folder of class folders")
        self.name_after(folder.resolve().name, where)
        self.title = f"Images of the folder {folder.resolve().name}"
        roots = split_folders(folder, where)
        names = _class_names(roots, where)
        self.classes = captions_of(folder, names, where)
        lists: dict[SplitName, ImageList] = {}
        for split in SPLITS:
            folders = [(roots[split] / name, label) for label, name in enumerate(names) if split in roots]
            files = [(file, label) for inner, label in folders if inner.is_dir() for file in image_files(inner)]
            lists[split] = list_files(folder, [f for f, _ in files], [label for _, label in files], self.name)
        self._lists = lists
        require_inside(folder, chain.from_iterable(images.paths for images in self._lists.values()), where)
        labels = np.concatenate([images.labels for images in self._lists.values()])
        if missing := sorted(set(range(len(names))) - set(labels.tolist())):
            raise ValueError(
                f"{where}: class folder {names[missing[0]]!r} has no images; remove it, or put some there; {KNOWN}"
            )

    def _revision(self) -> str:
        """12 hex digits over names, sizes, splits and captions; the files aren't read."""
        lines = [
            "\0".join(map(str, (split, *facts))) + "\n"
            for split, images in self._lists.items()
            for facts in zip(images.paths, images.sizes.tolist(), images.labels.tolist(), strict=True)
        ]
        return digest("\0".join(self.classes).encode(), "".join(lines).encode(errors="surrogateescape"), length=12)

    def image_lists(self) -> Mapping[SplitName, ImageList]:
        """Return the images of train, val and test."""
        return self._lists


class FolderParted(FolderDataset):
    """The images in class folders, parted into 60 % train, 20 % val and 20 % test of each class.

    Where an image goes depends on the hashes of the files of its class and on nothing else, so it
    is the same on every machine; copies of one file go together. Every file is read for it.
    """

    prefix = "folder-parted"
    what = "a folder of class folders, parted here into train, val and test"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        where = f"folder {str(self.folder)!r}"
        if split_folders(self.folder, where) != {"test": self.folder}:
            raise ValueError(f"{where} has splits of its own; give folder:PATH for these")
        images = self._lists["test"]
        part: dict[str, SplitName] = {}
        for label in range(len(self.classes)):
            new = sorted(set(images.digests[images.labels == label].tolist()) - part.keys())
            part |= dict(zip(new, _share(len(new)), strict=True))
        parts = np.array([part[one] for one in images.digests.tolist()])
        self._lists = {split: images.subset(parts == split) for split in SPLITS}


def _share(count: int) -> list[SplitName]:
    """Share a class's images out; one goes to test, the second to train."""
    test = max(1, round(count * PARTS[2] / 100)) if count else 0
    val = round(count * PARTS[1] / 100) if count > 3 else max(0, count - 2)
    sizes = (count - val - test, val, test)
    return [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]


class ImageFolder(OwnDataset, ListedDataset):
    """All images below a folder, without classes, parted into 60 % train, 20 % val and 20 % test.

    Where an image goes depends on the hash of its file and on nothing else: copies go together, and
    a new image moves no other. Every file is read for it.
    """

    prefix, expected = "images", "folder of images"
    what = "all images below a folder, without classes, parted here into train, val and test"
    source = "a folder of images"
    templates: tuple[str, ...] = ()

    def __init__(self, place: Path) -> None:
        self.asked_path = folder = place.expanduser().absolute()
        where = f"folder {str(folder)!r}"
        self._images = folder_images(folder, flag="folder ", way=SKIP_BAD)
        require_inside(folder, self._images.paths, where)
        self.name_after(self._images.name, where)
        self.title = f"Images below the folder {self._images.name}"

    @cached_property
    def _lists(self) -> dict[SplitName, ImageList]:
        shares = [int(one, 16) % 100 for one in self._images.digests.tolist()]
        parts = np.searchsorted(np.cumsum(PARTS), shares, side="right")
        return {split: self._images.subset(parts == place) for place, split in enumerate(SPLITS)}

    def image_lists(self) -> Mapping[SplitName, ImageList]:
        """Return the images of train, val and test."""
        return self._lists

    def _revision(self) -> str:
        """12 hex digits over names and sizes; the files aren't read."""
        return self._images.revision


def split_folders(folder: Path, where: str) -> dict[SplitName, Path]:
    """Return the folders of splits; the folder itself as test where it has none.

    A folder that is called like a split and has images right in it is a class.
    """
    roots: dict[SplitName, Path] = {}
    for path in (inner := _folders(folder)):
        split = SPLIT_NAMES.get(path.name.lower())
        if split is None or not _folders(path) or any(map(is_image, path.iterdir())):
            continue
        if split in roots:
            raise ValueError(f"{where}: {roots[split].name} and {path.name} would both be the {split} split; leave one")
        roots[split] = path
    for path in inner:
        if roots and path not in roots.values() and image_files(path):
            raise ValueError(f"{where}: the images of {path.name!r} are in no split; move them away from {list(roots)}")
    return roots or {"test": folder}


def _class_names(roots: dict[SplitName, Path], where: str) -> list[str]:
    """Return the sorted names of all class folders."""
    for root in roots.values():
        if stray := sorted(filter(is_image, root.iterdir())):
            raise ValueError(
                f"{where}: image {stray[0].name!r} lies beside the class folders of {root.name!r}; put it into one"
            )
    names = sorted({path.name for root in roots.values() for path in _folders(root)})
    if not names:
        raise ValueError(f"{where} has no subfolders; expected one for each class, or train, val and test with such")
    return names


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def captions_of(folder: Path, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the captions of class folders, in their order.

    They are in ``classes.txt`` or ``classnames.txt``, one a line: each after its folder's name, or
    all without and in the order of the sorted folders. Without such a file, names are captions.
    """
    captions = [" ".join(re.sub(r"[_-]", " ", name).split()) for name in names]
    present = [file for file in CAPTION_FILES if (folder / file).is_file()]
    if len(present) > 1:
        raise ValueError(f"{where}: both {' and '.join(present)} are there; leave one")
    if present:
        captions = _match(lines_of(folder / present[0]), names, f"{where}: {present[0]}")
    require_unique(captions, names, f"{where} (say what folders mean in {CAPTION_FILES[0]})")
    return tuple(captions)


def _match(lines: list[str], names: Sequence[str], where: str) -> list[str]:
    """Match lines with folders: each begins with a folder's name, the longest that fits, or all are in their order."""
    owners = [max((n for n in names if line.startswith((f"{n} ", f"{n}\t"))), key=len, default="") for line in lines]
    if all(owners):
        for name in names:
            if (count := owners.count(name)) != 1:
                raise ValueError(f"{where}: expected one line for the folder {name!r}, got {count}")
        captions = {owner: line[len(owner) :].strip() for owner, line in zip(owners, lines, strict=True)}
        return [captions[name] for name in names]
    if len(lines) != len(names):
        raise ValueError(f"{where}: {len(lines)} lines for {len(names)} class folders; expected one for each")
    for number, (line, name) in enumerate(zip(lines, names, strict=True), start=1):
        if line != name and line in names:
            raise ValueError(
                f"{where}, line {number}: {line!r} is another folder than {name!r}; write 'folder caption'"
            )
    return lines


class Entry(NamedTuple):
    """One image: where it is below the root, its label and its class."""

    path: str
    label: int
    name: str


@dataclass(frozen=True)
class SplitFile:
    """What lists the images of splits: its bytes, the images, and the class names by label."""

    source: bytes
    entries: dict[SplitName, list[Entry]]
    classes: tuple[str, ...]

    def lists(self, root: Path, prefix: str, what: str) -> dict[SplitName, ImageList]:
        """List the images of each split, whose paths are relative to ``root``; see ``ImageList``."""
        require_inside(root, (entry.path for entries in self.entries.values() for entry in entries), what)
        return {
            split: list_files(root, [one.path for one in entries], [one.label for one in entries], prefix)
            for split, entries in self.entries.items()
        }


def read_split_file(file: Path) -> SplitFile:
    """Read and check a split file, such as split_zhou_OxfordPets.json; whether its images are there isn't looked at.

    It is JSON: ``train``, ``val`` and ``test``, each a list of [relative path, label, class name], in whose names
    underscores are spaces. Pickles are refused and never loaded.
    """
    what = f"split file {str(file)!r}"
    if not file.is_file():
        why = "is a folder; give the split_zhou_*.json in it" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"{what} {why}")
    content = file.read_bytes()
    if file.suffix.lower() in (".pkl", ".pickle") or content.startswith(b"\x80"):  # as binary pickles do
        raise ValueError(f"{what} is a pickle, which may run any code; give the split_zhou_*.json instead")
    try:
        lists = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(lists, dict) or set(lists) != set(SPLITS) or {*map(type, lists.values())} != {list}:
        raise ValueError(f"{what}: expected an object of lists {', '.join(SPLITS)}, got {brief(lists)}")
    if not lists["test"]:
        raise ValueError(f"{what}: test has no images")
    entries = {split: [_entry(e, f"{what}: {split}[{i}]") for i, e in enumerate(lists[split])] for split in SPLITS}
    return SplitFile(content, entries, class_names(entries, what))


def _entry(value: Any, what: str) -> Entry:
    if not isinstance(value, list) or [*map(type, value)] != [str, int, str]:
        raise ValueError(f"{what} is {brief(value)}; expected [relative path, label, class name]")
    path, label, name = value
    relative, outside = PurePosixPath(path), "\\" in path or bool(PureWindowsPath(path).drive)
    if outside or not path.isprintable() or not relative.parts or relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{what}: path {path!r}: expected one below the folder of images, with '/' and without '..'")
    return Entry(str(relative), label, name.replace("_", " ").strip())


def class_names(entries: dict[SplitName, list[Entry]], what: str) -> tuple[str, ...]:
    """Return the class names by label; refuse what contradicts itself."""
    names: dict[int, str] = {}
    splits: dict[str, str] = {}
    for split, (path, label, name) in ((part, entry) for part in SPLITS for entry in entries[part]):
        if names.setdefault(label, name) != name:
            raise ValueError(f"{what}: label {label} is both {names[label]!r} and {name!r}")
        if path in splits:
            raise ValueError(f"{what}: image '{path}' is in {splits[path]} and again in {split}")
        splits[path] = split
    if missing := set(range(len(names))) - set(names):
        raise ValueError(f"{what}: labels must be 0 to classes - 1 without gaps; {min(missing)} is missing")
    classes = tuple(names[label] for label in range(len(names)))
    require_unique(classes, [f"{name} (label {label})" for label, name in enumerate(classes)], what)
    return classes


class CoopSplit(OwnDataset, ListedDataset):
    """The images that a split file of the user's lists (Zhou et al., IJCV 2022).

    They lie beside the file, or in one folder beside it, which is found by looking. The names of
    everything are made from the file's own name, so they are the same on every machine.
    """

    prefix, what, expected = "coop", "a split file of CoOp", "split_zhou_*.json"
    listed_by_coop = True
    source = "split file of CoOp (Zhou et al., IJCV 2022)"

    def __init__(self, place: Path) -> None:
        self.asked_path = self.file = place.expanduser().absolute()
        where = f"split file {str(self.file)!r}"
        self._content = read_split_file(self.file)
        self.classes = self._content.classes
        root = _image_root(self.file.parent, self._content, where)
        self._lists = self._content.lists(root, f"coop/{self.file.stem}", where)
        short = self.file.stem.removeprefix("split_zhou_")
        self.name_after(short, where)
        self.title = f"{short}, split by CoOp"

    def _revision(self) -> str:
        """12 hex digits over the split file; the images aren't read."""
        return digest(self._content.source, length=12)

    def image_lists(self) -> Mapping[SplitName, ImageList]:
        """Return the images of train, val and test."""
        return self._lists


def _image_root(folder: Path, content: SplitFile, what: str) -> Path:
    """Find the folder that paths are relative to: the file's own or one directly in it."""
    firsts = [entries[0].path for entries in content.entries.values() if entries]
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    fitting = [root for root in (folder, *inner) if all((root / path).is_file() for path in firsts)]
    if not fitting or (folder not in fitting and len(fitting) > 1):
        found = f"in each of {brief([root.name for root in fitting])}; leave one" if fitting else "missing"
        raise FileNotFoundError(
            f"{what}: images such as '{firsts[0]}' are {found}; expected all beside it or in one folder"
        )
    return fitting[0]
