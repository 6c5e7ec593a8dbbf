"""The fastest setup of a tower that meets bounds, chosen on a user's own pictures and machine, with a certificate.

Fidelity rises with the keep rate, so each approach is bisected on some pictures for the fewest tokens that meet the
bounds. Of the fastest ones, with somewhat higher keep rates too, setups that no other beats in both time and fidelity
are the rungs of a ladder. Pictures that were held out decide how far down the ladder one may go: rungs are judged from
the most faithful on, and the first that fails ends it. Tests in an order that is fixed beforehand need no correction
(Maurer, Hothorn and Lehmacher, 1995): a setup that misses the bounds is certified no more often than the interval of a
single one is wrong.
"""

import copy
import dataclasses
import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness import git_commit
from harness.apps.fidelity import AGREEMENT, CHANGE, COSINE, OVERLAP, Q05, Pictures, SetupBounds, part_pictures
from harness.apps.setup import Setup, make_runtime
from harness.base.hints import describe_error
from harness.base.table import UNMEASURED, Cell, Table, points
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import cached_json, keep_json
from harness.measure import timing
from harness.measure.plan import Plan
from harness.measure.rows import Variant, make_row, recovered_row
from harness.models.towers import load_tower, split_method, text_classifier
from harness.records.metrics import LEAST_GALLERY
from harness.records.record import DENSE, DTYPES, utc_now
from harness.records.statistics import LEAST_ROUNDS, median_interval
from harness.records.times import Machine, Timing, verdict
from zoo.core.files import digest, fingerprint
from zoo.core.host import share_weights
from zoo.core.merger import Merger
from zoo.core.messages import expected
from zoo.core.precision import best_precision
from zoo.core.reducer import METHODS, configure
from zoo.deploy.optimized import OptimizedHost
from zoo.loading.learned_files import ScheduleFile, dataset_names
from zoo.loading.predictor_file import PredictorFile, find_predictor
from zoo.loading.recovery_file import RecoveryFile

RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending
MERGING = ("rankmerge",)  # merges without being a `Merger`
FIRST, FEWEST = 4, 8  # one picture in so many is for a first look, so many at least
ROUGH, DECIDING = 5, 5  # rounds in which approaches are compared, and setups that may be chosen
SAFER = (0, 1, 4)  # keep rates above the lowest that meets the bounds, which are rungs of the ladder
BEST, RUNGS = 3, 4  # approaches that the ladder is made of, the fastest; its rungs at most
SLACK = 0.03  # of the time that is asked for, which a search for it leaves, as timing again moves it
TRIES = 6  # setups that are timed against a bound on time, one after the other
WORDS = {  # what metrics are called, as columns
    COSINE: "cosine",
    Q05: "5 % of cosines below",
    OVERLAP: "neighbour overlap",
    AGREEMENT: "same answer",
    CHANGE: "top-1, points",
}

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """What to choose from, and how."""

    methods: tuple[str, ...] = ()  # registered ones; none for those that are measured by default
    dtypes: tuple[str, ...] = ()  # none for float32 and the fastest of the device
    schedules: tuple[Path, ...] = ()  # files, each stretched over keep rates
    recoveries: tuple[Path, ...] = ()  # files, each at its own keep rate
    search: int = 64  # pictures to search by
    held_out: int = 256  # other pictures, that decide
    batch: int = Plan.match_batch  # images per call, where time is measured
    rounds: int = 9  # calls of the chosen setup and of dense in the end, at least
    seconds: float = 5.0  # that these go on for
    seed: int = 0  # of the parting of pictures and of bootstraps
    device: str = "cpu"

    def __post_init__(self) -> None:
        for flag, known in (("methods", METHODS), ("dtypes", DTYPES)):
            for value in getattr(self, flag):
                if value not in known:
                    raise ValueError(f"--{flag} {value!r}: {expected(value, known)}")
        least = {"search": 8, "held_out": 20, "batch": 1, "rounds": LEAST_ROUNDS, "seconds": 0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name):g}: expected a number from {bound}")


