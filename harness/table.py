"""Tables for the terminal."""

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

import zoo
from harness.datasets import get_dataset, list_datasets
from harness.floor import Floor
from harness.match import Matched
from harness.protocol import captions, protocol
from harness.records import Latency, Record
from harness.statistics import Interval
from zoo.registry import PERCENTS
from zoo.sizes import SIZES
from zoo.weights import fitted_blocks

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


def _time(entry: Latency) -> str:
    text = f"{entry.median_ms:.0f} [{entry.q1_ms:.0f}, {entry.q3_ms:.0f}]"
    return text if entry.ratio_to_dense is None else f"{text} {entry.ratio_to_dense:.2f}x"


def title(record: Record) -> str:
    """Say what the records of a table have in common."""
    tower = record.model.split("_")[2]
    return (
        f"{record.dataset} ({record.split}, {record.image_count} images; {protocol(record)}), "
        f"clip_vit_{tower}.{record.tag}, {record.dtype}, {record.device_name}, "
        f"{record.threads} threads"
    )


def comparison_table(records: Sequence[Record], *, wide: bool = True) -> Table:
    """Lay out everything measured on one dataset.

    Args:
        records: of one dataset.
        wide: all columns (about 190 characters); else the most telling ones (80 characters).
    """
    batches = sorted({entry.batch for record in records for entry in record.latency})
    caption = "top-1 in % with 95 % intervals; "
    if batches:
        caption += "latency in ms (x: as ratio): median \\[quartiles], ratio to dense; "
    caption += "GFLOPs: 1e9 multiply-adds per image"
    table = Table(
        title=title(records[0]), caption=caption, box=box.HEAVY_HEAD if wide else box.SIMPLE
    )
    columns = _wide(batches) if wide else _narrow(batches)
    for head in columns:
        left = head == "method"
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for record in records:
        table.add_row(*(show(record) for show in columns.values()))
    return table


Columns = dict[str, Callable[[Record], str]]


def _timed(batch: int, show: Callable[[Latency], str]) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        found = [show(entry) for entry in record.latency if entry.batch == batch]
        return found[0] if found else NOT_MEASURED

    return cell


def _ratio(entry: Latency) -> str:
    return "1" if entry.ratio_to_dense is None else f"{entry.ratio_to_dense:.2f}"


def _match(record: Record) -> str:
    if record.match_at_k is None:
        return NOT_MEASURED
    return f"{record.match_at_k:.2f} ({_number(record.match_chance, '.2f')})"


def _border(record: Record) -> str:
    if record.border_overlap is None:
        return NOT_MEASURED
    return f"{record.border_overlap:.2f} ({_number(record.border_chance, '.2f')})"


def _narrow(batches: Sequence[int]) -> Columns:
    columns: Columns = {
        "method": lambda r: r.method,
        "keep": lambda r: f"{100 * r.keep:.0f}",
        "top-1": lambda r: _percent(r.top1),
        "to dense": _difference,
        "GFLOPs": lambda r: _number(r.gflops, ".2f"),
    }
    for batch in batches[-1:]:
        columns[f"x b{batch}"] = _timed(batch, _ratio)
    columns["tau"] = lambda r: _number(r.tau, ".2f")
    return columns


def _wide(batches: Sequence[int]) -> Columns:
    columns: Columns = {
        "method": lambda r: r.method,
        "keep": lambda r: f"{100 * r.keep:.0f}",
        "top-1": lambda r: _percent(r.top1) + _between(r.top1_low, r.top1_high),
        "to dense": _difference,
        "cosine": lambda r: _number(r.cosine_to_dense, ".3f"),
        "GFLOPs": lambda r: _number(r.gflops, ".2f"),
    }
    for batch in batches:
        columns[f"batch {batch}, ms"] = _timed(batch, _time)
    for batch in batches[-1:]:
        columns["images/s"] = _timed(batch, lambda entry: f"{entry.images_per_s:.0f}")
    columns["tau"] = lambda r: _number(r.tau, ".2f")
    columns["w. tau"] = lambda r: _number(r.weighted_tau, ".2f")
    columns["match@k (chance)"] = _match
    columns["border (chance)"] = _border
    columns["tokens"] = lambda r: _number(r.final_tokens, "d")
    return columns


def floor_table(rows: Sequence[Floor], seeds: int) -> Table:
    """Lay out methods beside random pruning."""
    first = rows[0]
    table = Table(
        title=f"{first.dataset} ({first.split}), against random pruning, mean of {seeds} orders",
        caption="in points; interval: 95 % paired bootstrap over images",
    )
    for head in ("method", "keep", "images", "top-1", "random", "difference"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for row in rows:
        table.add_row(
            row.method,
            f"{100 * row.keep:.0f}",
            str(row.image_count),
            _percent(row.top1),
            _percent(row.random_top1),
            _points(row.difference),
        )
    return table


def matched_table(rows: Sequence[Matched]) -> Table:
    """Lay out methods at equal cost, one block per keep rate of the target."""
    method = rows[0].target.method
    table = Table(
        title=f"at equal GFLOPs: {title(rows[0].record)}",
        caption=f"top-1 in %, the difference to {method} in points with 95 % paired bootstrap "
        "interval; p: exact McNemar test, one comparison at a time",
    )
    heads = ("at", "method", "keep", "GFLOPs", "off", "top-1", f"to {method}", "p")
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in rows:
        own = row.difference is None
        if own:
            table.add_section()
        table.add_row(
            f"{method} {100 * row.target.keep:.3g}" if own else "",
            row.record.method,
            f"{100 * row.record.keep:.1f}",
            _number(row.record.gflops, ".3f"),
            NOT_MEASURED if own else f"{100 * row.off:+.2f} %",
            _percent(row.record.top1),
            NOT_MEASURED if row.difference is None else _points(row.difference),
            _number(row.p_value, ".3f"),
        )
    return table


def _points(difference: Interval) -> str:
    estimate, low, high = (100 * number for number in difference)
    return f"{estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


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
