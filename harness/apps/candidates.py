"""Setups of a tower that may be chosen: made, run on pictures, timed, and what was measured remembered."""

import copy
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness import git_commit
from harness.apps.fidelity import OVERLAP, Pictures, SetupBounds, part_pictures
from harness.apps.setup import Setup
from harness.base.hints import describe_error
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import cached_json, keep_json
from harness.measure import timing
from harness.measure.plan import Plan
from harness.measure.rows import Variant, recovered_row, reduced_row
from harness.models.towers import load_tower, split_method, text_classifier
from harness.records.conditions import DENSE, DTYPES
from harness.records.metrics import LEAST_GALLERY
from harness.records.record import utc_now
from harness.records.statistics import median_interval
from harness.records.times import Machine, Timing, cores, verdict
from zoo.core.files import digest, fingerprint, read_facts
from zoo.core.host import shared
from zoo.core.merger import Merger
from zoo.core.messages import expected
from zoo.core.precision import best_precision
from zoo.core.reducer import METHODS, configure
from zoo.deploy.optimized import optimize
from zoo.loading.learned_files import ScheduleFile
from zoo.loading.predictor_file import find_predictor
from zoo.loading.recovery_file import RecoveryFile
from zoo.towers.vit import ReducedViT

RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending
MERGING = ("rankmerge",)  # merges without being a `Merger`
FIRST, FEWEST = 4, 8  # one picture in so many is for a first look, so many at least
DECIDING = 5  # rounds in which setups that may be chosen are compared


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """What to choose from, and how."""

    methods: tuple[str, ...] = ()  # registered ones; none for those that are measured by default
    dtypes: tuple[str, ...] = ()  # none for float32 and the fastest of the device
    recoveries: tuple[Path, ...] = ()  # files, each a setup of its own
    schedules: tuple[Path, ...] = ()  # files, each stretched over keep rates
    search: int = 64  # pictures to search by
    held_out: int = 256  # other pictures, that decide
    batch: int = Plan.match_batch  # images per call, where time is measured
    rounds: int = 9  # calls of the chosen setup and of dense in the end, at least
    seconds: float = 5.0  # that these go on for
    seed: int = 0  # of the parting of pictures and of bootstraps
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        for flag, values, known in (("methods", self.methods, METHODS), ("dtypes", self.dtypes, DTYPES)):
            for value in values:
                if value not in known:
                    raise ValueError(f"--{flag} {value!r}: {expected(value, known)}")
        for name, least in (("search", 8), ("held_out", 20), ("batch", 1), ("rounds", timing.LEAST_ROUNDS)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number from {least}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"--seconds {self.seconds:g}: expected a number from 0")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions, the fastest of the device first."""
        fast = best_precision(self.device)
        return tuple(sorted(set(self.dtypes) or {"float32", fast}, key=lambda dtype: (dtype != fast, dtype)))


@dataclass(frozen=True, kw_only=True)
class Approach:
    """All that setups have in common but their keep rate; ``method`` None is the dense tower, optimised or rounded."""

    dtype: str
    method: str | None = None
    recovery: str | None = None  # file
    schedule: str | None = None  # file
    rates: tuple[float, ...] = RATES  # ascending

    @property
    def name(self) -> str:
        """What tells it from others of its precision."""
        extras = [Path(path).name for path in (self.recovery, self.schedule) if path is not None]
        return " with ".join([self.method or DENSE, *extras])


class Candidate(NamedTuple):
    """An approach at a keep rate."""

    approach: Approach
    keep: float


class Lab:
    """A tower with its approaches, measured on pictures and timed; the user's cache remembers what was measured."""

    def __init__(
        self,
        model: str,
        dataset: str,
        bounds: SetupBounds,
        config: ChooseConfig,
        progress: Progress,
        *,
        fresh: bool = False,
    ) -> None:
        """Load the tower, find its approaches and part the pictures; ``fresh`` remembers nothing."""
        name, method, _ = split_method(model)
        if method is not None:
            raise ValueError(f"--model {model!r} is reduced already: name its dense tower, {name!r}")
        self.model, self.bounds, self.config, self.progress = name, bounds, config, progress
        self.device = torch.device(config.device)
        self.tower = load_tower(name)
        vit = self.tower.vit.to(self.device)
        self.dense = Variant(model=self.tower.arch, method=DENSE, keep=1.0, vit=vit, config={})
        self.weights = fingerprint(vit)
        self._served: dict[str, ReducedViT] = {}  # the dense tower as it is run, by precision
        self.optimised = self._try_to_optimise()
        self.schedules = {str(path): ScheduleFile.read(path) for path in config.schedules}
        self.recoveries = {str(path): RecoveryFile.read(path) for path in config.recoveries}
        self._marks: dict[str | None, str] = {str(path): f" {digest(path)}" for path in config.recoveries}
        self.left_out: dict[str, str] = {}  # approaches that can't be had, with the reason
        self.approaches = self._find_approaches()
        self.dataset = get_dataset(dataset)
        sizes = (config.search, config.held_out)
        classifier = self._classifier()
        parts = part_pictures(self.dataset, sizes, config.seed, learned=self._learned(), classifier=classifier)
        # A first look at nearest pictures needs all of them.
        count = len(parts[0].split)
        few = count if OVERLAP in bounds.floors else max(FEWEST, count // FIRST)
        self.first, self.search, self.held_out = (
            Pictures(part, self.dense, self.tower.preprocess, classifier) for part in (parts[0].few(few), *parts)
        )
        if OVERLAP in bounds.floors:
            self._require_gallery(bounds.floors[OVERLAP])
        self.machine = dataclasses.asdict(Machine.here(self.device))
        self._path, known = cached_json("choices", *self._identity(), few)
        # Values on the pictures of each name by candidate, and ratios of times.
        self.known: dict[str, dict[str, Any]] = {"first": {}, "search": {}, "held_out": {}, "ratios": {}}
        if isinstance(known, dict) and not fresh:
            self.known = known

    def _try_to_optimise(self) -> bool:
        """Optimise the tower in all precisions if it can be."""
        try:
            for dtype in self.config.precisions:
                self._served[dtype] = optimize(self.dense.vit, dtype=dtype)
        except ValueError as error:
            self._served.clear()
            self.progress.say(f"models run as they are: {error}")
            return False
        return True

    def _classifier(self) -> Any:
        """Encode the classes, if there are any and a text tower knows them; raise ValueError where a bound needs it."""
        loss = self.bounds.max_loss
        if loss is not None and (not self.dataset.labelled or self.tower.clip is None):
            lack = (
                f"{self.tower.name} has no text tower that could name classes; expected another model"
                if self.dataset.labelled
                else f"dataset {self.dataset.name!r} has no classes; expected one with classes"
            )
            raise ValueError(f"--max-loss {loss:g}: {lack}, or another bound, such as --min-cosine")
        if self.tower.clip is None or not self.dataset.labelled:
            return None
        return text_classifier(self.tower.clip, self.dataset)[0]

    def _require_gallery(self, least: float) -> None:
        for pictures, flag in ((self.search, "search"), (self.held_out, "held-out")):
            if len(pictures) < LEAST_GALLERY:
                raise ValueError(
                    f"--min-overlap {least:g} with {len(pictures)} pictures (--{flag}): of fewer than {LEAST_GALLERY} "
                    f"the nearest say little; ask for that many by --{flag} {LEAST_GALLERY}, and give more pictures if "
                    "there are too few"
                )

    def _identity(self) -> list[Any]:
        """Return what decides all that is measured here, apart from the bounds."""
        return [
            *(version("clip-patchrank"), git_commit(), self.tower.name, self.weights),
            *(self.dataset.name, self.dataset.condition, self.search.split.image_ids, self.held_out.split.image_ids),
            *(self.machine, str(self.device), torch.get_num_threads(), self.config.batch, self.optimised),
        ]

    def _find_approaches(self) -> list[Approach]:
        """Return the approaches that the tower can run, merging first, the fastest precision before the others."""
        usual = [name for name in METHODS if METHODS[name].by_default]
        methods = sorted(self.config.methods or usual, key=lambda name: (not _merges(name), name))
        every = [Approach(dtype="", method=method) for method in methods]
        every += [Approach(dtype="", method=file.method, schedule=path) for path, file in self.schedules.items()]
        for path, recovery in self.recoveries.items():
            rates = (recovery.options.get("keep", 1.0),)
            every.append(Approach(dtype="", method=recovery.method, recovery=path, rates=rates))
        able = [approach for approach in every if self._can_run(approach)]
        dense = Approach(dtype="", rates=(1.0,))
        approaches = [
            dataclasses.replace(approach, dtype=dtype)
            for dtype in self.config.precisions
            for approach in ([dense] if self.optimised or dtype != "float32" else []) + able
        ]
        if not approaches:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            raise ValueError(f"nothing to choose from for {self.model}: {reasons}")
        return approaches

    def _can_run(self, approach: Approach) -> bool:
        """Tell whether the tower can run it; what was asked for by name or file must."""
        try:
            self.row(Candidate(approach, approach.rates[-1]))
        except (ValueError, FileNotFoundError) as error:
            if approach.recovery or approach.schedule or approach.method in self.config.methods:
                raise
            self.left_out[approach.name] = describe_error(error)
            self.progress.say(f"{approach.name} is left out: {describe_error(error)}")
            return False
        return True

    def _learned(self) -> set[str]:
        """Return the datasets that recoveries, schedules and predictors were learned from."""
        files: list[Any] = [*self.recoveries.values(), *self.schedules.values()]
        names = {one["name"] for file in files for one in file.datasets}
        for approach in self.approaches:
            if approach.recovery is None:
                for path in self.predictors(self.setup(Candidate(approach, approach.rates[-1]))):
                    facts = read_facts(path, "predictor")
                    names |= {one["dataset"] for one in facts["provenance"].get("rankings", ())}
        return names

    def predictors(self, setup: Setup) -> list[Path]:
        """Return the files of a setup's predictors, the first block's first; none of a method without."""
        if setup.method is None:
            return []
        arch, tag, depth = self.tower.arch, self.tower.tag, self.dense.vit.depth
        config = configure(setup.method, setup.options, depth)
        blocks = config.predictor_blocks(depth)
        return [find_predictor(arch, tag, block, action=config.action).path for block in blocks]

    def options(self, one: Candidate) -> dict[str, Any]:
        """Return the method's options of a candidate as JSON values, those that aren't its defaults."""
        approach, keep = one
        if approach.method is None:
            return {}
        if approach.recovery is not None:
            file = self.recoveries[approach.recovery]
            return _own_options(file.method, file.options)
        if approach.schedule is None:
            return {"keep": keep}
        schedule = self.schedules[approach.schedule]
        if schedule.keep == 1:
            raise ValueError(f"schedule {approach.schedule!r} keeps every patch token: search another one")
        # Shares of the work, which are what the points have in common at every keep rate.
        shares = [math.log(rate) / math.log(schedule.keep) for rate in schedule.schedule]
        rates = [round(keep**share, 4) for share in shares]
        own = _own_options(schedule.method, schedule.options)
        return own | {"reduce_at": list(schedule.reduce_at), "schedule": rates, "keep": keep}

    def setup(self, one: Candidate) -> Setup:
        """Return a candidate as what is to be run."""
        way, options = one.approach, self.options(one)
        how: dict[str, Any] = {"method": way.method, "recovery": way.recovery, "dtype": way.dtype or "float32"}
        return Setup(model=self.model, options=options, **how)

    def key(self, one: Candidate) -> str:
        """Return what a candidate is remembered by."""
        way, options = one.approach, json.dumps(self.options(one), sort_keys=True)
        return f"{way.name} {options} {way.dtype}{self._marks.get(way.recovery, '')}"

    def row(self, one: Candidate) -> Variant:
        """Make a candidate's row, in float32.

        Raises:
            ValueError: the tower or the method can't do it.
            FileNotFoundError: it has no predictor.
        """
        way, arch, tag, key = one.approach, self.tower.arch, self.tower.tag, self.key(one)
        if way.method is None:
            return dataclasses.replace(self.dense, what=key)
        if way.recovery is not None:
            row = recovered_row(self.dense.vit, arch, tag, self.recoveries[way.recovery])
            return dataclasses.replace(row, what=key)
        return reduced_row(self.dense.vit, arch, tag, arch, way.method, self.options(one), what=key)

    def served_row(self, one: Candidate) -> Variant:
        """Make a candidate's row as it is run: optimised and in its precision; all share the dense tower's weights."""
        row, dtype = self.row(one), one.approach.dtype
        if row.apart:
            return dataclasses.replace(row, vit=self._serve(row.vit, dtype))
        if dtype not in self._served:
            self._served[dtype] = self._serve(self.dense.vit, dtype)
        dense = self._served[dtype]
        vit = shared(dense, type(dense))
        vit.reducer = row.vit.reducer
        if vit.reducer is not None and not self.optimised:
            vit.reducer = copy.deepcopy(vit.reducer).to(DTYPES[dtype])
        return dataclasses.replace(row, vit=vit)

    def _serve(self, vit: ReducedViT, dtype: str) -> ReducedViT:
        if self.optimised:
            return optimize(vit, dtype=dtype)
        return vit if dtype == "float32" else copy.deepcopy(vit).to(DTYPES[dtype]).eval()

    def values(self, pictures: str, candidates: Iterable[Candidate]) -> dict[Candidate, Mapping[str, list[float]]]:
        """Return values of candidates on ``first``, ``search`` or ``held_out`` pictures; none is run twice.

        None of those that can't be built, such as ToMe's that would merge more than half of the tokens.
        """
        known, every = self.known[pictures], list(dict.fromkeys(candidates))
        for dtype in dict.fromkeys(one.approach.dtype for one in every):
            rows = {}
            for one in every:
                if one.approach.dtype == dtype and (key := self.key(one)) not in known:
                    try:
                        rows[key] = self.served_row(one)
                    except ValueError:
                        known[key] = {}
            if rows:
                found = getattr(self, pictures).values(list(rows.values()))
                known |= {key: found[row.key] for key, row in rows.items()}
                keep_json(self._path, self.known)
        return {one: known[self.key(one)] for one in every}

    def shares(self, candidates: Iterable[Candidate], *, first: bool = False) -> dict[Candidate, float]:
        """Return how much of what the bounds allow candidates use up, by pictures to search by or ``first`` ones."""
        values = self.values("first" if first else "search", candidates)
        return {one: self.bounds.share(each, self.held_out.part.group_count) for one, each in values.items()}

    def ratios(self, candidates: Iterable[Candidate], rounds: int) -> dict[Candidate, float]:
        """Return times by the dense tower's in float32, all in the same rounds; infinite of those that can't be built.

        They are of the quickest calls, which other processes disturb least; certificates have medians.
        """
        every = {self.key(one): one for one in candidates}
        keys = sorted(every)
        mark, known = digest([rounds, keys]), self.known["ratios"]
        if mark not in known:
            vits: dict[str, ReducedViT] = {}
            for key in keys:
                try:
                    vits[key] = self.served_row(every[key]).vit
                except ValueError:
                    continue
            timings = self.time(vits, rounds)
            least = {key: min(one.samples_ms) for key, one in timings.items()}
            known[mark] = {key: least[key] / least[DENSE] for key in vits}
            keep_json(self._path, self.known)
        return {one: known[mark].get(key, math.inf) for key, one in every.items()}

    def time(self, vits: Mapping[str, ReducedViT], rounds: int, **options: Any) -> dict[str, Timing]:
        """Time models in turn with the dense tower in float32, all from the same images in float32."""
        every = {DENSE: self.dense.vit, **vits}
        return timing.time_models(every, self.config.batch, rounds, **{"warmup": 1, **options})

    @cached_property
    def dense_ms(self) -> float:
        """Median time of the dense tower in float32, milliseconds of a call."""
        return self.time({}, DECIDING)[DENSE].spread_ms.estimate

    def figures(self, one: Candidate) -> dict[str, Any]:
        """Return means with intervals on the pictures held out, see `Pictures.figures`."""
        return self.held_out.figures(self.values("held_out", [one])[one], self.config.seed)

    def times(self, one: Candidate) -> dict[str, Any]:
        """Time a candidate in turn with the dense tower in float32, as it is and as the candidate is run."""
        dense_alike = Candidate(Approach(dtype=one.approach.dtype, rates=(1.0,)), 1.0)
        vits = {"chosen": self.served_row(one).vit, "alike": self.served_row(dense_alike).vit}
        meanwhile, batch = timing.Watch(), self.config.batch
        timings = self.time(vits, self.config.rounds, seconds=self.config.seconds, warmup=2)
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
            "warnings": list(timing.warnings_of(chosen, meanwhile.surroundings(), cores())),
        }

    def facts(self) -> dict[str, Any]:
        """Return what a certificate says of where it was measured."""
        pictures = {
            name: {"pictures": len(one), "photographs": one.part.group_count}
            for name, one in (("search", self.search), ("held_out", self.held_out))
        }
        return {
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **pictures},
            "model": {"name": self.tower.name, "weights": self.weights},
            "machine": self.machine,
            "optimised": self.optimised,
            "seed": self.config.seed,
            "lines": len(self.approaches),
            "left_out": self.left_out,
            "created": utc_now(),
            "version": version("clip-patchrank"),
            "commit": git_commit(),
        }


def _merges(method: str) -> bool:
    return method in MERGING or issubclass(METHODS[method], Merger)


def _own_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a file's options that the method takes and that aren't its defaults."""
    fields = {one.name: one.default for one in dataclasses.fields(METHODS[method].Config)}
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return {
        name: value for name, value in options.items() if name in plain and (name == "keep" or value != plain[name])
    }
