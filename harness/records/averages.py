"""Rows of tables: a model's record, or the mean of its records over seeds; and which rows differ."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.table import count_of
from harness.datasets import list_datasets, shipped_facts
from harness.records import statistics
from harness.records.metrics import METRICS, Metric, MetricValue
from harness.records.record import (
    DENSE,
    FITTED_TO,
    GOLDEN,
    MATCHED,
    PROMPTS,
    RANDOM,
    UNREDUCED,
    Record,
    Times,
    lacking,
    refuse_mixed,
)
from harness.records.statistics import CLEAR, FLIPPED, MCNEMAR, SIGN_FLIP, Interval, Together
from zoo.core.settings import tower_name
from zoo.loading.sizes import SIZES

CLOSE = 0.05  # costs that differ by more are not equal
REFERENCE = "patchrank"  # method that fidelity is compared with, unless another is named
EMBEDDED = "s14"  # the size whose text tower we trained
ENDS = ("mean", "low", "high")  # parts of a `MetricValue`


@dataclass(frozen=True, kw_only=True)
class Average:
    """One model under one tuning."""

    records: tuple[Record, ...]  # one per seed, rising; at least one
    dense: "Average | None" = None  # of several seeds, the row that their top-1 is compared with

    @property
    def first(self) -> Record:
        """The first seed's record, for fields that seeds have in common."""
        return self.records[0]

    @property
    def method(self) -> str:
        """Method of all records."""
        return self.first.method

    @property
    def keep(self) -> float:
        """Keep rate of all records."""
        return self.first.keep

    @functools.cached_property
    def identity(self) -> str:
        """Text that differs between the rows of a table and is the same for a row at any number of shots."""
        return json.dumps([self.first.model, self.method, self.keep, _settings(self.first)], sort_keys=True)

    @property
    def config(self) -> dict[str, Any]:
        """The method's settings; of several seeds without what was learned for one."""
        return self.first.method_config if len(self.records) == 1 else _settings(self.first)

    @property
    def hits(self) -> NDArray[np.int64]:
        """(image_count,) for how many seeds each image was right."""
        return np.sum([r.correct for r in self.records], axis=0)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(image_count,) for what share of the seeds each image was right."""
        return self.hits / len(self.records)

    def measured(self, name: str) -> MetricValue | None:
        """Return a metric; None where a record lacks it, or there is no dense row to compare with.

        Of several seeds all numbers are means over them. Top-1 has Student's interval over seeds, its difference to
        dense a paired bootstrap over images, other metrics with values per image a bootstrap of their mean over seeds.
        """
        return self.first.metrics.get(name) if len(self.records) == 1 else self._over_seeds(name)

    @functools.cached_property
    def _over_seeds(self) -> Callable[[str], MetricValue | None]:
        return functools.cache(self._find_mean)  # a table asks several times, and a bootstrap takes a while

    def _find_mean(self, name: str) -> MetricValue | None:
        if name == "diff_to_dense":
            if self.dense is None:
                return None
            # Whole numbers are resampled and divided at the end, so equal rows differ by exactly 0.
            counts = statistics.bootstrap_counts(self.hits - self.dense.hits)
            mean, low, high = (count / len(self.records) for count in counts)
            return MetricValue(mean=mean, low=low, high=high)
        if not all(name in record.metrics for record in self.records):
            return None
        by_seed = [record.metrics[name] for record in self.records]
        numbers = {part: _mean([getattr(value, part) for value in by_seed]) for part in (*ENDS, "at", "chance")}
        if name == "top1":
            ends = statistics.mean_interval([value.mean for value in by_seed])[1:]
            numbers["low"], numbers["high"] = np.clip(ends, 0.0, 1.0).tolist()
        elif (values := self.per_image(name)) is not None:
            numbers |= zip(ENDS, statistics.over_images(values, self.first.groups) or (), strict=False)
        return MetricValue(**numbers)

    def mean(self, name: str) -> Any:
        """Return the mean over seeds of a metric; None if one seed lacks the metric."""
        return _mean([record.mean(name) for record in self.records])

    def per_image(self, name: str) -> NDArray[np.float64] | None:
        """Return (image_count,) values of a metric, mean over seeds; None if one seed lacks them."""
        by_seed = [values for record in self.records if (values := record.per_image(name)) is not None]
        return np.mean(by_seed, axis=0) if len(by_seed) == len(self.records) else None

    def estimate(self, metric: Metric) -> Interval | float | None:
        """Return a metric with its interval, or its mean alone without interval; see `measured`."""
        value = self.measured(metric.name)
        return None if value is None else value.interval or value.mean

    @functools.cached_property
    def latency(self) -> tuple[Times, ...]:
        """One entry per batch size that all seeds were timed at."""
        times = [{entry.batch: asdict(entry) for entry in record.latency} for record in self.records]
        return tuple(
            Times(**{name: _mean([known[batch][name] for known in times]) for name in entry})
            for batch, entry in times[0].items()
            if all(batch in known for known in times)
        )


def averages(records: Sequence[Record]) -> list[Average]:
    """Return the rows of a table for records of one dataset, tower and tuning, all seeds of a model in one row.

    Raises ValueError if other conditions than the seed differ, or a model lacks a seed that another has.
    """
    refuse_mixed(records, varying=("seed",) if all(record.shots for record in records) else ())
    seeds = sorted({record.seed for record in records})
    if len(seeds) < 2:
        return [Average(records=(record,)) for record in records]
    models: dict[str, dict[int, Record]] = {}
    for record in records:
        by_seed = models.setdefault(Average(records=(record,)).identity, {})
        if record.seed in by_seed:
            raise ValueError(f"{record.model} has seed {record.seed} twice")
        by_seed[record.seed] = record
    for by_seed in models.values():
        if missing := [seed for seed in seeds if seed not in by_seed]:
            model = next(iter(by_seed.values())).model
            raise ValueError(
                f"seeds of one table must be the same for every row: {model} lacks {missing}, "
                "which others have, or has them with other settings"
            )
    rows = [Average(records=tuple(by_seed[seed] for seed in seeds)) for by_seed in models.values()]
    dense = _dense(rows)
    return [row if row is dense else replace(row, dense=dense) for row in rows]


def _dense(rows: Sequence[Average]) -> Average | None:
    return next((row for row in rows if row.method == DENSE), None)


def _settings(record: Record) -> dict[str, Any]:
    """Return a method's settings without what was learned for one seed or from one dataset."""
    return {name: value for name, value in record.method_config.items() if name not in ("prompts", FITTED_TO)}


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, of equal ones exactly; None if one is None."""
    if None in values:
        return None
    return values[0] if len(set(values)) == 1 else float(np.mean(values))


def training_free(records: Sequence[Record]) -> list[list[Record]]:
    """Return records without recovery and records with recovery, each part beside the dense records."""
    dense = [record for record in records if record.method == DENSE]
    parts = [[r for r in records if r.recovered == recovered and r.method != DENSE] for recovered in (False, True)]
    return [[*dense, *part] for part in parts if part] or [dense]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Rows of equal cost: a row of the reference method, and each other method's row of the nearest cost."""

    target: Average  # of the reference method
    batch: int | None  # cost is time by the dense model's at this batch size; None: it is GFLOPs
    rows: Sequence[Average]  # the target among them, nearest to dense first
    missing: Mapping[str, Average]  # by method, rows whose cost, the nearest, is further off than `CLOSE`


