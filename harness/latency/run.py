"""Time what a plan asks for and no earlier record has, cell by cell."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from harness.commit import git_commit
from harness.conditions import DTYPES
from harness.latency.cell import OUT_OF_MEMORY, Found, measure_cell
from harness.latency.machine import Machine, Surroundings
from harness.latency.memory import random_images, weights_mib
from harness.latency.nvml import Gpu, find_gpu
from harness.latency.plan import LatencyPlan
from harness.latency.record import LatencyRecord, fitting
from harness.latency.rows import Family, families
from harness.latency.stopwatch import Stopwatch, stopwatch
from harness.latency.timing import Timing
from harness.latency.verdict import verdict, warnings_of
from harness.latency.ways import COMPILED, memory_format
from harness.measure.rows import Variant
from harness.progress import Progress
from harness.records import utc_now

LEAST_SAVED = 0.01  # of the multiply-adds, below which no share of them says anything


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One condition: models timed in it share every round."""

    dtype: str
    way: str
    batch: int
    threads: int

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"{self.dtype}, {self.way}, threads {self.threads}, batch {self.batch}"


def measure_latency(
    plan: LatencyPlan, known: Sequence[LatencyRecord], progress: Progress
) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
    """Time all models in all cells.

    Args:
        plan: what to time.
        known: records of earlier runs; one that fits is used again.
        progress: where to show how far things are.

    Yields:
        For each cell the records of all its models, the dense one first, and those of them, or the
        dense one's once more, that are new.

    Raises:
        ValueError: an unknown name, or one that can't be timed.
        FileNotFoundError: weights or a predictor are out of reach.
    """
    for family in families(plan, progress):
        yield from _FamilyRun(plan, family, known, progress).cells()


