"""What a predictor's loss is worth."""

from dataclasses import replace

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from zoo.fit import LOSSES


class Losses(Study):
    """Fit one architecture by every loss."""

    name = "losses"
    title = "Predictor losses"
    question = "Which loss leads to the best ranking, and what does the paper's printed one do?"
    keeps = (0.6, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per loss, listnet first."""
        golden = shop.golden()
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            for loss in sorted(LOSSES, key=lambda name: (name != "listnet", name)):
                recipe = replace(shop.config.fit, loss=loss)
                fits = shop.fitted(shop.config.datasets, golden, recipe)
                rows = shop.predicted(fits, keep, truth, loss)
                labels = {"network": recipe.arch, "loss": loss}
                found.append(Line(labels=labels, rows=rows, asked=keep))
        return found
