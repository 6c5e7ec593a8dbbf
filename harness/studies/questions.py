"""Every question that ``patchrank study NAME`` answers, in the order: predictors, pruning, learned tokens."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from harness.studies.study import MERGED, PREDICTED, Study, StudyLine, study
from zoo.core.recipes import LOSSES, SCORES

if TYPE_CHECKING:
    from harness.measure.rows import Variant
    from harness.studies.case import StudyCase

DROPPING = ("clsattn", "evit", "evitfuse", "random")
WAYS = {"none": "", "T": "t", "V+T": "vt"}
COUNTS = (16, 4, 32)
KINDS: dict[str, dict[str, Any]] = {
    "V+T, coupled": {"coupling": "offset"},
    "V+T, coupled as printed": {"coupling": "printed"},
    "V+T, independent": {"coupling": "none"},
    "V": {"tokens": "v"},
    "T": {"tokens": "t"},
    "T, of each class's own": {"tokens": "t", "class_specific": True},
    "T, without anchor (CoOp)": {"tokens": "t", "anchor": 0.0},
}


def percent(keep: float) -> str:
    """Return a keep rate as it stands in a label."""
    return f"{100 * keep:g}"


def comma(blocks: Sequence[int]) -> str:
    """Return blocks as they stand in a label."""
    return ", ".join(map(str, blocks))


@study(
    "Golden and predicted rankings by score (paper: Table 1)",
    (0.8, 0.7, 0.6, 0.5),
    labels=True,
    plot=("keep", "score", "ranking"),
)
def scores(on: "StudyCase") -> Iterator[StudyLine]:
    """Which score finds the patches that accuracy needs, and can it be predicted?"""
    for score in SCORES:
        golden = on.golden(score=score)
        predictors, truth = on.predictors(golden), on.truth(golden)
        for keep in on.keeps:
            yield StudyLine({"score": score, "ranking": "golden"}, on.oracle(golden, keep), keep)
            yield StudyLine({"score": score, "ranking": "predicted"}, on.predicted(predictors, keep, truth), keep)


@study("Predictors fitted on one dataset, judged on another (paper: Table 2)", (0.5,))
def transfer(on: "StudyCase") -> Iterator[StudyLine]:
    """Does a predictor need images of the dataset that it serves?"""
    golden, judged = on.golden(), on.dataset.name
    rest = [name for name in on.config.datasets if name != judged]
    sources = [(judged,), *((name,) for name in rest), *([on.config.datasets] if rest else [])]
    for keep in on.keeps:
        for source in sources:
            models = on.predicted(on.predictors(golden, source), keep, on.truth(golden))
            yield StudyLine({"fitted on": " + ".join(source)}, models, keep)
        yield StudyLine({"fitted on": "(golden)"}, on.oracle(golden, keep), keep)


@study("Predictor architectures (paper: Table 6)", (0.6, 0.3))
def architectures(on: "StudyCase") -> Iterator[StudyLine]:
    """Which network predicts the golden ranking best, and does accuracy follow?"""
    from zoo.core.learned import ARCHITECTURES

    golden, recipe, full = on.golden(), on.config.fit, int(on.tower.vit.embed_dim)
    for keep in on.keeps:
        without = on.gflops(on.baseline("random", keep)[0])
        for arch, width in [("mixer", full), *((arch, recipe.width) for arch in ARCHITECTURES)]:
            predictors = on.predictors(golden, recipe=replace(recipe, arch=arch, width=width))
            models = on.predicted(predictors, keep, on.truth(golden))
            network = models[0].vit.reducer
            assert network is not None
            count, cost = sum(weight.numel() for weight in network.parameters()), on.gflops(models[0]) - without
            labels = {"network": arch, "width": str(width), "parameters": f"{count:,}", "its GFLOPs": f"{cost:.4f}"}
            yield StudyLine(labels, models, keep)


@study("Predictor losses", (0.6, 0.3))
def losses(on: "StudyCase") -> Iterator[StudyLine]:
    """Which loss leads to the best ranking, and what does the paper's printed one do?"""
    golden, recipe = on.golden(), on.config.fit
    for keep in on.keeps:
        for loss in sorted(LOSSES, key=lambda name: (name != "listnet", name)):
            predictors = on.predictors(golden, recipe=replace(recipe, loss=loss))
            models = on.predicted(predictors, keep, on.truth(golden))
            yield StudyLine({"network": recipe.arch, "loss": loss}, models, keep)


@study("Ranked images per class that a predictor learns from", (0.6, 0.3), labels=True)
def shots(on: "StudyCase") -> Iterator[StudyLine]:
    """How many images must be ranked?"""
    from harness.datasets import get_dataset
    from harness.datasets.few_shot import SHOTS, subset

    golden, names = on.golden(), on.config.datasets
    classes = {name: len(get_dataset(name).classes) for name in names}
    labels = {name: subset(get_dataset(name).split("train"), on.config.train_limit).labels for name in names}
    most = min(int((labels[name] == index).sum()) for name in names for index in range(classes[name]))
    if too_many := [count for count in SHOTS if count > most]:
        on.progress.say(f"left out: {comma(too_many)} images per class; a class has {most} ranked ones")
    for keep in on.keeps:
        for count in (None, *reversed([count for count in SHOTS if count <= most])):
            images = sum(len(labels[name]) if count is None else count * classes[name] for name in names)
            models = on.predicted(on.predictors(golden, shots=count), keep, on.truth(golden))
            name = "all" if count is None else str(count)
            yield StudyLine({"images per class": name, "images": str(images)}, models, keep)