class Candidate(NamedTuple):
    """A setup that may be chosen; ``method`` None is the dense tower, optimised or rounded."""

    method: str | None
    dtype: str
    keep: float
    schedule: str = ""  # its file
    recovery: str = ""  # its file

    @property
    def rates(self) -> list["Candidate"]:
        """The same at all keep rates that are tried, ascending."""
        return [self] if self.method is None or self.recovery else [self._replace(keep=keep) for keep in RATES]

    @property
    def name(self) -> str:
        """The method with its file's name."""
        file = self.schedule or self.recovery
        return (self.method or DENSE) + (f" with {Path(file).name}" if file else "")

    def __str__(self) -> str:
        return f"{self.name} in {self.dtype} at keep {100 * self.keep:.0f} % {self.schedule or self.recovery}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A setup on pictures held out, or in time."""

    setup: Setup
    name: str  # of its candidate
    keep: float
    passed: bool
    fidelity: dict[str, Any]  # see `Pictures.figures`
    time: dict[str, Any] | None = None  # see `Lab.times`; None if it wasn't timed by itself


class Lab:
    """A tower with its approaches, measured on pictures and timed; the user's cache remembers values on pictures."""

    def __init__(
        self, model: str, dataset: str, bounds: SetupBounds, config: ChooseConfig, say: Say, *, fresh: bool = False
    ) -> None:
        """Load the tower, find its approaches and part the pictures; ``fresh`` remembers nothing."""
        self.model, method, _ = split_method(model)
        if method is not None:
            raise ValueError(f"--model {model!r} is reduced already: name its dense tower, {self.model!r}")
        self.bounds, self.config, self.say, self.tower = bounds, config, say, load_tower(self.model)
        self.patience = timing.Patience(say=say)
        vit = self.tower.vit.to(config.device)
        self.dense = Variant(model=self.tower.arch, method=DENSE, keep=1.0, vit=vit, config={})
        fast = best_precision(config.device)
        dtypes = sorted(set(config.dtypes) or {"float32", fast}, key=lambda dtype: (dtype != fast, dtype))
        self.served: dict[str, Any] = {}  # the dense tower as it is run, by precision, the fastest first
        for dtype in dtypes:
            self.served[dtype], why = make_runtime(vit, dtype)
            if why:
                say(f"models in {dtype} run as they are: {why}")
        self.files: dict[str, Any] = {str(path): ScheduleFile.read(path) for path in config.schedules}
        self.files |= {str(path): RecoveryFile.read(path) for path in config.recoveries}
        for path, file in self.files.items():
            if file.method not in METHODS:
                raise ValueError(f"{path!r} is of method {file.method!r}: {expected(file.method, METHODS)}")
        self.left_out: dict[str, str] = {}  # methods that can't be had, with the reason
        self.approaches = self._find_approaches()
        self.dataset = get_dataset(dataset)
        self.search, self.held_out, self.first = self._part_pictures()
        ids = [one.part.split.image_ids for one in (self.first, self.search, self.held_out)]
        self.weights, optimised = fingerprint(vit), [dtype for dtype in self.served if self._is_optimised(dtype)]
        identity: list[Any] = [version("clip-patchrank"), git_commit(), self.tower.name, self.weights, optimised]
        identity += [self.dataset.name, self.dataset.condition, *ids, config.device, torch.get_num_threads()]
        identity += [digest(Path(path)) for path in self.files]
        self._path, known = cached_json("choices", *identity)
        # Values on the pictures of each name, by candidate.
        self.known: dict[str, dict[str, Any]] = {"first": {}, "search": {}, "held_out": {}}
        if isinstance(known, dict) and not fresh:
            self.known = known

    def _is_optimised(self, dtype: str) -> bool:
        return isinstance(self.served[dtype], OptimizedHost)

    def _find_approaches(self) -> list[Candidate]:
        """Return what the tower can run, each at its highest keep rate, the fastest precision and merging first.

        What was asked for by name or file must run.
        """
        names = self.config.methods or [name for name in METHODS if METHODS[name].by_default]
        merging = sorted(names, key=lambda name: (name not in MERGING and not issubclass(METHODS[name], Merger), name))
        every = [Candidate(name, "float32", RATES[-1]) for name in merging]
        for path, file in self.files.items():
            if isinstance(file, ScheduleFile):
                every.append(Candidate(file.method, "float32", RATES[-1], schedule=path))
            else:
                every.append(Candidate(file.method, "float32", file.options.get("keep", 1.0), recovery=path))
        able = list[Candidate]()
        for way in every:
            try:
                self.row(way)
                able.append(way)
            except (ValueError, FileNotFoundError) as error:
                if self.config.methods or way.schedule or way.recovery:
                    raise
                self.left_out[way.name] = describe_error(error)
                self.say(f"{way.name} is left out: {self.left_out[way.name]}")
        approaches = []
        for dtype in self.served:
            if dtype != "float32" or self._is_optimised(dtype):
                approaches.append(Candidate(None, dtype, 1.0))
            approaches += [way._replace(dtype=dtype) for way in able]
        if not approaches:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            raise ValueError(f"nothing to choose from for {self.model}: {reasons}")
        return approaches

    def _part_pictures(self) -> list[Pictures]:
        """Return pictures to search by, those held out, and a few of the former for a first look."""
        loss, labelled, clip = self.bounds.max_loss, self.dataset.labelled, self.tower.clip
        if loss is not None and (not labelled or clip is None):
            lack = (
                f"{self.tower.name} has no text tower" if labelled else f"dataset {self.dataset.name!r} has no classes"
            )
            raise ValueError(f"--max-loss {loss:g}: {lack}; give another bound, such as --min-cosine")
        classifier = text_classifier(clip, self.dataset)[0] if labelled and clip is not None else None
        files = {path for way in self.approaches for path in self.predictors(way.method, self.options(way))}
        learned = {name for file in self.files.values() for name in dataset_names(file.datasets)}
        for path in files:
            facts = PredictorFile.read(path).provenance or {}
            try:
                learned |= set(dataset_names(facts.get("rankings", []), "dataset"))
            except ValueError as error:
                raise ValueError(f"predictor {str(path)!r} doesn't say what it was fitted to: {error}") from error
        sizes, seed = (self.config.search, self.config.held_out), self.config.seed
        parts = part_pictures(self.dataset, sizes, seed, learned=learned, classifier=classifier)
        count = max(FEWEST, len(parts[0].split) // FIRST)
        if OVERLAP in self.bounds.floors:
            count = len(parts[0].split)  # a first look at nearest pictures needs all of them
            for part, flag in zip(parts, ("search", "held-out"), strict=True):
                if len(part.split) < LEAST_GALLERY:
                    raise ValueError(
                        f"--min-overlap {self.bounds.min_overlap:g} with {len(part.split)} pictures (--{flag}): of "
                        f"fewer than {LEAST_GALLERY} the nearest say little; give that many pictures, and --{flag} "
                        f"{LEAST_GALLERY}"
                    )
        every = (*parts, parts[0].few(count))
        return [Pictures(part, self.dense, self.tower.preprocess, classifier) for part in every]

    def predictors(self, method: str | None, options: Mapping[str, Any]) -> list[Path]:
        """Return the file of a method's predictor; none of a method without."""
        if method is None:
            return []
        arch, tag, depth = self.tower.arch, self.tower.tag, self.dense.vit.depth
        config = configure(method, dict(options), depth)
        block = config.predictor_block(depth)
        return [] if block is None else [find_predictor(arch, tag, block, action=config.action).path]

    def options(self, one: Candidate) -> dict[str, Any]:
        """Return the method's options of a candidate as JSON values, those that aren't its defaults."""
        if one.method is None:
            return {}
        if not (one.schedule or one.recovery):
            return {"keep": one.keep}
        file = self.files[one.schedule or one.recovery]
        plain = json.loads(
            json.dumps({own.name: own.default for own in dataclasses.fields(METHODS[one.method].Config)})
        )
        own = {name: value for name, value in file.options.items() if name in plain and value != plain[name]}
        if one.recovery:
            return own
        if file.keep == 1:
            raise ValueError(f"schedule {one.schedule!r} keeps every patch token: search another one")
        # Shares of the work, which are what the points have in common at every keep rate.
        rates = [round(one.keep ** (math.log(rate) / math.log(file.keep)), 4) for rate in file.schedule]
        return own | {"reduce_at": list(file.reduce_at), "schedule": rates, "keep": one.keep}

    def row(self, one: Candidate) -> Variant:
        """Make a candidate's row, in float32; raise ValueError or FileNotFoundError where it can't be had."""
        if one.method is None:
            return dataclasses.replace(self.dense, what=str(one))
        vit, arch, tag = self.dense.vit, self.tower.arch, self.tower.tag
        if one.recovery:
            return dataclasses.replace(recovered_row(vit, arch, tag, self.files[one.recovery]), what=str(one))
        return make_row(vit, arch, tag, one.method, self.options(one), what=str(one))

    def served_row(self, one: Candidate) -> Variant:
        """Make a candidate's row as it is run: optimised and in its precision; all share the dense tower's weights."""
        row, dense = self.row(one), self.served[one.dtype]
        if row.apart:
            return dataclasses.replace(row, vit=make_runtime(row.vit, one.dtype)[0])
        vit = share_weights(dense, type(dense))
        vit.reducer = row.vit.reducer
        if vit.reducer is not None and not self._is_optimised(one.dtype):
            vit.reducer = copy.deepcopy(vit.reducer).to(DTYPES[one.dtype])
        return dataclasses.replace(row, vit=vit)

    def values(self, one: Candidate, pictures: str) -> Mapping[str, list[float]]:
        """Return values of a candidate on ``first``, ``search`` or ``held_out`` pictures; it isn't run twice.

        There are none if it can't be built, such as ToMe's that would merge more than half of the tokens.
        """
        known = self.known[pictures]
        if str(one) not in known:
            try:
                row = self.served_row(one)
            except ValueError:
                known[str(one)] = {}
            else:
                known[str(one)] = getattr(self, pictures).values(row)
                keep_json(self._path, self.known)
        return known[str(one)]

    def share(self, one: Candidate, pictures: str = "search") -> float:
        """Return how much of what the bounds allow a candidate uses up, by ``search`` or ``first`` pictures."""
        return self.bounds.share(self.values(one, pictures), self.held_out.part.group_count)

    def ratios(self, candidates: Iterable[Candidate], rounds: int) -> dict[Candidate, float]:
        """Return times by the dense tower's in float32, all in the same rounds; infinite of those that can't be built.

        They are of the quickest calls, which other processes disturb least; certificates have medians.
        """
        ratios, vits = dict.fromkeys(candidates, math.inf), {}
        for one in ratios:
            try:
                vits[one] = self.served_row(one).vit
            except ValueError:
                continue
        least = {key: min(own.samples_ms) for key, own in self._time(vits, rounds, warmup=1).items()}
        return ratios | {one: least[one] / least[DENSE] for one in vits}

    def _time(self, vits: Mapping[Any, Any], rounds: int, **options: Any) -> dict[Any, Timing]:
        """Time models in turn with the dense tower in float32, all from the same images in float32."""
        models = {DENSE: self.dense.vit, **vits}
        return timing.time_models(models, self.config.batch, rounds, patience=self.patience, **options)

    def assess(self, one: Candidate) -> Assessment:
        """Judge a candidate by the bounds on fidelity, on the pictures held out."""
        self.say(f"{one} on pictures held out")
        figures = self.held_out.figures(self.values(one, "held_out"), self.config.seed)
        how: dict[str, Any] = {"method": one.method, "options": self.options(one), "recovery": one.recovery or None}
        setup, passed = Setup(model=self.model, dtype=one.dtype, **how), self.bounds.meets(figures)
        return Assessment(setup=setup, name=one.name, keep=one.keep, passed=passed, fidelity=figures)

    def times(self, one: Candidate) -> dict[str, Any]:
        """Time a candidate in turn with the dense tower in float32, as it is and as the candidate is run."""
        self.say(f"time of {one}")
        vits = {"chosen": self.served_row(one).vit, "alike": self.served[one.dtype]}
        batch = self.config.batch
        timings = self._time(vits, self.config.rounds, seconds=self.config.seconds, warmup=2)
        chosen, dense = timings["chosen"], timings[DENSE]
        ratio, per_call = chosen.ratio_to(dense), median_interval(chosen.samples_ms)
        return {
            "ratio_to_dense": ratio._asdict(),
            "ratio_to_dense_run_alike": chosen.ratio_to(timings["alike"])._asdict(),
            "verdict": verdict(ratio),
            "median_ms": per_call._asdict(),
            "dense_median_ms": median_interval(dense.samples_ms)._asdict(),
            "images_per_s": 1000 * batch / per_call.estimate,
            "dense_images_per_s": 1000 * batch / dense.spread_ms.estimate,
            **{"batch": batch, "threads": torch.get_num_threads(), "rounds": len(chosen.samples_ms)},
            "stopwatch": timing.wall_clock().name,
        }

    def certificate(self, chosen: Assessment) -> dict[str, Any]:
        """Return what was measured of a setup, where and on what."""
        pictures = {
            name: {"pictures": len(one), "photographs": one.part.group_count}
            for name, one in (("search", self.search), ("held_out", self.held_out))
        }
        return {
            "bounds": self.bounds.values,
            "fidelity": chosen.fidelity,
            "time": chosen.time,
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **pictures},
            "model": {"name": self.tower.name, "weights": self.weights},
            "machine": dataclasses.asdict(Machine.here(torch.device(self.config.device))),
            "optimised": self._is_optimised(chosen.setup.dtype),
            "seed": self.config.seed,
            "lines": len(self.approaches),
            "left_out": self.left_out,
            "predictors": [str(path) for path in self.predictors(chosen.setup.method, chosen.setup.options)],
            "created": utc_now(),
            "version": version("clip-patchrank"),
            "commit": git_commit(),
        }


