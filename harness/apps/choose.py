"""The fastest setup of a tower that meets bounds, chosen on a user's own pictures and machine, with a certificate.

A setup is a way to run a model (runtime, precision, int8 recipe), a method and a keep rate. Few are measured: fidelity
is searched in float in the process, dense towers are timed in every way, one method at two keep rates in every runtime
that can still win. The rest is predicted, and what is chosen is judged and timed as it will run.
"""

import copy
import dataclasses
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness import git_commit
from harness.base.hints import describe_error
from harness.base.lines import lock_file
from harness.base.table import UNMEASURED, Cell, Table, estimate_cell, json_values, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import cached_json, keep_json
from harness.datasets.text_features import text_classifier
from harness.measure import timing
from harness.measure.cost import gflops
from harness.measure.fidelity import CHANGE, COSINE, NEIGHBOURS, Pictures, SetupBounds, Values, split_pictures
from harness.measure.rows import usual_methods
from harness.measure.settings import Plan
from harness.records.metrics import NEIGHBOURS as NEAREST
from harness.records.record import DENSE, utc_now
from harness.records.statistics import LEAST_ROUNDS, Interval, exact, median_interval
from harness.records.times import Timing, describe_machine
from harness.report.charts import Chart, Dot
from zoo.core.digests import digest, fingerprint
from zoo.core.errors import NoRoomError
from zoo.core.files import cache_file
from zoo.core.host import Host, share_weights
from zoo.core.reducer import METHODS, configure
from zoo.core.settings import PRECISIONS, best_precision, check_fields, expected, torch_dtype
from zoo.deploy.export import export_model, load_exported
from zoo.deploy.quantization import INT8, LEAST_PICTURES, calibration_digest
from zoo.deploy.runtime import EAGER, ONNXRUNTIME, OPENVINO, OPTIMIZED, Prepared, every_precision, find_runtime
from zoo.deploy.setup import Setup
from zoo.loading.learned_files import PredictorFile, dataset_names, find_predictor
from zoo.loading.preprocessing import describe_preprocessing
from zoo.loading.towers import load_tower, split_method

CONTROLS = ("random", "golden")  # what methods are compared with: nothing to run
TRIED = (OPTIMIZED, OPENVINO, ONNXRUNTIME)  # runtimes where none are named
MAKERS = ("clip-patchrank", "torch", "openvino", "nncf", "onnxruntime")  # what files and features depend on
RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending
ROUNDS = 6  # in which candidates are compared
SAFER = (8, 4, 2, 1, 0)  # keep rates above the lowest that meets the bounds: the rungs of the ladder
FEW_SAFER = (6, 2, 0)  # where each rung is quantised
ROOM = 0.5  # of the allowed loss: an int8 recipe that uses up less leaves enough for a reduction
LEAST_LOSS = 1e-5  # of 1 - cosine in a chart, whose axis is logarithmic
CHECKED = 16  # pictures on which a file is compared with its model
WORDS = {COSINE: "cosine", NEIGHBOURS: "neighbours, %", CHANGE: "top-1, points"}  # metrics as columns
# Ratios of times: to the dense tower in eager float32, and to the fastest dense tower that meets the bounds.
TOTAL, DENSE_RATIO = "ratio_to_dense", "ratio_to_fastest_dense"


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """The methods, runtimes and precisions to choose from, and how they are measured."""

    methods: tuple[str, ...] = ()  # registered ones; none for those that are measured by default
    runtimes: tuple[str, ...] = ()  # none for `TRIED`
    precisions: tuple[str, ...] = ()  # none for float32, the fastest of the device, and int8
    calibration: int = 96  # pictures that int8 models are made with
    search: int = 64  # pictures to search by
    held_out: int = 256  # other pictures, that decide
    batch: int = Plan.match_batch  # images per call, where time is measured
    rounds: int = 9  # calls of setups in the end, at least
    seconds: float = 5.0  # that these go on for
    seed: int = 0  # of the split of pictures and of bootstraps
    device: str = "cpu"

    def __post_init__(self) -> None:
        allowed = sorted(METHODS.keys() - CONTROLS)
        for method in self.methods:
            if method not in allowed:
                control = " is a control to compare methods with" if method in CONTROLS else ""
                raise ValueError(f"--methods {method!r}{control}: {expected(method, allowed)}")
        for runtime in self.runtimes:
            find_runtime(runtime)
        ranges = {"search": "[8, inf)", "held_out": "[20, inf)", "batch": "[1, inf)", "seconds": "[0, inf)"}
        ranges |= {"calibration": f"[{LEAST_PICTURES}, inf)", "rounds": f"[{LEAST_ROUNDS}, inf)"}
        check_fields(self, precisions=every_precision(), **ranges)


