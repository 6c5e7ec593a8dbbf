"""Make golden rankings of images, shard by shard and resumable, in this process or on Ray."""

import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.console.terminal import Progress
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.few_shot import turns
from harness.datasets.images import folder_images
from harness.golden import store
from harness.golden.shards import claimed, missing, shard_path, survey
from harness.golden.store import FOLDER_SPLIT, Provenance, Shard, own_store, ranked_revision
from harness.golden.workers import check_workers, made_by_workers, require_same
from harness.models.towers import Tower, load_tower, text_classifier
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.suffix import AUTO, precision_on
from zoo.weights import fingerprint
from zoo.windows import windows

V = TypeVar("V")

SHARD_SIZE = 64
STEADY = 16  # batches per call of the engine: what a last, smaller one costs stays below 1/32
MOST_THREADS = 8  # that load images beside a GPU


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to rank: a dataset's split, or a folder, which has no dataset and the split ``all``.

    ``flags`` are how the command line names them.
    """

    name: str
    revision: str
    split: str
    images: Split
    dataset: Dataset | None
    flags: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, split: SplitName) -> "Source":
        """Take a split of a dataset."""
        flags = ("--dataset", dataset.asked_as, *dataset.asked_with, "--split", split)
        facts = {"name": dataset.name, "revision": dataset.revision, "split": split}
        return cls(images=dataset.split(split), dataset=dataset, flags=flags, **facts)

    @classmethod
    def folder(cls, path: Path) -> "Source":
        """Take all images below a folder."""
        images = folder_images(path)
        facts = {"name": images.name, "revision": images.revision, "split": FOLDER_SPLIT}
        return cls(images=images.split, dataset=None, flags=("--images", str(path)), **facts)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to rank, and how."""

    model: str  # dense tower, see `harness.models.towers.load_tower`
    source: Source
    config: GoldenConfig = field(default_factory=GoldenConfig)
    # Passes per image that window, stride and approximation are picked for; None: the config's.
    budget: float | None = None
    limit: int | None = None  # images; those of a smaller one are the first of a larger one's
    variants: int = 1  # times that each image is drawn anew; the second follow all the first
    out: Path | None = None  # the store; None for the user's cache, where `compare` looks
    shard_size: int = SHARD_SIZE  # images per shard
    batch: int | None = None  # sequences per pass; None: the store's, else by the free memory
    dtype: str = "float32"  # or auto: that of the store, else the fastest of the device
    compiled: bool = False
    device: str = "cpu"
    workers: int | None = None  # Ray actors that share the work; None: this process alone

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("limit", "variants", "shard_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number from 1")
        if self.workers is not None:
            check_workers(self.workers, self.device)

    def command(self, out: Path) -> str:
        """Return the command line of this job."""
        parts = ["--model", self.model, *self.source.flags, *store.golden_flags(self.config)]
        parts += ["--full"] if self.limit is None else ["--limit", str(self.limit)]
        parts += ["--variants", str(self.variants)] if self.variants > 1 else []
        parts += ["--out", str(out), "--shard-size", str(self.shard_size)]
        parts += ["--batch", str(self.batch)] if self.batch else []
        parts += ["--compile"] if self.compiled else []
        parts += ["--dtype", self.dtype, "--device", self.device]
        parts += ["--workers", str(self.workers)] if self.workers else []
        return f"patchrank rank {shlex.join(parts)}"


class Ranked(NamedTuple):
    """A store with the images of a job, and how many images the split or folder has in all."""

    path: Path
    images: int
    total: int


