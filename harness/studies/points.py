"""Which four reduction points serve a tuned model."""

from harness.datasets.base import Dataset
from harness.studies.base import Line, TuningStudy
from harness.studies.tuning_shop import TuningShop
from harness.studies.workshop import Workshop


def four_points(depth: int) -> list[tuple[int, ...]]:
    """Return the paper's schedules (Table 7), 0-based, its best first.

    Args:
        depth: blocks of the tower. The best, before 4, 6, 8 and 10 of 12, begins earlier in a tower
            that ends before; others that don't fit are left out.

    Raises:
        ValueError: none fits.
    """
    late = min(3, depth - 7)
    known = [tuple(range(late, late + 7, 2)), (1, 2, 3, 4), (3, 4, 5, 6), (0, 2, 4, 6)]
    found = [points for points in known if points[0] >= 0 and points[-1] < depth]
    if not found:
        raise ValueError(f"four reduction points need 5 blocks, this tower has {depth}")
    return found


class Points(TuningStudy):
    """Prune in four steps at different places, each with a predictor for its first, and tune."""

    name = "points"
    title = "Four reduction points of a tuned model (paper: Table 7)"
    question = "Where should a tuned model lose its tokens, if it does so in four steps?"
    keeps = (0.6,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per schedule, each with a predictor of its own, then all in one step."""
        tuning = TuningShop(shop, dataset)
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            group = f"{keep:g}"
            for points in four_points(len(shop.dense.blocks)):
                fits = shop.fitted([dataset.images_of], shop.golden(block=points[0]))[:1]
                what = f"at {points}"
                (row,) = shop.predicted(fits, keep, None, what, reduce_at=points)
                labels = {"before blocks": ", ".join(map(str, points))}
                made = tuning.tuned(row, tuning.recipe())
                found.append(tuning.line(labels, group, row, made))
            row = tuning.row(keep)
            labels = {"before blocks": ", ".join(map(str, row.config["reduce_at"]))}
            found.append(tuning.line(labels, group, row, tuning.tuned(row, tuning.recipe())))
        return found
