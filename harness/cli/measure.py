"""Subcommands that measure models: ``compare``, ``eval``, ``latency``."""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.base.table import Shown, Work, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import Command, CommandParser

if TYPE_CHECKING:
    from harness.records.record import Record


def _compare_flags(parser: CommandParser) -> None:
    from harness.measure.plan import TRACED, Plan

    text = "two files of records, or their folders: what changed; nothing is measured then"
    runs = parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", default=[], help=text)
    # Not "*": that takes nothing before the first flag, and refuses the runs after it.
    runs.required = False
    what = parser.add_argument_group("what is compared")
    text = "dense names"
    several: dict[str, Any] = {"dest": "models", "nargs": "+", "metavar": "MODEL"}
    what.add_argument("--model", default=list(Plan.models), help=text, **several)
    flags.methods(what, None, "default: all but other papers'; see `list`")
    flags.keeps(what, list(Plan.keeps))
    what.add_argument("--match", metavar="WHAT", help="gflops or time: rows of equal cost, not keep")
    text = "others' fidelity is compared with its; with --match they meet its cost"
    what.add_argument("--match-to", metavar="METHOD", default=Plan.match_to, help=text)
    flags.fields(what, Plan, match_batch="images per call, where time is matched")
    text = "rows with recovery, in tables of their own; as `fit recovery` writes"
    several |= {"dest": "recoveries", "metavar": "FILE"}
    what.add_argument("--recovery", type=Path, default=[], help=text, **several)
    text = "without the tables of rows at equal time in the end"
    what.add_argument("--no-equal-time", dest="equal_time", action="store_false", help=text)
    flags.datasets(what, list(Plan.datasets))
    text = "labelled images per class; 0: text classifier"
    flags.number(what, "--shots", list(Plan.shots), text, nargs="+", metavar="K")
    _learned(what)
    flags.fields(what, Plan, seeds="with shots; from --seed on")
    flags.data(parser)
    how = flags.conditions(parser)
    flags.number(how, "--rounds", Plan.rounds, "latency samples", kind=flags.positive)
    sizes = list(Plan.batches)
    flags.number(how, "--batches", sizes, "for latency", kind=flags.positive, nargs="*")
    files = parser.add_argument_group("files")
    flags.fresh(files)
    flags.output(files, "results", "folder of the run")
    flags.number(files, "--traces", TRACED, "images of each dataset whose kept patches are stored; 0: none")
    text = "store no small copies of these images"
    files.add_argument("--no-thumbnails", dest="thumbnails", action="store_false", help=text)


def _learned(group: Any) -> None:
    """Add what is learned from shots."""
    from harness.measure.plan import Plan

    text = "learned from shots: t text, v visual, vt both, probe a linear classifier instead"
    group.add_argument("--tokens", default=Plan.tokens, help=text)
    flags.fields(group, Plan, num_tokens="learned tokens")


def run_compare(args: Namespace, status: Console) -> Shown | Work:
    """Measure side by side, or tell what changed between two runs, which takes no flag but --output.

    Raises:
        ValueError: not two runs, or a flag for measuring.
    """
    if not args.runs:
        return _side_by_side(args, status)
    from harness.report.changes import compare_runs

    words = takewhile(lambda word: word != "--", args.argv)
    given = [word for word in words if word.startswith("--")]
    if wrong := [flag for flag in given if flag.split("=")[0] != "--output"]:
        raise ValueError(
            f"{wrong[0]} with runs to compare: it is for measuring; expected compare RUN_A RUN_B, "
            "with --output at most, or no runs"
        )
    if len(args.runs) != 2:
        raise ValueError(
            f"compare {' '.join(repr(str(run)) for run in args.runs)}: expected two runs, "
            "patchrank compare RUN_A RUN_B, or none, to measure"
        )
    a, b = args.runs
    return compare_runs(a, b, args.output if given else None)


def _side_by_side(args: Namespace, status: Console) -> Work:
    """Measure while no other run writes to the folder."""
    from harness.base.lines import require_appendable
    from harness.base.store import claim
    from harness.records.record import RECORDS

    require_appendable(args.output / RECORDS)
    with claim(args.output):
        return (yield from _measured_side_by_side(args, status))


