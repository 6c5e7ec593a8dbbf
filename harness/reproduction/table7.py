"""Table 7: where a tuned model loses its tokens."""

from collections.abc import Sequence
from typing import Any, ClassVar

from harness.reproduction.base import Reproduction, Row
from harness.studies.config import StudyConfig
from harness.studies.points import Points, four_points

BEST = (4, 6, 8, 10)  # 1-based, as printed
OTHERS = ((2, 3, 4, 5), (4, 5, 6, 7), (1, 3, 5, 7))


class Table7(Reproduction):
    """Four reduction points at different places, tuned by V+T, and one."""

    name = "table7"
    title = "Table 7: four reduction points of a tuned model, keep 60, V+T"
    study = Points()
    keeps = (0.6,)
    changes: ClassVar[dict[str, Any]] = {"own_predictors": True}
    notes = (
        "Blocks are counted from 1, as in the paper. Each schedule has a predictor for its first "
        "point, whose ranking is carried along. All but the first row are compared with the first.",
        "A tower of fewer blocks is pruned earlier in the first row.",
    )

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return the paper's schedules, its best first, then all in one step."""
        found: list[Row] = []
        for points in four_points(depth):
            printed = tuple(point + 1 for point in points)
            name = f"before {_listed(printed if printed in OTHERS else BEST)}"
            against = found[0].name if found else None
            labels = {"before blocks": _listed(points)}
            found.append(Row(name=name, labels=labels, against=against))
        once = config.golden.block
        labels = {"before blocks": str(once)}
        name = f"once, before {once + 1}"
        return [*found, Row(name=name, labels=labels, against=found[0].name)]


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))
