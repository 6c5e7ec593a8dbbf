"""Studies of predictors: what they learn from, by which network and loss, and where they serve."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from harness.datasets import get_dataset
from harness.datasets.few_shot import SHOTS
from harness.measure.cost import gflops
from harness.measure.rows import Variant
from harness.studies.spec import MERGED, Label, StudyCase, StudyLine, study
from zoo.core.predictor import ARCHITECTURES
from zoo.learning.fit import LOSSES
from zoo.loading.adopt import reduce
from zoo.ranking.golden import SCORES, GoldenConfig

TARGETS: tuple[dict[str, Any], ...] = (
    {"window": 3, "stride": 2},
    {"window": 2, "stride": 2, "greedy": 28},
    {"window": 1, "stride": 1, "approximate": "follow:0"},
    {"window": 1, "stride": 1, "greedy": 49, "approximate": "follow:0"},
    {"window": 2, "stride": 1, "approximate": "follow:0"},
    {"window": 3, "stride": 1, "approximate": "follow:0"},
    {"window": 2, "stride": 1, "approximate": "follow:4"},
)
MERGES: tuple[dict[str, Any], ...] = (
    {"action": "merge", "window": 1, "stride": 1, "approximate": "follow:0"},
    {"action": "merge", "window": 1, "stride": 1, "greedy": 49, "approximate": "follow:0"},
)


@study(
    "Golden and predicted rankings by score (paper: Table 1)",
    "Which score finds the patches that accuracy needs, and can it be predicted?",
    keeps=(0.8, 0.7, 0.6, 0.5),
    labels=True,
)
def scores(on: StudyCase) -> Iterator[StudyLine]:
    """Prune by golden rankings of three scores, and by predictors fitted to each."""
    for score in SCORES:
        golden = on.golden(score=score)
        predictors, truth = on.predictors(golden), on.truth(golden)
        for keep in on.keeps:
            yield StudyLine({"score": score, "ranking": "golden"}, on.oracle(golden, keep), keep)
            yield StudyLine({"score": score, "ranking": "predicted"}, on.predicted(predictors, keep, truth), keep)


@study(
    "Predictors fitted on one dataset, judged on another (paper: Table 2)",
    "Does a predictor need images of the dataset that it serves?",
    keeps=(0.5,),
)
def transfer(on: StudyCase) -> Iterator[StudyLine]:
    """Fit on one dataset or on all, judge on another; the dataset's own predictor comes first."""
    golden, own = on.golden(), on.dataset.name
    others = [name for name in on.config.datasets if name != own]
    sources: list[tuple[str, ...]] = [(own,), *((name,) for name in others)]
    if others:
        sources.append(tuple(on.config.datasets))
    for keep in on.keeps:
        for source in sources:
            models = on.predicted(on.predictors(golden, source), keep, on.truth(golden))
            yield StudyLine({"fitted on": " + ".join(source)}, models, keep)
        yield StudyLine({"fitted on": "(golden)"}, on.oracle(golden, keep), keep)


@study(
    "Predictor architectures (paper: Table 6)",
    "Which network predicts the golden ranking best, and does accuracy follow?",
    keeps=(0.6, 0.3),
)
def architectures(on: StudyCase) -> Iterator[StudyLine]:
    """Fit every architecture by one loss, the paper's full-width Mixer first."""
    golden, recipe, dense = on.golden(), on.config.fit, on.tower.vit
    size = dense.patch_embed.img_size

    def parameters(row: Variant) -> str:
        assert row.vit.reducer is not None
        return f"{sum(weight.numel() for weight in row.vit.reducer.parameters()):,}"

    def cost(row: Variant) -> str:
        without = gflops(reduce(dense, method="random", keep=row.keep), size).gflops
        return f"{gflops(row.vit, size).gflops - without:.4f}"

    for keep in on.keeps:
        for arch, width in [("mixer", int(dense.embed_dim)), *((arch, recipe.width) for arch in ARCHITECTURES)]:
            predictors = on.predictors(golden, recipe=replace(recipe, arch=arch, width=width))
            labels: dict[str, Label] = {
                "network": arch,
                "width": str(width),
                "parameters": parameters,
                "its GFLOPs": cost,
            }
            yield StudyLine(labels, on.predicted(predictors, keep, on.truth(golden)), keep)


