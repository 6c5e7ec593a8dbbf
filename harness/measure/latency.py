"""Time models in turn with their dense towers under every condition of a plan."""

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from harness import git_commit
from harness.base.terminal import Progress
from harness.measure import timing
from harness.measure.cost import count_costs
from harness.measure.exports import calibration_pictures
from harness.measure.rows import MethodRate, Variant, make_row, require_rows, rows_of
from harness.measure.server import Servers, measure_loads, prepare_server
from harness.records.record import DENSE, utc_now
from harness.records.statistics import LEAST_ROUNDS
from harness.records.times import LatencyRecord, Load, Timing, describe_machine, fitting, read_gpu, time_fields
from zoo.core.digests import digest, fingerprint
from zoo.core.errors import is_out_of_memory
from zoo.core.host import Host
from zoo.core.reducer import METHODS
from zoo.core.settings import check_fields, expected, torch_dtype
from zoo.deploy.export import read_description
from zoo.deploy.runtime import EAGER, RUNTIMES, every_precision, find_runtime
from zoo.deploy.setup import exported_file
from zoo.loading import towers
from zoo.loading.adopt import add_recovery, reduce
from zoo.loading.sizes import MODELS
from zoo.loading.towers import Tower, split_method, split_name
from zoo.loading.weights import FOLDER, HUB

CPU_BATCHES, CUDA_BATCHES = (1, 8, 32), (1, 8, 32, 64, 256)
CALLS, SERVER = "calls", "server"  # calls that follow each other; queries that arrive at random and are batched
SCENARIOS = (CALLS, SERVER)
SERVER_BATCHES = (8, 64)  # of a CPU and of CUDA
MOST_THREADS = 1024  # of so many more OpenMP ends the process, without an error to catch
WARMUP, WARMUP_S = 3, 0.5


@dataclass(frozen=True, kw_only=True)
class LatencyPlan:
    """What to time; ValueError for a value out of range, or a runtime that the device hasn't."""

    models: tuple[str, ...]  # dense or reduced; each is timed beside its dense tower
    methods: tuple[str, ...] = ()  # further reductions of each model's dense tower
    keeps: tuple[float, ...] = (0.6,)  # their keep rates
    batches: tuple[int, ...] = CPU_BATCHES
    precisions: tuple[str, ...] = ("float32",)  # of those that a runtime has
    runtimes: tuple[str, ...] = (EAGER,)  # of `RUNTIMES`
    threads: tuple[int, ...]  # torch's
    rounds: int = 9  # calls of each model, at least; of fewer than 6 no median has a 95 % interval
    seconds: float = 5.0  # rounds go on for so long
    device: str = "cpu"
    random_weights: bool = False  # only for models of ours
    scenario: str = CALLS  # of `SCENARIOS`
    rates: tuple[float, ...] = ()  # queries a second that a server gets; none for the highest within the bound
    bound_ms: float = 50.0  # on p99 of a server's latencies

    def __post_init__(self) -> None:
        ranges = {"rounds": f"[{LEAST_ROUNDS}, inf)", "seconds": "[0, inf)", "bound_ms": "(0, inf)"}
        check_fields(self, precisions=every_precision(), runtimes=RUNTIMES, scenario=SCENARIOS, **ranges)
        if self.rates and self.scenario != SERVER:
            raise ValueError(f"--rate {self.rates[0]:g} with --scenario {self.scenario}: give --scenario {SERVER}")
        if bad := [rate for rate in self.rates if not 0 < rate < math.inf]:
            raise ValueError(f"--rate {bad[0]:g}: expected queries a second, above 0")
        for name in self.methods:
            if name not in (methods := sorted(METHODS)):
                raise ValueError(f"--methods {name!r}: {expected(name, methods)}")
        if max(self.threads) > MOST_THREADS:
            raise ValueError(f"--threads {max(self.threads)}: expected a number from 1 to {MOST_THREADS}")
        for precisions, runtimes in [(self.precisions, self.runtimes), *(([p], [r]) for _, r, p in self.files)]:
            timing.require_runtimes(runtimes, precisions, torch.device(self.device))
        if self.random_weights and self.files:
            raise ValueError("--random-weights with an exported file, which has weights: leave the flag out")

    @property
    def files(self) -> dict[tuple[str, str, str], list[Path]]:
        """Exported files among the models, by dense tower, runtime and precision."""
        files: dict[tuple[str, str, str], list[Path]] = {}
        for path in filter(None, map(exported_file, self.models)):
            description = read_description(path)
            if description.tower is None:
                raise ValueError(f"{str(path)!r} doesn't say its tower; write the file with `patchrank export`")
            key = (description.tower, description.runtime, description.precision)
            files.setdefault(key, []).append(path)
        return files

    @property
    def groups(self) -> dict[str, list[MethodRate]]:
        """Methods with keep rates, by dense tower."""
        groups: dict[str, list[MethodRate]] = {}
        for name in self.models:
            if exported_file(name) is not None:
                continue
            dense, method, keep = split_method(name)
            if dense.partition(".")[0] in MODELS:
                dense = ".".join(split_name(dense))
            pairs = [] if method is None else [(method, keep)]
            pairs += product(self.methods, self.keeps)
            groups[dense] = list(dict.fromkeys([*groups.get(dense, ()), *pairs]))
        return groups


