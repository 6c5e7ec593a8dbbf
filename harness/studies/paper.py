"""The paper's tables and figures as data: what it printed, and which line of ours is which row.

What isn't known of the paper is None, never guessed.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.datasets.base import Dataset
from harness.studies.predictors import architectures, scores, transfer
from harness.studies.pruning import WITHOUT_PREDICTOR, baselines, early
from harness.studies.run import Entry
from harness.studies.tuning import WAYS, four_points, points, tuning
from harness.studies.workshop import PREDICTED, Line, Study, StudyConfig, Workshop, study
from zoo.golden import SCORES
from zoo.predictor import ARCHITECTURES
from zoo.reducer import expected

PATH = Path(__file__).with_name("paper.json")
TOP1, MATCH, GFLOPS, LATENCY = "top1", "match", "gflops", "latency"  # what a row is measured by
TARGET = "{dataset}"  # in a label, stands for the dataset that is judged
GENERAL = "imagenet"
STAGED = {"evit": "EViT", "tome": "ToMe", "clsattn": "CLS attention", "random": "random"}
PATCHES = 196  # of ViT-B/16 at 224
FOUR_STAGES = (PATCHES - 4 * 20) / PATCHES  # keep rate of Table 4, 20 dropped at each block
TOP_100 = 0.51  # of PATCHES: 100
TIMED = (1, 32)  # batch sizes of Table 3
COUNTED = 64  # images of Table 3, which no accuracy is asked of
# 1e9 multiply-adds of ViT-B/16 at 224, pruned before block 3, by our count.
DENSE_GFLOPS = 17.58
PRUNED_GFLOPS = {90: 16.19, 80: 14.89, 70: 13.53, 60: 12.25, 50: 10.92}


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One row of the paper.

    Attributes:
        values: by dataset; those that we know.
        mean: over ``columns`` as printed, None where we don't know it.
        columns: datasets of the row's table.
        source: table or figure, and whatever else is to be known of it.
    """

    values: dict[str, float]
    mean: float | None
    columns: tuple[str, ...]
    source: str

    def mean_over(self, datasets: Sequence[str]) -> float | None:
        """Return the mean over some datasets: printed for all of the table, else if each is known.

        Args:
            datasets: names; none of them has to be the paper's.
        """
        if set(datasets) == set(self.columns) and self.mean is not None:
            return self.mean
        if not datasets or any(name not in self.values for name in datasets):
            return None
        return sum(self.values[name] for name in datasets) / len(datasets)


@functools.cache
def _content() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(PATH.read_text("utf-8"))
    return facts


def paper_datasets() -> tuple[str, ...]:
    """Return the names of the paper's seven datasets, in its order."""
    return tuple(_content()["datasets"])


