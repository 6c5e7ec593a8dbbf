"""Budgets by measurement: lines that tell from a picture's signal what each keep rate would cost in 1 - cosine."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness import git_commit
from harness.base.lines import lock_file
from harness.base.terminal import Progress
from harness.datasets.base import Split, cached_json, keep_json
from harness.learning.settings import BudgetConfig, Sources
from harness.learning.sources import learning_sets
from harness.measure.cost import gflops
from harness.measure.fidelity import Pictures, join_splits
from harness.measure.plan import KeepSolver
from harness.measure.rows import Variant, make_row
from zoo.core.adaptive import LEAST, Budgets, check_keeps, halve, signal_gflops
from zoo.core.digests import blocks_fingerprint
from zoo.core.files import cache_file
from zoo.core.reducer import METHODS
from zoo.core.settings import expected
from zoo.loading.learned_files import BudgetFile
from zoo.loading.towers import Tower, load_tower

LEAST_PICTURES = 64  # of fewer, lines follow chance
TAIL = 0.95  # share of pictures that a quantile of errors is of
CHUNK = 256  # pictures that are measured between two writes of the cache
_ALIKE = 1e-3  # standard deviation of the logarithms of signals, of which no line is told

Values = NDArray[np.float64]


def tail(values: Values) -> float:
    """Return the 95 % quantile of values."""
    return float(np.quantile(values, TAIL))


class BudgetFitter:
    """A method in a tower at several keep rates: what they cost and, of pictures, what they lose and the signal."""

    def __init__(self, tower: Tower, method: str, keeps: Sequence[float], signal_at: int) -> None:
        """Build a row of each keep rate and count it; raise ValueError or FileNotFoundError for what can't be had."""
        check_keeps(keeps)
        self.tower, self.method, self.signal_at = tower, method, signal_at
        self.rows = [self.row(keep) for keep in keeps]
        vit = tower.vit
        self.whole = gflops(vit, vit.input_size).gflops
        self.patches = math.prod(vit.grid)
        self.signal_cost = signal_gflops(self.patches, vit.embed_dim) / self.whole
        self.costs = tuple(gflops(row.vit, vit.input_size).gflops / self.whole + self.signal_cost for row in self.rows)
        self.keeps = tuple(keeps)

    def row(self, keep: float) -> Variant:
        """Return the row of a keep rate."""
        return make_row(self.tower, self.method, {"keep": keep}, f"{keep:g}")

    def fit(self, signals: Values, errors: Values) -> Budgets:
        """Fit lines, by least squares, to the signals (n,) and errors (n, K) of pictures.

        Raises:
            ValueError: too few pictures, pictures that are all alike, or budgets whose costs don't fall.
        """
        if len(signals) < LEAST_PICTURES:
            raise ValueError(f"{len(signals)} pictures: expected {LEAST_PICTURES} at least to fit budgets to")
        x = np.log(signals)
        if x.std() < _ALIKE:
            raise ValueError(
                f"the signals of all {len(x)} pictures are alike, about {signals.mean():.3g}, so that no line can be "
                "fitted; give pictures that differ in detail"
            )
        lines = [(0.0, 0.0, 0.0)] * len(self.keeps)
        for number, keep in enumerate(self.keeps):
            if keep < 1:
                y = np.log(np.maximum(errors[:, number], LEAST))
                slope, intercept = np.polyfit(x, y, 1)
                lines[number] = float(slope), float(intercept), float((y - slope * x - intercept).std(ddof=2))
        slopes, intercepts, spreads = zip(*lines, strict=True)
        lists = {"slopes": slopes, "intercepts": intercepts, "spreads": spreads, "signals": tuple(np.sort(x).tolist())}
        return Budgets(keeps=self.keeps, costs=self.costs, signal_at=self.signal_at, patches=self.patches, **lists)

    def fixed(self, cost: float) -> Variant:
        """Return the row of the fixed keep rate whose cost is nearest."""
        return self.row(
            round(KeepSolver(self.tower.vit, lambda keep: self.row(keep).vit).nearest(cost * self.whole), 4)
        )