def first_met(candidates: Sequence[Candidate], used: Callable[[Candidate], float]) -> int:
    """Return the place of the first of candidates that uses at most 1, their number if none; what they use falls."""
    return bisect_left(candidates, True, key=lambda one: used(one) <= 1)


def ladder(approaches: Sequence[Candidate], lab: Any) -> list[Candidate]:
    """Return setups that should meet the bounds, each faster and less faithful than the one before.

    A first look at few pictures, in the precision of the first approach, finds those that are worth the rest. The last
    setup just meets the bounds by the pictures that were searched by. If none does, the most faithful is returned.
    """
    lab.say("a first look at keep rates")
    places: dict[Candidate, int] = {}
    for way in approaches:
        alike = way._replace(dtype=approaches[0].dtype)
        lead = alike if alike in approaches else way
        if lead not in places:
            places[lead] = first_met(lead.rates, lambda one: lab.share(one, "first"))
        places[way] = places[lead]
    met = {way: way.rates[at] for way, at in places.items() if at < len(way.rates)}
    lab.say("times of all methods")
    rough = lab.ratios(met.values(), ROUGH)
    rungs = list[Candidate]()
    for way in sorted(met, key=lambda way: rough[met[way]])[:BEST]:
        lab.say(f"keep rates of {way.name} in {way.dtype}")
        at = first_met(way.rates, lab.share)
        rungs += [way.rates[at + up] for up in SAFER if at + up < len(way.rates)]
    if not rungs:
        return [min(approaches, key=lab.share)]
    lab.say("a ladder of setups")
    ratios = lab.ratios(rungs, DECIDING)
    faster = [one for one in rungs if ratios[one] < 1] or [min(rungs, key=lambda one: ratios[one])]
    front, least = list[Candidate](), math.inf  # those that none beats in both; the most faithful first
    for one in sorted(faster, key=lambda one: (ratios[one], lab.share(one))):
        if lab.share(one) < least:
            least = lab.share(one)
            front.insert(0, one)
    return front if len(front) <= RUNGS else front[:1] + front[1 - RUNGS :]


