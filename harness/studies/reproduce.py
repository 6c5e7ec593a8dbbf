"""The paper's tables and figures: what it printed, which line of ours is which row, and both beside each other.

What isn't known of the paper is None, never guessed.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.apps.show import ShowConfig, find_subjects, show
from harness.base.table import NOT_MEASURED, Table, figure, json_values
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import turns
from harness.records.conditions import DENSE
from harness.records.record import Record, Times
from harness.records.statistics import Interval, bootstrap_mean, wilson_interval
from harness.report.charts import STYLES, Chart, Dot, Style, render
from harness.report.pictures import PatchSheet
from harness.report.writers import markdown
from harness.studies.predictors import architectures, scores, transfer
from harness.studies.pruning import WITHOUT_PREDICTOR, baselines, early
from harness.studies.run import make
from harness.studies.spec import PREDICTED, Study, StudyCase, StudyConfig, StudyLine, study
from harness.studies.tables import StudyRow, StudyTable
from harness.studies.tuning import WAYS, four_points, points, tuning
from zoo.core.messages import expected
from zoo.core.predictor import ARCHITECTURES
from zoo.ranking.golden import SCORES

PATH = Path(__file__).with_name("paper.json")
TOP1, MATCH, GFLOPS, LATENCY = "top1", "match", "gflops", "latency"  # what a row is measured by
TARGET = "{dataset}"  # in a label, stands for the dataset that is judged
GENERAL = "imagenet"
LEARNED_FROM: tuple[SplitName, ...] = ("train", "val")
STAGED = {"evit": "EViT", "avit": "A-ViT", "tome": "ToMe", "clsattn": "CLS attention", "random": "random"}
PATCHES = 196  # of ViT-B/16 at 224
FOUR_STAGES = (PATCHES - 4 * 20) / PATCHES  # keep rate of Table 4, 20 dropped at each block
TOP_100 = 0.51  # of PATCHES: 100
# Table 3 reports no accuracy, so few images will do.
COST = {"batches": (1, 32), "seeds": 1, "limit": 64, "train_limit": 64}
OWN = {"own_predictors": True}
# 1e9 multiply-adds of ViT-B/16 at 224, pruned before block 3, by our count.
DENSE_GFLOPS = 17.58
PRUNED_GFLOPS = {90: 16.19, 80: 14.89, 70: 13.53, 60: 12.25, 50: 10.92}
# The same with 16 learned visual tokens, which every block has.
PROMPTED_GFLOPS = {100: 19.07, 60: 13.72}


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One row of the paper."""

    values: dict[str, float]  # by dataset; those that we know
    mean: float | None  # over ``columns`` as printed, None where we don't know it
    columns: tuple[str, ...]  # datasets of the row's table
    source: str  # table or figure

    def mean_over(self, datasets: Sequence[str]) -> float | None:
        """Return the mean over some of the paper's datasets, None unless each is known.

        With all of them, or with others, it is the printed mean.
        """
        if not set(datasets) < set(self.columns):
            return self.mean
        if not datasets or any(name not in self.values for name in datasets):
            return None
        return sum(self.values[name] for name in datasets) / len(datasets)


@functools.cache
def _content() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return facts


def _columns(table: str) -> tuple[str, ...]:
    return tuple(_content()["columns"][_content()["tables"][table]["columns"]])


def _facts(name: str) -> dict[str, Any]:
    """Return what the paper says of a table or figure, as fields of `PaperTarget`."""
    one = _content()["tables"][name]
    own = {"title": one["title"], "notes": tuple(one["notes"]), "axis": one.get("axis", "")}
    return {"name": name, "datasets": _columns(name), **own}