def batches_for(device: str, scenario: str, batches: Sequence[int] | None) -> tuple[int, ...]:
    """Return ``batches`` without repeats; for None the usual sizes of the device."""
    if batches is not None:
        return tuple(dict.fromkeys(batches))
    on_cuda = torch.device(device).type == "cuda"
    if scenario == SERVER:
        return (SERVER_BATCHES[on_cuda],)
    return CUDA_BATCHES if on_cuda else CPU_BATCHES


@dataclass(frozen=True, kw_only=True)
class Family:
    """One dense tower and its reductions, in float32 on the CPU."""

    tag: str  # of the tower's weights
    weights: str  # their fingerprint
    rows: list[Variant]  # the dense one first; all share its weights
    counts: dict[str, dict[str, Any]]  # see `count_costs`, by the row's key
    preprocess: Any = None  # from a PIL picture to (3, H, W)
    files: dict[int, Path] = field(default_factory=dict)  # exported, by the row's place

    @cached_property
    def pictures(self) -> Tensor:
        """Real pictures (n, 3, H, W), which show the ranges of int8."""
        return calibration_pictures(self.preprocess)


def load_family(
    dense: str, pairs: Sequence[MethodRate], files: Sequence[Path] = (), *, random_weights: bool, progress: Progress
) -> Family:
    """Load a dense tower, or build it without weights, and reduce it, also as each exported file was reduced."""
    if not random_weights:
        require_rows(dense, pairs)
    tower = towers.find_tower(dense, random_weights=random_weights)
    vit = tower.vit
    if random_weights:
        tower = tower._replace(name=".".join(split_name(dense)))
    rows = rows_of(tower, [(DENSE, 1.0), *([] if random_weights else pairs)])
    for method, keep in pairs if random_weights else ():
        with torch.random.fork_rng(devices=[]):  # what a method learns is random, too
            torch.manual_seed(0)
            rows.append(_row(tower.arch, reduce(vit, method=method, keep=keep)))
    # The model of a folder or the hub may have been saved with a reduction method.
    saved = towers.create_pretrained(dense) if dense.startswith((FOLDER, HUB)) and not files else None
    if isinstance(saved, Host) and saved.reducer is not None:
        model = reduce(vit, method=None)
        model.reducer = saved.reducer
        rows.append(_row(tower.arch, model))
    places = dict(enumerate(files, start=len(rows)))
    rows += [_file_row(tower, path) for path in files]
    counts, named = count_costs(rows, progress), {"tag": tower.tag, "weights": fingerprint(vit)}
    return Family(**named, rows=rows, counts=counts, preprocess=tower.preprocess, files=places)


def _file_row(tower: Tower, path: Path) -> Variant:
    """Return the model that a file was exported from; raise ValueError if that isn't the tower's or can't be told."""
    description = read_description(path)
    made = make_row(tower, description.method or DENSE, description.options)
    vit = made.vit if description.recovery is None else add_recovery(made.vit, description.recovery).eval()
    if description.weights_sha256 not in (None, fingerprint(vit)):
        raise ValueError(f"{str(path)!r} was exported from other weights than those of {tower.name}: export it again")
    config = {**made.config, "file": path.name, "file_sha256": digest(path, length=64)}
    return replace(made, vit=vit, config=config, what=str(path))


