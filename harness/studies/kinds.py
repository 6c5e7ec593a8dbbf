"""Which tokens to learn, and what ties them to each other and to the captions."""

from typing import Any

from harness.datasets.base import Dataset
from harness.studies.base import Line, TuningStudy
from harness.studies.tuning_shop import TuningShop
from harness.studies.workshop import Workshop

KINDS: dict[str, dict[str, Any]] = {
    "V+T, coupled": {},
    "V+T, independent": {"coupled": False},
    "V": {"tokens": "v"},
    "T": {"tokens": "t"},
    "T, of each class's own": {"tokens": "t", "class_specific": True},
    "T, without anchor (CoOp)": {"tokens": "t", "anchor": 0.0},
}


class Kinds(TuningStudy):
    """Leave out or change one thing at a time."""

    name = "kinds"
    title = "Kinds of learned tokens"
    question = "Is it worth coupling visual tokens to text tokens, or learning both at all?"
    keeps = (0.6,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per kind, the paper's first."""
        tuning = TuningShop(shop, dataset)
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            row = tuning.row(keep)
            for name, changes in KINDS.items():
                made = tuning.tuned(row, tuning.recipe(**{"tokens": "vt", **changes}))
                found.append(tuning.line({"tokens": name}, f"{keep:g}", row, made))
        return found
