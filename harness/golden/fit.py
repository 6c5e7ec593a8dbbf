"""Predictors' fits to ranked images; the tokens are computed once and kept in the user's cache."""

import bisect
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import git_commit
from harness.base.lines import claim_file
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.few_shot import batches, draw_ranked, seeded_order
from harness.datasets.images import folder_images
from harness.golden.store import FOLDER_SPLIT, Provenance, Rankings, ranked_revision
from harness.models.towers import Tower, load_tower
from harness.records.statistics import kendall_tau
from zoo.core.files import blocks_fingerprint, cache_file, cache_folder, digest, fingerprint, partial_of
from zoo.learning.fit import FitConfig, RankedTokens, fit_predictor, predict, save_predictor
from zoo.loading.learned_files import predictor_name
from zoo.towers.vit import ReducedViT

HELD_OUT = 5  # one image in so many
_DTYPE = np.dtype("<f2")
_KEY = ("model", "weights", "dataset", "revision", "split", "block")
# What else decides the tokens' last bits: who decodes, scales and multiplies.
_PACKAGES = ("torch", "torchvision", "timm", "pillow")


class Gathered(NamedTuple):
    """Ranked images of one tower with the tokens that enter the reduction point."""

    data: RankedTokens
    image_ids: tuple[str, ...]  # in the order of `data`


