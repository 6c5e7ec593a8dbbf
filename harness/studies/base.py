"""What a study is: a question, and the lines of models that answer it on a dataset."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.datasets.base import Dataset, SplitName
from harness.studies.workshop import Workshop
from harness.tuning import Tuned
from harness.variants import Variant


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a study's table.

    Attributes:
        labels: what distinguishes it, by column.
        rows: the same model from several seeds, or one.
        asked: what it stands for, such as a keep rate, maybe by equal cost; lines are compared
            within one.
        prompts: what was tuned for each row; none where class captions classify.
    """

    labels: dict[str, str]
    rows: list[Variant]
    asked: float | str
    prompts: Sequence[Tuned] = ()


class Study(abc.ABC):
    """A question about methods. Subclasses with all of this filled in are found by name."""

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    keeps: ClassVar[tuple[float, ...]]
    split: ClassVar[SplitName] = "val"  # to judge by, if nothing else is asked for
    tunes: ClassVar[bool] = False

    @abc.abstractmethod
    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return the models to be judged on a dataset; the first is what others are compared with.

        Raises:
            ValueError: something that can't be made.
        """


class TuningStudy(Study):
    """A question about learned tokens, whose labelled images may come from val."""

    split = "test"
    tunes = True
