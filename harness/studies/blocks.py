"""Where to prune: every reduction point, and block 0 of Figure 5."""

from collections.abc import Sequence
from functools import partial

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from harness.variants import Variant


def _lines(
    shop: Workshop, dataset: Dataset, blocks: Sequence[int], keeps: Sequence[float]
) -> list[Line]:
    """Return golden, predicted, class token's attention and random order at some blocks."""
    found = []
    for block in blocks:
        golden = shop.golden(block=block)
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        fits = shop.fitted(shop.config.datasets, golden)
        for keep in keeps:
            what, at = f"block {block}", {"reduce_at": (block,)}
            rows = {
                "golden": shop.oracle(truth, keep, what),
                "predicted": shop.predicted(fits, keep, truth, what),
                "clsattn": shop.baseline("clsattn", keep, truth, what, **at),
                "random": shop.baseline("random", keep, truth, what, **at),
            }
            for ranking, made in rows.items():
                labels = {"before block": str(block), "ranking": ranking}
                found.append(Line(labels=labels, rows=made, asked=keep))
    return found


class Blocks(Study):
    """Prune before every block, to one keep rate and to one cost."""

    name = "blocks"
    title = "Reduction point"
    question = "Before which block do tokens go at the least loss, for one keep rate or one cost?"
    keeps = (0.6,)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return all rankings at every block, then the predicted ones at equal GFLOPs.

        The cost is that of the study's own block at the keep rate.
        """
        keeps, blocks = shop.config.keeps_or(self.keeps), range(len(shop.dense.blocks))
        found = _lines(shop, dataset, blocks, keeps)
        fits, truth = {}, {}
        for block in blocks:
            golden = shop.golden(block=block)
            truth[block] = shop.rankings(dataset.images_of, shop.config.split, golden)
            fits[block] = shop.fitted(shop.config.datasets, golden)

        def predicted(block: int, what: str, keep: float) -> list[Variant]:
            return shop.predicted(fits[block], keep, truth[block], f"block {block} {what}")

        own = shop.golden().block
        for keep in keeps:
            goal = shop.gflops(predicted(own, "", keep)[0])
            for block in blocks:
                what = f"for {keep:g}"
                build = partial(predicted, block, what)
                same = shop.at_cost(f"block {block}", build, goal)
                cost = f"predicted, cost of block {own} at {100 * keep:g}"
                labels = {"before block": str(block), "ranking": cost}
                found.append(Line(labels=labels, rows=build(same), asked=keep))
        return found


class Early(Study):
    """Prune before block 0, where the class token has seen nothing yet."""

    name = "early"
    title = "Pruning at the input, before block 0 (paper: Figure 5)"
    question = "Does the golden ranking beat the class token's attention where pruning pays most?"
    keeps = (0.6, 0.5)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return all rankings at block 0."""
        return _lines(shop, dataset, (0,), shop.config.keeps_or(self.keeps))
