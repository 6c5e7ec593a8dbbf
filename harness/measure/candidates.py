"""Setups that may be chosen for a tower, made as each will run, and the pictures to choose by.

A setup is a way to run a model (runtime, precision, int8 recipe), a method, and a keep rate, or budgets at a mean cost.
"""

import copy
import dataclasses
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.base.hints import describe_error
from harness.datasets import get_dataset
from harness.datasets.text_features import text_classifier
from harness.measure.exports import CALIBRATION, CHECKED, ExportCache
from harness.measure.fidelity import Pictures, SetupBounds, split_pictures
from harness.measure.rows import usual_methods
from harness.measure.settings import Plan
from harness.records.metrics import NEIGHBOURS as NEAREST
from harness.records.record import ADAPTIVE, DENSE
from harness.records.statistics import LEAST_FOR_TAIL, LEAST_ROUNDS
from harness.records.times import describe_machine
from zoo.core.errors import NoRoomError
from zoo.core.host import Host, share_weights
from zoo.core.reducer import METHODS, configure
from zoo.core.settings import PRECISIONS, best_precision, check_fields, expected, torch_dtype
from zoo.deploy.quantization import INT8, LEAST_PICTURES
from zoo.deploy.runtime import (
    EAGER,
    ONNXRUNTIME,
    OPENVINO,
    OPTIMIZED,
    Prepared,
    every_precision,
    find_runtime,
    usual_precisions,
)
from zoo.deploy.setup import Setup
from zoo.loading.learned_files import ANY_KEEP, BudgetFile, PredictorFile, find_budgets, find_predictor
from zoo.loading.towers import load_tower, split_method

CONTROLS = ("random", "golden")  # what methods are compared with: nothing to run
TRIED = (OPTIMIZED, OPENVINO, ONNXRUNTIME)  # runtimes where none are named
RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """The methods, runtimes and precisions to choose from, and how they are measured."""

    methods: tuple[str, ...] = ()  # registered ones; none for those that are measured by default
    budgets: tuple[str, ...] = ()  # files that `fit budgets` wrote; none for those of the methods that names find
    runtimes: tuple[str, ...] = ()  # none for `TRIED`
    precisions: tuple[str, ...] = ()  # none for float32, the fastest of the device, and int8
    calibration: int = CALIBRATION  # pictures that int8 models are made with
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
    budgets: str | None = None  # file of budgets, one for each picture, instead of the keep rate
    cost: float | None = None  # mean multiply-adds of these by the dense tower's

    @property
    def options(self) -> dict[str, Any]:
        """The method's options that aren't its defaults, or budgets and cost."""
        if self.budgets is not None:
            return {"budgets": self.budgets, "cost": self.cost}
        return {} if self.method is None else {"keep": self.keep, **dict(self.rule)}

    @property
    def rate(self) -> float:
        """The keep rate, or the cost."""
        return self.keep if self.cost is None else self.cost

    @property
    def rates(self) -> list["Candidate"]:
        """The same at all keep rates, or costs, that are tried, ascending."""
        if self.budgets is None:
            return [self._replace(keep=keep) for keep in RATES]
        least, *_, most = sorted(BudgetFile.read(self.budgets).budgets.costs)
        return [self._replace(cost=cost) for cost in RATES if least <= cost <= most]

    @property
    def name(self) -> str:
        """The method with its keep rate and the rule for its reduction points."""
        if self.method is None:
            return DENSE
        words = [f"{name}={value}" for name, value in self.rule]
        adaptive = "" if self.cost is None else f" {ADAPTIVE['signal']}"
        return f"{self.method}{adaptive} {100 * self.rate:.0f}" + (f" with {', '.join(words)}" if words else "")

    def __str__(self) -> str:
        return f"{self.name} in {self.way}"


