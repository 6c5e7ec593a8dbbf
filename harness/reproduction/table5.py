"""Table 5: learned tokens on the full and on the pruned tower."""

from collections.abc import Sequence
from typing import Any, ClassVar

from harness.reproduction.base import Reproduction, Row
from harness.studies.config import StudyConfig
from harness.studies.tuning import KINDS, Tuning
from harness.studies.workshop import PREDICTED

KEEP = 0.6


class Table5(Reproduction):
    """No prompts, text tokens, visual and text tokens, each full and pruned."""

    name = "table5"
    title = "Table 5: learned tokens, full tower and keep 60"
    study = Tuning()
    keeps = (KEEP,)
    changes: ClassVar[dict[str, Any]] = {"own_predictors": True}
    notes = (
        "Each pruned row is compared with the full tower tuned in the same way.",
        "The paper doesn't say how long, by which rate and from which start tokens were learned.",
    )

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return the full tower and the pruned one for each way of tuning."""
        found = []
        for kind in KINDS:
            name = "no prompts" if kind == "none" else kind
            full = f"{name}, full"
            labels = {"tuned": kind}
            found.append(Row(name=full, labels=labels, method="dense"))
            found.append(
                Row(name=f"{name}, keep 60", labels=labels, method=PREDICTED, against=full)
            )
        return found
