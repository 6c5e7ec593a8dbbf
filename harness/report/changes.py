"""What changed between two runs: their rows in pairs, what of each may be compared, and tables."""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.lines import require_appendable
from harness.base.table import UNMEASURED, Cell, Shown, Table, figure, json_values, points
from harness.base.terminal import printable
from harness.records.averages import describe_uncounted, judged_on, protocol, tower_of
from harness.records.metrics import METRICS, Metric
from harness.records.record import Record, measured_alike, read_run
from harness.records.statistics import (
    FLIPPED,
    MCNEMAR,
    Interval,
    Together,
    detectable_note,
    discordant,
    mark_note,
    mcnemar_exact,
    paired_difference,
    paired_mean,
    sign_flip,
    together,
)
from harness.report.tables import short_heading
from harness.report.writers import markdown, markdown_text
from zoo.core.files import write_whole

COUNTED = ("uncounted_operators", "tokens_per_block")  # fields in which nothing may vary
ABSENT = "(absent)"  # of a setting that a run's method didn't have, which isn't null
# What makes a row the same row in both runs; tag and not the weights' hash, which is told.
_ROW = (*("dataset", "split", "model", "tag", "method", "keep"), *("shots", "tuning", "prompt_tokens", "seed"))
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "dtype", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
_OF_LABELS = (
    "top-1 in %; B - A in points with 95 % paired bootstrap interval over images; only A, only B: "
    "images that one alone got right; p: exact McNemar test, one comparison at a time"
)
_CAPTION = (
    "batch: ratio to dense of B over A's, with an interval that covers at least 90 %; "
    "all that follows: B minus A, of each beside its own dense model, with 95 % paired bootstrap "
    "interval where values per image are known"
)
_NAMED = 12  # rows of one run alone that a line names


class Difference(NamedTuple):
    """A value that isn't the same in both runs; what is None there was not measured."""

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        """Say both in words, of a hash the first digits."""
        words = []
        for value in (self.a, self.b):
            short = str(value)[:16] if self.name.endswith("_sha256") else value
            words.append(ABSENT if short == ABSENT else "none" if short is None else json.dumps(short))
        return f"{printable(self.name)} {words[0]} in A, {words[1]} in B"


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
        images = _differences(self.a, self.b, _IMAGES)
        images = images or _known(self.a, self.b, ["images_sha256"])  # else it differs of course
        return "; ".join(f"{one.name} {one.a!r} in A, {one.b!r} in B" for one in images) or None

    @property
    def labelled(self) -> bool:
        """Whether both say which images were right, of the same images."""
        return self.a.labelled and self.b.labelled and not self.other_images

    @property
    def top1(self) -> Interval | None:
        """Top-1 of B minus A's, same images, 95 % paired bootstrap; None unless `labelled`."""
        return paired_difference(self.b.correct, self.a.correct, seed=0) if self.labelled else None

    @property
    def p_value(self) -> float | None:
        """The exact McNemar test's; None unless `labelled`."""
        return mcnemar_exact(self.b.correct, self.a.correct) if self.labelled else None

    @property
    def answers(self) -> tuple[int, int] | None:
        """How many images only A got right, and only B; None unless `labelled`."""
        return discordant(self.a.correct, self.b.correct)[:2] if self.labelled else None

    def change(self, metric: Metric) -> Interval | float | None:
        """Return a metric's value of B minus A's; None unless both have it of the same images.

        The interval is a 95 % paired bootstrap over images, where both have a value per image.
        """
        if (both := self._per_image(metric)) is not None:
            return paired_mean(*both, seed=0, groups=self.a.groups)
        same = not self.other_images and self.a.golden_images == self.b.golden_images
        a, b = self.a.mean(metric.name), self.b.mean(metric.name)
        return None if a is None or b is None or not same else b - a

    def change_p(self, metric: Metric) -> float | None:
        """Return the p-value that a metric didn't change; None without values per image."""
        both = self._per_image(metric)
        return None if both is None else sign_flip(both[0] - both[1], seed=0, groups=self.a.groups)

    def _per_image(self, metric: Metric) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return B's and A's values of the same images; None unless both have them."""
        a, b = self.a.per_image(metric.name), self.b.per_image(metric.name)
        return None if a is None or b is None or self.other_images else (b, a)

    @property
    def latency(self) -> dict[int, Interval]:
        """B's ratio to its dense model over A's to its own by batch size; empty unless machine and precision are one.

        Each of the two was timed in turns with its dense model, so a busier machine cancels out. The ends are the
        furthest that both 95 % intervals allow, which covers at least 90 %.
        """
        if _differences(self.a, self.b, _MACHINE):
            return {}
        before, after = (
            {entry.batch: entry.ratio for entry in record.latency if entry.ratio is not None and entry.ratio.low}
            for record in (self.a, self.b)
        )
        return {
            batch: Interval(b.estimate / a.estimate, b.low / a.high, b.high / a.low)
            for batch, b in after.items()
            if (a := before.get(batch))
        }

    @property
    def costs(self) -> list[Difference]:
        """Costs that both have and that aren't equal; they are counted, so nothing may vary."""
        names = [name for name, metric in METRICS.items() if metric.bound == "exact"]
        counted = [Difference(name, self.a.mean(name), self.b.mean(name)) for name in names]
        differing = [one for one in counted if one.a != one.b and None not in (one.a, one.b)]
        return [*differing, *_known(self.a, self.b, COUNTED)]

    @property
    def conditions(self) -> list[Difference]:
        """Conditions that differ, the method's settings among them one by one."""
        ours, theirs = self.a.method_config, self.b.method_config
        settings = [
            Difference(f"method_config.{name}", a, b)
            for name in dict.fromkeys([*ours, *theirs])
            if (a := ours.get(name, ABSENT)) != (b := theirs.get(name, ABSENT))
        ]
        names = (*_SOFTWARE, *_MACHINE, "weights_sha256")
        golden = ("golden_images",) if all("tau" in record.metrics for record in (self.a, self.b)) else ()
        size = _known(self.a, self.b, ["image_size"])
        return [*_differences(self.a, self.b, (*names, *golden)), *size, *settings]


