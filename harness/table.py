"""Tables for the terminal."""

from collections.abc import Sequence

from rich.table import Table

import zoo
from harness.datasets import get_dataset, list_datasets
from harness.records import Latency, Record
from zoo.registry import PERCENTS, SIZES
from zoo.weights import find_predictor

NOT_MEASURED = "–"


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f}"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(record: Record) -> str:
    if record.diff_to_dense is None:
        return NOT_MEASURED
    return f"{100 * record.diff_to_dense:+.1f}" + _between(record.diff_low, record.diff_high)


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _time(entry: Latency | None) -> str:
    if entry is None:
        return NOT_MEASURED
    text = f"{entry.median_ms:.0f} [{entry.q1_ms:.0f}, {entry.q3_ms:.0f}]"
    return text if entry.ratio_to_dense is None else f"{text} {entry.ratio_to_dense:.2f}x"


def title(record: Record) -> str:
    """Say what the records of a table have in common."""
    shots = "text classifier" if record.shots == 0 else f"{record.shots} shots"
    tower = record.model.split("_")[2]
    return (
        f"{record.dataset} ({record.split}, {record.image_count} images, {shots}), "
        f"clip_vit_{tower}.{record.tag}, {record.dtype}, {record.device_name}, "
        f"{record.threads} threads"
    )


def comparison_table(records: Sequence[Record]) -> Table:
    """Lay out everything measured on one dataset."""
    batches = sorted({entry.batch for record in records for entry in record.latency})
    table = Table(
        title=title(records[0]),
        caption="top-1 in % with 95 % intervals; latency in ms: "
        "median [quartiles], ratio to dense; GFLOPs: 1e9 multiply-adds per image",
    )
    table.add_column("method", no_wrap=True)
    heads = ["keep", "top-1", "to dense", "GFLOPs"]
    heads += [f"batch {batch}, ms" for batch in batches]
    heads += ["images/s", "tau", "match@k (chance)", "tokens"]
    for head in heads:
        table.add_column(head, justify="right")
    for record in records:
        timed = {entry.batch: entry for entry in record.latency}
        speed = timed[batches[-1]].images_per_s if timed else None
        match = NOT_MEASURED
        if record.match_at_k is not None:
            match = f"{record.match_at_k:.2f} ({_number(record.match_chance, '.2f')})"
        table.add_row(
            record.method,
            f"{100 * record.keep:.0f}",
            _percent(record.top1) + _between(record.top1_low, record.top1_high),
            _difference(record),
            _number(record.gflops, ".2f"),
            *(_time(timed.get(batch)) for batch in batches),
            _number(speed, ".0f"),
            _number(record.tau, ".2f"),
            match,
            _number(record.final_tokens, "d"),
        )
    return table


def list_tables() -> list[Table]:
    """Lay out what there is: towers with their weights, methods, datasets."""
    towers = Table(
        title="towers: clip_vit_{size}, and with a method clip_vit_{size}_{method}{keep}"
    )
    for head in ("size", "weight tags (the first is the default)", "predictor for patchrank"):
        towers.add_column(head)
    for size, spec in SIZES.items():
        towers.add_row(size, ", ".join(spec.tags), ", ".join(_fitted(size)) or "none yet")
    methods = Table(title="methods; keep rates in names: " + ", ".join(map(str, PERCENTS)))
    for head in ("method", "what it does", "example"):
        methods.add_column(head)
    for name, cls in sorted(zoo.METHODS.items()):
        methods.add_row(name, (cls.__doc__ or "").split("\n")[0], f"clip_vit_b16_{name}60")
    datasets = Table(title="datasets")
    for head in ("name", "what", "classes", "train", "val", "test", "licence"):
        datasets.add_column(head)
    for name in list_datasets():
        dataset = get_dataset(name)
        sizes = [str(len(dataset.split(split))) for split in ("train", "val", "test")]
        datasets.add_row(name, dataset.title, str(len(dataset.classes)), *sizes, dataset.license)
    return [towers, methods, datasets]


def _fitted(size: str) -> list[str]:
    found = []
    for tag in SIZES[size].tags:
        try:
            find_predictor(f"clip_vit_{size}", tag)
        except FileNotFoundError:
            continue
        found.append(tag)
    return found
