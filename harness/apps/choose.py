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
from harness.apps.settings import CONTROLS, ChooseConfig
from harness.base.hints import describe_error
from harness.base.table import UNMEASURED, Cell, Table, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import cached_json, keep_json
from harness.datasets.text_features import text_classifier
from harness.measure import timing
from harness.measure.fidelity import CHANGE, COSINE, Pictures, SetupBounds, Values, split_pictures
from harness.measure.rows import Variant, make_row, usual_methods
from harness.records.record import DENSE, utc_now
from harness.records.statistics import Interval, median_interval
from harness.records.times import Timing, describe_machine
from zoo.core.digests import digest, fingerprint
from zoo.core.host import share_weights
from zoo.core.reducer import METHODS, configure
from zoo.core.settings import best_precision, torch_dtype
from zoo.deploy.runtime import EAGER, OPTIMIZED
from zoo.deploy.setup import Setup
from zoo.loading.learned_files import PredictorFile, dataset_names, find_predictor
from zoo.loading.towers import load_tower, split_method

RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending
ROUNDS = 6  # in which candidates are compared
SAFER = (8, 4, 2, 1, 0)  # keep rates above the lowest that meets the bounds: the rungs of the ladder
WORDS = {COSINE: "cosine", CHANGE: "top-1, points"}  # what metrics are called, as columns
# Ratios of times: to the dense tower in eager float32, and as it is run in the setup's precision.
TOTAL, ALIKE = "ratio_to_dense", "ratio_to_dense_run_alike"


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
        """Return what the tower can run, each at its highest keep rate, in the fastest precision.

        What was asked for by name must run.
        """
        fast = next(iter(self.served))
        names = self.config.methods or [name for name in usual_methods() if name not in (DENSE, *CONTROLS)]
        depth = self.tower.vit.depth
        able = []
        for name in names:
            for rule in ({}, *METHODS[name].Config(keep=1).other_rules(depth)):
                one = Candidate(name, fast, RATES[-1], rule=tuple(rule.items()))
                try:
                    self.find_setup(one).reduce(self.tower)
                    able.append(one)
                except (ValueError, FileNotFoundError) as error:
                    if self.config.methods:
                        raise
                    self.left_out[name] = why = describe_error(error)
                    self.say(f"{name} is left out: {why}")
        return able

    def _split_pictures(self) -> list[Pictures]:
        """Return pictures to search by, and those held out."""
        learned = set[str]()
        for path in self.predictors:
            facts = PredictorFile.read(path).provenance or {}
            try:
                learned |= set(dataset_names(facts.get("rankings", []), "dataset"))
            except ValueError as error:
                raise ValueError(f"predictor {str(path)!r} doesn't say what it was fitted to: {error}") from error
        classifier, clip = None, self.tower.clip
        if (loss := self.bounds.max_loss) is not None:
            if not self.dataset.labelled or clip is None:
                lack = (
                    f"dataset {self.dataset.name!r} has no classes" if clip else f"{self.tower.name} has no text tower"
                )
                raise ValueError(f"--max-loss {loss:g}: {lack}; give another bound, such as --min-cosine")
            classifier, _ = text_classifier(clip, self.dataset)
        sizes, seed = (self.config.search, self.config.held_out), self.config.seed
        return split_pictures(self.dataset, sizes, seed, learned=learned, tower=self.tower, classifier=classifier)

    def find_setup(self, one: Candidate) -> Setup:
        """Return a candidate's setup; its options are those that aren't the method's defaults."""
        options = {} if one.method is None else {"keep": one.keep, **dict(one.rule)}
        runtime = self.runtimes[one.precision]
        return Setup(model=self.model, method=one.method, options=options, runtime=runtime, precision=one.precision)

    def _find_predictors(self) -> list[Path]:
        """Return the files of all predictors that reductions use."""
        depth, arch, tag = self.tower.vit.depth, self.tower.arch, self.tower.tag
        found = set[Path]()
        for one in self.reductions:
            config = configure(str(one.method), self.find_setup(one).options, depth)
            if (block := config.predictor_block(depth)) is not None:
                found.add(find_predictor(arch, tag, block).path)
        return sorted(found)

    def serve(self, one: Candidate) -> Variant:
        """Make a candidate's row as it is run: optimised and in its precision; all share the dense tower's weights.

        Raises:
            ValueError: the tower can't have it, such as ToMe's that would merge more than half of the tokens.
            FileNotFoundError: its predictor is missing.
        """
        reduced, dense = self.find_setup(one).reduce(self.tower), self.served[one.precision]
        vit = share_weights(dense, type(dense))
        vit.reducer = reduced.reducer
        if vit.reducer is not None and self.runtimes[one.precision] == EAGER:
            vit.reducer = copy.deepcopy(vit.reducer).to(torch_dtype(one.precision))
        return dataclasses.replace(make_row(self.tower, DENSE, {}, str(one)), vit=vit)

    def measure(self, one: Candidate, pictures: str) -> Values:
        """Return values of a candidate on ``search`` or ``held_out`` pictures, none if the tower can't have it."""
        known = self.known[pictures]
        if str(one) not in known:
            try:
                row = self.serve(one)
            except ValueError:
                known[str(one)] = {}
            else:
                known[str(one)] = getattr(self, pictures).values(row)
                keep_json(self._path, self.known)
        return known[str(one)]

    def share(self, one: Candidate) -> float:
        """Return how much of what the bounds allow a candidate uses up, by the pictures to search by."""
        return self.bounds.share(self.measure(one, "search"), self.held_out.photographs)

    def assess(self, one: Candidate) -> Assessment:
        """Judge a candidate by the bounds on fidelity, on the pictures held out."""
        self.say(f"{one} on pictures held out")
        if not (values := self.measure(one, "held_out")):
            raise ValueError(f"features of {one} overflow on these pictures: leave {one.precision} out of --precisions")
        figures = self.held_out.figures(values, self.config.seed)
        return Assessment(candidate=one, passed=self.bounds.meets(figures), fidelity=figures)

    def _time(self, vits: Mapping[Any, Any], rounds: int, **options: Any) -> dict[Any, Timing]:
        """Time models in turn with the dense tower in eager float32, all from the same images in float32."""
        models = {DENSE: self.tower.vit, **vits}
        return timing.time_models(models, self.config.batch, rounds, patience=self.patience, **options)

    def ratios(self, candidates: Iterable[Candidate]) -> dict[Candidate, float]:
        """Return times by dense's in eager float32, all in the same rounds, of candidates that the tower can have.

        They are of the quickest calls, which other processes disturb least; certificates have medians.
        """
        vits = dict[Any, Any]()
        for one in candidates:
            with suppress(ValueError):
                vits[one] = self.serve(one).vit
        least = {key: min(own.samples_ms) for key, own in self._time(vits, ROUNDS, warmup=1).items()}
        return {one: least[one] / least[DENSE] for one in vits}

    def measure_times(self, candidates: Iterable[Candidate]) -> dict[Candidate, dict[str, Any]]:
        """Time candidates in the same rounds as the dense tower in eager float32, and as each of them is run."""
        self.say(f"time of {', '.join(map(str, candidates))}")
        alike = {one: Candidate(None, one.precision, 1.0) for one in candidates}
        vits = {one: self.serve(one).vit for one in (*alike.values(), *alike)}
        timings = self._time(vits, self.config.rounds, seconds=self.config.seconds, warmup=2)
        dense, batch = timings[DENSE], self.config.batch
        medians = {one: median_interval(own.samples_ms) for one, own in timings.items()}
        return {
            one: {
                TOTAL: timings[one].ratio_to(dense)._asdict(),
                ALIKE: timings[one].ratio_to(timings[other])._asdict(),
                "median_ms": medians[one]._asdict(),
                "images_per_s": 1000 * batch / medians[one].estimate,
                "dense_images_per_s": 1000 * batch / medians[DENSE].estimate,
                **{"batch": batch, "threads": torch.get_num_threads(), "rounds": len(dense.samples_ms)},
            }
            for one, other in alike.items()
        }

    def certify(self, judged: Sequence[Assessment], **outcome: Any) -> Setup:
        """Return the setup that was judged last with what was measured of it, where and on what, and the outcome."""
        pictures = {
            name: {"pictures": len(one), "photographs": one.photographs}
            for name, one in (("search", self.search), ("held_out", self.held_out))
        }
        chosen = judged[-1]
        certificate = {
            "bounds": dataclasses.asdict(self.bounds),
            "fidelity": chosen.fidelity,
            "time": chosen.time,
            "judged": [
                {"name": one.candidate.name, "precision": one.candidate.precision, "passed": one.passed}
                for one in judged
            ],
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **pictures},
            "model": {"name": self.tower.name, "weights": self.weights},
            "machine": describe_machine(torch.device(self.config.device)),
            "seed": self.config.seed,
            "left_out": self.left_out,
            **{"created": utc_now(), "version": version("clip-patchrank"), "commit": git_commit()},
            **outcome,
        }
        return dataclasses.replace(self.find_setup(chosen.candidate), certificate=certificate)


