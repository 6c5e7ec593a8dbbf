"""Table 2: predictors judged on a dataset that they didn't learn from."""

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop


class Transfer(Study):
    """Fit on one dataset or on all, judge on another."""

    name = "transfer"
    title = "Predictors fitted on one dataset, judged on another (paper: Table 2)"
    question = "Does a predictor need images of the dataset that it serves?"
    keeps = (0.5,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per training set, the dataset's own first."""
        golden = shop.golden()
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        others = [name for name in shop.config.datasets if name != dataset.name]
        sources: list[tuple[str, ...]] = [(dataset.name,), *((name,) for name in others)]
        if others:
            sources.append(tuple(shop.config.datasets))
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            for source in sources:
                what = " + ".join(source)
                rows = shop.predicted(shop.fitted(source, golden), keep, truth, f"on {what}")
                found.append(Line(labels={"fitted on": what}, rows=rows, asked=keep))
            rows = shop.oracle(truth, keep, "golden")
            found.append(Line(labels={"fitted on": "(golden)"}, rows=rows, asked=keep))
        return found
