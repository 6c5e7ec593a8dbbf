"""Tables of what there is: towers, methods, datasets."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import zoo
from harness.datasets import KINDS, list_datasets, root_of, shipped_facts
from harness.datasets.base import SPLITS
from harness.datasets.rooted import RootedDataset
from harness.layout import fewer
from harness.protocol import captions
from harness.shown import Forms, Shown
from zoo.registry import PERCENTS
from zoo.sizes import SIZES
from zoo.weights import fitted_blocks


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
