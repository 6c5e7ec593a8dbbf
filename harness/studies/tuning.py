"""What tuning wins back: none, text tokens, both, on the dense and the pruned tower."""

from harness.datasets.base import Dataset
from harness.studies.base import Line, TuningStudy
from harness.studies.tuning_shop import TuningShop
from harness.studies.workshop import Workshop

KINDS = {"none": "", "T": "t", "V+T": "vt"}


class Tuning(TuningStudy):
    """Compare pruned models with the dense one, each tuned in the same way."""

    name = "tuning"
    title = "Learned tokens on the dense and the pruned tower (paper: Table 5)"
    question = "How far behind the dense tower is a pruned one once both are tuned?"
    keeps = (0.6, 0.5)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return for each way of tuning the dense model first, then the pruned ones."""
        tuning = TuningShop(shop, dataset)
        found = []
        for name, tokens in KINDS.items():
            for keep in (1.0, *shop.config.keeps_or(self.keeps)):
                row = tuning.row(keep)
                labels = {"tuned": name, "model": row.model}
                if not tokens:
                    found.append(tuning.untuned(labels, name, row))
                    continue
                made = tuning.tuned(row, tuning.recipe(tokens=tokens))
                found.append(tuning.line(labels, name, row, made))
        return found
