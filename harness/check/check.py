"""Measure a reduced benchmark again and say what is no longer as expected, or write it anew."""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from harness import git_commit
from harness.check.cases import (
    BATCHES,
    KEEPS,
    LIMIT,
    Case,
    Choice,
    Row,
    cases_of,
    completed,
    read_expectation,
    rows_of,
    shipped_case,
    shipped_file,
    shipped_files,
)
from harness.check.verdict import EXACT, Bounds, Outcome, Verdict, differing, moved
from harness.console.table import Shown
from harness.console.terminal import Progress
from harness.datasets import get_dataset, kind_of, list_datasets
from harness.datasets.base import Dataset
from harness.datasets.few_shot import turns
from harness.measure.bench import Bench
from harness.measure.plan import Plan
from harness.measure.rows import Variant, golden_row, known_methods, reduced_row
from harness.models.towers import load_clip, split_name, text_classifier
from harness.records.conditions import DENSE, GOLDEN, Tuning
from harness.records.record import Record, write_records
from zoo.clip import ClipParts
from zoo.files import write_whole
from zoo.golden import GoldenConfig
from zoo.predictor import tower_name
from zoo.reducer import ReducerConfig
from zoo.sizes import MODELS
from zoo.text import CompactText
from zoo.vit import ReducedViT
from zoo.weights import fingerprint

# Flags that only say what is written; a check measures what the expectation did.
WRITTEN = ("split", "limit", "full", "dtype", "batches")
ASKED = ("models", "methods", "keeps", "datasets")

Place = tuple[str, str, str]  # tower, dataset and row
Known = dict[Place, Row]
Files = dict[Path, list[Outcome]]


def run_check(args: argparse.Namespace, status: Console) -> Shown:
    """Check expectations, or write them anew; with --markdown write the outcome, too.

    Raises:
        ValueError: flags that don't go together, or an expectation that can't be measured.
        FileNotFoundError: an expectation, weights or images are missing.
    """
    refuse(args)
    bounds = Bounds(
        images=args.images,
        flips=args.flips,
        cosine=args.cosine,
        tau=args.tau,
        slower=None if args.no_latency else args.slower,
    )
    progress = Progress(status)
    verdict = update(args, progress) if args.update else _check(args, bounds, progress)
    if args.markdown is not None:
        write_whole(args.markdown, verdict.markdown().encode())
    return verdict.shown()


def _check(args: argparse.Namespace, bounds: Bounds, progress: Progress) -> Verdict:
    towers = Towers(args.models)
    outcomes: list[Outcome] = []
    for case in narrowed(_expected(args.files), args, towers):
        timed = replace(case, batches=() if bounds.slower is None else case.batches)
        for rows in measure(timed, args.rounds, progress, towers.loaded(case.tower)):
            outcomes += rows
    changes = [one for outcome in outcomes for one in moved(outcome, bounds)]
    return Verdict(rows=len(outcomes), moved=tuple(changes), notes=_notes(outcomes))


def _expected(files: Sequence[Path]) -> list[Case]:
    """Read expectations; the one that ships must have a row for every method of ours."""
    records = [record for file in files or shipped_files() for record in read_expectation(file)]
    where = ", ".join(str(file) for file in files) or "harness/expected"
    cases = cases_of(records, where)
    return cases if files else [completed(case) for case in cases]


