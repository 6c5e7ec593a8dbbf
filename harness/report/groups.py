"""Rows that may stand in one table, from records of one run or many, and these tables."""

import functools
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from harness.base.table import UNMEASURED, Cell, Column, Table, json_values
from harness.records.averages import (
    Average,
    Judgement,
    averages,
    describe_uncounted,
    judge_rows,
    judged_on,
    match_costs,
    protocol,
    tower_of,
    with_recovery,
)
from harness.records.conditions import DENSE, GOLDEN, MATCHED, RANDOM
from harness.records.metrics import METRICS
from harness.records.record import CONDITIONS, Record, Times, differing
from harness.records.times import CONDITIONS as TIMED_CONDITIONS
from harness.records.times import LatencyRecord, Machine, latency_table
from harness.records.times import table_of as timed_title
from harness.report.tables import matched_table, report_columns, shot_table, table_of
from harness.report.writers import markdown

Conditions = tuple[Hashable, ...]
# What a column of a table of shots differs in from another, with what follows from it.
BY_COLUMN = ("shots", "tuning", "prompt_tokens", "seed", "image_count", "classes_judged", "images_sha256")
# What a heading names; where other conditions differ, the heading names those, too.
_NAMED = ("dataset", "split", "classes_judged", "tag", "shots", "tuning", "prompt_tokens", "recovered")
# Which images, and how large: named only where nothing else differs, as others imply them.
_FINE = ("images_sha256", "image_size")
_APART = (*(name for name in CONDITIONS if name not in (*_NAMED, *_FINE)), "version")
_EVERY = (*_NAMED, *_APART, *_FINE)
# What the images of several datasets were judged under, by one tower.
_BRIEF = (
    *("tag", "weights_sha256", "image_size", "device", "device_name", "dtype", "threads"),
    *("torch", "timm", "version"),
)
_WORDS = {
    "dataset_revision": "revision {}", "seed": "seed {}", "image_count": "{} images",
    "images_sha256": "images {:.8}", "weights_sha256": "weights {:.8}", "device": "device {}",
    "dtype": "{}", "device_name": "on {}", "torch": "torch {}", "timm": "timm {}",
    "version": "clip-patchrank {}",
}  # fmt: skip
_TIMED_ROW = ("model", "method", "keep", "method_config", "batch")
_TIMED_APART = ("version", "weights_sha256", *(field.name for field in fields(Machine)))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows measured under the same conditions."""

    name: str  # heading; no other group has it
    rows: Sequence[Average]  # the dense one first, keep rates falling
    setting: Hashable  # what groups share that differ in nothing but shots and what follows

    @property
    def first(self) -> Record:
        """A record, for what all have in common."""
        return self.rows[0].first

    @functools.cached_property
    def family(self) -> Judgement | None:
        """Which rows differ clearly, all judged together; None where there is nothing to compare with."""
        return judge_rows(self.rows)


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Groups in the order in which they come in the records."""

    groups: Sequence[Group]
    replaced: int = 0  # records left out for newer ones of the same row and conditions

    @property
    def several_seeds(self) -> bool:
        """Say whether a row is a mean over seeds."""
        return any(len(row.records) > 1 for group in self.groups for row in group.rows)


@dataclass(frozen=True, kw_only=True)
class TimedGroup:
    """Times that may stand in one table."""

    name: str  # heading; no other group has it
    rows: Sequence[LatencyRecord]  # batches rising, of each the dense model first


