"""Time models in turn with their dense towers under every condition of a plan."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness import git_commit
from harness.base.terminal import Progress
from harness.measure import timing, ways
from harness.measure.cost import RowCost, count_costs
from harness.measure.rows import MethodRate, Variant, known_methods, require_rows, rows_of
from harness.models import towers
from harness.models.names import split_method, split_name
from harness.records.conditions import DENSE, DTYPES, GOLDEN
from harness.records.record import utc_now
from harness.records.times import (
    EAGER,
    EAGER_FLOAT32,
    OWN,
    LatencyRecord,
    Machine,
    Surroundings,
    Timing,
    fitting,
    time_fields,
)
from zoo.core.files import fingerprint
from zoo.core.messages import expected
from zoo.loading.adopt import reduce
from zoo.loading.open_clip import FOLDER, HUB
from zoo.loading.sizes import MODELS
from zoo.towers.vit import ReducedViT

CPU_BATCHES, CUDA_BATCHES = (1, 8, 32), (1, 8, 32, 64, 256)
MOST_THREADS = 1024  # of so many more OpenMP ends the process, without an error to catch
WARMUP, WARMUP_S = 3, 0.5


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    """What to time.

    Raises:
        ValueError: a value out of range, or a way that the device hasn't.
    """

    models: tuple[str, ...]  # dense or reduced; each is timed beside its dense tower
    methods: tuple[str, ...] = ()  # further reductions of each model's dense tower
    keeps: tuple[float, ...] = (0.6,)  # their keep rates
    batches: tuple[int, ...] = CPU_BATCHES
    dtypes: tuple[str, ...] = ("float32",)  # of `DTYPES`
    ways: tuple[str, ...] = (EAGER,)  # of `ways.WAYS`
    runtimes: tuple[str, ...] = ()  # of `ways.RUNTIMES`, instead: all in one round, against dense in eager float32
    threads: tuple[int, ...]  # torch's
    rounds: int = 9  # calls of each model, at least
    seconds: float = 5.0  # rounds go on for so long
    device: str = "cpu"
    random_weights: bool = False  # only for models of ours
    image_sizes: tuple[int, ...] = ()  # pixels a side; none for the tower's own

    def __post_init__(self) -> None:
        """Validate."""
        self._check_numbers()
        for dtype in self.dtypes:
            if dtype not in ways.DTYPES:
                raise ValueError(f"--dtypes {dtype!r}: {expected(dtype, ways.DTYPES)}")
        real = [name for name in known_methods() if name not in (DENSE, GOLDEN)]
        for method in self.methods:
            if method not in real:
                raise ValueError(f"--methods {method!r}: {expected(method, real)}")
        if self.runtimes and self.ways != (EAGER,):
            raise ValueError(f"--runtimes with --ways {' '.join(self.ways)}: give one of the two")
        ways.check_ways(self.ways, torch.device(self.device))
        ways.check_runtimes(self.runtimes, self.dtypes, torch.device(self.device))

    def _check_numbers(self) -> None:
        numbers = (("batches", self.batches, math.inf), ("threads", self.threads, MOST_THREADS))
        for flag, values, most in numbers:
            if not values:
                raise ValueError(f"--{flag} without a number: expected numbers from 1")
            upper = "" if most == math.inf else f" to {most}"
            for value in values:
                if not 1 <= value <= most:
                    raise ValueError(f"--{flag} {value}: expected a number from 1{upper}")
        if self.rounds < timing.LEAST_ROUNDS:
            why = "of fewer rounds no median has a 95 % interval"
            raise ValueError(f"--rounds {self.rounds}: expected a number from {timing.LEAST_ROUNDS}; {why}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"--seconds {self.seconds:g}: expected a number from 0")
        for keep in self.keeps:
            if not 0 < keep <= 1:
                raise ValueError(f"--keeps {keep:g}: expected fractions in (0, 1], such as 0.6")

    @property
    def rounds_of(self) -> list[list["Condition"]]:
        """Conditions that share rounds; of several the first is what the others are held to."""
        if not self.runtimes:  # batches change fastest and precisions slowest
            return [[Condition(*c)] for c in product(self.dtypes, self.threads, self.ways, self.batches)]
        every = dict.fromkeys([(EAGER, "float32"), *product(self.runtimes, self.dtypes)])
        return [
            [Condition(dtype, threads, runtime, batch) for runtime, dtype in every]
            for threads, batch in product(self.threads, self.batches)
        ]

    @property
    def groups(self) -> dict[str, list[MethodRate]]:
        """Methods with keep rates, by dense tower."""
        groups: dict[str, list[MethodRate]] = {}
        for name in self.models:
            dense, method, keep = split_method(name)
            if dense.partition(".")[0] in MODELS:
                dense = ".".join(split_name(dense))
            pairs = [] if method is None else [(method, keep)]
            pairs += product(self.methods, self.keeps)
            groups[dense] = list(dict.fromkeys([*groups.get(dense, ()), *pairs]))
        return groups


def batches_for(device: str, batches: Sequence[int] | None) -> tuple[int, ...]:
    """Return these batches, or the usual ones of the device where there are none."""
    if batches is not None:
        return tuple(dict.fromkeys(batches))
    return CUDA_BATCHES if torch.device(device).type == "cuda" else CPU_BATCHES


class Condition(NamedTuple):
    """How models are run: those timed in one condition share every round."""

    dtype: str
    threads: int
    way: str
    batch: int

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"{self.dtype}, {self.way}, threads {self.threads}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One dense tower and its reductions, in float32 on the CPU."""

    tag: str  # of the tower's weights
    weights: str  # their fingerprint
    rows: list[Variant]  # the dense one first; all share its weights
    counts: dict[str, RowCost]  # by the row's key


