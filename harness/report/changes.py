"""What changed between two runs: their rows in pairs, what of each may be compared, and tables."""

import argparse
import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rich.console import Console

from harness.console.table import (
    FORMS,
    UNMEASURED,
    Cell,
    Column,
    Shown,
    Table,
    json_values,
    points,
)
from harness.records.averages import protocol, tower_of, uncounted
from harness.records.record import Latency, Metric, Record, measured_alike, metrics, read_run
from harness.records.statistics import (
    MCNEMAR,
    Interval,
    Together,
    detectable_note,
    mark_note,
    mcnemar_exact,
    paired_difference,
    together,
)
from harness.report.writers import markdown, markdown_text
from zoo.files import write_whole

ABSENT = "(absent)"  # of a setting that a run's method didn't have, which isn't null
# What makes a row the same row in both runs; tag and not the weights' hash, which is told.
_ROW = (
    "dataset", "split", "model", "tag", "method", "keep", "shots", "tuning", "prompt_tokens",
    "seed",
)  # fmt: skip
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "dtype", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
_CAPTION = (
    "top-1 in %; B - A in points with 95 % paired bootstrap interval over images; only A, only B: "
    "images that one alone got right; p: exact McNemar test, one comparison at a time; batch: "
    "median time of B over A's, without interval, as the two were not timed in turns; to dense: "
    "the same of the ratios to dense, which were, with an interval that covers at least 90 %; tau: "
    "mean Kendall tau of B minus A's"
)
_DIGITS = 16  # of a hash


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

    def change(self, metric: Metric) -> float | None:
        """Return a metric's value of B minus A's; None unless both have it of the same images."""
        same = not self.other_images and self.a.golden_images == self.b.golden_images
        a, b = getattr(self.a, metric.name), getattr(self.b, metric.name)
        return None if a is None or b is None or not same else b - a

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
        return _known(self.a, self.b, exact(self.a))

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


def exact(record: Record) -> list[str]:
    """Return what is counted of a record, so that nothing may vary."""
    return [name for name, metric in metrics(type(record)).items() if metric.bound == "exact"]


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


def ratios(a: Record, b: Record) -> dict[int, float]:
    """Return the median time of b over a's by batch size, where both have it.

    There is no interval: records keep no rounds, and the two weren't timed in turns.
    """
    times = {entry.batch: entry.median_ms for entry in a.latency}
    both = [entry for entry in b.latency if times.get(entry.batch)]
    return {entry.batch: entry.median_ms / times[entry.batch] for entry in both}


def ratios_to_dense(a: Record, b: Record) -> dict[int, Interval]:
    """Return b's ratio to its dense model over a's to its own, where both have it.

    Each of the two was timed in turns with its dense model, so a busier machine cancels out. The
    ends are the furthest that both 95 % intervals allow, which covers at least 90 %.
    """
    ours = {entry.batch: _to_dense(entry) for entry in a.latency}
    found = {}
    for entry in b.latency:
        before, after = ours.get(entry.batch), _to_dense(entry)
        if before is not None and after is not None:
            found[entry.batch] = Interval(
                after.estimate / before.estimate, after.low / before.high, after.high / before.low
            )
    return found


def _to_dense(entry: Latency) -> Interval | None:
    """Return the ratio to dense with its interval; None where one is missing or 0."""
    ratio, low, high = entry.ratio_to_dense, entry.ratio_low, entry.ratio_high
    return Interval(ratio, low, high) if ratio and low and high else None


def changes_data(found: Changes) -> dict[str, Any]:
    """Return the pairs with what may be compared, conditions that differ, and rows of one run."""
    conditions = [
        {**json_values(difference), "rows": count} for difference, count in found.conditions()
    ]
    return {
        "pairs": [pair for group in found.groups() for pair in _pairs(group)],
        "conditions": conditions,
        "only_in_a": [_row_values(record) for record in found.only_a],
        "only_in_b": [_row_values(record) for record in found.only_b],
        "replaced": dict(zip("ab", found.replaced, strict=True)),
    }


def _row_values(record: Record) -> dict[str, Any]:
    return {name: json_values(getattr(record, name)) for name in _ROW}


def _pairs(group: Sequence[Change]) -> list[dict[str, Any]]:
    """Return the rows of one table, which are judged together."""
    family = together({at: pair.p_value for at, pair in enumerate(group)})
    return [_pair(pair, family.adjusted.get(at)) for at, pair in enumerate(group)]


