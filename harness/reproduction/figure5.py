"""Figure 5: pruning before block 0."""

from collections.abc import Sequence

from harness.reproduction.base import UNPRUNED, Reproduction, Row
from harness.studies.blocks import Early
from harness.studies.config import StudyConfig

RANKINGS = {
    "clsattn": "CLS attention",
    "golden": "golden",
    "predicted": "predicted",
    "random": "random",
}


class Figure5(Reproduction):
    """The golden ranking against the class token's attention at the input."""

    name = "figure5"
    title = "Figure 5: pruning before block 1 (1-based), where nothing is attended to yet"
    study = Early()
    keeps = (0.6, 0.5)
    axis = "keep rate, %"
    notes = ("Predicted and random are ours; the paper's figure has no such points.",)

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return both of the paper's rankings, then ours."""
        return [
            UNPRUNED,
            *(
                Row(
                    name=f"{name}, keep {100 * keep:g}",
                    labels={"ranking": ranking},
                    asked=keep,
                    against=UNPRUNED.name,
                )
                for ranking, name in RANKINGS.items()
                for keep in self.keeps
            ),
        ]

    def place(self, row: Row, share: float | None) -> float | None:
        """Return the keep rate in percent."""
        return None if row.asked is None else 100 * float(row.asked)

    def paper_place(self, row: Row) -> float | None:
        """Return the same."""
        return self.place(row, None)