def levels(rows: Sequence[Average], reference: str | None = None) -> list[Level]:
    """Return the rows of a table at each cost of the ``reference`` method, see `reference_of`, costs falling.

    Rows whose keep rate was searched for a time are compared by that time, all others by GFLOPs.
    """
    reference = reference or reference_of(row.method for row in rows)
    targets = {row.keep: row for row in reversed(rows) if row.method == reference}
    every = []
    for _, target in sorted(targets.items(), reverse=True):
        batches = {search["batch"] for row in rows if (search := matched(row, target))}
        every += [level_of(rows, target, batch) for batch in (None, *sorted(batches))]
    return [level for level in every if len(level.rows) > 1 or level.missing]


def level_of(rows: Sequence[Average], target: Average, batch: int | None = None) -> Level:
    """Return the rows of a table at the cost of ``target``, by time at a batch size or by GFLOPs."""
    goal, names, nearest = cost_of(target, batch), labels(rows), dict[str, tuple[float, Average]]()
    for row in rows:
        name = names[row.identity]
        alike = matched(row, target).get("batch") == batch if batch else MATCHED not in row.first.method_config
        if name != names[target.identity] and alike and goal and (cost := cost_of(row, batch)):
            off = abs(cost / goal - 1)
            if name not in nearest or off < nearest[name][0]:
                nearest[name] = (off, row)
    equal = [target, *(row for off, row in nearest.values() if off <= CLOSE)]
    missing = {name: row for name, (off, row) in nearest.items() if off > CLOSE}
    return Level(target=target, batch=batch, rows=sorted(equal, key=nearness), missing=missing)


