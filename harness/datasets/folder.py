"""Any folder of class subfolders as a dataset, with splits of its own, parted here, or test only.

Files may come from elsewhere, so nothing of them is trusted.
"""

import hashlib
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from harness.datasets.base import SPLITS, OwnDataset, Rendered, Split, SplitName
from harness.datasets.captions import FILES, captions_of, slug
from harness.datasets.images import (
    EXTENSIONS,
    file_digests,
    image_files,
    read_image,
    require_inside,
)

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
PARTS = (60, 20, 20)  # per cent of a class, train, val and test


class Entry(NamedTuple):
    """One image: its file, the same below the root, its bytes and its label."""

    path: Path
    relative: PurePosixPath
    size: int
    label: int


class FolderDataset(OwnDataset):
    """The images in class folders, or in train, val (valid, validation) and test of class folders.

    Classes are the sorted names of the folders, over all splits. Without split folders every image
    is in test. Links may not leave the folder. Names of everything are made from the folder's own
    name, so they are the same on every machine.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: it is a file.
        ValueError: no class folders, one without images, images outside of them, or captions that
            contradict each other.
    """

    source = "a folder of class folders"
    prefix = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.what = f"folder {str(self.folder)!r}"
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.what} does not exist")
        if not self.folder.is_dir():
            raise NotADirectoryError(f"{self.what} is a file; give the folder of class folders")
        word = slug(self.folder.resolve().name, self.what)
        self.name = f"{self.prefix}-{word}"
        self.title = f"Images of the folder {self.folder.resolve().name}"
        roots = split_folders(self.folder, self.what)
        names = _class_names(roots, self.what)
        self._classes = captions_of(self.folder, names, self.what)
        entries = {split: self._listed(root, names) for split, root in roots.items()}
        every = list(chain.from_iterable(entries.values()))
        require_inside(self.folder, (entry.relative for entry in every), self.what)
        counts = np.bincount([entry.label for entry in every], minlength=len(names))
        if (empty := np.flatnonzero(counts == 0)).size:
            raise ValueError(
                f"{self.what}: class folder {names[empty[0]]!r} has no images; remove it, or put "
                f"images there; known extensions are {', '.join(sorted(EXTENSIONS))}"
            )
        self._entries = self._parted(entries, len(names))
        self._digest = self._hashed()

    def _parted(
        self, entries: dict[SplitName, list[Entry]], classes: int
    ) -> dict[SplitName, list[Entry]]:
        """Say which images are in which split."""
        return {split: entries.get(split, []) for split in SPLITS}

    def _listed(self, root: Path, names: list[str]) -> list[Entry]:
        """Find a split's images, class by class."""
        entries = []
        for label, name in enumerate(names):
            for path in image_files(root / name) if (root / name).is_dir() else ():
                relative = PurePosixPath(path.relative_to(self.folder).as_posix())
                entries.append(Entry(path, relative, path.stat().st_size, label))
        return entries

    def _hashed(self) -> str:
        """Hash names, sizes, splits and captions; the files aren't read."""
        digest = hashlib.sha256("\0".join(self._classes).encode())
        for split, entries in self._entries.items():
            for entry in entries:
                line = f"{split}\0{entry.relative}\0{entry.size}\0{entry.label}\n"
                digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()[:12]

    def _revision(self) -> str:
        """12 hex digits over names, sizes, splits and captions."""
        return self._digest

    @property
    def asked_as(self) -> str:
        """The prefix and the path of the folder."""
        return f"{self.prefix}:{self.folder}"

    def _split(self, name: SplitName) -> Split:
        entries = self._entries[name]
        labels = np.array([entry.label for entry in entries], dtype=np.int64)

        def image_id(index: int) -> str:
            return f"{self.name}/{entries[index].relative}"

        def render(index: int, _variant: int) -> Rendered:
            path = entries[index].path
            if not path.is_file():
                raise FileNotFoundError(f"image {str(path)!r} of {self.name} has gone meanwhile")
            return read_image(path), None

        return Split(labels, image_id, render)


class FolderParted(FolderDataset):
    """The images in class folders, parted into 60 % train, 20 % val and 20 % test of each class.

    Where an image goes depends on the hashes of the files of its class and on nothing else, so it
    is the same on every machine; copies of one file go together. Every file is read for it.
    """

    prefix = "folder-parted"

    def _parted(
        self, entries: dict[SplitName, list[Entry]], classes: int
    ) -> dict[SplitName, list[Entry]]:
        if split_folders(self.folder, self.what) != {"test": self.folder}:
            raise ValueError(f"{self.what} has splits of its own; give folder:PATH for these")
        images = entries["test"]
        digests = file_digests([entry.path for entry in images])
        part: dict[str, SplitName] = {}
        for label in range(classes):
            own = {d for d, entry in zip(digests, images, strict=True) if entry.label == label}
            new = sorted(own - part.keys())
            part |= dict(zip(new, _parts(len(new)), strict=True))
        pairs = list(zip(digests, images, strict=True))
        return {split: [e for digest, e in pairs if part[digest] == split] for split in SPLITS}


def _parts(count: int) -> list[SplitName]:
    """Share a class's images out; one goes to test, the second to train."""
    test = max(1, round(count * PARTS[2] / 100)) if count else 0
    val = round(count * PARTS[1] / 100) if count > 3 else max(0, count - 2)
    sizes = (count - val - test, val, test)
    return [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]


def split_folders(folder: Path, what: str) -> dict[SplitName, Path]:
    """Return the folders of splits; the folder itself as test where it has none.

    A folder that is called like a split and has images right in it is a class.

    Raises:
        ValueError: two folders of one split, or class folders beside them.
    """
    inner = _folders(folder)
    roots: dict[SplitName, Path] = {}
    for path in inner:
        split = SPLIT_FOLDERS.get(path.name.lower())
        if split is None or not _folders(path) or _own_images(path):
            continue
        if split in roots:
            raise ValueError(
                f"{what}: {roots[split].name} and {path.name} would both be the {split} split; "
                "leave one"
            )
        roots[split] = path
    if not roots:
        return {"test": folder}
    for path in inner:
        if path not in roots.values() and image_files(path):
            raise ValueError(
                f"{what}: the images of {path.name!r} are in none of the splits "
                f"{', '.join(split.name for split in roots.values())} beside it; move them away"
            )
    return roots


def _class_names(roots: dict[SplitName, Path], what: str) -> list[str]:
    """Return the sorted names of all class folders."""
    names = sorted({path.name for root in roots.values() for path in _folders(root)})
    for root in roots.values():
        if stray := _own_images(root):
            raise ValueError(
                f"{what}: image {stray[0].name!r} lies beside the class folders of {root.name!r} "
                "and so has no class; put it into one, or away"
            )
    if not names:
        raise ValueError(
            f"{what} has no subfolders; expected one for each class, or train, val and test with "
            f"such; captions may be in {FILES[0]}"
        )
    return names


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _own_images(folder: Path) -> list[Path]:
    """List the images right in a folder."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
