"""Table 1: golden and predicted rankings by each score."""

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from zoo.golden import SCORES


class Scores(Study):
    """Prune by golden rankings of three scores, and by predictors fitted to each."""

    name = "scores"
    title = "Golden and predicted rankings by score (paper: Table 1)"
    question = "Which score finds the patches that accuracy needs, and can it be predicted?"
    keeps = (0.8, 0.7, 0.6, 0.5)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return golden and predicted for every score and keep rate, dense-like scores first."""
        found = []
        for score in SCORES:
            golden = shop.golden(score=score)
            truth = shop.rankings(dataset.images_of, shop.config.split, golden)
            fits = shop.fitted(shop.config.datasets, golden)
            for keep in shop.config.keeps_or(self.keeps):
                rows = {
                    "golden": shop.oracle(truth, keep, score),
                    "predicted": shop.predicted(fits, keep, truth, score),
                }
                for ranking, made in rows.items():
                    labels = {"score": score, "ranking": ranking}
                    found.append(Line(labels=labels, rows=made, asked=keep))
        return found