@study(
    "Predictor losses",
    "Which loss leads to the best ranking, and what does the paper's printed one do?",
    keeps=(0.6, 0.3),
)
def losses(on: StudyCase) -> Iterator[StudyLine]:
    """Fit one architecture by every loss, listnet first."""
    golden, recipe = on.golden(), on.config.fit
    for keep in on.keeps:
        for loss in sorted(LOSSES, key=lambda name: (name != "listnet", name)):
            predictors = on.predictors(golden, recipe=replace(recipe, loss=loss))
            models = on.predicted(predictors, keep, on.truth(golden))
            yield StudyLine({"network": recipe.arch, "loss": loss}, models, keep)


@study("Golden rankings to learn from", "Which windows, and which cheap way, make the best teacher?", keeps=(0.6, 0.3))
def targets(on: StudyCase) -> Iterator[StudyLine]:
    """Prune by predictors fitted to golden rankings made in several ways, and by those rankings.

    All are compared with the predictor fitted to the study's own. Those of merging serve rankmerge,
    beside which it stands without a ranking and by the class token's attention.
    """
    own = on.golden()
    truth = on.truth(own)
    others, merges = (
        [on.golden(**{"greedy": None, "approximate": None, **way}) for way in ways] for ways in (TARGETS, MERGES)
    )
    for keep in on.keeps:
        for golden in dict.fromkeys([own, *others]):
            models = on.predicted(on.predictors(golden), keep, truth)
            yield StudyLine({"target": _way(golden), "ranking": "predicted"}, models, keep)
            yield StudyLine({"target": _way(golden), "ranking": "golden"}, on.oracle(golden, keep), keep)
        for rank in ("none", "cls"):
            models = on.baseline(MERGED, keep, truth, rank=rank)
            yield StudyLine({"target": "(merged)", "ranking": rank}, models, keep)
        for golden in merges:
            models = on.predicted(on.predictors(golden), keep, truth)
            yield StudyLine({"target": _way(golden), "ranking": "predicted"}, models, keep)


def _way(golden: GoldenConfig) -> str:
    """Return a short name of how rankings are made."""
    merged = "merged" if golden.action == "merge" else None
    how = (merged, f"greedy by {golden.greedy}" if golden.greedy else None, golden.approximate)
    return ", ".join((f"{golden.window} x {golden.window} by {golden.stride}", *filter(None, how)))


@study(
    "Ranked images per class that a predictor learns from",
    "How many images must be ranked?",
    keeps=(0.6, 0.3),
    labels=True,
)
def shots(on: StudyCase) -> Iterator[StudyLine]:
    """Fit on few ranked images per class; all of them come first."""
    golden, names = on.golden(), on.config.datasets
    classes = {name: len(get_dataset(name).classes) for name in names}
    labels = {name: on.labels_of(name) for name in names}
    most = min(int(np.bincount(labels[name], minlength=classes[name]).min()) for name in names)
    if too_many := [count for count in SHOTS if count > most]:
        counts = ", ".join(map(str, too_many))
        on.progress.say(f"left out: {counts} images per class; a class has {most} ranked ones")
    for keep in on.keeps:
        for count in (None, *reversed([count for count in SHOTS if count <= most])):
            images = sum(len(labels[name]) if count is None else count * classes[name] for name in names)
            models = on.predicted(on.predictors(golden, shots=count), keep, on.truth(golden))
            name = "all" if count is None else str(count)
            yield StudyLine({"images per class": name, "images": str(images)}, models, keep)
