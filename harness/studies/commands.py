"""What ``study`` and ``reproduce`` do: from parsed arguments to tables and files."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.commands import check, fit_config, limit_of, tune_config
from harness.console import Progress
from harness.datasets import get_dataset, list_datasets, root_of, shipped_facts
from harness.datasets.base import Dataset, SplitName
from harness.datasets.rooted import RootedDataset
from harness.layout import fewer
from harness.records import earlier, write_records
from harness.shown import Forms, Shown, Work
from harness.studies.dry_run import plan_data, plan_table, remaining
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
from harness.studies.workshop import StudyConfig
from zoo.files import write_whole
from zoo.golden import GoldenConfig

LIST = "list"
EMBEDDED_MODEL, EMBEDDED = "clip_vit_s14", ("fashion", "emoji")
WINDOWS = {True: (2, 2), False: (3, 2)}  # side and stride: the released code's; those that ship
LIMIT = 300
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}
# Columns that a narrow terminal does without.
WIDE_ONLY = ("GFLOPs", "over seeds", "cosine", "tau", "match@k (chance)")


def run_study(args: argparse.Namespace, status: Console) -> Shown | Work:
    """Make a study, or list them."""
    return run_study_list() if args.name == LIST else _made(args, status)


def _made(args: argparse.Namespace, status: Console) -> Work:
    """Make a study; write its records and a Markdown table, and show a table per dataset."""
    limit = limit_of(args)
    study = get_study(args.name)
    check(args)
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
        yield narrower(sheet.table())
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


def narrower(table: Table) -> Forms:
    """Return a study's table as it is, and without some columns."""
    return Forms((table, fewer(table, WIDE_ONLY), fewer(table, (*WIDE_ONLY, "to dense"))))


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
    check(args)
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
        table = comparison.table()
        yield Forms((table, fewer(table, comparison.datasets)))
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