def gather(
    tower: Tower,
    every: Sequence[Rankings],
    progress: Progress,
    *,
    shots: int | None = None,
    seed: int = 0,
    folders: Sequence[Path] = (),
) -> Gathered:
    """Find the tokens that enter the reduction point of a dense tower for all ranked images.

    ``shots`` are images per class of each set of rankings, chosen by ``seed``; None for all. ``folders`` are where the
    images are that rankings of folders are of.

    Raises:
        ValueError: rankings of another tower or of other images, a class with too few of them, or
            a folder that isn't among ``folders``.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"--shots {shots}: expected a number from 1, or nothing for all images")
    weights = fingerprint(tower.vit)
    tokens, importance, chosen = [], [], []
    ids: list[str] = []
    for one in every:
        one.require(model=tower.name, weights=weights)
        facts = one.provenance
        dataset, split = _images(facts, folders)
        if dataset is not None:
            one.require(revision=ranked_revision(dataset, facts.score))
        part, images = entering(facts, split, one.image_ids, tower, progress)
        rows = np.arange(len(images))
        if shots is not None:
            if dataset is None:
                raise ValueError(
                    f"--shots {shots}: the images of folder {facts.dataset!r} have no classes; "
                    "leave it out, or rank fewer images"
                )
            rows = draw_ranked(dataset, images.image_ids, images.labels, shots, seed)
        chosen.append(rows + len(ids))
        ids += images.image_ids
        tokens.append(part)
        importance.append(one.of(images.image_ids))
    kept, golden, vit = np.concatenate(chosen), np.concatenate(importance), tower.vit
    joined, exact = Joined(tokens, kept), torch.from_numpy(golden[kept])
    data = RankedTokens(tokens=joined, importance=exact, prefix=vit.prefix_count, grid=vit.grid)
    return Gathered(data, tuple(ids[i] for i in kept))


def _images(facts: Provenance, folders: Sequence[Path]) -> tuple[Dataset | None, Split]:
    """Find the images that rankings are of; those of a folder have no dataset."""
    if facts.split != FOLDER_SPLIT:
        dataset = get_dataset(facts.dataset)
        return dataset, dataset.split(cast(SplitName, facts.split))
    others = []
    for path in folders:
        images = folder_images(path)
        if (images.name, images.revision) == (facts.dataset, facts.revision):
            return None, images.split
        others.append(f"{str(path)!r} is of revision {images.revision}")
    there = f" ({'; '.join(others)})" if others else ""
    raise ValueError(
        f"these rankings are of the folder {facts.dataset!r}, revision {facts.revision}, which is "
        f"not at hand{there}; say where it is with --images FOLDER"
    )


def held_out(every: Sequence[Rankings]) -> list[list[Rankings]]:
    """Split the ranked images of each store: those to learn from, and every fifth to stop by.

    Which go where depends on the images alone, not on their order.

    Raises:
        ValueError: a store of fewer than five images.
    """
    parts: list[list[Rankings]] = [[], []]
    for rankings in every:
        names = sorted(rankings.image_ids)
        if len(names) < HELD_OUT:
            raise ValueError(
                f"{len(names)} ranked images of {rankings.provenance.dataset!r} are too few to "
                f"hold one in {HELD_OUT} out for early stopping; rank more, or give --val"
            )
        order = seeded_order(len(names), 0)
        stop = {names[i] for i in order[: len(names) // HELD_OUT]}
        parts[0].append(rankings.take([name for name in rankings.image_ids if name not in stop]))
        parts[1].append(rankings.take([name for name in rankings.image_ids if name in stop]))
    return parts


def entering(
    facts: Provenance, split: Split, image_ids: Sequence[str], tower: Tower, progress: Progress
) -> tuple[Tensor, Split]:
    """Return the tokens of some images of a split, (n, prefix + N, D) float16, and these images in the split's order.

    They are read from disk where they are asked for, and kept in the user's cache by tower, weights, dataset, revision,
    split and block of ``facts``; the order of ``image_ids`` doesn't matter.

    Raises:
        ValueError: the split lacks an image, or a token is beyond float16.
        OSError: no room on the disk; nothing is left there.
    """
    images, vit = _subset(split, set(image_ids), facts), tower.vit
    shape = (len(images), vit.prefix_count + vit.grid[0] * vit.grid[1], vit.embed_dim)
    known = [[getattr(facts, name) for name in _KEY], [metadata.version(name) for name in _PACKAGES]]
    name = f"{facts.dataset}-{facts.split}-b{facts.block}-{digest([*known, images.image_ids])}"
    path = cache_file("tokens", f"{name}.npy")
    tokens = _read(path, shape)
    if tokens is None:
        title, done = f"tokens of {facts.dataset} {facts.split}", 0
        with _growing(path, shape) as file, progress.task(title, len(images)) as update:
            for examples, batch in batches(images, tower.preprocess):
                file.write(_advance(vit, batch, facts.block).tobytes())
                done += len(examples)
                update(done)
        tokens = _read(path, shape)
        assert tokens is not None
    return tokens, images


def _subset(split: Split, image_ids: set[str], facts: Provenance) -> Split:
    """Keep the images of these ids, variants among them, in the order of the split."""
    known = set(split.image_ids)
    drawn = (name.rpartition("/") for name in image_ids - known)
    split = split.variants(1 + max((int(v) for name, _, v in drawn if name in known and v.isdecimal()), default=0))
    if lost := sorted(image_ids - set(split.image_ids)):
        raise ValueError(
            f"{len(lost)} ranked images are not in {facts.dataset} {facts.split}, such as "
            f"{lost[0]!r}; make rankings with: {facts.command()}"
        )
    return split.subset([i for i, name in enumerate(split.image_ids) if name in image_ids])


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Map tokens on disk into memory; None if they aren't there, or not whole."""
    try:
        # Copy on write: torch wants memory that may be written to, and the file must stay.
        tokens = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    return torch.from_numpy(tokens) if (tokens.shape, tokens.dtype) == (shape, _DTYPE) else None


