"""Find every dataset: those that files of this folder define by name, others by a path."""

import difflib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.console.terminal import Progress
from harness.datasets.base import Dataset, Example, Split, SplitName, concrete_classes
from harness.datasets.coop import CoopSplit
from harness.datasets.decoded import bad_images, require_readable
from harness.datasets.folder import FolderDataset, FolderParted
from harness.datasets.huggingface import HfDataset
from harness.datasets.rooted import RootedDataset
from harness.datasets.webdataset import TarDataset

__all__ = [
    "KINDS", "Dataset", "Example", "Split", "SplitName", "forget", "get_dataset", "kind_of",
    "list_datasets", "names_of", "root_of", "shipped_facts",
]  # fmt: skip

CLASS_FOLDERS = "folder of class folders"
ROOT = "CLIP_PATCHRANK_DATA"  # environment variable with the default of --root


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is made from something of the user's: ``PREFIX:PATH``, called ``PREFIX-NAME``.

    make: from the path. what: that is, in words. expected: at the path. downloads: if told to.
    """

    make: Callable[..., Dataset]
    what: str
    expected: str
    downloads: bool = False


KINDS = {
    "coop": Kind(make=CoopSplit, what="a split file of CoOp", expected="split_zhou_*.json"),
    "folder": Kind(
        make=FolderDataset, expected=CLASS_FOLDERS,
        what=f"a {CLASS_FOLDERS}, or of train, val and test with such",
    ),
    "folder-parted": Kind(
        make=FolderParted, expected=CLASS_FOLDERS,
        what=f"a {CLASS_FOLDERS}, parted here into train, val and test",
    ),
    "hfds": Kind(
        make=HfDataset, expected="folder, or owner/name of the hub", downloads=True,
        what="a dataset of the Hugging Face `datasets` library, in a folder or as owner/name",
    ),
    "wds": Kind(
        make=TarDataset, expected="folder with classnames.txt and test/0.tar",
        what="a folder of tars as CLIP_benchmark has them",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _How:
    """What the command line says about all its datasets."""

    root: Path | None = None
    download: bool = False
    templates: tuple[str, ...] = ()
    skip_bad: bool | None = None
    progress: Progress = field(default_factory=Progress)

    def prepared(self, dataset: Dataset) -> Dataset:
        """Bind a dataset to its root, give it prompts and leave out what can't be read."""
        flags: list[str] = []
        if isinstance(dataset, RootedDataset) and (root := root_of(self.root)):
            dataset = dataset.at(root, download=self.download, progress=self.progress)
            flags += ["--root", str(root)]
        if self.templates:
            dataset = dataset.with_templates(self.templates)
            flags += ["--templates", *self.templates]
        # What ships is drawn, so there is nothing that can't be read.
        here = not dataset.files and getattr(dataset, "root", Path()) is not None
        if self.skip_bad is not None and here:
            if self.skip_bad:
                dataset = dataset.without(bad_images(dataset, self.progress))
                flags += ["--skip-bad"]
            else:
                require_readable(dataset)
        if flags:
            dataset.asked_with = tuple(flags)
        return dataset


@dataclass
class _Known:
    """What this process was told: how datasets are taken, and those that were, by name."""

    how: _How = field(default_factory=_How)
    datasets: dict[str, Dataset] = field(default_factory=dict)


_known = _Known()


@functools.cache
def _classes() -> dict[str, type[Dataset]]:
    """Map dataset names to the classes of the folder's files."""
    made = (CoopSplit, FolderDataset, FolderParted, HfDataset, TarDataset)
    return concrete_classes(__name__, __path__, Dataset, but=made)


@functools.cache
def _made(name: str) -> Dataset:
    return _classes()[name]()


def root_of(root: Path | None) -> Path | None:
    """Return the root that was given, else the environment's, if any."""
    default = os.environ.get(ROOT)
    return root or (Path(default) if default else None)


def list_datasets() -> tuple[str, ...]:
    """List the names of all datasets, sorted; those made from the user's files have none."""
    return tuple(_classes())


def shipped_facts(name: str) -> Dataset:
    """Return one of ``list_datasets`` as it is by itself: without root, with its own prompts."""
    return _made(name)


