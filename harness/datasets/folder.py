"""Images of the user's as a dataset: class folders, or a folder without classes; none of the files is trusted."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.datasets.base import SPLITS, OwnDataset, SplitName, lines_of, match_splits, require_unique
from harness.datasets.images import KNOWN, ImageList, ListedDataset, find_images, folder_images, tell_unread
from zoo.core.digests import digest

PARTS = (60, 20, 20)  # per cent of a class, train, val and test
CAPTIONS = "classes.txt"  # captions of class folders


class FolderDataset(OwnDataset, ListedDataset):
    """The images in class folders, or in train, val (valid, validation) and test of class folders.

    Classes are the sorted names of the folders, over all splits. Without split folders every image is in test. All
    names begin with the folder's own, so that they are the same on every machine.
    """

    prefix, expected = "folder", "folder of class folders"
    what = f"a {expected}, or of train, val and test with such"

    def __init__(self, place: Path) -> None:
        folder, where = self.take_folder(place, "folder", "Images of the folder")
        files = find_images(folder)
        self.notes = tell_unread(files, folder, where)
        images = [file.path.relative_to(folder) for file in files if not file.wrong]
        roots = _split_folders(folder, images, where)
        names = sorted({path.name for root in roots for path in _folders(folder / root)})
        if not names:
            raise ValueError(
                f"{where} has no subfolders; expected one for each class, or train, val and test with such; "
                f"for images without classes give images:{folder}"
            )
        self.classes = captions_of(folder, names, where)
        label_of, depth = {name: label for label, name in enumerate(names)}, 0 if "" in roots else 1
        listed: dict[SplitName, list[tuple[str, int]]] = {split: [] for split in SPLITS}
        for image in images:
            root = image.parts[0] if depth else ""
            if root not in roots or len(image.parts) < depth + 2:
                lies = f"{where}: image '{image}' lies in no class folder{' of a split' if depth else ''}"
                raise ValueError(f"{lies}; put it into one, or give images:PATH for all images without classes")
            listed[roots[root]].append((image.as_posix(), label_of[image.parts[depth]]))
        self._lists = {split: ImageList.of(folder, images, prefix=self.name) for split, images in listed.items()}
        if empty := set(range(len(names))) - {label for images in listed.values() for _, label in images}:
            name = names[min(empty)]
            raise ValueError(f"{where}: class folder {name!r} has no images; remove it, or put some there; {KNOWN}")

    def _revision(self) -> str:
        """12 hex digits over names, sizes, splits and captions; the files aren't read."""
        lines = [
            "\0".join(map(str, (split, *entry))) + "\n"
            for split, images in self._lists.items()
            for entry in zip(images.paths, images.sizes.tolist(), images.labels.tolist(), strict=True)
        ]
        return digest("\0".join(self.classes).encode(), "".join(lines).encode(errors="surrogateescape"), length=12)


class FolderParted(FolderDataset):
    """The images in class folders, split into 60 % train, 20 % val and 20 % test of each class.

    An image's split depends on the hashes of the files of its class alone, so that it is the same on every machine;
    copies of one file go together. Every file is read.
    """

    prefix = "folder-parted"
    what = "a folder of class folders, split here into train, val and test"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        if len(self.labels("train")) or len(self.labels("val")):
            raise ValueError(f"{self.asked_as} has splits of its own; give folder:PATH for these")
        images = self._lists["test"]
        part: dict[str, SplitName] = {}
        for label in range(len(self.classes)):
            new = sorted(set(images.digests[images.labels == label].tolist()) - part.keys())
            part |= dict(zip(new, _share(len(new)), strict=True))
        parts = np.array([part[digest] for digest in images.digests.tolist()])
        self._lists = {split: images.subset(parts == split) for split in SPLITS}


def _share(count: int) -> list[SplitName]:
    """Share a class's images out; one goes to test, the second to train."""
    test = max(1, round(count * PARTS[2] / 100)) if count else 0
    val = round(count * PARTS[1] / 100) if count > 3 else max(0, count - 2)
    sizes = (count - val - test, val, test)
    return [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]


class ImageFolder(OwnDataset, ListedDataset):
    """All images below a folder, without classes, split into 60 % train, 20 % val and 20 % test.

    An image's split depends on the hash of its file alone: copies go together, and a new image moves no other. Every
    file is read.
    """

    prefix, expected = "images", "folder of images"
    what = "all images below a folder, without classes, split here into train, val and test"
    templates: tuple[str, ...] = ()

    def __init__(self, place: Path) -> None:
        folder, _ = self.take_folder(place, "folder", "Images below the folder")
        self._images = folder_images(folder, flag="folder ")
        self.notes = self._images.notes
        shares = [int(digest, 16) % 100 for digest in self._images.digests.tolist()]
        parts = np.searchsorted(np.cumsum(PARTS), shares, side="right")
        self._lists = {split: self._images.subset(parts == place) for place, split in enumerate(SPLITS)}

    def _revision(self) -> str:
        """12 hex digits over names and sizes; the files aren't read."""
        return self._images.revision


def _split_folders(folder: Path, images: Sequence[Path], where: str) -> dict[str, SplitName]:
    """Map the folders of splits to these; without any, "" to test.

    A folder called like a split that has images directly in it is a class.
    """
    classes = {image.parts[0] for image in images if len(image.parts) == 2}
    names = (path.name for path in _folders(folder) if path.name not in classes and _folders(path))
    return {name: split for split, name in match_splits(names, where).items()} or {"": "test"}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def captions_of(folder: Path, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the captions of class folders, in their order: their names, or the captions of ``classes.txt``.

    A line of the file is a folder's name, a space or tab, and the caption.
    """
    captions = [" ".join(re.sub(r"[_-]", " ", name).split()) for name in names]
    if (folder / CAPTIONS).exists():
        by_name: dict[str, str] = {}
        for line in lines_of(folder / CAPTIONS):
            owner = max((n for n in names if line.startswith((f"{n} ", f"{n}\t"))), key=len, default="")
            if not owner or owner in by_name:
                wanted = "expected one line for each class folder, its name and a caption"
                raise ValueError(f"{where}: {CAPTIONS}: {line!r}: {wanted}")
            by_name[owner] = line[len(owner) :].strip()
        if lacking := [name for name in names if name not in by_name]:
            raise ValueError(f"{where}: {CAPTIONS}: no line for the class folder {lacking[0]!r}")
        captions = [by_name[name] for name in names]
    require_unique(captions, names, f"{where} (say what folders mean in {CAPTIONS})")
    return tuple(captions)