def build_ladder(lab: Any) -> list[Candidate]:
    """Return setups that should meet the bounds, each less faithful than the one before.

    Dense towers come first, then the fastest reduction in the fastest precision in which dense meets the bounds, from
    a safe keep rate down to the lowest that meets them by the pictures to search by. If not even dense meets them, the
    most faithful dense tower is returned.
    """
    lab.say("dense in each precision")
    dense = sorted((one for one in lab.dense if lab.share(one) <= 1), key=lab.share)
    if not dense:
        return [min(lab.dense, key=lab.share)]
    lab.say("times of dense in each precision")
    ratios = lab.ratios(dense)
    precision = min(dense, key=ratios.__getitem__).precision
    rungs = dict[Candidate, list[Candidate]]()  # by the lowest
    for way in lab.reductions:
        lab.say(f"keep rates of {way.method}")
        rates = way._replace(precision=precision).rates
        at = bisect_left(rates, True, key=lambda one: lab.share(one) <= 1)
        if at < len(rates):
            rungs[rates[at]] = [rates[at + up] for up in SAFER if at + up < len(rates)]
    if not rungs:
        return dense
    lab.say("times of all methods")
    ratios = lab.ratios(rungs)
    return [*dense, *rungs[min(ratios, key=ratios.__getitem__)]]


