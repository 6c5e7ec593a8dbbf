"""Tables for the terminal."""

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from harness.averages import Average, Judged, averages, exact_test, judged, uncounted
from harness.judging import SIGN_FLIP, mark_note, together
from harness.layout import ALL_COLUMNS
from harness.match import Matched
from harness.measure.compare import Floor
from harness.protocol import protocol, seeds, tower_of
from harness.records import Latency, Record
from harness.statistics import Interval

NOT_MEASURED = "–"
OVER_SEEDS = (
    "mean over seeds: top-1 in % with 95 % t interval over seeds, the difference to dense with "
    "95 % paired bootstrap interval over images"
)


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f}"


def _ends(interval: Interval) -> str:
    return f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _difference(together: Judged | None) -> Callable[[Average], str]:
    def cell(row: Average) -> str:
        if row.to_dense is None:
            return NOT_MEASURED
        # The mark instead of a space: a pipe is just as wide as the table without marks.
        mark = together.mark(row) if together else ""
        return f"{100 * row.to_dense.estimate:+.1f}{mark or ' '}{_ends(row.to_dense).lstrip()}"

    return cell


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _time(entry: Latency) -> str:
    text = f"{entry.median_ms:.0f} [{entry.q1_ms:.0f}, {entry.q3_ms:.0f}]"
    return text if entry.ratio_to_dense is None else f"{text} {entry.ratio_to_dense:.2f}x"


def title(record: Record, more: str = "") -> str:
    """Say what the records of a table have in common; ``more`` goes with the protocol."""
    return (
        f"{record.dataset} ({record.split}, {record.image_count} images; {protocol(record)}"
        f"{more}), {tower_of(record)}, {record.dtype}, {record.device_name}, "
        f"{record.threads} threads"
    )


def comparison_table(records: Sequence[Record], *, wide: bool = True) -> Table:
    """Lay out everything measured on one dataset, one row per model.

    Args:
        records: of one dataset and number of shots; several seeds of a model become their mean.
        wide: all columns (about 190 characters); else the most telling ones (80 characters).

    Raises:
        ValueError: they don't belong in one table; see `averages.averages`.
    """
    rows = averages(records)
    batches = sorted({entry.batch for row in rows for entry in row.latency})
    caption = f"{_what(seeded=len(rows[0].records) > 1, wide=wide)}; "
    if batches and wide:
        caption += "latency in ms: median \\[quartiles], ratio to dense; "
    elif batches:
        caption += f"x b{batches[-1]}: time at batch {batches[-1]} by the dense model's; "
    caption += "GFLOPs: 1e9 multiply-adds per image"
    together = judged(rows)
    if together is not None:
        caption += f"; {together.note}"
    caption += _uncounted(rows)
    if not wide:
        caption += f"; {ALL_COLUMNS}"
    table = Table(
        title=title(records[0], seeds(rows[0].records)),
        caption=caption,
        box=box.HEAVY_HEAD if wide else box.SIMPLE,
    )
    columns = _wide(batches, together) if wide else _narrow(batches, together)
    for head in columns:
        left = head == "method"
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(show(row) for show in columns.values()))
    return table


def _what(*, seeded: bool, wide: bool) -> str:
    if wide:
        return OVER_SEEDS if seeded else "top-1 in % with 95 % intervals"
    mean = "mean over seeds: " if seeded else ""
    return f"{mean}top-1 in %, to dense with 95 % paired bootstrap interval over images"


def _uncounted(rows: Sequence[Average]) -> str:
    told = uncounted(*(row.first for row in rows))
    return f"; {told}" if told else ""


Columns = dict[str, Callable[[Average], str]]


def _timed(batch: int, show: Callable[[Latency], str]) -> Callable[[Average], str]:
    def cell(row: Average) -> str:
        found = [show(entry) for entry in row.latency if entry.batch == batch]
        return found[0] if found else NOT_MEASURED

    return cell


def _ratio(entry: Latency) -> str:
    return "1" if entry.ratio_to_dense is None else f"{entry.ratio_to_dense:.2f}"


def _beside_chance(field: str, chance: str) -> Callable[[Average], str]:
    def cell(row: Average) -> str:
        value = row.mean(field)
        if value is None:
            return NOT_MEASURED
        return f"{value:.2f} ({_number(row.mean(chance), '.2f')})"

    return cell


