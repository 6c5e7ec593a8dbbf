"""Rows that may stand in one table, from records of one run or many, and these tables."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from harness.base.table import Table
from harness.records.averages import (
    Average,
    averages,
    describe_uncounted,
    judged_on,
    matched,
    protocol,
    tower_of,
    training_free,
    with_recovery,
)
from harness.records.record import CONDITIONS, DENSE, MATCHED, UNREDUCED, Record, differing
from harness.report.tables import rows_table

# What a heading names; where other conditions differ, the heading names those, too.
_NAMED = ("dataset", "split", "classes_judged", "tag", "shots", "tuning", "prompt_tokens")
_APART = (*(name for name in CONDITIONS if name not in _NAMED), "version")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows measured under the same conditions."""

    name: str  # heading; no other group has it
    short: str  # the dataset, or the heading where several groups are of it
    rows: Sequence[Average]  # the dense one first, keep rates falling

    @property
    def first(self) -> Record:
        """A record, for what all have in common."""
        return self.rows[0].first


def group_records(records: Iterable[Record]) -> list[Group]:
    """Share records out to groups, in their order, so that no table mixes conditions.

    A row that was measured several times under the same conditions counts once, as it was last. Means over seeds are of
    the same seeds in all rows of a group.

    Raises:
        ValueError: no records.
    """
    newest: dict[tuple[Hashable, ...], Record] = {}
    seeds: dict[tuple[Hashable, ...], set[int]] = {}
    for record in records:
        row = (_conditions(record), averages([record])[0].identity)
        seeds.setdefault(row, set()).update({record.seed} if record.shots else ())
        known = newest.setdefault((*row, record.seed), record)
        if datetime.fromisoformat(record.created) >= datetime.fromisoformat(known.created):
            newest[*row, record.seed] = record
    if not newest:
        raise ValueError("there are no records to report")
    shares: dict[tuple[Any, frozenset[int]], list[Record]] = {}
    for (conditions, identity, _), record in newest.items():
        shares.setdefault((conditions, frozenset(seeds[conditions, identity])), []).append(record)
    parts = [part for share in shares.values() for part in training_free(share)]
    rows = [sorted(averages(part), key=lambda row: (row.method != DENSE, -row.keep)) for part in parts]
    names = _names(rows)
    datasets = [own[0].first.dataset for own in rows]
    short = [name if datasets.count(own) > 1 else own for name, own in zip(names, datasets, strict=True)]
    return [Group(name=n, short=s, rows=own) for n, s, own in zip(names, short, rows, strict=True)]


def _conditions(record: Record) -> tuple[Hashable, ...]:
    """Return what rows of a table have in common; the seed of shots isn't: it is averaged over."""
    return tuple(None if name == "seed" and record.shots else getattr(record, name) for name in (*_NAMED, *_APART))


def _names(groups: Sequence[Sequence[Average]]) -> list[str]:
    """Return headings, with the conditions in which groups of the same heading differ."""
    headings = [_heading(rows) for rows in groups]
    facts = [{name: _describe(rows, name) for name in _APART} for rows in groups]
    names = []
    for heading, own in zip(headings, facts, strict=True):
        apart = differing(other for of, other in zip(headings, facts, strict=True) if of == heading)
        names.append("; ".join(filter(None, (heading, ", ".join(own[name] for name in apart)))))
    return names


def _heading(rows: Sequence[Average]) -> str:
    first = rows[0].first
    how = "by text" if first.labelled and not first.shots else protocol(first)
    return f"{first.dataset} {judged_on(first)}, {how}, {tower_of(first)}{with_recovery(rows)}"


def _describe(rows: Sequence[Average], condition: str) -> str:
    value = getattr(rows[0].first, condition)
    if condition == "seed":
        value = ", ".join(str(record.seed) for record in rows[0].records)
    value = "unknown" if value is None else str(value)
    name, hashed, _ = condition.partition("_sha256")
    return f"{name.replace('_', ' ')} {value[:8] if hashed else value}"


def sections(groups: Sequence[Group]) -> Iterator[Table]:
    """Yield a table per group, and one of rows whose keep rate was searched for a time beside their target."""
    for group in groups:
        searched = [row for row in group.rows if MATCHED in row.first.method_config]
        about = _describe_group(group)
        if len(searched) < len(group.rows):
            rows = [row for row in group.rows if row not in searched]
            yield rows_table(rows, group.name, about, settings=True)
        if searched:
            targets = [row for row in group.rows if any(matched(one, row) for one in searched)]
            rows = [*(row for row in group.rows if row.method in UNREDUCED), *targets, *searched]
            yield rows_table(rows, f"{group.name}, at equal time", about, settings=True)


def _describe_group(group: Group) -> str:
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


def count_of(count: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