@functools.cache
def printed(table: str) -> dict[str, Printed]:
    """Return the known rows of a table or figure by name."""
    columns, rows = _columns(table), {}
    for name, row in _content()["tables"][table]["rows"].items():
        values = dict(zip(columns, row.get("values", ()), strict=False))
        mean = row.get("mean")
        if values and mean is None:
            mean = sum(values.values()) / len(values)
        rows[name] = Printed(values=values, mean=mean, columns=columns, source=row["source"])
    return rows


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row as the paper has it, or one of ours beside those."""

    name: str  # heading; the paper's figures go by it
    # of the study's line; the first line that has them is taken. ``{dataset}`` is the judged one
    labels: dict[str, str] = field(default_factory=dict)
    group: float | str | None = None  # the line's; None for any
    method: str | None = None  # the records'; ``dense`` with neither labels nor ``group`` is the dense model
    keep: float | None = None  # the records'; None for any
    against: str | None = None  # name of an earlier row that this one is compared with
    measure: str = TOP1  # what is read off, of `MEASURES`
    empty: str = ""  # why there is nothing of ours
    place: float | None = None  # on a figure's axis; None for the share of the dense tower's multiply-adds
    paper_place: float | None = None  # of the paper's point; None for no such point

    def fits(self, row: StudyRow, dataset: str) -> bool:
        """Tell whether a study's line is this row."""
        labels = {name: value.replace(TARGET, dataset) for name, value in self.labels.items()}
        return (
            labels.items() <= row.labels.items()
            and self.group in (None, row.group)
            and self.method in (None, row.records[0].method)
            and self.keep in (None, row.records[0].keep)
        )


UNPRUNED = PaperRow(name="unpruned", method=DENSE)
RowsOf = Callable[[StudyConfig, int], Sequence[PaperRow]]  # from config with its keep rates, and number of blocks


@dataclass(frozen=True, kw_only=True)
class PaperTarget:
    """One table or figure of the paper, with what is known of it."""

    name: str  # of the table or figure
    keeps: tuple[float, ...]  # unless others are asked for
    title: str  # what it shows
    notes: tuple[str, ...]  # remarks on the paper's figures, or on ours
    datasets: tuple[str, ...]  # the paper's, in its order
    axis: str = ""  # what a figure is drawn along

    def rates(self, asked: Sequence[float] | None) -> tuple[float, ...]:
        """Return the keep rates to measure, the paper's if None; 1 is the unpruned tower, always there."""
        return self.keeps if asked is None else tuple(keep for keep in asked if keep < 1)


@dataclass(frozen=True, kw_only=True)
class PaperTable(PaperTarget):
    """A table or measured figure: a study, and which of its lines is which row."""

    study: Study
    rows: RowsOf  # each after that it is compared with
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of ``StudyConfig`` that are this table's
    joint: bool = False  # made of all datasets at once, as lines learn from other datasets
    single: bool = False  # the first dataset will do
    besides: tuple[float, ...] = ()  # keep rates that are measured whatever others are asked for
    fixed: bool = False  # no other keep rates can be asked for
    general: str | None = None  # dataset whose predictor serves the others, too, which need nothing to learn from then

    def rates(self, asked: Sequence[float] | None) -> tuple[float, ...]:
        """Return the keep rates to measure, the paper's if None; 1 is the unpruned row, always there.

        Raises:
            ValueError: the table has but one rate, there is none below 1, or two have one name.
        """
        below = super().rates(asked)
        if asked is None:
            return (*below, *self.besides)
        flag = f"--keeps {' '.join(f'{keep:g}' for keep in asked)}"
        if self.fixed:
            text = f"drops as many tokens as the paper, keep {100 * self.keeps[0]:.3g} %; leave --keeps out"
            raise ValueError(f"{flag}: {self.name} {text}")
        if not below:
            raise ValueError(f"{flag}: expected a rate below 1; the unpruned tower is measured in any case")
        taken = {round(100 * keep) for keep in below} & {round(100 * keep) for keep in self.besides}
        if taken:
            others = ", ".join(f"{keep:g}, which {self.name} needs itself" for keep in self.besides)
            raise ValueError(f"{flag}: expected rates that differ by a whole percent, and not {others}")
        return (*below, *self.besides)

    def conditions(self, config: StudyConfig) -> StudyConfig:
        """Return a config with the table's own settings, and its keep rates unless the config has others.

        Raises:
            ValueError: keep rates that the table can't have.
        """
        datasets = config.datasets[:1] if self.single else config.datasets
        return replace(config, keeps=self.rates(config.keeps), datasets=datasets, **self.changes)

    def groups(self, config: StudyConfig) -> list[StudyConfig]:
        """Split a study by dataset, each with its own predictors, unless it is joint."""
        return [config] if self.joint else [replace(config, datasets=(name,)) for name in config.datasets]


@dataclass(frozen=True, kw_only=True)
class PaperPicture(PaperTarget):
    """A figure that shows images: the patches that each ranking keeps of them."""

    keeps: tuple[float, ...] = (0.9, 0.7, 0.5)
    block: int | None  # that patches are removed before; None for that of the golden rankings
    rankings: tuple[str, ...] = ("golden", "clsattn")


