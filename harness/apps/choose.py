"""The fastest setup of a tower that meets bounds, chosen on a user's own pictures and machine, with a certificate."""

import copy
import dataclasses
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness import git_commit
from harness.base.hints import describe_error
from harness.base.table import UNMEASURED, Cell, Table, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import cached_json, keep_json
from harness.datasets.text_features import text_classifier
from harness.measure import timing
from harness.measure.fidelity import CHANGE, COSINE, Pictures, SetupBounds, Values, split_pictures
from harness.measure.rows import Variant, make_row, usual_methods
from harness.measure.settings import Plan
from harness.records.record import DENSE, utc_now
from harness.records.statistics import LEAST_ROUNDS, Interval, median_interval
from harness.records.times import Timing, describe_machine
from zoo.core.digests import digest, fingerprint
from zoo.core.host import Host, share_weights
from zoo.core.reducer import METHODS, configure
from zoo.core.settings import PRECISIONS, best_precision, check_fields, expected, torch_dtype
from zoo.deploy.runtime import EAGER, OPTIMIZED
from zoo.deploy.setup import Setup
from zoo.loading.learned_files import PredictorFile, dataset_names, find_predictor
from zoo.loading.towers import load_tower, split_method

CONTROLS = ("random", "golden")  # what methods are compared with: nothing to run
RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending
ROUNDS = 6  # in which candidates are compared
SAFER = (8, 4, 2, 1, 0)  # keep rates above the lowest that meets the bounds: the rungs of the ladder
WORDS = {COSINE: "cosine", CHANGE: "top-1, points"}  # what metrics are called, as columns
# Ratios of times: to the dense tower in eager float32, and as it is run in the setup's precision.
TOTAL, ALIKE = "ratio_to_dense", "ratio_to_dense_run_alike"


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """The methods and precisions to choose from, and how they are measured."""

    methods: tuple[str, ...] = ()  # registered ones; none for those that are measured by default
    precisions: tuple[str, ...] = ()  # none for float32 and the fastest of the device
    search: int = 64  # pictures to search by
    held_out: int = 256  # other pictures, that decide
    batch: int = Plan.match_batch  # images per call, where time is measured
    rounds: int = 9  # calls of the chosen setup and of dense in the end, at least
    seconds: float = 5.0  # that these go on for
    seed: int = 0  # of the split of pictures and of bootstraps
    device: str = "cpu"

    def __post_init__(self) -> None:
        allowed = sorted(METHODS.keys() - CONTROLS)
        for method in self.methods:
            if method not in allowed:
                control = " is a control to compare methods with" if method in CONTROLS else ""
                raise ValueError(f"--methods {method!r}{control}: {expected(method, allowed)}")
        ranges = {"search": "[8, inf)", "held_out": "[20, inf)", "batch": "[1, inf)", "seconds": "[0, inf)"}
        check_fields(self, precisions=PRECISIONS, rounds=f"[{LEAST_ROUNDS}, inf)", **ranges)


class Candidate(NamedTuple):
    """A setup that may be chosen; ``method`` None is the dense tower."""

    method: str | None
    precision: str
    keep: float
    rule: tuple[tuple[str, Any], ...] = ()  # options of another rule for reduction points than the method's default

    @property
    def rates(self) -> list["Candidate"]:
        """The same at all keep rates that are tried, ascending."""
        return [self] if self.method is None else [self._replace(keep=keep) for keep in RATES]

    @property
    def name(self) -> str:
        """The method with its keep rate and the rule for its reduction points."""
        if self.method is None:
            return DENSE
        words = [f"{name}={value}" for name, value in self.rule]
        return f"{self.method} {100 * self.keep:.0f}" + (f" with {', '.join(words)}" if words else "")

    def __str__(self) -> str:
        return f"{self.name} in {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A setup on pictures held out, and in time."""

    candidate: Candidate
    passed: bool  # whether it meets the bounds
    fidelity: dict[str, Any]  # see `Pictures.figures`
    time: dict[str, Any] = field(default_factory=dict)  # see `Lab.measure_times`; empty where it wasn't timed

    @property
    def pays(self) -> bool:
        """Whether it is dense, or clearly faster than dense in the same precision and runtime."""
        return self.candidate.method is None or self.time[ALIKE]["high"] < 1


