"""Studies of pruning: which method, at which blocks, in how many steps, at what cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from harness.datasets.base import Dataset
from harness.measure.rows import Variant
from harness.records.conditions import MATCHED
from harness.studies.workshop import MERGED, PREDICTED, Line, Workshop, study
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
def baselines(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Give every method without a predictor the keep rates at which it costs what patchrank does.

    Equal times are those of a precision at batch 8; all features are in the study's own.
    """
    fits = shop.fitted(shop.config.datasets, shop.golden())
    truth = shop.known(dataset.images_of)

    def baseline(method: str, what: str, keep: float) -> list[Variant]:
        return shop.baseline(method, keep, truth, what)

    targets = {keep: shop.predicted(fits, keep, truth, f"for {keep:g}") for keep in keeps}
    first = {keep: rows[0] for keep, rows in targets.items()}
    times = {dtype: shop.at_time(first, WITHOUT_PREDICTOR, dtype) for dtype in shop.config.time_dtypes}
    for keep, own in targets.items():
        what, percent, goal = f"for {keep:g}", f"{100 * keep:g}", shop.gflops(own[0])
        yield Line({"for": percent, "method": PREDICTED}, own, keep)
        for method in WITHOUT_PREDICTOR:
            rows = shop.at_cost(method, partial(baseline, method, what), goal)
            yield Line({"for": percent, "method": method, "equal": "GFLOPs"}, rows, keep)
        for (dtype, matches), method in product(times.items(), WITHOUT_PREDICTOR):
            rate, setting = matches[method, keep]
            rows = [
                replace(row, config=row.config | {MATCHED: setting})
                for row in baseline(method, f"{what} in {dtype}", rate)
            ]
            off = f"{100 * (setting['ratio'] / setting['goal'] - 1):+.1f} %"
            yield Line({"for": percent, "method": method, "equal": f"time, {dtype}", "off": off}, rows, keep)


