"""One reduction point against several, at equal GFLOPs."""

from collections.abc import Sequence
from functools import partial

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from harness.variants import Variant


def schedules(first: int, depth: int) -> list[tuple[int, ...]]:
    """Return reduction points to compare, all beginning at ``first``: one, then ever more."""
    found: list[tuple[int, ...]] = [(first,)]
    for step, most in ((2, 2), (2, 3), (1, 4), (1, depth)):
        points = tuple(range(first, depth, step))[:most]
        if len(points) > 1 and points not in found:
            found.append(points)
    return found


class Schedule(Study):
    """Prune in one step or in several, by one ranking made at the first."""

    name = "schedule"
    title = "One-shot against progressive pruning at equal GFLOPs"
    question = "Is it better to drop all tokens at once, or fewer at a time and more in the end?"
    keeps = (0.6, 0.5, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return schedules for golden and predicted; one-shot predicted comes first."""
        golden = shop.golden()
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        fits = shop.fitted(shop.config.datasets, golden)
        found = []

        def predicted(points: Sequence[int], keep: float) -> list[Variant]:
            return shop.predicted(fits, keep, truth, f"at {points}", reduce_at=points)

        for keep in shop.config.keeps_or(self.keeps):
            goal = shop.gflops(predicted((golden.block,), keep)[0])
            for points in schedules(golden.block, len(shop.dense.blocks)):
                same = shop.at_cost(f"at {points}", partial(predicted, points), goal)
                what = f"at {points} for {keep:g}"
                rows = {
                    "predicted": shop.predicted(fits, same, truth, what, reduce_at=points),
                    "golden": shop.oracle(truth, same, what, reduce_at=points),
                }
                for ranking, made in rows.items():
                    before = ", ".join(map(str, points))
                    labels = {"for": f"{100 * keep:g}", "before blocks": before, "ranking": ranking}
                    found.append(Line(labels=labels, rows=made, asked=keep))
        return found
