"""Table 2: predictors judged on datasets that they didn't learn from."""

from collections.abc import Sequence

from harness.reproduction.base import TARGET, UNPRUNED, Reproduction, Row
from harness.studies.config import StudyConfig
from harness.studies.transfer import Transfer


class Table2(Reproduction):
    """Fit on one dataset, judge on each."""

    name = "table2"
    title = "Table 2: predictors fitted on one dataset, judged on another, keep 50"
    study = Transfer()
    keeps = (0.5,)
    joint = True
    notes = (
        "Of the paper's pairs we know only that all lie within about 2 points of what a predictor "
        "fitted on the target does, so their cells are empty.",
        "Fitted on all: not in the paper.",
    )

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return one row per dataset to learn from, each against the target's own predictor."""
        own = "fitted on the target"
        found = [
            UNPRUNED,
            Row(name=own, labels={"fitted on": TARGET}, against=UNPRUNED.name),
            *(
                Row(name=f"fitted on {name}", labels={"fitted on": name}, against=own)
                for name in config.datasets
            ),
        ]
        if len(config.datasets) > 1:
            everything = " + ".join(config.datasets)
            found.append(Row(name="fitted on all", labels={"fitted on": everything}, against=own))
        golden = {"fitted on": "(golden)"}
        return [*found, Row(name="golden", labels=golden, against=UNPRUNED.name)]