def _plain(field: str, form: str) -> Callable[[Average], str]:
    return lambda row: _number(row.mean(field), form)


def _narrow(batches: Sequence[int], together: Judged | None) -> Columns:
    columns: Columns = {
        "method": lambda row: row.method,
        "keep": lambda row: f"{100 * row.keep:.0f}",
        "top-1": lambda row: _percent(row.top1.estimate),
        "to dense": _difference(together),
        "GFLOPs": _plain("gflops", ".2f"),
    }
    for batch in batches[-1:]:
        columns[f"x b{batch}"] = _timed(batch, _ratio)
    columns["tau"] = _plain("tau", ".2f")
    return columns


def _wide(batches: Sequence[int], together: Judged | None) -> Columns:
    columns: Columns = {
        "method": lambda row: row.method,
        "keep": lambda row: f"{100 * row.keep:.0f}",
        "top-1": lambda row: _percent(row.top1.estimate) + _ends(row.top1),
        "to dense": _difference(together),
        "cosine": _plain("cosine_to_dense", ".3f"),
        "GFLOPs": _plain("gflops", ".2f"),
    }
    for batch in batches:
        columns[f"batch {batch}, ms"] = _timed(batch, _time)
    for batch in batches[-1:]:
        columns["images/s"] = _timed(batch, lambda entry: f"{entry.images_per_s:.0f}")
    columns["tau"] = _plain("tau", ".2f")
    columns["w. tau"] = _plain("weighted_tau", ".2f")
    columns["match@k (chance)"] = _beside_chance("match_at_k", "match_chance")
    columns["border (chance)"] = _beside_chance("border_overlap", "border_chance")
    columns["tokens"] = _plain("final_tokens", "d")
    return columns


def floor_table(rows: Sequence[Floor], seeds: int) -> Table:
    """Lay out methods beside random pruning."""
    first = rows[0]
    family = together({at: row.p_value for at, row in enumerate(rows)})
    table = Table(
        title=f"{first.dataset} ({first.split}), against random pruning, mean of {seeds} orders",
        caption="in points; interval: 95 % paired bootstrap over images; " + mark_note(SIGN_FLIP),
    )
    for head in ("method", "keep", "images", "top-1", "random", "difference"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for at, row in enumerate(rows):
        table.add_row(
            row.method,
            f"{100 * row.keep:.0f}",
            str(row.image_count),
            _percent(row.top1),
            _percent(row.random_top1),
            points(row.difference, family.mark(at)),
        )
    return table


def matched_table(rows: Sequence[Matched]) -> Table:
    """Lay out methods at equal cost, one block per keep rate of the target."""
    method, first = rows[0].target.method, rows[0].target.first
    table = Table(
        title=f"at equal GFLOPs: {title(first, seeds(rows[0].target.records))}",
        caption=f"top-1 in %, the difference to {method} in points with 95 % paired bootstrap "
        f"interval; p: {exact_test(rows[0].target)}, one comparison at a time; "
        f"{mark_note('the same test', 'all differences of this table')}"
        f"{_uncounted([row.row for row in rows])}",
    )
    family = together({at: row.p_value for at, row in enumerate(rows)})
    heads = ("at", "method", "keep", "GFLOPs", "off", "top-1", f"to {method}", "p")
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for at, row in enumerate(rows):
        own = row.difference is None
        if own:
            table.add_section()
        table.add_row(
            f"{method} {100 * row.target.keep:.3g}" if own else "",
            row.row.method,
            f"{100 * row.row.keep:.1f}",
            _number(row.row.mean("gflops"), ".3f"),
            NOT_MEASURED if own else f"{100 * row.off:+.2f} %",
            _percent(row.row.top1.estimate),
            NOT_MEASURED if row.difference is None else points(row.difference, family.mark(at)),
            _number(row.p_value, ".3f"),
        )
    return table


def points(difference: Interval, mark: str = "") -> str:
    """Show a difference of two fractions in points, with its ends; the mark instead of a space."""
    estimate, low, high = (100 * number for number in difference)
    return f"{estimate:+.1f}{mark or ' '}[{low:+.1f}, {high:+.1f}]"
