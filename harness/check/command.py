"""What ``check`` does: read expectations, measure, and judge or write anew."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from harness.check import shipped
from harness.check.asking import Towers, narrowed, refuse
from harness.check.bounds import Bounds
from harness.check.measured import Outcome, measure
from harness.check.moved import differing, moved
from harness.check.sheet import Verdict
from harness.check.suspects import require_revision, suspects
from harness.check.update import update
from harness.check.wanted import Case, cases_of, read_expectation
from harness.progress import Progress
from harness.shown import Shown
from zoo.files import write_whole


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
    if args.since is not None:
        require_revision(args.since)
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
        for rows in measure(timed, args.rounds, progress, towers.given(case.tower)):
            outcomes += rows
    found = [one for outcome in outcomes for one in moved(outcome, bounds)]
    changed = {(one.tower, one.dataset, one.row) for one in found}
    blamed = [outcome.wanted.record for outcome in outcomes if outcome.place in changed]
    commits = {record.git_commit for record in blamed if record is not None}
    return Verdict(
        rows=len(outcomes),
        moved=tuple(found),
        notes=_notes(outcomes),
        suspects=suspects(args.since, commits) if found else None,
    )


def _expected(files: Sequence[Path]) -> list[Case]:
    """Read expectations; the one that ships must have a row for every method of ours."""
    records = [record for file in files or shipped.files() for record in read_expectation(file)]
    where = ", ".join(str(file) for file in files) or "harness/expected"
    cases = cases_of(records, where)
    return cases if files else [shipped.complete(case) for case in cases]


def _notes(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Say once which conditions differ, and in how many rows."""
    pairs = [(one.wanted.record, one.now) for one in outcomes]
    both = [(then, now) for then, now in pairs if then is not None and now is not None]
    counts = Counter(text for then, now in both for text in differing(then, now))
    return tuple(
        text if count == len(both) else f"{text} ({count} of {len(both)} rows)"
        for text, count in counts.items()
    )
