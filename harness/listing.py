"""Tables of what there is: towers, methods, datasets."""

from pathlib import Path

from rich.table import Table

import zoo
from harness.datasets import list_datasets, root_of, shipped_facts
from harness.datasets.base import SPLITS
from harness.datasets.rooted import RootedDataset
from harness.protocol import captions
from zoo.registry import PERCENTS
from zoo.sizes import SIZES
from zoo.weights import fitted_blocks


def list_tables() -> list[Table]:
    """Lay out what there is: towers with their weights, methods, datasets."""
    towers = Table(
        title="towers: clip_vit_{size}, and with a method clip_vit_{size}_{method}{keep}"
    )
    for head in ("size", "weight tags (the first is the default)", "predictor for patchrank"):
        towers.add_column(head)
    for size, spec in SIZES.items():
        towers.add_row(size, ", ".join(spec.tags), "; ".join(_fitted(size)) or "none yet")
    methods = Table(title="methods; keep rates in names: " + ", ".join(map(str, PERCENTS)))
    for head in ("method", "what it does", "example"):
        methods.add_column(head)
    for name, cls in sorted(zoo.METHODS.items()):
        methods.add_row(name, (cls.__doc__ or "").split("\n")[0], f"clip_vit_b16_{name}60")
    return [towers, methods, datasets_table()]


def datasets_table(root: Path | None = None) -> Table:
    """Lay out the datasets that have names.

    Args:
        root: where those lie that aren't shipped; None for the environment's.
    """
    table = Table(title="datasets")
    heads = ("name", "what", "classes", "train", "val", "test", "chance", "shipped, or in --root")
    for head in (*heads, "accuracy by text is", "licence"):
        table.add_column(head)
    where = root_of(root)
    for name in list_datasets():
        dataset = shipped_facts(name)
        if isinstance(dataset, RootedDataset):
            sizes = [dataset.counts.get(split, 0) for split in SPLITS]
            classes = dataset.class_count
            there = where is not None and (where / dataset.folder).is_dir()
            place = f"{dataset.folder}, {'there' if there else 'not there'}"
            rests = "not known"
        else:
            sizes = [len(dataset.split(split)) for split in SPLITS]
            classes, place, rests = len(dataset.classes), "shipped", captions(name)
        cells = (str(classes), *map(str, sizes), f"{100 / classes:.3g} %", place, rests)
        table.add_row(name, dataset.title, *cells, dataset.license)
    return table


def _fitted(size: str) -> list[str]:
    """Name the weights of a size that have predictors, with the blocks that these serve."""
    found = [(tag, fitted_blocks(f"clip_vit_{size}", tag)) for tag in SIZES[size].tags]
    return [f"{tag} at block {', '.join(map(str, blocks))}" for tag, blocks in found if blocks]