def measure(
    fitter: BudgetFitter, rows: Sequence[Variant], split: Split, known: dict[str, Any], path: Path, progress: Progress
) -> tuple[Values, dict[str, Values]]:
    """Return the signals of pictures (n,) and the errors by each row (n,), by its key; those ``known`` aren't measured.

    Raise ValueError for a picture whose signal isn't finite.
    """
    with progress.task("pictures", len(split)) as update:
        for start in range(0, len(split), CHUNK):
            places = np.arange(start, min(start + CHUNK, len(split)))
            chunk = known.setdefault(str(start), {})
            missing = [row for row in rows if row.key not in chunk]
            pictures = Pictures(split.subset(places), places, fitter.tower)
            if "signal" not in chunk:
                chunk["signal"] = pictures.signals(fitter.signal_at).tolist()
            if missing:
                chunk |= {key: values.tolist() for key, values in pictures.distances(missing).items()}
                keep_json(path, known)
            update(int(places[-1]) + 1)
    signals = np.concatenate([known[str(start)]["signal"] for start in range(0, len(split), CHUNK)])
    if not np.isfinite(signals).all():
        name = split.image_ids[int(np.argmin(np.isfinite(signals)))]
        raise ValueError(f"picture {name!r} has no finite signal: the tower makes NaN or infinite numbers of it")
    errors = {
        row.key: np.concatenate([known[str(start)][row.key] for start in range(0, len(split), CHUNK)]) for row in rows
    }
    return signals, errors


def solve_cost(budgets: Budgets, signals: Values, errors: Values, config: BudgetConfig) -> float:
    """Return the mean cost that pictures take on average: what is asked for, or the least that meets a bound.

    Bounds count the measured ``errors`` (n, K) of the pictures with these ``signals`` (n,), dealt by the lines.
    """
    if config.bound is None:
        return config.cost or BudgetConfig.DEFAULT_COST
    name, least = config.bound
    lines = budgets.errors(torch.from_numpy(np.log(signals)))

    def figure(penalty: float) -> float:
        taken = errors[np.arange(len(errors)), budgets.deal(lines, penalty).numpy()]
        return float(taken.mean()) if name == "min_cosine" else tail(taken)

    penalty = halve(lambda penalty: figure(penalty) > 1 - least) * (1 - 1e-9)
    if figure(penalty) > 1 - least:
        flag = name.replace("_", "-")
        raise ValueError(
            f"--{flag} {least:g}: no dealing of the budgets meets it; the highest keep rate, {budgets.keeps[0]:g}, "
            f"reaches {1 - (errors[:, 0].mean() if name == 'min_cosine' else tail(errors[:, 0])):.4f}; add 1 to --keeps"
        )
    return budgets.mean_cost(lines, penalty)


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

    Lines are fitted to the images to learn from; on images held out, the adaptive tower is set beside the fixed keep
    rate of equal cost. ``out`` None is for the user's cache.

    Raises:
        ValueError: an unknown name, too few pictures or pictures all alike, or a cost or bound out of reach.
        FileNotFoundError: no predictor for the method.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r}: {expected(method, METHODS)}")
    check_keeps(config.keeps)
    sets = learning_sets(sources)
    train, held = (join_splits([getattr(each, part) for each in sets]) for part in ("train", "held_out"))
    if len(train) + len(held) < LEAST_PICTURES:
        raise ValueError(f"{len(train) + len(held)} pictures: expected {LEAST_PICTURES} at least to fit budgets to")
    tower = load_tower(model)
    tower.vit.to(device)
    weights = blocks_fingerprint(tower.vit.state_dict(), tower.vit.blocks_prefix)
    fitter = BudgetFitter(tower, method, config.keeps, config.signal_at)
    settings = {name: value for name, value in fitter.rows[-1].config.items() if name not in ("keep", "predictor")}
    pictures = [(images.provenance, images.image_ids) for images in sets]
    path, known = cached_json("fits", "budgets", weights, settings, config.signal_at, pictures, torch.__version__)
    known = known or {}
    place = out or cache_file("budgets", f"{tower.arch}_{method}.{tower.tag or 'own'}.{path.stem}.json")
    with lock_file(place):
        signals, by_row = measure(fitter, fitter.rows, train, known.setdefault("train", {}), path, progress)
        plain = signals <= LEAST
        for position in np.flatnonzero(plain):
            progress.say(f"picture {train.image_ids[position]!r} has no detail, its signal is 0: left out of the fit")
        errors = np.stack([by_row[row.key] for row in fitter.rows], axis=1)[~plain]
        budgets = fitter.fit(signals[~plain], errors)
        cost = solve_cost(budgets, signals[~plain], errors, config)
        fixed = fitter.fixed(cost)
        rows = list({row.key: row for row in (*fitter.rows, fixed)}.values())
        signals, by_row = measure(fitter, rows, held, known.setdefault("held out", {}), path, progress)
        lines = budgets.errors(torch.from_numpy(np.log(np.maximum(signals, LEAST))))
        dealt = budgets.deal(lines, budgets.penalty(cost, lines)).numpy()
        adaptive = np.stack([by_row[row.key] for row in fitter.rows])[dealt, np.arange(len(dealt))]
        before = by_row[fixed.key]
        judged = {
            "images": len(held),
            "cost": float(np.array(budgets.costs)[dealt].mean()),
            "keep": fixed.keep,
            **{"before": float(before.mean()), "after": float(adaptive.mean())},
            **{"before_95": tail(before), "after_95": tail(adaptive)},
        }
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