class Selection(NamedTuple):
    """What a search came to."""

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
    passed = [one for one, own in judged.items() if own.passed]
    rivals = [one for one in passed if one.method is None or one == passed[-1]] or list(judged)
    judged |= {one: dataclasses.replace(judged[one], time=own) for one, own in lab.measure_times(rivals).items()}
    paying = [one for one in rivals if judged[one].pays]
    met = [one for one in paying if not _describe_miss(lab.bounds, judged[one])]
    last = judged.pop(min(met or paying, key=lambda one: judged[one].time[TOTAL]["estimate"]))
    return [*judged.values(), last]


def _describe_miss(bounds: SetupBounds, one: Assessment) -> str:
    """Say which bound the ends of a setup's intervals miss, nothing if none."""
    for metric, least in bounds.floors.items():
        figures = one.fidelity[metric]
        flag = f"--max-loss {bounds.max_loss}" if metric == CHANGE else f"--min-cosine {least}"
        if figures["low"] < least:
            words = f"{figures['estimate']:.5f}, by its interval at least {figures['low']:.5f}"
            return f"{flag} is missed: the mean {WORDS[metric]} on pictures held out is {words}"
    ratio = one.time[TOTAL]
    if bounds.speed_up is not None and ratio["high"] * bounds.speed_up > 1:
        words = f"{1 / ratio['estimate']:.2f} times as fast as dense, by its interval at least {1 / ratio['high']:.2f}"
        return f"--speed-up {bounds.speed_up} is missed: it is {words}"
    return "" if one.pays else "it isn't clearly faster than dense in the same precision and runtime"


def selection_table(selection: Selection) -> Table:
    """Show the setups that were judged, the chosen or nearest one last."""

    def interval(figures: Mapping[str, float], digits: int) -> Cell:
        mean, low, high = (f"{figures[end]:.{digits}f}" for end in ("estimate", "low", "high"))
        return Cell(mean if low == high else f"{mean} [{low}, {high}]", figures["estimate"])

    metrics, rows = [WORDS[metric] for metric in selection.judged[-1].fidelity], []
    for one in selection.judged:
        means = [points(Interval(**own)) if m == CHANGE else interval(own, 4) for m, own in one.fidelity.items()]
        ratios = [interval(one.time[ratio], 2) if one.time else UNMEASURED for ratio in (TOTAL, ALIKE)]
        met = "yes" if one.passed else "no"
        rows.append([one.candidate.name, one.candidate.precision, *means, *ratios, met])
    facts = selection.setup.certificate["dataset"]
    held = facts["held_out"]
    return Table.of(
        f"Setups of {selection.setup.model} on {held['pictures']} held-out pictures of {facts['name']} "
        f"({held['photographs']} photographs)",
        ["setup", "precision", *metrics, "x dense", "x dense alike", "met"],
        rows,
        words=("setup", "precision", "met"),
        caption="setup: method and keep rate in %; means are relative to dense in float32, with 95 % intervals over "
        "photographs; x dense: time relative to dense in eager float32; x dense alike: time relative to dense in the "
        "same precision and runtime; met: whether it meets the bounds on fidelity; the last setup is "
        f"{'the nearest' if selection.why else 'chosen'}",
    )