class Workshop:
    """A tower with its reductions, made as they are run; the user's cache keeps exported files."""

    def __init__(
        self, model: str, dataset: str, bounds: SetupBounds, config: ChooseConfig, say: Callable[[str], object]
    ) -> None:
        """Load the tower, find how it can be run and reduced, and split the pictures."""
        self.model, method, _ = split_method(model)
        if method is not None:
            raise ValueError(f"--model {model!r} is reduced already: name its dense tower, {self.model!r}")
        self.bounds, self.config, self.say, self.tower = bounds, config, say, load_tower(self.model)
        vit = self.tower.vit.to(config.device)
        self.example = torch.zeros(1, 3, *vit.input_size, device=config.device)
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
        self.exports = ExportCache(
            tower=self.tower,
            check=lambda: self.search.images[:CHECKED],
            calibration=self.calibration.images if len(self.calibration) else None,
            predictors=self.predictors,
            say=say,
        )
        self.machine = describe_machine(torch.device(config.device))
        self._loaded: dict[Candidate, Prepared] = {}

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
        precisions = config.precisions or usual_precisions(config.device)
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
        return reductions + self._find_adaptive({str(row.method) for row in reductions})

    def _find_adaptive(self, methods: Collection[str]) -> list[Candidate]:
        """Return a reduction for each file of budgets, at its highest cost; those named must run."""
        files, found = [*self.config.budgets], list[Candidate]()
        for method in [] if files else sorted(methods):
            with suppress(FileNotFoundError):
                files.append(str(find_budgets(self.tower.arch, self.tower.tag, method)))
        for file in files:
            try:
                method = BudgetFile.read(file).method
                candidate = Candidate(next(iter(self.inside)), method, budgets=file).rates[-1]
                self._reduce(candidate)
                found.append(candidate)
            except (ValueError, FileNotFoundError) as error:
                if self.config.budgets:
                    raise
                self._leave_out(file, describe_error(error))
        return found

    def _split_pictures(self) -> list[Pictures]:
        """Return the pictures to calibrate with, to search by and held out; without enough of the first no int8."""
        calibrated = [way for way in self.ways if way.recipes]
        sizes = (self.config.calibration if calibrated else 0, self.config.search, self.config.held_out)
        learned = {name for path in self.predictors for name in PredictorFile.read(path).datasets}
        how: dict[str, Any] = {"learned": learned, "classifier": self._find_classifier()}
        parts = split_pictures(self.dataset, sizes, self.config.seed, tower=self.tower, **how)
        if calibrated and not len(parts[0]):
            self.ways = [way for way in self.ways if way not in calibrated]
            lack = f"its share of {self.dataset.asked_as!r} is less than {LEAST_PICTURES} different pictures"
            self._leave_out(INT8, f"{lack} to calibrate with; give more pictures")
        least = self.bounds.min_neighbours
        if least is not None and (few := min(map(len, parts[1:]))) <= NEAREST:
            raise ValueError(f"--min-neighbours {least:g} of {few} pictures: expected more than {NEAREST}; give more")
        tail, photographs = self.bounds.min_cosine_95, parts[-1].photographs
        if tail is not None and photographs < LEAST_FOR_TAIL:
            raise ValueError(
                f"--min-cosine-95 {tail:g} by {photographs} photographs held out: expected {LEAST_FOR_TAIL}, as fewer "
                "can't vouch for 95 % of others; give more pictures, or a larger --held-out"
            )
        return parts

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
        setups = map(self.find_setup, self.reductions)
        configs = [configure(str(each.method), {"keep": ANY_KEEP} | each.options, depth) for each in setups]
        blocks = {block for config in configs if (block := config.predictor_block(depth)) is not None}
        return sorted(find_predictor(self.tower.arch, self.tower.tag, block).path for block in blocks)

    def _reduce(self, candidate: Candidate) -> Host:
        return self.find_setup(candidate).reduce(self.tower)

    def find_setup(self, candidate: Candidate) -> Setup:
        """Return a candidate's setup; its options are those that aren't the method's defaults."""
        way = candidate.way._asdict()
        if candidate.budgets is not None:
            return Setup.of(self.model, **candidate.options, **way)
        return Setup(model=self.model, method=candidate.method, options=candidate.options, **way)

    def serve(self, candidate: Candidate) -> Prepared:
        """Make a candidate as it is run, in the process or from its file; raise what reducing and exporting do.

        In the process all share the dense tower's weights.
        """
        way = candidate.way
        if way.from_file:
            setup, name = self.find_setup(candidate), candidate._replace(cost=None)  # costs share files
            if name not in self._loaded:
                self._loaded[name] = self.exports.load(setup, str(candidate))
            return self._loaded[name].at_cost(candidate.cost)
        reduced = self._reduce(candidate)
        if candidate.budgets is not None:
            return Prepared.of_budgets(reduced, lambda tower: self._serve_inside(way, tower))
        return self._serve_inside(way, reduced)

    def _serve_inside(self, way: Way, reduced: Host) -> Prepared:
        if way not in self.inside:
            return find_runtime(way.runtime).prepare(reduced, self.example, way.precision)
        dense: Any = self.inside[way].call
        vit = share_weights(dense, type(dense))
        vit.reducer = reduced.reducer
        if vit.reducer is not None and way.runtime == EAGER:
            vit.reducer = copy.deepcopy(vit.reducer).to(torch_dtype(way.precision))
        return dataclasses.replace(self.inside[way], call=vit)

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