@functools.cache
def printed(table: str) -> dict[str, Printed]:
    """Return the rows of a table or figure that we know something of, by name."""
    facts = _content()["tables"][table]
    columns = tuple(_content()["columns"][facts["columns"]])
    rows = {}
    for name, row in facts["rows"].items():
        values = dict(zip(columns, row.get("values", ()), strict=False))
        mean = row.get("mean")
        if values and mean is None:
            mean = sum(values.values()) / len(values)
        rows[name] = Printed(values=values, mean=mean, columns=columns, source=row["source"])
    return rows


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as the paper has it, or one of ours beside those.

    Attributes:
        name: heading; the paper's figures go by it.
        labels: of the study's line, as far as they decide; the first line that fits is taken.
            ``{dataset}`` is the judged dataset.
        group: the line's; None for any.
        method: the records'; ``dense`` with neither labels nor ``group`` is the dense model.
        against: name of an earlier row that this one is compared with; None for none.
        measure: what is read off: ``top1``, ``match``, ``gflops`` or ``latency``.
        empty: why there is nothing of ours.
    """

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    group: float | str | None = None
    method: str | None = None
    against: str | None = None
    measure: str = TOP1
    empty: str = ""

    def fits(self, entry: Entry, dataset: str) -> bool:
        """Tell whether a study's line is this row."""
        labels = {name: value.replace(TARGET, dataset) for name, value in self.labels.items()}
        return (
            labels.items() <= entry.labels.items()
            and self.group in (None, entry.group)
            and self.method in (None, entry.records[0].method)
        )

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense model, which is a line of no study."""
        return self.method == "dense" and not self.labels and self.group is None


UNPRUNED = Row(name="unpruned", method="dense")


def _nowhere(_row: Row, _share: float | None) -> float | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One table or figure of the paper: a study, and which of its lines is which row.

    Attributes:
        name: of the table or figure.
        title: what it shows.
        study: what measures it.
        keeps: keep rates.
        rows: from config and number of blocks to the rows, each after that it is compared with.
        datasets: the paper's, in its order.
        changes: fields of ``StudyConfig`` that are this table's.
        joint: the study is made of all datasets at once, as lines learn from other datasets.
        single: the first dataset will do.
        axis: what a figure is drawn along; empty for a table.
        place: from a row and its multiply-adds as share of the dense tower's (None where not
            counted) to its place on the axis; None for nowhere.
        paper_place: the same for the paper's figure.
    """

    name: str
    title: str
    study: Study
    keeps: tuple[float, ...]
    rows: Callable[[StudyConfig, int], Sequence[Row]]
    datasets: tuple[str, ...] = field(default_factory=paper_datasets)
    changes: dict[str, Any] = field(default_factory=dict)
    joint: bool = False
    single: bool = False
    axis: str = ""
    place: Callable[[Row, float | None], float | None] = _nowhere
    paper_place: Callable[[Row, float | None], float | None] = _nowhere

    def groups(self, config: StudyConfig) -> list[StudyConfig]:
        """Return what the study is made of at a time: one dataset, whose predictors are its own.

        All at once where lines learn from other datasets, too.
        """
        if self.joint:
            return [config]
        return [replace(config, datasets=(name,)) for name in config.datasets]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the paper's figures, or of ours."""
        return tuple(_content()["tables"][self.name].get("notes", ()))


def list_reproductions() -> dict[str, Reproduction]:
    """Return all tables and figures by name."""
    return {one.name: one for one in REPRODUCTIONS}


def get_reproduction(name: str) -> Reproduction:
    """Return the reproduction of that table or figure.

    Raises:
        ValueError: there is none.
    """
    every = list_reproductions()
    if name not in every:
        raise ValueError(f"reproduce {name!r}: {expected(name, every)}")
    return every[name]