def _measured_side_by_side(args: Namespace, status: Console) -> Work:
    """Measure, show a table per dataset, write records, report, Markdown and plot."""
    from harness.measure.compare import compare
    from harness.measure.plan import Plan, at_equal_time
    from harness.measure.rows import usual_methods
    from harness.measure.traces import Tracer
    from harness.records.averages import match_costs, training_free
    from harness.records.conditions import GOLDEN
    from harness.records.record import RECORDS, earlier, record_values, write_records
    from harness.report.folder import write_report
    from harness.report.groups import group_records, shot_columns
    from harness.report.tables import comparison_table, matched_table, shot_table

    path, progress = args.output / RECORDS, Progress(status)
    # Where cost counts, all but the oracle, which has none.
    every = [name for name in usual_methods() if args.match is None or name != GOLDEN]
    methods = tuple(args.methods or every)
    plan = flags.settings(Plan, args, methods=methods)
    known = earlier(path, progress, fresh=args.fresh)
    stored = {"images": args.traces, "thumbnails": args.thumbnails}
    tracer = Tracer(run=args.output, progress=progress, **stored)
    records: list[Record] = []
    groups: list[list[Record]] = []  # of one dataset and tower
    done = 0

    more = at_equal_time(plan) if args.equal_time else None

    def measured(plan: Plan, tracer: Tracer | None = None) -> "Iterator[list[Record]]":
        for group in compare(plan, known, progress, tracer):
            if fresh := [record for record in group if record not in known]:
                write_records(path, fresh)
            records.extend(group)
            yield group

    total = sum(len(one.models) * len(one.datasets) * len(one.shots) for one in (plan, more) if one is not None)
    with progress.task("compare, datasets x towers x shots", total) as update:
        for group in measured(plan, tracer):
            with progress.hidden():
                for part in training_free(group):
                    yield comparison_table(part, plan.match_to)
                if plan.match is not None:
                    yield matched_table(match_costs(group, plan.match_to, plan.timed_batch))
                groups.append(group)
                if group[0].shots == plan.shots[-1]:
                    yield from map(shot_table, shot_columns(group_records(chain.from_iterable(groups))))
                    groups = []
            update(done := done + 1)
        if more is not None:
            for group in measured(more):
                with progress.hidden():
                    yield matched_table(match_costs(group, more.match_to, more.timed_batch))
                update(done := done + 1)
    sources = [str(args.output)] * len(records)
    drawn = ("fidelity_gflops.svg", "accuracy_gflops.svg")  # the page has all plots; `report` writes them as files, too
    write_report(records, args.output, progress, runs=[args.output], sources=sources, drawn=drawn)
    progress.say(f"records: {path}; report: {args.output / 'report.html'}")
    return Shown(parts=(), data={"records": [record_values(record) for record in records]})


def _eval_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", required=True, help="a model's name, dense or reduced")
    flags.dataset(what, required=True)
    flags.number(what, "--shots", 0, "0: text classifier", metavar="K")
    _learned(what)
    what.add_argument("--prompts", type=Path, metavar="FILE", help="learned before; no --shots")
    what.add_argument("--recovery", type=Path, metavar="FILE", help="trained before; it says the method")
    flags.data(parser)
    flags.conditions(parser)


def run_eval(args: Namespace, status: Console) -> Shown:
    """Measure one model."""
    from harness.records.record import record_values
    from harness.report.tables import comparison_table

    groups = evaluated(args, status)
    data = {"records": [record_values(record) for group in groups for record in group]}
    return Shown(parts=tuple(map(comparison_table, groups)), data=data)


def evaluated(args: Namespace, status: Console) -> "Sequence[list[Record]]":
    """Measure one model beside its dense tower, and then with prompts that were learned for it."""
    from harness.measure.compare import compare, judge
    from harness.measure.plan import Plan, recovered_alone
    from harness.models.names import split_method
    from harness.records.conditions import DENSE

    dense, method, keep = split_method(args.model)
    row = {"models": (dense,), "methods": (method or DENSE,), "keeps": (keep,)}
    data = {"datasets": (args.dataset,), "shots": (args.shots,), "seeds": 1, "batches": ()}
    plan = flags.settings(Plan, args, **row, **data)
    if args.recovery is not None:
        plan = recovered_alone(plan, args.recovery)
    progress = Progress(status)
    if args.prompts is None:
        return [next(compare(plan, [], progress))]
    for name, default in (("shots", 0), ("tokens", Plan.tokens), ("num_tokens", Plan.num_tokens)):
        if (value := getattr(args, name)) != default:
            raise ValueError(
                f"--prompts {str(args.prompts)!r} with --{name.replace('_', '-')} {value}: the "
                "file says what it was learned from; give one of the two"
            )
    return judge(plan, args.prompts, progress)


def _latency_flags(parser: CommandParser) -> None:
    from harness.measure.latency import CPU_BATCHES, CUDA_BATCHES, LatencyPlan
    from harness.measure.ways import RUNTIMES, WAYS

    what = parser.add_argument_group("what is timed")
    text = "reduced or dense models' names; see `list`"
    what.add_argument("--model", dest="models", nargs="+", metavar="MODEL", required=True, help=text)
    flags.methods(what, [], "of each dense tower, too")
    flags.keeps(what, list(LatencyPlan.keeps), "of --methods", float)
    flags.random_weights(what, "none are loaded; times don't depend on them")
    how = parser.add_argument_group("conditions")
    usual, on_cuda = (" ".join(map(str, sizes)) for sizes in (CPU_BATCHES, CUDA_BATCHES))
    flags.number(how, "--batches", None, f"images per call; default: {usual}, on CUDA {on_cuda}", nargs="+")
    flags.number(how, "--image-sizes", [], "pixels a side; default: the tower's own", nargs="+", metavar="N")
    text = "float32, bfloat16 or float16"
    dtypes, ways = list(LatencyPlan.dtypes), list(LatencyPlan.ways)
    how.add_argument("--dtypes", nargs="+", metavar="DTYPE", default=dtypes, help=text)
    how.add_argument("--ways", nargs="+", metavar="WAY", default=ways, help=", ".join(WAYS))
    text = f"in one table, against dense in eager float32: {', '.join(RUNTIMES)}"
    how.add_argument("--runtimes", nargs="+", metavar="RUNTIME", default=[], help=text)
    flags.number(how, "--threads", None, "torch's; default: as many as it takes", nargs="+")
    flags.device(how)
    flags.fields(how, LatencyPlan, rounds="calls of each model, in turn, at least")
    flags.number(how, "--seconds", LatencyPlan.seconds, "rounds go on for so long", metavar="S")
    where = parser.add_argument_group("files")
    flags.fresh(where, "time again what is known")
    flags.output(where, "results", "folder")


