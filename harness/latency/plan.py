"""What to time, and under which conditions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.conditions import DENSE, DTYPES, GOLDEN
from harness.latency.verdict import LEAST_ROUNDS
from harness.latency.ways import EAGER, check_ways
from harness.measure.rows import known_methods
from zoo.reducer import expected

CPU_BATCHES, CUDA_BATCHES = (1, 8, 32), (1, 8, 32, 64, 256)
MOST_THREADS = 1024  # of so many more OpenMP ends the process, without an error to catch


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    """What to time.

    Attributes:
        models: names, dense or reduced; each is timed beside its dense tower.
        methods: further reductions of each model's dense tower.
        keeps: their keep rates.
        batches: images per call.
        dtypes: names in ``harness.conditions.DTYPES``.
        ways: of ``ways.WAYS``.
        threads: torch's threads.
        rounds: calls of each model, at least.
        seconds: rounds go on for so long.
        device: torch device.
        random_weights: whether to do without weights; only for models of ours.

    Raises:
        ValueError: a value out of range, or a way that the device hasn't.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...] = ()
    keeps: tuple[float, ...] = (0.6,)
    batches: tuple[int, ...] = CPU_BATCHES
    dtypes: tuple[str, ...] = ("float32",)
    ways: tuple[str, ...] = (EAGER,)
    threads: tuple[int, ...]
    rounds: int = 9
    seconds: float = 5.0
    device: str = "cpu"
    random_weights: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        self._check_numbers()
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"--dtypes {dtype!r}: {expected(dtype, DTYPES)}")
        real = [name for name in known_methods() if name not in (DENSE, GOLDEN)]
        for method in self.methods:
            if method not in real:
                raise ValueError(f"--methods {method!r}: {expected(method, real)}")
        check_ways(self.ways, torch.device(self.device))

    def _check_numbers(self) -> None:
        for flag, values in (("batches", self.batches), ("threads", self.threads)):
            if not values:
                raise ValueError(f"--{flag} without a number: expected numbers from 1")
            most = MOST_THREADS if flag == "threads" else None
            for value in values:
                if value < 1 or (most is not None and value > most):
                    range_ = "from 1" if most is None else f"from 1 to {most}"
                    raise ValueError(f"--{flag} {value}: expected a number {range_}")
        if self.rounds < LEAST_ROUNDS:
            raise ValueError(
                f"--rounds {self.rounds}: expected a number from {LEAST_ROUNDS}; of fewer rounds "
                "no median has a 95 % interval, so nothing could be concluded"
            )
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"--seconds {self.seconds:g}: expected a number from 0")
        for keep in self.keeps:
            if not 0 < keep <= 1:
                raise ValueError(f"--keeps {keep:g}: expected fractions in (0, 1], such as 0.6")


def batches_for(device: str, asked: Sequence[int] | None) -> tuple[int, ...]:
    """Return the batches asked for, or the usual ones of the device."""
    if asked is not None:
        return tuple(dict.fromkeys(asked))
    return CUDA_BATCHES if torch.device(device).type == "cuda" else CPU_BATCHES