@study(
    "Merging at a few points and in every block, and dropping, at equal GFLOPs",
    (0.6, 0.5, 0.3),
    fits=False,
    plot=("GFLOPs", "method", "ranking"),
)
def merging(on: "StudyCase") -> Iterator[StudyLine]:
    """Does rankmerge lose less than ToMe, and does a ranking earn its place where nothing is dropped?

    All rows have the cost of Patch Ranking with the predictor of the tower.
    """
    from zoo.methods.rankmerge import RANKS

    for keep in on.keeps:
        patchrank = on.untuned(keep)
        lines = {("tome", ""): on.baseline("tome", keep, cost=patchrank)}
        lines |= {(MERGED, rank): on.baseline(MERGED, keep, cost=patchrank, rank=rank) for rank in RANKS}
        for (method, rank), models in (lines | {(PREDICTED, "predictor"): [patchrank]}).items():
            yield StudyLine({"for": percent(keep), "method": method, "ranking": rank}, models, keep)


@study("Features per patch, at equal GFLOPs", (0.6, 0.5, 0.3), fits=False, foreground=True)
def patches(on: "StudyCase") -> Iterator[StudyLine]:
    """Which features per patch are near dense, and tell foreground by a linear probe, after merging and dropping?

    All rows have the cost of Patch Ranking with the predictor of the tower.
    """
    for keep in on.keeps:
        patchrank = on.untuned(keep)
        rows = {name: on.baseline(name, keep, cost=patchrank) for name in (MERGED, "tome", *DROPPING)}
        for merging in (MERGED, "tome"):
            for name, models in (
                (merging, rows[merging]),
                (PREDICTED, [patchrank]),
                *((name, rows[name]) for name in DROPPING),
            ):
                labels = {"for": percent(keep), "against": merging, "method": name}
                yield StudyLine(labels, models, f"{labels['for']} {merging}")