class _FamilyRun:
    """One dense tower and its reductions on their way through the cells."""

    def __init__(
        self,
        plan: LatencyPlan,
        family: Family,
        known: Sequence[LatencyRecord],
        progress: Progress,
    ) -> None:
        self.plan, self.family, self.known, self.progress = plan, family, known, progress
        self.device = torch.device(plan.device)
        self.gpu: Gpu | None = find_gpu(self.device)
        self.machine = Machine.here(self.device, self.gpu)

    def cells(self) -> Iterator[tuple[list[LatencyRecord], list[LatencyRecord]]]:
        for dtype in self.plan.dtypes:
            rows: list[Variant] | None = None  # copied when the first cell needs them
            for threads in self.plan.threads:
                for way in self.plan.ways:
                    for batch in self.plan.batches:
                        cell = Cell(dtype=dtype, way=way, batch=batch, threads=threads)
                        blanks = [self._blank(row, cell) for row in self.family.rows]
                        found = [fitting(one, self.known, self.plan.rounds) for one in blanks]
                        old = [one for one in found if one is not None]
                        self._say_failed(cell, old)
                        if len(old) == len(blanks):
                            yield old, []
                            continue
                        rows = rows or self._placed(dtype)
                        yield self._measured(cell, rows, blanks, found)
            del rows

    def _say_failed(self, cell: Cell, old: Sequence[LatencyRecord]) -> None:
        for one in old:
            if one.failed is not None:
                told = f"{one.model}: {cell.label}: {one.failed} in an earlier run"
                self.progress.say(f"{told}, so it isn't tried again; --fresh does")

    def _placed(self, dtype: str) -> list[Variant]:
        """Copy the rows, which go on sharing weights, to the device in a precision."""
        vits = copy.deepcopy([row.vit for row in self.family.rows])
        for vit in vits:
            vit.to(self.device, DTYPES[dtype])
        pairs = zip(self.family.rows, vits, strict=True)
        return [replace(row, vit=vit) for row, vit in pairs]

    def _measured(
        self,
        cell: Cell,
        rows: Sequence[Variant],
        blanks: Sequence[LatencyRecord],
        found: Sequence[LatencyRecord | None],
    ) -> tuple[list[LatencyRecord], list[LatencyRecord]]:
        """Time what is missing, the dense model with it in any case."""
        asked = [index for index, one in enumerate(found) if one is None or index == 0]
        models = {rows[index].key: rows[index].vit for index in asked}
        told: dict[str, Any] = {"rounds": self.plan.rounds, "seconds": self.plan.seconds}
        label = f"{self.family.rows[0].model}: {cell.label}"
        with (
            _threads(cell.threads),
            memory_format(list(models.values()), cell.way) as form,
            self.progress.task(label, self.plan.rounds) as tick,
        ):
            measured = dict.fromkeys(models, Found(failed=f"{OUT_OF_MEMORY}, for the images alone"))
            around = Surroundings()
            shape = (cell.batch, 3, *rows[0].vit.patch_embed.img_size)
            images = random_images(shape, self.device, DTYPES[cell.dtype])
            if images is not None:
                measured, around = measure_cell(
                    models,
                    images.contiguous(memory_format=form),
                    cell.way,
                    watch=self._stopwatch(cell),
                    gpu=self.gpu,
                    tick=lambda done: tick(min(done, self.plan.rounds)),
                    **told,
                )
        if cell.way in COMPILED:
            torch._dynamo.reset()
        dense = measured[rows[0].key]
        new = {
            index: self._filled(blanks[index], measured[rows[index].key], dense, around)
            for index in asked
        }
        timed = sum(one.failed is None for one in new.values())
        self.progress.say(f"{label}: {timed} of {len(new)} models timed")
        both = [new.get(index, one) for index, one in enumerate(found)]
        return [one for one in both if one is not None], list(new.values())

    def _stopwatch(self, cell: Cell) -> Stopwatch:
        return stopwatch(self.device, cell.threads)

    def _blank(self, row: Variant, cell: Cell) -> LatencyRecord:
        """Return a record with conditions and costs, and no time."""
        counts = dict(vars(self.family.counts[row.key]))
        del counts["activations"]  # times hardly follow them
        dense = self.family.counts[self.family.rows[0].key].gflops
        saved = 1 - counts["gflops"] / dense
        item = DTYPES[cell.dtype].itemsize / 4  # the rows are in float32
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
            image_size=tuple(row.vit.patch_embed.img_size),
            device=self.plan.device,
            **asdict(cell),
            stopwatch=self._stopwatch(cell).name,
            machine=self.machine,
            failed="not timed",
            **counts,
            saved_gflops=None if row is self.family.rows[0] else saved,
            weights_mib=item * weights_mib(row.vit),
            surroundings=Surroundings(),
        )

    def _filled(
        self, blank: LatencyRecord, found: Found, dense: Found, around: Surroundings
    ) -> LatencyRecord:
        """Complete a record with what was measured."""
        facts = {
            name: getattr(found, name)
            for name in ("failed", "first_call_s", "deviation", "peak_mib", "energy_mj_per_image")
        }
        facts |= {"created": utc_now(), "surroundings": around}
        if found.timing is not None:
            facts |= timed(found.timing) | {
                "warnings": warnings_of(found.timing, around, self.machine.cores)
            }
            if dense.timing is not None and found is not dense:
                facts |= compared(found.timing, dense.timing, blank.saved_gflops)
        return replace(blank, **facts)


def timed(timing: Timing) -> dict[str, Any]:
    """Return the fields of ``LatencyRecord`` that follow from calls."""
    return {"samples_ms": timing.samples_ms, **timing.summary}


def compared(timing: Timing, dense: Timing, saved: float | None) -> dict[str, Any]:
    """Return the fields of ``LatencyRecord`` that follow from the dense model's calls, too.

    Args:
        timing: a model's.
        dense: the dense model's, of the same rounds.
        saved: share of the dense model's multiply-adds that isn't done.
    """
    ratio = timing.ratio_to(dense)
    time = 1 - ratio.estimate
    known = saved is not None and saved >= LEAST_SAVED
    return {
        "ratio_to_dense": ratio.estimate,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "verdict": verdict(ratio),
        "saved_time": time,
        "arrived": time / saved if known and saved is not None else None,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
