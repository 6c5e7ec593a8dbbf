"""What changed between two runs: their rows in pairs, and what of each pair may be compared."""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from harness.base.lines import require_appendable
from harness.base.table import UNMEASURED, Cell, Shown, Table, figure, json_values
from harness.base.terminal import printable
from harness.records.averages import describe_uncounted, judged_on, protocol, tower_of
from harness.records.metrics import METRICS, Metric
from harness.records.record import Record, measured_alike, read_run
from harness.records.statistics import (
    CLEAR,
    FLIPPED,
    MCNEMAR,
    Interval,
    Together,
    detectable_note,
    discordant,
    mark_note,
    paired_difference,
    paired_mean,
    paired_p,
    sign_flip,
    together,
)
from harness.report.tables import estimate_cell
from harness.report.writers import markdown, markdown_text
from zoo.core.files import write_whole

TOP1 = METRICS["top1"]
COUNTED = ("uncounted_operators", "tokens_per_block")  # fields in which nothing may vary
ABSENT = "(absent)"  # of a setting that a run's method didn't have, which isn't null
# What makes a row the same row in both runs. The weights' hash doesn't: that it differs is said.
_ROW = (*("dataset", "split", "model", "tag", "method", "keep"), *("shots", "tuning", "prompt_tokens", "seed"))
_IMAGES = ("dataset_revision", "image_count")
_MACHINE = ("device", "device_name", "dtype", "threads")
_SOFTWARE = ("version", "git_commit", "torch", "timm")
_OF_LABELS = (
    "top-1 in %; B - A in points with 95 % paired bootstrap interval over images; only A, only B: "
    "images that one alone got right; p: exact McNemar test, one comparison at a time"
)
_OF_TIMES = "batch: ratio to dense of B over A's, with an interval that covers at least 90 %"
_OF_METRICS = "{}: B minus A, of each beside its own dense model, with 95 % paired bootstrap interval where known"
_NAMED = 12  # rows of one run alone that a line names


class Difference(NamedTuple):
    """A value that isn't the same in both runs; what is None there was not measured."""

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        a, b = (str(v)[:16] if self.name.endswith("_sha256") else v for v in (self.a, self.b))
        a, b = (v if v == ABSENT else "none" if v is None else json.dumps(v) for v in (a, b))
        return f"{printable(self.name)} {a} in A, {b} in B"


def _differences(a: Record, b: Record, names: Sequence[str], *, known: bool = False) -> list[Difference]:
    """Return the fields that differ; with ``known`` only of what both have."""
    values = (Difference(name, getattr(a, name), getattr(b, name)) for name in names)
    return [one for one in values if one.a != one.b and not (known and None in (one.a, one.b))]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row in two runs."""

    a: Record
    b: Record

    @cached_property
    def other_images(self) -> str | None:
        """Say why the answers can't be paired by image; None if they can."""
        images = _differences(self.a, self.b, _IMAGES)
        images = images or _differences(self.a, self.b, ["images_sha256"], known=True)
        return "; ".join(f"{one.name} {one.a!r} in A, {one.b!r} in B" for one in images) or None

    def per_image(self, metric: Metric) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return A's and B's values of a metric on the same images; None unless both have them."""
        a, b = (None if self.other_images else record.per_image(metric.name) for record in (self.a, self.b))
        return None if a is None or b is None else (a > 0, b > 0) if metric == TOP1 else (a, b)

    @property
    def answers(self) -> tuple[int, int] | None:
        """How many images only A got right, and only B; None unless both say it of the same images."""
        correct = self.per_image(TOP1)
        return None if correct is None else discordant(*correct)[:2]

    def change(self, metric: Metric) -> Interval | float | None:
        """Return a metric's value of B minus A's; None unless both have it of the same images.

        The interval is a 95 % paired bootstrap over images, where both have a value per image.
        """
        if (values := self.per_image(metric)) is not None:
            a, b = values
            return paired_difference(b, a, 0) if metric == TOP1 else paired_mean(b, a, seed=0, groups=self.a.groups)
        same = not self.other_images and self.a.golden_images == self.b.golden_images
        then, now = self.a.mean(metric.name), self.b.mean(metric.name)
        return None if then is None or now is None or not same else now - then

    def change_p(self, metric: Metric) -> float | None:
        """Return the p-value that a metric didn't change; None without values per image."""
        if (values := self.per_image(metric)) is None:
            return None
        a, b = values
        return paired_p(b, a) if metric == TOP1 else sign_flip(b - a, seed=0, groups=self.a.groups)

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
        return [*differing, *_differences(self.a, self.b, COUNTED, known=True)]

    @property
    def conditions(self) -> list[Difference]:
        """Conditions that differ, the method's settings among them one by one."""
        ours, theirs = self.a.method_config, self.b.method_config
        settings = [
            Difference(f"method_config.{name}", a, b)
            for name in dict.fromkeys([*ours, *theirs])
            if (a := ours.get(name, ABSENT)) != (b := theirs.get(name, ABSENT))
        ]
        golden = ("golden_images",) if all("tau" in record.metrics for record in (self.a, self.b)) else ()
        differing = _differences(self.a, self.b, (*_SOFTWARE, *_MACHINE, "weights_sha256", *golden))
        return [*differing, *_differences(self.a, self.b, ["image_size"], known=True), *settings]


