"""Subcommands that measure or list models: ``compare``, ``eval``, ``latency``, ``report``, ``list``, ``datasets``."""

import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.table import NOT_MEASURED, Part, Shown, Table, Work, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import PROGRAM, SHARED

if TYPE_CHECKING:
    from harness.measure.settings import Plan
    from harness.records.record import Record


def run_compare(args: Namespace, progress: Progress) -> Shown | Work:
    """Measure side by side, or show the changes between two runs, which takes no flag."""
    if not args.runs:
        return _side_by_side(args, progress)
    from harness.report.changes import compare_runs

    given = {word.partition("=")[0] for word in takewhile(lambda word: word != "--", args.argv) if word[:2] == "--"}
    if wrong := sorted(given - {*SHARED}):
        raise ValueError(f"{wrong[0]} can't be given with runs, which are only compared; expected compare RUN_A RUN_B")
    if len(args.runs) != 2:
        given_runs = " ".join(repr(str(run)) for run in args.runs)
        raise ValueError(f"compare {given_runs}: expected two runs, {PROGRAM} compare RUN_A RUN_B, or none, to measure")
    return compare_runs(*args.runs)


def _side_by_side(args: Namespace, progress: Progress) -> Work:
    """Measure, show a table per dataset, write records and the report, and draw the conclusion."""
    from harness.apps.compare import compare
    from harness.apps.show import draw_galleries
    from harness.base.lines import require_appendable
    from harness.base.store import lock_folder
    from harness.records.averages import training_free
    from harness.records.record import RECORDS, UNFINISHED, earlier, halves, keep_new, record_values
    from harness.report.folder import write_report
    from harness.report.tables import comparison_table

    path, plan = args.output / RECORDS, _plan_of(args)
    records: list[Record] = []

    require_appendable(path)
    with lock_folder(args.output):  # no other run writes there
        known = earlier(path, fresh=args.fresh)
        for group in compare(plan, known, progress, folder=path.with_suffix(UNFINISHED)):
            keep_new(path, group, known)
            records += group
            parts = (group, *halves(group)) if args.halves else (group,)
            for part in chain.from_iterable(map(training_free, parts)):
                table = comparison_table(part, plan.match_to, plan.batches)
                yield table
                yield from table.notes
        if not args.no_gallery and records:
            draw_galleries(plan, dict.fromkeys(record.dataset for record in records), args.output)
        drawn = ("fidelity_gflops.svg", "accuracy_gflops.svg")  # `report` writes all
        report = write_report({str(args.output): records}, args.output, progress, drawn=drawn, by_half=args.halves)
    progress.say(f"records: {path}; report: {args.output / 'report.html'}")
    for line in _next_steps(args, plan):
        progress.say(line)
    data = {"records": [record_values(record) for record in records], "conclusion": report.data["conclusion"]}
    return Shown(parts=tuple(data["conclusion"]), data=data)


def _plan_of(args: Namespace) -> "Plan":
    """Return the plan of `compare`: by default the methods of published comparisons and a faster dense row."""
    from harness.measure.rows import usual_methods
    from harness.measure.settings import Plan
    from harness.records.averages import reference_of
    from harness.records.record import GOLDEN, RANDOM, UNREDUCED

    methods = tuple(args.methods or (name for name in usual_methods() if name not in (GOLDEN, RANDOM)))
    reduced = [name for name in methods if name not in (*UNREDUCED, GOLDEN)]
    return flags.settings(
        Plan,
        args,
        methods=methods,
        match=args.match if reduced else "keep",
        match_to=args.match_to or reference_of(methods) or next(iter(reduced), Plan.match_to),
        runtimes=_runtimes_of(args),
    )


def _runtimes_of(args: Namespace) -> tuple[str, ...]:
    """Return the runtimes of further dense rows: by default, without other flags, the fastest that are here."""
    from zoo.deploy.runtime import OPENVINO, OPTIMIZED, find_runtime

    if args.runtimes is not None or args.methods is not None or args.shots != [0]:
        return tuple(dict.fromkeys(args.runtimes or ()))
    return (OPTIMIZED,) if find_runtime(OPENVINO).refusal("float32", args.device) else (OPTIMIZED, OPENVINO)


