"""Compare recipes of learned tokens by images of val that they never saw, to choose one by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from statistics import fmean
from typing import Any, get_args, get_type_hints

from harness.base.table import Cell, Table, points
from harness.datasets.few_shot import undrawn
from harness.measure.rows import Variant
from harness.measure.tuning import Performance, Tuner
from harness.records.statistics import Interval, mean_interval
from zoo.core.messages import expected
from zoo.learning.tuning import TuneConfig

AS_IT_IS = "as it is"


def change_recipe(recipe: TuneConfig, changes: str) -> TuneConfig:
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
        cells["to untuned"] = points(_over_seeds([_gain(one.tuned, one.untuned) for one in own]))
        apart = [_gain(one.tuned, other.tuned) for one, other in zip(own, first, strict=True)]
        cells["to first"] = points(_over_seeds(apart) if recipe != recipes[0] else None)
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
