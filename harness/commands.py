"""What the subcommands do: from parsed arguments to files and tables."""

import argparse
from collections.abc import Iterable
from typing import Any, TypeVar

from rich.console import Console

from harness.averages import Average, averages
from harness.conditions import DENSE, DTYPES, GOLDEN
from harness.golden.store import Rankings
from harness.match import matched
from harness.measure.compare import Floor, compare, floor, judge
from harness.measure.plan import Plan
from harness.measure.rows import known_methods
from harness.progress import Progress
from harness.records import Record, earlier, require_appendable, write_records
from harness.report.folder import write_report
from harness.report.tables import comparison_table, floor_table, matched_table, shot_tables
from harness.shown import Shown, Work, json_values
from harness.towers import split_method
from harness.traces import Tracer
from zoo.reducer import expected

T = TypeVar("T")


def limit_of(args: argparse.Namespace) -> int | None:
    """Return how many images ``--limit`` asks for, None for all.

    Raises:
        ValueError: less than one.
    """
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected a number from 1, or --full")
    return None if args.full else int(args.limit)


def run_compare(args: argparse.Namespace, status: Console) -> Shown | Work:
    """Measure side by side, or tell what changed between two runs."""
    if args.runs:
        from harness.changes import run_changes

        return run_changes(args, status)
    return side_by_side(args, status)


def side_by_side(args: argparse.Namespace, status: Console) -> Work:
    """Measure, show a table per dataset, write records, report, Markdown and plot."""
    limit = limit_of(args)
    check(args)
    path = args.output / "records.jsonl"
    require_appendable(path)
    plan = Plan(
        **_conditions(args, limit),
        models=_once(args.models),
        methods=tuple(args.methods or _all_methods(args.match)),
        keeps=tuple(args.keeps),
        datasets=_once(args.datasets),
        shots=_once(args.shots),
        tokens=args.tokens,
        num_tokens=args.num_tokens,
        seeds=args.seeds,
        batches=tuple(args.batches),
        rounds=args.rounds,
        match=args.match,
        match_to=args.match_to,
    )
    known = earlier(path, Progress(status), fresh=args.fresh)
    told = {"images": args.traces, "thumbnails": args.thumbnails}
    tracer = Tracer(run=args.output, progress=Progress(status), **told)
    records: list[Record] = []
    groups: list[list[Average]] = []  # of one dataset and tower
    for group in compare(plan, known, Progress(status), tracer):
        fresh = [record for record in group if record not in known]
        if fresh:
            write_records(path, fresh)
        records += group
        yield comparison_table(group)
        if plan.match is not None:
            yield matched_table(matched(group, plan.match_to))
        groups.append(averages(group))
        if group[0].shots == plan.shots[-1]:
            yield from shot_tables(groups)
            groups = []
    # The page has all plots; `report` writes them as files, too.
    drawn = ("accuracy_gflops.svg",)
    told = {"runs": [args.output], "sources": [str(args.output)] * len(records)}
    write_report(records, args.output, Progress(status), **told, drawn=drawn)
    text = f"records: {path}; report: {args.output / 'report.html'}"
    status.print(text, highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(), data={"records": json_values(records)})


def _once(given: Iterable[T]) -> tuple[T, ...]:
    """Return what was given without repeats, each of which would be measured twice."""
    return tuple(dict.fromkeys(given))


def _all_methods(match: str | None) -> tuple[str, ...]:
    """Return every method; where cost counts, not the oracle, which has none."""
    return tuple(name for name in known_methods() if match is None or name != GOLDEN)


def run_eval(args: argparse.Namespace, status: Console) -> Shown:
    """Measure one model."""
    records = evaluated(args, status)
    return Shown(parts=(comparison_table(records),), data={"records": json_values(records)})


def evaluated(args: argparse.Namespace, status: Console) -> list[Record]:
    """Measure one model beside its dense tower, or alone with prompts that were learned for it."""
    limit = limit_of(args)
    check(args)
    dense, method, keep = split_method(args.model)
    plan = Plan(
        **_conditions(args, limit),
        models=(dense,),
        methods=(method or DENSE,),
        keeps=(keep,),
        datasets=(args.dataset,),
        shots=(args.shots,),
        tokens=args.tokens,
        num_tokens=args.num_tokens,
        seeds=1,
        batches=(),
    )
    if args.prompts is not None:
        defaults = {"shots": 0, "tokens": Plan.tokens, "num_tokens": Plan.num_tokens}
        for name, default in defaults.items():
            if (given := getattr(args, name)) != default:
                raise ValueError(
                    f"--prompts {str(args.prompts)!r} with --{name.replace('_', '-')} {given}: the "
                    "file says what it was learned from; give one of the two"
                )
        return judge(plan, args.prompts, Progress(status))
    return next(compare(plan, [], Progress(status)))


def run_floor(args: argparse.Namespace, status: Console) -> Work:
    """Measure methods against random pruning, and show a table per dataset."""
    limit = limit_of(args)
    check(args)
    plan = Plan(
        **_conditions(args, limit),
        models=(args.model,),
        methods=tuple(args.methods),
        keeps=tuple(args.keeps),
        datasets=tuple(args.datasets),
    )
    given = [Rankings.read(path) for path in args.rankings]
    found: list[Floor] = []
    for rows in floor(plan, args.seeds, Progress(status), given):
        found += rows
        yield floor_table(rows, args.seeds)
    return Shown(parts=(), data={"random_orders": args.seeds, "rows": json_values(found)})


def _conditions(args: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """Return the fields of ``Plan`` that every measuring command takes from the same flags."""
    same = ("split", "seed", "device", "dtype")
    return {"limit": limit, **{name: getattr(args, name) for name in same}}


def check(args: argparse.Namespace) -> None:
    """Refuse values that would fail late; what is None wasn't given.

    Raises:
        ValueError: dtype, device, keep rate, batch size or rounds.
    """
    if args.dtype is not None and args.dtype not in DTYPES:
        raise ValueError(f"--dtype {args.dtype!r}: {expected(args.dtype, DTYPES)}")
    for keep in getattr(args, "keeps", None) or ():
        if not 0 < keep <= 1:
            raise ValueError(f"--keeps {keep:g}: expected fractions in (0, 1], such as 0.6")
    for option, values in (
        ("batches", getattr(args, "batches", None) or ()),
        ("rounds", [getattr(args, "rounds", 1)]),
        ("batch", [getattr(args, "batch", 1)]),
    ):
        for value in values:
            if value < 1:
                raise ValueError(f"--{option} {value}: expected a number from 1")
    if args.device is not None:
        check_device(args.device)


def check_device(device: str) -> None:
    """Refuse a device that isn't there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} can't be used here: {error}") from error
