"""Budgets per picture: what keep rates lose and cost, the lines fitted to that, and rows dealt by them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.base.terminal import Progress
from harness.datasets.base import Split
from harness.measure.cost import gflops
from harness.measure.fidelity import Pictures
from harness.measure.plan import KeepSolver
from harness.measure.rows import RowOutput, Variant, make_row
from harness.measure.settings import KEEPS
from harness.records.record import ADAPTIVE, DEALT, FITTED_TO
from zoo.core.adaptive import LEAST, Budgets, check_keeps, signal_gflops
from zoo.core.host import Host
from zoo.loading.towers import Tower

LEAST_PICTURES = 64  # of fewer, lines follow chance
COSTS = 6  # of budgets in a comparison, beside dense
CHUNK = 256  # pictures that are measured between two writes of the cache
_ALIKE = 1e-3  # standard deviation of the logarithms of signals, of which no line is told

Values = NDArray[np.float64]


class BudgetRows:
    """A method in a tower at several keep rates: what they cost, what pictures lose by them, and pictures' signals."""

    def __init__(self, tower: Tower, method: str, keeps: Sequence[float] = KEEPS, signal_at: int = 0) -> None:
        """Make a row of each keep rate and count it; raise ValueError or FileNotFoundError for what can't be had."""
        check_keeps(keeps)
        self.tower, self.method, self.keeps, self.signal_at = tower, method, tuple(keeps), signal_at
        self.rows = [self.row(keep) for keep in keeps]
        vit = tower.vit
        self.patches, self.whole = math.prod(vit.grid), gflops(vit, vit.input_size).gflops
        self.own = signal_gflops(self.patches, vit.embed_dim) / self.whole  # cost of the signal
        self.costs = tuple(gflops(row.vit, vit.input_size).gflops / self.whole + self.own for row in self.rows)

    def row(self, keep: float) -> Variant:
        """Return the row of a keep rate."""
        return make_row(self.tower, self.method, {"keep": keep}, "as a budget")

    def fixed(self, cost: float) -> Variant:
        """Return the row whose cost, by the dense tower's, is nearest."""
        solver = KeepSolver(self.tower.vit, lambda keep: self.row(keep).vit)
        return self.row(round(solver.nearest(cost * self.whole), 4))

    def measure(
        self, rows: Sequence[Variant], split: Split, known: dict[str, Any], save: Callable[[], None], progress: Progress
    ) -> tuple[Values, Values]:
        """Return the signals of pictures (n,) and their errors by each row (n, R).

        What is ``known`` isn't measured again; what is new is added to it, and saved after each chunk of pictures.
        Raise ValueError for a picture whose signal isn't finite.
        """
        starts = range(0, len(split), CHUNK)
        names = {row.key: f"{row.keep:g}" for row in rows}
        with progress.task("pictures to fit budgets to", len(split)) as update:
            for start in starts:
                places = np.arange(start, min(start + CHUNK, len(split)))
                chunk = known.setdefault(str(start), {})
                pictures = Pictures(split.subset(places), places, self.tower)
                if "signal" not in chunk:
                    chunk["signal"] = pictures.signals(self.signal_at).tolist()
                if missing := [row for row in rows if names[row.key] not in chunk]:
                    chunk |= {names[key]: values.tolist() for key, values in pictures.distances(missing).items()}
                    save()
                update(int(places[-1]) + 1)
        columns = ["signal", *names.values()]
        table = np.stack([np.concatenate([known[str(start)][name] for start in starts]) for name in columns], axis=1)
        if len(broken := np.flatnonzero(~np.isfinite(table[:, 0]))):
            raise ValueError(
                f"picture {split.image_ids[broken[0]]!r} has no finite signal: the tower makes NaN or infinite numbers "
                "of it"
            )
        return table[:, 0], table[:, 1:]

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
        return Budgets(
            keeps=self.keeps,
            costs=self.costs,
            slopes=slopes,
            intercepts=intercepts,
            spreads=spreads,
            signals=tuple(np.sort(x).tolist()),
            signal_at=self.signal_at,
            patches=self.patches,
        )


def spread_keeps(tower: Tower, method: str, fixed: Sequence[Host]) -> list[float]:
    """Return keep rates for budgets around the costs of ``fixed`` keep rates, so that all methods' cost the same.

    Beside 1 they are those whose multiply-adds are `COSTS` spread evenly from .9 of dense's to .75 of the least fixed.
    """
    size = tower.vit.input_size
    whole, least = (min(gflops(vit, size).gflops for vit in vits) for vits in ([tower.vit], fixed))
    solver = KeepSolver(tower.vit, lambda keep: make_row(tower, method, {"keep": keep}).vit)
    keeps = {round(solver.nearest(goal), 4) for goal in np.geomspace(0.9 * whole, 0.75 * least, COSTS)}
    return sorted({1.0} | keeps, reverse=True)


def logarithms(signals: Values) -> torch.Tensor:
    """Return the logarithms of signals (n,), of pictures without any detail, too."""
    return torch.from_numpy(np.log(np.maximum(signals, LEAST)))


def deal(budgets: Budgets, how: str, cost: float, signals: Values, errors: Values, seed: int = 0) -> NDArray[np.int64]:
    """Return the budget of each picture, (n,), at a mean cost: by its ``signals`` (n,), or by how of `ADAPTIVE`.

    The controls are the measured ``errors`` (n, K) themselves, and the budgets of the signals dealt out at random.
    """
    guesses = torch.from_numpy(errors) if how == "errors" else budgets.errors(logarithms(signals))
    dealt = budgets.deal(guesses, budgets.penalty(cost, guesses)).numpy()
    return np.random.default_rng(seed).permutation(dealt) if how == "random" else dealt


def join_dealt(outputs: Sequence[RowOutput], dealt: NDArray[np.int64]) -> RowOutput:
    """Return of each of n images what the row of its budget makes of it; outputs are in the order of the budgets."""
    images = np.arange(len(dealt))
    per_image = {}
    for name in ("scores", "patch_distance", "foreground"):
        known = [output.per_image[name] for output in outputs if name in output.per_image]
        if known:  # the row that keeps all tokens has no scores
            blank = np.zeros_like(known[0])
            per_image[name] = np.stack([output.per_image.get(name, blank) for output in outputs])[dealt, images]
    features = torch.stack([output.features for output in outputs])[torch.from_numpy(dealt), torch.from_numpy(images)]
    return RowOutput(features=features, final_tokens=None, per_image=per_image)


def adaptive_row(fixed: Variant, how: str, rows: BudgetRows, fitted_to: str) -> Variant:
    """Return the row in which pictures take budgets, at the mean cost of a fixed keep rate; it is never run itself."""
    config = {**fixed.config, "budgets": list(rows.keeps), DEALT: how, FITTED_TO: fitted_to}
    name = f"{fixed.model}_{ADAPTIVE[how].replace(' ', '_')}"
    return replace(fixed, model=name, config=config)
