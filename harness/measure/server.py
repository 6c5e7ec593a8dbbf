"""Serve queries that arrive at random, as MLPerf's server scenario does, and find the highest rate within a bound.

A query is one image, arrivals are a Poisson process, and a latency counts from the scheduled arrival, so that a server
that is late isn't forgiven (Reddi et al., 2020, "MLPerf Inference Benchmark").
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.measure import timing
from harness.records.times import LEAST_QUERIES, MET, Load, Percentiles
from zoo.towers.vit import ReducedViT

STATIC = (timing.COMPILE, timing.CUDA_GRAPHS)  # ways whose batches have fixed sizes
STEPS, NEAR = 12, 0.03  # of a search, at most; share of a rate at which it ends
LOWER, TRIES = 0.95, 6  # factor for a rate that misses the bound in the end; rates that are tried
UNSEEN = 1000  # seed of arrivals from which on no search has seen them

K = TypeVar("K")
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
    count, done, calls, begun = len(arrivals), 0, 0, now()
    latencies_s = np.full(count, math.inf)
    while done < count and (1000 * latencies_s[:done] > bound_ms).sum() <= count // 100:
        if (ahead := arrivals[done] - (now() - begun)) > 0:
            sleep(ahead)
        waiting = int(np.searchsorted(arrivals, now() - begun, side="right")) - done
        batch = slice(done, done + min(max(waiting, 1), most))
        serve(batch.stop - done)
        latencies_s[batch] = now() - begun - arrivals[batch]
        done, calls = batch.stop, calls + 1
    return latencies_s, calls


def find_rates(is_within: Callable[[K, float, int], bool], starts: Mapping[K, float]) -> dict[K, float]:
    """Double and bisect rates, all of them in turn, for the highest that are within a bound; 0 where none is.

    ``is_within`` takes a rate and a seed. Two answers of three decide, as other processes may disturb one.
    """
    low, high = dict.fromkeys(starts, 0.0), dict.fromkeys(starts, math.inf)
    asked = dict(starts)
    for step in range(STEPS):
        for key, rate in list(asked.items()):
            first, second = (is_within(key, rate, 3 * step + turn) for turn in range(2))
            within = first if first == second else is_within(key, rate, 3 * step + 2)
            (low if within else high)[key] = rate
            asked[key] = 2 * rate if high[key] == math.inf else (low[key] + high[key]) / 2
            if high[key] - low[key] <= NEAR * high[key] < math.inf:
                del asked[key]
    return low


def prepare_server(vit: ReducedViT, way: str, images: Tensor, dtype: str | None = None) -> timing.ReadyModel:
    """Make a model ready for as many images as are given, or fewer, see `timing.prepare`.

    Where sizes are fixed there is one for each power of two, and batches are filled up to the next.
    """
    most = len(images)
    sizes = sorted({min(2**power, most) for power in range(most.bit_length() + 1)}) if way in STATIC else [most]
    ready = {}
    for size in sizes:
        ready[size] = timing.prepare(vit, way, images[:size], dtype)
        if ready[size].call is None:
            return ready[size]
    if way not in STATIC:
        return ready[most]

    def call(batch: Tensor) -> Tensor:
        size = next(size for size in sizes if size >= len(batch))
        run: Any = ready[size].call
        features: Tensor = run(F.pad(batch, (0,) * 7 + (size - len(batch),)))
        return features[: len(batch)]

    return replace(ready[most], call=call, first_call_s=sum(one.first_call_s or 0.0 for one in ready.values()))


@torch.inference_mode()
def measure_loads(
    calls: Mapping[K, timing.Call],
    images: Tensor,
    rounds: int,
    seconds: float,
    *,
    bound_ms: float,
    rate: float | None,
    tick: Callable[[int], object] = lambda _: None,
) -> dict[K, Load]:
    """Run models as servers, in turn, on the same arrivals, with batches of at most these images (B, C, H, W).

    Each has ``rounds`` runs, of ``seconds`` in all and `LEAST_QUERIES` each, at least. Without a ``rate`` each has the
    highest that is found to keep p99 within ``bound_ms``; a model that has none is missing.

    Raises:
        BusyError: other processes left too little of the CPU.
    """
    most, wait = len(images), timing.synchronizer(images.device)

    def run(key: K, rate: float, seed: int, bound_ms: float = math.inf) -> tuple[Percentiles, int]:
        def serve(count: int) -> None:
            calls[key](images[:count])
            wait()

        arrivals = draw_arrivals(rate, count_queries(rate), seed)
        latencies_s, called = serve_queries(serve, arrivals, most, bound_ms=bound_ms)
        return Percentiles.of(1000 * latencies_s), called

    def count_queries(rate: float) -> int:
        return max(LEAST_QUERIES, math.ceil(rate * seconds / rounds))

    def run_rounds(rates: Mapping[K, float]) -> dict[K, Load]:
        keys, found = list(rates), {key: list[tuple[Percentiles, int]]() for key in rates}
        for turn in range(rounds):
            first = turn % len(keys)
            for key in keys[first:] + keys[:first]:
                found[key].append(run(key, rates[key], UNSEEN + turn))
            tick(turn + 1)
        loads = {}
        for key, own in found.items():
            runs, called = zip(*own, strict=True)
            queries = count_queries(rates[key])
            loads[key] = Load(rate=rates[key], queries=queries, runs=runs, batch_mean=rounds * queries / sum(called))
        return loads

    others_cores, starts = timing.count_others(), dict[K, float]()
    for key, call in calls.items():
        for count in range(most, 0, -1):  # whose first call sets something up
            call(images[:count])
        starts[key] = 1000 / timing.wall_clock(wait).time_ms(call, images[:1])
    if rate is None:
        found = find_rates(lambda *asked: run(*asked, bound_ms)[0].p99_ms <= bound_ms, starts)
        rates = {key: one for key, one in found.items() if one}
    else:
        rates = dict.fromkeys(calls, rate)
    loads = dict[K, Load]()
    for _ in range(1 if rate is not None else TRIES):
        if rates:
            loads |= run_rounds(rates)
        rates = {key: LOWER * rates[key] for key in rates if loads[key].verdict(bound_ms) != MET}
    if images.device.type == "cpu" and (why := timing.why_crowded(others_cores())):
        raise timing.BusyError(why)
    return loads