@study(
    "Merging at a few points and in every block, and dropping, at equal GFLOPs",
    "Does rankmerge lose less than ToMe, and does a ranking earn its place where nothing is dropped?",
    keeps=(0.6, 0.5, 0.3),
)
def merging(shop: Workshop, _dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Give ToMe, and rankmerge with each kind of ranking, the keep rates at which they cost what patchrank does.

    Rankmerge's predictor is fitted to golden rankings by merging before the first block.
    """
    golden = shop.golden(block=0, action="merge", window=1, stride=1, greedy=None, approximate="follow:0")
    fits = shop.fitted(shop.config.datasets, golden)
    pruned = shop.fitted(shop.config.datasets, shop.golden())

    def merged(rank: str, keep: float) -> list[Variant]:
        if rank == "predictor":
            return shop.predicted(fits, keep, None, rank)
        return shop.baseline(MERGED, keep, None, rank, rank=rank)

    for keep in keeps:
        own = shop.predicted(pruned, keep, None, f"for {keep:g}")
        goal = shop.gflops(own[0])
        ways = {("tome", ""): lambda keep: shop.baseline("tome", keep, None, "")}
        ways |= {(MERGED, rank): partial(merged, rank) for rank in RANKS}
        for (method, rank), build in ways.items():
            rows = shop.at_cost(f"{method} {rank}", build, goal)
            rows = [replace(row, what=f"for {keep:g}, {row.what}") for row in rows]
            yield Line({"for": f"{100 * keep:g}", "method": method, "ranking": rank}, rows, keep)
        yield Line({"for": f"{100 * keep:g}", "method": PREDICTED, "ranking": "predictor"}, own, keep)


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
def ablation(shop: Workshop, _dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Change one setting of rankmerge at a time, at the cost of random pruning, which is that of any other."""
    for keep in keeps:
        goal = shop.gflops(shop.baseline("random", keep, None, "")[0])
        for name, options in parts(len(shop.dense.blocks)).items():
            build = partial(shop.baseline, MERGED, truth=None, what=f"{name} for {keep:g}", **options)
            yield Line({"for": f"{100 * keep:g}", "changed": name}, shop.at_cost(name, build, goal), keep)


@study(
    "Reduction point", "Before which block do tokens go at the least loss, for one keep rate or one cost?", keeps=(0.6,)
)
def blocks(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune before every block to one keep rate, then to the cost of the study's own block."""
    every = range(len(shop.dense.blocks))
    yield from _at_blocks(shop, dataset, every, keeps)
    goldens = [shop.golden(block=block) for block in every]
    truth = [shop.truth(dataset, golden) for golden in goldens]
    fits = [shop.fitted(shop.config.datasets, golden) for golden in goldens]

    def predicted(block: int, what: str, keep: float) -> list[Variant]:
        return shop.predicted(fits[block], keep, truth[block], f"block {block} {what}")

    own = shop.golden().block
    for keep in keeps:
        goal = shop.gflops(predicted(own, "", keep)[0])
        ranking = f"predicted, cost of block {own} at {100 * keep:g}"
        for block in every:
            build = partial(predicted, block, f"for {keep:g}")
            rows = shop.at_cost(f"block {block}", build, goal)
            yield Line({"before block": str(block), "ranking": ranking}, rows, keep)


@study(
    "Pruning at the input, before block 0 (paper: Figure 5)",
    "Does the golden ranking beat the class token's attention where pruning pays most?",
    keeps=(0.6, 0.5),
)
def early(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune before block 0, where the class token hasn't attended to anything yet."""
    yield from _at_blocks(shop, dataset, (0,), keeps)


def _at_blocks(shop: Workshop, dataset: Dataset, at: Sequence[int], keeps: Sequence[float]) -> Iterator[Line]:
    """Yield golden, predicted, class token's attention and random order at some blocks."""
    for block in at:
        golden = shop.golden(block=block)
        truth = shop.truth(dataset, golden)
        fits = shop.fitted(shop.config.datasets, golden)
        for keep in keeps:
            what = f"block {block}"
            rankings = {
                "golden": shop.oracle(truth, keep, what),
                "predicted": shop.predicted(fits, keep, truth, what),
                "clsattn": shop.baseline("clsattn", keep, truth, what, reduce_at=(block,)),
                "random": shop.baseline("random", keep, truth, what, reduce_at=(block,)),
            }
            for ranking, rows in rankings.items():
                yield Line({"before block": str(block), "ranking": ranking}, rows, keep)


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
def schedule(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune in one step or in several, by one ranking made at the first."""
    golden = shop.golden()
    truth = shop.truth(dataset, golden)
    fits = shop.fitted(shop.config.datasets, golden)

    def predicted(points: Sequence[int], what: str, keep: float) -> list[Variant]:
        return shop.predicted(fits, keep, truth, what, reduce_at=points)

    for keep in keeps:
        goal = shop.gflops(predicted((golden.block,), "", keep)[0])
        for points in schedules(golden.block, len(shop.dense.blocks)):
            what = f"at {points} for {keep:g}"
            rows = shop.at_cost(f"at {points}", partial(predicted, points, what), goal)
            labels = {"for": f"{100 * keep:g}", "before blocks": ", ".join(map(str, points))}
            yield Line(labels | {"ranking": "predicted"}, rows, keep)
            rows = shop.oracle(truth, rows[0].keep, what, reduce_at=points)
            yield Line(labels | {"ranking": "golden"}, rows, keep)


@study(
    "One ranking against scoring anew at each reduction point, at equal GFLOPs",
    "Do later blocks know better which of the remaining patches matter?",
    keeps=(0.6, 0.3),
)
def rescore(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Rank once, carry the ranking along, or score what is left anew."""
    recipe = shop.config.fit
    if not architecture(recipe.arch).any_subset:
        recipe = replace(recipe, arch=SCORES_SUBSETS)
    golden = shop.golden()
    once = (golden.block,)
    points = tuple(range(golden.block, len(shop.dense.blocks), 2))[:3]
    truth = shop.truth(dataset, golden)
    fits = [shop.fitted(shop.config.datasets, shop.golden(block=block), recipe) for block in points]

    def predicted(what: str, anew: bool, at: tuple[int, ...], keep: float) -> list[Variant]:
        later = fits[1:] if anew else ()
        return shop.predicted(fits[0], keep, truth, what, later=later, reduce_at=at, rescore=anew)

    def attention(what: str, at: tuple[int, ...], keep: float) -> list[Variant]:
        return shop.baseline("clsattn", keep, truth, what, reduce_at=at)

    for keep in keeps:
        goal = shop.gflops(predicted("", False, once, keep)[0])
        ways: dict[tuple[str, str], Callable[[float], list[Variant]]] = {
            (recipe.arch, "once"): partial(predicted, f"once for {keep:g}", False, once),
            (recipe.arch, "carried"): partial(predicted, f"carried for {keep:g}", False, points),
            (recipe.arch, "anew"): partial(predicted, f"anew for {keep:g}", True, points),
            ("clsattn", "once"): partial(attention, f"once for {keep:g}", once),
            ("clsattn", "anew"): partial(attention, f"anew for {keep:g}", points),
        }
        for (by, way), build in ways.items():
            before = ", ".join(map(str, once if way == "once" else points))
            labels = {"for": f"{100 * keep:g}", "by": by, "scored": way, "before blocks": before}
            yield Line(labels, shop.at_cost(f"{by} {way}", build, goal), keep)