class Lab:
    """A tower with its reductions, measured on pictures and timed; the user's cache remembers values on pictures."""

    def __init__(
        self, model: str, dataset: str, bounds: SetupBounds, config: ChooseConfig, say: Any, *, fresh: bool = False
    ) -> None:
        """Load the tower, find its reductions and split the pictures; ``fresh`` remembers nothing."""
        self.model, method, _ = split_method(model)
        if method is not None:
            raise ValueError(f"--model {model!r} is reduced already: name its dense tower, {self.model!r}")
        self.bounds, self.config, self.say, self.tower = bounds, config, say, load_tower(self.model)
        self.patience = timing.Patience(say=say)
        vit = self.tower.vit.to(config.device)
        fast = best_precision(config.device)
        self.served: dict[str, Any] = {}  # the dense tower as it is run, by precision, the fastest first
        self.runtimes: dict[str, str] = {}  # names, by precision
        precisions = set(config.precisions) or {"float32", fast}
        for precision in sorted(precisions, key=lambda name: (name != fast, name)):
            example = torch.zeros(1, 3, *vit.input_size, device=config.device)
            prepared, why = Setup(model=self.model, precision=precision).prepare(vit, example)
            self.served[precision], self.runtimes[precision] = prepared.call, EAGER if why else OPTIMIZED
            if why:
                say(f"models in {precision} run as they are: {why}")
        self.dense = [Candidate(None, precision, 1.0) for precision in self.served]
        self.left_out: dict[str, str] = {}  # methods that can't be had, with the reason
        self.reductions = self._find_reductions()
        self.predictors = self._find_predictors()
        self.dataset = get_dataset(dataset)
        self.search, self.held_out = self._split_pictures()
        self.weights = fingerprint(vit)
        self._path, known = cached_json(
            "choices",
            *(version("clip-patchrank"), git_commit(), self.tower.name, self.weights, self.runtimes),
            *(self.dataset.name, self.dataset.condition, bounds.max_loss is None),
            *(self.search.split.image_ids, self.held_out.split.image_ids),
            *(config.device, torch.get_num_threads(), *map(digest, self.predictors)),
        )
        # Values on the pictures of each name, by candidate.
        self.known: dict[str, dict[str, Values]] = (not fresh and known) or {"search": {}, "held_out": {}}

    def _find_reductions(self) -> list[Candidate]:
        """Return the reductions that the tower can run, each at its highest keep rate, in the fastest precision.

        What was asked for by name must run.
        """
        fast = next(iter(self.served))
        names = self.config.methods or [name for name in usual_methods() if name not in (DENSE, *CONTROLS)]
        depth = self.tower.vit.depth
        reductions = []
        for name in names:
            for rule in ({}, *METHODS[name].Config(keep=1).other_rules(depth)):
                candidate = Candidate(name, fast, RATES[-1], rule=tuple(rule.items()))
                try:
                    self.find_setup(candidate).reduce(self.tower)
                    reductions.append(candidate)
                except (ValueError, FileNotFoundError) as error:
                    if self.config.methods:
                        raise
                    self.left_out[name] = why = describe_error(error)
                    self.say(f"{name} is left out: {why}")
        return reductions

    def _split_pictures(self) -> list[Pictures]:
        """Return the pictures to search by and the pictures held out."""
        learned = set[str]()
        for path in self.predictors:
            provenance = PredictorFile.read(path).provenance or {}
            try:
                learned |= set(dataset_names(provenance.get("rankings", []), "dataset"))
            except ValueError as error:
                raise ValueError(f"predictor {str(path)!r} doesn't say what it was fitted to: {error}") from error
        classifier, clip = None, self.tower.clip
        if (loss := self.bounds.max_loss) is not None:
            if not self.dataset.labelled or clip is None:
                lack = f"dataset {self.dataset.name!r} has no classes"
                if clip is None:
                    lack = f"{self.tower.name} has no text tower"
                raise ValueError(f"--max-loss {loss:g}: {lack}; give another bound, such as --min-cosine")
            classifier, _ = text_classifier(clip, self.dataset)
        sizes, seed = (self.config.search, self.config.held_out), self.config.seed
        return split_pictures(self.dataset, sizes, seed, learned=learned, tower=self.tower, classifier=classifier)

    def find_setup(self, candidate: Candidate) -> Setup:
        """Return a candidate's setup; its options are those that aren't the method's defaults."""
        method, precision, keep, rule = candidate
        options = {} if method is None else {"keep": keep, **dict(rule)}
        runtime = self.runtimes[precision]
        return Setup(model=self.model, method=method, options=options, runtime=runtime, precision=precision)

    def _find_predictors(self) -> list[Path]:
        """Return the files of all predictors that reductions use."""
        depth = self.tower.vit.depth
        configs = [configure(str(row.method), self.find_setup(row).options, depth) for row in self.reductions]
        blocks = {block for config in configs if (block := config.predictor_block(depth)) is not None}
        return sorted(find_predictor(self.tower.arch, self.tower.tag, block).path for block in blocks)

    def serve(self, candidate: Candidate) -> Variant:
        """Make a candidate's row as it is run: optimised and in its precision; all share the dense tower's weights.

        Raises:
            ValueError: the tower can't have it, such as ToMe's that would merge more than half of the tokens.
            FileNotFoundError: its predictor is missing.
        """
        reduced, dense = self.find_setup(candidate).reduce(self.tower), self.served[candidate.precision]
        vit = share_weights(dense, type(dense))
        vit.reducer = reduced.reducer
        if vit.reducer is not None and self.runtimes[candidate.precision] == EAGER:
            vit.reducer = copy.deepcopy(vit.reducer).to(torch_dtype(candidate.precision))
        return dataclasses.replace(make_row(self.tower, DENSE, {}, str(candidate)), vit=vit)

    def measure(self, candidate: Candidate, pictures: str) -> Values:
        """Return values of a candidate on ``search`` or ``held_out`` pictures, none if the tower can't have it."""
        known, name = self.known[pictures], str(candidate)
        if name not in known:
            try:
                row = self.serve(candidate)
            except ValueError:
                return known.setdefault(name, {})
            known[name] = getattr(self, pictures).values(row)
            keep_json(self._path, self.known)
        return known[name]

    def share(self, candidate: Candidate) -> float:
        """Return the share of the allowed loss that a candidate uses up, by the pictures to search by."""
        return self.bounds.share(self.measure(candidate, "search"), self.held_out.photographs)

    def assess(self, candidate: Candidate) -> Assessment:
        """Judge a candidate by the bounds on fidelity, on the pictures held out."""
        self.say(f"{candidate} on pictures held out")
        if not (values := self.measure(candidate, "held_out")):
            remedy = f"leave {candidate.precision} out of --precisions"
            raise ValueError(f"features of {candidate} overflow on these pictures: {remedy}")
        figures = self.held_out.figures(values, self.config.seed)
        return Assessment(candidate=candidate, passed=self.bounds.meets(figures), fidelity=figures)

    def _time(self, vits: Mapping[Candidate, Host], rounds: int, **options: Any) -> dict[Any, Timing]:
        """Time models in turn with the dense tower in eager float32, all from the same images in float32."""
        models: dict[Any, Host] = {DENSE: self.tower.vit, **vits}
        return timing.time_models(models, self.config.batch, rounds, patience=self.patience, **options)

    def ratios(self, candidates: Iterable[Candidate]) -> dict[Candidate, float]:
        """Return times by dense's in eager float32, all in the same rounds, of candidates that the tower can have.

        They are of the quickest calls, which other processes disturb least; certificates have medians.
        """
        vits = dict[Candidate, Host]()
        for candidate in candidates:
            with suppress(ValueError):
                vits[candidate] = self.serve(candidate).vit
        least = {key: min(times.samples_ms) for key, times in self._time(vits, ROUNDS, warmup=1).items()}
        return {candidate: least[candidate] / least[DENSE] for candidate in vits}

    def measure_times(self, candidates: Iterable[Candidate]) -> dict[Candidate, dict[str, Any]]:
        """Time candidates in the same rounds as the dense tower in eager float32, and as each of them is run."""
        self.say(f"time of {', '.join(map(str, candidates))}")
        dense_alike = {candidate: Candidate(None, candidate.precision, 1.0) for candidate in candidates}
        vits = {candidate: self.serve(candidate).vit for candidate in (*dense_alike.values(), *dense_alike)}
        timings = self._time(vits, self.config.rounds, seconds=self.config.seconds, warmup=2)
        dense, batch = timings[DENSE], self.config.batch
        medians = {key: median_interval(times.samples_ms) for key, times in timings.items()}
        return {
            candidate: {
                TOTAL: timings[candidate].ratio_to(dense)._asdict(),
                ALIKE: timings[candidate].ratio_to(timings[alike])._asdict(),
                "median_ms": medians[candidate]._asdict(),
                "images_per_s": 1000 * batch / medians[candidate].estimate,
                "dense_images_per_s": 1000 * batch / medians[DENSE].estimate,
                **{"batch": batch, "threads": torch.get_num_threads(), "rounds": len(dense.samples_ms)},
            }
            for candidate, alike in dense_alike.items()
        }

    def certify(self, judged: Sequence[Assessment], **outcome: Any) -> Setup:
        """Return the setup that was judged last with a certificate: measurements, machine, pictures and outcome."""
        parts = {"search": self.search, "held_out": self.held_out}
        sizes = {name: {"pictures": len(part), "photographs": part.photographs} for name, part in parts.items()}
        chosen = judged[-1]
        pairs = [(assessment.candidate, assessment.passed) for assessment in judged]
        certificate = {
            "bounds": dataclasses.asdict(self.bounds),
            "fidelity": chosen.fidelity,
            "time": chosen.time,
            "judged": [{"name": row.name, "precision": row.precision, "passed": passed} for row, passed in pairs],
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **sizes},
            "model": {"name": self.tower.name, "weights": self.weights},
            "machine": describe_machine(torch.device(self.config.device)),
            "seed": self.config.seed,
            "left_out": self.left_out,
            **{"created": utc_now(), "version": version("clip-patchrank"), "commit": git_commit()},
            **outcome,
        }
        return dataclasses.replace(self.find_setup(chosen.candidate), certificate=certificate)