def load_family(
    dense: str, pairs: Sequence[MethodRate], *, random_weights: bool, progress: Progress, size: int | None = None
) -> Family:
    """Load a dense tower, or build it without weights, and reduce it, for images of ``size`` pixels a side.

    Raises:
        ValueError: a model that can't be built so, or one whose patches don't fill such images.
    """
    whole: list[MethodRate] = [(DENSE, 1.0)]
    if random_weights:
        vit, (arch, tag) = _resized(towers.random_tower(dense).vit, size), split_name(dense)
        rows = rows_of(vit, arch, tag, whole)
        for method, keep in pairs:
            with torch.random.fork_rng(devices=[]):  # what a method learns is random, too
                torch.manual_seed(0)
                rows.append(_row(arch, reduce(vit, method=method, keep=keep)))
    else:
        require_rows(dense, pairs)
        tower = towers.load_tower(dense)
        vit, (arch, _, tag) = _resized(tower.vit, size), tower.name.partition(".")
        rows = rows_of(vit, arch, tag, whole + list(pairs)) + _saved(dense, vit, arch)
    return Family(tag=tag, weights=fingerprint(vit), rows=rows, counts=count_costs(rows, progress))


def _resized(vit: ReducedViT, size: int | None) -> ReducedViT:
    """Bring a tower to another image size; what it knows of places is interpolated as timm does."""
    if size is not None:
        if not hasattr(vit, "set_input_size"):
            raise ValueError(f"--image-sizes {size}: {type(vit).__name__} has one size; expected a tower of timm's")
        height, width = vit.patch_embed.patch_size
        if size < 1 or size % height or size % width:
            raise ValueError(f"--image-sizes {size}: expected multiples of the patches' {height} pixels, from {height}")
        vit.set_input_size(img_size=(size, size))
    return vit


def _saved(name: str, vit: ReducedViT, arch: str) -> list[Variant]:
    """Return the model of a folder or the hub if it was saved with a reduction method."""
    saved = towers.create_pretrained(name) if name.startswith((FOLDER, HUB)) else None
    if not isinstance(saved, ReducedViT) or saved.reducer is None:
        return []
    model = reduce(vit, method=None)
    model.reducer = saved.reducer
    return [_row(arch, model)]


def _row(arch: str, vit: ReducedViT) -> Variant:
    assert vit.reducer is not None
    method, config, patches = vit.reducer.method, vit.reducer.config, vit.grid[0] * vit.grid[1]
    keep = config.keep
    if keep is None:  # settings that stand instead of it
        keep = list(vit.reducer.counts(patches).values())[-1] / patches
    name = f"{arch}_{method}{round(100 * keep)}"
    vit = vit.float().eval()
    return Variant(model=name, method=method, keep=keep, vit=vit, config=config.plain())


