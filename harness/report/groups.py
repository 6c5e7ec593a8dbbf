"""Rows that may stand in one table, from records of one run or many, and likewise times."""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from harness.console.table import json_values
from harness.measure.times import CONDITIONS as TIMED_CONDITIONS
from harness.measure.times import LatencyRecord, table_of
from harness.measure.timing import Machine
from harness.records.averages import Average, averages, protocol, tower_of
from harness.records.conditions import DENSE
from harness.records.record import CONDITIONS, Record, differing
from harness.report.tables import BY_COLUMN

Conditions = tuple[Hashable, ...]
# What a heading names; where other conditions differ, the heading names those, too.
_NAMED = ("dataset", "split", "tag", "shots", "tuning", "prompt_tokens")
# Which images, and how large: named only where nothing else differs, as others imply them.
_FINE = ("images_sha256", "image_size")
_APART = (*(name for name in CONDITIONS if name not in (*_NAMED, *_FINE)), "version")
_EVERY = (*_NAMED, *_APART, *_FINE)
_WORDS = {
    "dataset_revision": "revision {}",
    "seed": "seed {}",
    "image_count": "{} images",
    "images_sha256": "images {:.8}",
    "weights_sha256": "weights {:.8}",
    "device": "device {}",
    "dtype": "{}",
    "device_name": "on {}",
    "torch": "torch {}",
    "timm": "timm {}",
    "version": "clip-patchrank {}",
}
_TIMED_ROW = ("model", "method", "keep", "method_config", "batch")
_TIMED_APART = ("version", "weights_sha256", *(field.name for field in fields(Machine)))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows measured under the same conditions.

    Attributes:
        name: heading; no other group has it.
        rows: the dense one first, keep rates falling.
        setting: what groups have in common that differ in nothing but shots and what follows.
    """

    name: str
    rows: Sequence[Average]
    setting: Hashable

    @property
    def first(self) -> Record:
        """A record, for what all have in common."""
        return self.rows[0].first


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """What a report is of.

    Attributes:
        groups: in the order in which they come in the records.
        replaced: how many records were left out for newer ones of the same row and conditions.
    """

    groups: Sequence[Group]
    replaced: int = 0

    @property
    def several_seeds(self) -> bool:
        """Say whether a row is a mean over seeds."""
        return any(len(row.records) > 1 for group in self.groups for row in group.rows)


@dataclass(frozen=True, kw_only=True)
class TimedGroup:
    """Times that may stand in one table.

    Attributes:
        name: heading; no other group has it.
        rows: batches rising, of each the dense model first.
    """

    name: str
    rows: Sequence[LatencyRecord]


def grouped(records: Iterable[Record]) -> Grouped:
    """Share records out to groups, so that no table mixes conditions.

    A row that was measured several times under the same conditions counts once, as it was last.
    Means over seeds are of the same seeds in all rows of a group.

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
    rows = [
        sorted(averages(share), key=lambda row: (row.method != DENSE, -row.keep))
        for share in shares.values()
    ]
    groups = [
        Group(name=name, rows=group, setting=_setting(conditions))
        for name, group, (conditions, _) in zip(_names(rows), rows, shares, strict=True)
    ]
    return Grouped(groups=groups, replaced=len(every) - len(newest))


def timed_groups(records: Sequence[LatencyRecord]) -> list[TimedGroup]:
    """Share times out to tables; what was timed several times counts once, as it was last."""
    newest: dict[str, LatencyRecord] = {}
    for record in records:
        key = _timed_key(record, TIMED_CONDITIONS)
        if key not in newest or _when(record) >= _when(newest[key]):
            newest[key] = record
    shared = tuple(name for name in TIMED_CONDITIONS if name not in _TIMED_ROW)
    tables: dict[str, dict[str, list[LatencyRecord]]] = {}
    for record in newest.values():
        shares = tables.setdefault(table_of(record), {})
        shares.setdefault(_timed_key(record, shared), []).append(record)
    groups = []
    for title, shares in tables.items():
        facts = {key: _timed_facts(rows[0]) for key, rows in shares.items()}
        varying = differing(facts.items())
        for key, rows in shares.items():
            apart = ", ".join(f"{name} {facts[key][name]}" for name in varying)
            ordered = sorted(rows, key=lambda row: (row.batch, row.method != DENSE))
            groups.append(TimedGroup(name=f"{title}; {apart}" if apart else title, rows=ordered))
    return groups


def counted(count: int, noun: str) -> str:
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
    names = [_heading(rows[0].first) for rows in groups]
    for conditions in (_APART, _FINE):
        alike: dict[str, list[Sequence[Average]]] = {}
        for name, rows in zip(names, groups, strict=True):
            alike.setdefault(name, []).append(rows)
        varying = {
            name: [c for c in conditions if len({_text(rows, c) for rows in same}) > 1]
            for name, same in alike.items()
        }
        names = [
            "; ".join([name, *filter(None, [", ".join(_words(rows, c) for c in varying[name])])])
            for name, rows in zip(names, groups, strict=True)
        ]
    return names


def _heading(first: Record) -> str:
    how = protocol(first) if first.shots else "by text"
    return f"{first.dataset} {first.split}, {how}, {tower_of(first)}"


def _text(rows: Sequence[Average], condition: str) -> str:
    if condition == "seed":
        return ", ".join(str(record.seed) for record in rows[0].records)
    value = getattr(rows[0].first, condition)
    return "unknown" if value is None else str(value)


def _words(rows: Sequence[Average], condition: str) -> str:
    if condition == "threads":
        return counted(rows[0].first.threads, "thread")
    several = "seeds {}" if condition == "seed" and len(rows[0].records) > 1 else None
    words = several or _WORDS.get(condition, f"{condition.replace('_', ' ')} {{}}")
    return words.format(_text(rows, condition))


def _timed_key(record: LatencyRecord, names: Sequence[str]) -> str:
    return json.dumps({n: json_values(getattr(record, n)) for n in names}, sort_keys=True)


def _timed_facts(record: LatencyRecord) -> dict[str, Any]:
    return {n: getattr(record if hasattr(record, n) else record.machine, n) for n in _TIMED_APART}