def build_ladder(lab: Lab) -> list[Candidate]:
    """Return setups that should meet the bounds, each less faithful than the one before.

    Dense towers come first, then the fastest reduction in the fastest precision in which dense meets the bounds, from
    a safe keep rate down to the lowest that meets them by the pictures to search by. If not even dense meets them, the
    most faithful dense tower is returned.
    """
    lab.say("dense in each precision")
    dense = sorted((tower for tower in lab.dense if lab.share(tower) <= 1), key=lab.share)
    if not dense:
        return [min(lab.dense, key=lab.share)]
    lab.say("times of dense in each precision")
    ratios = lab.ratios(dense)
    precision = min(dense, key=ratios.__getitem__).precision
    rungs = dict[Candidate, list[Candidate]]()  # by the lowest
    for reduction in lab.reductions:
        lab.say(f"keep rates of {reduction.method}")
        rates = reduction._replace(precision=precision).rates
        at = bisect_left(rates, True, key=lambda candidate: lab.share(candidate) <= 1)
        if at < len(rates):
            rungs[rates[at]] = [rates[at + up] for up in SAFER if at + up < len(rates)]
    if not rungs:
        return dense
    lab.say("times of all methods")
    ratios = lab.ratios(rungs)
    return [*dense, *rungs[min(ratios, key=ratios.__getitem__)]]


