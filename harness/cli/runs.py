"""Settings read from parsed arguments, for commands whose functions lie in other rooms."""

import argparse
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import zoo
from harness.console.table import Forms, Shown, Work, fewer, json_values
from harness.console.terminal import Progress
from harness.datasets import KINDS, get_dataset, list_datasets, root_of, shipped_facts
from harness.datasets.base import SPLITS, Dataset, SplitName
from harness.datasets.rooted import RootedDataset
from harness.golden.rank import AUTO, Job, Source, rank
from harness.measure.latency import LatencyPlan, batches_for, measure_latency
from harness.measure.times import (
    LATENCIES,
    LatencyRecord,
    earlier_times,
    latency_markdown,
    latency_tables,
    table_of,
    write_latencies,
)
from harness.measure.timing import load_1min
from harness.records.averages import captions
from harness.records.conditions import DTYPES
from harness.records.record import earlier, require_appendable, write_records
from harness.report.show import ShowConfig, find_pictures, show
from harness.studies.curve import CurveConfig, curve_table, measure_curve, write_curve
from harness.studies.dry_run import plan_data, plan_table, remaining
from harness.studies.objects import find_objects, objects_table, shares_data
from harness.studies.paper import Reproduction, get_reproduction
from harness.studies.reproduce import (
    MODEL,
    Comparison,
    compared,
    comparison_data,
    draw,
    produce,
    under_its_conditions,
)
from harness.studies.run import (
    NOTES,
    SEED_NOTES,
    Sheet,
    get_study,
    list_studies,
    make,
    tower_with_text,
)
from harness.studies.speed import SpeedConfig, measure_speed, speed_table
from harness.studies.workshop import StudyConfig
from zoo.files import write_whole
from zoo.fit import FitConfig
from zoo.golden import GoldenConfig
from zoo.prompt_learner import TuneConfig
from zoo.reducer import expected
from zoo.registry import PERCENTS
from zoo.sizes import SIZES
from zoo.weights import fitted_blocks


def limit_of(args: argparse.Namespace) -> int | None:
    """Return how many images ``--limit`` asks for, None for all."""
    return None if args.full else args.limit