TABLES: dict[str, PaperTable] = {}
PICTURES = {name: PaperPicture(**_facts(name), block=block) for name, block in (("figure3", None), ("figure4", 0))}


def list_targets() -> dict[str, PaperTable | PaperPicture]:
    """Return all tables and figures by name, sorted."""
    every: dict[str, PaperTable | PaperPicture] = {**TABLES, **PICTURES}
    return dict(sorted(every.items()))


def get_target(name: str) -> PaperTable | PaperPicture:
    """Return the table or figure of that name; ValueError if there is none."""
    every = list_targets()
    if name not in every:
        raise ValueError(f"reproduce {name!r}: {expected(name, every)}")
    return every[name]


def table(study: Study, keeps: tuple[float, ...], **facts: Any) -> Callable[[RowsOf], PaperTable]:
    """Declare the table that a function is called like; the function returns its rows."""

    def declare(rows: RowsOf) -> PaperTable:
        one = TABLES[rows.__name__] = PaperTable(**_facts(rows.__name__), study=study, keeps=keeps, rows=rows, **facts)
        return one

    return declare


@study(
    "Methods that drop as many tokens at the same four blocks",
    "Which method chooses best what goes, where and how much being the same?",
    keeps=(FOUR_STAGES,),
)
def stages(on: StudyCase) -> Iterator[StudyLine]:
    """Prune by the dataset's own predictor, if it has images for one, by ImageNet's, then by methods without one."""
    at = four_points(on.depth)[0]
    own = [on.dataset.images_of] if all(len(on.dataset.split(split)) for split in LEARNED_FROM) else []
    general = [GENERAL] if GENERAL in on.config.datasets else []
    steps: dict[str, Any] = {"reduce_at": at, "schedule": "linear"}
    for keep in on.keeps:
        for source in dict.fromkeys([*own, *general]):
            models = on.predicted(on.predictors(on.golden(block=at[0]), [source]), keep, **steps)
            yield StudyLine({"method": PREDICTED, "fitted on": source}, models, keep)
        for method in STAGED:
            yield StudyLine({"method": method}, on.baseline(method, keep, **steps), keep)


@study("Cost of Patch Ranking", "How much cheaper is a pruned tower, in multiply-adds and in time?", keeps=(0.6, 0.5))
def cost(on: StudyCase) -> Iterator[StudyLine]:
    """Count and time the pruned tower beside the dense one."""
    predictors = on.predictors(on.golden(), [on.dataset.images_of])
    for keep in on.keeps:
        yield StudyLine({"model": lambda row: row.model}, on.predicted(predictors, keep), keep)


@study(
    "Methods at equal GFLOPs, and Patch Ranking with learned tokens (paper: Figure 1)",
    "Is Patch Ranking ahead of other methods for the same cost, and how far ahead once it is tuned?",
    keeps=(0.9, 0.8, 0.7, 0.6, 0.5),
    tunes=True,
)
def curves(on: StudyCase) -> Iterator[StudyLine]:
    """Compare methods at equal cost, then tune the dense tower and Patch Ranking by T and by V+T."""
    yield from baselines.lines(on)
    for way, tokens in WAYS.items():
        for keep in (1.0, *on.keeps) if tokens else ():
            model = on.untuned(keep)
            labels = {"for": f"{100 * keep:g}", "method": model.method, "tuned": way}
            yield on.line(labels, model, way, on.tuned(model, tokens=tokens))


def _pruned(name: str, labels: dict[str, str], group: float | None = None) -> PaperRow:
    """Return a row that is compared with the unpruned tower."""
    return PaperRow(name=name, labels=labels, group=group, against=UNPRUNED.name)


def _at(name: str, keep: float, usual: float) -> str:
    """Return a row's name: the keep rate is in it unless it is the paper's."""
    return name if keep == usual else f"{name}, keep {100 * keep:g}"


