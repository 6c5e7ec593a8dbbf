"""Write expectations anew, and say what that changed."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.check import shipped
from harness.check.asking import Towers, asks, new_case
from harness.check.bounds import EXACT
from harness.check.measured import Outcome, measure
from harness.check.moved import moved
from harness.check.sheet import Verdict
from harness.check.wanted import Case, Wanted, cases_of, read_expectation
from harness.commit import git_commit
from harness.measure.plan import Plan
from harness.progress import Progress
from harness.records import Record, write_records
from harness.towers import split_name
from zoo.files import write_whole
from zoo.predictor import tower_name

Place = tuple[str, str, str]  # tower, dataset and row
Known = dict[Place, Wanted]
Files = dict[Path, list[Outcome]]


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
        towers = Towers((args.models or Plan.models) if asks(args) else None)
        for file in args.files:
            known[file] = _known(file)
            measured[file] = _measured(_cases(args, file, towers), args, towers, progress)
    elif git_commit() is None:
        raise ValueError(
            "--update without FILE writes the expectation that ships with this package, for which "
            "it takes a checkout; name a FILE for one of your own"
        )
    else:
        case = shipped.whole(tower_name(*split_name(Plan.models[0])))
        for one in _measured([case], args, Towers(None), progress):
            measured.setdefault(shipped.place(one.dataset), []).append(one)
        known = {file: _known(file) for file in measured}
    outcomes = [one for file in measured for one in _beside(measured[file], known[file])]
    for file, found in measured.items():
        _write(file, [one.now for one in found if one.now is not None])
    notes = [f"wrote {file}" for file in measured]
    if (git_commit() or "").endswith("-dirty"):
        notes.append(
            f"measured with uncommitted changes on {git_commit()}; suspects of later checks begin "
            "after that commit"
        )
    differences = [one for outcome in outcomes for one in moved(outcome, EXACT)]
    return Verdict(rows=len(outcomes), moved=tuple(differences), notes=tuple(notes), update=True)


def _cases(args: argparse.Namespace, file: Path, towers: Towers) -> list[Case]:
    """Return what a file is to hold: what the flags ask for, or without flags what it holds."""
    if not asks(args) and file.exists():
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
    found: list[Outcome] = []
    for case in cases:
        timed = replace(
            case,
            device=args.device or case.device,
            batches=() if args.no_latency else case.batches,
        )
        for rows in measure(timed, args.rounds, progress, towers.given(case.tower)):
            found += rows
    return found


def _beside(found: Sequence[Outcome], known: Known) -> list[Outcome]:
    """Put what was measured beside what was known; what is known alone is gone."""
    outcomes = []
    for one in found:
        before = known.get(one.place)
        if one.now is not None or before is not None:
            record = None if before is None else before.record
            outcomes.append(replace(one, wanted=replace(one.wanted, record=record)))
    for (tower, dataset, _), row in known.items():
        gone = Outcome(tower=tower, dataset=dataset, wanted=row, now=None)
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