def check_device(device: str) -> None:
    """Refuse a device that isn't there.

    Raises:
        ValueError: names it.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} can't be used here: {error}") from error


def fit_config(args: argparse.Namespace) -> FitConfig:
    """Return the recipe that the flags of a predictor ask for.

    Raises:
        ValueError: a value out of range.
    """
    names = ("arch", "width", "loss", "epochs", "patience", "batch", "learning_rate", "seed")
    return FitConfig(**{name: getattr(args, name) for name in names})


def tune_config(args: argparse.Namespace) -> TuneConfig:
    """Return the recipe that the flags of learned tokens ask for.

    Studies have flags of the same names for predictors; there the rest is the default.

    Raises:
        ValueError: a value out of range.
    """
    names = ["tokens", "depth", "class_specific", "init", "anchor", "rounds", "seed"]
    if args.command == "fit prompts":
        names += ["patience", "batch", "learning_rate", "visual_rate"]
        names += ["augment", "dtype", "checkpointing"]
    flags = {name: getattr(args, name) for name in names}
    return TuneConfig(**flags, count=args.num_tokens, coupled=not args.independent)


def run_show(args: argparse.Namespace, status: Console) -> Shown:
    """Draw images beside the importance of their patches."""
    check_device(args.device)
    pictures = find_pictures(
        args.images,
        dataset=args.dataset,
        classes=[name.strip() for name in args.classes.split(",")] if args.classes else [],
        labels=args.label,
    )
    config = ShowConfig(
        keeps=tuple(args.keep),
        by=args.by,
        methods=tuple(args.methods),
        golden=GoldenConfig(block=args.block, window=args.window, stride=args.stride),
        scale=args.scale,
    )
    told: dict[str, Any] = {"device": args.device, "progress": Progress(status)}
    figure = show(args.model, pictures, config, args.out, **told)
    data = {"path": str(figure.path), "columns": figure.columns, "notes": figure.notes}
    return Shown(parts=(*figure.notes, f"wrote {figure.path}"), data=json_values(data))


def run_objects(args: argparse.Namespace, status: Console) -> Shown:
    """Measure how well rankings find objects."""
    check_device(args.device)
    config = GoldenConfig(block=args.block, window=args.window, stride=args.stride)
    found = find_objects(
        args.model,
        args.dataset,
        args.split,
        limit=limit_of(args),
        scores=args.scores,
        methods=args.methods,
        config=config,
        device=args.device,
        progress=Progress(status),
    )
    title = (
        f"objects of {args.dataset} ({args.split}), {args.model}; golden: {config.window} x "
        f"{config.window} patches, stride {config.stride}, before block {config.block}"
    )
    rankings = [{"ranking": name, **shares_data(shares)} for name, shares in found.items()]
    told = {"model": args.model, "dataset": args.dataset, "split": args.split}
    golden = {"block": config.block, "window": config.window, "stride": config.stride}
    return Shown(
        parts=(objects_table(found, title),),
        data={**told, "golden": golden, "rankings": rankings},
    )


def run_curve(args: argparse.Namespace, status: Console) -> Shown:
    """Measure cheaper golden rankings and write JSON, Markdown and plot."""
    check_device(args.device)
    same = ("model", "split", "block", "seeds", "rounds", "dtype", "device")
    config = CurveConfig(
        datasets=tuple(args.datasets),
        limit=limit_of(args),
        **{name: getattr(args, name) for name in same},
    )
    found = measure_curve(config, Progress(status))
    write_curve(found, args.out)
    status.print(f"wrote {args.out}", highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(curve_table(found),), data=json_values(found))


def run_speed(args: argparse.Namespace, status: Console) -> Shown:
    """Measure how fast golden rankings are made and write a record."""
    check_device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads {args.threads}: expected a number from 1")
        torch.set_num_threads(args.threads)
    config = SpeedConfig(
        model=args.model,
        random_weights=args.random_weights,
        dataset=args.dataset,
        split=args.split,
        images=args.images,
        golden=GoldenConfig(block=args.block, window=args.window, stride=args.stride),
        precisions=tuple(args.precisions),
        batches=tuple(args.batches),
        compiled=args.compile,
        rounds=args.rounds,
        device=args.device,
    )
    speed = measure_speed(config, Progress(status))
    if args.out is not None:
        speed.write(args.out)
        status.print(f"wrote {args.out}", highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(speed_table(speed),), data=json_values(speed))


def run_rank(args: argparse.Namespace, status: Console) -> Shown:
    """Make golden rankings and say where they are."""
    if args.dtype not in (AUTO, *DTYPES):
        raise ValueError(f"--dtype {args.dtype!r}: {expected(args.dtype, (AUTO, *DTYPES))}")
    check_device(args.device)
    if args.images is None:
        source = Source.of(get_dataset(args.dataset), args.split)
    else:
        source = Source.folder(args.images)
    job = Job(
        model=args.model,
        source=source,
        config=_golden_config(args),
        budget=args.budget,
        limit=None if args.full else args.limit,
        out=args.out,
        shard_size=args.shard_size,
        batch=args.batch,
        dtype=args.dtype,
        compiled=args.compile,
        device=args.device,
        workers=args.workers,
    )
    ranked = rank(job, Progress(status))
    text = f"wrote {ranked.path}: {ranked.images} of {ranked.total} images"
    data = {"path": str(ranked.path), "images": ranked.images, "images_there": ranked.total}
    return Shown(parts=(text,), data=data)


def _golden_config(args: argparse.Namespace) -> GoldenConfig:
    """Return the settings that the flags of ``rank`` ask for.

    Raises:
        ValueError: a value out of range, or one that ``--budget`` picks.
    """
    flags = {"window": "window", "stride": "stride", "greedy": "greedy", "approx": "approximate"}
    values = {flag: vars(args)[flag] for flag in flags if vars(args)[flag] is not None}
    if args.budget is not None and values:
        raise ValueError(
            f"--budget {args.budget:g} with --{next(iter(values))}: a budget picks window, stride "
            "and approximation itself; give one of the two"
        )
    settings = {flags[flag]: value for flag, value in values.items()}
    return GoldenConfig(score=args.score, block=args.block, **settings)


MARKDOWN = "latency.md"


def run_latency(args: argparse.Namespace, status: Console) -> Work:
    """Time models in turn with their dense towers, and write records and tables."""
    check_device(args.device)
    progress = Progress(status)
    plan = LatencyPlan(
        models=tuple(dict.fromkeys(args.models)),
        methods=tuple(dict.fromkeys(args.methods)),
        keeps=tuple(dict.fromkeys(args.keeps)),
        batches=batches_for(args.device, args.batches),
        dtypes=tuple(dict.fromkeys(args.dtypes)),
        ways=tuple(dict.fromkeys(args.ways)),
        threads=tuple(dict.fromkeys(args.threads or [torch.get_num_threads()])),
        rounds=args.rounds,
        seconds=args.seconds,
        device=args.device,
        random_weights=args.random_weights,
    )
    if args.batches is None:
        progress.say(f"batches {' '.join(map(str, plan.batches))}; --batches names others")
    _say_load(progress)
    path = args.output / LATENCIES
    require_appendable(path)
    known = earlier_times(path, progress, fresh=args.fresh)
    records: list[LatencyRecord] = []
    for table in _tables(measure_latency(plan, known, progress), path):
        yield from latency_tables(table)
        records += table
    write_whole(args.output / MARKDOWN, latency_markdown(records).encode())
    progress.say(f"records: {path}; tables: {args.output / MARKDOWN}")
    data = {"path": str(path), "records": json_values(records)}
    return Shown(parts=(), data=data)


def _tables(
    cells: Iterable[tuple[list[LatencyRecord], list[LatencyRecord]]], path: Path
) -> Iterator[list[LatencyRecord]]:
    """Write what is new, and yield records of a table as soon as all of them are there."""
    table: list[LatencyRecord] = []
    for cell, new in cells:
        if new:
            write_latencies(path, new)
        if table and table_of(table[0]) != table_of(cell[0]):
            yield table
            table = []
        table += cell
    if table:
        yield table


def _say_load(progress: Progress) -> None:
    load, cores = load_1min(), os.cpu_count() or 1
    if load is not None and load > cores / 2:
        progress.say(
            f"this machine is busy: a load of {load:.1f} on {cores} cores in the last minute; "
            "times will be longer and spread wider"
        )


LIST = "list"
EMBEDDED_MODEL, EMBEDDED = "clip_vit_s14", ("fashion", "emoji")
WINDOWS = {True: (2, 2), False: (3, 2)}  # side and stride: the released code's; those that ship
LIMIT = 300
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}


def run_study(args: argparse.Namespace, status: Console) -> Shown | Work:
    """Make a study, or list them."""
    return run_study_list() if args.name == LIST else _made(args, status)


def _made(args: argparse.Namespace, status: Console) -> Work:
    """Make a study; write its records and a Markdown table, and show a table per dataset."""
    limit = limit_of(args)
    study = get_study(args.name)
    config = StudyConfig(
        model=args.model,
        datasets=tuple(args.datasets),
        split=args.split or study.split,
        limit=limit,
        train_limit=args.train_limit,
        keeps=None if args.keeps is None else tuple(args.keeps),
        seeds=args.seeds,
        golden=GoldenConfig(
            score=args.score,
            block=args.block,
            window=args.window,
            stride=args.stride,
            approximate=args.approx,
        ),
        fit=fit_config(args),
        shots=args.shots,
        tune=tune_config(args),
        labelled=args.labelled,
        device=args.device,
        dtype=args.dtype,
    )
    path = args.output / f"{study.name}.jsonl"
    known = earlier(path, Progress(status), fresh=args.fresh)
    command = f"python -m harness {shlex.join(without_output(args.argv))}"
    sections = [f"## {study.title}", "", study.question, "", "```", command, "```", ""]
    sheets = []
    for sheet, records in make(study, config, known, Progress(status)):
        if fresh := [record for record in records if record not in known]:
            write_records(path, fresh)
        sections += [sheet.markdown()]
        sheets.append(sheet.data())
        yield sheet.table()
    path = path.with_suffix(".md")
    notes = [config.described(tunes=study.tunes), NOTES, *([SEED_NOTES] if study.tunes else [])]
    write_whole(path, "\n".join([*sections, *notes, ""]).encode())
    text = f"records and table: {path.parent / study.name}.{{jsonl,md}}"
    status.print(text, highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(), data={"study": study.name, "tables": sheets})


def without_output(argv: list[str]) -> list[str]:
    """Leave out where results went, which they don't depend on."""
    if "--output" not in argv:
        return argv
    at = argv.index("--output")
    return argv[:at] + argv[at + 2 :]