class Way(NamedTuple):
    """How a model is run."""

    runtime: str
    precision: str
    recipe: str | None = None  # of a precision that has some

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}" + (f" by {self.recipe}" if self.recipe else "")

    @property
    def from_file(self) -> bool:
        """Whether the runtime runs a file."""
        return bool(find_runtime(self.runtime).suffix)

    @property
    def recipes(self) -> tuple[str, ...]:
        """By which the precision can be made, the fastest first; none of a float precision."""
        return find_runtime(self.runtime).recipes(self.precision)


class Candidate(NamedTuple):
    """A setup that may be chosen; ``method`` None is the dense tower."""

    way: Way
    method: str | None = None
    keep: float = 1.0
    rule: tuple[tuple[str, Any], ...] = ()  # options of another rule for reduction points than the method's default

    @property
    def options(self) -> dict[str, Any]:
        """The method's options that aren't its defaults."""
        return {} if self.method is None else {"keep": self.keep, **dict(self.rule)}

    @property
    def rates(self) -> list["Candidate"]:
        """The same at all keep rates that are tried, ascending."""
        return [self._replace(keep=keep) for keep in RATES]

    @property
    def name(self) -> str:
        """The method with its keep rate and the rule for its reduction points."""
        if self.method is None:
            return DENSE
        words = [f"{name}={value}" for name, value in self.rule]
        return f"{self.method} {100 * self.keep:.0f}" + (f" with {', '.join(words)}" if words else "")

    def __str__(self) -> str:
        return f"{self.name} in {self.way}"


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


