"""Datasets that split files of CoOp describe: the user's own, and a table of public ones.

K. Zhou, J. Yang, C. C. Loy, Z. Liu, Learning to Prompt for Vision-Language Models, IJCV 2022. A
split file, such as split_zhou_OxfordPets.json, is JSON: ``train``, ``val`` and ``test``, each a
list of [relative path, label, class name]. Files come from elsewhere, so nothing in them is
trusted.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from reprlib import repr as brief
from typing import Any, NamedTuple

import numpy as np

from harness.datasets.archives import Archive, drive
from harness.datasets.base import SPLITS, OwnDataset, Split, SplitName, lines_of, require_unique
from harness.datasets.images import ImageList, require_inside
from harness.datasets.rooted import RootedDataset, counted
from zoo.core.files import digest

PICKLES = (".pkl", ".pickle")
PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


class Entry(NamedTuple):
    """One image: where it is below the root, its label and its class."""

    path: PurePosixPath
    label: int
    name: str


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file: its bytes, images, and class names by label, underscores as spaces."""

    source: bytes
    entries: Mapping[SplitName, list[Entry]]
    classes: tuple[str, ...]

    @property
    def paths(self) -> Iterator[PurePosixPath]:
        """Every image, split by split."""
        return (entry.path for entry in chain.from_iterable(self.entries.values()))

    def images(self, name: SplitName, root: Path, prefix: str) -> ImageList:
        """List the images of a split, whose paths are relative to ``root``; see ``ImageList``."""
        labels = np.array([entry.label for entry in self.entries[name]], dtype=np.int64)
        return ImageList(root=root, paths=[str(e.path) for e in self.entries[name]], labels=labels, prefix=prefix)


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
            f"{what} is a pickle, which may run any code when it is loaded; give the split_zhou_*.json instead: K-shot "
            "images are drawn from it here, nested and by seed"
        )
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
    entries = {s: [_entry(e, f"{what}: {s}[{i}]") for i, e in enumerate(lists[s])] for s in SPLITS}
    return SplitFile(content, entries, _classes(entries, what))


def _entry(value: Any, what: str) -> Entry:
    """Check one entry."""
    if not isinstance(value, list) or [*map(type, value)] != [str, int, str]:
        raise ValueError(f"{what} is {brief(value)}; expected [relative path, label, class name]")
    path, label, name = value
    relative = PurePosixPath(path)
    if not relative.parts or not path.isprintable():
        raise ValueError(f"{what}: {path!r} is no path of an image")
    if relative.is_absolute() or ".." in relative.parts or "\\" in path or PureWindowsPath(path).drive:
        raise ValueError(
            f"{what}: path {path!r} may leave the folder of images; expected a relative one with '/' and without '..'"
        )
    return Entry(relative, label, name.replace("_", " ").strip())


def _classes(entries: dict[SplitName, list[Entry]], what: str) -> tuple[str, ...]:
    """Return the class names by label; refuse what contradicts itself."""
    names: dict[int, str] = {}
    splits: dict[PurePosixPath, str] = {}
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
        self.name_after(short, where)
        self.title = f"{short}, split by CoOp"

    def _revision(self) -> str:
        """12 hex digits over the split file; the images aren't read."""
        return digest(self._split_file.source, length=12)

    def differences(self) -> list[str]:
        """List what images are missing or empty; none is opened."""
        return [line for name in SPLITS for line in self._images(name).differences()]

    def _images(self, name: SplitName) -> ImageList:
        return self._split_file.images(name, self.root, f"coop/{self.file.stem}")

    def _split(self, name: SplitName) -> Split:
        return self._images(name).split()


def _root(folder: Path, entries: Mapping[SplitName, list[Entry]], what: str) -> Path:
    """Find the folder that paths are relative to: the file's own or one directly in it."""
    firsts = [some[0].path for some in entries.values() if some]
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    fitting = [root for root in (folder, *inner) if all((root / path).is_file() for path in firsts)]
    if folder not in fitting and len(fitting) > 1:
        names = ", ".join(repr(root.name) for root in fitting)
        raise ValueError(f"{what}: the first images are in each of the folders {names}; leave one")
    if not fitting:
        names = brief([root.name for root in inner])
        raise FileNotFoundError(
            f"{what}: the first images, such as '{firsts[0]}', are neither all beside it, in {str(folder)!r}, nor all "
            f"in a folder there (tried: {names})"
        )
    return fitting[0]


