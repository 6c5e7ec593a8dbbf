"""Budgets of a method in a tower, fitted to pictures without labels and judged on others."""

import functools
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from harness import git_commit
from harness.base.lines import lock_file
from harness.base.terminal import Progress
from harness.datasets.base import cached_json, keep_json
from harness.learning.settings import BudgetConfig, Sources
from harness.learning.sources import held_out_groups, learning_sets
from harness.measure.budgets import LEAST_PICTURES, BudgetRows, Values, deal, logarithms
from harness.measure.fidelity import join_splits
from harness.records.statistics import paired_mean, tail
from zoo.core.adaptive import LEAST, Budgets, check_keeps, halve
from zoo.core.digests import blocks_fingerprint
from zoo.core.files import cache_file
from zoo.core.reducer import METHODS
from zoo.core.settings import expected
from zoo.loading.learned_files import BudgetFile, budgets_name
from zoo.loading.towers import load_tower


def solve_cost(budgets: Budgets, signals: Values, errors: Values, config: BudgetConfig) -> float:
    """Return the mean cost that pictures take: what is asked for, or the least that meets a bound.

    Bounds count the measured ``errors`` (n, K) of the pictures with these ``signals`` (n,), dealt by the lines.
    """
    if config.bound is None:
        return config.cost or BudgetConfig.DEFAULT_COST
    name, least = config.bound
    guesses = budgets.errors(logarithms(signals))
    mean_or_tail = np.mean if name == "min_cosine" else tail

    def cosine(penalty: float) -> float:
        return 1 - float(mean_or_tail(errors[np.arange(len(errors)), budgets.deal(guesses, penalty).numpy()]))

    penalty = halve(lambda penalty: cosine(penalty) < least) * (1 - 1e-9)
    if cosine(penalty) < least:
        raise ValueError(
            f"--{name.replace('_', '-')} {least:g}: no budgets meet it; the highest keep rate for all pictures, "
            f"{budgets.keeps[0]:g}, reaches {1 - mean_or_tail(errors[:, 0]):.4f}; add 1 to --keeps"
        )
    return budgets.mean_cost(guesses, penalty)


def fit_budgets(
    model: str,
    method: str,
    sources: Sources,
    config: BudgetConfig,
    *,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress,
) -> tuple[Path, BudgetFile]:
    """Fit the budgets of a method in a dense tower and write them; a stopped fit goes on where it was.

    Lines are fitted to the images to learn from. On images held out, the adaptive tower is set beside the fixed keep
    rate of equal cost. ``out`` None is for the user's cache, where names of models find it.

    Raises:
        ValueError: an unknown name, too few pictures or pictures all alike, or a cost or bound out of reach.
        FileNotFoundError: no predictor for the method.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r}: {expected(method, METHODS)}")
    check_keeps(config.keeps)
    sets = learning_sets(sources)
    train, held = (join_splits([getattr(each, part) for each in sets]) for part in ("train", "held_out"))
    if len(train) < LEAST_PICTURES:
        raise ValueError(
            f"{len(train)} pictures to fit to, beside {len(held)} held out: expected {LEAST_PICTURES} at least"
        )
    tower = load_tower(model)
    weights = blocks_fingerprint(tower.vit.state_dict(), tower.vit.blocks_prefix)
    tower.vit.to(device)
    rows = BudgetRows(tower, method, config.keeps, config.signal_at)
    settings = {name: value for name, value in rows.rows[-1].config.items() if name not in ("keep", "predictor")}
    pictures = [(images.provenance, images.image_ids) for images in sets]
    path, known = cached_json(
        "fits", "budgets", weights, rows.rows[-1].config, config.signal_at, pictures, device, torch.__version__
    )
    known = known or {"train": {}, "held out": {}}
    save = functools.partial(keep_json, path, known)
    place = out or cache_file("budgets", budgets_name(tower.arch, tower.tag, method))
    with lock_file(place):
        signals, errors = rows.measure(rows.rows, train, known["train"], save, progress)
        plain = signals <= LEAST
        for position in np.flatnonzero(plain):
            progress.say(f"picture {train.image_ids[position]!r} has no detail, its signal is 0: left out of the fit")
        budgets = rows.fit(signals[~plain], errors[~plain])
        cost = solve_cost(budgets, signals[~plain], errors[~plain], config)
        fixed = rows.fixed(cost)
        every = [*(row for row in rows.rows if row.keep != fixed.keep), fixed]
        signals, errors = rows.measure(every, held, known["held out"], save, progress)
        by_keep = {row.keep: errors[:, place] for place, row in enumerate(every)}
        errors, before = np.stack([by_keep[keep] for keep in config.keeps], axis=1), by_keep[fixed.keep]
        dealt = deal(budgets, "signal", cost, signals, errors)
        after = errors[np.arange(len(dealt)), dealt]
        difference = paired_mean(after, before, held_out_groups(sets))
        file = BudgetFile(
            model=tower.arch,
            tag=tower.tag,
            weights=weights,
            method=method,
            options=settings,
            budgets=budgets,
            cost=cost,
            bound=dict([config.bound] if config.bound else []),
            datasets=[images.provenance for images in sets],
            judged={
                "images": len(held),
                "cost": float(np.array(budgets.costs)[dealt].mean()),
                "keep": fixed.keep,
                **{"before": float(before.mean()), "after": float(after.mean()), "difference": list(difference)},
                **{"before_95": tail(before), "after_95": tail(after)},
            },
            version=version("clip-patchrank"),
            commit=git_commit(),
        )
        file.write(place)
        path.unlink(missing_ok=True)
    return place, file