@study(
    "Methods that drop as many tokens at the same four blocks",
    "Which method chooses best what goes, where and how much being the same?",
    keeps=(FOUR_STAGES,),
)
def stages(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune by the dataset's own predictor, by ImageNet's, then by methods without one."""
    points = four_points(len(shop.dense.blocks))[0]
    general = [GENERAL] if GENERAL in shop.config.datasets else []
    golden = shop.golden(block=points[0])
    for keep in keeps:
        for source in dict.fromkeys([dataset.images_of, *general]):
            fits = shop.fitted([source], golden)
            rows = shop.predicted(
                fits, keep, None, f"on {source}", reduce_at=points, schedule="linear"
            )
            yield Line({"method": PREDICTED, "fitted on": source}, rows, keep)
        for method in STAGED:
            rows = shop.baseline(
                method, keep, None, "in four stages", reduce_at=points, schedule="linear"
            )
            yield Line({"method": method}, rows, keep)


@study(
    "Cost of Patch Ranking",
    "How much cheaper is a pruned tower, in multiply-adds and in time?",
    keeps=(0.6, 0.5),
)
def cost(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Count and time the pruned tower beside the dense one."""
    fits = shop.fitted([dataset.images_of], shop.golden())
    for keep in keeps:
        rows = shop.predicted(fits, keep, None, "cost")
        yield Line({"model": rows[0].model}, rows, keep)


def _figure1(_config: StudyConfig, _depth: int) -> list[Row]:
    """Patch Ranking first, then every other method at the same cost."""
    return [
        UNPRUNED,
        *(
            Row(
                name=f"{method}, keep {100 * keep:g}",
                labels={"for": f"{100 * keep:g}", "method": method},
                against=UNPRUNED.name,
            )
            for method in (PREDICTED, *WITHOUT_PREDICTOR)
            for keep in (0.9, 0.8, 0.7, 0.6, 0.5)
        ),
    ]


def _paper_share(row: Row, _share: float | None) -> float | None:
    """Return the share of multiply-adds that a keep rate leaves of ViT-B/16."""
    _, _, keep = row.name.partition("keep ")
    return PRUNED_GFLOPS[int(keep)] / DENSE_GFLOPS if keep else None


def _figure5(_config: StudyConfig, _depth: int) -> list[Row]:
    """Both of the paper's rankings, then ours."""
    names = {"clsattn": "CLS attention", "golden": "golden"}
    return [
        UNPRUNED,
        *(
            Row(
                name=f"{names.get(ranking, ranking)}, keep {100 * keep:g}",
                labels={"ranking": ranking},
                group=keep,
                against=UNPRUNED.name,
            )
            for ranking in (*names, "predicted", "random")
            for keep in (0.6, 0.5)
        ),
    ]


def _percent(row: Row, _share: float | None) -> float | None:
    return None if row.group is None else 100 * float(row.group)


def _table1(_config: StudyConfig, _depth: int) -> list[Row]:
    """Golden and predicted by score and keep rate, then the matching rates."""
    pruned = [
        Row(
            name=f"{ranking}, {score}, keep {100 * keep:g}",
            labels={"score": score, "ranking": ranking},
            group=keep,
            against=UNPRUNED.name,
        )
        for ranking in ("golden", "predicted")
        for score in SCORES
        for keep in (0.8, 0.7, 0.6, 0.5)
    ]
    matching = [
        Row(
            name=f"match at 100, {score}",
            labels={"score": score, "ranking": "predicted"},
            group=TOP_100,
            measure=MATCH,
        )
        for score in SCORES
    ]
    return [UNPRUNED, *pruned, *matching]


def _table2(config: StudyConfig, _depth: int) -> list[Row]:
    """One row per dataset to learn from, each against the target's own predictor."""
    own = Row(name="fitted on the target", labels={"fitted on": TARGET}, against=UNPRUNED.name)
    sources = {f"fitted on {name}": name for name in config.datasets}
    if len(config.datasets) > 1:
        sources["fitted on all"] = " + ".join(config.datasets)
    return [
        UNPRUNED,
        own,
        *(
            Row(name=name, labels={"fitted on": source}, against=own.name)
            for name, source in sources.items()
        ),
        Row(name="golden", labels={"fitted on": "(golden)"}, against=UNPRUNED.name),
    ]


def _table3(_config: StudyConfig, _depth: int) -> list[Row]:
    """Multiply-adds, then times; what they are compared by is the ratio."""
    rows = []
    for unit, measure in (("GFLOPs", GFLOPS), ("ms", LATENCY)):
        dense = Row(name=f"unpruned, {unit}", method="dense", measure=measure)
        rows += [
            dense,
            *(
                Row(
                    name=f"keep {100 * keep:g}, {unit}",
                    method=PREDICTED,
                    group=keep,
                    against=dense.name,
                    measure=measure,
                )
                for keep in cost.keeps
            ),
        ]
    return rows


def _table4(config: StudyConfig, _depth: int) -> list[Row]:
    """The paper's rows, then CLS attention and random order, which it lacks."""
    dense = UNPRUNED.name
    others = {
        method: Row(name=name, labels={"method": method}, against=dense)
        for method, name in STAGED.items()
    }
    return [
        UNPRUNED,
        others["evit"],
        Row(name="A-ViT", against=dense, empty="A-ViT is not built: as published it masks"),
        others["tome"],
        Row(
            name="Patch Ranking",
            labels={"method": PREDICTED, "fitted on": TARGET},
            against=dense,
        ),
        Row(
            name="Patch Ranking, ImageNet-trained",
            labels={"method": PREDICTED, "fitted on": GENERAL},
            against=dense,
            empty="" if GENERAL in config.datasets else f"needs {GENERAL} among --datasets",
        ),
        others["clsattn"],
        others["random"],
    ]


def _table5(_config: StudyConfig, _depth: int) -> list[Row]:
    """The full tower and the pruned one for each way of tuning."""
    rows = []
    for way in WAYS:
        name = "no prompts" if way == "none" else way
        full = Row(name=f"{name}, full", labels={"tuned": way}, method="dense")
        pruned = Row(
            name=f"{name}, keep 60", labels={"tuned": way}, method=PREDICTED, against=full.name
        )
        rows += [full, pruned]
    return rows


def _table6(config: StudyConfig, _depth: int) -> list[Row]:
    """The paper's three networks, then ours."""
    width = str(config.fit.width)
    names = {"mlp": "MLP", "transformer": "transformer"}
    others = {arch: f"{arch} {width}" for arch in ARCHITECTURES if arch not in names}
    shapes = [("Mixer", {"network": "mixer"})]
    shapes += [(name, {"network": arch, "width": width}) for arch, name in (names | others).items()]
    against = UNPRUNED.name
    return [
        UNPRUNED,
        *(Row(name=name, labels=labels, group=0.6, against=against) for name, labels in shapes),
    ]


def _table7(config: StudyConfig, depth: int) -> list[Row]:
    """The paper's schedules, its best first, then all in one step."""
    others = ((2, 3, 4, 5), (4, 5, 6, 7), (1, 3, 5, 7))  # 1-based, as printed
    rows: list[Row] = []
    for at in four_points(depth):
        printed_at = tuple(point + 1 for point in at)
        name = f"before {_comma(printed_at if printed_at in others else (4, 6, 8, 10))}"
        against = rows[0].name if rows else None
        rows.append(Row(name=name, labels={"before blocks": _comma(at)}, against=against))
    once = config.golden.block
    labels = {"before blocks": str(once)}
    return [*rows, Row(name=f"once, before {once + 1}", labels=labels, against=rows[0].name)]


def _comma(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))


