"""Datasets that split files of CoOp describe: the user's own, and a table of public ones.

K. Zhou, J. Yang, C. C. Loy, Z. Liu, Learning to Prompt for Vision-Language Models, IJCV 2022. A
split file, such as split_zhou_OxfordPets.json, is JSON: ``train``, ``val`` and ``test``, each a
list of [relative path, label, class name]. Files come from elsewhere, so nothing in them is
trusted.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from reprlib import repr as brief
from typing import Any, ClassVar, NamedTuple

import numpy as np

from harness.datasets.archives import Archive, drive
from harness.datasets.base import SPLITS, OwnDataset, Split, SplitName, slug
from harness.datasets.images import ImageList, require_inside, shortened
from harness.datasets.rooted import RootedDataset, counted
from zoo.core.files import digest

PICKLES = (".pkl", ".pickle")
LISTED = 6  # folders in a message
PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


class Entry(NamedTuple):
    """One image: where it is below the root, its label and its class."""

    path: PurePosixPath
    label: int
    name: str


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file.

    source: its bytes. classes: names by label, underscores as spaces. listed: what lists an image
    of a split, for messages.
    """

    source: bytes
    entries: Mapping[SplitName, list[Entry]]
    classes: tuple[str, ...]
    listed: Callable[[SplitName], str]

    @property
    def paths(self) -> Iterator[PurePosixPath]:
        """Every image, split by split."""
        return (entry.path for entry in chain.from_iterable(self.entries.values()))

    def images(self, name: SplitName, root: Path, *, prefix: str, dataset: str) -> ImageList:
        """List the images of a split, whose paths are relative to ``root``; see ``ImageList``."""
        entries, listed = self.entries[name], self.listed(name)
        labels = np.array([entry.label for entry in entries], dtype=np.int64)
        paths = [str(entry.path) for entry in entries]
        return ImageList(root=root, paths=paths, labels=labels, prefix=prefix, dataset=dataset, listed=listed)


def read_split_file(file: Path) -> SplitFile:
    """Read and check a split file; whether its images are there isn't looked at.

    Pickles are refused and never loaded.
    """
    what = f"split file {str(file)!r}"
    if file.is_dir():
        raise ValueError(f"{what} is a folder; give the split_zhou_*.json in it")
    if not file.is_file():
        raise FileNotFoundError(f"{what} does not exist")
    content = file.read_bytes()
    if file.suffix.lower() in PICKLES or content.startswith(b"\x80"):  # as binary pickles do
        raise ValueError(
            f"{what} is a pickle, which may run any code when it is loaded; give the "
            "split_zhou_*.json instead: K-shot images are drawn from it here, nested and by seed"
        )
    entries = _entries(_lists(content, what), what)
    by = f"the split file {file.name!r} lists it under"
    return SplitFile(content, entries, _classes(entries, what), lambda split: f"{by} {split}")


def _lists(content: bytes, what: str) -> dict[str, list[Any]]:
    """Decode the JSON down to the three lists."""
    try:
        lists = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(lists, dict) or set(lists) != set(SPLITS):
        got = f"the keys {brief(sorted(lists))}" if isinstance(lists, dict) else type(lists)
        raise ValueError(f"{what}: expected an object of {', '.join(SPLITS)}, got {got}")
    for name, value in lists.items():
        if not isinstance(value, list):
            raise ValueError(f"{what}: {name} must be a list, got {brief(value)}")
    if not lists["test"]:
        raise ValueError(f"{what}: test has no images")
    return lists


def _entries(lists: dict[str, list[Any]], what: str) -> dict[SplitName, list[Entry]]:
    """Check every entry by itself, and that no image is listed twice."""
    splits: dict[PurePosixPath, str] = {}
    entries: dict[SplitName, list[Entry]] = {}
    for split in SPLITS:
        entries[split] = [_entry(e, f"{what}: {split}[{i}]") for i, e in enumerate(lists[split])]
        for path, _, _ in entries[split]:
            if (before := splits.get(path)) is not None:
                where = f"twice in {split}" if before == split else f"in both {before} and {split}"
                raise ValueError(f"{what}: image '{path}' is {where}")
            splits[path] = split
    return entries


def _entry(value: Any, what: str) -> Entry:
    """Check one entry."""
    if not isinstance(value, list) or [*map(type, value)] != [str, int, str]:
        raise ValueError(f"{what} is {brief(value)}; expected [relative path, label, class name]")
    path, label, name = value
    relative, name = PurePosixPath(path), name.replace("_", " ").strip()
    if not relative.parts or not path.isprintable():
        raise ValueError(f"{what}: {path!r} is no path of an image")
    leaves = relative.is_absolute() or ".." in relative.parts
    if leaves or "\\" in path or PureWindowsPath(path).drive:
        raise ValueError(
            f"{what}: path {path!r} may leave the folder of images; expected a relative one with '/' and without '..'"
        )
    if not name or not name.isprintable():
        raise ValueError(f"{what}: class name {name!r} can't be put into a prompt")
    return Entry(relative, label, name)


