"""Studies of predictors: what they learn from, by which network and loss, and where they serve."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.datasets.base import Dataset
from harness.datasets.few_shot import SHOTS
from harness.studies.workshop import Line, Workshop, study
from zoo.fit import LOSSES
from zoo.golden import SCORES, GoldenConfig
from zoo.predictor import ARCHITECTURES
from zoo.vit import ReducedViT

TARGETS: tuple[dict[str, Any], ...] = (
    {"window": 3, "stride": 2},
    {"window": 2, "stride": 1, "approximate": "follow:0"},
    {"window": 3, "stride": 1, "approximate": "follow:0"},
    {"window": 2, "stride": 1, "approximate": "follow:4"},
)


@study(
    "Golden and predicted rankings by score (paper: Table 1)",
    "Which score finds the patches that accuracy needs, and can it be predicted?",
    keeps=(0.8, 0.7, 0.6, 0.5),
)
def scores(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune by golden rankings of three scores, and by predictors fitted to each."""
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
            labels = {
                "network": arch,
                "width": str(width),
                "parameters": f"{_parameters(rows[0].vit):,}",
                "its GFLOPs": f"{shop.gflops(rows[0]) - without:.4f}",
            }
            yield Line(labels, rows, keep)


def _parameters(vit: ReducedViT) -> int:
    assert vit.reducer is not None
    return sum(parameter.numel() for parameter in vit.reducer.parameters())


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


@study(
    "Golden rankings to learn from",
    "Which windows, and which cheap way, make the best teacher?",
    keeps=(0.6, 0.3),
)
def targets(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Fit to golden rankings made in several ways; all are compared with the study's own."""
    truth = shop.truth(dataset, shop.golden())
    ways = [shop.golden()]
    plain: dict[str, Any] = {"greedy": None, "approximate": None}
    ways += [way for change in TARGETS if (way := shop.golden(**plain | change)) not in ways]
    for keep in keeps:
        for way in ways:
            fits = shop.fitted(shop.config.datasets, way)
            rows = shop.predicted(fits, keep, truth, _described(way))
            yield Line({"target": _described(way)}, rows, keep)


def _described(way: GoldenConfig) -> str:
    """Return windows and approximation of a way in words."""
    how = "" if way.approximate is None else f", {way.approximate}"
    return f"{way.window} x {way.window} by {way.stride}{how}"


@study(
    "Ranked images per class that a predictor learns from",
    "How many images must be ranked?",
    keeps=(0.6, 0.3),
)
def shots(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Fit on few ranked images per class; all of them come first."""
    golden = shop.golden()
    truth = shop.truth(dataset, golden)
    most = min(shop.most_shots(name, golden) for name in shop.config.datasets)
    if too_many := [k for k in SHOTS if k > most]:
        shop.progress.say(
            f"left out: {', '.join(map(str, too_many))} images per class; a class has {most} "
            "ranked ones"
        )
    for keep in keeps:
        for count in (None, *reversed([k for k in SHOTS if k <= most])):
            fits = shop.fitted(shop.config.datasets, golden, shots=count)
            name = "all" if count is None else str(count)
            rows = shop.predicted(fits, keep, truth, f"{name} shots")
            yield Line({"images per class": name, "images": str(fits[0].images)}, rows, keep)
