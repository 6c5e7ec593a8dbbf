"""Serve queries that arrive at random, as MLPerf's server scenario does, and find a rate within a bound.

A query is one image, arrivals are a Poisson process, and a latency counts from the scheduled arrival, so that a server
that is late isn't forgiven (Reddi et al., 2020, "MLPerf Inference Benchmark").
"""

import functools
import math
import random
import time
import timeit
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.measure import timing
from harness.records.times import LEAST_QUERIES, MET, Load, Percentiles

SIMULATED, LIKELY = 40, 0.95  # runs of a prediction; share of them that must be within the bound
NEAR = 0.01  # share of a rate to which a prediction goes
SELDOM = 1 / 32  # of the rate of single queries: below it they hardly ever wait for each other, and runs take hours
SAMPLES = 9  # of each batch size, timed before a prediction
LOWER, TRIES = 0.9, 8  # factor for a rate that isn't shown to be within the bound; rates that are tried
UNSEEN = 1000  # seed of arrivals from which on no prediction has seen them

K = TypeVar("K", bound=Hashable)
Seconds = NDArray[np.float64]


def draw_arrivals(rate: float, count: int, seed: int) -> Seconds:
    """Return when queries of a Poisson process arrive, (count,); another rate stretches the same draw."""
    return np.random.default_rng(seed).exponential(1.0, count).cumsum() / rate