def _pair(pair: Change, adjusted: float | None) -> dict[str, Any]:
    only_a, only_b = pair.answers or (None, None)
    return {
        **_row_values(pair.a),
        "top1": {"a": pair.a.top1, "b": pair.b.top1},
        "top1_difference": json_values(pair.top1),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_value": json_values(pair.p_value),
        "p_value_holm": adjusted,
        "images_proven_the_same": pair.proven and not pair.other_images,
        "other_images": pair.other_images,
        "gflops": {"a": pair.a.gflops, "b": pair.b.gflops},
        "latency_ratio_by_batch": json_values(pair.latency),
        "latency_ratio_to_dense_by_batch": json_values(pair.latency_to_dense),
        **{
            f"{metric.name}_difference": json_values(pair.change(metric))
            for metric in _changing(pair)
        },
        "costs": json_values(pair.costs),
        "conditions": json_values(pair.conditions),
    }


def tables(found: Changes) -> list[Table]:
    """Return a table per dataset, split, tower and tuning."""
    return [_table(group) for group in found.groups()]


def notes(found: Changes) -> list[str]:
    """Say in words what is not the same in both runs, and what is therefore not compared."""
    pairs = len(found.pairs)
    lines = [f"{pairs} {'row is' if pairs == 1 else 'rows are'} in both runs"]
    for run, count in zip("AB", found.replaced, strict=True):
        if count:
            what = "1 record gives" if count == 1 else f"{count} records give"
            lines.append(f"in {run} {what} way to newer ones of the same row and conditions")
    lines += [
        f"conditions differ: {_told(difference)} ({_share(count, pairs)})"
        for difference, count in found.conditions()
    ]
    if pairs and not found.conditions():
        lines.append("conditions are the same in every row")
    lines += _apart(found)
    for pair in found.pairs:
        lines += [f"{_name(pair.a)}: cost differs: {_told(cost)}" for cost in pair.costs]
    both = (record for pair in found.pairs for record in (pair.a, pair.b))
    if told := uncounted(*both):
        lines.append(_plain(told))
    assumed = sum(not pair.proven and not pair.other_images for pair in found.pairs)
    if assumed:
        lines.append(
            f"images taken for the same by revision and count ({_share(assumed, pairs)}): one of "
            "the two doesn't say which its images are"
        )
    untimed = sum(bool(p.a.latency and p.b.latency and not p.latency) for p in found.pairs)
    if untimed:
        lines.append(
            f"latency not compared ({_share(untimed, pairs)}): it takes the same device, "
            "device_name, dtype, threads and batch"
        )
    for run, rest in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"only in {run}: {_name(record)}" for record in rest]
    return lines


def _apart(found: Changes) -> Iterator[str]:
    """Say which rows are of other images in the other run, those of one reason in one line."""
    rows: dict[tuple[str, str, str], list[Record]] = {}
    for pair in found.pairs:
        if pair.other_images:
            reason = (pair.a.dataset, pair.a.split, pair.other_images)
            rows.setdefault(reason, []).append(pair.a)
    for (dataset, split, why), told in rows.items():
        named = _plain(f"{len(told)} rows on {dataset} {split}") if told[1:] else _name(told[0])
        yield f"{named}: accuracy not compared, images or prompts differ: {_plain(why)}"


def changes_markdown(found: Changes, a: str, b: str) -> str:
    """Return notes and tables as one document; ``a`` and ``b`` say which runs they are."""
    lines = ["# Changes from A to B", ""]
    lines += [f"- {run}: {markdown_text(name)}" for run, name in (("A", a), ("B", b))]
    lines += [f"- {markdown_text(line)}" for line in notes(found)]
    return "\n".join([*lines, "", markdown(tables(found), level=2)])


def _table(group: Sequence[Change]) -> Table:
    first = group[0].a
    family = together({at: pair.p_value for at, pair in enumerate(group)})
    images = {record.image_count for pair in group for record in (pair.a, pair.b)}
    count = " or ".join(map(str, sorted(images)))
    name = f"{first.dataset} ({first.split}, {count} images; {protocol(first)}), {tower_of(first)}"
    note = _judged(group, family)
    rows = [_cells(pair, group, family.mark(at)) for at, pair in enumerate(group)]
    return Table(
        title=_plain(name),
        caption=f"{_CAPTION}; {note}" if note else _CAPTION,
        columns=[
            Column(
                heading=heading,
                left=heading == "method",
                fold=heading == "method",
                forms=FORMS if heading in _NARROW else FORMS[:1],
            )
            for heading in rows[0]
        ],
        rows=[list(row.values()) for row in rows],
    )


_NARROW = ("method", "keep", "seed", "top-1 A", "top-1 B", "B - A", "p", "GFLOPs")