def nearness(row: Average) -> tuple[float, float]:
    """Return a key that sorts rows, the nearest to dense first, among equally near ones the most accurate."""
    return row.mean("cosine_distance") or 0.0, -(row.mean("top1") or 0.0)


def reference_of(methods: Iterable[str]) -> str | None:
    """Return the method that others are compared with by default: `REFERENCE`, or the first that reduces."""
    reduced = [name for name in methods if name not in (*UNREDUCED, GOLDEN, RANDOM)]
    return REFERENCE if REFERENCE in reduced else next(iter(reduced), None)


def cost_of(row: Average, batch: int | None = None) -> float | None:
    """Return a reduced row's GFLOPs, or its time at a batch size by the dense model's; None if not measured."""
    if row.method in UNREDUCED:
        return None
    cost: float | None = row.mean("gflops") if batch is None else time_ratio(row.latency, batch)
    return cost


def matched(row: Average, target: Average) -> dict[str, Any]:
    """Return the search for the target's time among a row's settings; empty if there was none."""
    search: dict[str, Any] = row.first.method_config.get(MATCHED, {"keeps": ()})
    return search if target.keep in search["keeps"] and search["time_of"] == target.method else {}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All rows of a table at once: top-1 against dense, fidelity against a reference method at equal cost."""

    families: Mapping[str, Together[str]]  # p-values by identity, for each metric that is judged
    legend: str  # meaning of the marks, in a line
    note: str  # the same in full, and the least difference in top-1 that would have a mark

    def mark(self, row: Average, metric: str = "diff_to_dense") -> str:
        """Return the mark of a row's metric if it is clear, else an empty string."""
        return self.families[metric].mark(row.identity) if metric in self.families else ""


def judge_rows(rows: Sequence[Average], reference: str | None = None) -> Judgement | None:
    """Judge which rows differ clearly, see `Judgement` and `levels`; None if there is nothing to compare with."""
    families, notes, legends = {}, [], []
    dense = _dense(rows)
    reduced = [row for row in rows if row.measured("diff_to_dense") is not None]
    if dense is not None and reduced:
        families["diff_to_dense"] = family = statistics.together({row.identity: row_p(row, dense) for row in reduced})
        test = MCNEMAR if len(dense.records) == 1 else f"{SIGN_FLIP} of the mean over these seeds"
        notes.append(f"top-1: {statistics.mark_note(test)}")
        if len(dense.records) == 1:
            unmarked = [row.first for row in reduced if not family.mark(row.identity)]
            discordances = [float((record.correct != dense.first.correct).mean()) for record in unmarked]
            notes[-1] += statistics.detectable_note(dense.first.image_count, discordances)
        legends.append("top-1 against dense")
    pairs = [(row, level.target) for level in levels(rows, reference) for row in level.rows if row is not level.target]
    keys = [row.identity for row, _ in pairs]
    metrics = [metric for metric in METRICS.values() if metric.fidelity]
    judged_by = {m.name: statistics.together(dict(zip(keys, fidelity_ps(pairs, m), strict=True))) for m in metrics}
    if tested := {name: family for name, family in judged_by.items() if family.alone}:
        families |= tested
        method = pairs[0][1].method
        note = statistics.mark_note(FLIPPED, "the rows of each column", f"{method} at equal cost")
        notes.append(f"fidelity: {note}")
        legends.append(f"fidelity against {method} at equal cost")
    legend = f"{CLEAR} clear at 5 %: {', '.join(legends)}"
    return Judgement(families=families, legend=legend, note="; ".join(notes)) if families else None


def fidelity_ps(pairs: Sequence[tuple[Average, Average]], metric: Metric) -> list[float | None]:
    """Return for each pair the p-value that both are equally near dense on the same images; None without values."""
    known = {id(row): row.per_image(metric.name) for pair in pairs for row in pair}
    values = [(known[id(row)], known[id(other)], row.first.groups) for row, other in pairs]
    return [None if a is None or b is None else statistics.sign_flip(a - b, groups) for a, b, groups in values]


