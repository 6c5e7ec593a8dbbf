"""What a reproduction is: a study under the paper's conditions, and which line is which row."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.reproduction.measures import TOP1
from harness.reproduction.paper import paper_datasets
from harness.studies.base import Study
from harness.studies.config import StudyConfig
from harness.studies.sheet import Entry

TARGET = "{dataset}"  # in a label, stands for the dataset that is judged


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as the paper has it, or one of ours beside those.

    Attributes:
        name: heading; the paper's figures go by it.
        labels: what the study's line is labelled with, as far as it decides; the first line that
            fits is taken. ``{dataset}`` is the judged dataset.
        asked: the line's; None for any.
        method: the records'; ``dense`` with neither labels nor ``asked`` is the dense model.
        against: name of the row that it is compared with, given before; None for none.
        measure: what is read off, of ``measures.MEASURES``.
        empty: why there is nothing of ours.
    """

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    asked: float | str | None = None
    method: str | None = None
    against: str | None = None
    measure: str = TOP1
    empty: str = ""

    def fits(self, entry: Entry, dataset: str) -> bool:
        """Tell whether a study's line is this row."""
        wanted = {name: value.replace(TARGET, dataset) for name, value in self.labels.items()}
        return (
            wanted.items() <= entry.labels.items()
            and self.asked in (None, entry.asked)
            and self.method in (None, entry.records[0].method)
        )

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense model, which is a line of no study."""
        return self.method == "dense" and not self.labels and self.asked is None


UNPRUNED = Row(name="unpruned", method="dense")


class Reproduction(abc.ABC):
    """One table or figure of the paper. Subclasses with all of this filled in are found by name.

    name: of the table or figure. title: what it shows. study: what measures it. keeps: keep rates.
    changes: fields of ``StudyConfig`` that are this table's. joint: the study is made of all
    datasets at once, since lines learn from other datasets. single: the first dataset will do.
    notes: what is to be known of the paper's figures, or of ours. axis: what a figure is drawn
    along; empty for a table.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    study: ClassVar[Study]
    keeps: ClassVar[tuple[float, ...]]
    changes: ClassVar[dict[str, Any]] = {}
    joint: ClassVar[bool] = False
    single: ClassVar[bool] = False
    notes: ClassVar[tuple[str, ...]] = ()
    axis: ClassVar[str] = ""

    @property
    def datasets(self) -> tuple[str, ...]:
        """The paper's, in its order."""
        return paper_datasets()

    @abc.abstractmethod
    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return the rows, those before others that are compared with them.

        Args:
            config: on what it is made.
            depth: blocks of the tower.
        """

    def place(self, row: Row, share: float | None) -> float | None:
        """Return where on the axis a row of ours stands, None for nowhere.

        Args:
            row: the row.
            share: its multiply-adds as share of the dense tower's; None where not counted.
        """
        return None

    def paper_place(self, row: Row) -> float | None:
        """Return where on the axis the paper's figure for a row stands, None for nowhere."""
        return None
