"""The columns of the report and of the Markdown tables."""

from collections.abc import Callable, Sequence

from harness.averages import Average
from harness.records import Latency
from harness.statistics import Interval

NOT_MEASURED = "–"
Column = tuple[str, Callable[[Average], str]]


def columns_of(rows: Sequence[Average]) -> list[Column]:
    """Return the headings and what fills them, with three columns for each batch size timed."""
    columns: list[Column] = [
        ("Method", lambda row: row.method),
        ("Keep", lambda row: f"{100 * row.keep:.3g} %"),
        ("Top-1, %", lambda row: interval(row.top1, 100, "{:.1f}")),
        ("To dense", lambda row: interval(row.to_dense, 100, "{:+.1f}")),
        ("GFLOPs", lambda row: _number(row.mean("gflops"), "{:.2f}")),
    ]
    for batch in sorted({latency.batch for row in rows for latency in row.latency}):
        columns += [
            (f"Batch {batch}, ms [IQR]", _timed(batch, _milliseconds)),
            (f"Batch {batch}, × dense", _timed(batch, _ratio)),
            (f"Batch {batch}, images/s", _timed(batch, lambda timed: f"{timed.images_per_s:.1f}")),
        ]
    return [
        *columns,
        ("Kendall τ", _tau("tau")),
        ("Weighted τ", _tau("weighted_tau")),
        ("Match at k (chance), %", _match),
        ("Border overlap (chance), %", _border),
        ("Final tokens", lambda row: _number(row.mean("final_tokens"), "{}")),
    ]


def interval(found: Interval | None, scale: int, form: str) -> str:
    """Show an estimate with its ends."""
    if found is None:
        return NOT_MEASURED
    return "{} [{}, {}]".format(*(form.format(scale * number) for number in found))


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _tau(field: str) -> Callable[[Average], str]:
    return lambda row: interval(row.interval(field, f"{field}_low", f"{field}_high"), 1, "{:+.2f}")


def _timed(batch: int, render: Callable[[Latency], str]) -> Callable[[Average], str]:
    def cell(row: Average) -> str:
        return next((render(t) for t in row.latency if t.batch == batch), NOT_MEASURED)

    return cell


def _milliseconds(timed: Latency) -> str:
    return f"{timed.median_ms:.1f} [{timed.q1_ms:.1f}, {timed.q3_ms:.1f}]"


def _ratio(timed: Latency) -> str:
    if timed.ratio_to_dense is None or timed.ratio_low is None or timed.ratio_high is None:
        return NOT_MEASURED
    return interval(Interval(timed.ratio_to_dense, timed.ratio_low, timed.ratio_high), 1, "{:.2f}")


def _match(row: Average) -> str:
    value, k, chance = (row.mean(name) for name in ("match_at_k", "match_k", "match_chance"))
    if value is None or k is None or chance is None:
        return NOT_MEASURED
    found = row.interval("match_at_k", "match_low", "match_high")
    shown = f"{100 * value:.1f}" if found is None else interval(found, 100, "{:.1f}")
    return f"{shown} at {k} ({100 * chance:.1f})"


def _border(row: Average) -> str:
    found = row.interval("border_overlap", "border_low", "border_high")
    shown, chance = interval(found, 100, "{:.1f}"), row.mean("border_chance")
    return shown if chance is None else f"{shown} ({100 * chance:.1f})"