def in_time(approaches: Sequence[Candidate], lab: Any, goal: float) -> list[Candidate]:
    """Return setups whose time is at most ``goal`` of dense's, the most faithful first; if none is, the fastest."""

    def used(one: Candidate) -> float:
        return float(lab.ratios([one], ROUGH)[one] / (goal * (1 - SLACK)))

    met = list[Candidate]()
    for way in approaches:
        lab.say(f"keep rates of {way.name} in {way.dtype} in that time")
        slowest_first = way.rates[::-1]
        at = first_met(slowest_first, used)
        met += slowest_first[at : at + 3]  # and somewhat faster ones, should the first miss it
    if not met:
        ratios = lab.ratios([way.rates[0] for way in approaches], ROUGH)
        return [min(ratios, key=lambda one: ratios[one])]
    return sorted(met, key=lab.share)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a search came to."""

    setup: Setup  # with its certificate; the nearest one if the bounds aren't met
    met: bool
    why: str  # the bounds aren't met, or nothing
    judged: tuple[Assessment, ...]  # in their order, the chosen or nearest one last
    seconds: float


def choose(
    model: str,
    dataset: str,
    bounds: SetupBounds,
    config: ChooseConfig | None = None,
    *,
    fresh: bool = False,
    progress: Progress,
) -> Selection:
    """Search the fastest setup of a tower that meets bounds on a dataset's pictures, on this machine.

    With a bound on time alone it is the most faithful one within it. A search that was stopped goes on where it was,
    and one with other bounds takes what was measured on the same pictures; ``fresh`` measures everything anew.

    Raises:
        ValueError: a reduced model, pictures or classes that a bound needs and that aren't there, or an unknown name.
        FileNotFoundError: weights or a file are missing.
    """
    begun = time.monotonic()
    lab = Lab(model, dataset, bounds, config or ChooseConfig(), progress.say, fresh=fresh)
    judged = _by_fidelity(lab) if bounds.floors else _by_time(lab)
    last = judged[-1]
    why, seconds = _miss(bounds, last), time.monotonic() - begun
    order = [{"name": one.name, "dtype": one.setup.dtype, "keep": one.keep, "passed": one.passed} for one in judged]
    certificate = lab.certificate(last) | {"met": not why, "judged": order, "seconds": seconds}
    setup = dataclasses.replace(last.setup, certificate=certificate)
    return Selection(setup=setup, met=not why, why=why, judged=tuple(judged), seconds=seconds)


def _by_fidelity(lab: Lab) -> list[Assessment]:
    """Go down the ladder on pictures held out, from the most faithful rung on, until one fails; time the last good one.

    It comes last in the list. If the first fails, it is that one.
    """
    judged: dict[Candidate, Assessment] = {}
    for rung in ladder(lab.approaches, lab):
        judged[rung] = lab.assess(rung)
        if not judged[rung].passed:
            break
    chosen = [one for one, own in judged.items() if own.passed or len(judged) == 1][-1]
    last = judged.pop(chosen)
    return [*judged.values(), dataclasses.replace(last, time=lab.times(chosen))]


def _by_time(lab: Lab) -> list[Assessment]:
    """Time setups, the most faithful first, until one is as fast as asked; it comes last, or the fastest if none is."""
    judged = list[tuple[float, Assessment]]()
    assert lab.bounds.speed_up is not None
    for one in in_time(lab.approaches, lab, 1 / lab.bounds.speed_up)[:TRIES]:
        times = lab.times(one)
        own = dataclasses.replace(lab.assess(one), time=times)
        own = dataclasses.replace(own, passed=not _miss(lab.bounds, own))
        if own.passed:
            return [*(other for _, other in judged), own]
        judged.append((times["ratio_to_dense"]["high"], own))
    return [own for _, own in sorted(judged, key=lambda pair: -pair[0])]


def _miss(bounds: SetupBounds, one: Assessment) -> str:
    """Say which bound the ends of a setup's intervals miss, nothing if none."""
    assert one.time is not None
    for metric, least in bounds.floors.items():
        figures = one.fidelity[metric]
        if figures["low"] < least:
            words = f"{figures['estimate']:.5f}, by its interval at least {figures['low']:.5f}"
            return f"{bounds.flag(metric)} is missed: the mean {WORDS[metric]} on pictures held out is {words}"
    ratio = one.time["ratio_to_dense"]
    if bounds.speed_up is not None and ratio["high"] * bounds.speed_up > 1:
        words = f"{1 / ratio['estimate']:.2f} times as fast as dense, by its interval at least {1 / ratio['high']:.2f}"
        return f"--speed-up {bounds.speed_up} is missed: it is {words}"
    return ""