@dataclass(eq=False, kw_only=True)
class CoopDataset(RootedDataset):
    """A public dataset whose images a split file of CoOp lists; labels and class names are its own."""

    listed_by_coop = True
    split_file: str

    @functools.cached_property
    def content(self) -> SplitFile:
        """What the split file says."""
        file = self.place / self.split_file
        content = read_split_file(file)
        require_inside(self.place / self.images, content.paths, f"split file {str(file)!r}")
        return content

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the split file, underscores as spaces, in the order of its labels."""
        return self.content.classes

    def _listed_by(self) -> bytes:
        return sha256(self.content.source).digest()

    @functools.cache  # noqa: B019  (a dataset lives as long as the process)
    def _images(self, name: SplitName) -> ImageList:
        return self.content.images(name, self.place / self.images, self.name)


@dataclass(eq=False, kw_only=True)
class AircraftDataset(CoopDataset):
    """FGVC-Aircraft: CoOp has no split file of it, the lists are the source's."""

    split_file: str = "images_variant_{}.txt"
    class_list: str = "variants.txt"

    @functools.cached_property
    def content(self) -> SplitFile:
        """What the lists say: the number of an image and a variant a line."""
        variants = tuple(self._lines(self.class_list))
        require_unique(variants, variants, f"list {str(self.place / self.class_list)!r}")
        entries: dict[SplitName, list[Entry]] = {}
        for split in SPLITS:
            file = self.split_file.format(split)
            entries[split] = []
            for number, line in enumerate(self._lines(file), start=1):
                image, _, variant = line.partition(" ")
                if not image.isdecimal() or variant not in variants:
                    raise ValueError(
                        f"list {str(self.place / file)!r}, line {number}: {line!r} isn't the number of an image and a "
                        f"variant of {self.class_list}"
                    )
                entries[split].append(Entry(PurePosixPath(f"{image}.jpg"), variants.index(variant), variant))
        _classes(entries, f"lists of {self.name!r} in {str(self.place)!r}")
        names = (self.class_list, *map(self.split_file.format, SPLITS))
        return SplitFile(b"\0".join((self.place / name).read_bytes() for name in names), entries, variants)

    def _listed_by(self) -> bytes:
        return self.content.source

    def _lines(self, file: str) -> list[str]:
        path = self.place / file
        if not path.is_file():
            raise FileNotFoundError(
                f"list {str(path)!r} of {self.name!r} is missing; it is in {self.archives[0].file!r}, below "
                f"{self.archives[0].strip!r}"
            )
        return lines_of(path)


def _split_archive(file: str, number: str) -> Archive:
    """Describe CoOp's split file, which lies on Google Drive; nobody publishes its sum."""
    return Archive(file=file, holds=file, page=PAGE, url=drive(number))


def _coop(file: str, number: str, *archives: Archive, **facts: Any) -> CoopDataset:
    """Make an entry of the table, with the Google Drive number of its split file."""
    split_file = f"split_zhou_{file}.json"
    return CoopDataset(split_file=split_file, archives=(*archives, _split_archive(split_file, number)), **facts)


