"""Images of the user's as a dataset: class folders, or a folder without classes.

Files may come from elsewhere, so nothing of them is trusted.
"""

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from harness.datasets.base import (
    SPLIT_NAMES,
    SPLITS,
    OwnDataset,
    SplitName,
    lines_of,
    require_unique,
)
from harness.datasets.images import (
    KNOWN,
    SKIP_BAD,
    ImageList,
    ListedDataset,
    find_images,
    folder_images,
    is_image,
    require_inside,
    tell_unread,
)
from zoo.core.files import digest

PARTS = (60, 20, 20)  # per cent of a class, train, val and test
CAPTIONS = "classes.txt"  # what class folders mean


class FolderDataset(OwnDataset, ListedDataset):
    """The images in class folders, or in train, val (valid, validation) and test of class folders.

    Classes are the sorted names of the folders, over all splits. Without split folders every image
    is in test. Links may not leave the folder. Names of everything are made from the folder's own
    name, so they are the same on every machine.
    """

    prefix, expected = "folder", "folder of class folders"
    what = f"a {expected}, or of train, val and test with such"

    def __init__(self, place: Path) -> None:
        folder, where = self.take_folder(place, "folder", "Images of the folder")
        roots = split_folders(folder, where)
        names = _class_names(roots, where)
        self.classes = captions_of(folder, names, where)
        lists: dict[SplitName, ImageList] = {}
        for split in SPLITS:
            folders = [(roots[split] / name, label) for label, name in enumerate(names) if split in roots]
            found = [(file, label) for inner, label in folders if inner.is_dir() for file in find_images(inner)]
            files = [(file, label) for file, label in found if not file.wrong]
            paths = [file.path.relative_to(folder).as_posix() for file, _ in files]
            labels = np.array([label for _, label in files], dtype=np.int64)
            lists[split] = ImageList(root=folder, paths=paths, labels=labels, prefix=self.name)
            self.notes += tell_unread((file for file, _ in found), folder, where)
        self._lists = lists
        require_inside(folder, chain.from_iterable(images.paths for images in self._lists.values()), where)
        used = {label for images in self._lists.values() for label in images.labels.tolist()}
        if missing := sorted(set(range(len(names))) - used):
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


class FolderParted(FolderDataset):
    """The images in class folders, split into 60 % train, 20 % val and 20 % test of each class.

    Where an image goes depends on the hashes of the files of its class and on nothing else, so it
    is the same on every machine; copies of one file go together. Every file is read for it.
    """

    prefix = "folder-parted"
    what = "a folder of class folders, split here into train, val and test"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        images = self._lists["test"]
        if split_folders(images.root, "") != {"test": images.root}:
            raise ValueError(f"folder {str(images.root)!r} has splits of its own; give folder:PATH for these")
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
    """All images below a folder, without classes, split into 60 % train, 20 % val and 20 % test.

    Where an image goes depends on the hash of its file and on nothing else: copies go together, and
    a new image moves no other. Every file is read for it.
    """

    prefix, expected = "images", "folder of images"
    what = "all images below a folder, without classes, split here into train, val and test"
    templates: tuple[str, ...] = ()

    def __init__(self, place: Path) -> None:
        folder, where = self.take_folder(place, "folder", "Images below the folder")
        self._images = folder_images(folder, flag="folder ", way=SKIP_BAD)
        self.notes = self._images.notes
        require_inside(folder, self._images.paths, where)
        shares = [int(one, 16) % 100 for one in self._images.digests.tolist()]
        parts = np.searchsorted(np.cumsum(PARTS), shares, side="right")
        self._lists = {split: self._images.subset(parts == place) for place, split in enumerate(SPLITS)}

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
        if roots and path not in roots.values() and any(not file.wrong for file in find_images(path)):
            raise ValueError(
                f"{where}: the images of {path.name!r} are in none of the splits {', '.join(roots)} beside it; "
                "move them away"
            )
    return roots or {"test": folder}


def _class_names(roots: dict[SplitName, Path], where: str) -> list[str]:
    """Return the sorted names of all class folders."""
    names = sorted({path.name for root in roots.values() for path in _folders(root)})
    if not names:
        raise ValueError(
            f"{where} has no subfolders; expected one for each class, or train, val and test with such; "
            f"for images without classes give {ImageFolder.prefix}:{next(iter(roots.values()))}"
        )
    for root in roots.values():
        if stray := sorted(filter(is_image, root.iterdir())):
            raise ValueError(
                f"{where}: image {stray[0].name!r} lies beside the class folders of {root.name!r}; put it into one, "
                f"or give {ImageFolder.prefix}:PATH for all images without classes"
            )
    return names


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def captions_of(folder: Path, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the captions of class folders, in their order: their names, or what ``classes.txt`` says.

    Each of its lines is a folder's name, a space or tab, and the caption.
    """
    captions = [" ".join(re.sub(r"[_-]", " ", name).split()) for name in names]
    if (folder / CAPTIONS).exists():
        where = f"{where}: {CAPTIONS}"
        found: dict[str, str] = {}
        for line in lines_of(folder / CAPTIONS):
            owner = max((n for n in names if line.startswith((f"{n} ", f"{n}\t"))), key=len, default="")
            if not owner or owner in found:
                raise ValueError(f"{where}: {line!r}: expected one line for each class folder, its name and a caption")
            found[owner] = line[len(owner) :].strip()
        if lacking := [name for name in names if name not in found]:
            raise ValueError(f"{where}: no line for the class folder {lacking[0]!r}")
        captions = [found[name] for name in names]
    require_unique(captions, names, f"{where} (say what folders mean in {CAPTIONS})")
    return tuple(captions)
