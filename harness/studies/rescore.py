"""One ranking for all reduction points against a new one at each."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from harness.variants import Variant
from zoo.predictor import architecture

SCORES_SUBSETS = "mlp"  # what is fitted where the study's own network wants the whole grid


class Rescore(Study):
    """Carry the first ranking along, or score what is left anew, at equal GFLOPs."""

    name = "rescore"
    title = "One ranking against scoring anew at each reduction point, at equal GFLOPs"
    question = "Do later blocks know better which of the remaining patches matter?"
    keeps = (0.6, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one-shot, carried and scored anew, by predictors and by the class token."""
        recipe = shop.config.fit
        if not architecture(recipe.arch).any_subset:
            recipe = replace(recipe, arch=SCORES_SUBSETS)
        golden = shop.golden()
        points = tuple(range(golden.block, len(shop.dense.blocks), 2))[:3]
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        fits = [
            shop.fitted(shop.config.datasets, shop.golden(block=block), recipe) for block in points
        ]

        def predicted(what: str, rescore: bool, at: tuple[int, ...], keep: float) -> list[Variant]:
            told = {"reduce_at": at, "rescore": rescore}
            later = fits[1:] if rescore else ()
            return shop.predicted(fits[0], keep, truth, what, later=later, **told)

        def attended(what: str, at: tuple[int, ...], keep: float) -> list[Variant]:
            return shop.baseline("clsattn", keep, truth, what, reduce_at=at)

        once = (golden.block,)
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            told = f"for {keep:g}"
            goal = shop.gflops(predicted("", False, once, keep)[0])
            ways: dict[tuple[str, str], Callable[[float], list[Variant]]] = {
                (recipe.arch, "once"): partial(predicted, f"once {told}", False, once),
                (recipe.arch, "carried"): partial(predicted, f"carried {told}", False, points),
                (recipe.arch, "anew"): partial(predicted, f"anew {told}", True, points),
                ("clsattn", "once"): partial(attended, f"once {told}", once),
                ("clsattn", "anew"): partial(attended, f"anew {told}", points),
            }
            for (by, way), build in ways.items():
                labels = {
                    "for": f"{100 * keep:g}",
                    "by": by,
                    "scored": way,
                    "before blocks": ", ".join(map(str, once if way == "once" else points)),
                }
                rows = build(shop.at_cost(f"{by} {way}", build, goal))
                found.append(Line(labels=labels, rows=rows, asked=keep))
        return found
