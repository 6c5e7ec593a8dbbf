"""Studies of pruning: which method, at which blocks, in how many steps, at what cost."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from harness.measure.rows import Variant
from harness.records.conditions import MATCHED
from harness.studies.spec import MERGED, PREDICTED, EqualCost, Label, StudyCase, StudyLine, study
from zoo.core.predictor import architecture
from zoo.core.reducer import METHODS, configure
from zoo.methods.rankmerge import RANKS

SCORES_SUBSETS = "mlp"  # what is fitted where the study's own network wants the whole grid
DEPTH = 12  # of a tower on which methods are asked whether they predict
WITHOUT_PREDICTOR = sorted(
    name
    for name, cls in METHODS.items()
    if cls.by_default and not configure(name, {"keep": 0.5}, DEPTH).predictor_blocks(DEPTH)
)


@study(
    "Methods at equal GFLOPs and at equal time",
    "Is Patch Ranking ahead of other methods for the same cost?",
    keeps=(0.6, 0.5, 0.3),
)
def baselines(on: StudyCase) -> Iterator[StudyLine]:
    """Give every method without a predictor the keep rates at which it costs what patchrank does.

    Equal times are those of a precision at batch 8; all features are in the study's own.
    """

    def off(row: Variant) -> str:
        return f"{100 * (row.config[MATCHED]['ratio'] / row.config[MATCHED]['goal'] - 1):+.1f} %"

    predictors, truth = on.predictors(on.golden()), on.known()
    for keep in on.keeps:
        own = on.predicted(predictors, keep, truth)
        labels = {"for": f"{100 * keep:g}"}
        yield StudyLine(labels | {"method": PREDICTED}, own, keep)
        for dtype, method in product((None, *on.config.time_dtypes), WITHOUT_PREDICTOR):
            equal: dict[str, Label] = {"equal": "GFLOPs"}
            if dtype is not None:
                equal = {"equal": f"time, {dtype}", "off": off}
            models = on.baseline(method, keep, truth)
            yield StudyLine({**labels, "method": method, **equal}, models, keep, cost=EqualCost(own[0], dtype=dtype))


@study(
    "Merging at a few points and in every block, and dropping, at equal GFLOPs",
    "Does rankmerge lose less than ToMe, and does a ranking earn its place where nothing is dropped?",
    keeps=(0.6, 0.5, 0.3),
)
def merging(on: StudyCase) -> Iterator[StudyLine]:
    """Give ToMe, and rankmerge with each kind of ranking, the keep rates at which they cost what patchrank does.

    Rankmerge's predictor is fitted to golden rankings by merging before the first block.
    """
    golden = on.golden(block=0, action="merge", window=1, stride=1, greedy=None, approximate="follow:0")
    predictors, pruned = on.predictors(golden), on.predictors(on.golden())
    for keep in on.keeps:
        own, percent = on.predicted(pruned, keep), f"{100 * keep:g}"
        ways = {("tome", ""): on.baseline("tome", keep)}
        for rank in RANKS:
            learned = rank == "predictor"
            ways[MERGED, rank] = on.predicted(predictors, keep) if learned else on.baseline(MERGED, keep, rank=rank)
        for (method, rank), models in ways.items():
            labels = {"for": percent, "method": method, "ranking": rank}
            yield StudyLine(labels, models, keep, cost=EqualCost(own[0]))
        yield StudyLine({"for": percent, "method": PREDICTED, "ranking": "predictor"}, own, keep)


def parts(depth: int) -> dict[str, dict[str, Any]]:
    """Return what is changed about rankmerge in a tower of so many blocks, by name."""
    half, third = depth // 2, depth // 3
    return {
        "as it is": {},
        "distance in the grid doesn't count": {"distance": 0.0},
        "sizes don't count": {"size_power": 0.0},
        "plain means, not stretched": {"rescale": False},
        "the same number merged at each point": {"schedule": "linear"},
        "two points": {"reduce_at": (0, half)},
        "four points, from the first block on": {"reduce_at": tuple(sorted({depth * at // 4 for at in range(4)}))},
        "two points, the first block left alone": {"reduce_at": tuple(sorted({max(1, third), 2 * third}))},
    }


@study("Parts of rankmerge, at equal GFLOPs", "What is each part of the method worth?", keeps=(0.6, 0.3))
def ablation(on: StudyCase) -> Iterator[StudyLine]:
    """Change one setting of rankmerge at a time, at the cost of random pruning, which is that of any other."""
    for keep in on.keeps:
        cost = EqualCost(on.baseline("random", keep)[0])
        for name, options in parts(on.depth).items():
            labels = {"for": f"{100 * keep:g}", "changed": name}
            yield StudyLine(labels, on.baseline(MERGED, keep, **options), keep, cost=cost)


@study(
    "Reduction point", "Before which block do tokens go at the least loss, for one keep rate or one cost?", keeps=(0.6,)
)
def blocks(on: StudyCase) -> Iterator[StudyLine]:
    """Prune before every block to one keep rate, then to the cost of the study's own block."""
    every, own = range(on.depth), on.golden().block
    yield from _at_blocks(on, every)
    for keep in on.keeps:
        cost = EqualCost(on.predicted(on.predictors(on.golden()), keep, on.truth(on.golden()))[0])
        for block in every:
            golden = on.golden(block=block)
            models = on.predicted(on.predictors(golden), keep, on.truth(golden))
            labels = {"before block": str(block), "ranking": f"predicted, cost of block {own} at {100 * keep:g}"}
            yield StudyLine(labels, models, keep, cost=cost)