REPRODUCTIONS = (
    Reproduction(
        name="figure1",
        title="Figure 1: accuracy against multiply-adds",
        study=baselines,
        keeps=(0.9, 0.8, 0.7, 0.6, 0.5),
        axis="multiply-adds, share of the unpruned tower's",
        rows=_figure1,
        place=lambda _row, share: share,
        paper_place=_paper_share,
    ),
    Reproduction(
        name="figure5",
        title="Figure 5: pruning before block 1 (1-based), where nothing is attended to yet",
        study=early,
        keeps=(0.6, 0.5),
        axis="keep rate, %",
        rows=_figure5,
        place=_percent,
        paper_place=_percent,
    ),
    Reproduction(
        name="table1",
        title="Table 1: golden and predicted rankings, one-shot, no tuning",
        study=scores,
        keeps=(0.8, 0.7, 0.6, TOP_100, 0.5),
        rows=_table1,
    ),
    Reproduction(
        name="table2",
        title="Table 2: predictors fitted on one dataset, judged on another, keep 50",
        study=transfer,
        keeps=(0.5,),
        joint=True,
        rows=_table2,
    ),
    Reproduction(
        name="table3",
        title="Table 3: cost",
        study=cost,
        keeps=cost.keeps,
        changes={
            "batches": TIMED,
            "seeds": 1,
            "limit": COUNTED,
            "train_limit": COUNTED,
        },
        single=True,
        rows=_table3,
    ),
    Reproduction(
        name="table4",
        title="Table 4: 20 of 196 tokens dropped at each of blocks 4, 6, 8, 10 (1-based)",
        study=stages,
        keeps=stages.keeps,
        joint=True,
        rows=_table4,
        datasets=(*paper_datasets(), GENERAL),
    ),
    Reproduction(
        name="table5",
        title="Table 5: learned tokens, full tower and keep 60",
        study=tuning,
        keeps=(0.6,),
        changes={"own_predictors": True},
        rows=_table5,
    ),
    Reproduction(
        name="table6",
        title="Table 6: architecture of the predictor, keep 60",
        study=architectures,
        keeps=(0.6,),
        rows=_table6,
    ),
    Reproduction(
        name="table7",
        title="Table 7: four reduction points of a tuned model, keep 60, V+T",
        study=points,
        keeps=(0.6,),
        changes={"own_predictors": True},
        rows=_table7,
    ),
)
