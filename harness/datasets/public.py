"""Datasets that papers share: split files of CoOp, and by name those of public.toml, with a function per layout.

Their images lie below a root that the user names, in folders as CoOp's DATASETS.md has them (Zhou et al., IJCV 2022);
docs/datasets.md names the papers. Files come from elsewhere, so nothing of them is trusted.
"""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import NamedTuple, Self

import numpy as np

from harness.base.terminal import Progress
from harness.datasets.archives import Archive, provide
from harness.datasets.base import SPLITS, OwnDataset, SplitName, lines_of, require_folder, require_unique
from harness.datasets.images import ImageList, ListedDataset
from zoo.core.digests import digest
from zoo.core.files import require_file
from zoo.core.json_reader import from_json, strict_json
from zoo.loading.pictures import EXTENSIONS

DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
COOP_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
TRAIN, VAL = "images/train", "images/val"
CARVED = 50  # images of a class
CARVED_SHARE = 5  # one in as many, of classes with few images


Entry = tuple[str, int, str]  # of an image: path below the root, label and class


class Listing(NamedTuple):
    """A dataset's class names by label, images by split, and the bytes that list them."""

    classes: tuple[str, ...]
    images: Mapping[SplitName, ImageList]
    source: bytes = b""


def read_split_file(file: Path) -> tuple[bytes, dict[SplitName, list[Entry]]]:
    """Read a split file, such as split_zhou_OxfordPets.json: its bytes, and the images by split.

    The JSON has ``train``, ``val`` and ``test``, each a list of [relative path, label, class name], in whose names
    underscores are spaces. Pickles are never loaded.
    """
    what = f"split file {str(file)!r}"
    if file.is_dir() or not file.exists():
        reason = "is a folder; give the split_zhou_*.json in it" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"{what} {reason}")
    require_file(file)
    content = file.read_bytes()
    try:
        lists = strict_json(content)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(lists, dict) or set(lists) != set(SPLITS) or {*map(type, lists.values())} != {list}:
        raise ValueError(f"{what}: expected an object of lists {', '.join(SPLITS)}, got {brief(lists)}")
    if not lists["test"]:
        raise ValueError(f"{what}: test has no images")
    entries: dict[SplitName, list[Entry]] = {split: [] for split in SPLITS}
    for split, listed in entries.items():
        for index, value in enumerate(lists[split]):
            if not isinstance(value, list) or [*map(type, value)] != [str, int, str]:
                wanted = "expected [relative path, label, class name]"
                raise ValueError(f"{what}: {split}[{index}] is {brief(value)}; {wanted}")
            path, label, name = value
            listed.append((str(PurePosixPath(path)), label, name.replace("_", " ").strip()))
    return content, entries


def list_entries(entries: Mapping[SplitName, list[Entry]], root: Path, prefix: str, what: str) -> Listing:
    """List images below ``root``; refuse entries that contradict each other or leave it."""
    names: dict[int, str] = {}
    splits: dict[str, str] = {}
    for split, (path, label, name) in ((part, entry) for part in SPLITS for entry in entries[part]):
        if names.setdefault(label, name) != name:
            raise ValueError(f"{what}: label {label} is both {names[label]!r} and {name!r}")
        if path in splits:
            raise ValueError(f"{what}: image '{path}' is in {splits[path]} and again in {split}")
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{what}: image '{path}' leaves {str(root)!r}; put it there")
        splits[path] = split
    if missing := set(range(len(names))) - set(names):
        raise ValueError(f"{what}: labels must be 0 to classes - 1 without gaps; {min(missing)} is missing")
    classes = tuple(names[label] for label in range(len(names)))
    require_unique(classes, [f"{name} (label {label})" for label, name in enumerate(classes)], what)
    images = {split: ImageList.of(root, [entry[:2] for entry in listed], prefix) for split, listed in entries.items()}
    return Listing(classes, images)