@table(curves, curves.keeps, changes={"time_dtypes": (), **OWN})
def figure1(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """Patch Ranking first, then every other method at the same cost, then both tuned curves."""
    percents = [f"{100 * keep:g}" for keep in config.keeps or ()]
    rows = [replace(UNPRUNED, paper_place=1.0)]
    for method, percent in product((PREDICTED, *WITHOUT_PREDICTOR), percents):
        row = _pruned(f"{method}, keep {percent}", {"for": percent, "method": method})
        rows.append(replace(row, paper_place=_place(percent, PRUNED_GFLOPS)))
    for way, percent in product([way for way, tokens in WAYS.items() if tokens], ("100", *percents)):
        counts = PROMPTED_GFLOPS if "v" in WAYS[way] else {100: DENSE_GFLOPS} | PRUNED_GFLOPS
        row = _pruned(f"{PREDICTED} + {way}, keep {percent}", {"for": percent, "tuned": way})
        method = DENSE if percent == "100" else PREDICTED
        rows.append(replace(row, method=method, paper_place=_place(percent, counts)))
    return rows


def _place(percent: str, counts: Mapping[int, float]) -> float | None:
    """Return the share of the dense tower's multiply-adds at a keep rate; None where we have no count."""
    return next((count / DENSE_GFLOPS for known, count in counts.items() if str(known) == percent), None)


@table(early, (0.9, 0.8, 0.7, 0.6, 0.5))
def figure5(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """Both of the paper's rankings, then ours; the unpruned tower is keep rate 100."""
    names = {"clsattn": "CLS attention", "golden": "golden"}
    rows = [replace(UNPRUNED, place=100, paper_place=100)]
    for ranking, keep in product((*names, "predicted", "random"), config.keeps or ()):
        name = f"{names.get(ranking, ranking)}, keep {100 * keep:g}"
        row = _pruned(name, {"ranking": ranking}, keep)
        rows.append(replace(row, place=100 * keep, paper_place=100 * keep))
    return rows


@table(scores, (0.8, 0.7, 0.6, 0.5), besides=(TOP_100,))
def table1(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """Golden and predicted by score and keep rate, then the matching rates."""
    keeps = [keep for keep in config.keeps or () if keep != TOP_100]
    rows = [UNPRUNED]
    for ranking, score, keep in product(("golden", "predicted"), SCORES, keeps):
        name = f"{ranking}, {score}, keep {100 * keep:g}"
        rows.append(_pruned(name, {"score": score, "ranking": ranking}, keep))
    for score in SCORES:
        labels = {"score": score, "ranking": "predicted"}
        name = f"match at 100, {score}"
        rows.append(PaperRow(name=name, labels=labels, group=TOP_100, measure=MATCH))
    return rows


@table(transfer, (0.5,), joint=True)
def table2(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """One row per dataset to learn from, each against the target's own predictor."""
    sources = {f"fitted on {name}": name for name in config.datasets}
    if len(config.datasets) > 1:
        sources["fitted on all"] = " + ".join(config.datasets)
    rows = [UNPRUNED]
    for keep in config.keeps or ():
        own = _pruned(_at("fitted on the target", keep, 0.5), {"fitted on": TARGET}, keep)
        others = [
            PaperRow(name=_at(name, keep, 0.5), labels={"fitted on": source}, group=keep, against=own.name)
            for name, source in sources.items()
        ]
        rows += [own, *others, _pruned(_at("golden", keep, 0.5), {"fitted on": "(golden)"}, keep)]
    return rows


@table(cost, cost.keeps, changes=COST, single=True)
def table3(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """Multiply-adds, then times; rows are compared by their ratio."""
    rows = []
    for unit, measure in (("GFLOPs", GFLOPS), ("ms", LATENCY)):
        dense = PaperRow(name=f"unpruned, {unit}", method=DENSE, measure=measure)
        rows.append(dense)
        for keep in config.keeps or ():
            row = PaperRow(name=f"keep {100 * keep:g}, {unit}", method=PREDICTED, group=keep)
            rows.append(replace(row, against=dense.name, measure=measure))
    return rows


@table(stages, stages.keeps, joint=True, fixed=True, general=GENERAL)
def table4(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """The paper's rows, then CLS attention and random order, which it lacks."""
    evit, avit, tome, *others = (_pruned(name, {"method": method}) for method, name in STAGED.items())
    own = _pruned("Patch Ranking", {"method": PREDICTED, "fitted on": TARGET})
    name = "Patch Ranking, ImageNet-trained"
    general = _pruned(name, {"method": PREDICTED, "fitted on": GENERAL})
    if GENERAL not in config.datasets:
        general = replace(general, empty=f"needs {GENERAL} among --dataset")
    return [UNPRUNED, evit, avit, tome, own, general, *others]


@table(tuning, (0.6,), changes=OWN)
def table5(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """The full tower and the pruned one for each way of tuning."""
    rows = []
    for way in WAYS:
        name = "no prompts" if way == "none" else way
        full = PaperRow(name=f"{name}, full", labels={"tuned": way}, method=DENSE)
        rows.append(full)
        for keep in config.keeps or ():
            pruned = replace(full, name=f"{name}, keep {100 * keep:g}", method=PREDICTED, keep=keep)
            rows.append(replace(pruned, against=full.name))
    return rows


@table(architectures, (0.6,))
def table6(config: StudyConfig, _depth: int) -> list[PaperRow]:
    """The paper's three networks, then ours."""
    width = str(config.fit.width)
    names = {"mlp": "MLP", "transformer": "transformer"}
    names |= {arch: f"{arch} {width}" for arch in ARCHITECTURES if arch not in names}
    rows = [UNPRUNED]
    for keep in config.keeps or ():
        rows.append(_pruned(_at("Mixer", keep, 0.6), {"network": "mixer"}, keep))
        rows += [_pruned(_at(name, keep, 0.6), {"network": a, "width": width}, keep) for a, name in names.items()]
    return rows


@table(points, (0.6,), changes=OWN)
def table7(config: StudyConfig, depth: int) -> list[PaperRow]:
    """The paper's schedules, its best first, then all in one step."""
    others = ((2, 3, 4, 5), (4, 5, 6, 7), (1, 3, 5, 7))  # 1-based, as printed
    schedules = {}
    for at in four_points(depth):
        later = tuple(point + 1 for point in at)
        schedules[f"before {_comma(later if later in others else (4, 6, 8, 10))}"] = at
    once = config.golden.block
    schedules[f"once, before {once + 1}"] = (once,)
    every = []
    for keep in config.keeps or ():
        rows = [
            PaperRow(name=_at(name, keep, 0.6), labels={"before blocks": _comma(at)}, keep=keep)
            for name, at in schedules.items()
        ]
        every += [rows[0], *(replace(row, against=rows[0].name) for row in rows[1:])]
    return every


def _comma(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))


MODEL = "clip_vit_b16.openai"
NOTES = (
    "Top-1 in %. Ours: mean over seeds with a 95 % interval over images (Wilson of one seed, "
    "bootstrap of several); of a mean over datasets, what follows from theirs. Compared: ours with "
    "a paired bootstrap on the same images; mean over datasets, in points, or for cost the ratio."
)
USES: dict[SplitName, str] = {
    "train": "predictors learn from",
    "val": "fits are stopped by",
    "test": "tables are judged by",
}
OTHER = "NOT the paper's {}: what differs is no failed reproduction"


class Measure(NamedTuple):
    """How to read the records of one line, one per seed, and to compare them with another's.

    Both return a mean over seeds with a 95 % interval, None where it wasn't measured.
    """

    read: Callable[[Sequence[Record]], Interval | None]
    compare: Callable[[Sequence[Record], Sequence[Record]], Interval | None]
    form: str  # of a number
    relative: str  # of a comparison
    unit: str


def _right(records: Sequence[Record]) -> np.ndarray:
    """Return (images,) float, for what share of the seeds each image was right."""
    right: np.ndarray = np.mean([record.correct for record in records], axis=0)
    return right


def _percent(*shares: float) -> Interval:
    return Interval(*(100 * float(share) for share in shares))


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


def _top1(records: Sequence[Record]) -> Interval:
    if len(records) == 1:
        hits = records[0].correct
        return _percent(float(hits.mean()), *wilson_interval(int(hits.sum()), hits.size))
    return _percent(*bootstrap_mean(_right(records), seed=0))


def _lost(records: Sequence[Record], reference: Sequence[Record]) -> Interval:
    return _percent(*bootstrap_mean(_right(records) - _right(reference), seed=0))


def _match(records: Sequence[Record]) -> Interval | None:
    values = [record.interval("match_at_k") for record in records]
    return None if None in values else _percent(*np.mean(np.array(values, float), axis=0))


def _gflops(records: Sequence[Record]) -> Interval | None:
    count = records[0].mean("gflops")
    return None if count is None else _exact(count)


def _cost_ratio(records: Sequence[Record], reference: Sequence[Record]) -> Interval | None:
    ours, theirs = records[0].mean("gflops"), reference[0].mean("gflops")
    return None if ours is None or theirs is None else _exact(ours / theirs)


def _times(records: Sequence[Record]) -> Times | None:
    """Return the times of the largest batch."""
    return max(records[0].latency or (), key=lambda entry: entry.batch, default=None)


def _latency(records: Sequence[Record]) -> Interval | None:
    """Return the time per image, with its quartiles."""
    if (last := _times(records)) is None:
        return None
    return Interval(*(time / last.batch for time in (last.median_ms, last.q1_ms, last.q3_ms)))


def _ratio(records: Sequence[Record], _reference: Sequence[Record]) -> Interval | None:
    """Return the time as ratio to the dense model's in the same rounds."""
    last = _times(records)
    return None if last is None else last.ratio


MEASURES = {
    TOP1: Measure(_top1, _lost, ".1f", "+.1f", "percent"),
    MATCH: Measure(_match, lambda _records, _reference: None, ".1f", "+.1f", "percent"),
    GFLOPS: Measure(_gflops, _cost_ratio, ".2f", ".3f", "1e9 multiply-adds"),
    LATENCY: Measure(_latency, _ratio, ".3g", ".3f", "ms per image"),
}
RATIOS = (GFLOPS, LATENCY)  # compared by dividing


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates with the interval that follows from theirs."""
    estimates, lows, highs = np.array(intervals).T
    mean, count = estimates.mean(), len(intervals)
    below, above = np.linalg.norm(estimates - lows), np.linalg.norm(highs - estimates)
    return Interval(float(mean), float(mean - below / count), float(mean + above / count))


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """What was measured for a row."""

    row: PaperRow
    ours: dict[str, Interval] = field(default_factory=dict)  # by dataset, those that were measured
    to: dict[str, Interval] = field(default_factory=dict)  # by dataset, against the row's reference
    paper: Printed | None = None  # None where we know nothing of the row
    reference: Printed | None = None  # the paper's row that this one is compared with, None likewise
    share: float | None = None  # multiply-adds by the dense tower's; None where not counted

    def paper_to(self, datasets: Sequence[str]) -> float | None:
        """Return the paper's mean over datasets against that of the row's reference."""
        if self.paper is None or self.reference is None:
            return None
        ours, theirs = self.paper.mean_over(datasets), self.reference.mean_over(datasets)
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.row.measure in RATIOS else ours - theirs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper with what we measured, on all datasets done so far."""

    recipe: PaperTable
    tower: str
    results: tuple[PaperResult, ...]
    images: dict[str, int]  # number of judged images by dataset, in order

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of those that were judged."""
        return tuple(self.images)

    @property
    def differences(self) -> list[str]:
        """Which of tower and data aren't the paper's; without any, figures may be compared."""
        tower = [] if self.tower == MODEL else ["tower"]
        return tower if set(self.datasets) <= set(self.recipe.datasets) else [*tower, "data"]

    @property
    def title(self) -> str:
        """Name what is compared, and tell whether it may be."""
        on = ", ".join(f"{name} ({count} images)" for name, count in self.images.items())
        text = f"{self.recipe.title}; ours: {self.tower}, {on}"
        other = " and ".join(self.differences)
        return f"{text}; {OTHER.format(other)}" if other else text

    def mean(self, values: Mapping[str, Interval]) -> Interval | None:
        """Return the mean over datasets, None unless each has a value."""
        return mean_of(list(values.values())) if set(values) == set(self.datasets) else None

    def table(self) -> Table:
        """Lay out what we have of each row, what the paper has, and the difference."""
        heads = ("", "whose", *self.datasets, "mean", "compared with", "by")
        rows: list[list[str]] = []
        sections = []
        for one in self.results:
            sections.append(len(rows))
            rows += self._lines(one)
        words, wide = {"", "whose", "compared with"}, set(self.datasets)
        about: dict[str, Any] = {"caption": NOTES, "sections": frozenset(sections)}
        return Table.of(self.title, heads, rows, words=words, wide=wide, **about)

    def _lines(self, one: PaperResult) -> Iterator[list[str]]:
        form, relative = MEASURES[one.row.measure].form, MEASURES[one.row.measure].relative
        own, to = [*map(one.ours.get, self.datasets), self.mean(one.ours)], self.mean(one.to)
        name = one.row.name + (f" ({one.row.empty})" if one.row.empty and not one.ours else "")
        yield [name, "ours", *(_interval(each, form) for each in own), one.row.against or "", _interval(to, relative)]
        if one.paper is None:
            return
        theirs = [*map(one.paper.values.get, self.datasets), one.paper.mean_over(self.datasets)]
        theirs_to = one.paper_to(self.datasets)
        yield ["", "paper", *(figure(value, form) for value in theirs), "", figure(theirs_to, relative)]
        comparable = not self.differences
        off = [_difference(*pair, f"+{form}") if comparable else NOT_MEASURED for pair in zip(own, theirs, strict=True)]
        off += ["", _difference(to, theirs_to, f"+{relative.removeprefix('+')}")]
        if any(cell not in ("", NOT_MEASURED) for cell in off):
            yield ["", "difference", *off]

    def markdown(self) -> str:
        """Return it as a Markdown section with remarks and sources."""
        sources = sorted({one.paper.source for one in self.results if one.paper is not None})
        source = f"The paper's figures are from: {'; '.join(sources)}."
        return markdown([replace(self.table(), notes=[*self.recipe.notes, source])], level=2)


def _interval(value: Interval | None, form: str) -> str:
    """Show an estimate with its ends, unless they are the estimate."""
    if value is None:
        return NOT_MEASURED
    text, *ends = (format(number, form) for number in value)
    return text if {*ends} == {text} else f"{text} [{', '.join(ends)}]"


def _difference(ours: Interval | None, theirs: float | None, form: str) -> str:
    return figure(None if ours is None or theirs is None else ours.estimate - theirs, form)


def compare_rows(
    recipe: PaperTable, config: StudyConfig, depth: int, tower: str, tables: Sequence[StudyTable]
) -> Comparison:
    """Put what a study measured on some datasets beside the paper's rows."""
    by_dataset = {table.dense.dataset: table for table in tables}
    paper_rows, results = printed(recipe.name), []
    records: dict[str, dict[str, Sequence[Record]]] = {}
    for row in recipe.rows(config, depth):
        measure, others = MEASURES[row.measure], records.get(row.against or "", {})
        own = records[row.name] = _records(row, by_dataset)
        ours = {name: measure.read(part) for name, part in own.items()}
        to = {name: measure.compare(part, others[name]) for name, part in own.items() if name in others}
        shares = [_cost_ratio(part, [by_dataset[name].dense]) for name, part in own.items()]
        counted = [share.estimate for share in shares if share is not None]
        results.append(
            PaperResult(
                row=row,
                ours={name: value for name, value in ours.items() if value is not None},
                to={name: value for name, value in to.items() if value is not None},
                paper=paper_rows.get(row.name),
                reference=paper_rows.get(row.against or ""),
                share=sum(counted) / len(counted) if counted else None,
            )
        )
    images = {name: table.dense.image_count for name, table in by_dataset.items()}
    return Comparison(recipe=recipe, tower=tower, results=tuple(results), images=images)


def _records(row: PaperRow, tables: Mapping[str, StudyTable]) -> dict[str, Sequence[Record]]:
    """Return the records that a row is made of, by dataset; none where no line fits."""
    if not row.labels and row.group is None:
        # The dense model is a line of no study; other such rows are methods that aren't built.
        return {name: [table.dense] for name, table in tables.items() if row.method == DENSE}
    found = {name: next((own for own in table.rows if row.fits(own, name)), None) for name, table in tables.items()}
    return {name: own.records for name, own in found.items() if own is not None}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return rows by dataset and as mean, ours and the paper's, as JSON values."""
    names = comparison.datasets
    rows = [
        {
            "name": one.row.name,
            "measure": one.row.measure,
            "unit": MEASURES[one.row.measure].unit,
            "compared_with": one.row.against,
            "ours": {"by_dataset": one.ours, "mean": comparison.mean(one.ours), "compared_by_dataset": one.to},
            "paper": one.paper
            and {
                "by_dataset": {name: one.paper.values.get(name) for name in names},
                "mean": one.paper.mean_over(names),
                "mean_compared": one.paper_to(names),
                "source": one.paper.source,
            },
            "gflops_share_of_dense": one.share,
            "missing_because": one.row.empty or None,
        }
        for one in comparison.results
    ]
    about = {"name": comparison.recipe.name, "title": comparison.title, "tower": comparison.tower}
    comparable = not comparison.differences
    values: dict[str, Any] = json_values(
        {**about, "images_by_dataset": comparison.images, "comparable": comparable, "rows": rows}
    )
    return values


def series(comparison: Comparison) -> dict[str, list[Dot]]:
    """Return mean losses over datasets by "METHOD, ours" and "METHOD, paper", along the axis.

    The paper's points are hollow and have no interval. A line begins at the unpruned tower, unless
    it has a dense row of its own.
    """
    lines: dict[str, list[Dot]] = {}
    begun: set[str] = set()
    starts: dict[str, float | None] = {}
    for one in comparison.results:
        method, comma, _ = one.row.name.partition(", ")
        place = one.share if one.row.place is None else one.row.place
        lost = one.paper_to(comparison.datasets)
        own = {"ours": (place, comparison.mean(one.to))}
        own["paper"] = (one.row.paper_place, None if lost is None else _exact(lost))
        if one.row.name == UNPRUNED.name:
            starts = {whose: x for whose, (x, _) in own.items()}
        if not comma:
            continue
        begun |= {method} if one.row.method == DENSE else set()
        for whose, (x, y) in own.items():
            if x is not None and y is not None:
                dot = Dot(x=_exact(x), y=y, hollow=whose == "paper")
                lines.setdefault(f"{method}, {whose}", []).append(dot)
    for name, line in lines.items():
        method, _, whose = name.rpartition(", ")
        if method not in begun and (start := starts.get(whose)) is not None:
            line.append(Dot(x=_exact(start), y=_exact(0.0), hollow=whose == "paper"))
    return {name: sorted(line, key=lambda point: point.x) for name, line in lines.items()}


def draw(comparison: Comparison) -> bytes:
    """Return an SVG, the same bytes for the same figures; the paper's lines are dashed."""
    lines = series(comparison)
    methods = list(dict.fromkeys(name.rpartition(", ")[0] for name in lines))
    styles = {
        name: Style(*STYLES[methods.index(method) % len(STYLES)], "-" if own == "ours" else "--")
        for name in lines
        for method, _, own in [name.rpartition(", ")]
    }
    chart = Chart(
        title=comparison.title, alt="", x_label=comparison.recipe.axis,
        y_label="top-1 against unpruned, points", series=lines, level=0,
    )  # fmt: skip
    return render([chart], styles)


def produce(
    recipe: PaperTable, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Measure what a table needs and ``known`` lacks; see ``harness.studies.run.make``."""
    groups = recipe.groups(config)
    with progress.task(f"study reproduce {recipe.name}", len(groups)) as update:
        for done, part in enumerate(groups, start=1):
            yield from make(recipe.study, part, known, progress)
            update(done)


def show_config(picture: PaperPicture, config: StudyConfig) -> ShowConfig:
    """Return how a picture is drawn under a study's conditions; ValueError for unfit keep rates."""
    golden = config.golden if picture.block is None else replace(config.golden, block=picture.block)
    return ShowConfig(keeps=picture.rates(config.keeps), left=picture.rankings, golden=golden)


def draw_picture(
    picture: PaperPicture, config: StudyConfig, datasets: Sequence[Dataset], images: int, out: Path, progress: Progress
) -> PatchSheet:
    """Draw a few test images of each dataset, drawn once and for all, as a PNG."""
    how = show_config(picture, config)
    places = [f"{one.name}:test:{at}" for one in datasets for at in turns(one.split("test").labels)[:images]]
    return show(config.model, find_subjects(places), how, out, progress=progress, device=config.device)


def readable(
    names: Sequence[str], splits: Sequence[SplitName] = tuple(USES), general: str | None = None
) -> tuple[list[Dataset], dict[str, Exception]]:
    """Return the datasets that can be read and lack none of the splits, and what is wrong with others.

    Beside a ``general`` dataset, whose predictor serves the others, these need a test split only.
    """
    datasets: list[Dataset] = []
    failures: dict[str, Exception] = {}
    for name in names:
        try:
            dataset = get_dataset(name)
            for split in splits:
                served = split != "test" and general in names and name != general
                if not len(dataset.split(split)) and not served:
                    raise ValueError(f"dataset {name!r} has no {split} images, which {USES[split]}")
            datasets.append(dataset)
        except (OSError, ValueError) as error:
            failures[name] = error
    return datasets, failures