def _next_steps(args: Namespace, plan: "Plan") -> Iterator[str]:
    """Name the methods that a run with the usual ones leaves out, and the command for equal time."""
    from harness.measure.rows import known_methods
    from harness.records.record import DENSE, GOLDEN
    from zoo.core.settings import best_precision

    if args.methods is None:
        every = [name for name in known_methods() if name not in (DENSE, GOLDEN)]
        left = [name for name in every if name not in plan.methods]
        yield f"{len(every) - len(left)} of {len(every)} methods; --methods takes the others, too: {' '.join(left)}"
    if plan.match == "gflops":
        words = [PROGRAM, *(word for word in args.argv if word != "--fresh"), "--match", "time"]
        if (fast := best_precision(plan.device)) != plan.precision:
            words += ["--precision", fast]
        yield f"next, at equal time: {shlex.join(words)}"


def run_eval(args: Namespace, progress: Progress) -> Shown:
    """Measure one model."""
    from harness.records.averages import training_free
    from harness.records.record import record_values
    from harness.report.tables import comparison_table

    groups = evaluated(args, progress)
    data = {"records": [record_values(record) for group in groups for record in group]}
    tables = [comparison_table(part) for group in groups for part in training_free(group)]
    return Shown(parts=tuple(tables), data=data)


def evaluated(args: Namespace, progress: Progress) -> "Sequence[list[Record]]":
    """Measure one model beside its dense tower, and then with prompts that were learned for it."""
    from harness.apps.compare import compare, judge
    from harness.measure.settings import Plan
    from harness.records.record import DENSE
    from zoo.loading.towers import split_method

    dense, method, keep = split_method(args.model)
    row = {"models": (dense,), "methods": (method or DENSE,), "keeps": (keep,)}
    data = {"datasets": (args.dataset,), "shots": (args.shots,), "seeds": 1, "batches": ()}
    data["recoveries"] = () if args.recovery is None else (args.recovery,)
    plan = flags.settings(Plan, args, **row, **data)
    if args.prompts is None:
        return [next(compare(plan, [], progress))]
    for name, default in (("shots", 0), ("tokens", Plan.tokens), ("num_tokens", Plan.num_tokens)):
        if (value := getattr(args, name)) != default:
            pair = f"--prompts {str(args.prompts)!r} with --{name.replace('_', '-')} {value}"
            raise ValueError(f"{pair}: the file says what it was learned from")
    return judge(plan, args.prompts, progress)


def run_latency(args: Namespace, progress: Progress) -> Work:
    """Time models in turn with their dense towers, and write records and tables."""
    import torch

    from harness.base.lines import require_appendable
    from harness.measure.latency import LatencyPlan, batches_for, measure_latency
    from harness.records import times
    from harness.report.folder import markdown
    from harness.report.tables import latency_table, latency_title
    from zoo.core.files import write_whole

    batches = batches_for(args.device, args.scenario, args.batches)
    threads = tuple(dict.fromkeys(args.threads or [torch.get_num_threads()]))
    plan = flags.settings(LatencyPlan, args, batches=batches, threads=threads)
    if args.batches is None:
        progress.say(f"batches {' '.join(map(str, plan.batches))}; choose others with --batches")
    path, page = args.output / times.LATENCIES, args.output / "latency.md"
    require_appendable(path)
    known = times.read_latencies(path) if path.is_file() and not args.fresh else []

    def timed() -> Iterator[times.LatencyRecord]:
        for cell, new in measure_latency(plan, known, progress):
            if new:
                times.write_latencies(path, new)
            yield from cell

    records: list[times.LatencyRecord] = []
    tables: list[Table] = []
    for _, rows in groupby(timed(), key=latency_title):
        records += (group := list(rows))
        tables.append(latency_table(group))
        yield tables[-1]
        yield from tables[-1].notes
    write_whole(page, f"# Latency\n\n{markdown(tables, 2)}".encode())
    progress.say(f"records: {path}; tables: {page}" if path.exists() else f"tables: {page}")
    if busy := [row.failed for row in records if (row.failed or "").startswith(times.TOO_BUSY)]:
        progress.say(f"{len(busy)} of {len(records)} rows: {busy[-1]}")
        progress.say(times.AGAIN)
    return Shown(parts=(), data={"path": str(path), "records": json_values(records)})