@dataclass(frozen=True, kw_only=True)
class RunChanges:
    """Two runs: rows that both have, in A's order, and rows that the other lacks."""

    pairs: tuple[Change, ...]
    only_a: tuple[Record, ...]
    only_b: tuple[Record, ...]
    # Records of each run that a newer one of the same conditions stands for.
    replaced: tuple[int, int] = (0, 0)

    def groups(self) -> list[list[Change]]:
        """Return the pairs of each table."""
        groups: dict[tuple[Hashable, ...], list[Change]] = {}
        for pair in self.pairs:
            groups.setdefault(pair.group, []).append(pair)
        return list(groups.values())

    def conditions(self) -> list[tuple[Difference, int]]:
        """Return each condition that differs and in how many pairs it does, in pairs' order."""
        every = [difference for pair in self.pairs for difference in pair.conditions]
        by_text, counts = {str(one): one for one in reversed(every)}, Counter(map(str, every))
        return [(by_text[text], count) for text, count in counts.items()]


def pair_runs(a: Sequence[Record], b: Sequence[Record]) -> RunChanges:
    """Pair the rows of two runs.

    A run may have a row several times, under several conditions. Those most alike are paired, and none twice: first by
    images, then settings, weights, machine and software, then the newer.
    """
    # The last counts of records that are measured under the same conditions.
    ours, theirs = (list({measured_alike(one): one for one in run}.values()) for run in (a, b))
    row = attrgetter(*_ROW, "recovered")
    rows: dict[tuple[object, ...], list[int]] = {}
    for index, record in enumerate(theirs):
        rows.setdefault(row(record), []).append(index)
    near = [(_likeness(one, theirs[j]), i, j) for i, one in enumerate(ours) for j in rows.get(row(one), ())]
    partner: dict[int, int] = {}
    for _, i, j in sorted(near, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    taken = set(partner.values())
    return RunChanges(
        pairs=tuple(Change(a=ours[i], b=theirs[partner[i]]) for i in sorted(partner)),
        only_a=tuple(one for i, one in enumerate(ours) if i not in partner),
        only_b=tuple(one for j, one in enumerate(theirs) if j not in taken),
        replaced=(len(a) - len(ours), len(b) - len(theirs)),
    )


def _likeness(a: Record, b: Record) -> tuple[bool, ...]:
    """Say what two records have in common, the weightiest first."""
    names = (_IMAGES, ("method_config",), ("weights_sha256",), _MACHINE, _SOFTWARE)
    return tuple(not _differences(a, b, group) for group in names)


def _differences(a: Record, b: Record, names: Sequence[str]) -> list[Difference]:
    values = ((name, getattr(a, name), getattr(b, name)) for name in names)
    return [Difference(name, ours, theirs) for name, ours, theirs in values if ours != theirs]


def _known(a: Record, b: Record, names: Sequence[str]) -> list[Difference]:
    """Return the differences of what both have."""
    return [one for one in _differences(a, b, names) if None not in (one.a, one.b)]


def _changing(*, stored: bool = False) -> list[Metric]:
    """Return the metrics that are compared by the difference of their values, or of those per image alone."""
    return [metric for metric in METRICS.values() if metric.change and (metric.stored or not stored)]


def changes_data(runs: RunChanges) -> dict[str, Any]:
    """Return the pairs with what may be compared, conditions that differ, and rows of one run."""
    return {
        "pairs": [
            _pair_values(pair, {name: family.adjusted.get(at) for name, family in families.items()})
            for group in runs.groups()
            for families in [_families(group)]
            for at, pair in enumerate(group)
        ],
        "conditions": [{**json_values(difference), "rows": count} for difference, count in runs.conditions()],
        "only_in_a": [_row_values(record) for record in runs.only_a],
        "only_in_b": [_row_values(record) for record in runs.only_b],
        "replaced": dict(zip("ab", runs.replaced, strict=True)),
    }


def _families(group: Sequence[Change]) -> dict[str, Together[int]]:
    """Judge the rows of one table together: in top-1, and in each metric with values per image."""
    tested = {"top1": together({at: pair.p_value for at, pair in enumerate(group)})}
    return tested | {
        metric.name: together({at: pair.change_p(metric) for at, pair in enumerate(group)})
        for metric in _changing(stored=True)
    }


def _row_values(record: Record) -> dict[str, Any]:
    return {name: json_values(getattr(record, name)) for name in _ROW}


def _pair_values(pair: Change, adjusted: dict[str, float | None]) -> dict[str, Any]:
    only_a, only_b = pair.answers or (None, None)
    values = {
        "top1": {"a": pair.a.mean("top1"), "b": pair.b.mean("top1")},
        "top1_difference": pair.top1,
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_value": pair.p_value,
        "p_value_holm": adjusted["top1"],
        "other_images": pair.other_images,
        "gflops": {"a": pair.a.mean("gflops"), "b": pair.b.mean("gflops")},
        "latency_ratio_to_dense_by_batch": pair.latency,
        **{f"{metric.name}_difference": pair.change(metric) for metric in _changing()},
        **{f"{metric.name}_p_value": pair.change_p(metric) for metric in _changing(stored=True)},
        **{f"{metric.name}_p_value_holm": adjusted[metric.name] for metric in _changing(stored=True)},
        "costs": pair.costs,
        "conditions": pair.conditions,
    }
    return {**_row_values(pair.a), **json_values(values)}


def notes(runs: RunChanges) -> list[str]:
    """Say in words what is not the same in both runs, and what is therefore not compared."""
    pairs = len(runs.pairs)
    lines = [f"{pairs} {'row is' if pairs == 1 else 'rows are'} in both runs"]
    for run, count in zip("AB", runs.replaced, strict=True):
        if count:
            what = "1 record gives" if count == 1 else f"{count} records give"
            lines.append(f"in {run} {what} way to newer ones of the same row and conditions")
    lines += [f"conditions differ: {one} ({_share(count, pairs)})" for one, count in runs.conditions()]
    if pairs and not runs.conditions():
        lines.append("conditions are the same in every row")
    lines += _uncompared(runs)
    for run, alone in (("A", runs.only_a), ("B", runs.only_b)):
        if alone:
            more = f" and {len(alone) - _NAMED} more" if alone[_NAMED:] else ""
            lines.append(f"only in {run}: {', '.join(map(_name, alone[:_NAMED]))}{more}")
    return lines


def _uncompared(runs: RunChanges) -> Iterator[str]:
    """Say what of the pairs is not compared, or should be equal and isn't."""
    pairs = len(runs.pairs)
    for pair in runs.pairs:
        if pair.other_images:
            why = printable(pair.other_images)
            yield f"{_name(pair.a)}: accuracy not compared, images or prompts differ: {why}"
        yield from (f"{_name(pair.a)}: cost differs: {cost}" for cost in pair.costs)
    if lost := describe_uncounted(*(record for pair in runs.pairs for record in (pair.a, pair.b))):
        yield printable(lost)
    both = [pair for pair in runs.pairs if pair.a.latency and pair.b.latency]
    if untimed := sum(bool(_differences(pair.a, pair.b, _MACHINE)) for pair in both):
        same = "the same device, device_name, dtype, threads and batch"
        yield f"latency not compared ({_share(untimed, pairs)}): it takes {same}"


def _share(count: int, pairs: int) -> str:
    return "every row" if count == pairs else f"{count} of {pairs} rows"


def _name(record: Record) -> str:
    learned = f", {protocol(record)}, seed {record.seed}" if record.shots else ""
    return printable(f"{record.model}.{record.tag} on {record.dataset} {record.split}{learned}")


def tables(runs: RunChanges) -> list[Table]:
    """Return a table per dataset, split, tower and tuning."""
    return [_table(group) for group in runs.groups()]


def _table(group: Sequence[Change]) -> Table:
    first, families = group[0].a, _families(group)
    images = sorted({record.image_count for pair in group for record in (pair.a, pair.b)})
    count = " or ".join(map(str, images))
    rows = [
        _cells(pair, group, {name: family.mark(at) for name, family in families.items()})
        for at, pair in enumerate(group)
    ]
    labelled, roomy = "top-1 A" in rows[0], {short_heading(METRICS["cosine_distance"])}
    narrow = {"method", "keep", "seed", "GFLOPs"} | ({"top-1 A", "top-1 B", "B - A", "p"} if labelled else roomy)
    about = (_OF_LABELS if labelled else "", _CAPTION, *_describe_tests(group, families))
    return Table.of(
        printable(f"{first.dataset} ({judged_on(first)}, {count} images; {protocol(first)}), {tower_of(first)}"),
        list(rows[0]),
        [list(row.values()) for row in rows],
        words=("method",),
        wide=rows[0].keys() - narrow - roomy,
        roomy=roomy - narrow,
        caption="; ".join(filter(None, about)),
    )


def _cells(pair: Change, group: Sequence[Change], marks: dict[str, str]) -> dict[str, Cell]:
    """Return the cells of a row by heading; all rows of a group have the same.

    Top-1 has no columns where no row has labels, nor has a change that no row has.
    """
    a, b, answers = pair.a, pair.b, pair.answers
    seed = {"seed": figure(a.seed, "d")} if len({other.a.seed for other in group}) > 1 else {}
    ours, theirs = (figure(record.mean("gflops"), ".3f") for record in (a, b))
    cells = {"method": Cell(printable(a.label), a.label), "keep": Cell(f"{100 * a.keep:.4g}", a.keep), **seed}
    if any(record.labelled for other in group for record in (other.a, other.b)):
        cells |= {
            "top-1 A": figure(a.mean("top1"), ".1%"),
            "top-1 B": figure(b.mean("top1"), ".1%"),
            "B - A": points(pair.top1, marks["top1"]),
            "only A, only B": UNMEASURED if answers is None else Cell("{}, {}".format(*answers)),
            "p": figure(pair.p_value, ".3f"),
        }
    cells["GFLOPs"] = ours if ours.value == theirs.value else Cell(f"{ours} → {theirs}", theirs.value)
    for batch in sorted({batch for other in group for batch in other.latency}):
        ratio = pair.latency.get(batch)
        text = "" if ratio is None else "{:.2f}x [{:.2f}, {:.2f}]".format(*ratio)
        cells[f"batch {batch}, to dense"] = Cell(text, ratio.estimate) if ratio else UNMEASURED
    for metric in _changing():
        if any(metric.name in o.a.metrics and metric.name in o.b.metrics for o in group):
            cells[short_heading(metric)] = _change_cell(pair.change(metric), metric, marks.get(metric.name, ""))
    return cells


def _change_cell(change: Interval | float | None, metric: Metric, mark: str) -> Cell:
    if not isinstance(change, Interval):
        return figure(change, metric.change)
    value, low, high = (figure(number, metric.change) for number in change)
    return Cell(f"{value} [{low}, {high}]", change.estimate, mark)


def _describe_tests(group: Sequence[Change], families: dict[str, Together[int]]) -> Iterator[str]:
    """Say what the marks are, and what so many images show of the rows without one."""
    tested = [short_heading(metric) for metric in _changing(stored=True) if families[metric.name].alone]
    if tested:
        yield f"in {', '.join(tested)}: {mark_note(FLIPPED, 'each column by itself')}"
    family = families["top1"]
    if family.alone:
        left = [group[at] for at in family.alone if not family.mark(at)]
        images = {pair.a.image_count for pair in left}
        shares = [float((pair.a.correct != pair.b.correct).mean()) for pair in left]
        more = "" if len(images) > 1 else detectable_note(min(images, default=1), shares)
        yield f"in top-1: {mark_note(MCNEMAR, 'all rows of this table')}{more}"


def changes_markdown(runs: RunChanges, a: str, b: str) -> str:
    """Return notes and tables as one document; ``a`` and ``b`` say which runs they are."""
    lines = ["# Changes from A to B", ""]
    lines += [f"- {run}: {markdown_text(name)}" for run, name in (("A", a), ("B", b))]
    lines += [f"- {markdown_text(line)}" for line in notes(runs)]
    return "\n".join([*lines, "", markdown(tables(runs), level=2)])


def compare_runs(a: Path, b: Path, output: Path | None = None) -> Shown:
    """Tell what changed between two runs; with ``output``, a folder, write changes.md there, too.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: a run can't be read.
        NotADirectoryError: ``output`` is a file.
    """
    runs = pair_runs(read_run(a), read_run(b))
    lines = [f"A: {a}", f"B: {b}", *notes(runs)]
    if output is not None:
        path = output / "changes.md"
        require_appendable(path)
        write_whole(path, changes_markdown(runs, str(a), str(b)).encode())
        lines.append(f"wrote {path}")
    return Shown(parts=(*lines, *tables(runs)), data={"a": str(a), "b": str(b), **changes_data(runs)})
