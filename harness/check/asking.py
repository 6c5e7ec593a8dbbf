"""From the flags of ``check`` to cases, and from cases to those that are asked for."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from harness.check import shipped
from harness.check.asked import Asked, rows_of
from harness.check.wanted import Case
from harness.commands import check
from harness.conditions import DENSE
from harness.datasets import kind_of, list_datasets
from harness.measure.plan import Plan
from harness.measure.rows import known_methods
from harness.towers import load_clip, split_name
from zoo.predictor import tower_name
from zoo.sizes import MODELS

# Flags that only say what is written; a check measures what the expectation did.
WRITTEN = ("split", "limit", "full", "dtype", "batches")
ASKED = ("models", "methods", "keeps", "datasets")


def refuse(args: argparse.Namespace) -> None:
    """Refuse flags that don't go together, and values that would fail late.

    Raises:
        ValueError: names the flag.
    """
    for name in WRITTEN:
        if _given(args, name) and not args.update:
            raise ValueError(
                f"--{name} without --update: a check measures what the expectation did"
            )
    for name in (*ASKED, *WRITTEN):
        if _given(args, name) and args.update and not args.files:
            raise ValueError(
                f"--{name} with --update and no FILE: the shipped benchmark is written whole; name "
                "a FILE for an expectation of your own"
            )
    if args.update and len(args.files) > 1 and asks(args):
        raise ValueError(
            "--update of several FILEs with other rows: give one FILE, or no flags that say what "
            "is measured"
        )
    check(args)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected a number from 1")
    if args.markdown is not None:
        if not args.markdown.parent.is_dir():
            raise FileNotFoundError(f"--markdown {str(args.markdown)!r}: its folder doesn't exist")
        if args.markdown.is_dir():
            raise IsADirectoryError(
                f"--markdown {str(args.markdown)!r} is a folder; give a file, such as "
                f"{str(args.markdown / 'check.md')!r}"
            )


def new_case(args: argparse.Namespace, name: str) -> Case:
    """Return what the flags ask to be measured on the tower ``name``, with its tag."""
    methods = [Asked.of(text) for text in args.methods or known_methods()]
    return Case(
        tower=name,
        split=args.split or Plan.split,
        dtype=args.dtype or Plan.dtype,
        device=args.device or Plan.device,
        image_count=None if args.full else args.limit or shipped.LIMIT,
        batches=shipped.BATCHES if args.batches is None else tuple(args.batches),
        rows={
            dataset: rows_of(methods, args.keeps or shipped.KEEPS)
            for dataset in dict.fromkeys(args.datasets or Plan.datasets)
        },
    )


def narrowed(cases: Sequence[Case], args: argparse.Namespace, towers: "Towers") -> list[Case]:
    """Return the cases with the rows that the flags name; the dense one stays.

    Raises:
        ValueError: none is left, or a dataset isn't found by its name.
    """
    found = []
    methods = [Asked.of(text).method for text in args.methods or ()]
    for case in cases:
        rows = {
            dataset: [
                row
                for row in there
                if row.method == DENSE
                or (
                    (not methods or row.method in methods)
                    and row.keep in (args.keeps or (row.keep,))
                )
            ]
            for dataset, there in case.rows.items()
            if dataset in (args.datasets or (dataset,))
        }
        if rows and case.tower in (towers.names or (case.tower,)):
            for dataset in rows:
                _require_named(dataset, args)
            found.append(replace(case, rows=rows, device=args.device or case.device))
    if not found:
        asked = " ".join(f"--{name}" for name in ASKED if _given(args, name))
        towers_there = sorted({case.tower for case in cases})
        datasets = sorted({dataset for case in cases for dataset in case.rows})
        raise ValueError(
            f"{asked}: the expectation has no such row; it is of {', '.join(towers_there)} on "
            f"{', '.join(datasets)}"
        )
    return found


class Towers:
    """Names of towers as they are given, and as records have them.

    Args:
        given: as ``load_clip`` takes them; None if the records say which.
    """

    def __init__(self, given: Sequence[str] | None) -> None:
        """Look up what they are called."""
        self._given: dict[str, str] = {}
        for name in given or ():
            if name.partition(".")[0] in MODELS:  # whose names say it without weights
                arch, tag = split_name(name)
            else:
                _, arch, tag = load_clip(name)
            self._given[tower_name(arch, tag)] = name

    @property
    def names(self) -> tuple[str, ...]:
        """As records have them, free of folders."""
        return tuple(self._given)

    def given(self, name: str) -> str:
        """Return how to load a tower of a record's name."""
        return self._given.get(name, name)


def _require_named(dataset: str, args: argparse.Namespace) -> None:
    prefix = kind_of(dataset)
    if dataset not in list_datasets() and dataset not in (args.datasets or ()) and prefix:
        raise ValueError(
            f"dataset {dataset!r} of the expectation is made from your files, and records hold no "
            f"path; say where they are: --datasets {prefix}:PATH"
        )


def asks(args: argparse.Namespace) -> bool:
    """Tell whether a flag says what is measured."""
    return any(_given(args, name) for name in (*ASKED, *WRITTEN))


def _given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) not in (None, False)
