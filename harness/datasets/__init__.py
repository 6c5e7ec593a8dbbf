"""Find every dataset: by the names that files of this folder list, or by a path."""

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harness.base.hints import nearest
from harness.base.terminal import Progress
from harness.datasets.base import Dataset, Example, OwnDataset, Split, SplitName
from harness.datasets.folder import FolderDataset, FolderParted, ImageFolder
from harness.datasets.huggingface import HfDataset
from harness.datasets.images import find_bad_images
from harness.datasets.public import CoopSplit, RootedDataset
from harness.datasets.webdataset import TarDataset

__all__ = [
    "KINDS", "Dataset", "Example", "Options", "Split", "SplitName", "forget", "get_dataset", "kind_of",
    "list_datasets", "names_of", "root_of", "shipped_facts",
]  # fmt: skip

ROOT = "CLIP_PATCHRANK_DATA"  # environment variable with the default of --root
_OWN = (CoopSplit, FolderDataset, FolderParted, HfDataset, ImageFolder, TarDataset)
KINDS: dict[str, type[OwnDataset]] = {kind.prefix: kind for kind in _OWN}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line for all its datasets."""

    root: Path | None = None  # of datasets that aren't shipped; None for the environment's
    download: bool = False  # archives that are missing below the root
    templates: Sequence[str] | None = None  # prompts for all datasets instead of their own
    skip_bad: bool | None = None  # leave out images that can't be read; False refuses missing and empty ones
    skip_unknown_classes: bool = False  # leave out classes with words that a text tower never saw
    progress: Progress = field(default_factory=Progress)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Bind a dataset to its root, give it prompts and leave out images that can't be read."""
        flags: list[str] = []
        for note in dataset.notes:
            self.progress.say(note)
        if isinstance(dataset, RootedDataset) and (root := root_of(self.root)):
            dataset = dataset.at(root, download=self.download, progress=self.progress)
            flags += ["--root", str(root)]
        if self.templates:
            dataset = dataset.with_templates(self.templates)
            flags += ["--templates", *self.templates]
        # Shipped images are drawn, so that all can be read.
        here = not dataset.files and getattr(dataset, "root", Path()) is not None
        if here and self.skip_bad:
            dataset = dataset.without(find_bad_images(dataset, self.progress))
            flags += ["--skip-bad"]
        elif here and self.skip_bad is False and (lines := dataset.differences()):
            raise FileNotFoundError(f"{'. '.join(lines)}. Put them there, or leave them out with --skip-bad")
        if self.skip_unknown_classes:
            dataset = dataset.without_unknown()
            flags += ["--skip-unknown-classes"]
        if flags:
            dataset.asked_with = tuple(flags)
        return dataset


class _State:
    """How this process reads datasets, and those it has read, by name."""

    options = Options()
    datasets: ClassVar[dict[str, Dataset]] = {}


@functools.cache
def _listed() -> dict[str, Dataset]:
    """Map names to the datasets of the tables ``DATASETS`` in this folder's files, sorted."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    datasets: list[Dataset] = [dataset for module in modules for dataset in getattr(module, "DATASETS", ())]
    return {dataset.name: dataset for dataset in sorted(datasets, key=lambda dataset: dataset.name)}


def list_datasets() -> tuple[str, ...]:
    """List the names of all datasets, sorted; datasets of the user's files have none."""
    return tuple(_listed())


def shipped_facts(name: str) -> Dataset:
    """Return one of ``list_datasets`` without options: without root, with its own prompts."""
    return _listed()[name]


def root_of(root: Path | None) -> Path | None:
    """Return the root that was given, else the environment's, if any."""
    default = os.environ.get(ROOT)
    return root or (Path(default) if default else None)


def kind_of(name: str) -> str | None:
    """Return the prefix of a dataset of the user's files; None of others."""
    fitting = (prefix for prefix in KINDS if name.startswith((f"{prefix}:", f"{prefix}-")))
    return max(fitting, key=len, default=None)


def get_dataset(name: str) -> Dataset:
    """Return a dataset, prepared with the options of ``names_of``.

    A name has one instance; ``PREFIX:PATH`` with a prefix of ``KINDS`` is read anew, and from then on the dataset's own
    name means it as well. ValueError if no dataset has that name, or the path holds none; OSError if files are missing.
    """
    options, (prefix, colon, path) = _State.options, name.partition(":")
    if colon and prefix in KINDS:
        kind = KINDS[prefix]
        if not path:
            raise ValueError(f"dataset {name!r}: expected {prefix}:PATH of a {kind.expected}")
        make: Callable[..., Dataset] = kind
        dataset = options.prepare(make(Path(path), **({"download": options.download} if kind.downloads else {})))
    elif name in _State.datasets:
        return _State.datasets[name]
    elif name in _listed():
        dataset = options.prepare(shipped_facts(name))
    elif (made_from := kind_of(name)) is not None:
        raise ValueError(f"dataset {name!r} is made from {KINDS[made_from].what}; give {made_from}:PATH of it")
    else:
        kinds = "; ".join(f"{prefix}:PATH is {kind.what}" for prefix, kind in KINDS.items())
        known = nearest(prefix, (*_listed(), *KINDS), cutoff=0.4)
        raise ValueError(f"no dataset is called {name!r}: {known}; `patchrank list` shows all. {kinds}.")
    _State.datasets[dataset.name] = dataset
    return dataset


def forget() -> None:
    """Read datasets without options again, and know none by a path."""
    _State.options = Options()
    _State.datasets.clear()


def names_of(datasets: Sequence[str], options: Options | None = None) -> list[str]:
    """Return the names of the command line's datasets, which are known from then on. Raises as ``get_dataset``."""
    forget()
    _State.options = options or Options()
    names = []
    for word in datasets:
        dataset = get_dataset(word)
        if isinstance(dataset, RootedDataset):
            _ = dataset.place  # refuses what has no root
        if word != dataset.name and dataset.name in names:
            raise ValueError(f"dataset {word!r}: another one given is called {dataset.name!r}, too; rename it")
        names.append(dataset.name)
    return names
