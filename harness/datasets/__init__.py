"""Find every dataset of this folder: a file that defines a concrete `Dataset` is enough."""

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path

from harness.datasets.base import Dataset, Example, Split, SplitName
from harness.datasets.coop import PREFIX, CoopSplit
from harness.discovery import concrete_classes

__all__ = [
    "Dataset",
    "Example",
    "Split",
    "SplitName",
    "get_dataset",
    "list_datasets",
    "names_of",
]

_from_files: dict[str, Dataset] = {}  # by name, the last one asked for


@functools.cache
def _classes() -> dict[str, type[Dataset]]:
    """Map dataset names to the classes of the folder's files."""
    return concrete_classes(__name__, __path__, Dataset, but=(CoopSplit,))


@functools.cache
def _made(name: str) -> Dataset:
    return _classes()[name]()


def list_datasets() -> tuple[str, ...]:
    """List the names of all datasets, sorted; those that are made from a user's file have none."""
    return tuple(_classes())


def get_dataset(name: str) -> Dataset:
    """Return a dataset.

    Args:
        name: its name, which has one instance; or ``coop:PATH``, a split file of CoOp. That is read
            anew, and from then on its own name means it, too.

    Raises:
        ValueError: no dataset has that name; the message holds the nearest one. Or a file that is
            no split file.
        FileNotFoundError: its shipped files are missing; the message holds the command. Or the
            split file or its images are.
    """
    if name.startswith(PREFIX):
        if not (path := name.removeprefix(PREFIX)):
            raise ValueError(f"dataset {name!r}: expected {PREFIX}PATH of a split_zhou_*.json")
        dataset = CoopSplit(Path(path))
        _from_files[dataset.name] = dataset
        return dataset
    if name in _from_files:
        return _from_files[name]
    classes = _classes()
    if name in classes:
        return _made(name)
    if name.startswith("coop-"):
        raise ValueError(
            f"dataset {name!r} is made from a split file of CoOp; give {PREFIX}PATH of that file"
        )
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no dataset is called {name!r}.{hint} Choose from {', '.join(classes)}; "
        f"`python -m harness list` shows them. {PREFIX}PATH is a split file of CoOp."
    )


def names_of(given: Sequence[str]) -> list[str]:
    """Return names for what the command line gives, so that nothing goes by a path from there on.

    Args:
        given: names, or ``coop:PATH``; after this ``get_dataset`` knows the latter by name.

    Raises:
        ValueError: two split files make datasets of one name; or see ``get_dataset``.
    """
    names = [get_dataset(told).name if told.startswith(PREFIX) else told for told in given]
    for told, name in zip(given, names, strict=True):
        if told.startswith(PREFIX) and names.count(name) > 1:
            raise ValueError(
                f"dataset {told!r}: another one given is called {name!r}, too; rename the file"
            )
    return names