def serve_queries(
    serve: Callable[[int], object],
    arrivals: Seconds,
    most: int,
    *,
    bound_ms: float = math.inf,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[Seconds, int]:
    """Answer queries by ``serve``, which takes how many: each call those that wait, but no more than ``most``.

    No arrival waits for an answer. Once p99 can't be within ``bound_ms``, the rest has infinite latencies.

    Returns:
        The latencies (n,), and the number of calls.
    """
    count, done, calls, late, begun = len(arrivals), 0, 0, 0, now()
    latencies_s = np.full(count, math.inf)
    while done < count and late <= count // 100:
        if (ahead := arrivals[done] - (now() - begun)) > 0:
            sleep(ahead)
        waiting = int(np.searchsorted(arrivals, now() - begun, side="right")) - done
        batch = slice(done, done + min(max(waiting, 1), most))
        serve(batch.stop - done)
        latencies_s[batch] = now() - begun - arrivals[batch]
        late += int((1000 * latencies_s[batch] > bound_ms).sum())
        done, calls = batch.stop, calls + 1
    return latencies_s, calls


def predict_rate(times_s: Mapping[int, Sequence[float]], bound_ms: float) -> float:
    """Return the highest rate at which nearly all of many simulated runs keep p99 within a bound.

    ``times_s`` are seconds that calls of each size took; a simulated call takes one of them at random. The rate is 0 if
    that is so only where queries hardly ever wait, see `SELDOM`, or nowhere.
    """
    most, clock = max(times_s), [0.0]
    medians_s = {count: float(np.median(times)) for count, times in times_s.items()}

    def advance(seconds: float) -> None:
        clock[0] += seconds

    def is_within(rate: float, seed: int) -> bool:
        clock[0] = 0.0
        arrivals, draw = draw_arrivals(rate, LEAST_QUERIES, seed), random.Random(seed)
        serve = lambda count: advance(draw.choice(times_s[count]))  # noqa: E731
        latencies_s, _ = serve_queries(serve, arrivals, most, bound_ms=bound_ms, now=lambda: clock[0], sleep=advance)
        return Percentiles.of(1000 * latencies_s).p99_ms <= bound_ms

    low, high = 0.0, 2 * max(count / seconds for count, seconds in medians_s.items())
    while high > SELDOM / medians_s[1] and high - low > NEAR * high:
        rate = (low + high) / 2
        within = sum(is_within(rate, seed) for seed in range(SIMULATED)) >= LIKELY * SIMULATED
        low, high = (rate, high) if within else (low, rate)
    return low


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the sizes of batches that a server runs, ascending: the powers of two below ``most``, and ``most``."""
    return tuple(sorted({min(2**power, most) for power in range(most.bit_length() + 1)}))


def call_in_sizes(calls: Mapping[int, Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    """Return features (n, D) of images (n, ...), filled up with zeros to the next of the sizes that calls take."""
    size = min(size for size in calls if size >= len(images))
    filled = F.pad(images, (0,) * (2 * images.ndim - 1) + (size - len(images),))
    return calls[size](filled)[: len(images)]


def prepare_server(prepare: Callable[[Tensor], timing.ReadyModel], images: Tensor) -> timing.ReadyModel:
    """Make a model ready for as many images as are given, or fewer, by what makes it ready for some.

    Where a runtime fixes sizes, batches are filled up to the next of `batch_sizes`.
    """
    most = len(images)
    ready = {most: prepare(images)}
    if (whole := ready[most].prepared) is None or whole.batch is None:
        return ready[most]
    for size in batch_sizes(most)[:-1]:
        ready[size] = prepare(images[:size])
        if ready[size].prepared is None:
            return ready[size]
    calls = {size: part.call for size, part in ready.items()}
    prepared = replace(whole, call=functools.partial(call_in_sizes, calls), batch=None)
    seconds = sum(part.first_call_s or 0.0 for part in ready.values())
    return replace(ready[most], prepared=prepared, first_call_s=seconds)


@dataclass(frozen=True, kw_only=True)
class Servers(Generic[K]):
    """Models that are ready, run as servers in turn, with batches of no more than the images."""

    calls: Mapping[K, timing.Call]
    images: Tensor  # (B, C, H, W)
    rounds: int  # runs of each
    seconds: float  # that these last together, at least

    def serve(self, key: K, count: int) -> None:
        """Answer so many queries."""
        self.calls[key](self.images[:count])
        timing.synchronizer(self.images.device)()

    def time_sizes(self, samples: int) -> dict[K, dict[int, list[float]]]:
        """Return the seconds of so many calls of each model by their number of queries, after one that makes it warm.

        Models take turns.
        """
        times_s: dict[K, dict[int, list[float]]] = {key: {} for key in self.calls}
        for count in range(len(self.images), 0, -1):
            for turn in range(1 + samples):
                for key, times in times_s.items():
                    seconds = timeit.timeit(functools.partial(self.serve, key, count), number=1)
                    if turn:
                        times.setdefault(count, []).append(seconds)
        return times_s

    def run_rounds(
        self, rates: Mapping[K, float], tick: Callable[[int], object], bound_ms: float = math.inf
    ) -> dict[K, Load]:
        """Run each model at its rate, with arrivals that no prediction has seen.

        A model that can't meet ``bound_ms`` any more, whatever its further runs give, is stopped and missing.
        """
        loads, best = dict[K, Load](), (Percentiles(0, 0, 0),) * self.rounds
        keys, runs, calls = list(rates), {key: list[Percentiles]() for key in rates}, Counter[K]()
        for turn in range(self.rounds):
            first = turn % max(len(keys), 1)
            for key in keys[first:] + keys[:first]:
                queries = max(LEAST_QUERIES, math.ceil(rates[key] * self.seconds / self.rounds))
                arrivals = draw_arrivals(rates[key], queries, UNSEEN + turn)
                latencies_s, count = serve_queries(functools.partial(self.serve, key), arrivals, len(self.images))
                runs[key].append(Percentiles.of(1000 * latencies_s))
                calls[key] += count
                mean = len(runs[key]) * queries / calls[key]
                known = (*runs[key], *best)[: self.rounds]
                loads[key] = Load(rate=rates[key], queries=queries, runs=known, batch_mean=mean)
            keys = [key for key in keys if loads[key].verdict(bound_ms) == MET]
            tick(turn + 1)
        return {key: loads[key] for key in keys}


@torch.inference_mode()
def measure_loads(
    servers: Servers[K],
    *,
    bound_ms: float,
    rate: float | None,
    tick: Callable[[int], object] = lambda _: None,
) -> dict[K, Load]:
    """Run servers at a rate, or without one each at the highest that is shown to keep p99 within ``bound_ms``.

    That is the predicted rate, or a lower one. A model that has none is missing. ``tick`` takes finished rounds.

    Raises:
        BusyError: other processes left too little of the CPU.
    """
    others_cores = timing.count_others()
    times_s = servers.time_sizes(SAMPLES if rate is None else 0)

    def run(rates: Mapping[K, float], bound_ms: float = math.inf) -> dict[K, Load]:
        loads = servers.run_rounds(rates, tick, bound_ms)
        if servers.images.device.type == "cpu" and (why := timing.why_crowded(others_cores())):
            raise timing.BusyError(why)
        return loads

    if rate is not None:
        return run(dict.fromkeys(times_s, rate))
    rates = {key: top for key, sizes in times_s.items() if (top := predict_rate(sizes, bound_ms))}
    loads, bounds = dict[K, Load](), [bound_ms] * (TRIES - 1) + [math.inf]
    while rates:
        loads |= run(rates, bounds.pop(0))
        rates = {key: LOWER * rates[key] for key in rates if key not in loads}
    return loads
