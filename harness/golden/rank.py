"""Make golden rankings of images, shard by shard and resumable, in this process or on Ray."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.base.store import Store
from harness.base.terminal import Progress
from harness.base.workers import Make, ShardJob, make_shards, require_same
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.few_shot import turns
from harness.datasets.images import folder_images
from harness.golden.store import FOLDER_SPLIT, RANKINGS, Provenance, Rankings, own_store, ranked_revision
from harness.models.towers import Tower, load_tower, text_classifier
from zoo.core.files import fingerprint
from zoo.core.messages import AUTO, precision_on
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.suffix import windows

STEADY = 16  # batches per call of the engine: what a last, smaller one costs stays below 1/32
MOST_THREADS = 8  # that load images beside a GPU


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to rank: a dataset's split, or a folder, which has no dataset and the split ``all``."""

    name: str
    revision: str
    split: str
    images: Split
    dataset: Dataset | None
    notes: tuple[str, ...] = ()  # what is said of a folder's files; of a dataset's it is said already

    @classmethod
    def of(cls, dataset: Dataset, split: SplitName) -> "Source":
        """Take a split of a dataset."""
        images = dataset.split(split)
        return cls(name=dataset.name, revision=dataset.revision, split=split, images=images, dataset=dataset)

    @classmethod
    def folder(cls, path: Path) -> "Source":
        """Take all images below a folder."""
        found = folder_images(path)
        return cls(
            name=found.name,
            revision=found.revision,
            split=FOLDER_SPLIT,
            images=found.split,
            dataset=None,
            notes=found.notes,
        )


@dataclass(frozen=True, kw_only=True)
class RankJob(ShardJob):
    """What to rank, and how."""

    LEAST: ClassVar[Mapping[str, int]] = {**ShardJob.LEAST, "limit": 1, "variants": 1}

    model: str  # dense tower, see `harness.models.towers.load_tower`
    source: Source
    config: GoldenConfig = field(default_factory=GoldenConfig)
    # More scores to rank by, in the same passes where the windows don't go by the score; each has a store of its own.
    scores: tuple[str, ...] = ()
    limit: int | None = None  # images; those of a smaller one are the first of a larger one's
    variants: int = 1  # times that each image is drawn anew; the second follow all the first
    # The store, or of several scores the folder of their stores; None for the user's cache, where `compare` looks.
    out: Path | None = None
    shard_size: int = 64  # images per shard
    batch: int | None = None  # sequences per pass; None: the store's, else by the free memory
    dtype: str = "float32"  # or auto: that of the store, else the fastest of the device

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        if not len(self.source.images):
            raise ValueError(f"{self.source.name!r} has no {self.source.split} images to rank; name another --split")
        for score in self.scores:
            replace(self.config, score=score)

    @property
    def every_score(self) -> tuple[str, ...]:
        """The config's score and the others, each once."""
        return tuple(dict.fromkeys((self.config.score, *self.scores)))

    def alone(self, score: str) -> "RankJob":
        """Return the job of one score, with the store that it has among all."""
        out = self.out if self.out is None or len(self.every_score) == 1 else self.out / score
        return replace(self, config=replace(self.config, score=score), scores=(), out=out)


class Ranked(NamedTuple):
    """A store with the images of a job, and how many images the split or folder has in all."""

    path: Path
    images: int
    total: int


def rank(job: RankJob, progress: Progress) -> Ranked:
    """Rank images and write a store, of several scores the first; go on where an earlier call stopped.

    Whenever and however a process ends, at most the shards in work are lost.

    Raises:
        ValueError: a setting that doesn't fit, a store that was made with other settings, or a
            failure of a worker.
        FileNotFoundError: no weights or no images.
        OSError: the store can't be written, for instance for lack of room.
    """
    return rank_by_scores(job, progress)[job.config.score]