@study(
    "Pruning at the input, before block 0 (paper: Figure 5)",
    "Does the golden ranking beat the class token's attention where pruning pays most?",
    keeps=(0.6, 0.5),
)
def early(on: StudyCase) -> Iterator[StudyLine]:
    """Prune before block 0, where the class token hasn't attended to anything yet."""
    yield from _at_blocks(on, (0,))


def _at_blocks(on: StudyCase, at: Sequence[int]) -> Iterator[StudyLine]:
    """Yield golden, predicted, class token's attention and random order at some blocks."""
    for block, keep in product(at, on.keeps):
        golden = on.golden(block=block)
        truth = on.truth(golden)
        rankings = {
            "golden": on.oracle(golden, keep),
            "predicted": on.predicted(on.predictors(golden), keep, truth),
            "clsattn": on.baseline("clsattn", keep, truth, reduce_at=(block,)),
            "random": on.baseline("random", keep, truth, reduce_at=(block,)),
        }
        for ranking, models in rankings.items():
            yield StudyLine({"before block": str(block), "ranking": ranking}, models, keep)


def schedules(first: int, depth: int) -> list[tuple[int, ...]]:
    """Return reduction points to compare, all beginning at ``first``: one, then ever more."""
    every: list[tuple[int, ...]] = [(first,)]
    for step, most in ((2, 2), (2, 3), (1, 4), (1, depth)):
        points = tuple(range(first, depth, step))[:most]
        if len(points) > 1 and points not in every:
            every.append(points)
    return every


@study(
    "One-shot against progressive pruning at equal GFLOPs",
    "Is it better to drop all tokens at once, or fewer at a time and more in the end?",
    keeps=(0.6, 0.5, 0.3),
)
def schedule(on: StudyCase) -> Iterator[StudyLine]:
    """Prune in one step or in several, by one ranking made at the first."""
    golden, predictors = on.golden(), on.predictors(on.golden())
    for keep in on.keeps:
        once = on.predicted(predictors, keep, on.truth(golden))[0]
        for points in schedules(golden.block, on.depth):
            models = on.predicted(predictors, keep, on.truth(golden), reduce_at=points)
            labels = {"for": f"{100 * keep:g}", "before blocks": ", ".join(map(str, points))}
            cost = EqualCost(once, models[0])  # a golden row has that of the predicted one
            yield StudyLine(labels | {"ranking": "predicted"}, models, keep, cost=cost)
            oracle = on.oracle(golden, keep, reduce_at=points)
            yield StudyLine(labels | {"ranking": "golden"}, oracle, keep, cost=cost)


@study(
    "One ranking against scoring anew at each reduction point, at equal GFLOPs",
    "Do later blocks know better which of the remaining patches matter?",
    keeps=(0.6, 0.3),
)
def rescore(on: StudyCase) -> Iterator[StudyLine]:
    """Rank once, carry the ranking along, or score what is left anew."""
    recipe = on.config.fit
    if not architecture(recipe.arch).any_subset:
        recipe = replace(recipe, arch=SCORES_SUBSETS)
    golden = on.golden()
    once, points = (golden.block,), tuple(range(golden.block, on.depth, 2))[:3]
    first, *later = [on.predictors(on.golden(block=block), recipe=recipe) for block in points]
    truth = on.truth(golden)
    for keep in on.keeps:
        own = on.predicted(first, keep, truth, reduce_at=once, rescore=False)
        ways = {
            (recipe.arch, "once"): own,
            (recipe.arch, "carried"): on.predicted(first, keep, truth, reduce_at=points, rescore=False),
            (recipe.arch, "anew"): on.predicted(first, keep, truth, later=later, reduce_at=points, rescore=True),
            ("clsattn", "once"): on.baseline("clsattn", keep, truth, reduce_at=once),
            ("clsattn", "anew"): on.baseline("clsattn", keep, truth, reduce_at=points),
        }
        for (by, way), models in ways.items():
            before = ", ".join(map(str, once if way == "once" else points))
            labels = {"for": f"{100 * keep:g}", "by": by, "scored": way, "before blocks": before}
            yield StudyLine(labels, models, keep, cost=EqualCost(own[0]))
