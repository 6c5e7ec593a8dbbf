"""Read a split file of CoOp, such as split_zhou_OxfordPets.json.

K. Zhou, J. Yang, C. C. Loy, Z. Liu, Learning to Prompt for Vision-Language Models, IJCV 2022. The
file is JSON: ``train``, ``val`` and ``test``, each a list of [relative path, label, class name].
Files come from elsewhere, so nothing in them is trusted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np

from harness.datasets.base import SPLITS, SplitName
from harness.datasets.images import ImageList

PICKLES = (".pkl", ".pickle")


class Entry(NamedTuple):
    """One image: where it is below the root, its label and its class."""

    path: PurePosixPath
    label: int
    name: str


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """What a split file says.

    Attributes:
        file: where it lies.
        digest: sha256 of its bytes, in hex.
        entries: images of each split.
        classes: names by label, underscores as spaces.
    """

    file: Path
    digest: str
    entries: Mapping[SplitName, list[Entry]]
    classes: tuple[str, ...]

    @property
    def paths(self) -> Iterator[PurePosixPath]:
        """Every image, split by split."""
        return (entry.path for entry in chain.from_iterable(self.entries.values()))

    def images(self, name: SplitName, root: Path, *, prefix: str, dataset: str) -> ImageList:
        """List the images of a split.

        Args:
            name: of the split.
            root: the folder that paths are relative to.
            prefix: what ids start with.
            dataset: whose images these are, for messages.
        """
        entries = self.entries[name]
        return ImageList(
            root=root,
            paths=[str(entry.path) for entry in entries],
            labels=np.array([entry.label for entry in entries], dtype=np.int64),
            prefix=prefix,
            dataset=dataset,
            listed=f"the split file {self.file.name!r} lists it under {name}",
        )


def read_split_file(file: Path) -> SplitFile:
    """Read and check a split file; whether its images are there isn't looked at.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a split file, or one that contradicts itself or names paths outside.
    """
    what = f"split file {str(file)!r}"
    content = _content(file, what)
    entries = _entries(_parsed(content, what), what)
    return SplitFile(
        file=file,
        digest=hashlib.sha256(content).hexdigest(),
        entries=entries,
        classes=_classes(entries, what),
    )


def _content(file: Path, what: str) -> bytes:
    """Read the file's bytes; pickles are refused and never loaded."""
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
    return content


def _parsed(content: bytes, what: str) -> dict[str, list[Any]]:
    """Decode the JSON down to the three lists."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(found, dict) or set(found) != set(SPLITS):
        got = f"the keys {shortened(sorted(found))}" if isinstance(found, dict) else type(found)
        raise ValueError(f"{what}: expected an object of {', '.join(SPLITS)}, got {got}")
    for name, value in found.items():
        if not isinstance(value, list):
            raise ValueError(f"{what}: {name} must be a list, got {shortened(value)}")
    if not found["test"]:
        raise ValueError(f"{what}: test has no images")
    return found


def _entries(lists: dict[str, list[Any]], what: str) -> dict[SplitName, list[Entry]]:
    """Check every entry by itself, and that no image is listed twice."""
    seen: dict[PurePosixPath, str] = {}
    found: dict[SplitName, list[Entry]] = {}
    for split in SPLITS:
        found[split] = [_entry(e, f"{what}: {split}[{i}]") for i, e in enumerate(lists[split])]
        for path, _, _ in found[split]:
            if (before := seen.get(path)) is not None:
                where = f"twice in {split}" if before == split else f"in both {before} and {split}"
                raise ValueError(f"{what}: image '{path}' is {where}")
            seen[path] = split
    return found


def _entry(told: Any, what: str) -> Entry:
    """Check one entry."""
    match told:
        case [str(path), int(label), str(name)] if not isinstance(label, bool):
            pass
        case _:
            got = shortened(told)
            raise ValueError(f"{what} is {got}; expected [relative path, label, class name]")
    relative, name = PurePosixPath(path), name.replace("_", " ").strip()
    if not relative.parts or not path.isprintable():
        raise ValueError(f"{what}: {path!r} is no path of an image")
    leaves = relative.is_absolute() or ".." in relative.parts
    if leaves or "\\" in path or PureWindowsPath(path).drive:
        raise ValueError(
            f"{what}: path {path!r} may leave the folder of images; expected a relative one with "
            "'/' and without '..'"
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
    for wanted, label in enumerate(sorted(names)):
        if label != wanted:
            raise ValueError(
                f"{what}: labels must be 0 to classes - 1 without gaps; {wanted} is missing, and "
                f"{label} is there"
            )
    labels: dict[str, int] = {}
    for label, name in sorted(names.items()):
        if labels.setdefault(name, label) != label:
            raise ValueError(f"{what}: labels {labels[name]} and {label} are both {name!r}")
    return tuple(labels)
