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

import zoo
from harness import git_commit
from harness.base.terminal import Progress
from harness.measure import timing, ways
from harness.measure.cost import RowCost, count_costs
from harness.measure.rows import MethodRate, Variant, known_methods, require_rows, rows_of
from harness.measure.times import EAGER_FLOAT32, OWN, LatencyRecord, fitting, time_fields
from harness.measure.ways import EAGER
from harness.models import towers
from harness.records.conditions import DENSE, DTYPES, GOLDEN
from harness.records.record import utc_now
from zoo.core.digests import fingerprint
from zoo.core.messages import expected
from zoo.loading.open_clip import FOLDER, HUB
from zoo.loading.sizes import MODELS
from zoo.towers.vit import ReducedViT

CPU_BATCHES, CUDA_BATCHES = (1, 8, 32), (1, 8, 32, 64, 256)
MOST_THREADS = 1024  # of so many more OpenMP ends the process, without an error to catch
WARMUP, WARMUP_S = 3, 0.5
PREPARED = ("failed", "first_call_s", "deviation", "peak_mib")  # fields of both


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
    def cells(self) -> list["Cell"]:
        """All conditions, batches changing fastest and precisions slowest."""
        return [Cell(*c) for c in product(self.dtypes, self.threads, self.ways, self.batches)]

    @property
    def rounds_of_runtimes(self) -> list[list["Cell"]]:
        """Conditions that share rounds where there are runtimes, eager float32 first, which the others are held to."""
        every = dict.fromkeys([(EAGER, "float32"), *product(self.runtimes, self.dtypes)])
        return [
            [Cell(dtype, threads, runtime, batch) for runtime, dtype in every]
            for threads, batch in product(self.threads, self.batches)
        ]

    @property
    def groups(self) -> dict[str, list[MethodRate]]:
        """Methods with keep rates, by dense tower."""
        groups: dict[str, list[MethodRate]] = {}
        for name in self.models:
            dense, method, keep = towers.split_method(name)
            if dense.partition(".")[0] in MODELS:
                dense = ".".join(towers.split_name(dense))
            pairs = [] if method is None else [(method, keep)]
            pairs += product(self.methods, self.keeps)
            groups[dense] = list(dict.fromkeys([*groups.get(dense, ()), *pairs]))
        return groups


def batches_for(device: str, batches: Sequence[int] | None) -> tuple[int, ...]:
    """Return these batches, or the usual ones of the device where there are none."""
    if batches is not None:
        return tuple(dict.fromkeys(batches))
    return CUDA_BATCHES if torch.device(device).type == "cuda" else CPU_BATCHES


class Cell(NamedTuple):
    """One condition: models timed in it share every round."""

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
        vit, (arch, tag) = _resized(towers.random_tower(dense).vit, size), towers.split_name(dense)
        rows = rows_of(vit, arch, tag, whole)
        for method, keep in pairs:
            with torch.random.fork_rng(devices=[]):  # what a method learns is random, too
                torch.manual_seed(0)
                rows.append(_row(arch, zoo.reduce(vit, method=method, keep=keep)))
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
    model = zoo.reduce(vit, method=None)
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
    """Time all models in all cells, but use ``known`` records that fit again.

    Yields:
        For each cell the records of all its models, the dense one first, and those of them, or the
        dense one's once more, that are new.

    Raises:
        ValueError: an unknown name, or one that can't be timed.
        FileNotFoundError: weights or a predictor are out of reach.
    """
    for dense, pairs in plan.groups.items():
        for size in plan.image_sizes or (None,):
            family = load_family(dense, pairs, random_weights=plan.random_weights, progress=progress, size=size)
            run = _FamilyRun(plan, family, known, progress)
            yield from run.runtimes() if plan.runtimes else run.cells()