def _cells(pair: Change, group: Sequence[Change], mark: str) -> dict[str, Cell]:
    """Return the cells of a row by heading; all rows of a group have the same."""
    a, b, answers, p = pair.a, pair.b, pair.answers, pair.p_value
    cells = {
        "method": Cell(_plain(a.method), a.method),
        "keep": Cell(f"{100 * a.keep:.4g}", a.keep),
    }
    if len({other.a.seed for other in group}) > 1:
        cells["seed"] = Cell(str(a.seed), a.seed)
    cells |= {
        "top-1 A": Cell(f"{100 * a.top1:.1f}", a.top1),
        "top-1 B": Cell(f"{100 * b.top1:.1f}", b.top1),
        "B - A": points(pair.top1, mark),
        "only A, only B": UNMEASURED if answers is None else Cell("{}, {}".format(*answers)),
        "p": UNMEASURED if p is None else Cell(f"{p:.3f}", p),
        "GFLOPs": _cost(pair),
    }
    for batch in sorted({batch for other in group for batch in other.latency}):
        time = pair.latency.get(batch)
        cells[f"batch {batch}, B / A"] = UNMEASURED if time is None else Cell(f"{time:.2f}x", time)
    for batch in sorted({batch for other in group for batch in other.latency_to_dense}):
        ratio = pair.latency_to_dense.get(batch)
        cells[f"batch {batch}, to dense"] = (
            UNMEASURED
            if ratio is None
            else Cell("{:.2f}x [{:.2f}, {:.2f}]".format(*ratio), ratio.estimate)
        )
    for metric in _changing(pair):
        by = pair.change(metric)
        cells[metric.short] = (
            UNMEASURED if by is None else Cell(format(by, metric.change).removesuffix("%"), by)
        )
    return cells


def _changing(pair: Change) -> list[Metric]:
    """Return the metrics that are compared by the difference of their values."""
    return [metric for metric in metrics(type(pair.a)).values() if metric.change]


def _judged(group: Sequence[Change], family: Together[int]) -> str:
    """Say what the marks are, and what so many images show of the rows without one."""
    if not family.alone:
        return ""
    left = [group[at] for at in family.alone if not family.mark(at)]
    images = {pair.a.image_count for pair in left}
    note = mark_note(MCNEMAR, "all rows of this table")
    if len(images) > 1:
        return note
    shares = [float((pair.a.correct != pair.b.correct).mean()) for pair in left]
    return note + detectable_note(min(images, default=1), shares)


def _cost(pair: Change) -> Cell:
    gflops = metrics(type(pair.a))["gflops"]
    a, b = (
        UNMEASURED if value is None else Cell(f"{value:.3f}", value)
        for value in (getattr(record, gflops.name) for record in (pair.a, pair.b))
    )
    return a if pair.a.gflops == pair.b.gflops else Cell(f"{a} → {b}", b.value)


def _told(difference: Difference) -> str:
    a, b = (_value(difference.name, value) for value in (difference.a, difference.b))
    return f"{_plain(difference.name)} {a} in A, {b} in B"


def _value(name: str, value: object) -> str:
    if name.endswith("_sha256"):
        value = str(value)[:_DIGITS]
    if value == ABSENT:
        return ABSENT
    return "none" if value is None else json.dumps(value)


def _share(count: int, pairs: int) -> str:
    return "every row" if count == pairs else f"{count} of {pairs} rows"


def _name(record: Record) -> str:
    text = f"{record.model}.{record.tag} on {record.dataset} {record.split}"
    if record.shots:
        text += f", {protocol(record)}, seed {record.seed}"
    return _plain(text)


def _plain(text: str) -> str:
    """Return text of somebody else's file without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def run_changes(args: argparse.Namespace, status: Console) -> Shown:
    """Tell what changed between two runs; with --output write changes.md, too.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: not two runs, a flag for measuring, or a run that can't be read.
    """
    words = takewhile(lambda word: word != "--", args.argv)
    flags = [word for word in words if word.startswith("--")]
    wrong = [flag for flag in flags if flag.split("=")[0] != "--output"]
    if wrong:
        raise ValueError(
            f"{wrong[0]} with runs to compare: it is for measuring; expected compare RUN_A RUN_B, "
            "with --output at most, or no runs"
        )
    if len(args.runs) != 2:
        raise ValueError(
            f"compare {' '.join(repr(str(run)) for run in args.runs)}: expected two runs, "
            "patchrank compare RUN_A RUN_B, or none, to measure"
        )
    a, b = args.runs
    found = changes(read_run(a), read_run(b))
    if flags:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / "changes.md"
        write_whole(path, changes_markdown(found, str(a), str(b)).encode())
        status.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    lines = (f"A: {a}", f"B: {b}", *notes(found))
    return Shown(
        parts=(*lines, *tables(found)), data={"a": str(a), "b": str(b), **changes_data(found)}
    )
