"""Any folder of images as a dataset: of class subfolders or without classes, parted here or not.

Files may come from elsewhere, so nothing of them is trusted.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import (
    SPLIT_NAMES,
    SPLITS,
    OwnDataset,
    Split,
    SplitName,
    lines_of,
    require_folder,
    require_unique,
)
from harness.datasets.images import (
    EXTENSIONS,
    KNOWN,
    SKIP_BAD,
    ImageList,
    file_digests,
    folder_images,
    image_files,
    require_inside,
)

PARTS = (60, 20, 20)  # per cent of a class, train, val and test
CAPTION_FILES = ("classes.txt", "classnames.txt")


class FolderDataset(OwnDataset):
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
        lists = {n: self._listed(roots.get(n), names) for n in SPLITS}
        paths = chain.from_iterable(images.paths for images in lists.values())
        require_inside(folder, map(PurePosixPath, paths), where)
        labels = np.concatenate([images.labels for images in lists.values()])
        if missing := sorted(set(range(len(names))) - set(labels.tolist())):
            raise ValueError(
                f"{where}: class folder {names[missing[0]]!r} has no images; remove it, or put images there; {KNOWN}"
            )
        self._lists = self._parted(lists, where)

    def _parted(self, lists: dict[SplitName, ImageList], where: str) -> dict[SplitName, ImageList]:
        """Say which images are in which split."""
        return lists

    def _listed(self, root: Path | None, names: Sequence[str]) -> ImageList:
        """List a split's images, class by class."""
        folders = [(root / name, label) for label, name in enumerate(names) if root and (root / name).is_dir()]
        files = [(path, label) for folder, label in folders for path in image_files(folder)]
        return ImageList(
            root=self.folder,
            paths=[path.relative_to(self.folder).as_posix() for path, _ in files],
            labels=np.array([label for _, label in files], dtype=np.int64),
            known_sizes=np.array([path.stat().st_size for path, _ in files], dtype=np.int64),
            prefix=self.name,
        )

    def _revision(self) -> str:
        """12 hex digits over names, sizes, splits and captions; the files aren't read."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split, images in self._lists.items():
            for facts in zip(images.paths, images.sizes.tolist(), images.labels.tolist(), strict=True):
                digest.update("\0".join(map(str, (split, *facts))).encode(errors="surrogateescape") + b"\n")
        return digest.hexdigest()[:12]

    def _split(self, name: SplitName) -> Split:
        return self._lists[name].split()


class FolderParted(FolderDataset):
    """The images in class folders, parted into 60 % train, 20 % val and 20 % test of each class.

    Where an image goes depends on the hashes of the files of its class and on nothing else, so it
    is the same on every machine; copies of one file go together. Every file is read for it.
    """

    prefix = "folder-parted"
    what = "a folder of class folders, parted here into train, val and test"

    def _parted(self, lists: dict[SplitName, ImageList], where: str) -> dict[SplitName, ImageList]:
        if split_folders(self.folder, where) != {"test": self.folder}:
            raise ValueError(f"{where} has splits of its own; give folder:PATH for these")
        images = lists["test"]
        digests = np.array(file_digests([self.folder / path for path in images.paths]))
        part: dict[str, SplitName] = {}
        for label in range(len(self.classes)):
            new = sorted(set(digests[images.labels == label].tolist()) - part.keys())
            part |= dict(zip(new, _share(len(new)), strict=True))
        parts = np.array([part[digest] for digest in digests.tolist()])
        return {split: images.subset(np.flatnonzero(parts == split)) for split in SPLITS}


class ImageFolder(OwnDataset):
    """All images below a folder, without classes, parted into 60 % train, 20 % val and 20 % test.

    Where an image goes depends on the hash of its file and on nothing else: copies go together, and
    a new image moves no other. Every file is read for it.
    """

    prefix, expected = "images", "folder of images"
    what = "all images below a folder, without classes, parted here into train, val and test"
    source = "a folder of images"
    templates: tuple[str, ...] = ()

    def __init__(self, place: Path) -> None:
        self.asked_path = self.folder = folder = place.expanduser().absolute()
        where = f"folder {str(folder)!r}"
        self._images = folder_images(folder, flag="folder ", way=SKIP_BAD)
        require_inside(folder, self._images.paths, where)
        self.name_after(self._images.name, where)
        self.title = f"Images below the folder {self._images.name}"

    @cached_property
    def _parts(self) -> NDArray[np.int64]:
        """(n,) int64: which split each image is in."""
        digests = file_digests([self.folder / path for path in self._images.paths])
        shares = np.array([int(digest, 16) % 100 for digest in digests])
        return np.searchsorted(np.cumsum(PARTS), shares, side="right")

    def _revision(self) -> str:
        """12 hex digits over names and sizes; the files aren't read."""
        return self._images.revision

    def _split(self, name: SplitName) -> Split:
        return self._images.split.subset(np.flatnonzero(self._parts == SPLITS.index(name)))