@dataclass(eq=False, kw_only=True)
class RootedDataset(ListedDataset):
    """A public dataset in a folder below a root; without ``at`` no file is read, so that there are no classes."""

    name: str
    title: str
    license: str
    homepage: str  # and page of archives that have no other
    folder: str  # below the root
    images: str  # folder of the images in ``folder``; held by archives that hold nothing else
    archives: tuple[Archive, ...]
    layout: str = "split file"  # of LAYOUTS
    list_file: str = ""  # split file of CoOp
    synsets: str = "imagenet"  # its classes among ImageNet's, see ``synsets_of``
    numbered: bool = False  # whether class folders are called by label
    class_count: int  # of the whole dataset
    counts: Mapping[SplitName, int]  # images of the whole dataset, 0 where it has no such split
    templates: tuple[str, ...] = ("a photo of a {}.",)
    root: Path | None = None

    def __post_init__(self) -> None:
        self.templates = tuple(self.templates)
        self.listed_by_coop = self.layout in ("split file", "aircraft")
        archives = []
        for archive in self.archives:
            holds = archive.holds or (self.images if archive.packed else archive.file)
            archives.append(replace(archive, page=archive.page or self.homepage, holds=holds))
        self.archives = tuple(archives)

    def at(self, root: Path, *, download: bool = False, progress: Progress | None = None) -> Self:
        """Return the dataset as it lies below a root, see ``provide``; an OSError or ValueError if that can't be."""
        whole = root.expanduser().absolute()
        if whole.exists() or not download:
            require_folder(whole, f"--root {str(root)!r}", f"the folder that holds {self.folder!r}")
        provide(self.name, whole / self.folder, self.archives, download=download, progress=progress or Progress())
        return replace(self, root=whole)

    @property
    def place(self) -> Path:
        """The folder of the dataset; without a root a FileNotFoundError."""
        if self.root is None:
            raise FileNotFoundError(
                f"dataset {self.name!r} isn't shipped here; say where it lies: --root FOLDER, that holds "
                f"{self.folder!r} (docs/datasets.md)"
            )
        return self.root / self.folder

    @cached_property
    def _listing(self) -> Listing:
        return LAYOUTS[self.layout](self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label, as CoOp and CLIP have them."""
        return self._listing.classes

    @property
    def image_lists(self) -> Mapping[SplitName, ImageList]:
        """The images of train, val and test."""
        return self._listing.images

    def _revision(self) -> str:
        """12 hex digits over the source of the list, and the names and sizes of images."""
        return digest(self._listing.source, *(self.image_lists[split].facts for split in SPLITS), length=12)

    def problems(self) -> list[str]:
        """List how the data differs from the whole dataset; no image is opened."""
        counts = {"classes": (len(self.classes), self.class_count)}
        counts |= {f"{name} images": (len(self.labels(name)), self.counts[name]) for name in SPLITS}
        lines = [f"{what}: {count:,} instead of {whole:,}" for what, (count, whole) in counts.items() if count != whole]
        return lines + self.differences()


def by_split_file(dataset: RootedDataset) -> Listing:
    """List the images that a split file of CoOp names."""
    file = dataset.place / dataset.list_file
    source, entries = read_split_file(file)
    listing = list_entries(entries, dataset.place / dataset.images, dataset.name, f"split file {str(file)!r}")
    return listing._replace(source=sha256(source).digest())


def as_aircraft(dataset: RootedDataset) -> Listing:
    """List what the source's own lists name: the number of an image and a variant a line."""
    paths = [dataset.place / f"{name}.txt" for name in ("variants", *(f"images_variant_{split}" for split in SPLITS))]
    labels = {variant: label for label, variant in enumerate(lines_of(paths[0]))}
    entries: dict[SplitName, list[Entry]] = {split: [] for split in SPLITS}
    for listed, path in zip(entries.values(), paths[1:], strict=True):
        for number, line in enumerate(lines_of(path), start=1):
            image, _, variant = line.partition(" ")
            if variant not in labels:
                raise ValueError(f"list {str(path)!r}, line {number}: {line!r}: expected an image and a variant")
            listed.append((f"{image}.jpg", labels[variant], variant))
    what = f"lists of {dataset.name!r} in {str(dataset.place)!r}"
    listing = list_entries(entries, dataset.place / dataset.images, dataset.name, what)
    return listing._replace(source=b"\0".join(path.read_bytes() for path in paths))


def synsets_of(subset: str) -> tuple[str, ...]:
    """Return the WordNet numbers of "imagenet", "imagenet_a" or "imagenet_r", as timm has them."""
    return tuple(files("timm.data").joinpath("_info", f"{subset}_synsets.txt").read_text().split())


def captions_of(synsets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that CLIP chose for classes of ImageNet; "missile" and "sunglasses" stand for two each."""
    from open_clip import IMAGENET_CLASSNAMES

    names = dict(zip(synsets_of("imagenet"), IMAGENET_CLASSNAMES, strict=True))
    return tuple(names[synset] for synset in synsets)


def by_class_folder(dataset: RootedDataset) -> Listing:
    """List images to test by, in a folder per class, which is called by its WordNet number or by its label."""
    synsets = synsets_of(dataset.synsets)
    folders = tuple(map(str, range(len(synsets)))) if dataset.numbered else synsets
    tested = _class_images(dataset, dataset.images, folders)
    none = tested.subset(np.zeros(len(tested.labels), dtype=np.bool_))
    return Listing(captions_of(synsets), {"train": none, "val": none, "test": tested})


def _class_images(dataset: RootedDataset, images: str, folders: tuple[str, ...]) -> ImageList:
    """List the images of class folders, class by class; other folders are left out."""
    root = dataset.place / images
    present = [_image_names(f"{root}/{folder}") for folder in folders]
    return ImageList(
        root=root,
        paths=[f"{folder}/{name}" for folder, names in zip(folders, present, strict=True) for name in names],
        labels=np.repeat(np.arange(len(present)), [len(names) for names in present]),
        prefix=f"{dataset.name}/{images}",
    )


def _image_names(folder: str) -> list[str]:
    """List the images of a folder, sorted; none where there is no folder."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # of a million files: without a Path for each
        images = (entry for entry in entries if entry.name[0] != "." and entry.name.lower().endswith((*EXTENSIONS,)))
        return sorted(entry.name for entry in images if entry.is_file())
    return []


def as_imagenet(dataset: RootedDataset) -> Listing:
    """List ImageNet: test is the official validation set, as in CoOp; val is carved out of the training images.

    CoOp chooses by the test images. Here, of each class the 50 training images whose names have the smallest sha256
    make val (a fifth, where a class has fewer than 250), and the others train.
    """
    synsets = synsets_of("imagenet")
    test, whole = (_class_images(dataset, folder, synsets) for folder in (VAL, TRAIN))
    hashes = b"".join(sha256(path.rpartition("/")[2].encode()).digest()[:8] for path in whole.paths)
    order = np.frombuffer(hashes, dtype=">u8")
    carved = np.zeros(len(order), dtype=np.bool_)
    starts = np.searchsorted(whole.labels, np.arange(len(synsets) + 1))
    for start, end in pairwise(starts.tolist()):
        most = min(CARVED, (end - start) // CARVED_SHARE)
        carved[start + np.argsort(order[start:end], kind="stable")[:most]] = True
    images: dict[SplitName, ImageList] = {"train": whole.subset(~carved), "val": whole.subset(carved), "test": test}
    return Listing(captions_of(synsets), images)


LAYOUTS: Mapping[str, Callable[[RootedDataset], Listing]] = {
    "split file": by_split_file, "aircraft": as_aircraft, "class folders": by_class_folder, "imagenet": as_imagenet,
}  # fmt: skip


def _read_table() -> Iterator[RootedDataset]:
    """Make the datasets of public.toml."""
    table = tomllib.loads(Path(__file__).with_name("public.toml").read_text("utf-8"))
    for name, fields in table.items():
        archives = from_json(tuple[Archive, ...], fields.pop("archives"), f"archives of {name}")
        if key := fields.pop("list_key", ""):
            file = fields["list_file"]
            archives += (Archive(file, DRIVE.format(key), holds=file, page=COOP_PAGE),)
        yield RootedDataset(name=name, archives=archives, **fields)


DATASETS = tuple(_read_table())


class CoopSplit(OwnDataset, ListedDataset):
    """The images in a split file of the user's (Zhou et al., IJCV 2022): beside the file, or in one folder there.

    All names begin with the file's own, so that they are the same on every machine.
    """

    prefix, what, expected = "coop", "a split file of CoOp", "split_zhou_*.json"
    listed_by_coop = True

    def __init__(self, place: Path) -> None:
        self.asked_path = file = place.expanduser().absolute()
        where, short = f"split file {str(file)!r}", file.stem.removeprefix("split_zhou_")
        self._content, entries = read_split_file(file)
        root = _image_root(file.parent, [listed[0][0] for listed in entries.values() if listed], where)
        self.classes, self._lists, _ = list_entries(entries, root, f"coop/{file.stem}", where)
        self.name_after(short, where)
        self.title = f"{short}, split by CoOp"

    def _revision(self) -> str:
        """12 hex digits over the split file; the images aren't read."""
        return digest(self._content, length=12)


def _image_root(folder: Path, firsts: Sequence[str], what: str) -> Path:
    """Find the folder that paths are relative to: the file's own or one directly in it."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    fitting = [root for root in (folder, *inner) if all((root / path).is_file() for path in firsts)]
    if not fitting or (folder not in fitting and len(fitting) > 1):
        state = f"in each of {[root.name for root in fitting]}; leave one" if fitting else "missing"
        raise FileNotFoundError(
            f"{what}: images such as {firsts[0]!r} are {state}; expected all beside it or in one folder"
        )
    return fitting[0]