def run_study_list() -> Shown:
    """Show the studies and their questions."""
    table = Table(title="studies")
    for head in ("name", "question", "keep rates"):
        table.add_column(head)
    for name, study in list_studies().items():
        table.add_row(name, study.question, " ".join(f"{keep:g}" for keep in study.keeps))
    studies = [
        {"name": name, "question": study.question, "keeps": list(study.keeps)}
        for name, study in list_studies().items()
    ]
    return Shown(parts=(table,), data={"studies": studies})


def run_reproduce(args: argparse.Namespace, status: Console) -> Work:
    """Measure tables and figures, or tell what that would take; show a table for each."""
    data: list[dict[str, Any]] = []
    recipes = [get_reproduction(name) for name in dict.fromkeys(args.names)]
    for recipe in recipes:
        config = under_its_conditions(recipe, study_config(args, recipe))
        known = earlier(_path(args, recipe), Progress(status), fresh=args.fresh)
        if args.dry_run:
            datasets, missing = _readable(config.datasets)
            steps = remaining(recipe, config, datasets, known, Progress(status))
            data.append(plan_data(recipe, config.model, steps, missing))
            yield plan_table(recipe, config.model, steps, missing)
            continue
        for name in config.datasets:
            readable(name)  # refuses at once what would fail after the work
        sheets: list[Sheet] = []
        tower = tower_with_text(config.model)
        comparison: Comparison | None = None
        for sheet, records in produce(recipe, config, known, Progress(status)):
            if fresh := [record for record in records if record not in known]:
                write_records(_path(args, recipe), fresh)
            sheets.append(sheet)
            comparison = compared(recipe, config, len(tower.vit.blocks), tower.name, sheets)
            _write(comparison, config, args)
        assert comparison is not None
        data.append(comparison_data(comparison))
        yield comparison.table()
        text = f"records and table: {_path(args, recipe).with_suffix('')}.{{jsonl,md}}"
        status.print(text, highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(), data={"plans" if args.dry_run else "tables": data})


