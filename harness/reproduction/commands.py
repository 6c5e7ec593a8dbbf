"""What ``reproduce`` does: from parsed arguments to tables and files."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.commands import check, fit_config, tune_config
from harness.datasets import get_dataset, list_datasets, root_of, shipped_facts
from harness.datasets.base import Dataset, SplitName
from harness.datasets.rooted import RootedDataset
from harness.layout import fewer
from harness.progress import Progress
from harness.records import write_records
from harness.reproduction import get_reproduction
from harness.reproduction.base import Reproduction
from harness.reproduction.drawing import draw
from harness.reproduction.plan import plan_data, plan_table, rehearse
from harness.reproduction.run import produce, under_its_conditions
from harness.reproduction.sheet import MODEL, Comparison, compared
from harness.reproduction.values import comparison_data
from harness.reuse import earlier
from harness.shown import Forms, Shown, Work
from harness.studies.commands import without_output
from harness.studies.config import StudyConfig
from harness.studies.run import speaking
from zoo.files import write_whole
from zoo.golden import GoldenConfig

EMBEDDED_MODEL, EMBEDDED = "clip_vit_s14", ("fashion", "emoji")
WINDOWS = {True: (2, 2), False: (3, 2)}  # side and stride: the released code's; those that ship
LIMIT = 300
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}


def run_reproduce(args: argparse.Namespace, status: Console) -> Work:
    """Measure tables and figures, or tell what that would take; show a table for each."""
    told: list[dict[str, Any]] = []
    recipes = [get_reproduction(name) for name in dict.fromkeys(args.names)]
    check(args)
    for recipe in recipes:
        config = under_its_conditions(recipe, study_config(args, recipe))
        known = earlier(_path(args, recipe), Progress(status), fresh=args.fresh)
        if args.dry_run:
            there, missing = _there(config.datasets)
            steps = rehearse(recipe, config, there, known, Progress(status))
            told.append(plan_data(recipe, config.model, steps, missing))
            yield plan_table(recipe, config.model, steps, missing)
            continue
        for name in config.datasets:
            readable(name)  # refuses at once what would fail after the work
        sheets: list[Any] = []
        depth, tower = _tower(config.model)
        comparison: Comparison | None = None
        for sheet, records in produce(recipe, config, known, Progress(status)):
            if fresh := [record for record in records if record not in known]:
                write_records(_path(args, recipe), fresh)
            sheets.append(sheet)
            comparison = compared(recipe, config, depth, tower, sheets)
            _write(comparison, config, args)
        assert comparison is not None
        told.append(comparison_data(comparison))
        table = comparison.table()
        yield Forms((table, fewer(table, comparison.datasets)))
        text = f"records and table: {_path(args, recipe).with_suffix('')}.{{jsonl,md}}"
        status.print(text, highlight=False, markup=False, soft_wrap=True)
    return Shown(parts=(), data={"plans" if args.dry_run else "tables": told})


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


def _there(names: tuple[str, ...]) -> tuple[list[Dataset], dict[str, str]]:
    """Return the datasets that can be read, and what is wrong with others."""
    found, missing = [], {}
    for name in names:
        try:
            found.append(readable(name))
        except (OSError, ValueError) as error:
            missing[name] = str(error)
    return found, missing


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


def _tower(model: str) -> tuple[int, str]:
    tower = speaking(model)
    return len(tower.vit.blocks), tower.name


def _write(comparison: Comparison, config: StudyConfig, args: argparse.Namespace) -> None:
    """Write what is known so far: a stopped run leaves the datasets that are done."""
    recipe = comparison.recipe
    told = [name for name in without_output(args.argv) if name != "--fresh"]
    command = f"```\npython -m harness {shlex.join(told)}\n```\n"
    made = f"- {config.described(tunes=recipe.study.tunes)}\n"
    path = _path(args, recipe).with_suffix(".md")
    write_whole(path, "\n".join([command, comparison.markdown() + made]).encode())
    if recipe.axis:
        write_whole(path.with_suffix(".svg"), draw(comparison))