def measure_latency(
    plan: LatencyPlan, known: Sequence[LatencyRecord], progress: Progress
) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
    """Time all models under all conditions, but use ``known`` records that fit again.

    Yields:
        For conditions that share rounds the records of all models, the dense one first, and those of them, or the
        dense one's once more, that are new.

    Raises:
        ValueError: an unknown name, or one that can't be timed.
        FileNotFoundError: weights or a predictor are out of reach.
    """
    for dense, pairs in plan.groups.items():
        for size in plan.image_sizes or (None,):
            family = load_family(dense, pairs, random_weights=plan.random_weights, progress=progress, size=size)
            yield from _FamilyRun(plan, family, known, progress).rounds()


@dataclass
class _FamilyRun:
    """One dense tower and its reductions on their way through the conditions."""

    plan: LatencyPlan
    family: Family
    known: Sequence[LatencyRecord]
    progress: Progress

    def __post_init__(self) -> None:
        self.dense = self.family.rows[0]
        self.device = torch.device(self.plan.device)
        self.machine = Machine.here(self.device)

    def rounds(self) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
        """Go through all conditions; see `measure_latency`."""
        dtype, vits = "", list[ReducedViT]()
        for conditions in self.plan.rounds_of:
            pairs = list(product(conditions, range(len(self.family.rows))))
            blanks = [self._blank(self.family.rows[at], condition) for condition, at in pairs]
            known = self._find_known(blanks)
            new: dict[int, LatencyRecord] = {}
            if missing := {i for i, one in enumerate(known) if one is None}:
                if dtype != conditions[0].dtype:
                    vits.clear()  # before there are others
                    dtype, vits = conditions[0].dtype, self._copies(conditions[0].dtype)
                # The first, a dense model, is timed with whatever is missing.
                runs = {i: (blanks[i], vits[pairs[i][1]]) for i in sorted(missing | {0})}
                new = self._time(conditions[0], runs)
            both = [new.get(i, one) for i, one in enumerate(known)]
            yield [one for one in both if one is not None], list(new.values())

    def _find_known(self, blanks: Sequence[LatencyRecord]) -> list[LatencyRecord | None]:
        """Find known records, and say which failed before."""
        known = [fitting(blank, self.known, self.plan.rounds) for blank in blanks]
        for record in known:
            if record is not None and record.failed is not None:
                condition = Condition(record.dtype, record.threads, record.way, record.batch)
                self.progress.say(
                    f"{record.model}: {condition.label}: {record.failed} in an earlier run, so it "
                    "isn't tried again; --fresh does"
                )
        return known

    def _copies(self, dtype: str) -> list[ReducedViT]:
        """Copy the models, which go on sharing weights, to the device in a precision."""
        vits = copy.deepcopy([row.vit for row in self.family.rows])
        return [vit.to(self.device, DTYPES[dtype]) for vit in vits]

    def _time(
        self, condition: Condition, runs: Mapping[int, tuple[LatencyRecord, ReducedViT]]
    ) -> dict[int, LatencyRecord]:
        """Time models, the first a dense one in ``condition``; complete their blank records."""
        plan, (dtype, threads, way, batch) = self.plan, condition
        label = f"runtimes, threads {threads}, batch {batch}" if plan.runtimes else condition.label
        models = {
            index: Runnable(vit, blank.way, blank.dtype if plan.runtimes else None)
            for index, (blank, vit) in runs.items()
        }
        with (
            _threads(threads),
            self.progress.task(f"{self.dense.model}: {label}", len(runs) + plan.rounds) as tick,
        ):
            try:
                images = timing.random_images(batch, self.dense.vit.input_size, self.device, DTYPES[dtype])
            except RuntimeError as error:
                if not ways.is_out_of_memory(error):
                    raise
                reason = f"{ways.OUT_OF_MEMORY}, for the images alone"
                ready = dict.fromkeys(models, ways.ReadyModel(failed=reason))
                timings, around = dict[int, Timing](), Surroundings()
            else:
                ready, timings, around = time_runnables(
                    models,
                    images,
                    rounds=plan.rounds,
                    seconds=plan.seconds,
                    watch=timing.stopwatch(self.device, threads),
                    tick=lambda done: tick(min(done, len(runs) + plan.rounds)),
                )
        if plan.runtimes or way == ways.COMPILE:
            torch._dynamo.reset()
        new = {
            index: self._complete(blank, ready[index], timings.get(index), timings.get(0) if index else None, around)
            for index, (blank, _) in runs.items()
        }
        self.progress.say(f"{self.dense.model}: {label}: {len(timings)} of {len(new)} models timed")
        return new

    def _complete(
        self,
        blank: LatencyRecord,
        ready: ways.ReadyModel,
        own: Timing | None,
        dense: Timing | None,
        around: Surroundings,
    ) -> LatencyRecord:
        """Complete a blank record by its own timing and that of what it is held to, if there are any."""
        names = ("failed", "first_call_s", "deviation", "peak_mib")
        fields: dict[str, Any] = {name: getattr(ready, name) for name in names}
        if ready.weights_mib is not None:
            fields["weights_mib"] = ready.weights_mib
        if own is not None:
            # Of a runtime's time the multiply-adds explain only a part.
            fields |= time_fields(own, dense, blank.saved_gflops if blank.reference == OWN else None)
            fields["warnings"] = timing.warnings_of(own, around, self.machine.cores)
        return replace(blank, created=utc_now(), surroundings=around, **fields)

    def _blank(self, row: Variant, condition: Condition) -> LatencyRecord:
        """Return a record with conditions and costs, and no time."""
        counts = dict(vars(self.family.counts[row.key]))
        del counts["activations"]  # times hardly follow them
        saved = 1 - counts["gflops"] / self.family.counts[self.dense.key].gflops
        return LatencyRecord(
            created=utc_now(),
            version=version("clip-patchrank"),
            git_commit=git_commit(),
            model=row.model,
            method=row.method,
            keep=row.keep,
            method_config=row.config,
            tag=self.family.tag,
            weights_sha256=self.family.weights,
            random_weights=self.plan.random_weights,
            image_size=row.vit.input_size,
            device=self.plan.device,
            **condition._asdict(),
            stopwatch=timing.stopwatch(self.device, condition.threads).name,
            reference=EAGER_FLOAT32 if self.plan.runtimes else OWN,
            machine=self.machine,
            failed="not timed",
            **counts,
            saved_gflops=None if row is self.dense else saved,
            weights_mib=ways.weights_mib(row.vit, DTYPES[condition.dtype]),
            surroundings=Surroundings(),
        )


