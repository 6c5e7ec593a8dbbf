"""What a study is: its conditions, its lines, and what is known of the tables of the paper."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.measure.settings import Plan
from zoo.core.recipes import FitConfig, GoldenConfig, TuneConfig

if TYPE_CHECKING:
    from harness.datasets.base import SplitName
    from harness.measure.rows import Tuned, Variant
    from harness.studies.case import StudyCase

PREDICTED, MERGED = "patchrank", "rankmerge"  # methods


@functools.cache
def paper_tables() -> dict[str, dict[str, Any]]:
    """Return what is known of each table and figure of the paper, by name; ``columns`` are datasets."""
    content = json.loads(Path(__file__).with_name("paper.json").read_text("utf-8"))
    columns: dict[str, list[str]] = content["columns"]
    return {name: page | {"columns": tuple(columns[page["columns"]])} for name, page in content["tables"].items()}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Conditions of a study, which ignores the fields that it varies."""

    model: str = "clip_vit_s14"  # dense tower with a text tower
    datasets: tuple[str, ...] = Plan.datasets  # to judge by and to learn from
    split: "SplitName" = "val"
    limit: int | None = 300  # images per dataset to judge by; None for all
    train_limit: int | None = 500  # ranked images to learn from, per dataset; None for all
    keeps: tuple[float, ...] | None = None  # keep rates; None for the study's own
    seeds: int = 3  # fits per predictor, tunings, and random orders
    golden: GoldenConfig = field(default_factory=lambda: GoldenConfig(window=3, stride=2))
    fit: FitConfig = field(default_factory=FitConfig)  # recipe of predictors; its seed is the first
    tune: TuneConfig = field(default_factory=TuneConfig)  # recipe of learned tokens; its seed is the first
    labelled: int = 16  # images per class that tokens are learned from
    draws: str = "ours"  # which images a seed means, of ``harness.datasets.few_shot.DRAWS``
    # a tuned model's predictor is fitted to the rankings of its dataset, as all others are;
    # else it is the one that ships or is in the user's cache
    own_predictors: bool = False
    batches: tuple[int, ...] = ()  # batch sizes to time models at; none to time nothing
    device: str = "cpu"
    precision: str = "float32"


@dataclass(frozen=True)
class StudyLine:
    """One line of a study's table."""

    labels: dict[str, str]  # what distinguishes it, by column
    rows: "Sequence[Variant]"  # the same model from several seeds, or one
    group: float | str  # a keep rate or a name; lines are compared within it
    prompts: "Sequence[Tuned]" = ()  # of each row; none where class captions classify


Lines = Callable[["StudyCase"], Iterator[StudyLine]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about methods, and what answers it."""

    title: str  # of its tables
    keeps: tuple[float, ...]  # usual keep rates
    lines: Lines  # of the table; the first of a group is what the others are compared with
    fits: bool  # it fits predictors to golden rankings
    tunes: bool = False  # it is about learned tokens, whose labelled images may come from val
    foreground: bool = False  # it fits linear probes of foreground, chosen by val
    labels: bool  # it is about what labels or classes decide
    plot: tuple[str, ...] = ()  # columns of its plot: the x axis, then what tells series apart; none without a plot

    @property
    def name(self) -> str:
        """Name on the command line."""
        return str(self.lines.__name__)

    @property
    def question(self) -> str:
        """First line of the docstring of ``lines``."""
        return str(self.lines.__doc__).partition("\n")[0]


def study(title: str, keeps: tuple[float, ...], **fields: Any) -> Callable[[Lines], Study]:
    """Declare a study of a function's name, whose docstring is the question and which yields the lines of the answer.

    ``fields`` are others of `Study`; ``tunes`` implies ``labels``, and without ``fits`` that it fits no predictors.
    """
    tunes = fields.get("tunes", False)
    fields = {"fits": not tunes, "labels": tunes} | fields
    return lambda lines: Study(title=title, keeps=keeps, lines=lines, **fields)
