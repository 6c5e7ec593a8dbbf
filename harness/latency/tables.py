"""Show times: a table per precision, way and number of threads; the same as Markdown."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.conditions import DENSE
from harness.latency.record import OPEN, LatencyRecord
from harness.latency.ways import EAGER
from harness.layout import fewer
from harness.shown import Forms, Part
from harness.tables import NOT_MEASURED

Cell = Callable[[LatencyRecord], str]
DETAILS = ("tokens", "GFLOPs", "images/s", "saved", "of time", "MiB", "first, s", "off")
WORDS = ("model", "verdict")  # columns of them
CAPTION = (
    "median [quartiles] of whole calls; ratio: to the dense model's time in the same round, median "
    "[95 % interval]; saved: share of the dense model's multiply-adds that isn't done, and of its "
    "time; arrived: the second by the first; MiB: weights + the most that a call holds beside them "
    "and images; !: see the warnings below"
)
PREPARED = (
    "; first: preparing, compiling and the first call; off: largest difference of features from "
    "eager's, by their length"
)


def latency_tables(records: Sequence[LatencyRecord]) -> list[Part]:
    """Lay records out, and say below each table what makes its times hard to trust.

    Args:
        records: those of a cell together.
    """
    parts: list[Part] = []
    for title, group in _grouped(records):
        columns = columns_of(group)
        caption = CAPTION + (PREPARED if "off" in columns else "")
        table = Table(title=escape(title), caption=escape(caption), caption_justify="left")
        for head in columns:
            table.add_column(head, justify="left" if head in WORDS else "right", no_wrap=True)
        for _, rows in groupby(group, key=lambda row: row.batch):
            for row in rows:
                table.add_row(*(Text(cell(row)) for cell in columns.values()))
            table.add_section()
        parts += [Forms((table, fewer(table, DETAILS))), *notes(group)]
    return parts


def latency_markdown(records: Sequence[LatencyRecord]) -> str:
    """Return the same tables as Markdown."""
    lines = ["# Latency", "", f"{CAPTION[0].upper()}{CAPTION[1:]}{PREPARED}.", ""]
    for title, group in _grouped(records):
        columns = columns_of(group)
        rule = ("---" if head in WORDS else "---:" for head in columns)
        lines += [f"## {title}", "", _line(columns), _line(rule)]
        lines += [_line(cell(row) for cell in columns.values()) for row in group]
        lines += ["", *(f"- {note}" for note in notes(group)), ""]
    return "\n".join(lines).rstrip() + "\n"


def notes(group: Sequence[LatencyRecord]) -> list[str]:
    """Return what failed, what to be wary of, and what can't be concluded."""
    lines = []
    for batch, rows in groupby(group, key=lambda row: row.batch):
        together = list(rows)
        names: dict[str, list[str]] = {}  # by warning
        for row in together:
            for text in [f"not timed: {row.failed}"] if row.failed else row.warnings:
                names.setdefault(text, []).append(short_name(row))
        for text, some in names.items():
            who = "" if len(some) == len(together) else f", {', '.join(some)}"
            lines.append(f"batch {batch}{who}: {text}")
    unclear = [f"{short_name(row)} at batch {row.batch}" for row in group if row.verdict == OPEN]
    if unclear:
        lines.append(
            f"no difference to dense can be concluded, as the interval of the ratio includes 1: "
            f"{', '.join(unclear)}"
        )
    return lines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _grouped(records: Sequence[LatencyRecord]) -> list[tuple[str, list[LatencyRecord]]]:
    return [(title, list(group)) for title, group in groupby(records, key=table_of)]


def table_of(row: LatencyRecord) -> str:
    """Return the title of the table that a record belongs to."""
    weights = "random weights" if row.random_weights else row.tag or "its own weights"
    side = "x".join(map(str, row.image_size))
    dense = row.model if row.method == DENSE else row.model.rpartition("_")[0]
    return (
        f"{dense} ({weights}, {side} px), {row.dtype}, {row.way}, {row.device}: "
        f"{row.machine.device_name}, threads: {row.threads}, by {row.stopwatch}"
    )


def short_name(row: LatencyRecord) -> str:
    """Return a model's name without its tower's, which the title has."""
    return row.method if row.method == DENSE else row.model.rpartition("_")[2]


def columns_of(group: Sequence[LatencyRecord]) -> dict[str, Cell]:
    """Return what fills the columns of a table, by heading."""
    columns: dict[str, Cell] = {
        "batch": lambda row: str(row.batch),
        "model": short_name,
        "tokens": lambda row: str(row.final_tokens),
        "GFLOPs": lambda row: f"{row.gflops:.2f}",
        "ms": _time,
        "images/s": lambda row: _number(row.images_per_s, ".1f"),
        "ratio": _ratio,
        "verdict": _verdict,
        "saved": lambda row: _percent(row.saved_gflops),
        "of time": lambda row: _percent(row.saved_time),
        "arrived": lambda row: _percent(row.arrived),
        "MiB": lambda row: f"{row.weights_mib:.0f} + {_number(row.peak_mib, '.1f')}",
    }
    if any(row.way != EAGER for row in group):
        columns["first, s"] = lambda row: _number(row.first_call_s, ".1f")
        columns["off"] = lambda row: _number(row.deviation, ".0e")
    return columns


def _time(row: LatencyRecord) -> str:
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return NOT_MEASURED
    form = ".2f" if row.median_ms < 100 else ".0f"
    return f"{row.median_ms:{form}} [{row.q1_ms:{form}}, {row.q3_ms:{form}}]"


def _ratio(row: LatencyRecord) -> str:
    if row.ratio_to_dense is None:
        return NOT_MEASURED
    return f"{row.ratio_to_dense:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"


def _verdict(row: LatencyRecord) -> str:
    if row.failed:
        return "not timed"
    return f"{row.verdict or NOT_MEASURED}{' !' if row.warnings else ''}"


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.0f} %"