class Runnable(NamedTuple):
    """A model in evaluation mode on its images' device, and how it is run."""

    vit: ReducedViT
    way: str
    dtype: str | None = None  # of what it runs behind float32 images; None for the images' own


def time_runnables(
    models: Mapping[int, Runnable],
    images: Tensor,
    *,
    rounds: int,
    seconds: float,
    watch: timing.Stopwatch,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[dict[int, ways.ReadyModel], dict[int, Timing], Surroundings]:
    """Make models ready and time those that can be timed in turn on the same images (B, C, H, W).

    ``rounds`` and ``seconds`` are those of `timing.interleave`; ``tick`` takes models ready and rounds done.

    Returns:
        How making each ready went, timings of those that did not fail, how busy the machine was.
    """
    ready = {}
    for key, one in models.items():
        ready[key] = ways.prepare(one.vit, one.way, images, one.dtype)
        tick(len(ready))
    calls = {key: one.call for key, one in ready.items() if one.call is not None}
    if not calls:
        return ready, {}, Surroundings()
    meanwhile = timing.Watch()
    how: dict[str, Any] = {"warmup": WARMUP, "warmup_s": WARMUP_S, "stopwatch": watch}
    how["tick"] = lambda done: tick(len(ready) + done)
    try:
        timings = timing.interleave(calls, images, rounds, seconds=seconds, **how)
    except (RuntimeError, MemoryError) as error:
        if not ways.is_out_of_memory(error):
            raise
        reason, timings = f"{ways.OUT_OF_MEMORY}, with all of them ready", {}
        ready |= {key: replace(ready[key], failed=reason) for key in calls}
    return ready, timings, meanwhile.surroundings()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
