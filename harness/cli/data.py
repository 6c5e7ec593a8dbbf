"""Subcommands that show what there is: ``list``, ``datasets list``, ``datasets check``."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.base.table import NOT_MEASURED, Shown, Table
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import Command, CommandParser


def run_list(*_: Any) -> Shown:
    """Show models, weights, methods and datasets."""
    return Shown(parts=tuple(list_tables()), data=list_data())


def run_datasets(args: Namespace, _status: Console) -> Shown:
    """Show datasets, and how others are named by their path.

    Raises:
        FileNotFoundError: a root that isn't there.
        NotADirectoryError: a root that is a file.
    """
    from harness.datasets import KINDS

    _require_root(args.root)
    by_path = [f"{prefix}:PATH is {kind.what}" for prefix, kind in KINDS.items()]
    kinds = [{"prefix": prefix, "what": kind.what} for prefix, kind in KINDS.items()]
    data = {"datasets": datasets_data(args.root), "by_path": kinds}
    return Shown(parts=(datasets_table(args.root), *by_path), data=data)


def _require_root(root: Path | None) -> None:
    if root is None or root.is_dir():
        return
    flag = f"--root {str(root)!r}"
    if root.exists():
        raise NotADirectoryError(f"{flag} is a file; give a folder")
    raise FileNotFoundError(f"{flag}: there is no such folder; give the one that datasets lie below")


def list_data() -> dict[str, Any]:
    """Return what there is as JSON values."""
    from zoo import METHODS
    from zoo.loading.predictor_file import fitted_blocks
    from zoo.loading.sizes import PERCENTS, SIZES

    def fitted(size: str, tag: str) -> list[int]:
        return list(fitted_blocks(f"clip_vit_{size}", tag))

    towers = [
        {
            "size": size,
            "tags": list(spec.tags),
            "predictors": {tag: blocks for tag in spec.tags if (blocks := fitted(size, tag))},
        }
        for size, spec in SIZES.items()
    ]
    methods = [
        {"method": name, "what": (method.__doc__ or "").split("\n")[0]} for name, method in sorted(METHODS.items())
    ]
    rates = {"keep_percents": list(PERCENTS)}
    return {"towers": towers, "methods": methods, **rates, "datasets": datasets_data()}


def list_tables() -> list[Table]:
    """Lay out what there is: towers with their weights, methods, datasets."""
    data = list_data()
    towers = []
    for tower in data["towers"]:
        fitted = "; ".join(
            f"{tag} at block {', '.join(map(str, blocks))}" for tag, blocks in tower["predictors"].items()
        )
        towers.append((tower["size"], ", ".join(tower["tags"]), fitted or "none yet"))
    methods = [(one["method"], one["what"], f"clip_vit_b16_{one['method']}60") for one in data["methods"]]
    tags = "weight tags (the first is the default)"
    tower_heads = ("size", tags, "predictor for patchrank")
    method_heads = ("method", "what it does", "example")
    title = "towers: clip_vit_{size}, and with a method clip_vit_{size}_{method}{keep}"
    rates = f"methods; keep rates in names: {', '.join(map(str, data['keep_percents']))}"
    return [
        Table.of(title, tower_heads, towers, words=tower_heads),
        Table.of(rates, method_heads, methods, words=method_heads),
        datasets_table(),
    ]


def datasets_table(root: Path | None = None) -> Table:
    """Lay out the datasets that have names; ``root`` is where those lie that aren't shipped."""
    rows = []
    for facts in datasets_data(root):
        place = "shipped"
        if not facts["shipped"]:
            place = f"{facts['folder']}, {'there' if facts['there'] else 'not there'}"
        sizes = (str(facts[name]) for name in ("classes", *flags.SPLITS))
        classes = facts["classes"]
        chance = f"{100 / classes:.3g} %" if classes else NOT_MEASURED
        captions = facts["accuracy_by_text_is"] or ("not known" if classes else NOT_MEASURED)
        prose = (place, captions, facts["license"])
        rows.append((facts["name"], facts["what"], *sizes, chance, *prose))
    words = ("name", "what", "shipped, or in --root", "accuracy by text is", "licence")
    heads = (*words[:2], "classes", *flags.SPLITS, "chance", *words[2:])
    roomy = ("what", "chance", "licence")
    return Table.of("datasets", heads, rows, words=words, wide=words[3:4], roomy=roomy)


def datasets_data(root: Path | None = None) -> list[dict[str, Any]]:
    """Return the datasets that have names as JSON values; sizes are numbers of images."""
    from harness.datasets import list_datasets, root_of, shipped_facts
    from harness.datasets.rooted import RootedDataset
    from harness.records.averages import captions

    where = root_of(root)
    rows = []
    for name in list_datasets():
        dataset = shipped_facts(name)
        facts: dict[str, Any] = {"name": name, "what": dataset.title, "license": dataset.license}
        if isinstance(dataset, RootedDataset):
            facts |= {"classes": dataset.class_count, "shipped": False, "folder": dataset.folder}
            facts |= {split: dataset.counts.get(split, 0) for split in flags.SPLITS}
            facts["there"] = where is not None and (where / dataset.folder).is_dir()
            facts["accuracy_by_text_is"] = None
        else:
            facts |= {"classes": len(dataset.classes), "shipped": True, "folder": None}
            facts |= {split: len(dataset.split(split)) for split in flags.SPLITS}
            facts |= {"there": True, "accuracy_by_text_is": captions(name) if dataset.labelled else None}
        rows.append(facts)
    return rows


def _check_flags(parser: CommandParser) -> None:
    flags.dataset(parser, required=True)
    flags.root(parser)
    parser.add_argument("--download", action="store_true", help="get what is missing")
    parser.add_argument("--fast", action="store_true", help="decode no image")


def run_dataset_check(args: Namespace, status: Console) -> Shown:
    """Check a dataset."""
    from harness.apps.dataset_check import check_dataset
    from harness.datasets import get_dataset

    return check_dataset(get_dataset(args.dataset), Progress(status), fast=args.fast)


COMMANDS = (
    Command(
        path="datasets list",
        what="Show what datasets there are, and where.",
        flags=flags.root,
        run=run_datasets,
        examples=(("datasets list", "those that ship or lie below CLIP_PATCHRANK_DATA"),),
    ),
    Command(
        path="datasets check",
        what="Verify a local copy before hours are spent on it: counts, checksums, every image.",
        flags=_check_flags,
        run=run_dataset_check,
        examples=(
            ("datasets check --dataset emoji", "a dataset that ships"),
            ("datasets check --dataset folder:photos --fast", "your own images, by their names alone"),
        ),
        output="a table of the classes and a line per problem, on standard output",
        problems="the dataset has problems",
    ),
    Command(
        path="list",
        what="Show models, methods, weights and datasets.",
        run=run_list,
        examples=(("list", "all there is"), ("list --json", "for a program")),
        output="tables on standard output",
    ),
)
