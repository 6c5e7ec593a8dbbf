"""Studies of predictors: what they learn from, by which network and loss, and where they serve."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.datasets.base import Dataset
from harness.datasets.few_shot import SHOTS
from harness.studies.workshop import MERGED, Line, Workshop, study
from zoo.core.predictor import ARCHITECTURES
from zoo.learning.fit import LOSSES
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
def scores(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune by golden rankings of three scores, and by predictors fitted to each."""
    shop.scores = SCORES
    for score in SCORES:
        golden = shop.golden(score=score)
        truth = shop.truth(dataset, golden)
        fits = shop.fitted(shop.config.datasets, golden)
        for keep in keeps:
            oracle = shop.oracle(truth, keep, score)
            yield Line({"score": score, "ranking": "golden"}, oracle, keep)
            rows = shop.predicted(fits, keep, truth, score)
            yield Line({"score": score, "ranking": "predicted"}, rows, keep)


@study(
    "Predictors fitted on one dataset, judged on another (paper: Table 2)",
    "Does a predictor need images of the dataset that it serves?",
    keeps=(0.5,),
)
def transfer(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Fit on one dataset or on all, judge on another; the dataset's own predictor comes first."""
    golden = shop.golden()
    truth = shop.truth(dataset, golden)
    others = [name for name in shop.config.datasets if name != dataset.name]
    sources: list[tuple[str, ...]] = [(dataset.name,), *((name,) for name in others)]
    if others:
        sources.append(tuple(shop.config.datasets))
    for keep in keeps:
        for source in sources:
            name = " + ".join(source)
            rows = shop.predicted(shop.fitted(source, golden), keep, truth, f"on {name}")
            yield Line({"fitted on": name}, rows, keep)
        yield Line({"fitted on": "(golden)"}, shop.oracle(truth, keep, "golden"), keep)


@study(
    "Predictor architectures (paper: Table 6)",
    "Which network predicts the golden ranking best, and does accuracy follow?",
    keeps=(0.6, 0.3),
)
def architectures(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Fit every architecture by one loss, the paper's full-width Mixer first."""
    golden = shop.golden()
    truth = shop.truth(dataset, golden)
    full = int(shop.dense.embed_dim)
    shapes = [("mixer", full), *((arch, shop.config.fit.width) for arch in ARCHITECTURES)]
    for keep in keeps:
        without = shop.gflops(shop.baseline("random", keep, None, "")[0])
        for arch, width in shapes:
            recipe = replace(shop.config.fit, arch=arch, width=width)
            fits = shop.fitted(shop.config.datasets, golden, recipe)
            rows = shop.predicted(fits, keep, truth, f"{arch} {width}")
            reducer = rows[0].vit.reducer
            assert reducer is not None
            labels = {
                "network": arch,
                "width": str(width),
                "parameters": f"{sum(weight.numel() for weight in reducer.parameters()):,}",
                "its GFLOPs": f"{shop.gflops(rows[0]) - without:.4f}",
            }
            yield Line(labels, rows, keep)


@study(
    "Predictor losses",
    "Which loss leads to the best ranking, and what does the paper's printed one do?",
    keeps=(0.6, 0.3),
)
def losses(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Fit one architecture by every loss, listnet first."""
    golden = shop.golden()
    truth = shop.truth(dataset, golden)
    for keep in keeps:
        for loss in sorted(LOSSES, key=lambda name: (name != "listnet", name)):
            recipe = replace(shop.config.fit, loss=loss)
            fits = shop.fitted(shop.config.datasets, golden, recipe)
            rows = shop.predicted(fits, keep, truth, loss)
            yield Line({"network": recipe.arch, "loss": loss}, rows, keep)


@study("Golden rankings to learn from", "Which windows, and which cheap way, make the best teacher?", keeps=(0.6, 0.3))
def targets(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune by predictors fitted to golden rankings made in several ways, and by those rankings.

    All are compared with the predictor fitted to the study's own. Those of merging serve rankmerge,
    beside which it stands without a ranking and by the class token's attention.
    """
    own = shop.golden()
    truth = shop.truth(dataset, own)
    others, merges = (
        [replace(own, **{"greedy": None, "approximate": None, **way}) for way in ways] for ways in (TARGETS, MERGES)
    )
    for keep in keeps:
        for way in dict.fromkeys([own, *others]):
            name = _way(way)
            rows = shop.predicted(shop.fitted(shop.config.datasets, way), keep, truth, name)
            yield Line({"target": name, "ranking": "predicted"}, rows, keep)
            oracle = shop.oracle(shop.truth(dataset, way), keep, name)
            yield Line({"target": name, "ranking": "golden"}, oracle, keep)
        for rank in ("none", "cls"):
            rows = shop.baseline(MERGED, keep, truth, rank, rank=rank)
            yield Line({"target": "(merged)", "ranking": rank}, rows, keep)
        for way in merges:
            rows = shop.predicted(shop.fitted(shop.config.datasets, way), keep, truth, _way(way))
            yield Line({"target": _way(way), "ranking": "predicted"}, rows, keep)


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
def shots(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Fit on few ranked images per class; all of them come first."""
    golden = shop.golden()
    truth = shop.truth(dataset, golden)
    most = min(shop.most_shots(name, golden) for name in shop.config.datasets)
    if too_many := [k for k in SHOTS if k > most]:
        counts = ", ".join(map(str, too_many))
        shop.progress.say(f"left out: {counts} images per class; a class has {most} ranked ones")
    for keep in keeps:
        for count in (None, *reversed([k for k in SHOTS if k <= most])):
            fits = shop.fitted(shop.config.datasets, golden, shots=count)
            name = "all" if count is None else str(count)
            rows = shop.predicted(fits, keep, truth, f"{name} shots")
            yield Line({"images per class": name, "images": str(fits[0].images)}, rows, keep)