def study_config(args: argparse.Namespace, recipe: Reproduction) -> StudyConfig:
    """Return what the flags ask for: below a root the paper's conditions, else the embedded ones.

    Raises:
        ValueError: a value out of range.
    """
    rooted = _rooted(args)
    datasets = args.datasets or (recipe.datasets if rooted else EMBEDDED)
    model = args.model or (MODEL if rooted else EMBEDDED_MODEL)
    limit = args.limit or (None if rooted else LIMIT)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected a number from 1, or --full")
    window, stride = WINDOWS[rooted]
    return StudyConfig(
        model=model,
        datasets=tuple(dict.fromkeys(datasets)),
        split="test",
        limit=None if args.full else limit,
        train_limit=args.train_limit,
        seeds=args.seeds,
        golden=GoldenConfig(
            block=args.block,
            window=window if args.window is None else args.window,
            stride=stride if args.stride is None else args.stride,
        ),
        fit=fit_config(args),
        tune=tune_config(args),
        labelled=args.labelled,
        device=args.device,
        dtype=args.dtype,
    )


def _rooted(args: argparse.Namespace) -> bool:
    """Tell whether it is about datasets below a root, which are under the paper's conditions."""
    if not args.datasets:
        return root_of(args.root) is not None
    shipped = set(args.datasets) & set(list_datasets())
    return any(isinstance(shipped_facts(name), RootedDataset) for name in shipped)


def _readable(names: tuple[str, ...]) -> tuple[list[Dataset], dict[str, str]]:
    """Return the datasets that can be read, and what is wrong with others."""
    datasets, missing = [], {}
    for name in names:
        try:
            datasets.append(readable(name))
        except (OSError, ValueError) as error:
            missing[name] = str(error)
    return datasets, missing


def readable(name: str) -> Dataset:
    """Return a dataset that has images to learn from, to stop by and to judge by.

    Raises:
        ValueError: no such dataset, or a split of it is empty.
        FileNotFoundError: its files are missing.
    """
    dataset = get_dataset(name)
    for split, what in USES.items():
        if not len(dataset.split(split)):
            raise ValueError(f"dataset {name!r} has no {split} images, which {what}")
    return dataset


def _path(args: argparse.Namespace, recipe: Reproduction) -> Path:
    path: Path = args.output / f"{recipe.name}.jsonl"
    return path


def _write(comparison: Comparison, config: StudyConfig, args: argparse.Namespace) -> None:
    """Write what is known so far: a stopped run leaves the datasets that are done."""
    recipe = comparison.recipe
    argv = [name for name in without_output(args.argv) if name != "--fresh"]
    command = f"```\npython -m harness {shlex.join(argv)}\n```\n"
    made = f"- {config.described(tunes=recipe.study.tunes)}\n"
    path = _path(args, recipe).with_suffix(".md")
    write_whole(path, "\n".join([command, comparison.markdown() + made]).encode())
    if recipe.axis:
        write_whole(path.with_suffix(".svg"), draw(comparison))


def run_list(_args: argparse.Namespace, _status: Console) -> Shown:
    """Show what there is."""
    towers = [
        {"size": size, "tags": list(spec.tags), "predictors": _fitted(size)}
        for size, spec in SIZES.items()
    ]
    methods = [{"method": name, "what": _what(cls)} for name, cls in sorted(zoo.METHODS.items())]
    data = {
        "towers": towers,
        "methods": methods,
        "keep_percents": list(PERCENTS),
        "datasets": datasets_data(),
    }
    *others, datasets = list_tables()
    return Shown(parts=(*others, fitting(datasets)), data=data)


