"""What a table shows of a model: its record, or the mean of its records over seeds; and which rows differ."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.datasets import list_datasets, shipped_facts
from harness.records.metrics import Metric, MetricValue, fidelity_metrics
from harness.records.record import (
    DENSE,
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
from harness.records.statistics import (
    CLEAR,
    FLIPPED,
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Together,
    bootstrap_counts,
    detectable_note,
    mark_note,
    mean_interval,
    over_images,
    paired_mean,
    sign_flip,
    sign_flip_exact,
    together,
)
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
        """The first seed's record, for what seeds have in common."""
        return self.records[0]

    @property
    def method(self) -> str:
        """Of all records."""
        return self.first.method

    @property
    def keep(self) -> float:
        """Of all records."""
        return self.first.keep

    @functools.cached_property
    def identity(self) -> str:
        """What no other row of a table has, and the same row has at any number of shots."""
        return _identity(self.first)

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
            counts = bootstrap_counts(self.hits - self.dense.hits)
            mean, low, high = (count / len(self.records) for count in counts)
            return MetricValue(mean=mean, low=low, high=high)
        if not all(name in record.metrics for record in self.records):
            return None
        own = [record.metrics[name] for record in self.records]
        numbers = {part: _mean([getattr(one, part) for one in own]) for part in (*ENDS, "at", "chance")}
        if name == "top1":
            ends = mean_interval([one.mean for one in own])[1:]
            numbers["low"], numbers["high"] = np.clip(ends, 0.0, 1.0).tolist()
        elif (values := self.per_image(name)) is not None and (found := over_images(values, self.first.groups)):
            numbers |= zip(ENDS, found, strict=True)
        return MetricValue(**numbers)

    def mean(self, name: str) -> Any:
        """Return the mean over seeds of a metric; None where one lacks it."""
        return _mean([record.mean(name) for record in self.records])

    def per_image(self, name: str) -> NDArray[np.float64] | None:
        """Return (image_count,) values of a metric, mean over seeds; None where one lacks them."""
        values = [own for record in self.records if (own := record.per_image(name)) is not None]
        return np.mean(values, axis=0) if len(values) == len(self.records) else None

    def estimate(self, metric: Metric) -> Interval | float | None:
        """Return a metric with its interval, or alone where it has none; see `measured`."""
        own = self.measured(metric.name)
        return None if own is None else own.interval or own.mean

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
    """Return what a table shows of records of one dataset, tower and tuning, seeds in one row.

    Raises ValueError if other conditions than the seed differ, or a model lacks a seed that another has.
    """
    refuse_mixed(records, varying=("seed",) if all(record.shots for record in records) else ())
    seeds = sorted({record.seed for record in records})
    if len(seeds) < 2:
        return [Average(records=(record,)) for record in records]
    models: dict[str, dict[int, Record]] = {}
    for record in records:
        own = models.setdefault(_identity(record), {})
        if record.seed in own:
            raise ValueError(f"{record.model} has seed {record.seed} twice")
        own[record.seed] = record
    for own in models.values():
        if missing := [seed for seed in seeds if seed not in own]:
            raise ValueError(
                f"seeds of one table must be the same for every row: {next(iter(own.values())).model} lacks {missing}, "
                "which others have, or has them with other settings"
            )
    rows = [Average(records=tuple(own[seed] for seed in seeds)) for own in models.values()]
    dense = _dense(rows)
    return [row if row is dense else replace(row, dense=dense) for row in rows]


def _dense(rows: Sequence[Average]) -> Average | None:
    return next((row for row in rows if row.method == DENSE), None)


def _identity(record: Record) -> str:
    """Return what tells a row of a table from others, whatever was learned for it."""
    return json.dumps([record.model, record.method, record.keep, _settings(record)], sort_keys=True)


def _settings(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.method_config.items() if name != "prompts"}


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, as it is where all are the same; None if one is None."""
    if None in values:
        return None
    return values[0] if len(set(values)) == 1 else float(np.mean(values))


def training_free(records: Sequence[Record]) -> list[list[Record]]:
    """Return records without recovery and those with it, if there are any, each beside the dense one."""
    dense = [record for record in records if record.method == DENSE]
    parts = [[r for r in records if r.recovered == recovered and r.method != DENSE] for recovered in (False, True)]
    return [[*dense, *part] for part in parts if part] or [dense]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Rows of equal cost: one of the reference method, and each other method's row of the nearest cost."""

    target: Average  # of the reference method
    batch: int | None  # cost is time by the dense model's at this batch size; None: it is GFLOPs
    rows: Sequence[Average]  # the target among them, nearest to dense first
    missing: Mapping[str, Average]  # rows of the nearest cost by method where that is further off than `CLOSE`