def run_report(args: Namespace, progress: Progress) -> Shown:
    """Write a report and say which method is nearest to dense at equal cost."""
    from harness.report.folder import read_runs, write_report

    return write_report(read_runs(args.runs), args.output, progress, by_half=args.halves)


def run_list(args: Namespace, _progress: Progress) -> Shown:
    """Show models, weights, methods and datasets, and how other datasets are named by their path."""
    from harness.datasets import KINDS, list_datasets
    from harness.datasets.base import require_folder
    from zoo import METHODS
    from zoo.loading.learned_files import find_fitted
    from zoo.loading.sizes import PERCENTS, SIZES

    if args.root is not None:
        require_folder(args.root, f"--root {str(args.root)!r}", "the folder with the datasets")
    data: dict[str, Any] = {"towers": [], "keep_percents": list(PERCENTS)}
    data["datasets"] = [_dataset_facts(name, args.root) for name in list_datasets()]
    summaries = {name: (METHODS[name].__doc__ or "").split("\n")[0] for name in sorted(METHODS)}
    data["methods"] = [{"method": name, "what": summary} for name, summary in summaries.items()]
    data["by_path"] = [{"prefix": prefix, "what": kind.what} for prefix, kind in KINDS.items()]
    rows = []
    for size, spec in SIZES.items():
        fitted = {tag: blocks for tag in spec.tags if (blocks := list(find_fitted(f"clip_vit_{size}", tag)))}
        data["towers"].append({"size": size, "tags": list(spec.tags), "predictors": fitted})
        predictors = "; ".join(f"{tag} at block {', '.join(map(str, blocks))}" for tag, blocks in fitted.items())
        rows.append((size, ", ".join(spec.tags), predictors or "none yet"))
    title = "towers: clip_vit_{size}, and with a method clip_vit_{size}_{method}{keep}"
    heads = ("size", "weight tags (the first is the default)", "predictor for patchrank")
    rates = f"methods; keep rates in names: {', '.join(map(str, PERCENTS))}"
    words = ("name", "what", "shipped, or in --root", "accuracy by text is", "licence")
    every = (*words[:2], "classes", *flags.SPLITS, *words[2:])
    cells = [[NOT_MEASURED if value is None else str(value) for value in row.values()] for row in data["datasets"]]
    parts: tuple[Part, ...] = (
        Table.of(title, heads, rows, words=heads),
        Table.of(rates, ("method", "what"), summaries.items(), words=("method", "what")),
        Table.of("datasets", every, cells, words=words, wide=words[3:4], roomy=("what", "licence")),
        *(f"{prefix}:PATH is {kind.what}" for prefix, kind in KINDS.items()),
    )
    return Shown(parts=parts, data=data)


def _dataset_facts(name: str, root: Path | None) -> dict[str, Any]:
    """Return a dataset as `list` shows it; sizes are numbers of images, and ``root`` has those that aren't shipped."""
    from harness.datasets import root_of, shipped_facts
    from harness.datasets.public import RootedDataset
    from harness.records.averages import captions

    dataset, where, text = shipped_facts(name), root_of(root), None
    if isinstance(dataset, RootedDataset):
        there = where is not None and (where / dataset.folder).is_dir()
        place, classes = f"{dataset.folder}, {'there' if there else 'not there'}", dataset.class_count
        sizes = {str(split): dataset.counts.get(split, 0) for split in flags.SPLITS}
    else:
        place, classes = "shipped", len(dataset.classes)
        sizes = {str(split): len(dataset.split(split)) for split in flags.SPLITS}
        text = captions(name) if dataset.labelled else None
    values = {"name": name, "what": dataset.title, "classes": classes, **sizes, "place": place}
    return {**values, "accuracy_by_text_is": text, "license": dataset.license}


def run_dataset_check(args: Namespace, progress: Progress) -> Shown:
    """Check a dataset."""
    from harness.apps.dataset_check import check_dataset
    from harness.datasets import get_dataset

    return check_dataset(get_dataset(args.dataset), progress, fast=args.fast)