def run_datasets(args: argparse.Namespace, _status: Console) -> Shown:
    """List datasets.

    Raises:
        FileNotFoundError: a root that isn't there.
        NotADirectoryError: a root that is a file.
    """
    _require_root(args.root)
    made = [f"{prefix}:PATH is {kind.what}" for prefix, kind in KINDS.items()]
    kinds = [{"prefix": prefix, "what": kind.what} for prefix, kind in KINDS.items()]
    data = {"datasets": datasets_data(args.root), "by_path": kinds}
    return Shown(parts=(fitting(datasets_table(args.root)), *made), data=data)


def _require_root(root: Path | None) -> None:
    """Refuse a root below which nothing can be."""
    if root is None or root.is_dir():
        return
    flag = f"--root {str(root)!r}"
    if root.exists():
        raise NotADirectoryError(f"{flag} is a file; give a folder")
    raise FileNotFoundError(
        f"{flag}: there is no such folder; give the one that datasets lie below"
    )


def fitting(datasets: Table) -> Forms:
    """Return the table of datasets in three forms."""
    untold = ("accuracy by text is",)
    return Forms(
        (datasets, fewer(datasets, untold), fewer(datasets, (*untold, "what", "chance", "licence")))
    )


def list_tables() -> list[Table]:
    """Lay out what there is: towers with their weights, methods, datasets."""
    towers = Table(
        title="towers: clip_vit_{size}, and with a method clip_vit_{size}_{method}{keep}"
    )
    for head in ("size", "weight tags (the first is the default)", "predictor for patchrank"):
        towers.add_column(head)
    for size, spec in SIZES.items():
        fitted = "; ".join(
            f"{tag} at block {', '.join(map(str, blocks))}" for tag, blocks in _fitted(size).items()
        )
        towers.add_row(size, ", ".join(spec.tags), fitted or "none yet")
    methods = Table(title="methods; keep rates in names: " + ", ".join(map(str, PERCENTS)))
    for head in ("method", "what it does", "example"):
        methods.add_column(head)
    for name, cls in sorted(zoo.METHODS.items()):
        methods.add_row(name, _what(cls), f"clip_vit_b16_{name}60")
    return [towers, methods, datasets_table()]


def datasets_table(root: Path | None = None) -> Table:
    """Lay out the datasets that have names.

    Args:
        root: where those lie that aren't shipped; None for the environment's.
    """
    table = Table(title="datasets")
    for head in ("name", "what"):
        table.add_column(head, no_wrap=head == "name")
    for head in ("classes", *SPLITS, "chance"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ("shipped, or in --root", "accuracy by text is", "licence"):
        table.add_column(head)
    for facts in datasets_data(root):
        place = "shipped"
        if not facts["shipped"]:
            place = f"{facts['folder']}, {'there' if facts['there'] else 'not there'}"
        figures = (str(facts[name]) for name in ("classes", *SPLITS))
        chance = f"{100 / facts['classes']:.3g} %"
        rests = facts["accuracy_by_text_is"] or "not known"
        table.add_row(
            facts["name"], facts["what"], *figures, chance, place, rests, facts["license"]
        )
    return table


def datasets_data(root: Path | None = None) -> list[dict[str, Any]]:
    """Return the datasets that have names as JSON values; sizes are numbers of images."""
    where = root_of(root)
    rows = []
    for name in list_datasets():
        dataset = shipped_facts(name)
        facts: dict[str, Any] = {"name": name, "what": dataset.title, "license": dataset.license}
        if isinstance(dataset, RootedDataset):
            facts |= {"classes": dataset.class_count, "shipped": False, "folder": dataset.folder}
            facts |= {split: dataset.counts.get(split, 0) for split in SPLITS}
            facts["there"] = where is not None and (where / dataset.folder).is_dir()
            facts["accuracy_by_text_is"] = None
        else:
            facts |= {"classes": len(dataset.classes), "shipped": True, "folder": None}
            facts |= {split: len(dataset.split(split)) for split in SPLITS}
            facts |= {"there": True, "accuracy_by_text_is": captions(name)}
        rows.append(facts)
    return rows


def _what(method: type) -> str:
    return (method.__doc__ or "").split("\n")[0]


def _fitted(size: str) -> dict[str, list[int]]:
    """Return the weights of a size that have predictors, with the blocks that these serve."""
    blocks_of = {tag: list(fitted_blocks(f"clip_vit_{size}", tag)) for tag in SIZES[size].tags}
    return {tag: blocks for tag, blocks in blocks_of.items() if blocks}
