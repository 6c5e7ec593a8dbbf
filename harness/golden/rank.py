"""Make golden rankings of images, shard by shard and resumable, in this process or on Ray."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.base.store import Store
from harness.base.terminal import Progress
from harness.base.workers import Make, make_shards, require_same
from harness.datasets.few_shot import turns
from harness.datasets.text_features import text_classifier
from harness.golden.settings import RankJob
from harness.golden.store import RANKINGS, Provenance, Rankings, cache_store
from zoo.core.digests import fingerprint
from zoo.core.settings import AUTO, precision_on
from zoo.loading.towers import Tower, load_tower
from zoo.ranking.golden import GoldenEngine
from zoo.ranking.suffix import windows

STEADY = 16  # batches per call of the engine: what a last, smaller one costs stays below 1/32
MOST_THREADS = 8  # that load images beside a GPU


class Ranked(NamedTuple):
    """A store of rankings."""

    path: Path
    images: int  # of the job
    total: int  # of the split or folder


def rank(job: RankJob, progress: Progress) -> Ranked:
    """Rank images and write a store; go on where an earlier call stopped.

    Whenever and however a process ends, at most the shards in work are lost.

    Raises:
        ValueError: a setting that doesn't fit, a store that was made with other settings, or a failure of a worker.
        FileNotFoundError: no weights or no images.
        OSError: the store can't be written, for instance for lack of room.
    """
    ranker = ShardRanker(job)
    source, store, total = job.source, ranker.store, len(ranker.split)
    with store.open(progress.say):
        ranker.configure(next((shard.provenance for shard in store.present.values()), None))
        settings = ranker.provenance
        if todo := store.missing(settings):
            progress.say(f"{settings.describe()}, in {settings.dtype}, {settings.batch} sequences at a time")
            done = total - sum(len(store.positions(index)) for index in todo)
            with progress.task(f"golden rankings of {source.name} {source.split}", total, done, "images") as show:
                for count in ranker.run(todo):
                    done += count
                    show(done)
            store.require_whole(todo)
    return Ranked(store.folder, total, len(source.images) * job.variants)


class ShardRanker:
    """A tower, on the job's device, that makes any shard of a job and writes it to the ``store``."""

    engine: GoldenEngine
    provenance: Provenance

    def __init__(self, job: RankJob) -> None:
        """Load the tower and encode the classes; refuse what can't be done."""
        self.job, self.tower = job, load_tower(job.model)
        self.tower.vit.to(job.device)
        source, config = job.source, job.config
        images = source.images.subset(turns(source.images.labels))
        if job.variants > 1 and images[0].image == images.variant(1)[0].image:
            raise ValueError(
                f"--variants {job.variants}: the images of {source.name!r} can't be drawn anew; leave it out"
            )
        self.split = images.variants(job.variants)[: job.limit]
        out = job.out or cache_store(self.tower.name, source.name, source.split, config)
        self.store = Store(out, RANKINGS, size=job.shard_size, total=len(self.split))
        self._text, self._scale = encode_classes(job, self.tower)
        self._weights = fingerprint(self.tower.vit)
        self.configure(None)

    def configure(self, stored: Provenance | None) -> None:
        """Make the engine in the job's precision and batch, else the store's, else the device's best."""
        job, source, dtype = self.job, self.job.source, self.job.precision
        if dtype == AUTO:
            dtype = stored.dtype if stored else precision_on(job.device, AUTO)
        batch = stored.batch if stored and job.batch is None else job.batch
        self.engine = GoldenEngine(
            self.tower.vit, job.config, text=self._text, scale=self._scale, precision=dtype, batch=batch
        )
        self.provenance = Provenance(
            **asdict(job.config),
            model=self.tower.name,
            weights=self._weights,
            dataset=source.name,
            revision=source.ranked_revision(job.config.score),
            split=source.split,
            dtype=dtype,
            batch=self.engine.suffix.batch,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )

    def run(self, todo: Sequence[int]) -> Iterator[int]:
        """Make shards, here or by workers; yield numbers of images that are done."""
        wanted, folder = self.provenance, self.store.folder.absolute()
        start = partial(_start, replace(self.job, precision=wanted.dtype, batch=wanted.batch, out=folder), wanted)
        return make_shards(self.job, todo, self.make, start=start, release=self.tower.vit.cpu)

    def make(self, indices: Sequence[int]) -> Iterator[int]:
        """Rank the images of shards and write them; yield the number of images of each call."""
        config = self.job.config
        each = 1 if config.approximate else len(windows(self.tower.vit.grid, config.window, config.stride))
        step = math.ceil(STEADY * self.engine.suffix.batch / each)
        with ThreadPoolExecutor(self._threads(), thread_name_prefix="images") as pool:
            for index in indices:
                positions = self.store.positions(index)
                groups = [positions[start : start + step] for start in range(0, len(positions), step)]
                following = pool.map(self._load, groups[0])
                image_ids: list[str] = []
                labels: list[int] = []
                importance: list[Tensor] = []
                for later in [*groups[1:], ()]:
                    loaded, following = following, pool.map(self._load, later)  # one group ahead of the engine
                    ids, truth, images = zip(*loaded, strict=True)
                    importance.append(self._importance(torch.stack(images), torch.tensor(truth)))
                    image_ids += ids
                    labels += truth
                    yield len(ids)
                exact = torch.cat(importance).numpy()
                rankings = Rankings.from_importance(exact, np.array(labels), image_ids, self.provenance)
                self.store.write(index, rankings.table(), self.provenance)

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


def encode_classes(job: RankJob, tower: Tower) -> tuple[Tensor | None, float]:
    """Encode the classes: (classes, D) unit features, None where the score needs none, and the factor on cosines.

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


def _start(job: RankJob, wanted: Provenance) -> Make:
    """Return what makes shards in a worker, which loads the tower anew."""
    ranker = ShardRanker(job)
    require_same(ranker.provenance.differences(wanted))
    return ranker.make