class Lab:
    """A tower with its reductions, measured on pictures and timed; the user's cache keeps values and files."""

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
        """Load the tower, find how it can be run and reduced, and split the pictures.

        ``fresh`` remembers no values; ``tick`` takes the number of `STAGES` that are done.
        """
        self.model, method, _ = split_method(model)
        if method is not None:
            raise ValueError(f"--model {model!r} is reduced already: name its dense tower, {self.model!r}")
        self.bounds, self.config, self.progress, self.tick = bounds, config, progress, tick
        self.say, self.tower = progress.say, load_tower(self.model)
        self.patience = timing.Patience(say=self.say)
        vit = self.tower.vit.to(config.device)
        self.example = torch.zeros(1, 3, *vit.input_size, device=config.device)
        self.weights = fingerprint(vit)
        self.left_out: dict[str, str] = {}  # methods and ways that can't be had, with the reason
        self.inside = self._prepare_inside()  # the dense tower as the process runs it, the fastest first
        self.ways = self._find_ways()
        self.reductions = self._find_reductions()
        self.predictors = self._find_predictors()
        self.dataset = get_dataset(dataset)
        self.calibration, self.search, self.held_out = self._split_pictures()
        if not self.ways:
            reasons = "; ".join(f"{what}: {why}" for what, why in self.left_out.items())
            raise ValueError(f"--runtimes and --precisions leave no way to run the tower: {reasons}")
        self.calibrated = calibration_digest(self.calibration.images) if len(self.calibration) else None
        self.times: dict[Candidate, float] = {}  # by dense's in eager float32
        self.predictions: dict[Candidate, Prediction] = {}
        self._loaded: dict[Candidate, Prepared] = {}
        self._gflops: dict[Any, float] = {}
        machine = describe_machine(torch.device(config.device))
        self._makers = [_version(name) for name in MAKERS] + [machine["device_name"], machine["cpu_capability"]]
        self._path, known = cached_json(
            "choices",
            *(self._makers, git_commit(), self.tower.name, self.weights, list(self.inside)),
            *(self.dataset.name, self.dataset.condition, bounds.max_loss is None, self.calibrated),
            *(self.search.split.image_ids, self.held_out.split.image_ids),
            *(config.device, torch.get_num_threads(), *map(digest, self.predictors)),
        )
        # Values on the pictures of each name, by candidate.
        self.known: dict[str, dict[str, Values]] = (not fresh and known) or {"search": {}, "held_out": {}}

    def begin(self, stage: str) -> None:
        """Say which of `STAGES` begins."""
        self.say(stage)
        self.tick(STAGES.index(stage))

    def _prepare_inside(self) -> dict[Way, Prepared]:
        """Return the dense tower as the process runs it, in float32, the device's fastest precision and those named."""
        fast, inside = best_precision(self.config.device), dict[Way, Prepared]()
        precisions = {"float32", fast, *self.config.precisions} & {*PRECISIONS}
        for precision in sorted(precisions, key=lambda name: (name != fast, name)):
            prepared, why = Setup(model=self.model, precision=precision).prepare(self.tower.vit, self.example)
            inside[Way(EAGER if why else OPTIMIZED, precision)] = prepared
            if why:
                self.say(f"models in {precision} run as they are: {why}")
        return inside

    def _find_ways(self) -> list[Way]:
        """Return the ways in which models can be run here, recipes left open, and say which can't be had."""
        config, ways = self.config, list[Way]()
        precisions = config.precisions or tuple(dict.fromkeys(("float32", best_precision(config.device), INT8)))
        for runtime in map(find_runtime, config.runtimes or TRIED):
            if not config.runtimes and runtime.devices and torch.device(config.device).type not in runtime.devices:
                continue
            refused: dict[str, list[str]] = {}
            for precision in (each for each in precisions if each in runtime.precisions):
                if why := runtime.refusal(precision, config.device):
                    refused.setdefault(why, []).append(precision)
                elif runtime.name == OPTIMIZED:
                    ways += [way for way in self.inside if way.precision == precision]
                else:
                    ways.append(Way(runtime.name, precision))
            for why, names in refused.items():
                self._leave_out(f"{runtime.name} in {', '.join(names)}", why)
        return ways

    def _leave_out(self, what: str, why: str) -> None:
        self.left_out[what] = why
        self.say(f"{what} is left out: {why}")

    def _find_reductions(self) -> list[Candidate]:
        """Return the reductions that the tower can run, each at its highest keep rate; those named must run."""
        way = next(iter(self.inside))
        names = self.config.methods or [name for name in usual_methods() if name not in (DENSE, *CONTROLS)]
        reductions = []
        for name in names:
            for rule in ({}, *METHODS[name].Config(keep=1).other_rules(self.tower.vit.depth)):
                candidate = Candidate(way, name, RATES[-1], tuple(rule.items()))
                try:
                    self._reduce(candidate)
                    reductions.append(candidate)
                except (ValueError, FileNotFoundError) as error:
                    if self.config.methods:
                        raise
                    self._leave_out(name, describe_error(error))
        return reductions

    def _split_pictures(self) -> list[Pictures]:
        """Return the pictures to calibrate with, to search by and held out; without enough of the first no int8."""
        calibrated = [way for way in self.ways if way.recipes]
        sizes = (self.config.calibration if calibrated else 0, self.config.search, self.config.held_out)
        how: dict[str, Any] = {"learned": self._find_learned(), "classifier": self._find_classifier()}
        parts = split_pictures(self.dataset, sizes, self.config.seed, tower=self.tower, **how)
        if calibrated and not len(parts[0]):
            self.ways = [way for way in self.ways if way not in calibrated]
            lack = f"its share of {self.dataset.asked_as!r} is less than {LEAST_PICTURES} different pictures"
            self._leave_out(INT8, f"{lack} to calibrate with; give more pictures")
        least = self.bounds.min_neighbours
        if least is not None and (few := min(map(len, parts[1:]))) <= NEAREST:
            raise ValueError(f"--min-neighbours {least:g} of {few} pictures: expected more than {NEAREST}; give more")
        return parts

    def _find_learned(self) -> set[str]:
        """Return the names of the datasets that predictors were fitted to."""
        provenances = [PredictorFile.read(path).provenance or {} for path in self.predictors]
        return {name for each in provenances for name in dataset_names(each.get("rankings", []), "dataset")}

    def _find_classifier(self) -> Tensor | None:
        """Return the classifier that a bound on top-1 needs."""
        if (loss := self.bounds.max_loss) is None:
            return None
        if self.tower.clip is not None and self.dataset.labelled:
            return text_classifier(self.tower.clip, self.dataset)[0]
        lack = f"dataset {self.dataset.name!r} has no classes"
        if self.tower.clip is None:
            lack = f"{self.tower.name} has no text tower"
        raise ValueError(f"--max-loss {loss:g}: {lack}; give another bound, such as --min-cosine")

    def _find_predictors(self) -> list[Path]:
        """Return the files of all predictors that reductions use."""
        depth = self.tower.vit.depth
        configs = [configure(str(row.method), row.options, depth) for row in self.reductions]
        blocks = {block for config in configs if (block := config.predictor_block(depth)) is not None}
        return sorted(find_predictor(self.tower.arch, self.tower.tag, block).path for block in blocks)

    def _reduce(self, candidate: Candidate) -> Host:
        return self.find_setup(candidate).reduce(self.tower)

    def find_setup(self, candidate: Candidate) -> Setup:
        """Return a candidate's setup; its options are those that aren't the method's defaults."""
        return Setup(model=self.model, method=candidate.method, options=candidate.options, **candidate.way._asdict())

    def serve(self, candidate: Candidate) -> Prepared:
        """Make a candidate as it is run, in the process or from its file; raise what reducing and exporting do.

        In the process all share the dense tower's weights.
        """
        way = candidate.way
        if way.from_file:
            if candidate not in self._loaded:
                self._loaded[candidate] = self._load(candidate)
            return self._loaded[candidate]
        reduced = self._reduce(candidate)
        if way not in self.inside:
            return find_runtime(way.runtime).prepare(reduced, self.example, way.precision)
        dense: Any = self.inside[way].call
        vit = share_weights(dense, type(dense))
        vit.reducer = reduced.reducer
        if vit.reducer is not None and way.runtime == EAGER:
            vit.reducer = copy.deepcopy(vit.reducer).to(torch_dtype(way.precision))
        return dataclasses.replace(self.inside[way], call=vit)

    def find_file(self, candidate: Candidate) -> Path:
        """Return the place of a candidate's exported file in the cache."""
        way, preprocess = candidate.way, self.tower.preprocess
        what = (self.weights, candidate.method, candidate.options, way, [digest(path) for path in self.predictors])
        calibrated = self.calibrated if way.recipe else None
        name = digest(what, calibrated, self._makers, describe_preprocessing(preprocess))
        return cache_file("exports", f"{name}{find_runtime(way.runtime).suffix}")

    def _load(self, candidate: Candidate) -> Prepared:
        """Load a candidate's exported file, which is made if it isn't there whole; raise what that does."""
        path, way, setup = self.find_file(candidate), candidate.way, self.find_setup(candidate)
        with suppress(OSError, ValueError):  # not there, or damaged
            return load_exported(path).prepared
        self.say(f"{candidate}: writing its file")
        facts = setup.describe(self.tower) | {"random_weights": False}
        options = way._asdict() | {"calibration": self.calibration.images if way.recipe else None, "facts": facts}
        with lock_file(path, "the cache"):  # which removes what killed runs left
            export_model(setup.reduce(self.tower), path, self.search.images[:CHECKED], **options)
        return load_exported(path).prepared

    def available(self, candidate: Candidate) -> bool:
        """Make a candidate, and tell whether the tower can have it in its way; say why not, if it is the runtime's."""
        if str(candidate) in self.left_out:
            return False
        try:
            self._reduce(candidate)
        except ValueError:  # such as ToMe's that would merge more than half of the tokens
            return False
        try:
            self.serve(candidate)
        except NoRoomError:
            raise
        except Exception as error:
            if not find_runtime(candidate.way.runtime).is_refusal(error):
                raise
            self._leave_out(str(candidate), describe_error(error).partition("\n")[0])
            return False
        return True

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
        """Return a candidate's multiply-adds by the dense tower's."""
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
        return timing.time_models(models, self.config.batch, rounds, patience=self.patience, **options)

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
            "calibration": self.calibrated if way.recipe else None,
            "fidelity": chosen.fidelity,
            "time": chosen.time,
            "candidates": [row.plain() for row in frontier],
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **sizes},
            "model": {"name": self.tower.name, "weights": self.weights},
            "machine": describe_machine(torch.device(self.config.device)),
            "seed": self.config.seed,
            "left_out": self.left_out,
            **{"created": utc_now(), "version": version("clip-patchrank"), "commit": git_commit()},
            **{"met": met, "seconds": seconds},
        }
        setup, exported = self.find_setup(chosen.candidate), None
        if way.from_file:
            exported = str(self.find_file(chosen.candidate))
        return dataclasses.replace(setup, certificate=json_values(certificate), exported=exported)


