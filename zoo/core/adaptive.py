"""Input-adaptive reduction: every picture takes one of a few keep rates, its budget, by an early signal.

Plain pictures lose little at a low keep rate, detailed ones much. At each keep rate, the logarithm of 1 - cosine is
about a straight line of the signal's logarithm, which tells what a budget would cost a picture. The pictures of one
budget are run together, so that shapes are those of a fixed keep rate.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.merger import pair_costs, scale_places
from zoo.core.reducer import HostSpec, Reducer, ReducerConfig, build_reducer
from zoo.core.settings import check_fields
from zoo.core.tokens import Reduction, Tokens, every_position, lowest, rank_scores

DISTANCE = 0.5  # what a squared distance in the grid costs in the signal, as rankmerge's
LEAST = 1e-12  # signal of a picture without any detail
_HALVINGS = 100  # of the interval in which a penalty is looked for
_PENALTIES = (1e-12, 1e6)  # between which lies every penalty that is of use


@torch.no_grad()
def signal(tokens: Tokens) -> Tensor:
    """Return how much detail the patch tokens have, (B,) float32: 0 if half of them have an equal in their place.

    It is the mean cost of merging a patch token into its nearest, as of rankmerge's pairs, over the cheaper half.
    """
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        near, _ = lowest(pair_costs(tokens.patches.float(), scale_places(tokens, DISTANCE), None))
        return near.topk(max(1, tokens.patch_count // 2), dim=1, largest=False, sorted=False).values.mean(dim=1)


def signal_gflops(patches: int, width: int) -> float:
    """Return what the signal of N patch tokens of width D costs, 1e9 multiply-adds per picture: two N x N products."""
    return patches * patches * (width + 4) / 1e9


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The keep rates that pictures may take, and what is known of each on unlabelled pictures.

    Attributes:
        keeps: K keep rates, falling, the first may be 1.
        costs: multiply-adds at each by the dense tower's, the signal's included.
        slopes, intercepts: of the lines that give the logarithm of 1 - cosine by that of the signal; 0 at keep rate 1.
        spreads: standard deviation of that logarithm around each line.
        signals: logarithms of the signals of pictures, ascending, by which a penalty is found for a mean cost.
        signal_at: block whose input gives the signal; 0 for the embedded patches.
        patches: patch tokens N of a picture.
    """

    keeps: tuple[float, ...]
    costs: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    spreads: tuple[float, ...]
    signals: tuple[float, ...]
    signal_at: int
    patches: int

    def __post_init__(self) -> None:
        check_keeps(self.keeps)
        for name in ("keeps", "costs", "slopes", "intercepts", "spreads", "signals"):
            values = tuple(getattr(self, name))  # lists of JSON
            object.__setattr__(self, name, values)
            if name != "signals" and len(values) != len(self.keeps):
                raise ValueError(f"{name} has {len(values)} values for {len(self.keeps)} budgets")
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name}={list(values)}: expected finite numbers")
        if min(self.costs) <= 0 or any(low >= high for high, low in pairwise(self.costs)):
            raise ValueError(f"costs={list(self.costs)}: expected positive numbers that fall with the keep rate")
        if min(self.spreads) < 0:
            raise ValueError(f"spreads={list(self.spreads)}: expected numbers from 0")
        if not self.signals or list(self.signals) != sorted(self.signals):
            raise ValueError(f"signals: expected {'ascending numbers' if self.signals else 'one at least'}")
        check_fields(self, signal_at="[0, inf)", patches="[1, inf)")

    def errors(self, signals: Tensor) -> Tensor:
        """Return the expected 1 - cosine of pictures at each budget, (n, K) float64, by logarithms of signals (n,).

        It never falls from one budget to the next.
        """
        slope, intercept, spread = (torch.tensor(x) for x in (self.slopes, self.intercepts, self.spreads))
        lines = signals.double().cpu().unsqueeze(1) * slope.double() + intercept + spread.double().square() / 2
        dense = torch.tensor([keep == 1 for keep in self.keeps])
        return lines.exp().masked_fill(dense, 0.0).cummax(dim=1).values

    def deal(self, errors: Tensor, penalty: float) -> Tensor:
        """Return the budget of each picture, (n,) int64: that of the least error (n, K) plus penalty times cost."""
        return (errors + penalty * torch.tensor(self.costs, dtype=errors.dtype)).argmin(dim=1)

    def assign(self, signals: Tensor, penalty: float) -> Tensor:
        """Return the budget of each picture, (B,) int64 on the CPU, by signals (B,); ValueError for one with NaN."""
        if not bool(signals.isfinite().all()):
            raise ValueError("a picture has no signal: its embedded patches hold NaN or infinite numbers")
        return self.deal(self.errors(signals.clamp(min=LEAST).log()), penalty)

    def mean_cost(self, errors: Tensor, penalty: float) -> float:
        """Return the mean cost of pictures with these errors (n, K) at a penalty, by the dense tower's."""
        return float(torch.tensor(self.costs, dtype=torch.float64)[self.deal(errors, penalty)].mean())

    def penalty(self, cost: float, errors: Tensor | None = None) -> float:
        """Return the penalty at which pictures cost ``cost`` of the dense tower on average, or a little less.

        The pictures are those of ``signals``, or those of ``errors`` (n, K). Raise ValueError for a cost out of reach.
        """
        check_cost(cost, self.keeps, self.costs)
        errors = self.errors(torch.tensor(self.signals)) if errors is None else errors
        return halve(lambda penalty: self.mean_cost(errors, penalty) <= cost)

    def cost_of(self, keep: float) -> float:
        """Return about what a fixed keep rate costs by the dense tower, between the budgets' costs."""
        if not self.keeps[-1] <= keep <= self.keeps[0]:
            raise ValueError(f"keep={keep!r}: expected a keep rate from {self.keeps[-1]:g} to {self.keeps[0]:g}")
        for (more, high), (less, low) in pairwise(zip(self.keeps, self.costs, strict=True)):
            if keep >= less:
                return low + (high - low) * (keep - less) / (more - less)
        raise AssertionError