def levels(rows: Sequence[Average], reference: str | None = None) -> list[Level]:
    """Return the rows of a table at each cost of the ``reference`` method, see `reference_of`, costs falling.

    Rows whose keep rate was searched for a time are compared by that time, all others by GFLOPs.
    """
    reference = reference or reference_of(row.method for row in rows)
    targets = {row.keep: row for row in reversed(rows) if row.method == reference}
    found = []
    for _, target in sorted(targets.items(), reverse=True):
        batches = {facts["batch"] for row in rows if (facts := matched(row, target))}
        found += [level_of(rows, target, batch) for batch in (None, *sorted(batches))]
    return [level for level in found if len(level.rows) > 1 or level.missing]


def level_of(rows: Sequence[Average], target: Average, batch: int | None = None) -> Level:
    """Return the rows of a table at the cost of one of them, by time at a batch size or by GFLOPs."""
    goal, names, offs = cost_of(target, batch), labels(rows), dict[str, list[tuple[float, Average]]]()
    for row in rows:
        name = names[row.identity]
        alike = matched(row, target).get("batch") == batch if batch else MATCHED not in row.first.method_config
        if name != names[target.identity] and alike and goal and (cost := cost_of(row, batch)):
            offs.setdefault(name, []).append((abs(cost / goal - 1), row))
    nearest = {name: min(own, key=lambda one: one[0]) for name, own in offs.items()}
    equal = [target, *(row for off, row in nearest.values() if off <= CLOSE)]
    missing = {name: row for name, (off, row) in nearest.items() if off > CLOSE}
    return Level(target=target, batch=batch, rows=sorted(equal, key=nearness), missing=missing)


def nearness(row: Average) -> tuple[float, float]:
    """Return what sorts rows, those nearest to dense or else the most accurate first."""
    return row.mean("cosine_distance") or 0.0, -(row.mean("top1") or 0.0)


def reference_of(methods: Iterable[str]) -> str | None:
    """Return which of a table's methods others are compared with where none is named: `REFERENCE`, or the first."""
    able = [name for name in methods if name not in (*UNREDUCED, GOLDEN, RANDOM)]
    return REFERENCE if REFERENCE in able else next(iter(able), None)


def cost_of(row: Average, batch: int | None = None) -> float | None:
    """Return a reduced row's GFLOPs, or its time at a batch size by the dense model's; None where it has none."""
    if row.method in UNREDUCED:
        return None
    cost: float | None = row.mean("gflops") if batch is None else time_ratio(row.latency, batch)
    return cost


def matched(row: Average, target: Average) -> dict[str, Any]:
    """Return what a row's settings say of the time that it was searched for, if that is the target's; else nothing."""
    facts: dict[str, Any] = row.first.method_config.get(MATCHED, {"keeps": ()})
    return facts if target.keep in facts["keeps"] and facts["time_of"] == target.method else {}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All rows of a table at once: top-1 against dense, fidelity against a reference method at equal cost."""

    families: Mapping[str, Together[str]]  # p-values by identity, for each metric that is judged
    legend: str  # what the marks say, in a line
    note: str  # the same in full, and the least difference in top-1 that rows without would show

    def mark(self, row: Average, metric: str = "diff_to_dense") -> str:
        """Return what stands behind a row's metric: the mark if it is clear, or nothing."""
        return self.families[metric].mark(row.identity) if metric in self.families else ""


def judge_rows(rows: Sequence[Average], reference: str | None = None) -> Judgement | None:
    """Say which rows differ clearly, see `Judgement` and `levels`; None where there is nothing to compare with."""
    families, notes, legends = {}, [], []
    dense = _dense(rows)
    others = [row for row in rows if row.measured("diff_to_dense") is not None]
    if dense is not None and others:
        families["diff_to_dense"] = family = together({row.identity: row_p(row, dense) for row in others})
        test = MCNEMAR if len(dense.records) == 1 else f"{SIGN_FLIP} of the mean over these seeds"
        notes.append(f"top-1: {mark_note(test)}")
        if len(dense.records) == 1:
            left = [row for row in others if not family.mark(row.identity)]
            apart = [float((row.first.correct != dense.first.correct).mean()) for row in left]
            notes[-1] += detectable_note(dense.first.image_count, apart)
        legends.append("top-1 against dense")
    pairs = [(row, one.target) for one in levels(rows, reference) for row in one.rows if row is not one.target]
    keys = [row.identity for row, _ in pairs]
    judged_by = {m.name: together(dict(zip(keys, fidelity_ps(pairs, m), strict=True))) for m in fidelity_metrics()}
    if tested := {name: family for name, family in judged_by.items() if family.alone}:
        families |= tested
        method = pairs[0][1].method
        notes.append(f"fidelity: {mark_note(FLIPPED, 'the rows of each column', f'{method} at equal cost')}")
        legends.append(f"fidelity against {method} at equal cost")
    legend = f"{CLEAR} clear at 5 %: {', '.join(legends)}"
    return Judgement(families=families, legend=legend, note="; ".join(notes)) if families else None