def rank_by_scores(job: RankJob, progress: Progress) -> dict[str, Ranked]:
    """Rank images by each score of a job; the stores are, byte for byte, those that ``rank`` makes of each alone.

    Windows are removed once for all scores. A greedy search goes by its score, so each takes passes of its own there.
    Raises what ``rank`` does.
    """
    if len(job.every_score) > 1 and job.config.greedy is not None:
        names = ", ".join(job.every_score)
        progress.say(f"--greedy {job.config.greedy} removes by its score: {names} are ranked one by one")
        return {score: rank(job.alone(score), progress) for score in job.every_score}
    ranker = ShardRanker(job)
    with contextlib.ExitStack() as claims:
        for store in ranker.stores.values():
            claims.enter_context(store.open(progress.say))
        stored = (shard.provenance for store in ranker.stores.values() for shard in store.present.values())
        _fill(ranker, next(stored, None), progress)
    images, total = len(ranker.split), len(job.source.images) * job.variants
    return {score: Ranked(store.folder, images, total) for score, store in ranker.stores.items()}


def _fill(ranker: "ShardRanker", stored: Provenance | None, progress: Progress) -> None:
    """Make the shards that stores lack, in the precision and batch of what is ``stored``."""
    source, stores = ranker.job.source, ranker.stores
    ranker.settle(stored)
    todo: dict[int, list[str]] = {}  # by shard, the scores that lack it
    for score, store in stores.items():
        for index in store.missing(ranker.provenance(score)):
            todo.setdefault(index, []).append(score)
    if not todo:
        return
    todo = dict(sorted(todo.items()))
    lacking = [score for score in stores if any(score in each for each in todo.values())]
    settings, total = ranker.provenance(lacking[0]), len(ranker.split)
    progress.say(
        f"{', '.join(lacking)}{settings.describe().removeprefix(lacking[0])}, in {settings.dtype}, "
        f"{settings.batch} sequences at a time"
    )
    begun = total - sum(len(stores[lacking[0]].positions(index)) for index in todo)
    with progress.task(f"golden rankings of {source.name} {source.split}", total, begun, "images") as show:
        for count in ranker.run(todo):
            begun += count
            show(begun)
    for score, store in stores.items():
        store.require_whole([index for index, each in todo.items() if score in each])


