"""What golden rankings a predictor should learn from."""

from typing import Any

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from zoo.golden import GoldenConfig

TARGETS: tuple[dict[str, Any], ...] = (
    {"window": 3, "stride": 2},
    {"window": 2, "stride": 1, "approximate": "follow:0"},
    {"window": 3, "stride": 1, "approximate": "follow:0"},
    {"window": 2, "stride": 1, "approximate": "follow:4"},
)


class Targets(Study):
    """Fit to golden rankings made in several ways; all are compared with the study's own."""

    name = "targets"
    title = "Golden rankings to learn from"
    question = "Which windows, and which cheap way, make the best teacher?"
    keeps = (0.6, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per target, the study's own windows first."""
        truth = shop.rankings(dataset.images_of, shop.config.split, shop.golden())
        ways = [shop.golden()]
        plain: dict[str, Any] = {"greedy": None, "approximate": None}
        ways += [way for told in TARGETS if (way := shop.golden(**plain | told)) not in ways]
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            for way in ways:
                fits = shop.fitted(shop.config.datasets, way)
                rows = shop.predicted(fits, keep, truth, described(way))
                found.append(Line(labels={"target": described(way)}, rows=rows, asked=keep))
        return found


def described(way: GoldenConfig) -> str:
    """Return windows and approximation of a way in words."""
    how = "" if way.approximate is None else f", {way.approximate}"
    return f"{way.window} x {way.window} by {way.stride}{how}"
