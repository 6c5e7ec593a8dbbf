"""Figure 1: accuracy against multiply-adds."""

from collections.abc import Sequence

from harness.reproduction.base import UNPRUNED, Reproduction, Row
from harness.studies.baselines import Baselines
from harness.studies.config import StudyConfig
from harness.studies.workshop import PREDICTED
from zoo.reducer import METHODS

# 1e9 multiply-adds of ViT-B/16 at 224, pruned before block 3, by our count.
DENSE, PRUNED = 17.58, {90: 16.19, 80: 14.89, 70: 13.53, 60: 12.25, 50: 10.92}


class Figure1(Reproduction):
    """Patch Ranking at five keep rates, and other methods at the same cost."""

    name = "figure1"
    title = "Figure 1: accuracy against multiply-adds"
    study = Baselines()
    keeps = (0.9, 0.8, 0.7, 0.6, 0.5)
    axis = "multiply-adds, share of the unpruned tower's"
    notes = (
        "Keep rates are Patch Ranking's; at each, the other methods cost what it does.",
        "The paper's points are its Table 1, drawn at our multiply-adds of ViT-B/16: its own "
        "GFLOPs hold about two text passes and are interpolated between keep rates.",
    )

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return Patch Ranking first, then every other method."""
        others = [name for name, cls in sorted(METHODS.items()) if not cls.needs_predictor]
        return [
            UNPRUNED,
            *(
                Row(
                    name=f"{method}, keep {100 * keep:g}",
                    labels={"for": f"{100 * keep:g}", "method": method},
                    against=UNPRUNED.name,
                )
                for method in (PREDICTED, *others)
                for keep in self.keeps
            ),
        ]

    def place(self, row: Row, share: float | None) -> float | None:
        """Return the share itself."""
        return share

    def paper_place(self, row: Row) -> float | None:
        """Return the share that the keep rate leaves of ViT-B/16."""
        _, told, keep = row.name.partition("keep ")
        return PRUNED[int(keep)] / DENSE if told else None