def _version(package: str) -> str:
    """Return a package with its version, or without one where it isn't installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def build_ladder(lab: Lab) -> list[Candidate]:
    """Return setups that should meet the bounds, the most faithful first: dense towers, and reductions in one way.

    These are of the method that is fastest in the process, in the way in which they should be fastest, from a safe
    keep rate down to the lowest that should meet the bounds. If not even dense meets them, the most faithful dense
    tower is returned.
    """
    rates = _search_rates(lab)
    lab.begin(STAGES[2])
    for tower in lab.ratios(Candidate(way) for way in lab.ways if not way.recipes):
        lab.note(tower)
    lab.begin(STAGES[3])
    forecasts, runtimes = list[Forecast](), _order_runtimes(lab)
    with lab.progress.task("runtimes", len(runtimes)) as tick:
        for done, runtime in enumerate(runtimes, start=1):
            for way in (each for each in lab.ways if each.runtime == runtime):
                _try_recipes(lab, way, rates)
            if rates:
                forecasts += _forecast(lab, runtime, rates)
            tick(done)
    if not (dense := [tower for tower in lab.predictions if tower.method is None]):
        raise ValueError(f"no runtime can run the tower: {'; '.join(lab.left_out.values())}")
    if not (rungs := [tower for tower in dense if lab.share(tower) <= 1]):
        return [min(dense, key=lab.share)]
    if forecasts:
        best = min(forecasts, key=lambda each: each.note(lab, each.rates[0]).time)
        steps = FEW_SAFER if best.dense.way.recipe else SAFER
        for rate in (best.rates[up] for up in steps if up < len(best.rates)):
            best.note(lab, rate)
            rungs.append(rate._replace(way=best.dense.way))
    return sorted(rungs, key=lambda each: lab.predictions[each].share)


def _search_rates(lab: Lab) -> list[Candidate]:
    """Return the fastest method at all keep rates that meet the bounds, ascending, as the process runs it in float."""
    lab.begin(STAGES[0])
    dense = [tower for tower in map(Candidate, lab.inside) if lab.share(tower) <= 1]
    if not dense:
        return []
    ratios = lab.ratios(dense)
    way = min(dense, key=ratios.__getitem__).way
    lab.begin(STAGES[1])
    found = dict[Candidate, list[Candidate]]()  # by the lowest
    with lab.progress.task("methods", len(lab.reductions)) as tick:
        for done, reduction in enumerate(lab.reductions, start=1):
            if rates := _meeting(lab, reduction._replace(way=way).rates):
                found[rates[0]] = rates
            tick(done)
    ratios = lab.ratios(found)
    return found[min(ratios, key=ratios.__getitem__)] if ratios else []


def _order_runtimes(lab: Lab) -> list[str]:
    """Return the runtimes by the dense tower's times that are known in each, those without any first."""
    times: dict[str, list[float]] = {way.runtime: [] for way in lab.ways}
    for tower, took in lab.times.items():
        if tower.method is None and tower.way.runtime in times:
            times[tower.way.runtime].append(took)
    return sorted(times, key=lambda runtime: min(times[runtime], default=0.0))