def fidelity_ps(pairs: Sequence[tuple[Average, Average]], metric: Metric) -> list[float | None]:
    """Return of pairs the p-value that both are equally near dense, on the same images; None without values."""
    known = {id(row): row.per_image(metric.name) for pair in pairs for row in pair}
    values = [(known[id(row)], known[id(other)], row.first.groups) for row, other in pairs]
    return [None if a is None or b is None else sign_flip(a - b, groups) for a, b, groups in values]


def fidelity_difference(row: Average, other: Average, metric: Metric) -> tuple[Interval, float] | None:
    """Return a row's metric minus another's, paired by image, and its p-value; None where one has no values."""
    a, b, groups = row.per_image(metric.name), other.per_image(metric.name), row.first.groups
    return None if a is None or b is None else (paired_mean(a, b, groups), sign_flip(a - b, groups))


def row_p(row: Average, other: Average) -> float:
    """Return the exact p-value that two rows are equally often right on the same images; see `sign_flip_exact`."""
    whole = lcm(len(row.records), len(other.records))
    a, b = (each.hits * (whole // len(each.records)) for each in (row, other))
    return sign_flip_exact(a - b)


def time_ratio(latency: Sequence[Times], batch: int) -> float | None:
    """Return the time at a batch size by the dense model's; None where there is none."""
    return next((entry.ratio_to_dense for entry in latency if entry.batch == batch), None)


def labels(rows: Sequence[Average]) -> dict[str, str]:
    """Return the method by identity, with its settings where it comes several times at one keep.

    The keep rate has its own column. Each setting named tells rows apart that those before it don't.
    """
    names: dict[str, str] = {}
    for method in dict.fromkeys(row.first.label for row in rows):
        same = [row for row in rows if row.first.label == method]
        several = max(Counter(row.keep for row in same).values()) > 1
        varying: list[str] = []
        for name in dict.fromkeys(name for row in same for name in row.config if several and name != "keep"):
            parts = [len({tuple(_setting(row, n) for n in own) for row in same}) for own in (varying, [*varying, name])]
            varying += [name] if parts[1] > parts[0] else []
        for row in same:
            own = ", ".join(f"{n} {_setting(row, n)}" for n in varying if n in row.config)
            names[row.identity] = f"{method} ({own})" if own else method
    return names


def _setting(row: Average, name: str) -> str:
    value = row.config.get(name)
    return value if isinstance(value, str) else json.dumps(value)


def describe_uncounted(*records: Record) -> str:
    """Say which operators GFLOPs lack; nothing where all are counted, or nobody counted them."""
    lost: dict[str, dict[str, None]] = {}
    for record in records:
        for name in record.uncounted_operators or ():
            lost.setdefault(name, {})[record.model] = None
    return lacking(f"{name} ({', '.join(models)})" for name, models in lost.items())


def _listed_dataset(record: Record) -> str | None:
    """Return the listed dataset that a record is of, maybe of a half of it; None of others."""
    whole = record.dataset.partition(",")[0]
    return whole if whole in list_datasets() else None


def captions(dataset: str) -> str:
    """Say whether the embedded text tower saw a listed dataset's class captions in training."""
    seen = ": all class captions seen in text training" if shipped_facts(dataset).captions_seen else ""
    return f"text classifier{seen}"


def protocol(record: Record) -> str:
    """Say how the images of a record were classified, or retrieved."""
    if record.shots:
        how = f"{PROMPTS[record.tuning]} ({record.prompt_tokens})" if record.tuning in PROMPTS else "linear probe"
        return f"{record.shots} {'shot' if record.shots == 1 else 'shots'}, {how}"
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
    """Say that rows of a table were trained without labels; nothing where none was."""
    return "; with recovery, trained without labels" if any(row.first.recovered for row in rows) else ""