def kind_of(name: str) -> str | None:
    """Return the prefix of a dataset that is made from the user's files, None of another."""
    fitting = (prefix for prefix in KINDS if name.startswith((f"{prefix}:", f"{prefix}-")))
    return max(fitting, key=len, default=None)


def _kind(name: str) -> Kind | None:
    """Return the kind that ``PREFIX:PATH`` asks for, None of another name."""
    prefix, colon, _ = name.partition(":")
    return KINDS.get(prefix) if colon else None


def get_dataset(name: str) -> Dataset:
    """Return a dataset, prepared as ``names_of`` was told.

    Args:
        name: its name, which has one instance; or ``PREFIX:PATH`` with a prefix of ``KINDS``. That
            is read anew, and from then on its own name means it, too.

    Raises:
        ValueError: no dataset has that name, the nearest is told; or what is there is none.
        FileNotFoundError: files are missing; the message holds the command that gets them.
    """
    prefix, _, path = name.partition(":")
    if (kind := _kind(name)) is not None:
        if not path:
            raise ValueError(f"dataset {name!r}: expected {prefix}:PATH of a {kind.expected}")
        options = {"download": True} if kind.downloads and _known.how.download else {}
        dataset = _known.how.prepared(kind.make(Path(path), **options))
        _known.datasets[dataset.name] = dataset
        return dataset
    if name in _known.datasets:
        return _known.datasets[name]
    if name in _classes():
        dataset = _known.how.prepared(_made(name))
        if dataset is not _made(name):
            _known.datasets[name] = dataset
        return dataset
    raise ValueError(_unknown(name))


def forget() -> None:
    """Take datasets as they are by themselves again, and know none that was made by its path."""
    _known.how = _How()
    _known.datasets.clear()


def _unknown(name: str) -> str:
    """Say what is wrong with a name."""
    prefix = kind_of(name)
    if prefix is not None:
        return f"dataset {name!r} is made from {KINDS[prefix].what}; give {prefix}:PATH of it"
    near = difflib.get_close_matches(name, _classes(), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    made = "; ".join(f"{prefix}:PATH is {kind.what}" for prefix, kind in KINDS.items())
    return (
        f"no dataset is called {name!r}.{hint} Choose from {', '.join(_classes())}; "
        f"`patchrank list` shows them. {made}."
    )


def names_of(
    datasets: Sequence[str],
    *,
    root: Path | None = None,
    download: bool = False,
    templates: Sequence[str] | None = None,
    skip_bad: bool | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Return names for what the command line gives; nothing goes by a path from then on.

    Args:
        datasets: names, or ``PREFIX:PATH``; after this ``get_dataset`` knows the latter by name.
        root: folder that holds the datasets that aren't shipped; None for the environment's.
        download: get what is missing there.
        templates: prompts for all of them instead of their own.
        skip_bad: leave out images that can't be read; False refuses those found before.
        progress: where to show what takes long, and which images are left out.

    Raises:
        ValueError: two of one name; a root, and nothing that lies there; or see ``get_dataset``.
        FileNotFoundError: a dataset that isn't shipped, and no root.
    """
    _known.how = _How(
        root=root,
        download=download,
        templates=tuple(templates or ()),
        skip_bad=skip_bad,
        progress=progress or Progress(),
    )
    _known.datasets.clear()
    rooted = [word for word in datasets if issubclass(_classes().get(word, Dataset), RootedDataset)]
    useless = download and not any(kind.downloads for kind in map(_kind, datasets) if kind)
    if datasets and not rooted and (root is not None or useless):
        raise ValueError(
            f"--{'download' if root is None else 'root'}: none of {', '.join(datasets)} lies below "
            "a root; shipped datasets and PREFIX:PATH need none"
        )
    names = []
    for word in datasets:
        resolved = _kind(word) is not None or word in rooted or (templates and word in _classes())
        dataset = get_dataset(word) if resolved else None
        if isinstance(dataset, RootedDataset):
            _ = dataset.place  # refuses what has no root
        names.append(word if dataset is None else dataset.name)
    for word, name in zip(datasets, names, strict=True):
        if word != name and names.count(name) > 1:
            raise ValueError(
                f"dataset {word!r}: another one given is called {name!r}, too; rename the "
                f"{'file' if kind_of(word) == 'coop' else 'folder'}"
            )
    return names