def _meeting(lab: Lab, rates: list[Candidate], room: float = 1.0) -> list[Candidate]:
    """Return those of ascending keep rates that use up at most ``room`` of the allowed loss."""
    return rates[bisect_left(rates, -room, key=lambda rate: -lab.share(rate)) :]


def _try_recipes(lab: Lab, way: Way, rates: Sequence[Candidate]) -> None:
    """Try int8 recipes for the dense tower, the fastest first, until one leaves room for a reduction or can't win."""
    for recipe in way.recipes:
        tower = Candidate(way._replace(recipe=recipe))
        if lab.ratios([tower]):
            lab.note(tower)
            if lab.share(tower) <= ROOM or not _can_win(lab, tower, rates):
                break


def _can_win(lab: Lab, tower: Candidate, rates: Sequence[Candidate]) -> bool:
    """Tell whether reductions would be the fastest in the way of a dense tower if they took their share of its time."""
    known = [prediction.time for prediction in lab.predictions.values() if prediction.share <= 1]
    return lab.times[tower] * (lab.work(rates[0]) if rates else 1.0) < min(known, default=float("inf"))


class Forecast(NamedTuple):
    """What is expected of a method in a way to run it, from the method in float in the process.

    What a way's rounding loses is added to what a keep rate loses in float. A reduction takes its share, by
    multiply-adds, of the dense tower's time in its way, and an overhead that the runtime has in every precision: a line
    in multiply-adds through two keep rates that are timed.
    """

    dense: Candidate  # the dense tower in the way
    overhead: np.poly1d
    rates: Sequence[Candidate]  # in the process, that should meet the bounds in the way, ascending

    def note(self, lab: Lab, rate: Candidate) -> Prediction:
        """Note, and return, what is expected of a keep rate in the way."""
        inside, work = Candidate(rate.way), lab.work(rate)
        lost = max(0.0, lab.cosine(inside) - lab.cosine(self.dense))
        took = work * lab.times[self.dense] + float(self.overhead(work))
        expected = Prediction(lab.share(rate) + _rounding(lab, self.dense, inside), lab.cosine(rate) - lost, took)
        lab.predictions[rate._replace(way=self.dense.way)] = expected
        return expected


