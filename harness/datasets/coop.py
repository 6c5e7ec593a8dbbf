"""Read a dataset from a split file of CoOp, such as split_zhou_OxfordPets.json, and its images.

K. Zhou, J. Yang, C. C. Loy, Z. Liu, Learning to Prompt for Vision-Language Models, IJCV 2022. The
file is JSON: ``train``, ``val`` and ``test``, each a list of [relative path, label, class name].
Files come from elsewhere, so nothing in them is trusted.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain, takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np

from harness.datasets.base import SPLITS, Dataset, Rendered, Split, SplitName
from harness.captions import slug
from harness.images import read_image, require_inside

PREFIX = "coop:"
PICKLES = (".pkl", ".pickle")
SHOWN = 6  # folders in a message


class Entry(NamedTuple):
    """One image: where it is below the root, its label and its class."""

    path: PurePosixPath
    label: int
    name: str


class CoopSplit(Dataset):
    """The images that a split file of CoOp lists.

    They lie beside the file, or in one folder beside it, which is found by looking. The names of
    everything are made from the file's own name, so they are the same on every machine.

    Args:
        file: the split file.

    Raises:
        FileNotFoundError: no such file, or no folder holds the first images.
        ValueError: not a split file, or one that contradicts itself or leaves its folder.
    """

    license = "see the dataset's own"
    source = "split file of CoOp (Zhou et al., IJCV 2022)"
    files = ()
    build_command = "none: it is made from a split file"
    templates = ("a photo of a {}.",)

    def __init__(self, file: Path) -> None:
        self.file = file.expanduser().absolute()
        what = f"split file {str(self.file)!r}"
        content = _content(self.file, what)
        self._digest = hashlib.sha256(content).hexdigest()[:12]
        self._entries = _entries(_parsed(content, what), what)
        self._classes = _classes(self._entries, what)
        self.root = _root(self.file.parent, self._entries, what)
        paths = (path for path, _, _ in chain.from_iterable(self._entries.values()))
        require_inside(self.root, paths, what)
        short = self.file.stem.removeprefix("split_zhou_")
        self.name = f"coop-{slug(short, what)}"
        self.title = f"{short}, split by CoOp"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the file, underscores as spaces, in the order of its labels."""
        return self._classes

    @property
    def captions_seen(self) -> tuple[bool, ...]:
        """True throughout: nobody knows, so no result counts as zero-shot."""
        return (True,) * len(self._classes)

    def _revision(self) -> str:
        """First 12 hex digits of the split file's sha256; the images aren't read."""
        return self._digest

    @property
    def asked_as(self) -> str:
        """``coop:`` and the path of the file."""
        return f"{PREFIX}{self.file}"

    def _split(self, name: SplitName) -> Split:
        entries = self._entries[name]
        labels = np.array([entry.label for entry in entries], dtype=np.int64)

        def image_id(index: int) -> str:
            return f"coop/{self.file.stem}/{entries[index].path}"

        def render(index: int, _variant: int) -> Rendered:
            path = self.root / entries[index].path
            if not path.is_file():
                raise FileNotFoundError(
                    f"image {str(path)!r} of {self.name} is missing; the split file "
                    f"{self.file.name!r} lists it under {name}"
                )
            return read_image(path), None

        return Split(labels, image_id, render)


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


def _root(folder: Path, entries: dict[SplitName, list[Entry]], what: str) -> Path:
    """Find the folder that paths are relative to: the file's own or one directly in it."""
    firsts = [some[0].path for some in entries.values() if some]
    inner = sorted(path for path in folder.iterdir() if path.is_dir())

    def there(root: Path) -> int:
        """Count the first images up to one that is missing."""
        return len(list(takewhile(lambda path: (root / path).is_file(), firsts)))

    counts = {root: there(root) for root in (folder, *inner)}
    if counts[folder] == len(firsts):
        return folder
    fitting = [root.name for root in inner if counts[root] == len(firsts)]
    if len(fitting) > 1:
        raise ValueError(
            f"{what}: the first images are in each of the folders {_listed(fitting)}; leave one"
        )
    if not fitting:
        raise FileNotFoundError(
            f"{what}: image '{firsts[max(counts.values())]}' is neither beside it, in "
            f"{str(folder)!r}, nor in a folder there (tried: "
            f"{_listed([root.name for root in inner]) or 'there is none'})"
        )
    return folder / fitting[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
