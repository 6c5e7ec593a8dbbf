"""Table 7: where a tuned model loses its tokens."""

from collections.abc import Sequence
from typing import Any, ClassVar

from harness.reproduction.base import Reproduction, Row
from harness.studies.config import StudyConfig
from harness.studies.points import Points, four_points

BEST = (4, 6, 8, 10)  # 1-based, as printed


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
        schedules = four_points(depth)
        names = [BEST, *(tuple(point + 1 for point in points) for points in schedules[1:])]
        first = f"before {_listed(BEST)}"
        found = [
            Row(
                name=f"before {_listed(name)}",
                labels={"before blocks": _listed(points)},
                against=None if name == BEST else first,
            )
            for name, points in zip(names, schedules, strict=True)
        ]
        once = config.golden.block
        labels = {"before blocks": str(once)}
        return [*found, Row(name=f"once, before {once + 1}", labels=labels, against=first)]


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))