def _classes(entries: dict[SplitName, list[Entry]], what: str) -> tuple[str, ...]:
    """Return the class names by label."""
    names: dict[int, str] = {}
    for _, label, name in chain.from_iterable(entries.values()):
        if names.setdefault(label, name) != name:
            raise ValueError(f"{what}: label {label} is both {names[label]!r} and {name!r}")
    for expected, label in enumerate(sorted(names)):
        if label != expected:
            raise ValueError(
                f"{what}: labels must be 0 to classes - 1 without gaps; {expected} is missing, and {label} is there"
            )
    labels: dict[str, int] = {}
    for label, name in sorted(names.items()):
        if labels.setdefault(name, label) != label:
            raise ValueError(f"{what}: labels {labels[name]} and {label} are both {name!r}")
    return tuple(labels)


class CoopSplit(OwnDataset):
    """The images that a split file of the user's lists.

    They lie beside the file, or in one folder beside it, which is found by looking. The names of
    everything are made from the file's own name, so they are the same on every machine.
    """

    prefix, what, expected = "coop", "a split file of CoOp", "split_zhou_*.json"
    listed_by_coop = True
    source = "split file of CoOp (Zhou et al., IJCV 2022)"

    def __init__(self, place: Path) -> None:
        self.asked_path = self.file = place.expanduser().absolute()
        where = f"split file {str(self.file)!r}"
        self._split_file = read_split_file(self.file)
        self.classes = self._split_file.classes
        self.root = _root(self.file.parent, self._split_file.entries, where)
        require_inside(self.root, self._split_file.paths, where)
        short = self.file.stem.removeprefix("split_zhou_")
        self.name, self.title = f"coop-{slug(short, where)}", f"{short}, split by CoOp"

    def _revision(self) -> str:
        """First 12 hex digits of the split file's sha256; the images aren't read."""
        return digest(self._split_file.source, length=12)

    def differences(self) -> list[str]:
        """Say which images are missing or empty; none is opened."""
        return [line for name in SPLITS for line in self._images(name).differences()]

    def _images(self, name: SplitName) -> ImageList:
        prefix = f"coop/{self.file.stem}"
        return self._split_file.images(name, self.root, prefix=prefix, dataset=self.name)

    def _split(self, name: SplitName) -> Split:
        return self._images(name).split()


def _root(folder: Path, entries: Mapping[SplitName, list[Entry]], what: str) -> Path:
    """Find the folder that paths are relative to: the file's own or one directly in it."""
    firsts = [some[0].path for some in entries.values() if some]
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    counts = {  # of the first images up to one that is missing
        root: len(list(takewhile(lambda path: (root / path).is_file(), firsts)))  # noqa: B023
        for root in (folder, *inner)
    }
    if counts[folder] == len(firsts):
        return folder
    fitting = [root for root in inner if counts[root] == len(firsts)]
    if len(fitting) > 1:
        names = shortened([root.name for root in fitting], LISTED)
        raise ValueError(f"{what}: the first images are in each of the folders {names}; leave one")
    if not fitting:
        names = shortened([root.name for root in inner], LISTED) or "there is none"
        raise FileNotFoundError(
            f"{what}: image '{firsts[max(counts.values())]}' is neither beside it, in "
            f"{str(folder)!r}, nor in a folder there (tried: {names})"
        )
    return fitting[0]


class ZhouDataset(RootedDataset):
    """A public dataset whose images CoOp's split file lists; labels and class names are its own.

    split_file: name of it. images: the folder that its paths are relative to, in ``folder``.
    """

    listed_by_coop = True
    split_file: ClassVar[str]
    images: ClassVar[str]

    @functools.cached_property
    def _split_file(self) -> SplitFile:
        file = self.place / self.split_file
        content = read_split_file(file)
        require_inside(self.place / self.images, content.paths, f"split file {str(file)!r}")
        return content

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the split file, underscores as spaces, in the order of its labels."""
        return self._split_file.classes

    def _lists(self) -> bytes:
        return hashlib.sha256(self._split_file.source).digest()

    @functools.cache  # noqa: B019  (a dataset lives as long as the process)
    def _images(self, name: SplitName) -> ImageList:
        root = self.place / self.images
        return self._split_file.images(name, root, prefix=self.name, dataset=repr(self.name))


def _split_archive(file: str, number: str) -> Archive:
    """Describe CoOp's split file, which lies on Google Drive; nobody publishes its sum."""
    return Archive(file=file, holds=file, page=PAGE, url=drive(number))


