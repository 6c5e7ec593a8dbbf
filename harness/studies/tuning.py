"""Studies of learned tokens: how many, of which kind, tuned when and on which tower."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from statistics import fmean
from typing import Any, get_args, get_type_hints

from harness.base.table import Cell, Table
from harness.base.table import points as in_points
from harness.datasets.base import Dataset
from harness.datasets.few_shot import undrawn
from harness.measure.rows import Variant
from harness.measure.tuning import Performance, Tuned, Tuner, step_runs
from harness.records.statistics import Interval, mean_interval
from harness.studies.workshop import Line, TuningShop, Workshop, study
from zoo.core.messages import expected
from zoo.learning.prompt_learner import TuneConfig

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
AS_IT_IS = "as it is"


@study(
    "Learned tokens on the dense and the pruned tower (paper: Table 5)",
    "How far behind the dense tower is a pruned one once both are tuned?",
    keeps=(0.6, 0.5),
    tunes=True,
)
def tuning(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Compare pruned models with the dense one, each tuned in the same way."""
    tuner = TuningShop(shop, dataset)
    for name, tokens in WAYS.items():
        for keep in (1.0, *keeps):
            row = tuner.row(keep)
            labels = {"tuned": name, "model": row.model}
            if tokens:
                yield tuner.line(labels, row, name, tuner.tuned(row, tokens=tokens))
            else:
                yield Line(labels, [row], name)