@dataclass
class _FamilyRun:
    """One dense tower and its reductions on their way through the cells."""

    plan: LatencyPlan
    family: Family
    known: Sequence[LatencyRecord]
    progress: Progress

    def __post_init__(self) -> None:
        self.dense = self.family.rows[0]
        self.device = torch.device(self.plan.device)
        self.machine = timing.Machine.here(self.device)

    def cells(self) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
        dtype, vits = "", list[ReducedViT]()
        for cell in self.plan.cells:
            blanks = [self._blank(row, cell) for row in self.family.rows]
            known = self._fitting(blanks)
            new: dict[int, LatencyRecord] = {}
            if missing := {i for i, one in enumerate(known) if one is None}:
                if dtype != cell.dtype:
                    vits.clear()  # before there are others
                    dtype, vits = cell.dtype, self._placed(cell.dtype)
                # The dense model is timed with whatever is missing.
                new = self._timed(cell, {i: (blanks[i], vits[i]) for i in sorted(missing | {0})})
            both = [new.get(i, one) for i, one in enumerate(known)]
            yield [one for one in both if one is not None], list(new.values())

    def runtimes(self) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
        """Go through the rounds that runtimes and precisions share, as ``cells`` does through cells."""
        for cells in self.plan.rounds_of_runtimes:
            pairs = list(product(cells, range(len(self.family.rows))))
            blanks = [replace(self._blank(self.family.rows[i], cell), reference=EAGER_FLOAT32) for cell, i in pairs]
            known = self._fitting(blanks)
            new: dict[int, LatencyRecord] = {}
            if missing := {i for i, one in enumerate(known) if one is None}:
                vits = self._placed("float32")
                runs = {i: (blanks[i], vits[pairs[i][1]]) for i in sorted(missing | {0})}
                new = self._timed_runtimes(cells[0], runs)
            both = [new.get(i, one) for i, one in enumerate(known)]
            yield [one for one in both if one is not None], list(new.values())

    def _fitting(self, blanks: Sequence[LatencyRecord]) -> list[LatencyRecord | None]:
        """Find known records, and say which failed before."""
        known = [fitting(blank, self.known, self.plan.rounds) for blank in blanks]
        for record in known:
            if record is not None and record.failed is not None:
                cell = Cell(record.dtype, record.threads, record.way, record.batch)
                self.progress.say(
                    f"{record.model}: {cell.label}: {record.failed} in an earlier run, so it "
                    "isn't tried again; --fresh does"
                )
        return known

    def _placed(self, dtype: str) -> list[ReducedViT]:
        """Copy the models, which go on sharing weights, to the device in a precision."""
        vits = copy.deepcopy([row.vit for row in self.family.rows])
        return [vit.to(self.device, DTYPES[dtype]) for vit in vits]

    def _timed(self, cell: Cell, models: Mapping[int, tuple[LatencyRecord, ReducedViT]]) -> dict[int, LatencyRecord]:
        """Time models, the dense one first; complete their blank records."""
        label = f"{self.dense.model}: {cell.label}"
        vits = {str(index): vit for index, (_, vit) in models.items()}
        with (
            _threads(cell.threads),
            ways.memory_format(list(vits.values()), cell.way) as form,
            self.progress.task(label, self.plan.rounds) as tick,
        ):
            try:
                size, dtype = self.dense.vit.input_size, DTYPES[cell.dtype]
                images = timing.random_images(cell.batch, size, self.device, dtype)
            except RuntimeError as error:
                if not ways.is_out_of_memory(error):
                    raise
                reason = f"{ways.OUT_OF_MEMORY}, for the images alone"
                timings, around = dict[str, timing.Timing](), timing.Surroundings()
                ready = dict.fromkeys(vits, ways.Prepared(failed=reason))
            else:
                how: dict[str, Any] = {"rounds": self.plan.rounds, "seconds": self.plan.seconds}
                how["tick"] = lambda done: tick(min(done, self.plan.rounds))
                how["watch"] = timing.stopwatch(self.device, cell.threads)
                images = images.contiguous(memory_format=form)
                ready, timings, around = time_cell(vits, images, cell.way, **how)
        if cell.way in ways.COMPILED:
            torch._dynamo.reset()
        new = self._completed(models, ready, timings, around)
        self.progress.say(f"{label}: {len(timings)} of {len(new)} models timed")
        return new

    def _timed_runtimes(
        self, cell: Cell, runs: Mapping[int, tuple[LatencyRecord, ReducedViT]]
    ) -> dict[int, LatencyRecord]:
        """Time models in runtimes and precisions in turn, dense in eager float32 first; complete their records."""
        label = f"{self.dense.model}: runtimes, threads {cell.threads}, batch {cell.batch}"
        watch, rounds = timing.stopwatch(self.device, cell.threads), self.plan.rounds
        images = timing.random_images(cell.batch, self.dense.vit.input_size, self.device, torch.float32)
        with _threads(cell.threads), self.progress.task(label, len(runs) + rounds) as tick:
            ready = {}
            for index, (blank, vit) in runs.items():
                ready[str(index)] = ways.prepare(vit, blank.way, images, blank.dtype)
                tick(len(ready))
            how: dict[str, Any] = {"rounds": rounds, "seconds": self.plan.seconds, "watch": watch}
            how["tick"] = lambda done: tick(len(runs) + min(done, rounds))
            ready, timings, around = time_prepared(ready, images, **how)
        torch._dynamo.reset()
        new = self._completed(runs, ready, timings, around)
        self.progress.say(f"{label}: {len(timings)} of {len(new)} timed")
        return new

    def _completed(
        self,
        models: Mapping[int, tuple[LatencyRecord, ReducedViT]],
        ready: Mapping[str, ways.Prepared],
        timings: Mapping[str, timing.Timing],
        around: timing.Surroundings,
    ) -> dict[int, LatencyRecord]:
        """Complete blank records, of which number 0 is what the others are held to."""
        new = {}
        for index, (blank, _) in models.items():
            name = str(index)
            fields: dict[str, Any] = {key: getattr(ready[name], key) for key in PREPARED}
            if ready[name].weights_mib is not None:
                fields["weights_mib"] = ready[name].weights_mib
            if name in timings:
                dense = timings.get("0") if index else None
                # Of a runtime's time the multiply-adds explain only a part.
                saved = blank.saved_gflops if blank.reference == OWN else None
                fields |= time_fields(timings[name], dense, saved)
                fields["warnings"] = timing.warnings_of(timings[name], around, self.machine.cores)
            new[index] = replace(blank, created=utc_now(), surroundings=around, **fields)
        return new

    def _blank(self, row: Variant, cell: Cell) -> LatencyRecord:
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
            **cell._asdict(),
            stopwatch=timing.stopwatch(self.device, cell.threads).name,
            machine=self.machine,
            failed="not timed",
            **counts,
            saved_gflops=None if row is self.dense else saved,
            weights_mib=ways.weights_mib(row.vit, DTYPES[cell.dtype]),
            surroundings=timing.Surroundings(),
        )


