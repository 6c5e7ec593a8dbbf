"""The main jobs: methods side by side on the same images, as records, and beside random orders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.base.table import Cell, Table, figure, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset, split_words
from harness.datasets.base import Dataset
from harness.datasets.few_shot import draw, draw_train, require_apart, require_labels
from harness.golden.store import Rankings, find_rankings, ranked_positions, ranked_revision
from harness.measure.bench import Bench
from harness.measure.plan import Plan, check_plan, tuning_of
from harness.measure.rows import BLOCK, Variant, require_rows, require_towers
from harness.measure.traces import Tracer
from harness.measure.tuning import Tuned
from harness.records.conditions import DENSE, GOLDEN, PROMPTS, RANDOM, Tuning
from harness.records.metrics import correct
from harness.records.record import Record
from harness.records.statistics import SIGN_FLIP, Interval, bootstrap_mean, mark_note, paired_p, together
from zoo.core.messages import tower_name
from zoo.core.precision import best_precision
from zoo.loading.adopt import reduce
from zoo.loading.learned_files import PromptFile
from zoo.towers.vit import ReducedViT

Hits = NDArray[np.float64]  # (images,) 1 where the answer is right, 0 where not, NaN if unknown


def compare(
    plan: Plan,
    known: Sequence[Record],
    progress: Progress,
    tracer: Tracer | None = None,
    *,
    release: bool = False,
) -> Iterator[list[Record]]:
    """Measure what the plan asks for and ``known`` lacks; ``tracer`` stores single images.

    A ``release`` may read the split "final".

    Yields:
        For each model and dataset and number of shots the records of all rows, known ones included;
        those of one seed after those of another.

    Raises:
        ValueError: an unknown name, or something that can't be measured.
    """
    check_plan(plan)
    require_towers(plan.recoveries, plan.models)
    _require_predictors(plan)
    pairs = _pairs(_datasets(plan, release=release), plan, progress)
    if GOLDEN in plan.methods and any(plan.tunings(shots)[0].visual for shots in plan.shots):
        progress.say(
            f"no golden rows with --tokens {plan.tokens} and shots: golden rankings are the "
            "tower's without learned tokens"
        )
    if plan.dtype == "bfloat16" != best_precision(plan.device):
        progress.say("this processor has no bfloat16 of its own: it takes many times as long as float32")
    for name in plan.models:
        bench = replace(Bench.build(plan, name, progress, known), tracer=tracer)
        for dataset, shots in pairs:
            yield bench.measure(dataset, shots, known)
            if tracer is not None:  # what was measured is kept by now
                tracer.flush()


def _require_predictors(plan: Plan) -> None:
    """Refuse methods whose predictor is missing, of all towers before the first is loaded."""
    for name in plan.models:
        require_rows(name, product(plan.methods, plan.keeps))


def _datasets(plan: Plan, *, release: bool) -> list[Dataset]:
    datasets = [get_dataset(name) for name in plan.datasets]
    return [dataset.released() for dataset in datasets] if release else datasets


def _pairs(datasets: Sequence[Dataset], plan: Plan, progress: Progress) -> list[tuple[Dataset, int]]:
    """Return the datasets with the numbers of shots that are measured on each; 0 alone without labels."""
    pairs = [(dataset, shots) for dataset in datasets for shots in plan.shots if dataset.labelled or not shots]
    if not pairs:
        require_labels(datasets[0], f"--shots {plan.shots[0]}")
    for dataset in datasets:
        if any(plan.shots) and not dataset.labelled:
            progress.say(f"{dataset.name} has no labels, so nothing is learned from shots of it")
    for dataset, shots in pairs:
        # Refuses at once what would fail after the work.
        if shots and plan.tokens in PROMPTS:
            require_apart(dataset, plan.split)
            draw(dataset, shots, plan.seed)
        elif shots:
            draw_train(dataset, shots, plan.seed)
    return pairs


def judge(plan: Plan, prompts: Path, progress: Progress) -> tuple[list[Record], list[Record]]:
    """Measure the plan's last row with prompts from a file, and without them beside the dense tower.

    Returns:
        The records without prompts, the dense tower's first, and the one with prompts. The dense tower has none in the
        second: it would have to be judged with prompts of its own.

    Raises:
        ValueError: an unknown name, or prompts of another tower or of other classes.
        FileNotFoundError: no such file.
    """
    dataset = get_dataset(plan.datasets[0])
    file = PromptFile.read(prompts)
    file.require_classes(dataset.classes)
    tuning = tuning_of(file)
    _require_predictors(plan)
    bench = Bench.build(plan, plan.models[0], progress)
    row = bench.rows[-1]
    tuned = {row.key: Tuned.of(row.vit, file)}  # refuses before anything is measured
    return bench.measure(dataset, 0, []), bench.judged(dataset, tuning, [row], tuned)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A method beside random pruning on the same images."""

    dataset: str
    split: str
    method: str  # registered method or ``golden``
    keep: float
    image_count: int  # ``golden`` has only those with a ranking
    top1: float  # the method's accuracy on them, a fraction
    random_top1: float  # mean accuracy of the random orders on them
    difference: Interval  # mean over images of (method right) - (share of orders right)
    p_value: float  # of the sign-flip test that both are right as often


