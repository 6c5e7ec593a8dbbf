"""How far methods are above random pruning: paired differences over several random orders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import zoo
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split, SplitName
from harness.evaluate import correct, nameable, outcomes, subset, text_classifier
from harness.golden.provenance import ranked_revision
from harness.golden.store import Rankings, find_rankings, ranked
from harness.plan import DTYPES, Plan
from harness.progress import Progress
from harness.statistics import Interval, bootstrap_mean, paired_p
from harness.towers import load_clip
from harness.variants import BLOCK, DENSE, GOLDEN, Variant, variants
from zoo.predictor_file import tower_name
from zoo.vit import ReducedViT
from zoo.weights import fingerprint

RANDOM = "random"

Hits = NDArray[np.float64]  # (images,) 1 where the answer is right, else 0


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A method beside random pruning on the same images.

    Attributes:
        dataset: name.
        split: its split.
        method: registered method or ``golden``.
        keep: keep rate.
        image_count: images behind the row; ``golden`` has only those with a ranking.
        top1: the method's accuracy on them, a fraction.
        random_top1: mean accuracy of the random orders on them.
        difference: mean over images of (method right) - (share of random orders right), with its
            95 % bootstrap interval.
        p_value: of the sign-flip test that the method is as often right as the orders are on
            average.
    """

    dataset: str
    split: str
    method: str
    keep: float
    image_count: int
    top1: float
    random_top1: float
    difference: Interval
    p_value: float


def floor(
    plan: Plan, seeds: int, progress: Progress, rankings: Sequence[Rankings] = ()
) -> Iterator[list[Floor]]:
    """Measure the plan's methods against ``seeds`` random orders, on its first model.

    Args:
        plan: model, datasets, methods, keep rates, split and conditions.
        seeds: number of random orders, at least 3.
        progress: where to show how far things are.
        rankings: golden rankings to use instead of the shipped ones.

    Yields:
        The rows of each dataset.

    Raises:
        ValueError: fewer than 3 seeds, or golden asked for without rankings.
    """
    if seeds < 3:
        raise ValueError(f"--seeds {seeds}: expected at least 3 random orders")
    parts, arch, tag = load_clip(plan.models[0])
    dense = parts.model.visual
    weights = fingerprint(dense)
    methods = [m for m in plan.methods if m not in (DENSE, RANDOM)]
    goldens: dict[str, Rankings] = {}
    if GOLDEN in methods:  # looked for first: what is missing is told before hours are spent
        for name in plan.datasets:
            dataset = get_dataset(name)
            golden = _golden(rankings, tower_name(arch, tag), dataset, plan.split)
            revision = ranked_revision(dataset, golden.provenance.score)
            golden.require(weights=weights, revision=revision, block=BLOCK)
            goldens[name] = golden
    rows = variants(dense, arch, tag, methods, plan.keeps)
    orders = _random_orders(dense, seeds, plan)
    for row in (*rows, *orders):
        row.vit.to(plan.device, DTYPES[plan.dtype])
    for name in plan.datasets:
        dataset = get_dataset(name)
        classifier, _ = text_classifier(parts, dataset)
        split = nameable(subset(dataset.split(plan.split), plan.limit), classifier)

        def hits(part: list[Variant], among: Split) -> dict[str, Hits]:
            with progress.task(f"{len(part)} rows on {dataset.name}", len(among)) as update:  # noqa: B023
                results = outcomes(
                    part,
                    among,
                    parts.preprocess,
                    device=torch.device(plan.device),
                    dtype=DTYPES[plan.dtype],
                    on_batch=update,
                )
            return {
                key: correct(result.features, classifier, among.labels).astype(np.float64)  # noqa: B023
                for key, result in results.items()
            }

        real = [row for row in rows if row.method != GOLDEN]
        right = hits([*real, *orders], split)
        among = {row.key: np.arange(len(split)) for row in real}
        oracle = [row for row in rows if row.method == GOLDEN]
        if oracle:
            known = ranked(split, goldens[name])
            among |= {row.key: known for row in oracle}
            told = [replace(row, rankings=goldens[name]) for row in oracle]
            right |= hits(told, split.subset(known))
        yield [_row(row, dataset, plan, right, among[row.key], orders) for row in rows]


def _row(
    row: Variant,
    dataset: Dataset,
    plan: Plan,
    right: dict[str, Hits],
    among: NDArray[np.int64],
    orders: list[Variant],
) -> Floor:
    beside = [right[order.key][among] for order in orders if order.keep == row.keep]
    random = np.mean(beside, axis=0)
    return Floor(
        dataset=dataset.name,
        split=plan.split,
        method=row.method,
        keep=row.keep,
        image_count=len(among),
        top1=float(right[row.key].mean()),
        random_top1=float(random.mean()),
        difference=bootstrap_mean(right[row.key] - random, seed=0),
        p_value=paired_p(right[row.key], np.sum(beside, axis=0), 1, len(beside)),
    )


def _random_orders(dense: ReducedViT, seeds: int, plan: Plan) -> list[Variant]:
    orders = []
    for keep in plan.keeps:
        for seed in range(seeds):
            vit = zoo.reduce(dense, method=RANDOM, keep=keep, seed=seed).eval()
            told: dict[str, Any] = {"method": RANDOM, "keep": keep, "vit": vit}
            told["config"] = {"keep": keep, "seed": seed}
            name = f"{RANDOM}{round(100 * keep)}"
            orders.append(Variant(model=name, what=f"seed {seed}", **told))
    return orders


def _golden(given: Sequence[Rankings], model: str, dataset: Dataset, split: SplitName) -> Rankings:
    """Find the rankings of a split among those given, else where they usually are."""
    for rankings in given:
        if (rankings.provenance.dataset, rankings.provenance.split) == (dataset.images_of, split):
            return rankings
    found = find_rankings(model, dataset.images_of, split)
    if found is None:
        raise ValueError(
            f"no golden rankings of {dataset.name} {split}; make them with: python -m harness rank "
            f"--model {model} --dataset {get_dataset(dataset.images_of).asked_as} --split {split}"
        )
    return found