@dataclass(frozen=True, kw_only=True)
class RunChanges:
    """Two runs: rows that both have, in A's order, and rows that the other lacks."""

    pairs: tuple[Change, ...]
    only_a: tuple[Record, ...]
    only_b: tuple[Record, ...]

    @cached_property
    def compared(self) -> list[tuple[list[Change], dict[Metric, Together[int]]]]:
        """The pairs of each table, of one dataset, split, tower and tuning, judged together in each metric."""
        groups: dict[Hashable, list[Change]] = {}
        for pair in self.pairs:
            row = pair.a
            key = (row.dataset, row.split, tower_of(row), row.shots, row.tuning, row.prompt_tokens)
            groups.setdefault(key, []).append(pair)
        metrics = [TOP1, *(metric for metric in METRICS.values() if metric.change)]
        return [
            (group, {m: together({at: pair.change_p(m) for at, pair in enumerate(group)}) for m in metrics})
            for group in groups.values()
        ]

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
    weighty = (_IMAGES, ("method_config",), ("weights_sha256",), _MACHINE, _SOFTWARE)
    # Of records that are measured under the same conditions the last counts.
    ours, theirs = (list({measured_alike(one): one for one in run}.values()) for run in (a, b))
    row = attrgetter(*_ROW, "recovered")
    near = [
        ([not _differences(one, other, names) for names in weighty], i, j)
        for i, one in enumerate(ours)
        for j, other in enumerate(theirs)
        if row(one) == row(other)
    ]
    partner: dict[int, int] = {}
    for _, i, j in sorted(near, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    return RunChanges(
        pairs=tuple(Change(a=ours[i], b=theirs[partner[i]]) for i in sorted(partner)),
        only_a=tuple(one for i, one in enumerate(ours) if i not in partner),
        only_b=tuple(one for j, one in enumerate(theirs) if j not in partner.values()),
    )


def changes_data(runs: RunChanges) -> dict[str, Any]:
    """Return the pairs with what may be compared, conditions that differ, and rows of one run, as JSON values."""
    pairs = []
    for group, compared in runs.compared:
        for at, pair in enumerate(group):
            only_a, only_b = pair.answers or (None, None)
            values: dict[str, Any] = {
                **{name: {"a": pair.a.mean(name), "b": pair.b.mean(name)} for name in ("top1", "gflops")},
                **{"only_a_right": only_a, "only_b_right": only_b, "other_images": pair.other_images},
                "latency_ratio_to_dense_by_batch": pair.latency,
                **{"costs": pair.costs, "conditions": pair.conditions},
            }
            for metric, family in compared.items():
                values[f"{metric.name}_difference"] = pair.change(metric)
                if metric.stored:
                    values[f"{metric.name}_p_value"] = family.alone.get(at)
                    values[f"{metric.name}_p_value_holm"] = family.adjusted.get(at)
            pairs.append(_row_values(pair.a) | json_values(values))
    return {
        "pairs": pairs,
        "conditions": [{**json_values(difference), "rows": count} for difference, count in runs.conditions()],
        "only_in_a": [_row_values(record) for record in runs.only_a],
        "only_in_b": [_row_values(record) for record in runs.only_b],
    }


def _row_values(record: Record) -> dict[str, Any]:
    return {name: json_values(getattr(record, name)) for name in _ROW}


def notes(runs: RunChanges) -> Iterator[str]:
    """Say in words what is not the same in both runs, and what is therefore not compared."""
    pairs = len(runs.pairs)
    yield f"{pairs} {'row is' if pairs == 1 else 'rows are'} in both runs"
    for condition, count in runs.conditions():
        yield f"conditions differ: {condition} ({_share(count, pairs)})"
    for pair in runs.pairs:
        if pair.other_images:
            why = printable(pair.other_images)
            yield f"{_name(pair.a)}: accuracy not compared, images or prompts differ: {why}"
        yield from (f"{_name(pair.a)}: cost differs: {cost}" for cost in pair.costs)
    if lost := describe_uncounted(*(record for pair in runs.pairs for record in (pair.a, pair.b))):
        yield printable(lost)
    timed = [pair for pair in runs.pairs if pair.a.latency and pair.b.latency]
    if apart := sum(bool(_differences(pair.a, pair.b, _MACHINE)) for pair in timed):
        same = "the same device, device_name, dtype, threads and batch"
        yield f"latency not compared ({_share(apart, pairs)}): it takes {same}"
    for run, alone in (("A", runs.only_a), ("B", runs.only_b)):
        if alone:
            more = f" and {len(alone) - _NAMED} more" if alone[_NAMED:] else ""
            yield f"only in {run}: {', '.join(map(_name, alone[:_NAMED]))}{more}"


def _share(count: int, pairs: int) -> str:
    return "every row" if count == pairs else f"{count} of {pairs} rows"


def _name(record: Record) -> str:
    learned = f", {protocol(record)}, seed {record.seed}" if record.shots else ""
    return printable(f"{record.model}.{record.tag} on {record.dataset} {record.split}{learned}")


def tables(runs: RunChanges) -> list[Table]:
    """Return a table per dataset, split, tower and tuning."""
    return [_table(group, compared) for group, compared in runs.compared]


def _table(group: Sequence[Change], compared: dict[Metric, Together[int]]) -> Table:
    first, runs = group[0].a, [(pair.a, pair.b) for pair in group]
    columns = {
        "method": [Cell(printable(a.label), a.label) for a, _ in runs],
        "keep": [Cell(f"{100 * a.keep:.4g}", a.keep) for a, _ in runs],
    }
    if len({a.seed for a, _ in runs}) > 1:
        columns["seed"] = [figure(a.seed, "d") for a, _ in runs]
    labelled = any(record.labelled for pair in runs for record in pair)
    if labelled:
        answers = [pair.answers for pair in group]
        columns |= {
            "top-1 A": [figure(a.mean("top1"), ".1%") for a, _ in runs],
            "top-1 B": [figure(b.mean("top1"), ".1%") for _, b in runs],
            "B - A": [_change_cell(pair, TOP1, compared[TOP1].mark(at)) for at, pair in enumerate(group)],
            "only A, only B": [UNMEASURED if own is None else Cell("{}, {}".format(*own)) for own in answers],
            "p": [figure(compared[TOP1].alone.get(at), ".3f") for at in range(len(group))],
        }
    costs = [[figure(record.mean("gflops"), ".3f") for record in pair] for pair in runs]
    columns["GFLOPs"] = [a if a.value == b.value else Cell(f"{a} → {b}", b.value) for a, b in costs]
    for batch in sorted({batch for pair in group for batch in pair.latency}):
        ratios = (pair.latency.get(batch) for pair in group)
        columns[f"batch {batch}, to dense"] = [estimate_cell(ratio, "{:.2f}".format) for ratio in ratios]
    for metric, family in compared.items():
        if metric != TOP1 and any(metric.name in a.metrics and metric.name in b.metrics for a, b in runs):
            cells = [_change_cell(pair, metric, family.mark(at)) for at, pair in enumerate(group)]
            columns[metric.heading] = cells
    near, more = {METRICS["cosine_distance"].heading}, [m.heading for m in compared if m.heading in columns]
    narrow = {"method", "keep", "seed", "GFLOPs"} | ({"top-1 A", "top-1 B", "B - A", "p"} if labelled else near)
    images = " or ".join(map(str, sorted({record.image_count for pair in runs for record in pair})))
    about = [_OF_LABELS] if labelled else []
    about += [_OF_TIMES] if any(pair.latency for pair in group) else []
    about += [_OF_METRICS.format(", ".join(more))] if more else []
    return Table.of(
        printable(f"{first.dataset} ({judged_on(first)}, {images} images; {protocol(first)}), {tower_of(first)}"),
        list(columns),
        list(zip(*columns.values(), strict=True)),
        words=("method",),
        wide=columns.keys() - narrow - near,
        roomy=near - narrow,
        legend=f"{CLEAR} clear change at 5 %, the rows of a column judged together",
        caption="; ".join([*about, *_describe_tests(group, compared)]),
    )


def _change_cell(pair: Change, metric: Metric, mark: str) -> Cell:
    cell = estimate_cell(pair.change(metric), lambda value: metric.text(value, metric.change or "+.1%"))
    return Cell(cell, cell.value, mark)


def _describe_tests(group: Sequence[Change], compared: dict[Metric, Together[int]]) -> Iterator[str]:
    """Say what the marks are, and what so many images show of the rows without one."""
    if tested := [one.title for one, family in compared.items() if one != TOP1 and family.alone]:
        yield f"in {', '.join(tested)}: {mark_note(FLIPPED, 'the rows of each column')}"
    family = compared[TOP1]
    if family.alone:
        left = [group[at] for at in family.alone if not family.mark(at)]
        images = {pair.a.image_count for pair in left}
        shares = [float((pair.a.correct != pair.b.correct).mean()) for pair in left]
        more = "" if len(images) > 1 else detectable_note(min(images, default=1), shares)
        yield f"in top-1: {mark_note(MCNEMAR, 'all rows of this table')}{more}"


def compare_runs(a: Path, b: Path, output: Path | None = None) -> Shown:
    """Tell what changed between two runs; with ``output``, a folder, write changes.md there, too.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: a run can't be read.
        NotADirectoryError: ``output`` is a file.
    """
    runs = pair_runs(read_run(a), read_run(b))
    lines, found = [f"A: {a}", f"B: {b}", *notes(runs)], tables(runs)
    if output is not None:
        path = output / "changes.md"
        require_appendable(path)
        document = ["# Changes from A to B", "", *(f"- {markdown_text(line)}" for line in lines), ""]
        write_whole(path, "\n".join([*document, markdown(found, level=2)]).encode())
        lines.append(f"wrote {path}")
    return Shown(parts=(*lines, *found), data={"a": str(a), "b": str(b), **changes_data(runs)})
