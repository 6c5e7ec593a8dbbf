"""A record of one model at one batch, and the same with another's facts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.latency.machine import Machine, Surroundings
from harness.latency.record import LatencyRecord
from harness.latency.run import compared, timed
from harness.latency.timing import Timing

SAMPLES = (10.0, 11.0, 10.5, 10.2, 10.1, 10.3)


@pytest.fixture
def record() -> Callable[..., LatencyRecord]:
    """Make a record of a dense model; ``samples`` and ``dense`` give it times and a ratio."""
    machine = replace(Machine.here(torch.device("cpu"), None), device_name="A CPU", cores=2)

    def make(
        samples: tuple[float, ...] = SAMPLES, dense: tuple[float, ...] = (), **facts: Any
    ) -> LatencyRecord:
        batch, saved = facts.get("batch", 1), facts.get("saved_gflops")
        timing = Timing(batch=batch, samples_ms=samples) if samples else None
        if timing is not None:
            facts = timed(timing) | facts
        if timing is not None and dense:
            facts = compared(timing, Timing(batch=batch, samples_ms=dense), saved) | facts
        told: dict[str, Any] = {
            "created": "2026-11-26T05:00:00+00:00",
            "version": "0.1.0",
            "model": "clip_vit_b16",
            "method": "dense",
            "keep": 1.0,
            "method_config": {},
            "tag": "openai",
            "weights_sha256": "abc",
            "random_weights": False,
            "image_size": (64, 64),
            "device": "cpu",
            "dtype": "float32",
            "way": "eager",
            "batch": 1,
            "threads": 1,
            "stopwatch": "metronome",
            "machine": machine,
            "gflops": 2.0,
            "params": 1000,
            "tokens_per_block": (65,) * 6,
            "final_tokens": 64,
            "weights_mib": 1.5,
            "surroundings": Surroundings(load_1min=0.5, others_cores=0.1),
        }
        return LatencyRecord(**(told | facts))

    return make
