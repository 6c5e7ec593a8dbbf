"""How many tokens to learn."""

from harness.datasets.base import Dataset
from harness.studies.base import Line, TuningStudy
from harness.studies.tuning_shop import TuningShop
from harness.studies.workshop import Workshop

COUNTS = (16, 4, 32)


class Count(TuningStudy):
    """Vary the number of learned tokens."""

    name = "count"
    title = "Number of learned tokens"
    question = "How many learned tokens pay, given that each makes every block longer?"
    keeps = (0.6,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per number, the paper's 16 first, then none at all."""
        tuning = TuningShop(shop, dataset)
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            row, group = tuning.row(keep), f"{keep:g}"
            for count in COUNTS:
                made = tuning.tuned(row, tuning.recipe(count=count))
                found.append(tuning.line({"tokens": str(count)}, group, row, made))
            found.append(tuning.untuned({"tokens": "0"}, group, row))
        return found
