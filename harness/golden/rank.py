"""Make golden rankings of images: shard by shard, resumable, by one process or many."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Split
from harness.golden.feed import ahead, loaders
from harness.golden.folder import claimed, missing, shard_path, survey, write_shard
from harness.golden.job import AUTO, Job, classes, within_budget
from harness.golden.provenance import Provenance, ranked_revision
from harness.golden.shards import Shard
from harness.golden.store import own_store
from harness.golden.work import Team
from harness.progress import Progress
from harness.sampling import turns
from harness.towers import Tower, load_tower
from zoo.golden import GoldenEngine, best_precision
from zoo.weights import fingerprint
from zoo.windows import windows

STEADY = 16  # batches per call of the engine: what a last, smaller one costs stays below 1/32


class Ranked(NamedTuple):
    """What came out.

    Attributes:
        path: the store.
        images: how many of the images asked for it holds: all of them.
        total: images that the dataset's split or the folder has.
        leads: whether this process is the one to say so.
    """

    path: Path
    images: int
    total: int
    leads: bool


class Plan(NamedTuple):
    """What the first process decides for all: shards to make, images there, and how to compute."""

    todo: list[int]
    begun: int
    precision: str
    batch: int


class Piece(NamedTuple):
    """Consecutive images of a shard, ranked in one call."""

    shard: int
    first: int
    stop: int
    ends: bool  # with it, the shard is complete


class Loaded(NamedTuple):
    """The images of a piece."""

    image_ids: list[str]
    labels: NDArray[np.int64]
    images: Tensor


def rank(job: Job, progress: Progress, crew: Team | None = None) -> Ranked:
    """Rank images and write a store; go on where an earlier call with the same job stopped.

    Whenever and however a process ends, at most the shards in work are lost.

    Args:
        job: what to rank, and how.
        progress: where to show how far things are.
        crew: the processes that share the work, see ``work.team``; None to work alone.

    Raises:
        ValueError: a setting that doesn't fit, or a store that was made with other settings.
        FileNotFoundError: no weights or no images.
        OSError: the store can't be written, for instance for lack of room.
        OtherProcessError: another process has failed and says why.
    """
    crew = crew or Team(job.device)
    tower = load_tower(job.model)
    tower.vit.to(crew.device)
    job = within_budget(job, tower)
    order = turns(job.source.images.labels)[: job.limit]
    split = job.source.images.subset(order)
    with ExitStack() as stack:
        run = _Run(job, crew, tower, split, progress if crew.leads else Progress())
        plan = crew.agree(lambda: run.decide(stack))
        run.work(plan)
        if gone := [i for i in plan.todo if crew.leads and not shard_path(run.out, i).is_file()]:
            raise ValueError(f"{len(gone)} shards have vanished from {str(run.out)!r} meanwhile")
    return Ranked(run.out, len(order), len(job.source.images), crew.leads)


class _Run:
    """One process's part in a job."""

    def __init__(self, job: Job, crew: Team, tower: Tower, split: Split, progress: Progress):
        self.job, self.crew, self.tower, self.split = job, crew, tower, split
        self.progress = progress
        source = job.source
        self.out = job.out or own_store(tower.name, source.name, source.split, job.config)
        text, scale = classes(job, tower)
        self.told: dict[str, Any] = {"text": text, "scale": scale}
        # Refuses what can't be done before anything is written.
        self.batch = GoldenEngine(tower.vit, job.config, batch=job.batch, **self.told).suffix.batch

    def decide(self, stack: ExitStack) -> Plan:
        """Claim the store until ``stack`` closes, look through it and tell what is to be done."""
        job, size = self.job, self.job.shard_size
        stack.enter_context(claimed(self.out))
        present, removed = survey(self.out)
        for line in removed:
            self.progress.say(line)
        precision = job.dtype
        if precision == AUTO:
            stored = [entry.provenance.dtype for entry in present.values()]
            precision = stored[0] if stored else best_precision(self.crew.device)
        total = len(self.split)
        todo = missing(self.out, present, self.provenance(precision), size, total)
        begun = total - sum(min(size, total - index * size) for index in todo)
        return Plan(todo, begun, precision, self.batch)

    def provenance(self, precision: str) -> Provenance:
        """Return what the rankings are made from."""
        config, source = self.job.config, self.job.source
        revision = source.revision
        if source.dataset is not None:
            revision = ranked_revision(source.dataset, config.score)
        return Provenance(
            model=self.tower.name,
            weights=fingerprint(self.tower.vit),
            dataset=source.name,
            revision=revision,
            split=source.split,
            score=config.score,
            block=config.block,
            window=config.window,
            stride=config.stride,
            dtype=precision,
            greedy=config.greedy,
            approximate=config.approximate,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )

    def work(self, plan: Plan) -> None:
        """Make shards until none is left to make."""
        if not plan.todo:
            return
        job, crew = self.job, self.crew
        facts: dict[str, Any] = {"precision": plan.precision, "batch": plan.batch}
        facts |= self.told | {"compiled": job.compiled}
        engine = GoldenEngine(self.tower.vit, job.config, **facts)
        provenance, resume = self.provenance(plan.precision), job.command(self.out)
        self.progress.say(
            f"{provenance.described()}: {engine.passes:.4g} passes per image in {plan.precision}, "
            f"{plan.batch} at a time"
        )
        ready: list[tuple[Loaded, Tensor]] = []
        title = f"golden rankings of {job.source.name} {job.source.split}"
        with self.progress.long(title, len(self.split), plan.begun, engine.passes) as show:
            pieces = self.pieces(plan.todo, engine)
            for piece, loaded in ahead(pieces, self.load, loaders(crew.device)):
                ready.append((loaded, _importance(engine, loaded)))
                if piece.ends:
                    shard = Shard.of(
                        torch.cat([importance for _, importance in ready]).numpy(),
                        np.concatenate([part.labels for part, _ in ready]),
                        first=piece.shard * job.shard_size,
                        size=job.shard_size,
                        image_ids=tuple(i for part, _ in ready for i in part.image_ids),
                        provenance=provenance,
                    )
                    write_shard(self.out, piece.shard, shard, resume)
                    ready.clear()
                show(plan.begun + crew.report(piece.stop - piece.first))
            crew.finish(lambda done: show(plan.begun + done))

    def pieces(self, todo: list[int], engine: GoldenEngine) -> Iterator[Piece]:
        """Yield what this process has to rank, shard after shard."""
        config, size = self.job.config, self.job.shard_size
        grid = self.tower.vit.patch_embed.grid_size
        each = min(engine.passes, len(windows(grid, config.window, config.stride)))
        step = math.ceil(STEADY * engine.suffix.batch / max(each, 1))
        for shard in self.crew.share(todo):
            end = min((shard + 1) * size, len(self.split))
            for first in range(shard * size, end, step):
                stop = min(first + step, end)
                yield Piece(shard, first, stop, stop == end)

    def load(self, piece: Piece) -> Loaded:
        """Draw or decode the images of a piece."""
        examples = [self.split[i] for i in range(piece.first, piece.stop)]
        return Loaded(
            [example.image_id for example in examples],
            np.array([example.label for example in examples], dtype=np.int64),
            torch.stack([self.tower.preprocess(example.image) for example in examples]),
        )


def _importance(engine: GoldenEngine, loaded: Loaded) -> Tensor:
    """Rank a piece.

    Raises:
        ValueError: the device has too little memory for the batch.
    """
    labels = torch.from_numpy(loaded.labels) if engine.config.score == "label" else None
    try:
        return engine.importance(loaded.images, labels)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"out of memory on {engine.suffix.device} with --batch {engine.suffix.batch}: "
            f"try --batch {max(1, engine.suffix.batch // 2)}"
        ) from error