def rank(job: Job, progress: Progress) -> Ranked:
    """Rank images and write a store; go on where an earlier call with the same job stopped.

    Whenever and however a process ends, at most the shards in work are lost.

    Raises:
        ValueError: a setting that doesn't fit, a store that was made with other settings, or a
            failure of a worker.
        FileNotFoundError: no weights or no images.
        OSError: the store can't be written, for instance for lack of room.
    """
    maker = ShardMaker(job)
    job, source, total = maker.job, job.source, len(maker.split)
    with claimed(maker.out):
        present, removed = survey(maker.out, store.facts_of)
        for line in removed:
            progress.say(line)
        stored = [shard.provenance for shard in present.values()]
        maker.settle(stored[0] if stored else None)
        todo = missing(maker.out, present, maker.provenance, job.shard_size, total, "rankings")
        begun = total - sum(len(maker.positions(index)) for index in todo)
        if todo:
            passes = maker.engine.passes
            progress.say(
                f"{maker.provenance.described()}: {passes:.4g} passes per image in "
                f"{maker.provenance.dtype}, {maker.provenance.batch} at a time"
            )
            title = f"golden rankings of {source.name} {source.split}"
            here = (count for index in todo for count in maker.make(index))
            with progress.long(title, total, begun, passes, units=passes) as show:
                for count in here if job.workers is None else _made_by_ray(maker, todo):
                    begun += count
                    show(begun)
        if gone := [index for index in todo if not shard_path(maker.out, index).is_file()]:
            raise ValueError(f"{len(gone)} shards have vanished from {str(maker.out)!r} meanwhile")
    return Ranked(maker.out, total, len(source.images) * job.variants)


class ShardMaker:
    """A tower, on the job's device, that makes any shard of a job and writes it to ``out``.

    The budget of ``job`` is spent, so that ``config`` says all; ``split`` has the store's order.
    """

    engine: GoldenEngine
    provenance: Provenance  # of the shards

    def __init__(self, job: Job) -> None:
        """Load the tower and encode the classes; refuse what can't be done."""
        self.tower = load_tower(job.model)
        self.tower.vit.to(job.device)
        self.job = within_budget(job, self.tower)
        source = job.source
        images = source.images.subset(turns(source.images.labels))
        if job.variants > 1 and images[0].image == images.variant(1)[0].image:
            raise ValueError(
                f"--variants {job.variants}: the images of {source.name!r} can't be drawn anew; leave it out"
            )
        self.split = images.variants(job.variants)[: job.limit]
        self.out = job.out or own_store(self.tower.name, source.name, source.split, self.job.config)
        self._text, self._scale = classes(self.job, self.tower)
        self._weights = fingerprint(self.tower.vit)
        self.settle(None)

    def settle(self, stored: Provenance | None) -> None:
        """Choose precision and batch: the job's, else the store's, else the device's best."""
        job, config, source = self.job, self.job.config, self.job.source
        precision = job.dtype
        if precision == AUTO:
            precision = stored.dtype if stored else precision_on(job.device, AUTO)
        batch = stored.batch if stored and job.batch is None else job.batch
        how: dict[str, Any] = {"precision": precision, "compiled": job.compiled, "batch": batch}
        vit, text, scale = self.tower.vit, self._text, self._scale
        self.engine = GoldenEngine(vit, config, text=text, scale=scale, **how)
        revision = source.revision
        if source.dataset is not None:
            revision = ranked_revision(source.dataset, config.score)
        images = {"dataset": source.name, "revision": revision, "split": source.split}
        self.provenance = Provenance(
            **{"model": self.tower.name, "weights": self._weights, **images, **asdict(config)},
            dtype=precision,
            batch=self.engine.suffix.batch,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )

    def positions(self, index: int) -> range:
        """Return the positions in ``split`` of a shard's images."""
        size = self.job.shard_size
        return range(index * size, min((index + 1) * size, len(self.split)))

    def make(self, index: int) -> Iterator[int]:
        """Rank the images of a shard and write it; yield the number of images of each call.

        Raises:
            ValueError: an image can't be read, or the device has too little memory for the batch.
            OSError: the shard can't be written.
        """
        config, positions = self.job.config, self.positions(index)
        grid = self.tower.vit.grid
        each = min(self.engine.passes, len(windows(grid, config.window, config.stride)))
        step = math.ceil(STEADY * self.engine.suffix.batch / max(each, 1))
        groups = [positions[start : start + step] for start in range(0, len(positions), step)]
        image_ids: list[str] = []
        labels: list[int] = []
        importance = []
        for group in ahead(groups, self._load, self._threads()):
            ids, truth, images = zip(*group, strict=True)
            importance.append(self._importance(torch.stack(images), torch.tensor(truth)))
            image_ids += ids
            labels += truth
            yield len(group)
        place = {"first": positions.start, "size": self.job.shard_size}
        facts: dict[str, Any] = {"image_ids": image_ids, "provenance": self.provenance, **place}
        shard = Shard.from_importance(torch.cat(importance).numpy(), np.array(labels), **facts)
        store.write_shard(self.out, index, shard, self.job.command(self.out))

    def _load(self, position: int) -> tuple[str, int, Tensor]:
        example = self.split[position]
        return example.image_id, example.label, self.tower.preprocess(example.image)

    def _threads(self) -> int:
        """Return how many threads load images: one beside a CPU that computes, else several."""
        if self.job.device.startswith("cpu"):
            return 1
        return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // (self.job.workers or 1)))

    def _importance(self, images: Tensor, labels: Tensor) -> Tensor:
        try:
            return self.engine.importance(images, labels)
        except torch.OutOfMemoryError as error:
            batch = self.engine.suffix.batch
            raise ValueError(
                f"out of memory on {self.engine.suffix.device} with --batch {batch}: try --batch {max(1, batch // 2)}"
            ) from error


