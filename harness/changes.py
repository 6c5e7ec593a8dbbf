"""What changed between two runs: their rows in pairs, and what of a pair may be compared."""

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.protocol import tower_of
from harness.records import Record, read_records
from harness.reuse import measured_alike
from harness.significance import mcnemar_exact
from harness.statistics import Interval, paired_difference
from harness.time_ratios import ratios, ratios_to_dense

RECORDS = "records.jsonl"
ABSENT = "(absent)"  # of a setting that a run's method didn't have, which isn't null
# What makes a row the same row in both runs; tag and not the weights' hash, which is told.
_ROW = (
    "dataset", "split", "tag", "model", "method", "keep", "shots", "tuning", "prompt_tokens",
    "seed",
)  # fmt: skip
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "dtype", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
_EXACT = (
    "gflops", "uncounted_operators", "activations", "params", "tokens_per_block", "final_tokens",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A value that isn't the same in both runs; what is None there was not measured."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row in two runs."""

    a: Record
    b: Record

    @property
    def group(self) -> tuple[Hashable, ...]:
        """What a table's rows have in common: dataset, split, tower and tuning."""
        row = self.a
        return (row.dataset, row.split, tower_of(row), row.shots, row.tuning, row.prompt_tokens)

    @property
    def other_images(self) -> str | None:
        """Say why the answers can't be paired by image; None if they can."""
        found = _differences(self.a, self.b, _IMAGES)
        found = found or _known(self.a, self.b, ["images_sha256"])  # else it differs of course
        return "; ".join(f"{one.name} {one.a!r} in A, {one.b!r} in B" for one in found) or None

    @property
    def proven(self) -> bool:
        """Whether both say which images they are of; else revision and count have to do."""
        return None not in (self.a.images_sha256, self.b.images_sha256)

    @property
    def top1(self) -> Interval | None:
        """Top-1 of B minus A's, same images, 95 % paired bootstrap; None of other images."""
        if self.other_images:
            return None
        return paired_difference(self.b.correct, self.a.correct, seed=0)

    @property
    def p_value(self) -> float | None:
        """Return the exact McNemar test's; None of other images."""
        return None if self.other_images else mcnemar_exact(self.b.correct, self.a.correct)

    @property
    def answers(self) -> tuple[int, int] | None:
        """Return how many images only A got right, and only B; None of other images."""
        if self.other_images:
            return None
        a, b = self.a.correct, self.b.correct
        return int((a & ~b).sum()), int((b & ~a).sum())

    @property
    def tau(self) -> float | None:
        """Mean Kendall tau of B minus A's; None where one has none, or not of the same images."""
        same = not self.other_images and self.a.golden_images == self.b.golden_images
        if not same or self.a.tau is None or self.b.tau is None:
            return None
        return self.b.tau - self.a.tau

    @property
    def latency(self) -> dict[int, float]:
        """Median time of B over A's by batch size; empty unless machine and precision are one."""
        return {} if _differences(self.a, self.b, _MACHINE) else ratios(self.a, self.b)

    @property
    def latency_to_dense(self) -> dict[int, Interval]:
        """B's ratio to dense over A's by batch size, with an interval; empty as `latency` is."""
        return {} if _differences(self.a, self.b, _MACHINE) else ratios_to_dense(self.a, self.b)

    @property
    def costs(self) -> list[Difference]:
        """Costs that both have and that aren't equal; they are counted, so nothing may vary."""
        return _known(self.a, self.b, _EXACT)

    @property
    def conditions(self) -> list[Difference]:
        """Conditions that differ, the method's settings among them one by one."""
        ours, theirs = self.a.method_config, self.b.method_config
        settings = [
            Difference(name=f"method_config.{name}", a=a, b=b)
            for name in dict.fromkeys([*ours, *theirs])
            if (a := ours.get(name, ABSENT)) != (b := theirs.get(name, ABSENT))
        ]
        names = (*_SOFTWARE, *_MACHINE, "weights_sha256")
        golden = () if None in (self.a.tau, self.b.tau) else ("golden_images",)
        size = _known(self.a, self.b, ["image_size"])
        return [*_differences(self.a, self.b, (*names, *golden)), *size, *settings]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Two runs.

    Attributes:
        pairs: rows that both have, in A's order.
        only_a: rows that B lacks.
        only_b: rows that A lacks.
        replaced: records of each run that a newer one of the same conditions stands for.
    """

    pairs: tuple[Change, ...]
    only_a: tuple[Record, ...]
    only_b: tuple[Record, ...]
    replaced: tuple[int, int] = (0, 0)

    def groups(self) -> list[list[Change]]:
        """Return the pairs of each table."""
        found: dict[tuple[Hashable, ...], list[Change]] = {}
        for pair in self.pairs:
            found.setdefault(pair.group, []).append(pair)
        return list(found.values())

    def conditions(self) -> list[tuple[Difference, int]]:
        """Return each condition that differs and in how many pairs it does, in pairs' order."""
        every = [difference for pair in self.pairs for difference in pair.conditions]
        counts = Counter(_text(difference) for difference in every)
        first = {_text(difference): difference for difference in reversed(every)}
        return [(first[text], count) for text, count in counts.items()]


def read_run(path: Path) -> list[Record]:
    """Read a run: a file of records, or the folder of one.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: no records, or a line that is none.
    """
    file = path / RECORDS if path.is_dir() else path
    if not file.is_file():
        what = f"it holds no {RECORDS}" if path.is_dir() else "there is no such file or folder"
        raise FileNotFoundError(
            f"run {str(path)!r}: {what}; expected a file of records, or the folder that "
            "python -m harness compare --output wrote"
        )
    if records := read_records(file):
        return records
    raise ValueError(f"run {str(path)!r}: {file.name} holds no records")


def changes(a: Sequence[Record], b: Sequence[Record]) -> Changes:
    """Pair the rows of two runs.

    A run may have a row several times, under several conditions. Those most alike are paired, and
    none twice: first by images, then settings, weights, machine and software, then the newer.
    """
    ours, theirs = _newest(a), _newest(b)
    rows: dict[tuple[object, ...], list[int]] = {}
    for index, record in enumerate(theirs):
        rows.setdefault(_row(record), []).append(index)
    near = [
        (_likeness(one, theirs[j]), i, j)
        for i, one in enumerate(ours)
        for j in rows.get(_row(one), ())
    ]
    partner: dict[int, int] = {}
    for _, i, j in sorted(near, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    taken = set(partner.values())
    return Changes(
        pairs=tuple(Change(a=ours[i], b=theirs[partner[i]]) for i in sorted(partner)),
        only_a=tuple(one for i, one in enumerate(ours) if i not in partner),
        only_b=tuple(one for j, one in enumerate(theirs) if j not in taken),
        replaced=(len(a) - len(ours), len(b) - len(theirs)),
    )


def _newest(records: Sequence[Record]) -> list[Record]:
    """Keep the last of records that are measured under the same conditions."""
    found = {measured_alike(record): record for record in records}
    return list(found.values())


def _row(record: Record) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in _ROW)


def _likeness(a: Record, b: Record) -> tuple[bool, ...]:
    """Say what two records have in common, the weightiest first."""
    names = (("method_config",), ("weights_sha256",), _MACHINE, _SOFTWARE)
    return (
        all(getattr(a, name) == getattr(b, name) for name in _IMAGES),
        *(not _differences(a, b, group) for group in names),
    )


def _differences(a: Record, b: Record, names: Sequence[str]) -> list[Difference]:
    values = ((name, getattr(a, name), getattr(b, name)) for name in names)
    return [
        Difference(name=name, a=ours, b=theirs) for name, ours, theirs in values if ours != theirs
    ]


def _known(a: Record, b: Record, names: Sequence[str]) -> list[Difference]:
    """Return the differences of what both have."""
    return [one for one in _differences(a, b, names) if None not in (one.a, one.b)]


def _text(difference: Difference) -> str:
    return json.dumps([difference.name, difference.a, difference.b], sort_keys=True)
