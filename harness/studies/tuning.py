"""Studies of learned tokens: how many, of which kind, tuned when and on which tower."""

from collections.abc import Iterator, Sequence
from typing import Any

from harness.datasets.base import Dataset
from harness.measure.rows import Variant
from harness.measure.tuning import Tuned
from harness.studies.workshop import Line, TuningShop, Workshop, study

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
        fits = [tuner.ranked_after(one, shop.golden())]
        (row,) = shop.predicted(fits, keep, None, "ranked after tuning")
        pairs.append((row, Tuned.of(row.vit, one.file)))
    return pairs
