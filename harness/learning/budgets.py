"""Budgets of a method in a tower, fitted to pictures without labels and judged on others."""

import functools
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import git_commit
from harness.base.lines import lock_file
from harness.base.table import Table, estimate_cell
from harness.base.terminal import Progress
from harness.datasets.base import cached_json, keep_json
from harness.learning.settings import BudgetConfig, Sources
from harness.learning.sources import LearningSet, held_out_groups, learning_sets
from harness.measure.budgets import LEAST_PICTURES, BudgetRows, Values, deal, logarithms
from harness.measure.fidelity import join_splits
from harness.records.statistics import exact, paired_mean, tail
from harness.report.charts import Chart, Dot
from zoo.core.adaptive import LEAST, Budgets, check_cost, check_keeps, halve
from zoo.core.digests import blocks_fingerprint
from zoo.core.files import cache_file
from zoo.core.reducer import METHODS
from zoo.core.settings import expected, tower_name
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


def judge_frontier(
    rows: BudgetRows,
    budgets: Budgets,
    cost: float,
    sets: Sequence[LearningSet],
    known: dict[str, Any],
    save: Callable[[], None],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return what pictures held out lose by fixed keep rates and by budgets of equal mean cost, the cheapest first.

    The fixed keep rates are that of ``cost``, and those of the budgets apart from the first and the last, where budgets
    can cost as much.
    """
    own, main = rows.own, rows.fixed(cost)
    between = zip(rows.rows[1:-1], (each - own for each in budgets.costs[1:-1]), strict=True)
    pairs = [(row, at) for row, at in between if at > budgets.costs[-1] and row.keep != main.keep] + [(main, cost)]
    measured = list({row.keep: row for row in (*rows.rows, main)}.values())
    held, groups = join_splits([images.held_out for images in sets]), held_out_groups(sets)
    signals, values = rows.measure(measured, held, known, save, progress)
    errors, by_keep = values[:, : len(rows.rows)], {row.keep: values[:, at] for at, row in enumerate(measured)}
    judged = []
    for row, at in sorted(pairs, key=lambda pair: pair[1]):
        dealt = deal(budgets, "signal", at, signals, errors)
        before, after = by_keep[row.keep], errors[np.arange(len(dealt)), dealt]
        judged.append({
            "cost": float(np.array(budgets.costs)[dealt].mean()),
            "keep": row.keep,
            "before": float(before.mean()),
            "after": float(after.mean()),
            "difference": list(paired_mean(after, before, groups)),
            "before_95": tail(before),
            "after_95": tail(after),
        })  # fmt: skip
    return judged


def frontier_table(file: BudgetFile) -> Table:
    """Return what was judged: 1 - cosine by a fixed keep rate and by budgets, in thousandths, a row for each cost."""
    images = sum(dataset["held_out"] for dataset in file.datasets)
    heads = ["cost", "keep rate", "mean", "mean, budgets", "difference", "95 %", "95 %, budgets"]
    rows = []
    for row in file.judged:
        mean, after, tail_95, after_95 = (
            f"{1000 * row[name]:.3f}" for name in ("before", "after", "before_95", "after_95")
        )
        difference = estimate_cell(tuple(row["difference"]), lambda value: f"{1000 * value:+.3f}")
        rows.append([f"{row['cost']:.3f}", f"{row['keep']:g}", mean, after, difference, tail_95, after_95])
    return Table.of(
        f"{file.method} in {tower_name(file.model, file.tag)}: 1 - cosine to dense on {images} images held out, in "
        "thousandths",
        heads,
        rows,
        caption="cost: mean multiply-adds relative to dense; keep rate: that of all images in the columns without "
        "budgets; difference: of the means, with its 95 % interval; 95 %: quantile that 95 % of images don't exceed",
    )


def frontier_chart(file: BudgetFile) -> Chart:
    """Return a chart of what was judged: multiply-adds against 1 - cosine, with and without budgets."""
    names = {
        "before": "one keep rate, mean", "after": "budgets, mean",
        "before_95": "one keep rate, 95 % quantile", "after_95": "budgets, 95 % quantile",
    }  # fmt: skip
    title = f"{file.method} in {tower_name(file.model, file.tag)}: budgets against one keep rate"
    return Chart(
        title=title,
        alt=f"{title}, 1 - cosine by multiply-adds.",
        x_label="mean multiply-adds, relative to dense",
        y_label="1 - cosine to dense",
        series={
            name: [Dot(exact(row["cost"]), exact(max(row[key], LEAST))) for row in file.judged]
            for key, name in names.items()
        },
        log=True,
    )


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

    Lines are fitted to the images to learn from. On images held out, the adaptive tower is set beside fixed keep
    rates of equal cost. ``out`` None is for the user's cache, where names of models find it.

    Raises:
        ValueError: an unknown name, too few pictures or pictures all alike, or a cost or bound out of reach.
        FileNotFoundError: no predictor for the method.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r}: {expected(method, METHODS)}")
    check_keeps(config.keeps)
    sets = learning_sets(sources)
    train = join_splits([images.train for images in sets])
    if len(train) < LEAST_PICTURES:
        raise ValueError(
            f"{len(train)} pictures to fit to, beside {sum(len(each.held_out) for each in sets)} held out: expected "
            f"{LEAST_PICTURES} at least"
        )
    tower = load_tower(model)
    weights = blocks_fingerprint(tower.vit.state_dict(), tower.vit.blocks_prefix)
    tower.vit.to(device)
    rows = BudgetRows(tower, method, config.keeps, config.signal_at)
    if config.cost is not None:
        check_cost(config.cost, rows.keeps, rows.costs)
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
        judged = judge_frontier(rows, budgets, cost, sets, known["held out"], save, progress)
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
            judged=judged,
            version=version("clip-patchrank"),
            commit=git_commit(),
        )
        file.write(place)
        path.unlink(missing_ok=True)
    return place, file