def check_keeps(keeps: Sequence[float]) -> None:
    """Raise ValueError unless there are two keep rates at least, in (0, 1], falling."""
    if len(keeps) < 2 or any(low >= high for high, low in pairwise(keeps)) or not 0 < keeps[-1] < keeps[0] <= 1:
        raise ValueError(f"keeps={list(keeps)}: expected two budgets at least, keep rates in (0, 1] that fall")


def check_cost(cost: float, keeps: Sequence[float], costs: Sequence[float]) -> None:
    """Raise ValueError for a mean cost that budgets of these keep rates and costs can't have."""
    if not costs[-1] <= cost <= costs[0]:
        raise ValueError(
            f"cost={cost!r}: expected a share of the dense tower's multiply-adds from {costs[-1]:.3f}, of keep rate "
            f"{keeps[-1]:g}, to {costs[0]:.3f}, of {keeps[0]:g}"
        )


def halve(meets: Callable[[float], bool]) -> float:
    """Return about the least penalty at which ``meets`` is true, which it is for all that are larger."""
    low, high = map(math.log, _PENALTIES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(math.exp(middle)) else (middle, high)
    return math.exp(high)


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Settings of an adaptive tower.

    Attributes:
        budgets: what pictures may take.
        cost: mean multiply-adds per picture by the dense tower's, on pictures like those of the budgets.
        fixed: settings of the method at the last budget.
    """

    budgets: Budgets
    cost: float
    fixed: ReducerConfig

    keep = None

    def plain(self) -> dict[str, Any]:
        """Return the arguments of ``zoo.reduce`` as JSON has them, without the method."""
        options = self.fixed.plain()
        del options["keep"]
        return {**options, "budgets": json.loads(json.dumps(asdict(self.budgets))), "cost": self.cost}

    def predictor_block(self, depth: int) -> int | None:
        """Return the block before which a predictor scores; None for most methods."""
        return self.fixed.predictor_block(depth)


class Adaptive(Reducer):
    """Reducers of one method at several keep rates, and what deals them to pictures; ``Host.advance`` asks it."""

    config: Any  # an ``AdaptiveConfig``

    def __init__(self, budgets: Budgets, cost: float, method: str, options: dict[str, Any], host: HostSpec) -> None:
        """Build a reducer of each budget; raise ValueError for options, a cost or a block that can't be had."""
        nn.Module.__init__(self)
        each = [build_reducer(method, {**options, "keep": keep}, host) for keep in budgets.keeps]
        self.reducers = nn.ModuleList(each)
        self.config, self.budgets = AdaptiveConfig(budgets=budgets, cost=cost, fixed=each[-1].config), budgets
        self.method, self.depth = method, host.depth  # type: ignore[misc]
        self.points = each[-1].points
        self.penalty = budgets.penalty(cost)
        least = min(reducer.first_block for reducer in each)
        if budgets.signal_at > least:
            raise ValueError(
                f"signal_at={budgets.signal_at}: expected a block up to {least}, before which no budget reduces"
            )

    @property
    def each(self) -> list[Reducer]:
        """The reducer of each budget."""
        return [each for each in self.reducers if isinstance(each, Reducer)]

    @property
    def first_block(self) -> int:
        """Index of the block whose input is divided."""
        return self.budgets.signal_at

    def counts(self, patches: int) -> dict[int, int]:
        """Raise ValueError: budgets have counts of their own."""
        raise ValueError("an adaptive tower keeps other numbers of patch tokens of each picture; take tower.budget(i)")

    def signals(self, tokens: Tokens) -> Tensor:
        """Return the signal of each picture, (B,) float32; ValueError for another grid than that of the budgets."""
        if tokens.patch_count != self.budgets.patches:
            raise ValueError(
                f"pictures of {tokens.grid[0]} x {tokens.grid[1]} patches: the budgets were fitted on "
                f"{self.budgets.patches} patches; expected pictures of that size"
            )
        return signal(tokens)

    def assign(self, tokens: Tokens) -> Tensor:
        """Return the budget of each picture, (B,) int64 on the CPU, by the tokens that enter ``first_block``.

        Raises:
            ValueError: another grid than that of the budgets, a picture with NaN, or a graph that is being recorded.
        """
        if torch.compiler.is_exporting() or torch._C._get_tracing_state():
            raise ValueError(
                "an adaptive tower has no graph of its own, as its shapes follow the pictures; take tower.budget(i)"
            )
        return self.budgets.assign(self.signals(tokens), self.penalty)

    def extra_repr(self) -> str:
        """Show budgets and cost in the printed form."""
        return f"keeps={self.budgets.keeps}, cost={self.config.cost}"


def join_groups(groups: Sequence[tuple[Tensor, Tokens]], *, ranked: bool = False) -> Tokens:
    """Return sequences of one batch in the pictures' order, by the rows (k,) of each group and its tokens.

    Shorter ones are filled up with copies of their first patch token, of size 0 and position -1. The history is one
    reduction from all patches to those that are left; its importance is that of the whole history if ``ranked``.
    """
    order = torch.cat([rows for rows, _ in groups]).argsort()
    parts = [tokens for _, tokens in groups]
    most, first = max(part.patch_count for part in parts), parts[0]
    even = all(part.patch_count == most for part in parts)

    def join(values: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(values))[order]

    def optional(name: str, whole: Any, fill: float) -> Tensor | None:
        """Join a field (B, n, ...) that some parts may lack, which ``whole`` makes for them."""
        if all(getattr(part, name) is None for part in parts) and (even or name != "size"):
            return None
        values = (whole(part) if getattr(part, name) is None else getattr(part, name) for part in parts)
        return join(_fill(value, most, value.new_full((), fill)) for value in values)

    history: tuple[Reduction, ...] = ()
    every = every_position(first.x[:1], math.prod(first.grid))
    idx = join(_fill(part.patch_idx, most, part.patch_idx.new_full((), -1)) for part in parts)
    if any(part.history for part in parts):
        scores = [_scores(part, every, ranked=ranked) for part in parts]
        into = join(part.token_of_patch() if part.history else every.expand(len(part.x), -1) for part in parts)
        history = (Reduction(-1, every.expand(len(idx), -1), idx, join(scores), into),)
    pooled = first.x.shape[1] == 1 and first.prefix + first.patch_count > 1
    x = (part.x if pooled else _fill(part.x, first.prefix + most, part.x[:, first.prefix :][:, :1]) for part in parts)
    return first._replace(
        x=join(x),
        patch_idx=idx,
        size=optional("size", Tokens.sizes, 0.0),
        key_weight=optional("key_weight", Tokens.sizes, 0.0),
        place=optional("place", Tokens.places, -1.0),
        importance=None,
        history=history,
    )


def _scores(part: Tokens, every: Tensor, *, ranked: bool) -> Tensor:
    if ranked and part.history:
        return rank_scores(part.history, every.shape[1])
    return torch.zeros(len(part.patch_idx), every.shape[1], device=every.device)


def _fill(values: Tensor, count: int, value: Tensor) -> Tensor:
    """Fill values (B, n, ...) up to ``count`` along the second dimension."""
    lack = count - values.shape[1]
    if not lack:
        return values
    shape = (values.shape[0], lack, *values.shape[2:])
    return torch.cat((values, value.expand(shape)), dim=1)