def time_cell(
    models: Mapping[str, ReducedViT],
    images: Tensor,
    way: str,
    *,
    rounds: int,
    seconds: float,
    watch: timing.Stopwatch,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, ways.Prepared], dict[str, timing.Timing], timing.Surroundings]:
    """Prepare models and time those that can be timed in turn on the same images (B, C, H, W).

    Models are in evaluation mode on the images' device, both in the memory format of ``way``;
    ``rounds``, ``seconds`` and ``tick`` are those of `timing.interleaved`.

    Returns:
        How preparing each went, timings of those that did not fail, how busy the machine was.
    """
    ready = {name: ways.prepare(vit, way, images) for name, vit in models.items()}
    return time_prepared(ready, images, rounds=rounds, seconds=seconds, watch=watch, tick=tick)


def time_prepared(
    ready: dict[str, ways.Prepared],
    images: Tensor,
    *,
    rounds: int,
    seconds: float,
    watch: timing.Stopwatch,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, ways.Prepared], dict[str, timing.Timing], timing.Surroundings]:
    """Time in turn what could be prepared, on the same images; arguments and result are ``time_cell``'s."""
    calls = {name: one.call for name, one in ready.items() if one.call is not None}
    if not calls:
        return ready, {}, timing.Surroundings()
    meanwhile = timing.Watch()
    try:
        how: dict[str, Any] = {"warmup": WARMUP, "warmup_s": WARMUP_S, "stopwatch": watch}
        timings = timing.interleaved(calls, images, rounds, seconds=seconds, tick=tick, **how)
    except (RuntimeError, MemoryError) as error:
        if not ways.is_out_of_memory(error):
            raise
        reason, timings = f"{ways.OUT_OF_MEMORY}, with all of them prepared", {}
        ready |= {name: replace(ready[name], failed=reason) for name in calls}
    return ready, timings, meanwhile.surroundings()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
