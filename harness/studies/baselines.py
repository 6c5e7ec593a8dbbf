"""Patch Ranking against the baselines at equal GFLOPs."""

from functools import partial

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import PREDICTED, Workshop
from harness.variants import Variant
from zoo.reducer import METHODS


class Baselines(Study):
    """Give every method the keep rate at which it costs what patchrank does."""

    name = "baselines"
    title = "Methods at equal GFLOPs"
    question = "Is Patch Ranking ahead of other methods for the same cost?"
    keeps = (0.6, 0.5, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return patchrank, then the methods without a predictor."""
        fits = shop.fitted(shop.config.datasets, shop.golden())
        truth = shop.known(dataset.images_of)
        others = [name for name, cls in sorted(METHODS.items()) if not cls.needs_predictor]
        found = []

        def predicted(keep: float) -> list[Variant]:
            return shop.predicted(fits, keep, truth, f"for {keep:g}")

        def baseline(method: str, what: str, keep: float) -> list[Variant]:
            return shop.baseline(method, keep, truth, what)

        for keep in shop.config.keeps_or(self.keeps):
            rows = {PREDICTED: predicted(keep)}
            goal = shop.gflops(rows[PREDICTED][0])
            for method in others:
                build = partial(baseline, method, f"for {keep:g}")
                rows[method] = build(shop.at_cost(method, build, goal))
            for method, made in rows.items():
                labels = {"for": f"{100 * keep:g}", "method": method}
                found.append(Line(labels=labels, rows=made, asked=keep))
        return found
