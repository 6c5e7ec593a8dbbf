"""Make golden rankings of images, shard by shard and resumable, in this process or on Ray."""

import contextlib
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.base.store import ShardFacts, claim, missing, shard_path, survey
from harness.base.terminal import Progress
from harness.base.workers import check_workers, made_by_workers, require_same
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.few_shot import turns
from harness.datasets.images import folder_images
from harness.golden import store
from harness.golden.store import FOLDER_SPLIT, Provenance, Shard, own_store, ranked_revision
from harness.models.towers import Tower, load_tower, text_classifier
from zoo.core.digests import fingerprint
from zoo.core.precision import AUTO, precision_on
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.windows import windows

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
    # More scores to rank by, in the same passes where the windows don't go by the score; each has a store of its own.
    scores: tuple[str, ...] = ()
    # Passes per image that window, stride and approximation are picked for; None: the config's.
    budget: float | None = None
    limit: int | None = None  # images; those of a smaller one are the first of a larger one's
    variants: int = 1  # times that each image is drawn anew; the second follow all the first
    # The store, or of several scores the folder of their stores; None for the user's cache, where `compare` looks.
    out: Path | None = None
    shard_size: int = SHARD_SIZE  # images per shard
    batch: int | None = None  # sequences per pass; None: the store's, else by the free memory
    dtype: str = "float32"  # or auto: that of the store, else the fastest of the device
    compiled: bool = False
    device: str = "cpu"
    workers: int | None = None  # Ray actors that share the work; None: this process alone

    def __post_init__(self) -> None:
        """Validate."""
        for score in self.scores:
            replace(self.config, score=score)
        for name in ("limit", "variants", "shard_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number from 1")
        if self.workers is not None:
            check_workers(self.workers, self.device)

    @property
    def every_score(self) -> tuple[str, ...]:
        """The config's score and the others, each once."""
        return tuple(dict.fromkeys((self.config.score, *self.scores)))

    def alone(self, score: str) -> "Job":
        """Return the job of one score, with the store that it has among all."""
        out = self.out if self.out is None or len(self.every_score) == 1 else self.out / score
        return replace(self, config=replace(self.config, score=score), scores=(), out=out)

    def command(self, out: Path | None) -> str:
        """Return the command line of this job."""
        flag, *flags = store.golden_flags(self.config)  # --score comes first
        parts = ["--model", self.model, *self.source.flags, flag, *self.every_score, *flags[1:]]
        parts += ["--full"] if self.limit is None else ["--limit", str(self.limit)]
        parts += ["--variants", str(self.variants)] if self.variants > 1 else []
        parts += ["--output", str(out)] if out is not None else []
        parts += ["--shard-size", str(self.shard_size)]
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

    Whenever and however a process ends, at most the shards in work are lost. Of a job of several scores all stores are
    written, see ``rank_by_scores``, and the first is returned.

    Raises:
        ValueError: a setting that doesn't fit, a store that was made with other settings, or a
            failure of a worker.
        FileNotFoundError: no weights or no images.
        OSError: the store can't be written, for instance for lack of room.
    """
    return rank_by_scores(job, progress)[job.config.score]


def rank_by_scores(job: Job, progress: Progress) -> dict[str, Ranked]:
    """Rank images by each score of a job; the stores are, byte for byte, those that ``rank`` makes of each alone.

    Windows are removed once for all scores. A greedy search goes by its score, so each takes passes of its own there,
    and so do scores whose stores were begun with different precisions or batches. Raises what ``rank`` does.
    """
    scores = job.every_score
    if len(scores) > 1 and job.config.greedy is not None:
        progress.say(f"--greedy {job.config.greedy} removes by its score: {', '.join(scores)} are ranked one by one")
        return {score: rank(job.alone(score), progress) for score in scores}
    maker = ShardMaker(job)
    with contextlib.ExitStack() as claims:
        stored: dict[str, dict[int, ShardFacts]] = {}
        for score, out in maker.stores.items():
            claims.enter_context(claim(out))
            stored[score], removed = survey(out, store.facts_of)
            for line in removed:
                progress.say(line)
        for together in _settled_alike(stored):
            _fill(maker, {score: stored[score] for score in together}, progress)
    done = {"images": len(maker.split), "total": len(job.source.images) * job.variants}
    return {score: Ranked(out, **done) for score, out in maker.stores.items()}


def _settled_alike(stored: Mapping[str, dict[int, ShardFacts]]) -> list[list[str]]:
    """Return scores apart whose shards have other precisions or batches; those without shards go with the first."""
    groups: dict[tuple[str, int | None], list[str]] = {}
    new = [score for score, shards in stored.items() if not shards]
    for score in (score for score in stored if score not in new):
        settings = next(iter(stored[score].values())).provenance
        groups.setdefault((settings.dtype, settings.batch), []).append(score)
    first, *others = groups.values() or [[]]
    return [[score for score in stored if score in (*first, *new)], *others]


def _fill(maker: "ShardMaker", stored: Mapping[str, dict[int, ShardFacts]], progress: Progress) -> None:
    """Make the shards that stores of some scores lack; ``stored`` are those that are there."""
    job, source, total = maker.job, maker.job.source, len(maker.split)
    maker.settle(next((shard.provenance for shards in stored.values() for shard in shards.values()), None))
    todo: dict[int, list[str]] = {}  # by shard, the scores that lack it
    for score, shards in stored.items():
        settings = maker.provenance(score)
        for index in missing(maker.stores[score], shards, settings, job.shard_size, total, "rankings"):
            todo.setdefault(index, []).append(score)
    todo = dict(sorted(todo.items()))
    begun = total - sum(len(maker.positions(index)) for index in todo)
    if todo:
        passes = maker.engine.passes
        first, *_ = scores = [score for score in stored if any(score in lacking for lacking in todo.values())]
        settings = maker.provenance(first)
        progress.say(
            f"{', '.join(scores)}{settings.described().removeprefix(first)}: {passes:.4g} passes per image in "
            f"{settings.dtype}, {settings.batch} at a time"
        )
        title = f"golden rankings of {source.name} {source.split}"
        here = (count for index, lacking in todo.items() for count in maker.make(index, lacking))
        with progress.task(title, total, begun, "images") as show:
            for count in here if job.workers is None else _made_by_ray(maker, todo):
                begun += count
                show(begun)
    for score in stored:
        out = maker.stores[score]
        if gone := [i for i, lacking in todo.items() if score in lacking and not shard_path(out, i).is_file()]:
            raise ValueError(f"{len(gone)} shards have vanished from {str(out)!r} meanwhile")


class ShardMaker:
    """A tower, on the job's device, that makes any shard of a job and writes it to the ``stores`` of its scores.

    The budget of ``job`` is spent, so that ``config`` says all; ``split`` has the stores' order.
    """

    engine: GoldenEngine

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
        alone = {score: self.job.alone(score) for score in self.job.every_score}
        self.stores = {
            score: one.out or own_store(self.tower.name, source.name, source.split, one.config)
            for score, one in alone.items()
        }
        self._text, self._scale = classes(self.job, self.tower)
        self._weights = fingerprint(self.tower.vit)
        self.settle(None)

    def settle(self, stored: Provenance | None) -> None:
        """Choose precision and batch: the job's, else the store's, else the device's best."""
        job = self.job
        precision = job.dtype
        if precision == AUTO:
            precision = stored.dtype if stored else precision_on(job.device, AUTO)
        batch = stored.batch if stored and job.batch is None else job.batch
        how: dict[str, Any] = {"precision": precision, "compiled": job.compiled, "batch": batch}
        vit, text, scale = self.tower.vit, self._text, self._scale
        self.engine = GoldenEngine(vit, job.config, text=text, scale=scale, **how)
        self._precision = precision

    def provenance(self, score: str) -> Provenance:
        """Return that of the shards of a score."""
        source, config = self.job.source, replace(self.job.config, score=score)
        revision = source.revision
        if source.dataset is not None:
            revision = ranked_revision(source.dataset, score)
        images = {"dataset": source.name, "revision": revision, "split": source.split}
        return Provenance(
            **{"model": self.tower.name, "weights": self._weights, **images, **asdict(config)},
            dtype=self._precision,
            batch=self.engine.suffix.batch,
            versions={name: version(name) for name in ("clip-patchrank", "timm", "torch")},
        )

    def positions(self, index: int) -> range:
        """Return the positions in ``split`` of a shard's images."""
        size = self.job.shard_size
        return range(index * size, min((index + 1) * size, len(self.split)))

    def make(self, index: int, scores: Sequence[str]) -> Iterator[int]:
        """Rank the images of a shard by some scores and write it; yield the number of images of each call.

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
        importance: dict[str, list[Tensor]] = {score: [] for score in scores}
        for group in ahead(groups, self._load, self._threads()):
            ids, truth, images = zip(*group, strict=True)
            for score, values in self._importance(torch.stack(images), torch.tensor(truth), scores).items():
                importance[score].append(values)
            image_ids += ids
            labels += truth
            yield len(group)
        facts: dict[str, Any] = {"image_ids": image_ids, "first": positions.start, "size": self.job.shard_size}
        for score, parts in importance.items():
            exact, own = torch.cat(parts).numpy(), self.provenance(score)
            shard = Shard.from_importance(exact, np.array(labels), provenance=own, **facts)
            store.write_shard(self.stores[score], index, shard, self._command())

    def _command(self) -> str:
        """Return the command that goes on from here."""
        several = len(self.job.every_score) > 1
        return self.job.command(self.job.out if several else self.stores[self.job.config.score])

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

    The features are None where no score needs classes.

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


def _make_by(
    job: Job, stores: dict[str, Path], wanted: dict[str, Provenance], todo: Mapping[int, Sequence[str]]
) -> Callable[[int], int]:
    """Return what makes a shard in a worker, which loads the tower anew, and counts its images."""
    maker = ShardMaker(job)
    maker.stores = stores
    require_same([line for score, own in wanted.items() for line in maker.provenance(score).differences(own)])
    return lambda index: sum(maker.make(index, todo[index]))


def _made_by_ray(maker: ShardMaker, todo: Mapping[int, Sequence[str]]) -> Iterator[int]:
    """Make shards by Ray's actors, of each number by some scores; yield the number of images of each that is done."""
    job, wanted = maker.job, {score: maker.provenance(score) for score in maker.stores}
    maker.tower.vit.cpu()  # the workers need the room
    torch.cuda.empty_cache()
    assert job.workers is not None
    stores = {score: out.absolute() for score, out in maker.stores.items()}
    first = wanted[job.config.score]
    settled = replace(job, dtype=first.dtype, batch=first.batch)
    start = partial(_make_by, settled, stores, wanted, dict(todo))
    return made_by_workers(start, maker.stores[job.config.score], list(todo), workers=job.workers, device=job.device)