@contextlib.contextmanager
def _growing(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Yield a file for the rows of an array; it gets its name if the body ends well."""
    partial = partial_of(path)
    header = {"descr": _DTYPE.str, "fortran_order": False, "shape": shape}
    try:
        # Written, not mapped: a full disk is an error here, and the end of the process there.
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@torch.inference_mode()
def _advance(vit: ReducedViT, images: Tensor, block: int) -> NDArray[np.float16]:
    tokens, _ = vit.advance(vit.embed(images), stop=block)
    half: NDArray[np.float16] = tokens.x.half().numpy()
    if not np.isfinite(half).all():
        raise ValueError(f"the tokens that enter block {block} are beyond float16's 65504, or NaN")
    return half


class Joined:
    """The images ``kept`` of the tokens of several sets, (n_i, T, D) each, without bringing them into memory."""

    def __init__(self, parts: Sequence[Tensor], kept: NDArray[np.int64]) -> None:
        """Note where each part starts."""
        self.parts, self.kept = parts, kept
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()
        self.shape = (len(kept), *parts[0].shape[1:])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Read the images ``rows`` (k,), in this order."""
        places = [(bisect.bisect_right(self.starts, row) - 1, row) for row in self.kept[rows.numpy()].tolist()]
        return torch.stack([self.parts[part][row - self.starts[part]] for part, row in places])


def fit(
    model: str,
    train: Sequence[Path | Rankings],
    val: Sequence[Path | Rankings],
    config: FitConfig,
    *,
    out: Path | None,
    progress: Progress,
    shots: int | None = None,
    block: int | None = None,
    folders: Sequence[Path] = (),
) -> tuple[Path, float]:
    """Fit a predictor and write it where ``pretrained=True`` finds it; a fit that was stopped goes on where it was.

    ``train`` and ``val`` are rankings, or stores or files of them; without ``val`` a fifth of each of ``train`` is for
    early stopping. `gather` says what ``shots`` (of ``train`` alone) and ``folders`` are; ``block`` is
    what the rankings must be of, and ``out`` None is for the user's cache.

    Returns:
        The path of the result, and the mean Kendall tau of predicted and golden on ``val``.

    Raises:
        ValueError: rankings of several reduction points or scores, images that are in both, or
            what `gather` refuses.
    """
    tower = load_tower(model)
    rankings = [[one if isinstance(one, Rankings) else Rankings.read(one) for one in part] for part in (train, val)]
    if not val:
        rankings = held_out(rankings[0])
        progress.say(f"held out for early stopping: {sum(map(len, rankings[1]))} ranked images")
    facts = [asdict(one.provenance) for part in rankings for one in part]
    agreed = _agree(facts, block=block)
    ids = [{name for one in part for name in one.image_ids} for part in rankings]
    if both := ids[0] & ids[1]:
        raise ValueError(f"{len(both)} images are in the rankings to learn from and in those for early stopping")
    result = out or cache_folder() / "predictors" / predictor_name(tower.arch, tower.tag, agreed)
    with claim_file(result if out is None else None):  # who names a file claims it
        learn = gather(tower, rankings[0], progress, shots=shots, seed=config.seed, folders=folders)
        stop = gather(tower, rankings[1], progress, folders=folders)
        blocks = blocks_fingerprint(tower.vit.state_dict(), tower.vit.blocks_prefix)
        # By all that decides the result.
        key = digest([asdict(config), facts, [learn.image_ids, stop.image_ids], blocks, torch.__version__])
        checkpoint = cache_file("fits", f"{key}.pt")
        with progress.task(f"epochs of {config.arch}", config.epochs) as update:
            predictor = fit_predictor(
                learn.data, stop.data, config, on_epoch=lambda epoch, *_: update(epoch + 1), checkpoint=checkpoint
            )
        counts = [{"images": len(one)} for part in rankings for one in part]
        made_from = [fact | count for fact, count in zip(facts, counts, strict=True)]
        provenance = {"rankings": made_from, "images": len(learn.data), "shots": shots, "commit": git_commit()}
        made: dict[str, Any] = {"config": config, "provenance": provenance, "weights": blocks}
        save_predictor(predictor, result, model=tower.arch, tag=tower.tag, block=agreed, **made)
        checkpoint.unlink(missing_ok=True)
        taus = kendall_tau(predict(predictor, stop.data).numpy(), stop.data.importance.numpy())
        return result, float(np.nanmean(taus))


def _agree(facts: list[dict[str, Any]], **asked: Any) -> int:
    """Return the one reduction point of all rankings; they must have one score, too."""
    for field, what in (("block", "reduction points"), ("score", "scores")):
        values = sorted({fact[field] for fact in facts})
        if len(values) != 1:
            raise ValueError(f"rankings of several {what}: {values}; one at a time")
        if asked.get(field) not in (None, values[0]):
            raise ValueError(f"--{field} {asked[field]}: these rankings are of {field} {values[0]}; leave it out")
    return int(facts[0]["block"])
