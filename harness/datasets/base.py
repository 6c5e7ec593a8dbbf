"""Datasets: named classes, or none, and disjoint, lazy, deterministic splits."""

import abc
import copy
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.core.digests import digest
from zoo.core.errors import NoRoomError
from zoo.core.files import cache_file, require_file, write_whole

SplitName = Literal["train", "val", "test", "final"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")  # that every dataset has
FINAL: SplitName = "final"
FINAL_ALONE = (
    "'final' is the test set that nothing was chosen by: only `patchrank study final`, and `study NAME --split final` "
    "of studies of learned tokens, read it"
)
# Splits by the names that folders and other libraries give them.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
DATA_DIR = Path(__file__).parent.parent / "embedded" / "data"

# An RGB image, of canvas size if drawn here, and the (H, W) bool pixels of its object or None.
Rendered = tuple[Image.Image, NDArray[np.bool_] | None]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image."""

    image: Image.Image  # RGB, of canvas size where it is drawn here
    label: int  # position in `Dataset.classes`; -1 if there are none
    image_id: str  # stable, free of this machine's paths
    mask: NDArray[np.bool_] | None = None  # (H, W), the pixels of the true object; None where unknown


class Split(Sequence[Example]):
    """Draw examples on demand; item i is the same image in any order of access.

    labels: (n,) int64. name: index -> image_id of variant 0. render: (index, variant) -> Rendered; only this draws.
    Variant 0 is the benchmark's image; others show the same sources placed otherwise.
    """

    def __init__(
        self, labels: NDArray[np.int64], name: Callable[[int], str], render: Callable[[int, int], Rendered]
    ) -> None:
        self._all_labels, self._name, self._render = labels, name, render
        self._indices, self._variants = np.arange(len(labels)), np.zeros(len(labels), dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64, in the order of the examples."""
        return self._all_labels[self._indices]

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The examples' ids, in their order; no image is drawn."""
        return tuple(map(self.image_id, range(len(self))))

    def image_id(self, index: int) -> str:
        """Return the id of one example."""
        variant = int(self._variants[index])
        return self._name(int(self._indices[index])) + (f"/{variant}" if variant else "")

    def _of(self, indices: NDArray[np.int64], variants: NDArray[np.int64]) -> "Split":
        split = copy.copy(self)
        split._indices, split._variants = indices, variants
        return split

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "Split":
        """Keep the examples at these positions, in this order, with their images unchanged."""
        places = np.asarray(indices, dtype=np.int64)
        return self._of(self._indices[places], self._variants[places])

    def variant(self, variant: int) -> "Split":
        """Show the same sources with other random draws; 0 gives the benchmark's images."""
        return self._of(self._indices, np.full_like(self._indices, variant))

    def variants(self, count: int) -> "Split":
        """Show the same sources ``count`` times: first as they are, then variants 1, 2 and so on."""
        more = np.repeat(np.arange(1, count), len(self))
        return self._of(np.tile(self._indices, count), np.concatenate([self._variants, more]))

    def __len__(self) -> int:
        """Count the examples."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Split": ...
    def __getitem__(self, index: int | slice) -> "Example | Split":
        """Draw one example; a slice gives a lazy split."""
        if isinstance(index, slice):
            return self.subset(np.arange(len(self))[index])
        source = int(self._indices[index])
        image, mask = self._render(source, int(self._variants[index]))
        return Example(image=image, label=int(self._all_labels[source]), image_id=self.image_id(index), mask=mask)


class Dataset(abc.ABC):
    """Classes with readable captions, and splits that share no source image.

    A dataset without labels has no classes and no templates, and all its labels are -1.
    """

    name: str
    title: str
    license: str
    files: tuple[str, ...] = ()  # that ship
    templates: tuple[str, ...]  # prompts with one `{}`
    reworded: bool = False  # whether the templates aren't its own
    left_out: frozenset[str] = frozenset()  # ids of images that no split has
    notes: tuple[str, ...] = ()  # on its files, told when it is taken
    asked_with: tuple[str, ...] = ()  # flags beside --dataset that gave it these options
    # The split that few-shot images are drawn from; "val" where the embedded text tower learnt from train, whose
    # images would teach nothing new.
    shots_from: SplitName = "train"
    listed_by_coop: bool = False  # whether train and val are in the order of the lists that CoOp draws shots from
    studied: bool = False  # whether studies have read the test split many times
    has_final: bool = False  # whether there is a split "final", see `released`
    skip_unknown: bool = False  # classes that a text tower has no words for are left out, not refused
    captions_seen: bool = False  # whether all class captions were in the training of the embedded text tower
    captioned: bool = False  # whether texts describe single images, see `captions_of`
    _released: bool = False

    @property
    @abc.abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class captions, e.g. "ankle boot"; labels are positions in it."""

    @property
    def labelled(self) -> bool:
        """Whether the images have classes."""
        return bool(self.classes)

    def captions_of(self, image_id: str) -> tuple[str, ...]:
        """Return the texts that describe an image: one or more if the dataset is ``captioned``, else none."""
        return ()

    def group_of(self, image_id: str) -> str:
        """Name an image's group; images of one group are too alike to learn from and judge by, and in one split."""
        return image_id

    @property
    def images_of(self) -> str:
        """Name of the dataset whose images these are; golden rankings go by it."""
        return self.name

    @property
    def asked_as(self) -> str:
        """The value of ``--dataset`` that means this dataset."""
        return self.name

    def differences(self) -> list[str]:
        """List missing and empty images; none is opened."""
        return []

    @abc.abstractmethod
    def _split(self, name: SplitName) -> Split:
        """Build the split of that name."""

    def split(self, name: SplitName) -> Split:
        """Return the split called train, val or test, or of a dataset that is released, final."""
        if name not in (*SPLITS, FINAL):
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        if name == FINAL and not (self.has_final and self._released):
            none = f"dataset {self.name!r} has no split 'final'; fashion, emoji, frames and photos have one"
            raise ValueError(FINAL_ALONE if self.has_final else none)
        whole = self._split(name)
        if not self.left_out:
            return whole
        return whole.subset([i for i, image_id in enumerate(whole.image_ids) if image_id not in self.left_out])

    def labels(self, name: SplitName) -> NDArray[np.int64]:
        """(n,) int64 labels of a split, without drawing an image."""
        return self.split(name).labels

    def _changed(self, **values: object) -> Self:
        changed = copy.copy(self)
        vars(changed).update(values)
        return changed

    def released(self) -> Self:
        """Return the dataset with its split ``final``, for the commands of `FINAL_ALONE`."""
        return self._changed(_released=True)

    def without_unknown(self) -> Self:
        """Return the dataset with ``skip_unknown``."""
        return self._changed(skip_unknown=True)

    def with_templates(self, templates: Sequence[str]) -> Self:
        """Return the dataset with other prompts, see ``require_template``."""
        if not self.templates:
            raise ValueError(f"--templates: {self.name!r} has no classes that a prompt could name")
        for template in templates:
            require_template(template)
        new = tuple(dict.fromkeys(templates))
        return self._changed(templates=new, reworded=self.reworded or new != self.templates)

    def without(self, image_ids: Iterable[str]) -> Self:
        """Return the dataset without some images; no class, or split, may lose all its images."""
        changed = self._changed(left_out=self.left_out | frozenset(image_ids))
        for name in SPLITS:
            size = len(self.classes) + 1  # the first counts images without a label
            before, after = (np.bincount(dataset.labels(name) + 1, minlength=size) for dataset in (self, changed))
            if (lost := np.flatnonzero((before > 0) & (after == 0))).size:
                what = f"class {self.classes[lost[0] - 1]!r} of {self.name!r}" if lost[0] else repr(self.name)
                raise ValueError(f"{what} has no images left in {name}: all {before[lost[0]]} can't be read")
        return changed

    @property
    def revision(self) -> str:
        """12 hex digits that tell these images with their labels from others."""
        revision = self._revision()
        return digest("\0".join((revision, *sorted(self.left_out))).encode(), length=12) if self.left_out else revision

    def _revision(self) -> str:
        """12 hex digits over the shipped files, in order."""
        return digest(*(DATA_DIR / file for file in self.files), length=12)

    @property
    def condition(self) -> str:
        """The identity that records name: the revision, and a digest of templates that aren't its own."""
        prompts = f"-{digest(chr(0).join(self.templates).encode(), length=8)}" if self.reworded else ""
        return self.revision + prompts


class OwnDataset(Dataset):
    """A dataset made from files of the user's: ``PREFIX:PATH``, called ``PREFIX-NAME``.

    It raises an OSError if PATH holds none, and a ValueError if files are damaged or contradict each other.
    """

    prefix: ClassVar[str]
    what: ClassVar[str]  # source, in words
    expected: ClassVar[str]  # at PATH
    downloads: ClassVar[bool] = False  # whether it takes ``download``
    license = "see the dataset's own"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    asked_path: Path | str

    @property
    def asked_as(self) -> str:
        """The prefix and the path."""
        return f"{self.prefix}:{self.asked_path}"

    def take_folder(self, place: Path, what: str, title: str) -> tuple[Path, str]:
        """Name the dataset after a folder; return the folder, absolute, and its description for messages."""
        self.asked_path = folder = place.expanduser().absolute()
        where = f"{what} {str(folder)!r}"
        require_folder(folder, where, f"the {self.expected}")
        name = folder.resolve().name
        self.name_after(name, where)
        self.title = f"{title} {name}"
        return folder, where

    def name_after(self, text: str, where: str) -> None:
        """Name the dataset after a file or folder: lower case, dashes between words."""
        words = re.sub(r"\W+", "-", text.lower()).strip("-")
        if not words:
            raise ValueError(f"{where}: its name becomes the dataset's and needs letters or digits")
        self.name = f"{self.prefix}-{words}"


def require_folder(folder: Path, where: str, hint: str) -> None:
    """Refuse a path that is no folder."""
    if not folder.exists():
        raise FileNotFoundError(f"{where} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{where} is a file; give {hint}")


def match_splits(names: Iterable[str], where: str) -> dict[SplitName, str]:
    """Return the names that mean splits, in any case, by split; ValueError if two mean one split."""
    matches: dict[SplitName, str] = {}
    for name in names:
        if (split := SPLIT_NAMES.get(name.lower())) is None:
            continue
        if split in matches:
            raise ValueError(f"{where}: {matches[split]} and {name} would both be the {split} split; leave one")
        matches[split] = name
    return matches


def require_unique(texts: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuse captions of classes that can't be printed, or that two of the ``names`` share."""
    first: dict[str, str] = {}
    for text, name in zip(texts, names, strict=True):
        if not text or not text.isprintable():
            raise ValueError(f"{where}: class name {name!r} can't be put into a prompt")
        if first.setdefault(text, name) is not name:
            raise ValueError(f"{where}: {first[text]!r} and {name!r} would both be class {text!r}")


def require_template(template: str, where: str = "") -> None:
    """Refuse, by a ValueError, a prompt without exactly one ``{}`` or with other braces."""
    if (template.count("{}"), template.count("{"), template.count("}")) != (1, 1, 1):
        raise ValueError(f"{where}template {template!r}: expected one {{}} where the class goes, and no other braces")


def lines_of(file: Path) -> list[str]:
    """Read the lines of a small text file that somebody else may have written."""
    require_file(file)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not text in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line or not line.replace("\t", " ").isprintable():
            raise ValueError(f"{str(file)!r}, line {number}: expected a name, got {line!r}")
    return lines


def cached_json(room: str, *identity: object) -> tuple[Path, Any]:
    """Return the file of the user's cache for an identity, and its content, None if there is none to read."""
    file = cache_file(room, f"{digest(identity)}.json")
    with suppress(OSError, ValueError, RecursionError):
        return file, json.loads(file.read_bytes())
    return file, None


def keep_json(file: Path, content: object) -> None:
    """Write a file of the user's cache, whole or not at all; where there is no room, a warning says so."""
    try:
        write_whole(file, json.dumps(content).encode())
    except NoRoomError as error:
        warnings.warn(f"{error}: this run keeps nothing for later ones", stacklevel=2)