# The table of public datasets: an entry is one class.
# fmt: off


class Caltech101(ZhouDataset):
    """A hundred kinds of objects; CoOp leaves out BACKGROUND_Google and Faces_easy."""

    name, title = "caltech101", "Caltech-101, a hundred kinds of objects"
    license, source = "CC BY 4.0", "Caltech, 2003 (CaltechDATA mzrjq-6wc02)"
    homepage = "https://data.caltech.edu/records/mzrjq-6wc02"
    folder, images, split_file = "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"
    class_count, counts = 100, counted(train=4128, val=1649, test=2465)
    archives = (
        Archive(file="101_ObjectCategories.tar.gz", holds="101_ObjectCategories", page=homepage),
        Archive(file="caltech-101.zip", holds="101_ObjectCategories.tar.gz", page=homepage,
                url=f"{homepage}/files/caltech-101.zip",
                checksums=("md5:3138e1922a9193bfa496528edbbc45d0",), strip="caltech-101"),
        _split_archive(split_file, "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
    )


class DescribableTextures(ZhouDataset):
    """47 words for textures, in CoOp's own split."""

    name, title = "dtd", "Describable Textures Dataset"
    license, source = "research only", "Visual Geometry Group, Oxford, 2014 (r1.0.1)"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    templates = ("{} texture.",)
    folder, images, split_file = "dtd", "images", "split_zhou_DescribableTextures.json"
    class_count, counts = 47, counted(train=2820, val=1128, test=1692)
    archives = (
        Archive(file="dtd-r1.0.1.tar.gz", holds="images", page=homepage,
                url=f"{homepage}download/dtd-r1.0.1.tar.gz",
                checksums=("md5:fff73e5086ae6bdbea199a49dfb8a4c1",), strip="dtd"),
        _split_archive(split_file, "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
    )


class EuroSAT(ZhouDataset):
    """Ten kinds of land use, as Sentinel-2 sees it; CoOp words their names anew."""

    name, title = "eurosat", "EuroSAT, land use from above, RGB"
    license, source = "MIT", "DFKI, 2018"
    homepage = "https://github.com/phelber/EuroSAT"
    templates = ("a centered satellite photo of {}.",)
    folder, images, split_file = "eurosat", "2750", "split_zhou_EuroSAT.json"
    class_count, counts = 10, counted(train=13_500, val=5400, test=8100)
    archives = (
        Archive(file="EuroSAT.zip", holds="2750", page=homepage,
                url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                checksums=("md5:c8fa014336c82ac7804f0398fcb19387",)),
        _split_archive(split_file, "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
    )


class Flowers102(ZhouDataset):
    """102 kinds of flowers, in CoOp's own split."""

    name, title = "flowers102", "Oxford Flowers 102"
    license, source = "none stated", "Visual Geometry Group, Oxford, 2008"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    templates = ("a photo of a {}, a type of flower.",)
    folder, images, split_file = "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"
    class_count, counts = 102, counted(train=4093, val=1633, test=2463)
    archives = (
        Archive(file="102flowers.tgz", holds="jpg", page=homepage, url=f"{homepage}102flowers.tgz",
                checksums=("md5:52808999861908f626f3c1f4e79d11fa",)),
        _split_archive(split_file, "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
    )


class Food101(ZhouDataset):
    """101 dishes; the training images hold some noise by intention."""

    name, title = "food101", "Food-101, dishes"
    license, source = "scientific fair use (images of Foodspotting)", "ETH Zurich, 2014"
    homepage = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    templates = ("a photo of {}, a type of food.",)
    folder, images, split_file = "food-101", "images", "split_zhou_Food101.json"
    class_count, counts = 101, counted(train=50_500, val=20_200, test=30_300)
    archives = (
        Archive(file="food-101.tar.gz", holds="images", page=homepage,
                url="https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                checksums=("md5:85eeb15f3717b99a5da872d97d918f87",), strip="food-101"),
        _split_archive(split_file, "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    )


class OxfordPets(ZhouDataset):
    """37 breeds of cats and dogs."""

    name, title = "oxford-pets", "Oxford-IIIT Pet, breeds of cats and dogs"
    license, source = "CC BY-SA 4.0", "Visual Geometry Group, Oxford, 2012"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    templates = ("a photo of a {}, a type of pet.",)
    folder, images, split_file = "oxford_pets", "images", "split_zhou_OxfordPets.json"
    class_count, counts = 37, counted(train=2944, val=736, test=3669)
    archives = (
        Archive(file="images.tar.gz", holds="images", page=homepage,
                url=f"{homepage}data/images.tar.gz",
                checksums=("md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",)),
        _split_archive(split_file, "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
    )


class StanfordCars(ZhouDataset):
    """196 cars by make, model and year, the year first; the source is no longer online."""

    name, title = "stanford-cars", "Stanford Cars, by make, model and year"
    license, source = "none stated; research only", "Stanford, 2013 (no longer online)"
    homepage = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    folder, images, split_file = "stanford_cars", "", "split_zhou_StanfordCars.json"
    class_count, counts = 196, counted(train=6509, val=1635, test=8041)
    archives = (
        Archive(file="cars_train.tgz", holds="cars_train", page=homepage),
        Archive(file="cars_test.tgz", holds="cars_test", page=homepage),
        _split_archive(split_file, "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
    )


class SUN397(ZhouDataset):
    """397 scenes, in the first of its official partitions."""

    name, title = "sun397", "SUN397, scenes"
    license, source = "none stated; research only", "Princeton, 2010"
    homepage = "https://vision.princeton.edu/projects/2010/SUN/"
    folder, images, split_file = "sun397", "SUN397", "split_zhou_SUN397.json"
    class_count, counts = 397, counted(train=15_880, val=3970, test=19_850)
    archives = (
        Archive(file="SUN397.tar.gz", holds="SUN397", page=homepage, url=f"{homepage}SUN397.tar.gz",
                checksums=("md5:8ca2778205c41d23104230ba66911c7a",)),
        _split_archive(split_file, "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
    )


class UCF101(ZhouDataset):
    """101 actions, in the first official split; frames and words are by CoOp."""

    name, title = "ucf101", "UCF101, actions, middle frames of videos"
    license, source = "none stated", "UCF, 2012; middle frames by CoOp's authors"
    homepage = "https://www.crcv.ucf.edu/data/UCF101.php"
    templates = ("a photo of a person doing {}.",)
    folder, images, split_file = "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"
    class_count, counts = 101, counted(train=7639, val=1898, test=3783)
    archives = (
        Archive(file="UCF-101-midframes.zip", holds="UCF-101-midframes", page=PAGE,
                url=drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O")),
        _split_archive(split_file, "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
    )
# fmt: on


class FGVCAircraft(ZhouDataset):
    """A hundred variants of aircraft; CoOp has no split file of it, the lists are the source's."""

    # fmt: off
    name, title = "fgvc-aircraft", "FGVC-Aircraft, variants"
    license, source = "non-commercial research", "Visual Geometry Group, Oxford, 2013 (2013b)"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    templates = ("a photo of a {}, a type of aircraft.",)
    folder, images = "fgvc_aircraft", "images"
    class_list, image_list = "variants.txt", "images_variant_{}.txt"
    class_count, counts = 100, counted(train=3334, val=3333, test=3333)
    archives = (
        Archive(file="fgvc-aircraft-2013b.tar.gz", holds="images", page=homepage,
                url=f"{homepage}archives/fgvc-aircraft-2013b.tar.gz",
                checksums=("md5:d4acdd33327262359767eeaa97a4f732",),
                strip="fgvc-aircraft-2013b/data"),
    )
    # fmt: on

    @functools.cached_property
    def _split_file(self) -> SplitFile:
        variants = self._lines(self.class_list)
        labels = {name: label for label, name in enumerate(variants)}
        if len(labels) != len(variants):
            raise ValueError(f"list {str(self.place / self.class_list)!r} names a variant twice")
        entries: dict[SplitName, list[Entry]] = {split: [] for split in SPLITS}
        files: dict[str, str] = {}
        for split in SPLITS:
            file = self.image_list.format(split)
            for number, line in enumerate(self._lines(file), start=1):
                image, _, variant = line.partition(" ")
                where = f"list {str(self.place / file)!r}, line {number}"
                if not image.isdecimal() or variant not in labels:
                    raise ValueError(
                        f"{where}: {line!r} isn't the number of an image and a variant of {self.class_list}"
                    )
                if image in files:
                    raise ValueError(f"{where}: image {image} is in {files[image]}, too")
                files[image] = file
                path = PurePosixPath(f"{image}.jpg")
                entries[split].append(Entry(path, labels[variant], variant))
        names = (self.class_list, *map(self.image_list.format, SPLITS))
        source = b"\0".join((self.place / name).read_bytes() for name in names)
        by = self.image_list.format
        return SplitFile(source, entries, tuple(variants), lambda split: f"{by(split)!r} lists it")

    def _lists(self) -> bytes:
        return self._split_file.source

    def _lines(self, file: str) -> list[str]:
        path = self.place / file
        if not path.is_file():
            raise FileNotFoundError(
                f"list {str(path)!r} of {self.name!r} is missing; it is in "
                f"{self.archives[0].file!r}, below {self.archives[0].strip!r}"
            )
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"list {str(path)!r} is no text: {error}") from error
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise ValueError(f"list {str(path)!r} is empty")
        return lines