class Selection(NamedTuple):
    """The result of a search."""

    setup: Setup  # with its certificate; the nearest one if the bounds aren't met
    why: str  # the bounds aren't met; empty if they are
    judged: Sequence[Assessment]  # in their order, the chosen or nearest one last


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
    """
    begun = time.monotonic()
    lab = Lab(model, dataset, bounds, config, progress.say, fresh=fresh)
    judged = _judge(lab)
    why = _describe_miss(bounds, judged[-1])
    setup = lab.certify(judged, met=not why, seconds=time.monotonic() - begun)
    return Selection(setup, why, judged)


def _judge(lab: Lab) -> list[Assessment]:
    """Go down the ladder on pictures held out, from the most faithful rung on, until one fails.

    Tests in an order that is fixed beforehand need no correction (Maurer, Hothorn and Lehmacher, 1995). The last rung
    that passed competes with the dense towers; the fastest that pays comes last in the list.
    """
    judged = dict[Candidate, Assessment]()
    for rung in build_ladder(lab):
        judged[rung] = lab.assess(rung)
        if not judged[rung].passed:
            break
    passed = [candidate for candidate, assessment in judged.items() if assessment.passed]
    rivals = [candidate for candidate in passed if candidate in (*lab.dense, passed[-1])] or list(judged)
    for candidate, time_of in lab.measure_times(rivals).items():
        judged[candidate] = dataclasses.replace(judged[candidate], time=time_of)
    paying = [candidate for candidate in rivals if judged[candidate].pays]
    met = [candidate for candidate in paying if not _describe_miss(lab.bounds, judged[candidate])]
    last = judged.pop(min(met or paying, key=lambda candidate: judged[candidate].time[TOTAL]["estimate"]))
    return [*judged.values(), last]


def _describe_miss(bounds: SetupBounds, assessment: Assessment) -> str:
    """Say which bound the ends of a setup's intervals miss, nothing if none."""
    for metric, least in bounds.floors.items():
        figures = assessment.fidelity[metric]
        flag = f"--max-loss {bounds.max_loss}" if metric == CHANGE else f"--min-cosine {least}"
        if figures["low"] < least:
            words = f"{figures['estimate']:.5f}, by its interval at least {figures['low']:.5f}"
            return f"{flag} is missed: the mean {WORDS[metric]} on pictures held out is {words}"
    ratio = assessment.time[TOTAL]
    if bounds.speed_up is not None and ratio["high"] * bounds.speed_up > 1:
        words = f"{1 / ratio['estimate']:.2f} times as fast as dense, by its interval at least {1 / ratio['high']:.2f}"
        return f"--speed-up {bounds.speed_up} is missed: it is {words}"
    return "" if assessment.pays else "it isn't clearly faster than dense in the same precision and runtime"


