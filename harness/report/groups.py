"""Rows that may stand in one table, from records of one run or many."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from harness.averages import Average, averages
from harness.protocol import protocol, tower_of
from harness.records import CONDITIONS, Record
from harness.report.tables import BY_COLUMN
from harness.variants import DENSE

Conditions = tuple[Hashable, ...]
# What a heading names; where the rest differs, it tells that, too.
_NAMED = ("dataset", "split", "tag", "shots", "tuning", "prompt_tokens")
_APART = (*(name for name in CONDITIONS if name not in _NAMED), "version")
_EVERY = (*_NAMED, *_APART)
_IMAGES = ("images_sha256", "image_size")
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
        replaced: records that a newer one of the same row and conditions stands for.
    """

    groups: Sequence[Group]
    replaced: int = 0

    @property
    def several_seeds(self) -> bool:
        """Say whether a row is a mean over seeds."""
        return any(len(row.records) > 1 for group in self.groups for row in group.rows)


def grouped(records: Iterable[Record]) -> Grouped:
    """Share records out to groups, so that no table mixes conditions.

    A row that was measured several times under the same conditions counts once, as it was last.
    Means over seeds are of the same seeds in all rows of a group.

    Raises:
        ValueError: no records.
    """
    given = list(records)
    if not given:
        raise ValueError("there are no records to report")
    newest: dict[Hashable, tuple[Conditions, Record]] = {}
    for record in given:
        conditions = tuple(_value_of(record, name) for name in _EVERY)
        key = (conditions, _identity(record), record.seed)
        known = newest.get(key)
        if known is None or _when(record) >= _when(known[1]):
            newest[key] = (conditions, record)
    seeds: dict[Hashable, set[int]] = {}
    for conditions, record in newest.values():
        if record.shots:
            seeds.setdefault((conditions, _identity(record)), set()).add(record.seed)
    shares: dict[tuple[Conditions, frozenset[int]], list[Record]] = {}
    for conditions, record in newest.values():
        own = frozenset(seeds.get((conditions, _identity(record)), ()))
        shares.setdefault((conditions, own), []).append(record)
    rows = [_rows(share) for share in shares.values()]
    groups = [
        Group(name=name, rows=group, setting=_setting(conditions))
        for name, group, (conditions, _) in zip(_names(rows), rows, shares, strict=True)
    ]
    return Grouped(groups=groups, replaced=len(given) - len(newest))


def _value_of(record: Record, name: str) -> Hashable:
    value: Hashable = None if name == "seed" and record.shots else getattr(record, name)
    return value


def _setting(conditions: Conditions) -> Hashable:
    named = zip(_EVERY, conditions, strict=True)
    return tuple(value for name, value in named if name not in BY_COLUMN)


def _identity(record: Record) -> str:
    return averages([record])[0].identity


def _when(record: Record) -> datetime:
    return datetime.fromisoformat(record.created)


def _rows(records: Sequence[Record]) -> list[Average]:
    return sorted(averages(records), key=lambda row: (row.method != DENSE, -row.keep))


def _names(groups: Sequence[Sequence[Average]]) -> list[str]:
    """Return headings, with the conditions in which groups of the same heading differ.

    Which images they are of is told only where the rest is the same.
    """
    plain = [_plain(rows[0].first) for rows in groups]
    sure = [name for name in _APART if name not in _IMAGES]
    return _told_apart(_told_apart(plain, groups, sure), groups, _IMAGES)


def _told_apart(
    names: Sequence[str], groups: Sequence[Sequence[Average]], conditions: Sequence[str]
) -> list[str]:
    found = []
    for name, rows in zip(names, groups, strict=True):
        alike = [other for told, other in zip(names, groups, strict=True) if told == name]
        differ = [_told(rows, c) for c in conditions if len({_value(o, c) for o in alike}) > 1]
        found.append("; ".join([name, ", ".join(differ)]) if differ else name)
    return found


def _plain(first: Record) -> str:
    how = protocol(first) if first.shots else "by text"
    return f"{first.dataset} {first.split}, {how}, {tower_of(first)}"


def _value(rows: Sequence[Average], condition: str) -> str:
    if condition == "seed":
        return ", ".join(str(record.seed) for record in rows[0].records)
    value = getattr(rows[0].first, condition)
    return "unknown" if value is None else str(value)


def _told(rows: Sequence[Average], condition: str) -> str:
    if condition == "threads":
        return counted(rows[0].first.threads, "thread")
    several = "seeds {}" if condition == "seed" and len(rows[0].records) > 1 else None
    words = several or _WORDS.get(condition, f"{condition.replace('_', ' ')} {{}}")
    return words.format(_value(rows, condition))


def counted(count: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