def floor(plan: Plan, seeds: int, progress: Progress, rankings: Sequence[Rankings] = ()) -> Iterator[list[Floor]]:
    """Measure the plan's methods against ``seeds`` random orders, on its first model.

    Golden rankings are searched among ``rankings`` first, then among those that ship.

    Yields:
        The rows of each dataset.

    Raises:
        ValueError: fewer than 3 seeds, or golden without rankings.
    """
    if seeds < 3:
        raise ValueError(f"--seeds {seeds}: expected at least 3 random orders")
    for name in plan.datasets:
        require_labels(get_dataset(name), "floor, which compares accuracy")
    without = replace(plan, methods=_ordering(plan))
    _require_predictors(without)
    bench = Bench.build(without, plan.models[0], progress)
    dense, rows = bench.rows[0], bench.rows[1:]
    goldens: dict[str, Rankings] = {}
    if GOLDEN in plan.methods:  # what is missing is reported before hours are spent
        goldens = {n: _rankings(bench, get_dataset(n), rankings) for n in plan.datasets}
    orders = _random_orders(dense.vit, seeds, plan.keeps)
    for name in plan.datasets:
        view = bench.view_of(get_dataset(name))
        split = view.split(Tuning())
        everywhere = [*(row for row in rows if row.method != GOLDEN), *orders]
        oracles = [replace(r, rankings=goldens[name]) for r in rows if r.method == GOLDEN]
        known = ranked_positions(split, goldens[name]) if oracles else np.arange(0)
        hits: dict[str, Hits] = {}
        for part, places in ((everywhere, np.arange(len(split))), (oracles, known)):
            images = split.subset(places)
            results = view.outcomes(part, images, f"{len(part)} rows on {name}") if part else {}
            for key, result in results.items():
                hits[key] = np.full(len(split), np.nan)
                hits[key][places] = correct(result.features, view.text, images.labels)
        yield [_floor_row(row, name, plan.split, hits, orders) for row in rows]


def _ordering(plan: Plan) -> tuple[str, ...]:
    """Return the plan's methods that go by an order of their own."""
    return tuple(method for method in plan.methods if method not in (DENSE, RANDOM))


def _floor_row(row: Variant, dataset: str, split: str, hits: Mapping[str, Hits], orders: Sequence[Variant]) -> Floor:
    among = ~np.isnan(hits[row.key])
    right = hits[row.key][among]
    beside = [hits[order.key][among] for order in orders if order.keep == row.keep]
    random = np.mean(beside, axis=0)
    return Floor(
        dataset=dataset,
        split=split,
        method=row.method,
        keep=row.keep,
        image_count=len(right),
        top1=float(right.mean()),
        random_top1=float(random.mean()),
        difference=bootstrap_mean(right - random, seed=0),
        p_value=paired_p(right, np.sum(beside, axis=0), 1, len(beside)),
    )


def _random_orders(dense: ReducedViT, seeds: int, keeps: Sequence[float]) -> list[Variant]:
    return [
        Variant(
            model=f"{RANDOM}{round(100 * keep)}",
            method=RANDOM,
            keep=keep,
            vit=reduce(dense, method=RANDOM, keep=keep, seed=seed).eval(),
            config={"keep": keep, "seed": seed},
            what=f"seed {seed}",
        )
        for keep in keeps
        for seed in range(seeds)
    ]


def _rankings(bench: Bench, dataset: Dataset, own: Sequence[Rankings]) -> Rankings:
    """Find the rankings of a split among the user's own, else where they usually are."""
    model, split = tower_name(bench.rows[0].model, bench.tag), bench.plan.split
    images_of = dataset.images_of
    of = [r for r in own if (r.provenance.dataset, r.provenance.split) == (images_of, split)]
    rankings = of[0] if of else find_rankings(model, images_of, split)
    if rankings is None:
        raise ValueError(
            f"no golden rankings of {dataset.name} {split}; make them with: patchrank rank "
            f"--model {model} --dataset {get_dataset(images_of).asked_as} --split {split}"
        )
    revision = ranked_revision(dataset, rankings.provenance.score)
    rankings.require(weights=bench.weights, revision=revision, block=BLOCK)
    return rankings


def floor_table(rows: Sequence[Floor], seeds: int) -> Table:
    """Lay out methods beside random pruning."""
    first = rows[0]
    family = together({at: row.p_value for at, row in enumerate(rows)})
    return Table.of(
        f"{first.dataset} ({split_words(first.dataset, first.split)}), against random pruning, mean of {seeds} orders",
        ("method", "keep", "images", "top-1", "random", "difference"),
        [
            (
                Cell(row.method, row.method),
                figure(row.keep, ".0%"),
                figure(row.image_count, "d"),
                figure(row.top1, ".1%"),
                figure(row.random_top1, ".1%"),
                points(row.difference, family.mark(at)),
            )
            for at, row in enumerate(rows)
        ],
        words=("method",),
        caption="in points; interval: 95 % paired bootstrap over images; " + mark_note(SIGN_FLIP),
    )
