"""Find every dataset of this folder: a file that defines a concrete `Dataset` is enough."""

import difflib
import functools

from harness.datasets.base import Dataset, Example, Split, SplitName
from harness.discovery import concrete_classes

__all__ = [
    "Dataset",
    "Example",
    "Split",
    "SplitName",
    "get_dataset",
    "list_datasets",
]


@functools.cache
def _classes() -> dict[str, type[Dataset]]:
    """Map dataset names to the classes of the folder's files."""
    return concrete_classes(__name__, __path__, Dataset)


def list_datasets() -> tuple[str, ...]:
    """List the names of all datasets, sorted."""
    return tuple(_classes())


@functools.cache
def get_dataset(name: str) -> Dataset:
    """Return the dataset of that name; one instance per name.

    Raises:
        ValueError: no dataset has that name; the message holds the nearest one.
        FileNotFoundError: its shipped files are missing; the message holds the command.
    """
    classes = _classes()
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no dataset is called {name!r}.{hint} Choose from {', '.join(classes)}; "
            "`python -m harness list` shows them."
        )
    return classes[name]()
