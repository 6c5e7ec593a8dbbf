"""Tables of what there is: towers, methods, datasets."""

from rich.table import Table

import zoo
from harness.datasets import get_dataset, list_datasets
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
    datasets = Table(title="datasets")
    for head in (
        "name",
        "what",
        "classes",
        "train",
        "val",
        "test",
        "accuracy by text is",
        "licence",
    ):
        datasets.add_column(head)
    for name in list_datasets():
        dataset = get_dataset(name)
        sizes = [str(len(dataset.split(split))) for split in ("train", "val", "test")]
        datasets.add_row(
            name, dataset.title, str(len(dataset.classes)), *sizes, captions(name), dataset.license
        )
    return [towers, methods, datasets]


def _fitted(size: str) -> list[str]:
    """Name the weights of a size that have predictors, with the blocks that these serve."""
    found = [(tag, fitted_blocks(f"clip_vit_{size}", tag)) for tag in SIZES[size].tags]
    return [f"{tag} at block {', '.join(map(str, blocks))}" for tag, blocks in found if blocks]