def group_records(records: Iterable[Record]) -> Grouped:
    """Share records out to groups, so that no table mixes conditions.

    A row that was measured several times under the same conditions counts once, as it was last. Means over seeds are of
    the same seeds in all rows of a group.

    Raises:
        ValueError: no records.
    """
    every = list(records)
    if not every:
        raise ValueError("there are no records to report")
    newest: dict[tuple[Conditions, str, int], Record] = {}
    for record in every:
        key = (_conditions(record), averages([record])[0].identity, record.seed)
        if key not in newest or _when(record) >= _when(newest[key]):
            newest[key] = record
    seeds: dict[tuple[Conditions, str], set[int]] = {}
    for (conditions, identity, seed), record in newest.items():
        seeds.setdefault((conditions, identity), set()).update({seed} if record.shots else ())
    shares: dict[tuple[Conditions, frozenset[int]], list[Record]] = {}
    for (conditions, identity, _), record in newest.items():
        own = frozenset(seeds[conditions, identity])
        shares.setdefault((conditions, own), []).append(record)
    _beside_dense(shares)
    rows = [sorted(averages(share), key=lambda row: (row.method != DENSE, -row.keep)) for share in shares.values()]
    groups = [
        Group(name=name, rows=group, setting=_setting(conditions))
        for name, group, (conditions, _) in zip(_names(rows), rows, shares, strict=True)
    ]
    return Grouped(groups=groups, replaced=len(every) - len(newest))


def _beside_dense(shares: dict[tuple[Conditions, frozenset[int]], list[Record]]) -> None:
    """Put the dense rows beside those with recovery, which stand apart from rows without training."""
    place = _EVERY.index("recovered")
    for (conditions, seeds), share in list(shares.items()):
        if conditions[place]:
            free = (*conditions[:place], False, *conditions[place + 1 :]), seeds
            share[:0] = dense = [record for record in shares.get(free, ()) if record.method == DENSE]
            if dense and len(dense) == len(shares[free]):
                del shares[free]


def group_times(records: Sequence[LatencyRecord]) -> list[TimedGroup]:
    """Share times out to tables; what was timed several times counts once, as it was last."""
    newest: dict[str, LatencyRecord] = {}
    for record in records:
        key = _time_key(record, TIMED_CONDITIONS)
        if key not in newest or _when(record) >= _when(newest[key]):
            newest[key] = record
    shared = tuple(name for name in TIMED_CONDITIONS if name not in _TIMED_ROW)
    tables: dict[str, dict[str, list[LatencyRecord]]] = {}
    for record in newest.values():
        shares = tables.setdefault(timed_title(record), {})
        shares.setdefault(_time_key(record, shared), []).append(record)
    groups = []
    for title, shares in tables.items():
        facts = {key: _time_facts(rows[0]) for key, rows in shares.items()}
        varying = differing(facts.items())
        for key, rows in shares.items():
            apart = ", ".join(f"{name} {facts[key][name]}" for name in varying)
            ordered = sorted(rows, key=lambda row: (row.batch, row.method != DENSE))
            groups.append(TimedGroup(name=f"{title}; {apart}" if apart else title, rows=ordered))
    return groups