def _rounding(lab: Lab, tower: Candidate, inside: Candidate) -> float:
    """Return the share of the allowed loss that the way of a dense tower uses up beside that of the process."""
    return max(0.0, lab.share(tower) - lab.share(inside))


def _forecast(lab: Lab, runtime: str, rates: list[Candidate]) -> list[Forecast]:
    """Predict the method's lowest keep rate in each precision of a runtime in which it can still win.

    Two keep rates are timed in the fastest float precision of the runtime; without one, those in the process count.
    """
    towers = [each for each in lab.predictions if each.method is None and each.way.runtime == runtime]
    hopeful = [tower for tower in towers if lab.share(tower) <= 1 and _can_win(lab, tower, rates)]
    if not hopeful:
        return []
    inside = Candidate(rates[0].way)
    base = min((each for each in towers if not each.way.recipe), key=lab.times.__getitem__, default=inside)
    ends = {lab.work(rate): rate._replace(way=base.way) for rate in (rates[0], rates[len(rates) // 2])}
    times = lab.ratios([base, *ends.values()])
    over = {work: times[each] - work * times[base] for work, each in ends.items() if each in times}
    if not over:  # the runtime can't export the method
        return []
    overhead = np.poly1d(np.polyfit([*over], [*over.values()], len(over) - 1))
    meeting = {tower: _meeting(lab, rates, 1 - _rounding(lab, tower, inside)) for tower in hopeful}
    return [Forecast(tower, overhead, met) for tower, met in meeting.items() if met]


class Selection(NamedTuple):
    """The result of a search."""

    setup: Setup  # with its certificate; the nearest one if the bounds aren't met
    why: str  # the bounds aren't met; empty if they are
    judged: Sequence[Assessment]  # in their order, the chosen or nearest one last
    frontier: Sequence[Assessment]  # what was predicted or judged, by way, from dense down


def choose(
    model: str,
    dataset: str,
    bounds: SetupBounds,
    config: ChooseConfig,
    *,
    fresh: bool = False,
    progress: Progress,
) -> Selection:
    """Search the fastest setup of a tower that meets bounds on a dataset's pictures, on this machine.

    A search that was stopped goes on where it was, and one with other bounds takes what was measured on the same
    pictures; ``fresh`` measures everything anew.

    Raises:
        ValueError: a reduced model, too few pictures, or an unknown name.
        FileNotFoundError: weights or a file are missing.
        NoRoomError: there is no room for an exported file.
    """
    begun = time.monotonic()
    with progress.task("stages", len(STAGES)) as tick:
        lab = Lab(model, dataset, bounds, config, progress, fresh=fresh, tick=tick)
        judged = _judge(lab)
    why = _describe_miss(bounds, judged[-1])
    frontier = _list_frontier(lab, judged)
    setup = lab.certify(judged[-1], frontier, met=not why, seconds=time.monotonic() - begun)
    return Selection(setup, why, judged, frontier)


def _judge(lab: Lab) -> list[Assessment]:
    """Go down the ladder on pictures held out, from the most faithful rung on, until one fails.

    Tests in an order that is fixed beforehand need no correction (Maurer, Hothorn and Lehmacher, 1995). All that passed
    are timed in turn. The last reduction that passed competes with the dense towers, as the luckiest of several would
    seem to pay; the fastest that pays comes last in the list.
    """
    judged, ladder = dict[Candidate, Assessment](), build_ladder(lab)
    lab.begin(STAGES[4])
    with lab.progress.task("setups", len(ladder)) as tick:
        for done, rung in enumerate(ladder, start=1):
            if lab.available(rung):
                judged[rung] = lab.assess(rung)
                if not judged[rung].passed:
                    break
            tick(done)
    rivals = [candidate for candidate, assessment in judged.items() if assessment.passed] or list(judged)
    lab.begin(STAGES[-1])
    for candidate, time_of in lab.measure_times(rivals).items():
        judged[candidate] = dataclasses.replace(judged[candidate], time=time_of)
    reduced = [candidate for candidate in rivals if candidate.method is not None]
    rivals = [candidate for candidate in rivals if candidate.method is None or candidate == reduced[-1]]
    paying = [candidate for candidate in rivals if judged[candidate].pays] or rivals
    met = [candidate for candidate in paying if not _describe_miss(lab.bounds, judged[candidate])]
    last = judged.pop(min(met or paying, key=lambda candidate: judged[candidate].ratio.estimate))
    return [*judged.values(), last]


def _list_frontier(lab: Lab, judged: Sequence[Assessment]) -> list[Assessment]:
    """Return what was predicted or judged, by way, the way with the fastest setup first, and from dense down."""
    rows = {one: Assessment(candidate=one) for one in lab.predictions} | {each.candidate: each for each in judged}
    frontier = [dataclasses.replace(row, predicted=lab.predictions.get(one)) for one, row in rows.items()]
    least = dict[Way, float]()
    for row in frontier:
        way = row.candidate.way
        least[way] = min(least.get(way, math.inf), row.ratio.estimate)
    return sorted(frontier, key=lambda row: (least[row.candidate.way], str(row.candidate.way), -row.candidate.keep))


def _describe_miss(bounds: SetupBounds, assessment: Assessment) -> str:
    """Say which bound the ends of a setup's intervals miss, nothing if none."""
    for metric, least in bounds.floors.items():
        mean = assessment.fidelity[metric]
        flag = f"--max-loss {bounds.max_loss}" if metric == CHANGE else f"--min-{metric} {least}"
        if mean.low < least:
            words = f"{mean.estimate:.5f}, by its interval at least {mean.low:.5f}"
            return f"{flag} is missed: the mean {WORDS[metric]} on pictures held out is {words}"
    ratio = assessment.ratio
    if bounds.speed_up is not None and ratio.high * bounds.speed_up > 1:
        words = f"{1 / ratio.estimate:.2f} times as fast as dense, by its interval at least {1 / ratio.high:.2f}"
        return f"--speed-up {bounds.speed_up} is missed: it is {words}"
    return "" if assessment.pays else "it isn't clearly faster than the fastest dense tower that meets the bounds"


def selection_table(selection: Selection) -> Table:
    """Show all setups that were measured or predicted, time against fidelity."""
    metrics = [metric for metric in WORDS if metric in selection.judged[-1].fidelity]
    rows, names = [], ("setup", "runtime", "precision", "recipe")
    for row in selection.frontier:
        met = "–" if row.passed is None else "yes" if row.passed else "no"
        if row.candidate == selection.judged[-1].candidate:
            met = "nearest" if selection.why else "chosen"
        took = _cell(row.ratio, 3) if row.time else Cell(f"~{row.ratio.estimate:.3f}", row.ratio.estimate)
        runtime, precision, recipe = row.candidate.way
        means = [_fidelity_cell(row, metric) for metric in metrics]
        rows.append([row.candidate.name, runtime, precision, recipe or "–", *means, took, met])
    dataset = selection.setup.certificate["dataset"]
    held = dataset["held_out"]
    ways = [row.candidate.way for row in selection.frontier]
    return Table.of(
        f"Setups of {selection.setup.model} on {held['pictures']} held-out pictures of {dataset['name']} "
        f"({held['photographs']} photographs)",
        [*names, *(WORDS[metric] for metric in metrics), "x dense", "met"],
        rows,
        words=(*names, "met"),
        sections=frozenset(at for at in range(1, len(ways)) if ways[at] != ways[at - 1]),
        caption="setup: method and keep rate in %; means are relative to dense in float32, with 95 % intervals over "
        "photographs; x dense: time relative to dense in eager float32; met: whether it meets the bounds on fidelity",
        legend="~: predicted from the pictures to search by and from few times, not judged or not timed in the end",
    )


def _cell(mean: Interval, digits: int) -> Cell:
    """Show an interval, its estimate alone where both ends read alike."""
    text = f"{{:.{digits}f}}".format
    return estimate_cell(mean.estimate if text(mean.low) == text(mean.high) else mean, text)


def _fidelity_cell(row: Assessment, metric: str) -> Cell:
    """Show a mean on pictures held out, or the cosine that is expected."""
    if row.passed is not None:
        return points(row.fidelity[metric]) if metric == CHANGE else _cell(row.fidelity[metric], 4)
    if row.predicted is not None and metric == COSINE:
        return Cell(f"~{row.predicted.cosine:.4f}", row.predicted.cosine)
    return UNMEASURED


def selection_chart(selection: Selection) -> Chart:
    """Return a chart of the setups, time against fidelity, a series for each way to run them."""
    series = dict[str, list[Dot]]()
    for row in selection.frontier:
        cosine = row.fidelity.get(COSINE) or (row.predicted and exact(row.predicted.cosine))
        assert cosine is not None
        mean, low, high = (max(1 - value, LEAST_LOSS) for value in cosine)
        name = str(row.candidate.way) + ("" if row.time else ", predicted")
        series.setdefault(name, []).append(Dot(row.ratio, Interval(mean, high, low), row.candidate.name))
    least = selection.setup.certificate["bounds"]["min_cosine"]
    return Chart(
        title=f"{selection.setup.model}: time against fidelity",
        x_label="time, relative to dense in eager float32",
        y_label="1 - cosine to dense, mean of pictures",
        series=series,
        level=None if least is None else 1 - least,
        log=True,
    )
