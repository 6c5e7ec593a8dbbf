"""Studies of learned tokens: how many, of which kind, tuned when and on which tower."""

from collections.abc import Iterator
from typing import Any

from harness.measure.rows import Variant
from harness.studies.spec import Label, ModelSpec, StudyCase, StudyLine, study

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


def _model(row: Variant) -> str:
    return row.model


@study(
    "Learned tokens on the dense and the pruned tower (paper: Table 5)",
    "How far behind the dense tower is a pruned one once both are tuned?",
    keeps=(0.6, 0.5),
    tunes=True,
)
def tuning(on: StudyCase) -> Iterator[StudyLine]:
    """Compare pruned models with the dense one, each tuned in the same way."""
    for name, tokens in WAYS.items():
        for keep in (1.0, *on.keeps):
            model = on.untuned(keep)
            labels: dict[str, Label] = {"tuned": name, "model": _model}
            if tokens:
                yield on.line(labels, model, name, on.tuned(model, tokens=tokens))
            else:
                yield StudyLine(labels, (model,), name)


@study(
    "Kinds of learned tokens",
    "Is it worth coupling visual tokens to text tokens, or learning both at all?",
    keeps=(0.6,),
    tunes=True,
)
def kinds(on: StudyCase) -> Iterator[StudyLine]:
    """Leave out or change one thing at a time, the paper's kind first."""
    for keep in on.keeps:
        model = on.untuned(keep)
        for name, changes in KINDS.items():
            yield on.line({"tokens": name}, model, f"{keep:g}", on.tuned(model, **{"tokens": "vt", **changes}))


@study(
    "Number of learned tokens",
    "How many learned tokens pay, given that each makes every block longer?",
    keeps=(0.6,),
    tunes=True,
)
def count(on: StudyCase) -> Iterator[StudyLine]:
    """Vary the number of learned tokens, the paper's 16 first, then none at all."""
    for keep in on.keeps:
        model, group = on.untuned(keep), f"{keep:g}"
        for number in COUNTS:
            yield on.line({"tokens": str(number)}, model, group, on.tuned(model, count=number))
        yield StudyLine({"tokens": "0"}, (model,), group)


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
def points(on: StudyCase) -> Iterator[StudyLine]:
    """Prune in four steps, each schedule with a predictor for its first, then all in one step."""

    def before(row: Variant) -> str:
        return ", ".join(map(str, row.config["reduce_at"]))

    for keep in on.keeps:
        models: list[ModelSpec] = []
        for at in four_points(on.depth):
            predictors = on.predictors(on.golden(block=at[0]), [on.dataset.images_of])[:1]
            models += on.predicted(predictors, keep, reduce_at=at)
        for model in (*models, on.untuned(keep)):
            yield on.line({"before blocks": before}, model, f"{keep:g}", on.tuned(model))


@study(
    "Order of the phases, and prompts moved between towers",
    "Must prompts be tuned last, and on the tower that they will serve?",
    keeps=(0.6,),
    tunes=True,
)
def order(on: StudyCase) -> Iterator[StudyLine]:
    """Tune before or after ranking, on the tower that will serve or on the other.

    The pruned models come first, the paper's order ahead, then the dense ones.
    """
    dense = on.untuned(1.0)
    on_dense = on.tuned(dense)
    for keep in on.keeps:
        model, group = on.untuned(keep), f"{keep:g}"
        on_pruned = on.tuned(model)
        ranked_later = on.predicted([on.predictor_after(one) for one in on_dense], keep)
        orders = {
            "rank, predict, tune (paper)": ((model,) * len(on_pruned), on_pruned),
            "tune the dense tower, move to the pruned": ((model,) * len(on_dense), on_dense),
            "tune the dense tower, rank, predict": (ranked_later, on_dense),
        }
        for name, (models, prompts) in orders.items():
            yield StudyLine({"model": _model, "order": name}, models, group, prompts)
        yield on.line({"model": _model, "order": "tune the dense tower"}, dense, "dense", on_dense)
        name = f"tune at keep {keep:g}, move to the dense"
        yield on.line({"model": _model, "order": name}, dense, "dense", on_pruned)
