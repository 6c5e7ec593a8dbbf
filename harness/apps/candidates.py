"""Setups of a tower that may be chosen: made, run on pictures, timed, and what was measured remembered.

A *line* is all that a setup consists of but its keep rate.
"""

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

import zoo
from harness import git_commit
from harness.apps.fidelity import OVERLAP, Bounds, Pictures, parted
from harness.apps.setup import Setup
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import cached_json, keep_json
from harness.measure import timing
from harness.measure.evaluate import LEAST_GALLERY
from harness.measure.plan import Plan
from harness.measure.rows import Variant, recovered_row, reduced_row
from harness.measure.times import FASTER, OPEN, SLOWER
from harness.models.towers import load_tower, split_method, text_classifier
from harness.records.conditions import DENSE, DTYPES
from harness.records.record import utc_now
from harness.records.statistics import median_interval
from zoo.core.files import digest, read_facts
from zoo.core.host import shared
from zoo.core.merger import Merger
from zoo.core.messages import expected
from zoo.core.precision import best_precision
from zoo.core.reducer import METHODS, configure
from zoo.loading.recovery_file import RecoveryFile
from zoo.loading.schedule_file import ScheduleFile
from zoo.loading.weights import find_predictor, fingerprint
from zoo.towers.vit import ReducedViT

