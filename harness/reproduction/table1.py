"""Table 1: golden and predicted rankings by each score."""

from collections.abc import Sequence

from harness.reproduction.base import UNPRUNED, Reproduction, Row
from harness.reproduction.measures import MATCH
from harness.studies.config import StudyConfig
from harness.studies.scores import Scores
from zoo.golden import SCORES

KEEPS = (0.8, 0.7, 0.6, 0.5)
TOP_100 = 0.51  # of 196 patch tokens: 100


class Table1(Reproduction):
    """Golden and predicted rankings by three scores, and how far the two agree."""

    name = "table1"
    title = "Table 1: golden and predicted rankings, one-shot, no tuning"
    study = Scores()
    keeps = (*KEEPS[:3], TOP_100, KEEPS[3])
    notes = (
        "Match at 100: share of golden's 100 most important of 196 patches that the predictor has, "
        "too; chance is 51.0, and that is what the paper's 57 for label and confidence stand "
        "beside.",
        "The label score sees the true class of the judged image: its golden row is no model.",
    )

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return golden and predicted by score and keep rate, then the matching rates."""
        pruned = [
            Row(
                name=f"{ranking}, {score}, keep {100 * keep:g}",
                labels={"score": score, "ranking": ranking},
                asked=keep,
                against=UNPRUNED.name,
            )
            for ranking in ("golden", "predicted")
            for score in SCORES
            for keep in KEEPS
        ]
        matching = [
            Row(
                name=f"match at 100, {score}",
                labels={"score": score, "ranking": "predicted"},
                asked=TOP_100,
                measure=MATCH,
            )
            for score in SCORES
        ]
        return [UNPRUNED, *pruned, *matching]