def _share(count: int) -> list[SplitName]:
    """Share a class's images out; one goes to test, the second to train."""
    test = max(1, round(count * PARTS[2] / 100)) if count else 0
    val = round(count * PARTS[1] / 100) if count > 3 else max(0, count - 2)
    sizes = (count - val - test, val, test)
    return [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]


def split_folders(folder: Path, where: str) -> dict[SplitName, Path]:
    """Return the folders of splits; the folder itself as test where it has none.

    A folder that is called like a split and has images right in it is a class.
    """
    inner = _folders(folder)
    roots: dict[SplitName, Path] = {}
    for path in inner:
        split = SPLIT_NAMES.get(path.name.lower())
        if split is None or not _folders(path) or _own_images(path):
            continue
        if split in roots:
            raise ValueError(f"{where}: {roots[split].name} and {path.name} would both be the {split} split; leave one")
        roots[split] = path
    for path in inner:
        if roots and path not in roots.values() and image_files(path):
            raise ValueError(
                f"{where}: the images of {path.name!r} are in none of the splits "
                f"{', '.join(split.name for split in roots.values())} beside it; move them away"
            )
    return roots or {"test": folder}


def _class_names(roots: dict[SplitName, Path], where: str) -> list[str]:
    """Return the sorted names of all class folders."""
    for root in roots.values():
        if stray := _own_images(root):
            raise ValueError(
                f"{where}: image {stray[0].name!r} lies beside the class folders of {root.name!r} and so has no class; "
                "put it into one, or away"
            )
    names = sorted({path.name for root in roots.values() for path in _folders(root)})
    if not names:
        raise ValueError(
            f"{where} has no subfolders; expected one for each class, or train, val and test with such; captions may "
            f"be in {CAPTION_FILES[0]}"
        )
    return names


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _own_images(folder: Path) -> list[Path]:
    """List the images right in a folder."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in paths if path.suffix.lower() in EXTENSIONS and path.is_file()]


def captions_of(folder: Path, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the captions of class folders, in their order.

    They are in ``classes.txt`` or ``classnames.txt``, one a line: each after its folder's name, or
    all without and in the order of the sorted folders. Without such a file, names are captions.
    """
    present = [file for file in CAPTION_FILES if (folder / file).is_file()]
    if len(present) > 1:
        raise ValueError(f"{where}: both {' and '.join(present)} are there; leave one")
    if present:
        captions = _match(lines_of(folder / present[0]), names, f"{where}: {present[0]}")
    else:
        captions = [" ".join(re.sub(r"[_-]", " ", name).split()) for name in names]
    require_unique(captions, names, f"{where} (say what folders mean in {CAPTION_FILES[0]})")
    return tuple(captions)


def _match(lines: list[str], names: Sequence[str], where: str) -> list[str]:
    """Match lines with folders."""
    pairs = [_pair(line, set(names)) for line in lines]
    if all(pairs):
        captions: dict[str, str] = {}
        for name, text in filter(None, pairs):
            if name in captions:
                raise ValueError(f"{where}: folder {name!r} is there twice")
            captions[name] = text
        if missing := [name for name in names if name not in captions]:
            raise ValueError(f"{where}: no line for the folder {missing[0]!r}")
        return [captions[name] for name in names]
    if len(lines) != len(names):
        raise ValueError(
            f"{where}: {len(lines)} lines for {len(names)} class folders; expected a line for each, with or without "
            "the folder's name before the caption"
        )
    for number, (line, name) in enumerate(zip(lines, names, strict=True), start=1):
        if line != name and line in names:
            raise ValueError(
                f"{where}, line {number}: {line!r} would be the caption of the folder {name!r}, but another folder has "
                "that name; write lines as 'folder caption'"
            )
    return lines


def _pair(line: str, names: set[str]) -> tuple[str, str] | None:
    """Part a line into a folder's name, the longest that fits, and a caption."""
    for gap in reversed([i for i, letter in enumerate(line) if letter in " \t"]):
        if line[:gap] in names:
            return line[:gap], line[gap:].strip()
    return None