def count_of(count: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _conditions(record: Record) -> Conditions:
    """Return what rows of a table have in common; the seed of shots isn't: it is averaged over."""
    varying = ("seed",) if record.shots else ()
    return tuple(None if name in varying else getattr(record, name) for name in _EVERY)


def _setting(conditions: Conditions) -> Hashable:
    pairs = zip(_EVERY, conditions, strict=True)
    return tuple(value for name, value in pairs if name not in BY_COLUMN)


def _when(record: Record | LatencyRecord) -> datetime:
    return datetime.fromisoformat(record.created)


def _names(groups: Sequence[Sequence[Average]]) -> list[str]:
    """Return headings, with the conditions in which groups of the same heading differ."""
    names = [_heading(rows) for rows in groups]
    for conditions in (_APART, _FINE):
        alike: dict[str, list[Sequence[Average]]] = {}
        for name, rows in zip(names, groups, strict=True):
            alike.setdefault(name, []).append(rows)
        varying = {
            name: [c for c in conditions if len({_text(rows, c) for rows in same}) > 1] for name, same in alike.items()
        }
        words = [", ".join(_words(r, c) for c in varying[n]) for n, r in zip(names, groups, strict=True)]
        names = ["; ".join(filter(None, pair)) for pair in zip(names, words, strict=True)]
    return names


def _heading(rows: Sequence[Average]) -> str:
    first = rows[0].first
    how = "by text" if first.labelled and not first.shots else protocol(first)
    return f"{first.dataset} {judged_on(first)}, {how}, {tower_of(first)}{with_recovery(rows)}"


def _text(rows: Sequence[Average], condition: str) -> str:
    if condition == "seed":
        return ", ".join(str(record.seed) for record in rows[0].records)
    value = getattr(rows[0].first, condition)
    return "unknown" if value is None else str(value)


def _words(rows: Sequence[Average], condition: str) -> str:
    if condition == "threads":
        return count_of(rows[0].first.threads, "thread")
    several = "seeds {}" if condition == "seed" and len(rows[0].records) > 1 else None
    words = several or _WORDS.get(condition, f"{condition.replace('_', ' ')} {{}}")
    return words.format(_text(rows, condition))


def _time_key(record: LatencyRecord, names: Sequence[str]) -> str:
    return json.dumps({n: json_values(getattr(record, n)) for n in names}, sort_keys=True)


def _time_facts(record: LatencyRecord) -> dict[str, Any]:
    return {n: getattr(record if hasattr(record, n) else record.machine, n) for n in _TIMED_APART}


def sections(report: Grouped, *, summary: bool = False, marked: bool = False) -> Iterator[Table]:
    """Yield a table per group, with one at equal time if rows were matched so, and then those of shots.

    A summary lacks details; marks tell the differences to dense that are clear with all rows judged together.
    """
    for group in report.groups:
        yield _section(group, summary=summary, marked=marked)
        yield from _at_equal_time(group)
    yield from map(shot_table, shot_columns(report))


def _at_equal_time(group: Group) -> Iterator[Table]:
    """Pair rows whose keep rates were chosen for another method's time with that method's."""
    settings = (row.first.method_config.get(MATCHED) for row in group.rows)
    pairs = dict.fromkeys((setting["time_of"], setting["batch"]) for setting in settings if setting)
    records = [record for row in group.rows for record in row.records]
    for target, batch in pairs:
        if rows := match_costs(records, target, batch):
            yield matched_table(rows)


def markdown_table(records: Iterable[Record], *, summary: bool = False) -> str:
    """Return one Markdown table per group of records, each under its heading.

    Raises:
        ValueError: no records.
    """
    return markdown(list(sections(group_records(records), summary=summary)))


def equal_time_tables(report: Grouped) -> list[Table]:
    """Return the tables of rows at equal time alone."""
    return [table for group in report.groups for table in _at_equal_time(group)]


def brief_tables(report: Grouped) -> list[Table]:
    """Return a table per tower and conditions with a method's row at the highest keep rate, nearest to dense first.

    1 - cosine is of the first images without labels, if there are any, and top-1 of the first images with labels. Rows
    with training or at equal time have no place in it, random pruning and the golden ranking neither.
    """
    alike: dict[Hashable, list[Group]] = {}
    for group in report.groups:
        plain = not group.first.shots and not any(
            row.first.recovered or MATCHED in row.first.method_config for row in group.rows
        )
        if plain:
            alike.setdefault(tuple(getattr(group.first, name) for name in _BRIEF), []).append(group)
    tables = (_brief_table(groups) for groups in alike.values())
    return [table for table in tables if table is not None]


def _brief_table(groups: Sequence[Group]) -> Table | None:
    near = next((group for group in groups if not group.first.labelled), groups[0])
    right = next((group for group in groups if group.first.labelled), None)
    reduced = [row for row in near.rows if row.method not in (DENSE, GOLDEN, RANDOM)]
    keep = max((row.keep for row in reduced), default=None)
    if keep is None:
        return None
    rows = [row for row in near.rows if row.method == DENSE or (row in reduced and row.keep == keep)]
    rows.sort(key=lambda row: row.mean("cosine_distance") or 0)
    answers = {} if right is None else {row.identity: row for row in right.rows}
    distance, top1, cost = (METRICS[name].heading for name in ("cosine_distance", "top1", "gflops"))
    known = {column.heading: cell for column, cell in report_columns(rows)}
    filled = [(Column(heading=f"{distance}, {near.first.dataset}"), known[distance])]
    about = [f"{distance} of the features to dense on {near.first.image_count} images"]
    if right is not None:
        score = {column.heading: cell for column, cell in report_columns(right.rows)}[top1]
        found = [row.identity in answers for row in rows]
        if any(found):
            column = Column(heading=f"{top1}, {right.first.dataset}")
            filled.append((column, lambda row: score(answers[row.identity]) if row.identity in answers else UNMEASURED))
            about.append(f"top-1 on {right.first.image_count} images")
    times = [heading for heading in known if heading.endswith("× dense")]
    filled += [(Column(heading=heading), known[heading]) for heading in (cost, *times[-1:]) if heading in known]
    first = near.first
    return table_of(
        rows,
        [(Column(heading="Method", left=True), lambda row: Cell(row.label, row.label)), *filled],
        title=f"{tower_of(first)} at keep {100 * keep:.3g} %",
        caption=f"{'; '.join(about)}; × dense: time by the dense model's; with 95 % intervals; "
        f"{first.device_name}, {first.dtype}, {count_of(first.threads, 'thread')}.",
    )


def shot_columns(report: Grouped) -> list[list[Sequence[Average]]]:
    """Return, for each kind of tuning, rows of groups that differ in shots alone, shots rising.

    What is by text begins every kind. There are at least two columns; and none if runs have a number of shots twice, on
    other images or with other seeds.
    """
    alike: dict[tuple[Hashable, ...], list[Group]] = {}
    for group in report.groups:
        if group.first.shots:
            alike.setdefault((group.setting, group.first.tuning, group.first.prompt_tokens), []).append(group)
    by_text = [group for group in report.groups if not group.first.shots]
    every = [[*(one for one in by_text if one.setting == setting), *own] for (setting, *_), own in alike.items()]
    counts = [[group.first.shots for group in same] for same in every]
    return [
        [group.rows for group in sorted(same, key=lambda group: group.first.shots)]
        for same, own in zip(every, counts, strict=True)
        if 1 < len(own) == len(set(own))
    ]


def _section(group: Group, *, summary: bool, marked: bool) -> Table:
    family, about = group.family if marked else None, _about(group)
    columns = report_columns(group.rows, family=family, summary=summary)
    if marked:  # on a page, which scrolls, what a first look needs is in sight
        first = {column.heading for column, _ in report_columns(group.rows, summary=True)}
        columns.sort(key=lambda one: one[0].heading not in first)
    return table_of(
        group.rows,
        columns,
        title=group.name,
        caption=about if family is None else f"{about} {family.note}.",
        settings=[row.config for row in group.rows],
    )


def _about(group: Group) -> str:
    """Say what all records of a group have in common."""
    first = group.first
    records = [record for row in group.rows for record in row.records]
    golden = sorted({record.golden_images for record in records if record.golden_images})
    seeds = [str(record.seed) for record in group.rows[0].records]
    unknown = describe_uncounted(*records)
    return (
        f"{protocol(first)}; {first.image_count} images (revision {first.dataset_revision}, "
        f"{'seed' if len(seeds) == 1 else 'mean of seeds'} {', '.join(seeds)}), "
        f"{first.device_name}, {first.device}, {first.dtype}, "
        f"{count_of(first.threads, 'thread')}, torch {first.torch}, timm {first.timm}, "
        f"weights {first.weights_sha256[:12]}; agreement on "
        f"{', '.join(map(str, golden)) or 'no'} images.{f' {unknown}.' if unknown else ''}"
    )


def time_sections(groups: Sequence[TimedGroup], *, summary: bool = False) -> list[Table]:
    """Return a table per group; a summary lacks details."""
    tables = [replace(latency_table(group.rows), title=group.name) for group in groups]
    return [table.summary() if summary else table for table in tables]


def time_rows(times: Sequence[tuple[str, LatencyRecord]]) -> list[dict[str, Any]]:
    """Return a row of every field per time, each time with the run that it is from."""
    rows = []
    for run, record in times:
        values = asdict(record)
        known = values.pop("times") or {}
        values |= {field.name: known.get(field.name, values.get(field.name)) for field in fields(Times)}
        inner = {name: values.pop(name) for name in ("machine", "surroundings")}
        flat = {f"{name}_{key}": value for name, own in inner.items() for key, value in own.items()}
        rows.append({"run": run} | values | flat)
    return rows
