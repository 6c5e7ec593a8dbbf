"""Which phase comes first, and whether prompts can be moved between dense and pruned tower."""

from harness.datasets.base import Dataset
from harness.studies.base import Line, TuningStudy
from harness.studies.tuning_shop import TuningShop
from harness.studies.workshop import Workshop
from harness.tuning import Tuned
from harness.variants import Variant


class Order(TuningStudy):
    """Tune before or after ranking, on the tower that will serve or on the other."""

    name = "order"
    title = "Order of the phases, and prompts moved between towers"
    question = "Must prompts be tuned last, and on the tower that they will serve?"
    keeps = (0.6,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return the pruned models, the paper's order first, then the dense ones."""
        tuning = TuningShop(shop, dataset)
        dense = tuning.row(1.0)
        on_dense = tuning.tuned(dense, tuning.recipe())
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            row, group = tuning.row(keep), f"{keep:g}"
            on_pruned = tuning.tuned(row, tuning.recipe())
            moved = tuning.moved(row, on_dense)
            later = self._rank_later(shop, tuning, keep, on_dense)
            for name, made in (
                ("rank, predict, tune (paper)", [(row, one) for one in on_pruned]),
                ("tune the dense tower, move to the pruned", [(row, one) for one in moved]),
                ("tune the dense tower, rank, predict", later),
            ):
                labels = {"model": row.model, "order": name}
                rows, prompts = [pair[0] for pair in made], [pair[1] for pair in made]
                found.append(Line(labels=labels, rows=rows, asked=group, prompts=prompts))
            labels = {"model": dense.model, "order": f"tune at keep {keep:g}, move to the dense"}
            back = tuning.line(labels, "dense", dense, tuning.moved(dense, on_pruned))
            labels = {"model": dense.model, "order": "tune the dense tower"}
            found += [tuning.line(labels, "dense", dense, on_dense), back]
        return found

    def _rank_later(
        self, shop: Workshop, tuning: TuningShop, keep: float, tuned: list[Tuned]
    ) -> list[tuple[Variant, Tuned]]:
        """Prune each tuned dense tower by a predictor of its own rankings."""
        found = []
        for one in tuned:
            fits = [tuning.ranked_after(one, shop.golden())]
            (row,) = shop.predicted(fits, keep, None, "ranked after tuning")
            found.append((row, Tuned.of(row.vit, one.file)))
        return found