def run_latency(args: Namespace, status: Console) -> Work:
    """Time models in turn with their dense towers, and write records and tables."""
    import torch

    from harness.base.lines import require_appendable
    from harness.measure.latency import LatencyPlan, batches_for, measure_latency
    from harness.measure.timing import load_1min
    from harness.records import times
    from zoo.core.files import write_whole

    progress = Progress(status)
    batches = batches_for(args.device, args.batches)
    threads = tuple(dict.fromkeys(args.threads or [torch.get_num_threads()]))
    plan = flags.settings(LatencyPlan, args, batches=batches, threads=threads)
    if args.batches is None:
        progress.say(f"batches {' '.join(map(str, plan.batches))}; --batches names others")
    load, cores = load_1min(), os.cpu_count() or 1
    if load is not None and load > cores / 2:
        progress.say(
            f"this machine is busy: a load of {load:.1f} on {cores} cores in the last minute; "
            "times will be longer and spread wider"
        )
    path, markdown = args.output / times.LATENCIES, args.output / "latency.md"
    require_appendable(path)
    known = times.earlier_times(path, progress, fresh=args.fresh)

    def timed() -> Iterator[times.LatencyRecord]:
        for cell, new in measure_latency(plan, known, progress):
            if new:
                times.write_latencies(path, new)
            yield from cell

    records: list[times.LatencyRecord] = []
    for _, group in groupby(timed(), key=times.table_of):
        table = list(group)
        yield from times.latency_tables(table)
        records += table
    write_whole(markdown, times.latency_markdown(records).encode())
    progress.say(f"records: {path}; tables: {markdown}")
    return Shown(parts=(), data={"path": str(path), "records": json_values(records)})


COMMANDS = (
    Command(
        path="compare",
        what="Measure methods side by side: accuracy, cost, latency, agreement; or tell what changed between two runs.",
        flags=_compare_flags,
        run=run_compare,
        examples=(
            ("compare --methods patchrank evit --keeps 0.7 0.5", "two methods, no shots"),
            ("compare --dataset fashion --shots 0 16 --tokens t", "with tokens from 16 shots"),
            ("compare --match gflops --keeps 0.6 --output equal", "at patchrank's cost"),
            ("compare results equal", "what changed between two runs; measures nothing"),
            ("compare --json --limit 8 --batches 1 > run.json", "for a program"),
        ),
        output="a table per dataset on standard output; records.jsonl, report.html, table.md, "
        "table.csv, table.tex, agreement.csv, two plots, traces and "
        "thumbnails in --output. The same command goes on where it stopped. With two runs: what "
        "changed, and with --output changes.md",
    ),
    Command(
        path="eval",
        what="Measure one model's accuracy and agreement on one dataset.",
        flags=_eval_flags,
        run=run_eval,
        examples=(
            ("eval --model clip_vit_s14_patchrank60 --dataset emoji", "a model that ships"),
            ("eval --model clip_vit_b16_tome50 --dataset folder:photos --full", "on your own images"),
            ("eval --model clip_vit_s14 --dataset emoji --shots 4 --tokens probe", "a linear probe"),
        ),
        output="a table on standard output, the model beside its dense tower; with --prompts a second one, the model "
        "with them; no files",
    ),
    Command(
        path="latency",
        what="Time models in turn with their dense towers, and say what can be concluded.",
        flags=_latency_flags,
        run=run_latency,
        examples=(
            ("latency --model clip_vit_s14_patchrank60 clip_vit_s14_tome60 --batches 1 8", "that ship"),
            ("latency --model clip_vit_b16_evit60 --random-weights --ways eager compile", "compiled, too"),
            ("latency --model clip_vit_b16_rankmerge50 --random-weights --image-sizes 384 512", "larger images"),
            ("latency --model clip_vit_s14_rankmerge60 --runtimes onnx openvino --dtypes float32 bfloat16", "files"),
            ("latency --model clip_vit_b16_tome60 --device cuda --ways eager cuda-graphs", "on a GPU"),
        ),
        output="a table per condition on standard output; latency.jsonl and latency.md in "
        "--output. The same command goes on where it stopped",
    ),
)
