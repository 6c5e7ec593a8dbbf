"""Table 4: the same tokens dropped at the same four places by every method."""

from collections.abc import Sequence
from typing import Any

from harness.datasets.base import Dataset
from harness.reproduction.base import TARGET, UNPRUNED, Reproduction, Row
from harness.reproduction.paper import paper_datasets
from harness.studies.base import Line, Study
from harness.studies.config import StudyConfig
from harness.studies.points import four_points
from harness.studies.workshop import PREDICTED, Workshop

DROPPED, PATCHES = 4 * 20, 196
KEEP = (PATCHES - DROPPED) / PATCHES
GENERAL = "imagenet"
OTHERS = {"evit": "EViT", "tome": "ToMe", "clsattn": "CLS attention", "random": "random"}


class Stages(Study):
    """Let every method drop as many tokens at the same four blocks."""

    name = "stages"
    title = "Methods that drop as many tokens at the same four blocks"
    question = "Which method chooses best what goes, where and how much being given?"
    keeps = (KEEP,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return Patch Ranking by the dataset's own predictor and by ImageNet's, then others."""
        points = four_points(len(shop.dense.blocks))[0]
        told: dict[str, Any] = {"reduce_at": points, "schedule": "linear"}
        general = [GENERAL] if GENERAL in shop.config.datasets else []
        golden = shop.golden(block=points[0])
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            for source in dict.fromkeys([dataset.images_of, *general]):
                fits = shop.fitted([source], golden)
                rows = shop.predicted(fits, keep, None, f"on {source}", **told)
                labels = {"method": PREDICTED, "fitted on": source}
                found.append(Line(labels=labels, rows=rows, asked=keep))
            for method in OTHERS:
                rows = shop.baseline(method, keep, None, "in four stages", **told)
                found.append(Line(labels={"method": method}, rows=rows, asked=keep))
        return found


class Table4(Reproduction):
    """Methods against each other, ImageNet among the datasets."""

    name = "table4"
    title = "Table 4: 20 of 196 tokens dropped at each of blocks 4, 6, 8, 10 (1-based)"
    study = Stages()
    keeps = Stages.keeps
    joint = True
    notes = (
        "EViT and ToMe act inside these blocks, between attention and MLP, the others before them. "
        "A tower of fewer blocks is pruned earlier, before 3, 5, 7, 9.",
        "The paper's row of Patch Ranking has, on the seven datasets, the figures that its Table 1 "
        "has for one-shot pruning at block 4 to keep 60; what was run in four steps isn't clear.",
        "The paper's mean for EViT is 64.3 as printed; its columns give 64.4.",
    )

    @property
    def datasets(self) -> tuple[str, ...]:
        """The paper's, ImageNet last."""
        return (*paper_datasets(), GENERAL)

    def rows(self, config: StudyConfig, depth: int) -> Sequence[Row]:
        """Return the paper's rows, then CLS attention and random order, which it lacks."""
        there = GENERAL in config.datasets
        dense = UNPRUNED.name
        own = {"method": PREDICTED, "fitted on": TARGET}
        general = {"method": PREDICTED, "fitted on": GENERAL}
        others = {
            method: Row(name=name, labels={"method": method}, against=dense)
            for method, name in OTHERS.items()
        }
        return [
            UNPRUNED,
            others["evit"],
            Row(name="A-ViT", against=dense, empty="A-ViT is not built: as published it masks"),
            others["tome"],
            Row(name="Patch Ranking", labels=own, against=dense),
            Row(
                name="Patch Ranking, ImageNet-trained",
                labels=general,
                against=dense,
                empty="" if there else f"needs {GENERAL} among --datasets",
            ),
            others["clsattn"],
            others["random"],
        ]