def fidelity_difference(row: Average, other: Average, metric: Metric) -> tuple[Interval, float] | None:
    """Return a row's metric minus another's, paired by image, and its p-value; None without values."""
    a, b, groups = row.per_image(metric.name), other.per_image(metric.name), row.first.groups
    if a is None or b is None:
        return None
    return statistics.paired_mean(a, b, groups), statistics.sign_flip(a - b, groups)


def row_p(row: Average, other: Average) -> float:
    """Return the exact p-value that two rows are equally often right on the same images; see `sign_flip_exact`."""
    whole = lcm(len(row.records), len(other.records))
    a, b = (each.hits * (whole // len(each.records)) for each in (row, other))
    return statistics.sign_flip_exact(a - b)


def time_ratio(latency: Sequence[Times], batch: int) -> float | None:
    """Return the time at a batch size by the dense model's; None if not measured."""
    return next((entry.ratio_to_dense for entry in latency if entry.batch == batch), None)


def labels(rows: Sequence[Average]) -> dict[str, str]:
    """Return labels of rows by identity: the method, and the settings that differ between its rows of one keep rate.

    The keep rate has its own column. A setting is named if it tells rows apart that the settings before it don't.
    """
    names: dict[str, str] = {}
    for method in dict.fromkeys(row.first.label for row in rows):
        same = [row for row in rows if row.first.label == method]
        several = max(Counter(row.keep for row in same).values()) > 1
        varying, distinct = list[str](), 1
        for name in dict.fromkeys(
            name for row in same for name in row.config if several and name not in ("keep", FITTED_TO)
        ):
            more = len({tuple(_setting(row, known) for known in (*varying, name)) for row in same})
            if more > distinct:
                varying, distinct = [*varying, name], more
        for row in same:
            settings = ", ".join(f"{name} {_setting(row, name)}" for name in varying if name in row.config)
            names[row.identity] = f"{method} ({settings})" if settings else method
    return names


def _setting(row: Average, name: str) -> str:
    value = row.config.get(name)
    return value if isinstance(value, str) else json.dumps(value)


def describe_uncounted(*records: Record) -> str:
    """Say which operators GFLOPs lack, and in which models; an empty string if all are counted."""
    lost: dict[str, dict[str, None]] = {}
    for record in records:
        for name in record.uncounted_operators or ():
            lost.setdefault(name, {})[record.model] = None
    return lacking(f"{name} ({', '.join(models)})" for name, models in lost.items())


def _listed_dataset(record: Record) -> str | None:
    """Return the listed dataset that a record is of, whole or a half; None for other datasets."""
    whole = record.dataset.partition(",")[0]
    return whole if whole in list_datasets() else None


def captions(dataset: str) -> str:
    """Say whether the embedded text tower saw a listed dataset's class captions in training."""
    seen = ": all class captions seen in text training" if shipped_facts(dataset).captions_seen else ""
    return f"text classifier{seen}"


def protocol(record: Record) -> str:
    """Say how the images of a record were classified, or retrieved."""
    if record.shots:
        tokens = record.tuning in PROMPTS and f"{PROMPTS[record.tuning]} ({record.prompt_tokens})"
        return f"{count_of(record.shots, 'shot')}, {tokens or 'linear probe'}"
    if not record.labelled:
        return "without labels" if record.caption_count is None else f"retrieval by {record.caption_count:,} captions"
    listed = _listed_dataset(record)
    return captions(listed) if listed and record.tag in SIZES[EMBEDDED].tags else "text classifier"


def judged_on(record: Record) -> str:
    """Say which images of its dataset a record is of: the split, and the classes if some are left out."""
    listed = _listed_dataset(record)
    studied = record.split == "test" and listed and shipped_facts(listed).studied
    words, classes = f"{record.split}{', read by studies' if studied else ''}", record.classes_judged
    return words if classes is None else f"{words}, {classes[0]} of {classes[1]} classes"


def tower_of(record: Record) -> str:
    """Return the name of the dense tower of a record, with its weight tag."""
    reduction = "" if record.method == DENSE else f"_{record.method}{round(100 * record.keep)}"
    return tower_name(record.model.removesuffix(reduction), record.tag)


def with_recovery(rows: Sequence[Average]) -> str:
    """Say that rows of a table were trained without labels; an empty string if none was."""
    return "; with recovery, trained without labels" if any(row.first.recovered for row in rows) else ""