def selection_table(selection: Selection) -> Table:
    """Show the setups that were judged, the chosen or nearest one last."""

    def interval(figures: Mapping[str, float], metric: str) -> Cell:
        ends = [figures[end] for end in ("estimate", "low", "high")]
        if metric == CHANGE:
            return points((ends[0], ends[1], ends[2]))
        mean, low, high = (f"{end:.{2 if metric == 'time' else 4}f}" for end in ends)
        return Cell(f"{mean} [{low}, {high}]", ends[0])

    metrics, rows = [metric for metric in WORDS if metric in selection.judged[-1].fidelity], []
    for one in selection.judged:
        keep = "" if one.setup.method is None else f" {100 * one.keep:.0f}"
        ratio = UNMEASURED if one.time is None else interval(one.time["ratio_to_dense"], "time")
        means = [interval(one.fidelity[metric], metric) for metric in metrics]
        met = Cell("yes" if one.passed else "no")
        rows.append([Cell(f"{one.name}{keep}"), Cell(one.setup.dtype), *means, ratio, met])
    facts = selection.setup.certificate["dataset"]
    held = facts["held_out"]
    return Table.of(
        f"Setups of {selection.setup.model} on {held['pictures']} pictures of {facts['name']} held out "
        f"({held['photographs']} photographs)",
        ["setup", "dtype", *(WORDS[metric] for metric in metrics), "x dense", "met"],
        rows,
        words=("setup", "dtype", "met"),
        roomy=[WORDS[metric] for metric in metrics[1:]],
        caption="setup: method and keep rate in %; means [95 % interval over photographs] beside the dense tower in "
        "float32; x dense: time; met: whether the bounds are; the last one is "
        f"{'chosen' if selection.met else 'the nearest'}",
    )