def _row(arch: str, vit: Host) -> Variant:
    assert vit.reducer is not None
    method, config, patches = vit.reducer.method, vit.reducer.config, math.prod(vit.grid)
    keep = config.keep
    if keep is None:  # other settings decide the counts
        *_, left = vit.reducer.counts(patches).values()
        keep = left / patches
    name = f"{arch}_{method}{round(100 * keep)}"
    return Variant(model=name, method=method, keep=keep, vit=vit.float().eval(), config=config.plain())


def measure_latency(
    plan: LatencyPlan, known: Sequence[LatencyRecord], progress: Progress
) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
    """Time all models under all conditions, but use ``known`` records that fit again.

    Yield for each condition the records of all models, the dense one first, and the new records. The dense model is
    timed again with every new model. Where the machine was too busy, records say so and aren't new.
    """
    machine, patience = describe_machine(torch.device(plan.device)), timing.Patience(say=progress.say)
    groups: list[tuple[Any, ...]] = [(*group, (), plan.precisions, plan.runtimes) for group in plan.groups.items()]
    for (dense, runtime, precision), files in plan.files.items():
        groups.append((dense, (), files, (precision,), (runtime,)))  # as the files are, whatever else the plan says
    for dense, pairs, files, precisions, runtimes in groups:
        family = load_family(dense, pairs, files, random_weights=plan.random_weights, progress=progress)
        vits: dict[str, list[Host]] = {}  # in the last precision; they go on sharing weights
        for condition in product(precisions, plan.threads, runtimes, plan.batches, plan.rates or (None,)):
            named = dict(zip(("precision", "threads", "runtime", "batch", "rate"), condition, strict=True))
            blanks = [_blank(plan, family, row, machine, named) for row in family.rows]
            old = [fitting(blank, known, plan.rounds) for blank in blanks]
            for record in old:
                if record is not None and record.failed is not None:
                    why = f"{record.failed} in an earlier run, so it isn't tried again; --fresh does"
                    progress.say(f"{record.model}: {record.condition}: {why}")
            new, shown = dict[int, LatencyRecord](), dict(enumerate(old))
            if missing := {i for i, record in enumerate(old) if record is None}:
                weights = timing.weights_precision(blanks[0].runtime, blanks[0].precision)
                if weights not in vits:
                    vits.clear()  # before there are others
                    copies = copy.deepcopy([row.vit for row in family.rows])
                    vits[weights] = [vit.to(plan.device, torch_dtype(weights)) for vit in copies]
                # The first, a dense model, is timed with whatever is missing.
                runs = {i: (blanks[i], vits[weights][i]) for i in sorted(missing | {0})}
                try:
                    new = _time(plan, runs, progress, patience, family)
                except timing.BusyError as error:
                    shown |= {i: replace(blanks[i], failed=error.why) for i in missing}
            shown |= new
            yield [record for record in shown.values() if record is not None], list(new.values())


def _blank(
    plan: LatencyPlan, family: Family, row: Variant, machine: dict[str, Any], condition: dict[str, Any]
) -> LatencyRecord:
    """Return a record with conditions and costs, and no time."""
    return LatencyRecord(
        created=utc_now(),
        version=version("clip-patchrank"),
        git_commit=git_commit(),
        model=row.model,
        method=row.method,
        keep=row.keep,
        method_config=row.config,
        tag=family.tag,
        weights_sha256=family.weights,
        random_weights=plan.random_weights,
        image_size=row.vit.input_size,
        device=plan.device,
        **condition,
        stopwatch=_stopwatch(plan).name,
        bound_ms=plan.bound_ms if plan.scenario == SERVER else None,
        machine=machine,
        failed="not timed",
        **family.counts[row.key],
    )


def _stopwatch(plan: LatencyPlan) -> timing.Stopwatch:
    """Return what times a model by itself, as when it is served; the first calls fill the caches."""
    wait = timing.synchronizer(torch.device(plan.device))
    return timing.wall_clock(wait, warm=0 if plan.scenario == SERVER else 2)


