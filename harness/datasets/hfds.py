"""Datasets of the Hugging Face `datasets` library, from its cache of the hub or from a folder.

timm has a reader for these, ``timm.data.readers.reader_hfds``, which isn't used: it takes neither a
config nor what ``save_to_disk`` wrote, goes to the network whenever it can, and opens any file
that a table names. It reads as is done here, though: rows at random, images as bytes.
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from harness.datasets.base import SPLITS, Dataset, Rendered, Split, SplitName
from harness.datasets.captions import slug
from harness.datasets.huggingface import Choice, Place, Rows, captions, find_columns, load, roots
from harness.datasets.images import decode_image
from zoo.reducer import expected

KNOWN: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


class HfDataset(Dataset):
    """The images and classes of a dataset that `datasets` can open.

    An image's id is its split and row. It stays as long as the rows do, on every machine and with
    every release of the library; where rows have moved, the revision is another.

    Args:
        place: a folder's path or ``owner/name``, then perhaps ``#`` and a choice, see ``Choice``.
        download: get from the hub what is missing.

    Raises:
        FileNotFoundError: no such folder, or a dataset of the hub that isn't in the cache.
        ValueError: `datasets` is missing or can't read it; no columns of images and classes, or
            several; rows without labels; classes or splits that contradict each other.
    """

    license = "see the dataset's own"
    source = "the Hugging Face `datasets` library"
    files = ()
    build_command = "none: it is made by `datasets`"
    templates = ("a photo of a {}.",)

    def __init__(self, place: Path, *, download: bool = False) -> None:
        self.place = Place.parse(str(place))
        what, choice = self.place.what, self.place.choice
        told = (self.place.name, choice.config, choice.image, choice.label)
        self.name = f"hfds-{slug(' '.join(filter(None, told)), what)}"
        self.title = f"Images of {self.place.name}"
        tables = load(self.place, download=download)
        chosen = _chosen(tables, choice, what)
        columns = [
            find_columns(tables[own].features, choice.image, choice.label, what)
            for own in chosen.values()
        ]
        for own, other in zip(chosen.values(), columns, strict=True):
            if other != columns[0]:
                raise ValueError(
                    f"{what}: {own!r} has other columns or classes than "
                    f"{next(iter(chosen.values()))!r}"
                )
        self._classes = captions(columns[0].names, f"{what}: column {columns[0].label!r}")
        inside = roots(self.place)
        self._rows = {
            split: Rows(tables[own], columns[0], inside, f"split {own!r} of {what}")
            for split, own in chosen.items()
        }
        for rows in self._rows.values():
            _ = rows.labels  # refuses rows without

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, underscores as spaces, in the order of the labels."""
        return self._classes

    def _revision(self) -> str:
        """12 hex digits over classes, labels, files' sizes and a few files, in the rows' order."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256("\0".join(self._classes).encode())
        for split, rows in self._rows.items():
            digest.update(f"\0{split}\0".encode())
            rows.add_to(digest)
        return digest.hexdigest()[:12]

    @property
    def asked_as(self) -> str:
        """``hfds:``, the folder's path or the name, and what was chosen."""
        return f"hfds:{self.place.folder or self.place.name}{self.place.choice}"

    def _split(self, name: SplitName) -> Split:
        rows = self._rows.get(name)

        def image_id(index: int) -> str:
            return f"{self.name}/{name}/{index}"

        def render(index: int, _variant: int) -> Rendered:
            assert rows is not None
            return decode_image(rows.read(index), rows.where(index)), None

        labels = np.empty(0, dtype=np.int64) if rows is None else rows.labels
        return Split(labels, image_id, render)


def _chosen(names: Iterable[str], choice: Choice, what: str) -> dict[SplitName, str]:
    """Say which splits of the dataset are which of ours.

    Those that aren't called like one of ours are left alone.

    Raises:
        ValueError: none is, or two are the same.
    """
    there = {name or "(without a name)": name for name in names}
    found: dict[SplitName, str] = {}
    for split in SPLITS:
        told: str | None = getattr(choice, split)
        if told is not None:
            if told not in there:
                raise ValueError(f"{what}: {split}={told}: {expected(told, there)}")
            found[split] = told
    if found:
        return found
    if list(there.values()) == [""]:  # as with a folder: without splits, all is for testing
        return {"test": ""}
    for name in there:
        own = KNOWN.get(name.lower())
        if own in found:
            raise ValueError(
                f"{what}: {found[own]} and {name} would both be the {own} split; say which is, as "
                f"in #{own}={name}, and name the other splits to use likewise"
            )
        if own is not None:
            found[own] = name
    if not found:
        raise ValueError(
            f"{what} has the splits {', '.join(there)}, none of {', '.join(KNOWN)}; say which is "
            f"which, as in #test={next(iter(there))}"
        )
    return found
