"""Setups of a tower, measured on pictures and timed: what is predicted, judged and certified."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness import git_commit
from harness.base.table import json_values
from harness.base.terminal import Progress
from harness.datasets.base import cached_json, keep_json
from harness.measure import timing
from harness.measure.budgets import logarithms
from harness.measure.candidates import Candidate, ChooseConfig, Workshop
from harness.measure.cost import gflops
from harness.measure.fidelity import COSINE, SetupBounds, Values
from harness.records.record import DENSE, utc_now
from harness.records.statistics import Interval, exact, median_interval
from harness.records.times import Timing
from zoo.core.digests import digest
from zoo.deploy.setup import Setup

ROUNDS = 6  # in which candidates are compared
# Ratios of times: to the dense tower in eager float32, and to the fastest dense tower that meets the bounds.
TOTAL, DENSE_RATIO = "ratio_to_dense", "ratio_to_fastest_dense"


class Prediction(NamedTuple):
    """What is expected of a setup, by the pictures to search by."""

    share: float  # of the allowed loss that it uses up
    cosine: float  # mean, to dense in float32
    time: float  # by the dense tower's in eager float32


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A setup with what is known of it."""

    candidate: Candidate
    predicted: Prediction | None = None
    passed: bool | None = None  # whether it meets the bounds on pictures held out; None where it wasn't judged
    fidelity: dict[str, Interval] = field(default_factory=dict)  # there, see `Pictures.figures`
    time: dict[str, Any] = field(default_factory=dict)  # see `Lab.measure_times`; empty where it wasn't timed

    @property
    def pays(self) -> bool:
        """Whether it is dense, or clearly faster than the fastest dense tower that meets the bounds."""
        return self.candidate.method is None or self.time[DENSE_RATIO].high < 1

    @property
    def ratio(self) -> Interval:
        """The time that was measured in the end, or else predicted, by dense's in eager float32."""
        predicted = math.inf if self.predicted is None else self.predicted.time
        return self.time[TOTAL] if self.time else exact(predicted)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        one = self.candidate
        values = {"name": one.name, "method": one.method, "options": one.options, **one.way._asdict()}
        values |= {"predicted": self.predicted, "passed": self.passed, "fidelity": self.fidelity or None}
        return json_values(values | {TOTAL: self.time.get(TOTAL)})


STAGES = (
    "the dense tower in the process",
    "methods and keep rates in the process",
    "the dense tower in all runtimes",
    "int8 recipes and keep rates in each runtime that can win",
    "setups on pictures held out",
    "times of setups that meet the bounds",
)