@study("Parts of rankmerge, at equal GFLOPs", (0.6, 0.3), fits=False)
def ablation(on: "StudyCase") -> Iterator[StudyLine]:
    """What is each part of the method worth?

    One setting is changed at a time, at the cost of random pruning, which is that of any other.
    """
    from zoo.methods.rankmerge import RankMergeConfig

    depth, quarters = on.depth, RankMergeConfig(keep=1).points(on.depth)
    thirds = tuple(depth * at // 3 for at in range(3))
    parts: dict[str, dict[str, Any]] = {
        "as it is": {},
        "distance in the grid doesn't count": {"distance": 0.0},
        "sizes don't count": {"size_power": 0.0},
        "plain means, not stretched": {"rescale": False},
        "the same share merged at each point": {"schedule": "geometric"},
        "the same number merged at each point": {"schedule": "linear"},
        "the first block left alone": {"reduce_at": quarters[1:]},
        "three points, evenly from the first block on": {"reduce_at": thirds, "schedule": "geometric"},
        "every second block, from the first on": {"reduce_at": tuple(range(0, depth, 2))},
    }
    for keep in on.keeps:
        cost = on.baseline("random", keep)[0]
        for name, options in parts.items():
            labels = {"for": percent(keep), "changed": name}
            yield StudyLine(labels, on.baseline(MERGED, keep, cost=cost, **options), keep)


@study("Reduction point", (0.6,), plot=("before block", "ranking"))
def blocks(on: "StudyCase") -> Iterator[StudyLine]:
    """Before which block do tokens go at the least loss, for one keep rate or one cost?"""
    usual = on.golden()
    yield from _at_blocks(on, range(on.depth))
    for keep in on.keeps:
        cost = on.predicted(on.predictors(usual), keep, on.truth(usual))[0]
        for block in range(on.depth):
            golden = on.golden(block=block)
            models = on.predicted(on.predictors(golden), keep, on.truth(golden), cost)
            ranking = f"predicted, cost of block {usual.block} at {percent(keep)}"
            yield StudyLine({"before block": str(block), "ranking": ranking}, models, keep)


@study("Pruning at the input, before block 0 (paper: Figure 5)", (0.6, 0.5))
def early(on: "StudyCase") -> Iterator[StudyLine]:
    """Does the golden ranking beat the class token's attention where pruning pays most?"""
    yield from _at_blocks(on, (0,))


def _at_blocks(on: "StudyCase", at: Sequence[int]) -> Iterator[StudyLine]:
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
    every = [tuple(range(first, depth, step))[:most] for step, most in ((2, 1), (2, 2), (2, 3), (1, 4), (1, depth))]
    return list(dict.fromkeys(every))


@study("One-shot against progressive pruning at equal GFLOPs", (0.6, 0.5, 0.3))
def schedule(on: "StudyCase") -> Iterator[StudyLine]:
    """Is it better to drop all tokens at once, or fewer at a time and more in the end?"""
    golden, predictors = on.golden(), on.predictors(on.golden())
    for keep in on.keeps:
        once = on.predicted(predictors, keep, on.truth(golden))[0]
        for points in schedules(golden.block, on.depth):
            models = on.predicted(predictors, keep, on.truth(golden), once, reduce_at=points)
            labels = {"for": percent(keep), "before blocks": comma(points)}
            yield StudyLine(labels | {"ranking": "predicted"}, models, keep)
            oracle = on.oracle(golden, models[0].keep, reduce_at=points)
            yield StudyLine(labels | {"ranking": "golden"}, oracle, keep)


@study(
    "Learned tokens on the dense and the pruned tower (paper: Table 5)", (0.6, 0.5), tunes=True, plot=("keep", "tuned")
)
def tuning(on: "StudyCase") -> Iterator[StudyLine]:
    """How far behind the dense tower is a pruned one once both are tuned?"""
    for (name, tokens), keep in product(WAYS.items(), (1.0, *on.keeps)):
        model = on.untuned(keep)
        labels = {"tuned": name, "model": model.model}
        if tokens:
            yield on.tuned_line(labels, model, name, on.tuned(model, tokens=tokens))
        else:
            yield StudyLine(labels, [model], name)


@study("Kinds of learned tokens", (0.6,), tunes=True)
def kinds(on: "StudyCase") -> Iterator[StudyLine]:
    """Is it worth coupling visual tokens to text tokens, or learning both at all?"""
    for keep, (name, changes) in product(on.keeps, KINDS.items()):
        model = on.untuned(keep)
        yield on.tuned_line({"tokens": name}, model, f"{keep:g}", on.tuned(model, **{"tokens": "vt", **changes}))


@study("Number of learned tokens", (0.6,), tunes=True)
def count(on: "StudyCase") -> Iterator[StudyLine]:
    """How many learned tokens pay, given that each makes every block longer?"""
    for keep in on.keeps:
        model, group = on.untuned(keep), f"{keep:g}"
        for number in COUNTS:
            yield on.tuned_line({"tokens": str(number)}, model, group, on.tuned(model, count=number))
        yield StudyLine({"tokens": "0"}, [model], group)


def four_points(depth: int) -> list[tuple[int, ...]]:
    """Return the paper's schedules (Table 7), 0-based, its best first.

    Args:
        depth: blocks of the tower. The best, before 4, 6, 8 and 10 of 12, begins earlier in a tower
            that ends before; others that don't fit are left out.

    Raises:
        ValueError: none fits.
    """
    late = min(3, depth - 7)
    paper = [tuple(range(late, late + 7, 2)), (1, 2, 3, 4), (3, 4, 5, 6), (0, 2, 4, 6)]
    fitting = [points for points in paper if points[0] >= 0 and points[-1] < depth]
    if not fitting:
        raise ValueError(f"four reduction points need 5 blocks, this tower has {depth}")
    return fitting


@study("Four reduction points of a tuned model (paper: Table 7)", (0.6,), fits=True, tunes=True)
def points(on: "StudyCase") -> Iterator[StudyLine]:
    """Where should a tuned model lose its tokens, if it does so in four steps?

    Each schedule has a predictor for its first point; then all go in one step.
    """
    for keep in on.keeps:
        models: list[Variant] = []
        for at in four_points(on.depth):
            predictors = on.predictors(on.golden(block=at[0]), [on.dataset.images_of], seeds=1)
            models += on.predicted(predictors, keep, reduce_at=at)
        for model in (*models, on.untuned(keep)):
            yield on.tuned_line(
                {"before blocks": comma(model.config["reduce_at"])}, model, f"{keep:g}", on.tuned(model)
            )


@study("Order of the phases, and prompts moved between towers", (0.6,), tunes=True)
def order(on: "StudyCase") -> Iterator[StudyLine]:
    """Must prompts be tuned last, and on the tower that they will serve?"""
    dense = on.untuned(1.0)
    on_dense = on.tuned(dense)
    for keep in on.keeps:
        model = on.untuned(keep)
        on_pruned = on.tuned(model)
        for name, served, group, prompts in (
            ("rank, predict, tune (paper)", model, f"{keep:g}", on_pruned),
            ("tune the dense tower, move to the pruned", model, f"{keep:g}", on_dense),
            ("tune the dense tower", dense, "dense", on_dense),
            (f"tune at keep {keep:g}, move to the dense", dense, "dense", on_pruned),
        ):
            yield on.tuned_line({"model": served.model, "order": name}, served, group, prompts)


@functools.cache
def list_studies() -> dict[str, Study]:
    """Return all studies by name, sorted."""
    return dict(sorted((value.name, value) for value in globals().values() if isinstance(value, Study)))