@study(
    "Kinds of learned tokens",
    "Is it worth coupling visual tokens to text tokens, or learning both at all?",
    keeps=(0.6,),
    tunes=True,
)
def kinds(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Leave out or change one thing at a time, the paper's kind first."""
    tuner = TuningShop(shop, dataset)
    for keep in keeps:
        row = tuner.row(keep)
        for name, changes in KINDS.items():
            tuned = tuner.tuned(row, **{"tokens": "vt", **changes})
            yield tuner.line({"tokens": name}, row, f"{keep:g}", tuned)


@study(
    "Number of learned tokens",
    "How many learned tokens pay, given that each makes every block longer?",
    keeps=(0.6,),
    tunes=True,
)
def count(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Vary the number of learned tokens, the paper's 16 first, then none at all."""
    tuner = TuningShop(shop, dataset)
    for keep in keeps:
        row, group = tuner.row(keep), f"{keep:g}"
        for number in COUNTS:
            tuned = tuner.tuned(row, count=number)
            yield tuner.line({"tokens": str(number)}, row, group, tuned)
        yield Line({"tokens": "0"}, [row], group)


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


@study(
    "Four reduction points of a tuned model (paper: Table 7)",
    "Where should a tuned model lose its tokens, if it does so in four steps?",
    keeps=(0.6,),
    tunes=True,
)
def points(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Prune in four steps, each schedule with a predictor for its first, then all in one step."""
    tuner = TuningShop(shop, dataset)
    for keep in keeps:
        rows = []
        for at in four_points(len(shop.dense.blocks)):
            fits = shop.fitted([dataset.images_of], shop.golden(block=at[0]))[:1]
            rows += shop.predicted(fits, keep, None, f"at {at}", reduce_at=at)
        for row in (*rows, tuner.row(keep)):
            labels = {"before blocks": ", ".join(map(str, row.config["reduce_at"]))}
            yield tuner.line(labels, row, f"{keep:g}", tuner.tuned(row))


@study(
    "Order of the phases, and prompts moved between towers",
    "Must prompts be tuned last, and on the tower that they will serve?",
    keeps=(0.6,),
    tunes=True,
)
def order(shop: Workshop, dataset: Dataset, keeps: Sequence[float]) -> Iterator[Line]:
    """Tune before or after ranking, on the tower that will serve or on the other.

    The pruned models come first, the paper's order ahead, then the dense ones.
    """
    tuner = TuningShop(shop, dataset)
    dense = tuner.row(1.0)
    on_dense = tuner.tuned(dense)
    for keep in keeps:
        row, group = tuner.row(keep), f"{keep:g}"
        on_pruned, moved = tuner.tuned(row), tuner.moved(row, on_dense)
        orders = {
            "rank, predict, tune (paper)": [(row, one) for one in on_pruned],
            "tune the dense tower, move to the pruned": [(row, one) for one in moved],
            "tune the dense tower, rank, predict": _ranked_later(shop, tuner, keep, on_dense),
        }
        for name, pairs in orders.items():
            rows, prompts = zip(*pairs, strict=True)
            yield Line({"model": row.model, "order": name}, rows, group, prompts)
        labels = {"model": dense.model, "order": "tune the dense tower"}
        yield tuner.line(labels, dense, "dense", on_dense)
        labels = {"model": dense.model, "order": f"tune at keep {keep:g}, move to the dense"}
        yield tuner.line(labels, dense, "dense", tuner.moved(dense, on_pruned))


def _ranked_later(
    shop: Workshop, tuner: TuningShop, keep: float, tuned: Sequence[Tuned]
) -> list[tuple[Variant, Tuned]]:
    """Prune each tuned dense tower by a predictor of its own rankings."""
    pairs = []
    for one in tuned:
        fits = [shop.ranked_after(tuner.dataset, one, shop.golden())]
        (row,) = shop.predicted(fits, keep, None, "ranked after tuning")
        pairs.append((row, shop.moved(row, one)))
    return pairs


def changed(recipe: TuneConfig, changes: str) -> TuneConfig:
    """Return a recipe with changes such as ``anchor=2,init=a photo of a``; fields as `TuneConfig` has them.

    Raises:
        ValueError: no change, an unknown field, a value of another type, or what `TuneConfig` refuses.
    """
    hints = get_type_hints(TuneConfig)
    known = [field.name for field in fields(TuneConfig) if field.name != "seed"]  # which draws
    values: dict[str, Any] = {}
    for part in changes.split(","):
        word, equals, text = (one.strip() for one in part.partition("="))
        name = word.replace("-", "_")
        if not equals or not text:
            raise ValueError(f"--try {changes!r}: expected FIELD=VALUE, or several with commas between them")
        if name not in known:
            raise ValueError(f"--try {changes!r}: field {word!r}: {expected(name, known)}")
        kinds = get_args(hints[name]) or (hints[name],)
        if text == "none" and type(None) in kinds:
            values[name] = None
            continue
        kind = kinds[0]
        try:
            values[name] = {"true": True, "false": False}[text] if kind is bool else kind(text)
        except (KeyError, ValueError):
            what = "true or false" if kind is bool else {int: "a whole number", float: "a number"}[kind]
            raise ValueError(f"--try {changes!r}: {word}={text}: expected {what}") from None
    return replace(recipe, **values)


@dataclass(frozen=True)
class Trial:
    """What a recipe gave on a dataset, by seed, on images of val that it never saw."""

    recipe: str
    dataset: str
    _: KW_ONLY
    images: tuple[int, ...]  # judged
    untuned: tuple[Performance, ...]
    tuned: tuple[Performance, ...]


def trial_runs(tuner: Tuner, recipes: Mapping[str, TuneConfig], shots: int, seeds: range) -> float:
    """Return about how many runs of a row on an image trials of recipes take."""
    few = tuner.few(shots, seeds[0])
    judged, classes = len(undrawn(tuner.dataset, few)), len(tuner.dataset.classes)
    every = (one.total_steps(len(few.train)) * step_runs(one, classes) + judged for one in recipes.values())
    return len(seeds) * sum(every)


def trials(tuner: Tuner, row: Variant, recipes: Mapping[str, TuneConfig], shots: int, seeds: range) -> Iterator[Trial]:
    """Tune a row by each recipe from the same images, and judge it by all images of val that a draw left.

    ``shots`` are images per class. Neither train nor test is judged by, so that a recipe can be
    chosen by what this yields, and test is still new.

    Raises:
        ValueError: what `Tuner.tuned` refuses, or a draw that leaves nothing.
    """
    left = {seed: undrawn(tuner.dataset, tuner.few(shots, seed)) for seed in seeds}
    images = tuple(map(len, left.values()))
    for name, recipe in recipes.items():
        judged = []
        for seed, rest in left.items():
            tuned = tuner.tuned([row], shots, seed, replace(recipe, seed=seed))[row.key]
            judged.append(tuner.judge(row, tuned, rest))
        untuned, own = zip(*judged, strict=True)
        yield Trial(name, tuner.dataset.name, images=images, untuned=untuned, tuned=own)


def trials_table(every: Sequence[Trial], title: str) -> Table:
    """Lay out trials of the same recipes on some datasets, the first recipe being what others are compared with."""
    by = {(one.recipe, one.dataset): one for one in every}
    recipes, datasets = (list(dict.fromkeys(names)) for names in zip(*by, strict=True))
    rows = []
    for recipe in recipes:
        own = [by[recipe, name] for name in datasets]
        first = [by[recipes[0], name] for name in datasets]
        cells = {"recipe": Cell(recipe)}
        cells |= {one.dataset: Cell(f"{100 * fmean(two.top1 for two in one.tuned):.1f}") for one in own}
        cells["to untuned"] = in_points(_over_seeds([_gain(one.tuned, one.untuned) for one in own]))
        apart = [_gain(one.tuned, other.tuned) for one, other in zip(own, first, strict=True)]
        cells["to first"] = in_points(_over_seeds(apart) if recipe != recipes[0] else None)
        cells["loss"] = Cell(f"{fmean(fmean(two.loss for two in one.tuned) for one in own):.4f}")
        rows.append(list(cells.values()))
        heads = list(cells)
    untuned = (f"{name} {100 * fmean(one.top1 for one in by[recipes[0], name].untuned):.1f}" for name in datasets)
    loss = fmean(fmean(one.loss for one in by[recipes[0], name].untuned) for name in datasets)
    images = (f"{name} {' + '.join(map(str, by[recipes[0], name].images))}" for name in datasets)
    caption = (
        "top-1 in %, mean over seeds, on images of val that were drawn neither to learn from nor to stop by "
        f"({', '.join(images)}); differences in points, mean over datasets, with Student's 95 % t interval over "
        f"seeds; loss: cross-entropy in nats; untuned: {', '.join(untuned)}, loss {loss:.4f}"
    )
    return Table.of(title, heads, rows, words={"recipe"}, roomy=set(datasets), caption=caption)


def _gain(own: Sequence[Performance], other: Sequence[Performance]) -> list[float]:
    """Return by seed how much more top-1 is, a share."""
    return [a.top1 - b.top1 for a, b in zip(own, other, strict=True)]


def _over_seeds(shares: Sequence[Sequence[float]]) -> Interval | None:
    """Return the mean of datasets over seeds with its t interval; None of one seed."""
    values = [fmean(seed) for seed in zip(*shares, strict=True)]
    return mean_interval(values) if len(values) > 1 else None
