"""The models to be timed, by name: each with the dense tower that it is a reduction of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import zoo
from harness.conditions import DENSE
from harness.golden.runners import random_tower
from harness.latency.plan import LatencyPlan
from harness.measure.cost import Counts, counts
from harness.measure.rows import MethodRate, Variant, as_json, rows_of
from harness.progress import Progress
from harness.towers import create_pretrained, load_tower, split_method, split_name
from zoo.open_clip import FOLDER, HUB
from zoo.sizes import MODELS
from zoo.vit import ReducedViT
from zoo.weights import fingerprint


@dataclass(frozen=True, kw_only=True)
class Family:
    """One dense tower and its reductions, in float32 on the CPU.

    Attributes:
        tag: of the tower's weights.
        weights: their fingerprint.
        rows: variants, the dense one first; all share its weights.
        counts: by the row's key.
    """

    tag: str
    weights: str
    rows: list[Variant]
    counts: dict[str, Counts]


def families(plan: LatencyPlan, progress: Progress) -> Iterator[Family]:
    """Load one dense tower after the other, each with all its reductions.

    Raises:
        ValueError: an unknown name, or a tower that can't be reduced.
        FileNotFoundError: weights or a predictor are out of reach.
    """
    for dense, asked in _grouped(plan).items():
        yield _family(dense, asked, plan, progress)


def _grouped(plan: LatencyPlan) -> dict[str, list[MethodRate]]:
    """Return the methods and keep rates asked for, by dense tower."""
    groups: dict[str, list[MethodRate]] = {}
    for name in plan.models:
        dense, method, keep = split_method(name)
        if dense.partition(".")[0] in MODELS:
            dense = ".".join(split_name(dense))
        wanted = [] if method is None else [(method, keep)]
        wanted += [(method, keep) for method in plan.methods for keep in plan.keeps]
        group = groups.setdefault(dense, [])
        group += [one for one in dict.fromkeys(wanted) if one not in group]
    return groups


def _family(dense: str, asked: list[MethodRate], plan: LatencyPlan, progress: Progress) -> Family:
    whole: list[MethodRate] = [(DENSE, 1.0)]
    if plan.random_weights:
        if dense.partition(".")[0] not in MODELS:
            raise ValueError(
                f"--random-weights with model {dense!r}: of the models of `python -m harness list` "
                "alone is known how to build them without weights, such as clip_vit_b16; leave "
                "the flag out, or name one of them"
            )
        vit, (arch, tag) = random_tower(dense).vit, split_name(dense)
        rows = rows_of(vit, arch, tag, whole) + [_random(vit, arch, *one) for one in asked]
    else:
        tower = load_tower(dense)
        vit, (arch, _, tag) = tower.vit, tower.name.partition(".")
        rows = rows_of(vit, arch, tag, whole + asked)
        rows += _saved(dense, vit, arch)
    return Family(tag=tag, weights=fingerprint(vit), rows=rows, counts=counts(rows, progress))


def _random(vit: ReducedViT, arch: str, method: str, keep: float) -> Variant:
    """Reduce a tower without weights; what a method learns is random, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reduced = zoo.reduce(vit, method=method, keep=keep)
    return _row(f"{arch}_{method}{round(100 * keep)}", reduced)


def _saved(name: str, vit: ReducedViT, arch: str) -> list[Variant]:
    """Return the model of a folder or the hub if it was saved with a reduction method."""
    if not name.startswith((FOLDER, HUB)):
        return []
    model = create_pretrained(name)
    if not isinstance(model, ReducedViT) or model.reducer is None:
        return []
    reducer = model.reducer
    model = zoo.reduce(vit, method=None)
    model.reducer = reducer
    row = _row(arch, model)
    return [replace(row, model=f"{arch}_{row.method}{round(100 * row.keep)}")]


def _row(name: str, vit: ReducedViT) -> Variant:
    assert vit.reducer is not None
    config, patches = vit.reducer.config, vit.patch_embed.num_patches
    keep = config.keep
    if keep is None:  # settings that stand instead of it
        keep = list(vit.reducer.counts(patches).values())[-1] / patches
    told: dict[str, Any] = {"method": vit.reducer.method, "config": as_json(config)}
    return Variant(model=name, keep=keep, vit=vit.float().eval(), **told)