def _time(
    plan: LatencyPlan,
    runs: Mapping[int, tuple[LatencyRecord, Host]],
    progress: Progress,
    patience: timing.Patience,
    family: Family,
) -> dict[int, LatencyRecord]:
    """Time models under the conditions of their blank records, the dense one first, and complete these."""
    first, total = runs[0][0], len(runs) + plan.rounds
    label, threads = f"{first.model}: {first.condition}", torch.get_num_threads()
    with progress.task(label, total) as tick:
        torch.set_num_threads(first.threads)
        try:
            models = {i: vit for i, (_, vit) in runs.items()}
            options: dict[str, Any] = {"files": family.files, "tick": lambda done: tick(min(done, total))}
            if find_runtime(first.runtime).recipes(first.precision):
                options["calibration"] = family.pictures
            ready, times = time_in_turn(models, first, plan, patience, **options)
        finally:
            torch.set_num_threads(threads)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # what was compiled for these models
    gpu = read_gpu(torch.device(plan.device))
    new = {
        i: _complete(replace(blank, gpu=gpu), ready[i], times.get(i), times.get(0) if i else None)
        for i, (blank, _) in runs.items()
    }
    progress.say(f"{label}: {len(times)} of {len(new)} models timed")
    return new


def _complete(
    blank: LatencyRecord, ready: timing.ReadyModel, measured: Timing | Load | None, dense: Timing | Load | None
) -> LatencyRecord:
    fields = {name: getattr(ready, name) for name in ("failed", "first_call_s", "deviation", "peak_mib", "attention")}
    if isinstance(measured, Load):
        assert blank.bound_ms is not None
        fields |= {"load": measured, "verdict": measured.verdict(blank.bound_ms)}
    elif measured is not None:
        fields |= time_fields(measured, dense if isinstance(dense, Timing) else None)
    elif ready.failed is None:  # a server
        fields["failed"] = f"p99 isn't within {blank.bound_ms:g} ms even where queries hardly ever wait"
    return replace(blank, created=utc_now(), **fields)


def time_in_turn(
    models: Mapping[int, Host],
    blank: LatencyRecord,
    plan: LatencyPlan,
    patience: timing.Patience,
    tick: Callable[[int], object] = lambda _: None,
    files: Mapping[int, Path] = MappingProxyType({}),
    calibration: Tensor | None = None,
) -> tuple[dict[int, timing.ReadyModel], Mapping[int, Timing | Load]]:
    """Make models ready for the conditions of a record and time them in turn, on random images or real ones.

    Return how each model was prepared, and the times of models that did not fail. ``tick`` takes the number of models
    ready and rounds done; ``files`` are exported ones, by the model's key; ``calibration`` (n, 3, H, W) real pictures.
    """
    device = torch.device(plan.device)
    patience.wait(device)  # before models are made ready, which takes a while
    ready = dict.fromkeys(models, timing.ReadyModel(failed=f"{timing.OUT_OF_MEMORY}, for the images alone"))
    options: dict[str, Any] = {"rounds": plan.rounds, "seconds": plan.seconds}
    served = plan.scenario == SERVER

    def prepare(key: int, images: Tensor) -> timing.ReadyModel:
        return timing.prepare(models[key], blank.runtime, images, blank.precision, files.get(key), calibration)

    try:
        images = timing.random_images(blank.batch, next(iter(models.values())).input_size, device, torch.float32)
        if calibration is not None:
            images = calibration[torch.arange(blank.batch) % len(calibration)]
        for done, key in enumerate(models, start=1):
            ready[key] = prepare_server(partial(prepare, key), images) if served else prepare(key, images)
            tick(done)
        prepared = {key: model.prepared for key, model in ready.items() if model.prepared is not None}
        if not prepared:
            return ready, {}
        [dtype] = {model.dtype for model in prepared.values()}  # of one runtime and precision
        calls, images = {key: model.call for key, model in prepared.items()}, images.to(dtype)

        def on_round(rounds: int) -> None:
            tick(len(ready) + rounds)

        if served:
            servers = Servers(calls=calls, images=images, **options)
            return ready, measure_loads(servers, bound_ms=plan.bound_ms, rate=blank.rate, tick=on_round)
        options |= {"warmup": WARMUP, "warmup_s": WARMUP_S, "stopwatch": _stopwatch(plan), "tick": on_round}
        return ready, patience.time(lambda: timing.interleave(calls, images, **options), device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{timing.OUT_OF_MEMORY}, with all of them ready"
        failed = {key: replace(model, failed=reason) for key, model in ready.items() if model.prepared is not None}
        return ready | failed, {}