_CALTECH = "https://data.caltech.edu/records/mzrjq-6wc02"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_SUN = "https://vision.princeton.edu/projects/2010/SUN/"
_CARS = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
# fmt: off
DATASETS = (
    _coop(
        "Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",  # without BACKGROUND_Google and Faces_easy
        Archive(file="101_ObjectCategories.tar.gz", holds="101_ObjectCategories", page=_CALTECH),
        Archive(file="caltech-101.zip", holds="101_ObjectCategories.tar.gz", page=_CALTECH, strip="caltech-101",
                url=f"{_CALTECH}/files/caltech-101.zip", checksums=("md5:3138e1922a9193bfa496528edbbc45d0",)),
        name="caltech101", title="Caltech-101, a hundred kinds of objects",
        license="CC BY 4.0", source="Caltech, 2003 (CaltechDATA mzrjq-6wc02)", homepage=_CALTECH,
        folder="caltech-101", images="101_ObjectCategories",
        class_count=100, counts=counted(train=4128, val=1649, test=2465),
    ),
    _coop(
        "DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
        Archive(file="dtd-r1.0.1.tar.gz", holds="images", page=f"{_VGG}/dtd/", strip="dtd",
                url=f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz", checksums=("md5:fff73e5086ae6bdbea199a49dfb8a4c1",)),
        name="dtd", title="Describable Textures Dataset",
        license="research only", source="Visual Geometry Group, Oxford, 2014 (r1.0.1)", homepage=f"{_VGG}/dtd/",
        templates=("{} texture.",), folder="dtd", images="images",
        class_count=47, counts=counted(train=2820, val=1128, test=1692),
    ),
    _coop(
        "EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",  # CoOp words the names of classes anew
        Archive(file="EuroSAT.zip", holds="2750", page="https://github.com/phelber/EuroSAT",
                url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                checksums=("md5:c8fa014336c82ac7804f0398fcb19387",)),
        name="eurosat", title="EuroSAT, land use from above, RGB",
        license="MIT", source="DFKI, 2018", homepage="https://github.com/phelber/EuroSAT",
        templates=("a centered satellite photo of {}.",), folder="eurosat", images="2750",
        class_count=10, counts=counted(train=13_500, val=5400, test=8100),
    ),
    _coop(
        "OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
        Archive(file="102flowers.tgz", holds="jpg", page=f"{_VGG}/flowers/102/",
                url=f"{_VGG}/flowers/102/102flowers.tgz", checksums=("md5:52808999861908f626f3c1f4e79d11fa",)),
        name="flowers102", title="Oxford Flowers 102",
        license="none stated", source="Visual Geometry Group, Oxford, 2008", homepage=f"{_VGG}/flowers/102/",
        templates=("a photo of a {}, a type of flower.",), folder="oxford_flowers", images="jpg",
        class_count=102, counts=counted(train=4093, val=1633, test=2463),
    ),
    _coop(
        "Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
        Archive(file="food-101.tar.gz", holds="images", page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
                url="https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                checksums=("md5:85eeb15f3717b99a5da872d97d918f87",), strip="food-101"),
        name="food101", title="Food-101, dishes",
        license="scientific fair use (images of Foodspotting)", source="ETH Zurich, 2014",
        homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        templates=("a photo of {}, a type of food.",), folder="food-101", images="images",
        class_count=101, counts=counted(train=50_500, val=20_200, test=30_300),
    ),
    _coop(
        "OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
        Archive(file="images.tar.gz", holds="images", page=f"{_VGG}/pets/", url=f"{_VGG}/pets/data/images.tar.gz",
                checksums=("md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",)),
        name="oxford-pets", title="Oxford-IIIT Pet, breeds of cats and dogs",
        license="CC BY-SA 4.0", source="Visual Geometry Group, Oxford, 2012", homepage=f"{_VGG}/pets/",
        templates=("a photo of a {}, a type of pet.",), folder="oxford_pets", images="images",
        class_count=37, counts=counted(train=2944, val=736, test=3669),
    ),
    _coop(
        "StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
        Archive(file="cars_train.tgz", holds="cars_train", page=_CARS),
        Archive(file="cars_test.tgz", holds="cars_test", page=_CARS),
        name="stanford-cars", title="Stanford Cars, by make, model and year",
        license="none stated; research only", source="Stanford, 2013 (no longer online)", homepage=_CARS,
        folder="stanford_cars", images="", class_count=196, counts=counted(train=6509, val=1635, test=8041),
    ),
    _coop(
        "SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
        Archive(file="SUN397.tar.gz", holds="SUN397", page=_SUN, url=f"{_SUN}SUN397.tar.gz",
                checksums=("md5:8ca2778205c41d23104230ba66911c7a",)),
        name="sun397", title="SUN397, scenes",
        license="none stated; research only", source="Princeton, 2010", homepage=_SUN,
        folder="sun397", images="SUN397", class_count=397, counts=counted(train=15_880, val=3970, test=19_850),
    ),
    _coop(
        "UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
        Archive(file="UCF-101-midframes.zip", holds="UCF-101-midframes", page=PAGE,
                url=drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O")),
        name="ucf101", title="UCF101, actions, middle frames of videos",
        license="none stated", source="UCF, 2012; middle frames by CoOp's authors",
        homepage="https://www.crcv.ucf.edu/data/UCF101.php",
        templates=("a photo of a person doing {}.",), folder="ucf101", images="UCF-101-midframes",
        class_count=101, counts=counted(train=7639, val=1898, test=3783),
    ),
    AircraftDataset(
        name="fgvc-aircraft", title="FGVC-Aircraft, variants",
        license="non-commercial research", source="Visual Geometry Group, Oxford, 2013 (2013b)",
        homepage=f"{_VGG}/fgvc-aircraft/", templates=("a photo of a {}, a type of aircraft.",),
        folder="fgvc_aircraft", images="images", class_count=100, counts=counted(train=3334, val=3333, test=3333),
        archives=(Archive(file="fgvc-aircraft-2013b.tar.gz", holds="images", page=f"{_VGG}/fgvc-aircraft/",
                          url=f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                          checksums=("md5:d4acdd33327262359767eeaa97a4f732",), strip="fgvc-aircraft-2013b/data"),),
    ),
)
# fmt: on
