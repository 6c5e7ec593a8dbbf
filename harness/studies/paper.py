"""The paper's tables and figures as data: what it printed, and which line of ours is which row.

What isn't known of the paper is None, never guessed.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from harness.datasets.base import SplitName
from harness.records.conditions import DENSE
from harness.studies.predictors import architectures, scores, transfer
from harness.studies.pruning import WITHOUT_PREDICTOR, baselines, early
from harness.studies.spec import PREDICTED, Study, StudyCase, StudyConfig, StudyLine, study
from harness.studies.tables import StudyRow
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
    # of the study's line; the first line that has them is taken. ``{dataset}`` is the judged
    # dataset
    labels: dict[str, str] = field(default_factory=dict)
    group: float | str | None = None  # the line's; None for any
    # the records'; ``dense`` with neither labels nor ``group`` is the dense model
    method: str | None = None
    keep: float | None = None  # the records'; None for any
    # name of an earlier row that this one is compared with; None for none
    against: str | None = None
    measure: str = TOP1  # what is read off: ``top1``, ``match``, ``gflops`` or ``latency``
    empty: str = ""  # why there is nothing of ours
    # on a figure's axis; None for the share of the dense tower's multiply-adds
    place: float | None = None
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
RowsOf = Callable[[StudyConfig, int], Sequence[PaperRow]]


@dataclass(frozen=True, kw_only=True)
class PaperTarget:
    """One table or figure of the paper, with what is known of it."""

    name: str  # of the table or figure
    keeps: tuple[float, ...]  # unless others are asked for

    @property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = _content()["tables"][self.name]
        return facts

    @property
    def title(self) -> str:
        """What it shows."""
        return str(self._facts["title"])

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the paper's figures, or on ours."""
        return tuple(self._facts["notes"])

    @property
    def datasets(self) -> tuple[str, ...]:
        """The paper's datasets, in its order."""
        return _columns(self.name)

    @property
    def axis(self) -> str:
        """What a figure is drawn along; empty for a table."""
        return str(self._facts.get("axis", ""))

    def rates(self, asked: Sequence[float] | None) -> tuple[float, ...]:
        """Return the keep rates to measure, the paper's if None; 1 is the unpruned tower, always there."""
        return self.keeps if asked is None else tuple(keep for keep in asked if keep < 1)


@dataclass(frozen=True, kw_only=True)
class PaperTable(PaperTarget):
    """A table or measured figure: a study, and which of its lines is which row."""

    study: Study
    # from config, whose keep rates are set, and number of blocks to the rows, each after that it is
    # compared with
    rows: RowsOf
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of ``StudyConfig`` that are this table's
    joint: bool = False  # made of all datasets at once, as lines learn from other datasets
    single: bool = False  # the first dataset will do
    besides: tuple[float, ...] = ()  # keep rates that are measured whatever others are asked for
    fixed: bool = False  # no other keep rates can be asked for
    # dataset whose predictor serves the others, too; these need nothing to learn from then
    general: str | None = None

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
        if self.joint:
            return [config]
        return [replace(config, datasets=(name,)) for name in config.datasets]


@dataclass(frozen=True, kw_only=True)
class PaperPicture(PaperTarget):
    """A figure that shows images: the patches that each ranking keeps of them."""

    keeps: tuple[float, ...] = (0.9, 0.7, 0.5)
    block: int | None  # that patches are removed before; None for that of the golden rankings
    rankings: tuple[str, ...] = ("golden", "clsattn")


TABLES: dict[str, PaperTable] = {}
PICTURES = {one.name: one for one in (PaperPicture(name="figure3", block=None), PaperPicture(name="figure4", block=0))}


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
        one = TABLES[rows.__name__] = PaperTable(name=rows.__name__, study=study, keeps=keeps, rows=rows, **facts)
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