class ShardRanker:
    """A tower, on the job's device, that makes any shard of a job and writes it to the ``stores`` of its scores."""

    engine: GoldenEngine

    def __init__(self, job: RankJob) -> None:
        """Load the tower and encode the classes; refuse what can't be done."""
        self.tower = load_tower(job.model)
        self.tower.vit.to(job.device)
        self.job = job
        source = job.source
        images = source.images.subset(turns(source.images.labels))
        if job.variants > 1 and images[0].image == images.variant(1)[0].image:
            raise ValueError(
                f"--variants {job.variants}: the images of {source.name!r} can't be drawn anew; leave it out"
            )
        self.split = images.variants(job.variants)[: job.limit]
        self.stores: dict[str, Store[Provenance]] = {}
        for score in self.job.every_score:
            one = self.job.alone(score)
            out = one.out or own_store(self.tower.name, source.name, source.split, one.config)
            self.stores[score] = Store(out, RANKINGS, size=job.shard_size, total=len(self.split))
        self._text, self._scale = encode_classes(self.job, self.tower)
        self._weights = fingerprint(self.tower.vit)
        self.settle(None)

    def settle(self, stored: Provenance | None) -> None:
        """Choose precision and batch: the job's, else the store's, else the device's best."""
        job = self.job
        precision = job.dtype
        if precision == AUTO:
            precision = stored.dtype if stored else precision_on(job.device, AUTO)
        batch = stored.batch if stored and job.batch is None else job.batch
        how: dict[str, Any] = {"precision": precision, "batch": batch}
        vit, text, scale = self.tower.vit, self._text, self._scale
        self.engine = GoldenEngine(vit, job.config, text=text, scale=scale, **how)
        self._precision = precision

    def provenance(self, score: str) -> Provenance:
        """Return that of the shards of a score."""
        source, config = self.job.source, replace(self.job.config, score=score)
        revision = source.revision if source.dataset is None else ranked_revision(source.dataset, score)
        return Provenance(
            **asdict(config),
            model=self.tower.name,
            weights=self._weights,
            dataset=source.name,
            revision=revision,
            split=source.split,
            dtype=self._precision,
            batch=self.engine.suffix.batch,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )

    def run(self, todo: Mapping[int, Sequence[str]]) -> Iterator[int]:
        """Make shards, each by the scores that lack it, here or by workers; yield numbers of images that are done."""
        wanted = {score: self.provenance(score) for score in self.stores}
        first = wanted[self.job.config.score]
        folders = {score: store.folder.absolute() for score, store in self.stores.items()}
        settled = replace(self.job, dtype=first.dtype, batch=first.batch)
        start = partial(_start, settled, folders, wanted, dict(todo))
        make = partial(self.make, todo)
        return make_shards(self.job, list(todo), make, start=start, release=self.tower.vit.cpu)

    def make(self, todo: Mapping[int, Sequence[str]], indices: Sequence[int]) -> Iterator[int]:
        """Rank the images of shards and write them; yield the number of images of each call."""
        config = self.job.config
        each = 1 if config.approximate else len(windows(self.tower.vit.grid, config.window, config.stride))
        step = math.ceil(STEADY * self.engine.suffix.batch / each)
        with ThreadPoolExecutor(self._threads(), thread_name_prefix="images") as pool:
            for index in indices:
                positions = self.stores[config.score].positions(index)
                groups = [positions[start : start + step] for start in range(0, len(positions), step)]
                following = pool.map(self._load, groups[0])
                image_ids: list[str] = []
                labels: list[int] = []
                importance: dict[str, list[Tensor]] = {score: [] for score in todo[index]}
                for later in [*groups[1:], ()]:
                    loaded, following = following, pool.map(self._load, later)  # one group ahead of the engine
                    ids, truth, images = zip(*loaded, strict=True)
                    found = self._importance(torch.stack(images), torch.tensor(truth), todo[index])
                    for score, values in found.items():
                        importance[score].append(values)
                    image_ids += ids
                    labels += truth
                    yield len(ids)
                for score, parts in importance.items():
                    exact, own = torch.cat(parts).numpy(), self.provenance(score)
                    rankings = Rankings.from_importance(exact, np.array(labels), image_ids, own)
                    self.stores[score].write(index, rankings.table(), own)

    def _load(self, position: int) -> tuple[str, int, Tensor]:
        example = self.split[position]
        return example.image_id, example.label, self.tower.preprocess(example.image)

    def _threads(self) -> int:
        """Return how many threads load images: one beside a CPU that computes, else several."""
        if self.job.device.startswith("cpu"):
            return 1
        return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // (self.job.workers or 1)))

    def _importance(self, images: Tensor, labels: Tensor, scores: Sequence[str]) -> dict[str, Tensor]:
        try:
            return self.engine.importances(images, scores, labels)
        except torch.OutOfMemoryError as error:
            batch = self.engine.suffix.batch
            raise ValueError(
                f"out of memory on {self.engine.suffix.device} with --batch {batch}: try --batch {max(1, batch // 2)}"
            ) from error


def encode_classes(job: RankJob, tower: Tower) -> tuple[Tensor | None, float]:
    """Encode the classes: (classes, D) unit features, None where no score needs them, and the factor on cosines.

    Raises:
        ValueError: there are no classes or no text tower, or it lacks words for a class.
    """
    needy, dataset = [score for score in job.every_score if score != "preservation"], job.source.dataset
    if not needy:
        return None, 1.0
    score = needy[0]
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


def _start(
    job: RankJob, folders: Mapping[str, Path], wanted: Mapping[str, Provenance], todo: Mapping[int, Sequence[str]]
) -> Make:
    """Return what makes shards in a worker, which loads the tower anew."""
    ranker = ShardRanker(job)
    for score, folder in folders.items():
        ranker.stores[score].folder = folder
    require_same([line for score, own in wanted.items() for line in ranker.provenance(score).differences(own)])
    return partial(ranker.make, todo)