def selection_table(selection: Selection) -> Table:
    """Show the setups that were judged, the chosen or nearest one last."""

    def interval(figures: Mapping[str, float], digits: int) -> Cell:
        mean, low, high = (f"{figures[end]:.{digits}f}" for end in ("estimate", "low", "high"))
        return Cell(mean if low == high else f"{mean} [{low}, {high}]", figures["estimate"])

    metrics, rows = [WORDS[metric] for metric in selection.judged[-1].fidelity], []
    for assessment in selection.judged:
        candidate, fidelity, times = assessment.candidate, assessment.fidelity, assessment.time
        means = [points(Interval(**mean)) if m == CHANGE else interval(mean, 4) for m, mean in fidelity.items()]
        ratios = [interval(times[ratio], 2) if times else UNMEASURED for ratio in (TOTAL, ALIKE)]
        rows.append([candidate.name, candidate.precision, *means, *ratios, "yes" if assessment.passed else "no"])
    dataset = selection.setup.certificate["dataset"]
    held = dataset["held_out"]
    return Table.of(
        f"Setups of {selection.setup.model} on {held['pictures']} held-out pictures of {dataset['name']} "
        f"({held['photographs']} photographs)",
        ["setup", "precision", *metrics, "x dense", "x dense alike", "met"],
        rows,
        words=("setup", "precision", "met"),
        caption="setup: method and keep rate in %; means are relative to dense in float32, with 95 % intervals over "
        "photographs; x dense: time relative to dense in eager float32; x dense alike: time relative to dense in the "
        "same precision and runtime; met: whether it meets the bounds on fidelity; the last setup is "
        f"{'the nearest' if selection.why else 'chosen'}",
    )
