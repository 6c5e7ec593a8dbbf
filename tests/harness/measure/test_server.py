"""A server under load: its queue beside an obvious simulation, with a clock that only sleeping and serving advance."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import zoo
from harness.measure import server, timing
from harness.measure.server import Servers, draw_arrivals, measure_loads, predict_rate, prepare_server, serve_queries
from harness.records.times import LEAST_QUERIES, MET
from zoo.deploy.runtime import COMPILE, Prepared

SERVE = serve_queries  # which a test patches


class Clock:
    """Ticks while the server sleeps and serves: ``fixed`` a call, and ``each`` a query; it may oversleep."""

    def __init__(self, fixed: float, each: float, late: float = 0.0) -> None:
        self.time, self.fixed, self.each, self.late = 0.0, fixed, each, late
        self.batches: list[int] = []

    def sleep(self, seconds: float) -> None:
        self.time += seconds + self.late

    def serve(self, count: int) -> None:
        self.batches.append(count)
        self.time += self.fixed + self.each * count

    def run(self, arrivals: Any, most: int, **how: Any) -> tuple[NDArray[np.float64], int]:
        return SERVE(self.serve, arrivals, most, now=lambda: self.time, sleep=self.sleep, **how)


def simulate(arrivals: list[int], most: int, fixed: int, each: int) -> list[int]:
    """Go through time in ticks, with a queue and a server that is free or not."""
    latencies, queue, batch, free_at, tick = dict[int, int](), list[int](), list[int](), 0, 0
    while len(latencies) < len(arrivals):
        queue += [query for query, at in enumerate(arrivals) if at == tick]
        if tick == free_at:
            latencies |= {query: tick - arrivals[query] for query in batch}
            batch = []
        if tick >= free_at and queue:
            batch, queue = queue[:most], queue[most:]
            free_at = tick + fixed + each * len(batch)
        tick += 1
    return [latencies[query] for query in range(len(arrivals))]


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("rate", [0.05, 0.12, 0.5])  # idle, busy, and more than it can serve
def test_latencies_are_those_of_a_simulation_tick_by_tick(most: int, rate: float):
    arrivals = np.ceil(draw_arrivals(rate, 100, seed=3))
    clock = Clock(fixed=5, each=2)
    latencies, calls = clock.run(arrivals, most)
    assert latencies.tolist() == simulate(arrivals.astype(int).tolist(), most, fixed=5, each=2)
    assert (calls, sum(clock.batches), max(clock.batches) <= most) == (len(clock.batches), 100, True)


def test_a_late_server_is_not_forgiven():
    latencies, _ = Clock(fixed=2, each=0, late=0.5).run(np.array([1.0, 9.0]), 1)
    assert latencies.tolist() == [2.5, 2.5]


def test_a_run_ends_once_its_p99_is_out_of_reach():
    arrivals = np.arange(200.0)
    clock = Clock(fixed=0.2, each=0)
    assert clock.run(arrivals, 1, bound_ms=300)[1] == 200
    latencies, calls = clock.run(arrivals, 1, bound_ms=100)
    assert (calls, np.isinf(latencies).sum()) == (3, 197)  # two late queries of 200 would still be within


def test_arrivals_are_a_poisson_process_that_a_seed_determines():
    arrivals = draw_arrivals(50, 4000, seed=1)
    assert np.array_equal(arrivals, draw_arrivals(50, 4000, seed=1))
    np.testing.assert_allclose(draw_arrivals(100, 4000, seed=1), arrivals / 2)
    assert not np.array_equal(arrivals, draw_arrivals(50, 4000, seed=2))
    gaps = np.diff(arrivals, prepend=0)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert (gaps > 1 / 50).mean() == pytest.approx(math.exp(-1), abs=0.03)  # memoryless


def test_a_rate_is_predicted_from_the_times_of_calls():
    clock, rate = Clock(fixed=0.02, each=0.005), predict_rate({n: [0.02 + 0.005 * n] for n in range(1, 9)}, 100)

    def share(rate: float) -> float:  # of other runs that are within
        runs = (clock.run(draw_arrivals(rate, LEAST_QUERIES, seed), 8)[0] for seed in range(100, 200))
        return float(np.mean([np.percentile(1000 * run, 99, method="inverted_cdf") <= 100 for run in runs]))

    assert share(rate) > 0.85 > share(1.15 * rate)
    some_slow = {n: [0.02 + 0.005 * n, 0.04 + 0.005 * n] for n in range(1, 9)}
    assert predict_rate(some_slow, 100) < rate
    assert predict_rate({1: [0.02], 2: [0.03]}, 19) == 0
    assert predict_rate({1: [0.04], 2: [0.06]}, 50) == 0  # 0.14 a second, at which a run takes 23 minutes


def test_each_model_gets_a_rate_within_the_bound_and_none_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    costs = {"slow": 0.01, "fast": 0.005, "none": 0.06}  # seconds a call
    calls: dict[str, Any] = {key: lambda images, key=key: serving.append(key) for key in costs}
    serving, order = list[str](), list[tuple[str, float]]()

    def serve_on_a_clock(serve: Any, arrivals: Any, most: int, **how: Any) -> Any:
        if "now" in how:  # a prediction
            return SERVE(serve, arrivals, most, **how)
        serve(1)
        order.append((serving[-1], len(arrivals) / arrivals[-1]))
        return Clock(fixed=costs[serving[-1]], each=costs[serving[-1]] / 10).run(arrivals, most, **how)

    monkeypatch.setattr(server, "serve_queries", serve_on_a_clock)
    times_s = {key: {n: [cost * (1 + n / 10)] for n in range(1, 5)} for key, cost in costs.items()}
    times_s["slow"] = {n: [0.7 * seconds for seconds in times] for n, times in times_s["slow"].items()}
    monkeypatch.setattr(Servers, "time_sizes", lambda *_: times_s)
    monkeypatch.setattr(timing, "why_crowded", lambda _: "")
    servers = Servers(calls=calls, images=torch.zeros(4, 3, 8, 8), rounds=6, seconds=60.0)
    loads = measure_loads(replace(servers, seconds=0.0), rate=None, bound_ms=50)
    assert loads.keys() == {"slow", "fast"}
    # Stopped once a run is late, tried again by 10 % less.
    assert serving.count("fast") == 6 < serving.count("slow") < 12
    for key, load in loads.items():
        assert (load.verdict(50), load.queries, len(load.runs)) == (MET, LEAST_QUERIES, 6)
        assert 0.5 < load.rate * costs[key] < 3  # queries that arrive in a call, of four at most
    del order[:]
    loads = measure_loads(servers, rate=40, bound_ms=50)
    assert {(load.rate, load.queries) for load in loads.values()} == {(40, 400)}
    assert [key for key, _ in order[:6]] == ["slow", "fast", "none", "fast", "none", "slow"]
    assert len({rate for _, rate in order[:3]}) == 1  # the same arrivals


def test_batches_of_fixed_sizes_are_filled_up(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch):
    sizes = list[int]()

    def prepare(vit: Any, runtime: str, images: Any, *_: Any) -> timing.ReadyModel:
        def call(batch: Any) -> Any:
            assert len(batch) == len(images)
            sizes.append(len(batch))
            return vit(batch)

        prepared = Prepared(call=call, dtype=torch.float32, batch=len(images))
        return timing.ReadyModel(prepared=prepared, first_call_s=1.0)

    monkeypatch.setattr(timing, "prepare", prepare)
    images = torch.randn(6, 3, 64, 64)
    ready = prepare_server(partial(timing.prepare, dense, COMPILE), images)
    assert ready.first_call_s == 4  # of 1, 2, 4 and 6 images
    with torch.inference_mode():
        torch.testing.assert_close(ready.call(images[:3]), dense(images[:3]))
    ready.call(images)
    assert sizes == [4, 6]