RATES = tuple(percent / 100 for percent in range(2, 100, 2))  # keep rates that are tried, ascending
MERGING = ("rankmerge",)  # merges without being a `Merger`
FIRST, FEWEST = 4, 8  # one picture in so many is for a first look, so many at least
DECIDING = 5  # rounds in which setups that may be chosen are compared


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """What to choose from, and how.

    Attributes:
        methods: registered ones; none for those that are measured by default.
        dtypes: precisions; none for float32 and the fastest of the device.
        recoveries: files of recoveries, each a setup of its own.
        schedules: files of schedules, each stretched over keep rates.
        search: pictures to search by.
        held_out: other pictures, that decide.
        batch: images per call, where time is measured.
        rounds: calls of the chosen setup and of dense in the end, at least.
        seconds: that these go on for.
        seed: of the parting of pictures and of bootstraps.
        device: torch device.
    """

    methods: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    recoveries: tuple[Path, ...] = ()
    schedules: tuple[Path, ...] = ()
    search: int = 64
    held_out: int = 256
    batch: int = Plan.match_batch
    rounds: int = 9
    seconds: float = 5.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Validate."""
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"--methods {method!r}: {expected(method, METHODS)}")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"--dtypes {dtype!r}: {expected(dtype, DTYPES)}")
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
class Line:
    """All that setups have in common but their keep rate; ``method`` None is the dense tower, optimised or rounded."""

    dtype: str
    method: str | None = None
    recovery: str | None = None  # file
    schedule: str | None = None  # file
    rates: tuple[float, ...] = RATES  # ascending

    @property
    def name(self) -> str:
        """What tells it from others of its precision."""
        extras = [f"{Path(path).name}" for path in (self.recovery, self.schedule) if path is not None]
        return " with ".join([self.method or DENSE, *extras])


class Candidate(NamedTuple):
    """A line at a keep rate."""

    line: Line
    keep: float


class Lab:
    """A tower with its lines, measured on pictures and timed; what was measured is remembered in the user's cache."""

    def __init__(self, model: str, dataset: str, bounds: Bounds, config: ChooseConfig, progress: Progress) -> None:
        """Load the tower, find its lines and part the pictures; ``dataset`` is a name."""
        dense, method, _ = split_method(model)
        if method is not None:
            raise ValueError(f"--model {model!r} is reduced already: name its dense tower, {dense!r}")
        self.model, self.bounds, self.config, self.progress = dense, bounds, config, progress
        self.device = torch.device(config.device)
        self.tower = load_tower(dense)
        self.dense = Variant(
            model=self.tower.arch, method=DENSE, keep=1.0, vit=self.tower.vit.to(self.device), config={}
        )
        self.weights = fingerprint(self.dense.vit)
        self._dense: dict[str, ReducedViT] = {}  # as it is run, by precision
        why = self._why_not_optimised()
        self.optimised = not why
        if why:
            progress.say(f"models run as they are: {why}")
        self.schedules = {str(path): ScheduleFile.read(path) for path in config.schedules}
        self.recoveries = {str(path): RecoveryFile.read(path) for path in config.recoveries}
        self.digests = {str(path): digest(path) for path in config.recoveries}
        self.left_out: dict[str, str] = {}  # lines that can't be had, with the reason
        self.lines = self._lines()
        self.dataset = get_dataset(dataset)
        if bounds.max_loss is not None and not self.dataset.labelled:
            raise ValueError(
                f"--max-loss {bounds.max_loss:g}: dataset {self.dataset.name!r} has no classes; expected one with "
                "classes, or another bound, such as --min-cosine"
            )
        classifier = None
        if self.dataset.labelled and (self.tower.clip is not None or bounds.max_loss is not None):
            if self.tower.clip is None:
                raise ValueError(
                    f"--max-loss {bounds.max_loss:g}: {self.tower.name} has no text tower that could name classes; "
                    "expected another model, or another bound, such as --min-cosine"
                )
            classifier, _ = text_classifier(self.tower.clip, self.dataset)
        sizes = (config.search, config.held_out)
        parts = parted(self.dataset, sizes, config.seed, learned=self._learned(), classifier=classifier)
        more: tuple[Any, ...] = (self.dense, self.tower.preprocess, classifier, self.progress.advance)
        self.search, self.held_out = (Pictures(part, *more) for part in parts)
        # A first look at nearest pictures needs all of them.
        few = len(self.search) if OVERLAP in bounds.floors else max(FEWEST, len(self.search) // FIRST)
        self.first = Pictures(parts[0].few(few), *more)
        for metric, floor in bounds.floors.items():
            if metric == OVERLAP:
                self._require_gallery(floor.least)
        self.machine = dataclasses.asdict(timing.Machine.here(self.device))
        self._path, self._known = cached_json("choices", *self._identity())

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
            len(self.first),
            *(self.machine, str(self.device), torch.get_num_threads(), self.config.batch, self.optimised),
        ]

    def forget(self) -> None:
        """Measure everything anew."""
        self._known = None

    @property
    def known(self) -> dict[str, dict[str, Any]]:
        """What was measured: values on the pictures of each name by candidate, and ``ratios`` of times."""
        if not isinstance(self._known, dict):
            self._known = {"first": {}, "search": {}, "held_out": {}, "ratios": {}}
        return self._known

    def _lines(self) -> list[Line]:
        """Return the lines that the tower can run, merging first, the fastest precision before the others."""
        usual = [name for name in METHODS if METHODS[name].by_default]
        methods = sorted(self.config.methods or usual, key=lambda name: (not _merges(name), name))
        every = [
            *(Line(dtype="", method=method) for method in methods),
            *(Line(dtype="", method=file.method, schedule=path) for path, file in self.schedules.items()),
            *(
                Line(dtype="", method=file.method, recovery=path, rates=(file.options.get("keep", 1.0),))
                for path, file in self.recoveries.items()
            ),
        ]
        able = [line for line in every if self._able(line)]
        dense = Line(dtype="", rates=(1.0,))
        lines = [
            dataclasses.replace(line, dtype=dtype)
            for dtype in self.config.precisions
            for line in ([dense] if self.optimised or dtype != "float32" else []) + able
        ]
        if not lines:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            raise ValueError(f"nothing to choose from for {self.model}: {reasons}")
        return lines

    def _able(self, line: Line) -> bool:
        """Tell whether the tower can run a line; what was asked for by a file must."""
        try:
            self.row(Candidate(line, line.rates[-1]))
        except (ValueError, FileNotFoundError) as error:
            if line.recovery is not None or line.schedule is not None or line.method in self.config.methods:
                raise
            self.left_out[line.name] = str(error)
            self.progress.say(f"{line.name} is left out: {error}")
            return False
        return True

    def _learned(self) -> set[str]:
        """Return the datasets that recoveries, schedules and predictors were learned from."""
        used = [
            *(file.datasets for file in self.recoveries.values()),
            *(file.datasets for file in self.schedules.values()),
        ]
        names = {one["name"] for datasets in used for one in datasets}
        for line in self.lines:
            if line.recovery is None:
                for path in self.predictors(self.setup(Candidate(line, line.rates[-1]))):
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
        line, keep = one
        if line.method is None:
            return {}
        if line.recovery is not None:
            file = self.recoveries[line.recovery]
            return _own_options(file.method, file.options)
        if line.schedule is None:
            return {"keep": keep}
        schedule = self.schedules[line.schedule]
        if schedule.keep == 1:
            raise ValueError(f"schedule {line.schedule!r} keeps every patch token: search another one")
        # Shares of the work, which are what the points have in common at every keep rate.
        shares = [math.log(rate) / math.log(schedule.keep) for rate in schedule.schedule]
        rates = [round(keep**share, 4) for share in shares]
        own = _own_options(schedule.method, schedule.options)
        return own | {"reduce_at": list(schedule.reduce_at), "schedule": rates, "keep": keep}

    def setup(self, one: Candidate) -> Setup:
        """Return a candidate as what is to be run."""
        line = one.line
        options, dtype = self.options(one), line.dtype or "float32"
        return Setup(model=self.model, method=line.method, options=options, recovery=line.recovery, dtype=dtype)

    def row(self, one: Candidate) -> Variant:
        """Make a candidate's row, in float32.

        Raises:
            ValueError: the tower or the method can't do it.
            FileNotFoundError: it has no predictor.
        """
        line, arch, tag = one.line, self.tower.arch, self.tower.tag
        key = _key(one, self.options(one))
        if line.method is None:
            return dataclasses.replace(self.dense, what=key)
        if line.recovery is not None:
            return dataclasses.replace(
                recovered_row(self.dense.vit, arch, tag, self.recoveries[line.recovery]), what=key
            )
        return reduced_row(self.dense.vit, arch, tag, arch, line.method, self.options(one), what=key)

    def placed(self, one: Candidate) -> Variant:
        """Make a candidate's row as it is run: optimised and in its precision; all share the dense tower's weights."""
        row, dtype = self.row(one), one.line.dtype
        if row.apart:
            return dataclasses.replace(row, vit=self._inference(row.vit, dtype))
        if dtype not in self._dense:
            self._dense[dtype] = self._inference(self.dense.vit, dtype)
        dense = self._dense[dtype]
        vit = shared(dense, type(dense))
        vit.reducer = row.vit.reducer
        if vit.reducer is not None and not self.optimised:
            vit.reducer = copy.deepcopy(vit.reducer).to(DTYPES[dtype])
        return dataclasses.replace(row, vit=vit)

    def _inference(self, vit: ReducedViT, dtype: str) -> ReducedViT:
        if self.optimised:
            return zoo.optimize(vit, dtype=dtype)
        return vit if dtype == "float32" else copy.deepcopy(vit).to(DTYPES[dtype]).eval()

    def _why_not_optimised(self) -> str:
        """Return why the tower can't be optimised in all precisions, nothing if it can."""
        try:
            for dtype in self.config.precisions:
                self._dense[dtype] = zoo.optimize(self.dense.vit, dtype=dtype)
        except ValueError as error:
            self._dense.clear()
            return str(error)
        return ""

    def values(self, pictures: str, candidates: Iterable[Candidate]) -> dict[Candidate, Mapping[str, list[float]]]:
        """Return values of candidates on ``first``, ``search`` or ``held_out`` pictures; none is run twice.

        None of those that can't be built, such as ToMe's that would merge more than half of the tokens.
        """
        known: dict[str, Any] = self.known[pictures]
        source: Pictures = getattr(self, pictures)
        every = list(dict.fromkeys(candidates))
        for dtype in dict.fromkeys(one.line.dtype for one in every):
            rows = {}
            for one in every:
                if one.line.dtype == dtype and self._name(one) not in known:
                    try:
                        rows[self._name(one)] = self.placed(one)
                    except ValueError:
                        known[self._name(one)] = {}
            if rows:
                found = source.values(list(rows.values()))
                known |= {name: found[row.key] for name, row in rows.items()}
                self._save()
        return {one: known[self._name(one)] for one in every}

    def used(self, candidates: Iterable[Candidate], *, first: bool = False) -> dict[Candidate, float]:
        """Return how much of what the bounds allow candidates use up; see `choose.Instruments`."""
        count, pictures = self.held_out.group_count, "first" if first else "search"
        return {one: self.bounds.used(values, count) for one, values in self.values(pictures, candidates).items()}

    def ratios(self, candidates: Iterable[Candidate], rounds: int) -> dict[Candidate, float]:
        """Return times by the dense tower's; see `choose.Instruments`. Infinite of those that can't be built.

        They are of the quickest calls, which other processes disturb least; certificates have medians.
        """
        every = sorted(set(candidates), key=self._name)
        names = [self._name(one) for one in every]
        key = digest([rounds, names])
        known = self.known["ratios"]
        if key not in known:
            vits: dict[str, ReducedViT] = {}
            for one, name in zip(every, names, strict=True):
                try:
                    vits[name] = self.placed(one).vit
                except ValueError:
                    continue
            timings = self.timed(vits, rounds)
            least = {name: min(one.samples_ms) for name, one in timings.items()}
            known[key] = {name: least[name] / least[DENSE] for name in vits}
            self._save()
        return {one: known[key].get(name, math.inf) for one, name in zip(every, names, strict=True)}

    def timed(self, vits: Mapping[str, ReducedViT], rounds: int, **more: Any) -> dict[str, timing.Timing]:
        """Time models in turn with the dense tower in float32, all from the same images in float32."""
        images = timing.random_images(self.config.batch, self.dense.vit.input_size, self.device, torch.float32)
        every = {DENSE: self.dense.vit, **vits}
        runs, advance = len(every) * self.config.batch, self.progress.advance

        def call(vit: ReducedViT) -> timing.Call:
            dtype = next(vit.parameters()).dtype
            return lambda batch: vit(batch.to(dtype))

        calls = {name: call(vit) for name, vit in every.items()}
        return timing.interleaved(calls, images, rounds, tick=lambda _: advance(runs), **{"warmup": 1, **more})

    @cached_property
    def dense_ms(self) -> float:
        """Median time of the dense tower in float32, milliseconds of a call."""
        return self.timed({}, DECIDING)[DENSE].spread_ms.estimate

    def figures(self, one: Candidate) -> dict[str, Any]:
        """Return means with intervals on the pictures held out, see `Pictures.figures`."""
        return self.held_out.figures(self.values("held_out", [one])[one], self.config.seed)

    def times(self, one: Candidate) -> dict[str, Any]:
        """Time a candidate in turn with the dense tower in float32, as it is and as the candidate is run."""
        alike_dense = Candidate(Line(dtype=one.line.dtype, rates=(1.0,)), 1.0)
        vits = {"chosen": self.placed(one).vit, "alike": self.placed(alike_dense).vit}
        meanwhile = timing.Watch()
        timings = self.timed(vits, self.config.rounds, seconds=self.config.seconds, warmup=2)
        chosen, dense = timings["chosen"], timings[DENSE]
        ratio, per_call = chosen.ratio_to(dense), median_interval(chosen.samples_ms)
        alike = chosen.ratio_to(timings["alike"])
        batch = self.config.batch
        return {
            "ratio_to_dense": ratio._asdict(),
            "ratio_to_dense_run_alike": alike._asdict(),
            "verdict": FASTER if ratio.high < 1 else SLOWER if ratio.low > 1 else OPEN,
            "median_ms": per_call._asdict(),
            "dense_median_ms": median_interval(dense.samples_ms)._asdict(),
            "images_per_s": 1000 * batch / per_call.estimate,
            "dense_images_per_s": 1000 * batch / dense.spread_ms.estimate,
            **{"batch": batch, "threads": torch.get_num_threads(), "rounds": len(chosen.samples_ms)},
            "stopwatch": timing.wall_clock().name,
            "warnings": list(timing.warnings_of(chosen, meanwhile.surroundings(), timing.cores())),
        }

    def facts(self) -> dict[str, Any]:
        """Return what a certificate says of where it was measured."""
        pictures = {
            name: {"pictures": len(one), "photographs": one.group_count}
            for name, one in (("search", self.search), ("held_out", self.held_out))
        }
        return {
            "dataset": {"name": self.dataset.name, "revision": self.dataset.revision, **pictures},
            "model": {"name": self.tower.name, "weights": self.weights},
            "machine": self.machine,
            "optimised": self.optimised,
            "seed": self.config.seed,
            "lines": len(self.lines),
            "left_out": self.left_out,
            "created": utc_now(),
            "version": version("clip-patchrank"),
            "commit": git_commit(),
        }

    def _save(self) -> None:
        keep_json(self._path, self.known)

    def _name(self, one: Candidate) -> str:
        """Return what a candidate is remembered by."""
        line = one.line
        name = _key(one, self.options(one))
        return name if line.recovery is None else f"{name} {self.digests[line.recovery]}"


def _merges(method: str) -> bool:
    return method in MERGING or issubclass(METHODS[method], Merger)


def _key(one: Candidate, options: Mapping[str, Any]) -> str:
    line = one.line
    return f"{line.name} {json.dumps(options, sort_keys=True)} {line.dtype}"


def _own_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a file's options that the method takes and that aren't its defaults."""
    fields = {one.name: one.default for one in dataclasses.fields(METHODS[method].Config)}
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return {
        name: value for name, value in options.items() if name in plain and (name == "keep" or value != plain[name])
    }