class Lab(Workshop):
    """A workshop that measures on pictures, and times, what it makes; the user's cache keeps values."""

    def __init__(
        self,
        model: str,
        dataset: str,
        bounds: SetupBounds,
        config: ChooseConfig,
        progress: Progress,
        *,
        fresh: bool = False,
        tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Open the workshop; ``fresh`` remembers no values; ``tick`` takes the number of `STAGES` that are done."""
        super().__init__(model, dataset, bounds, config, progress.say)
        self.progress, self.tick, self.patience = progress, tick, timing.Patience(say=self.say)
        self.times: dict[Candidate, float] = {}  # by dense's in eager float32
        self.predictions: dict[Candidate, Prediction] = {}
        self._gflops: dict[Any, float] = {}
        self._path, known = cached_json(
            "choices",
            *(self.exports.makers, git_commit(), self.tower.name, self.exports.weights, list(self.inside)),
            *(self.dataset.name, self.dataset.condition, bounds.max_loss is None, self.exports.calibrated),
            *(self.search.split.image_ids, self.held_out.split.image_ids),
            *(config.device, torch.get_num_threads(), *map(digest, self.predictors)),
            [digest(Path(one.budgets)) for one in self.reductions if one.budgets is not None],
        )
        # Values on the pictures of each name, by candidate.
        self.known: dict[str, dict[str, Values]] = (not fresh and known) or {"search": {}, "held_out": {}}

    def begin(self, stage: str) -> None:
        """Say which of `STAGES` begins."""
        self.say(stage)
        self.tick(STAGES.index(stage))

    def measure(self, candidate: Candidate, pictures: str) -> Values:
        """Return values of a candidate on ``search`` or ``held_out`` pictures, none if the tower can't have it."""
        known, name = self.known[pictures], str(candidate)
        if name not in known:
            if not self.available(candidate):
                return {}
            known[name] = getattr(self, pictures).values(self.serve(candidate))
            keep_json(self._path, self.known)
        return known[name]

    def share(self, candidate: Candidate) -> float:
        """Return the share of the allowed loss that a candidate uses up, by the pictures to search by."""
        return self.bounds.share(self.measure(candidate, "search"), self.held_out.photographs)

    def note(self, tower: Candidate) -> None:
        """Note what is known of a dense tower that was timed, unless its features overflow."""
        if self.measure(tower, "search"):
            self.predictions[tower] = Prediction(self.share(tower), self.cosine(tower), self.times[tower])

    def cosine(self, candidate: Candidate) -> float:
        """Return the mean cosine to dense in float32 on the pictures to search by."""
        return float(np.mean(self.measure(candidate, "search")[COSINE]))

    def work(self, candidate: Candidate) -> float:
        """Return a candidate's multiply-adds by the dense tower's; of budgets the mean of the pictures to search by."""
        if candidate.budgets is not None:
            adaptive = self._reduce(candidate).adaptive
            budgets, signals = adaptive.budgets, self.search.signals(adaptive.budgets.signal_at)
            return budgets.mean_cost(budgets.errors(logarithms(signals)), adaptive.penalty)
        for each in (candidate, Candidate(candidate.way)):
            if each[1:] not in self._gflops:
                vit = self._reduce(each)
                self._gflops[each[1:]] = gflops(vit, vit.input_size).gflops
        return self._gflops[candidate[1:]] / self._gflops[Candidate(candidate.way)[1:]]

    def assess(self, candidate: Candidate) -> Assessment:
        """Judge a candidate by the bounds on fidelity, on the pictures held out."""
        self.say(f"{candidate} on pictures held out")
        if not (values := self.measure(candidate, "held_out")):
            remedy = f"leave {candidate.way.precision} out of --precisions"
            raise ValueError(f"features of {candidate} overflow on these pictures: {remedy}")
        figures = self.held_out.figures(values, self.config.seed)
        return Assessment(candidate=candidate, passed=self.bounds.meets(figures), fidelity=figures)

    def _time(self, candidates: Iterable[Candidate], rounds: int, **options: Any) -> dict[Any, Timing]:
        """Time models in turn with the dense tower in eager float32, all from the same images in float32."""
        models: dict[Any, Any] = {DENSE: self.tower.vit, **{each: self.serve(each) for each in candidates}}
        options |= {"images": self._timed, "patience": self.patience}
        return timing.time_models(models, self.config.batch, rounds, **options)

    @cached_property
    def _timed(self) -> Tensor | None:
        """The pictures that are timed, (batch, 3, H, W): those to search by, spread evenly over their signals.

        None, for random images, where no candidate has budgets.
        """
        if all(reduction.budgets is None for reduction in self.reductions):
            return None
        steps = (np.arange(self.config.batch) + 0.5) * len(self.search) / self.config.batch
        return self.search.images[self.search.signals(0).argsort()[steps.astype(int)]]

    def ratios(self, candidates: Iterable[Candidate]) -> dict[Candidate, float]:
        """Return times by dense's in eager float32, all in the same rounds, of candidates that the tower can have.

        They are of the quickest calls, which other processes disturb least; certificates have medians.
        """
        served = [candidate for candidate in dict.fromkeys(candidates) if self.available(candidate)]
        if not served:
            return {}
        least = {key: min(times.samples_ms) for key, times in self._time(served, ROUNDS, warmup=1).items()}
        ratios = {candidate: least[candidate] / least[DENSE] for candidate in served}
        self.times |= ratios
        return ratios

    def measure_times(self, candidates: Sequence[Candidate]) -> dict[Candidate, dict[str, Any]]:
        """Time candidates in the same rounds as the dense tower in eager float32."""
        timings = self._time(candidates, self.config.rounds, seconds=self.config.seconds, warmup=2)
        medians, batch = {key: median_interval(times.samples_ms) for key, times in timings.items()}, self.config.batch
        towers = [candidate for candidate in candidates if candidate.method is None]
        fastest: Any = min(towers, key=lambda tower: medians[tower].estimate, default=DENSE)
        return {
            candidate: {
                TOTAL: timings[candidate].ratio_to(timings[DENSE]),
                DENSE_RATIO: timings[candidate].ratio_to(timings[fastest]),
                "fastest_dense": str(fastest),
                "median_ms": medians[candidate],
                "images_per_s": 1000 * batch / medians[candidate].estimate,
                "dense_images_per_s": 1000 * batch / medians[DENSE].estimate,
                "fastest_dense_images_per_s": 1000 * batch / medians[fastest].estimate,
                **{"batch": batch, "threads": torch.get_num_threads(), "rounds": len(timings[DENSE].samples_ms)},
            }
            for candidate in candidates
        }

    def certify(self, chosen: Assessment, frontier: Sequence[Assessment], *, met: bool, seconds: float) -> Setup:
        """Return an assessed setup with a certificate: what was measured, machine, pictures and outcome."""
        parts = {"calibration": self.calibration, "search": self.search, "held_out": self.held_out}
        sizes = {name: {"pictures": len(part), "photographs": part.photographs} for name, part in parts.items()}
        way = chosen.candidate.way
        certificate = {
            "bounds": self.bounds,
            **way._asdict(),
            "calibration": self.exports.calibrated if way.recipe else None,
            "fidelity": chosen.fidelity,
            "time": chosen.time,
            "candidates": [row.plain() for row in frontier],
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **sizes},
            "model": {"name": self.tower.name, "weights": self.exports.weights},
            "machine": self.machine,
            "seed": self.config.seed,
            "left_out": self.left_out,
            **{"created": utc_now(), "version": version("clip-patchrank"), "commit": git_commit()},
            **{"met": met, "seconds": seconds},
        }
        setup = self.find_setup(chosen.candidate)
        exported = str(self.exports.find(setup)) if way.from_file else None
        return dataclasses.replace(setup, certificate=json_values(certificate), exported=exported)