def within_budget(job: Job, tower: Tower) -> Job:
    """Return the job with the window, stride and approximation that its budget allows."""
    if job.budget is None:
        return job
    from harness.golden.budget import recipe_for

    vit = tower.vit
    shape: dict[str, Any] = {"grid": vit.grid, "depth": vit.depth, "dim": vit.embed_dim}
    # Of the ways that it can pick, two need features made from the class token alone, and remove.
    pooled = vit.pools_first and job.config.action == "remove"
    recipe = recipe_for(job.budget, block=job.config.block, token_pooled=pooled, **shape)
    return replace(job, config=replace(job.config, **recipe), budget=None)


def classes(job: Job, tower: Tower) -> tuple[Tensor | None, float]:
    """Encode the classes: (classes, D) unit features and the factor on cosines.

    The features are None for a score without classes.

    Raises:
        ValueError: there are no classes or no text tower, or it lacks words for a class.
    """
    score, dataset = job.config.score, job.source.dataset
    if score == "preservation":
        return None, 1.0
    if dataset is None or not dataset.labelled:
        what = "a folder of images" if dataset is None else repr(dataset.name)
        raise ValueError(
            f"score={score!r} needs classes, and {what} has none; use --score preservation, or another --dataset"
        )
    if tower.clip is None:
        raise ValueError(
            f"score={score!r} needs a text tower, and {tower.name} has none here; use --score "
            "preservation, or --model open_clip:ARCH/PRETRAINED, which brings its text tower"
        )
    text, left_out = text_classifier(tower.clip, dataset)
    if left_out:
        raise ValueError(
            f"score={score!r} needs every class named, and --skip-unknown-classes leaves out {len(left_out)} of "
            f"{dataset.name}: use --score preservation"
        )
    return text, tower.clip.model.logit_scale.exp().item()


def ahead(groups: Sequence[Sequence[int]], load: Callable[[int], V], threads: int) -> Iterator[list[V]]:
    """Yield what ``load`` gives for each group, in order, while the next group loads in threads.

    An error in ``load`` is raised where its group would have come.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        following: list[Future[V]] = []
        try:
            for group in [*groups, ()]:
                current, following = following, [pool.submit(load, item) for item in group]
                if current:
                    yield [value.result() for value in current]
        finally:
            for value in following:
                value.cancel()


def _make_by(job: Job, wanted: Provenance) -> Callable[[int], int]:
    """Return what makes a shard in a worker, which loads the tower anew, and counts its images."""
    maker = ShardMaker(job)
    require_same(maker.provenance.differences(wanted))
    return lambda index: sum(maker.make(index))


def _made_by_ray(maker: ShardMaker, todo: Sequence[int]) -> Iterator[int]:
    """Make shards by Ray's actors; yield the number of images of each that is done."""
    job, provenance = maker.job, maker.provenance
    maker.tower.vit.cpu()  # the workers need the room
    torch.cuda.empty_cache()
    assert job.workers is not None
    settled = replace(job, out=maker.out.absolute(), dtype=provenance.dtype, batch=provenance.batch)
    start = partial(_make_by, settled, provenance)
    return made_by_workers(start, maker.out, todo, workers=job.workers, device=job.device)
