"""Datasets that are given by a path get names."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

from harness.datasets import names_of
from harness.progress import Progress


def name_datasets(args: Namespace, status: Console) -> None:
    """Put names where datasets are given by a path, and say how all of them are taken.

    Raises:
        ValueError: a flag for datasets with ``--images``, or a dataset that can't be.
    """
    flags = vars(args)
    told = {
        name: flags[name] for name in ("root", "download", "templates", "skip_bad") if name in flags
    }
    if isinstance(flags.get("images"), Path) and any(told.values()):
        flag = next(name for name, value in told.items() if value).replace("_", "-")
        raise ValueError(f"--{flag} with --images: it is for datasets; use --dataset folder:PATH")
    option = "datasets" if "datasets" in flags else "dataset"
    given = flags.get(option) or []
    if flags.get("dry_run") or flags.get("runs"):
        given = []  # what is missing is part of what it tells; two runs need no images
    names = names_of(
        [given] if isinstance(given, str) else given, **told, progress=Progress(status)
    )
    if given:
        setattr(args, option, names[0] if isinstance(given, str) else names)
