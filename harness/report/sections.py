"""The tables of a report, whatever they are written as."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from harness.console.table import Cell, Column, Table
from harness.measure.times import CAPTION, DETAILS, PREPARED, LatencyRecord, notes
from harness.measure.times import columns_of as timed_columns_of
from harness.records.averages import Average, judged, protocol, uncounted
from harness.records.record import Record
from harness.report.groups import Group, Grouped, TimedGroup, counted, grouped
from harness.report.tables import by_shots, report_columns, shot_tables, table_of
from harness.report.writers import markdown

# What sorting goes by, where it isn't what stands in the cell.
_SORTED_BY = {
    "batch": "batch",
    "tokens": "final_tokens",
    "GFLOPs": "gflops",
    "ms": "median_ms",
    "images/s": "images_per_s",
    "ratio": "ratio_to_dense",
    "saved": "saved_gflops",
    "of time": "saved_time",
    "arrived": "arrived",
    "MiB": "peak_mib",
    "first, s": "first_call_s",
    "off": "deviation",
}


def sections(found: Grouped, *, summary: bool = False, marked: bool = False) -> Iterator[Table]:
    """Yield a table per group, and after the last of a dataset its numbers of shots.

    Args:
        found: the groups.
        summary: leave out what a first look doesn't need.
        marked: differences to dense that are clear with all rows judged together have a mark.
    """
    together = _by_setting(found)
    for group in found.groups:
        yield _section(group, summary=summary, marked=marked)
        same = together[group.setting]
        if group is not same[-1]:
            continue
        for columns in apart(same):
            yield from shot_tables([group.rows for group in columns], marked=marked)


def apart(groups: Sequence[Group]) -> list[list[Group]]:
    """Return groups of one setting such that none has a number of shots twice.

    Runs may have judged the same shots on other images or with other seeds; those don't share a
    table. One that still would is left out of it.
    """
    if _once(groups):
        return [list(groups)]
    counts = dict.fromkeys(group.first.image_count for group in groups)
    shares = [[g for g in groups if g.first.image_count == count] for count in counts]
    return [share for share in shares if _once(share)]


def _once(groups: Sequence[Group]) -> bool:
    kinds = [(g.first.shots, g.first.tuning, g.first.prompt_tokens) for g in groups]
    return len(set(kinds)) == len(kinds)


def shot_columns(found: Grouped) -> list[list[Sequence[Average]]]:
    """Return what tables of shots are made of, one entry per table, shots rising."""
    return [
        table
        for same in _by_setting(found).values()
        for columns in apart(same)
        for table in by_shots([group.rows for group in columns])
    ]


def _by_setting(found: Grouped) -> dict[Hashable, list[Group]]:
    settings: dict[Hashable, list[Group]] = {}
    for group in found.groups:
        settings.setdefault(group.setting, []).append(group)
    return settings


def _section(group: Group, *, summary: bool, marked: bool) -> Table:
    family, about = judged(group.rows) if marked else None, _about(group.rows)
    return table_of(
        group.rows,
        report_columns(group.rows, family=family, summary=summary),
        title=group.name,
        caption=about if family is None else f"{about} {family.note}.",
        settings=[row.config for row in group.rows],
    )


def _about(group: Sequence[Average]) -> str:
    """Say what all records of a group have in common."""
    first = group[0].first
    golden = sorted({r.golden_images for row in group for r in row.records if r.golden_images})
    seeds = [str(record.seed) for record in group[0].records]
    lost = uncounted(*(record for row in group for record in row.records))
    return (
        f"{protocol(first)}; {first.image_count} images (revision {first.dataset_revision}, "
        f"{'seed' if len(seeds) == 1 else 'mean of seeds'} {', '.join(seeds)}), "
        f"{first.device_name}, {first.device}, {first.dtype}, "
        f"{counted(first.threads, 'thread')}, torch {first.torch}, timm {first.timm}, "
        f"weights {first.weights_sha256[:12]}; agreement on "
        f"{', '.join(map(str, golden)) or 'no'} images.{f' {lost}.' if lost else ''}"
    )


def time_sections(groups: Sequence[TimedGroup], *, summary: bool = False) -> list[Table]:
    """Return a table per group, the model first in each row.

    Args:
        groups: the times.
        summary: leave out what a first look doesn't need.
    """
    return [_times(group, summary=summary) for group in groups]


def time_rows(times: Sequence[tuple[str, LatencyRecord]]) -> list[dict[str, Any]]:
    """Return a row of every field per time, each time with the run that it is from."""
    rows = []
    for run, record in times:
        values = asdict(record)
        inner = {name: values.pop(name) for name in ("machine", "surroundings")}
        flat = {f"{name}_{key}": value for name, own in inner.items() for key, value in own.items()}
        rows.append({"run": run} | values | flat)
    return rows


def _times(group: TimedGroup, *, summary: bool) -> Table:
    columns = timed_columns_of(group.rows)
    heads = ["model", *(head for head in columns if head != "model")]
    if summary:
        heads = [head for head in heads if head not in DETAILS]
    more = PREPARED if "off" in columns and not summary else ""
    return Table(
        title=group.name,
        caption=f"{CAPTION[0].upper()}{CAPTION[1:]}{more}.",
        columns=[Column(heading=head, left=head == "model") for head in heads],
        rows=[
            [Cell(columns[head](row), _value(row, head, columns[head](row))) for head in heads]
            for row in group.rows
        ],
        models=[row.model for row in group.rows],
        notes=notes(group.rows),
    )


def _value(row: LatencyRecord, head: str, text: str) -> float | str | None:
    if head in _SORTED_BY:
        value: float | None = getattr(row, _SORTED_BY[head])
        return value
    return None if head == "verdict" and row.verdict is None else text


def markdown_table(records: Iterable[Record], *, summary: bool = False) -> str:
    """Return one Markdown table per group of records, each under its heading.

    Args:
        records: what to show.
        summary: leave out what a first look doesn't need.

    Raises:
        ValueError: no records.
    """
    return markdown(list(sections(grouped(records), summary=summary)))
