"""Table 6: what a predictor's network is worth."""

from collections.abc import Sequence
from typing import Any

from harness.reproduction.base import UNPRUNED, Reproduction, Row
from harness.studies.architectures import Architectures
from harness.studies.config import StudyConfig
from zoo.predictor import ARCHITECTURES

NAMED = {"mlp": "MLP", "transformer": "transformer"}


class Table6(Reproduction):
    """Networks of predictors, all else being equal."""

    name = "table6"
    title = "Table 6: architecture of the predictor, keep 60"
    study = Architectures()
    keeps = (0.6,)
    notes = (
        "Of the paper's table we know that Mixer, MLP and transformer are within 2 points, that "
        "the MLP ties or beats the Mixer on 5 of 7 datasets at keep 50, and that the matching rate "
        "doesn't foretell the accuracy. Its Mixer's figures are those of Table 1.",
        "Mixer: full width; the others are of --width. Pooledmixer is the released code's.",
    )

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return the paper's three networks, then ours."""
        width = str(config.fit.width)
        others = [name for name in ARCHITECTURES if name not in NAMED]
        told: dict[str, Any] = {"asked": self.keeps[0], "against": UNPRUNED.name}
        return [
            UNPRUNED,
            Row(name="Mixer", labels={"network": "mixer"}, **told),
            *(
                Row(
                    name=NAMED.get(arch, f"{arch} {width}"),
                    labels={"network": arch, "width": width},
                    **told,
                )
                for arch in (*NAMED, *others)
            ),
        ]