def _notes(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Say once which conditions differ, and in how many rows."""
    pairs = [(one.row.record, one.now) for one in outcomes]
    both = [(then, now) for then, now in pairs if then is not None and now is not None]
    counts = Counter(text for then, now in both for text in differing(then, now))
    return tuple(
        text if count == len(both) else f"{text} ({count} of {len(both)} rows)"
        for text, count in counts.items()
    )


def refuse(args: argparse.Namespace) -> None:
    """Refuse flags that don't go together, and values that would fail late.

    Raises:
        ValueError: names the flag.
    """
    for name in WRITTEN:
        if _has(args, name) and not args.update:
            raise ValueError(
                f"--{name} without --update: a check measures what the expectation did"
            )
    for name in (*ASKED, *WRITTEN):
        if _has(args, name) and args.update and not args.files:
            raise ValueError(
                f"--{name} with --update and no FILE: the shipped benchmark is written whole; name "
                "a FILE for an expectation of your own"
            )
    if args.update and len(args.files) > 1 and _asks(args):
        raise ValueError(
            "--update of several FILEs with other rows: give one FILE, or no flags that say what "
            "is measured"
        )
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
    methods = [Choice.of(text) for text in args.methods or known_methods()]
    return Case(
        tower=name,
        split=args.split or Plan.split,
        dtype=args.dtype or Plan.dtype,
        device=args.device or Plan.device,
        image_count=None if args.full else args.limit or LIMIT,
        batches=BATCHES if args.batches is None else tuple(args.batches),
        rows={
            dataset: rows_of(methods, args.keeps or KEEPS)
            for dataset in dict.fromkeys(args.datasets or Plan.datasets)
        },
    )


def narrowed(cases: Sequence[Case], args: argparse.Namespace, towers: "Towers") -> list[Case]:
    """Return the cases with the rows that the flags name; the dense one stays.

    Raises:
        ValueError: none is left, or a dataset isn't found by its name.
    """
    cases_left = []
    methods = [Choice.of(text).method for text in args.methods or ()]
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
            cases_left.append(replace(case, rows=rows, device=args.device or case.device))
    if not cases_left:
        flags = " ".join(f"--{name}" for name in ASKED if _has(args, name))
        towers_there = sorted({case.tower for case in cases})
        datasets = sorted({dataset for case in cases for dataset in case.rows})
        raise ValueError(
            f"{flags}: the expectation has no such row; it is of {', '.join(towers_there)} on "
            f"{', '.join(datasets)}"
        )
    return cases_left


class Towers:
    """Names of towers as they are loaded, and as records have them.

    Args:
        names: as ``load_clip`` takes them; None if the records say which.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        """Look up what they are called."""
        self._loaded: dict[str, str] = {}
        for name in names or ():
            if name.partition(".")[0] in MODELS:  # whose names say it without weights
                arch, tag = split_name(name)
            else:
                _, arch, tag = load_clip(name)
            self._loaded[tower_name(arch, tag)] = name

    @property
    def names(self) -> tuple[str, ...]:
        """As records have them, free of folders."""
        return tuple(self._loaded)

    def loaded(self, name: str) -> str:
        """Return how to load a tower of a record's name."""
        return self._loaded.get(name, name)


def _require_named(dataset: str, args: argparse.Namespace) -> None:
    prefix = kind_of(dataset)
    if dataset not in list_datasets() and dataset not in (args.datasets or ()) and prefix:
        raise ValueError(
            f"dataset {dataset!r} of the expectation is made from your files, and records hold no "
            f"path; say where they are: --datasets {prefix}:PATH"
        )


def _asks(args: argparse.Namespace) -> bool:
    """Tell whether a flag says what is measured."""
    return any(_has(args, name) for name in (*ASKED, *WRITTEN))


def _has(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) not in (None, False)


def measure(
    case: Case, rounds: int, progress: Progress, name: str | None = None
) -> Iterator[list[Outcome]]:
    """Measure a case; earlier records are never used again.

    Args:
        case: what to measure.
        rounds: latency samples.
        progress: where to show how far things are.
        name: the tower's, as it is loaded, if it isn't the case's (``local-dir:FOLDER``).

    Yields:
        The rows of one dataset after the other.

    Raises:
        ValueError: an unknown name, or something that can't be measured.
        FileNotFoundError: weights or images are missing.
    """
    parts, arch, tag = load_clip(name or case.tower)
    dense = parts.model.visual
    variants: dict[str, Variant] = {}
    for row in (row for rows in case.rows.values() for row in rows if row.known):
        if row.name not in variants:
            variants[row.name] = _variant(dense, arch, tag, row)
    plan = Plan(
        models=(case.tower,),
        methods=(),
        datasets=tuple(case.rows),
        limit=case.image_count,
        split=case.split,
        device=case.device,
        dtype=case.dtype,
        batches=case.batches,
        rounds=rounds,
    )
    bench = Bench.around(plan, parts, list(variants.values()), tag, fingerprint(dense), progress)
    for where, rows in case.rows.items():
        dataset = get_dataset(where)
        bench.plan, bench.view = _enough(plan, parts, dataset), None
        known = [row for row in rows if row.known]
        records = bench.judged(dataset, Tuning(), [variants[row.name] for row in known], {})
        if len(records) < len(known):  # the images have no golden rankings
            known = [row for row in known if row.method != GOLDEN]
        now = dict(zip((row.name for row in known), records, strict=True))
        yield [
            Outcome(tower=case.tower, dataset=where, row=row, now=now.get(row.name)) for row in rows
        ]


def _variant(dense: ReducedViT, arch: str, tag: str, row: Row) -> Variant:
    """Make a row that can be run."""
    if row.method == DENSE:
        return Variant(model=arch, method=DENSE, keep=1.0, vit=dense, config={})
    name = f"{arch}_{row.method}{round(100 * row.keep)}"
    if row.method == GOLDEN:
        config = ReducerConfig(keep=row.keep, reduce_at=(GoldenConfig.block,))
        return golden_row(dense, name, config)
    options = {"keep": row.keep, **row.options}
    return reduced_row(dense, arch, tag, name, row.method, options, what=row.what)


def _enough(plan: Plan, parts: ClipParts, dataset: Dataset) -> Plan:
    """Return the plan with a limit that leaves as many images as the expectation has.

    A compact text tower can't name every class, and images of those it can't are left out after
    the limit was applied. A smaller subset is part of a larger one, so the number of those judged
    says which they are.
    """
    if plan.limit is None or not isinstance(parts.model.text, CompactText):
        return plan
    classifier, left_out = text_classifier(parts, dataset)
    if not left_out:
        return plan
    labels = dataset.split(plan.split).labels
    named = ~classifier.isnan().any(dim=1).numpy()[labels[turns(labels)]]
    judged = np.cumsum(named)
    return replace(plan, limit=int(np.searchsorted(judged, plan.limit)) + 1)


def update(args: argparse.Namespace, progress: Progress) -> Verdict:
    """Measure what the flags or the files themselves ask for, and write it.

    Files are written when everything is measured, each whole or not at all.

    Raises:
        ValueError: flags that don't go together, or something that can't be measured.
        FileNotFoundError: weights or images are missing.
        OSError: a FILE can't be written; nothing is measured.
    """
    for file in args.files:
        _require_place(file)
    measured: Files = {}
    known: dict[Path, Known] = {}
    if args.files:
        towers = Towers((args.models or Plan.models) if _asks(args) else None)
        for file in args.files:
            known[file] = _known(file)
            measured[file] = _measured(_cases(args, file, towers), args, towers, progress)
    elif git_commit() is None:
        raise ValueError(
            "--update without FILE writes the expectation that ships with this package, for which "
            "it takes a checkout; name a FILE for one of your own"
        )
    else:
        case = shipped_case(tower_name(*split_name(Plan.models[0])))
        for one in _measured([case], args, Towers(None), progress):
            measured.setdefault(shipped_file(one.dataset), []).append(one)
        known = {file: _known(file) for file in measured}
    outcomes = [one for file in measured for one in _beside(measured[file], known[file])]
    for file, found in measured.items():
        _write(file, [one.now for one in found if one.now is not None])
    notes = [f"wrote {file}" for file in measured]
    if (git_commit() or "").endswith("-dirty"):
        notes.append(f"measured with uncommitted changes on {git_commit()}")
    differences = [one for outcome in outcomes for one in moved(outcome, EXACT)]
    return Verdict(rows=len(outcomes), moved=tuple(differences), notes=tuple(notes), update=True)


def _cases(args: argparse.Namespace, file: Path, towers: Towers) -> list[Case]:
    """Return what a file is to hold: what the flags ask for, or without flags what it holds."""
    if not _asks(args) and file.exists():
        return cases_of(read_expectation(file), str(file))
    names = towers.names or Towers(Plan.models).names
    return [new_case(args, name) for name in names]


def _known(file: Path) -> Known:
    """Return what a file holds already."""
    if not file.exists():
        return {}
    return {
        (case.tower, dataset, row.name): row
        for case in cases_of(read_expectation(file), str(file))
        for dataset, rows in case.rows.items()
        for row in rows
    }


def _measured(
    cases: Sequence[Case], args: argparse.Namespace, towers: Towers, progress: Progress
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for case in cases:
        timed = replace(
            case,
            device=args.device or case.device,
            batches=() if args.no_latency else case.batches,
        )
        for rows in measure(timed, args.rounds, progress, towers.loaded(case.tower)):
            outcomes += rows
    return outcomes


def _beside(found: Sequence[Outcome], known: Known) -> list[Outcome]:
    """Put what was measured beside what was known; what is known alone is gone."""
    outcomes = []
    for one in found:
        before = known.get(one.place)
        if one.now is not None or before is not None:
            record = None if before is None else before.record
            outcomes.append(replace(one, row=replace(one.row, record=record)))
    for (tower, dataset, _), row in known.items():
        gone = Outcome(tower=tower, dataset=dataset, row=row, now=None)
        if gone.place not in {one.place for one in found}:
            outcomes.append(gone)
    return outcomes


def _require_place(file: Path) -> None:
    """Refuse a file that couldn't be written once all is measured; its folder is made."""
    if file.is_dir():
        raise IsADirectoryError(
            f"--update of {str(file)!r}, which is a folder; give a file of records, such as "
            f"{str(file / 'expected.jsonl')!r}"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise OSError(
            f"--update of {str(file)!r}: its folder can't be written to ({error.strerror}); name "
            "a file elsewhere"
        ) from error


def _write(file: Path, records: Sequence[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / file.name
        write_records(draft, records)
        content = draft.read_bytes()
    write_whole(file, content)
