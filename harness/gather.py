"""What a predictor is fitted to: ranked images with the tokens that enter the reduction point.

Tokens are computed once per image and kept on disk, in the user's cache.
"""

import bisect
import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.console import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.images import folder_images
from harness.golden.store import FOLDER_SPLIT, Provenance, Rankings, ranked_revision
from harness.sampling import batches, draw_ranked, seeded_order
from harness.towers import Tower
from zoo.files import PARTIAL, write_whole
from zoo.fit import RankedTokens
from zoo.vit import ReducedViT
from zoo.weights import blocks_fingerprint, cache_folder, fingerprint

HELD_OUT = 5  # one image in so many
_DTYPE = np.dtype("<f2")
_KEY = ("model", "weights", "dataset", "revision", "split", "block")
# What else decides the tokens' last bits: who decodes, scales and multiplies.
_PACKAGES = ("torch", "torchvision", "timm", "pillow")


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Ranked images of one tower with the tokens that enter the reduction point.

    Attributes:
        data: tokens and importance.
        image_ids: n ids, in the order of ``data``.
        rankings: where the importance is from.
        blocks: ``blocks_fingerprint`` of the tower.
    """

    data: RankedTokens
    image_ids: tuple[str, ...]
    rankings: tuple[Rankings, ...]
    blocks: str


def gather(
    tower: Tower,
    stores: Sequence[Path | Rankings],
    progress: Progress,
    *,
    shots: int | None = None,
    seed: int = 0,
    folders: Sequence[Path] = (),
) -> Gathered:
    """Find the tokens that enter the reduction point for all ranked images.

    Args:
        tower: the dense tower.
        stores: rankings, or the stores or files that hold them.
        progress: where to show how far things are.
        shots: images per class, of each store; None for all.
        seed: of the choice of shots.
        folders: where the images are that rankings of folders are of.

    Raises:
        ValueError: rankings of another tower or of other images, a class with too few of them, or
            a folder that isn't among ``folders``.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"--shots {shots}: expected a number from 1, or nothing for all images")
    weights = fingerprint(tower.vit)
    tokens, importance, every = [], [], []
    ids: list[str] = []
    chosen: list[NDArray[np.int64]] = []
    for rankings in map(read_rankings, stores):
        rankings.require(model=tower.name, weights=weights)
        dataset, split = _images(rankings.provenance, folders)
        if dataset is not None:
            revision = ranked_revision(dataset, rankings.provenance.score)
            rankings.require(revision=revision)
        facts = rankings.provenance
        part = entering(facts, split, rankings.image_ids, tower.vit, tower.preprocess, progress)
        rows = np.arange(len(part.image_ids))
        if shots is not None:
            if dataset is None:
                raise ValueError(
                    f"--shots {shots}: the images of folder {facts.dataset!r} have no classes; "
                    "leave it out, or rank fewer images"
                )
            rows = draw_ranked(dataset, part.image_ids, part.labels, shots, seed)
        chosen.append(rows + len(ids))
        ids += part.image_ids
        tokens.append(part.tokens)
        importance.append(rankings.of(part.image_ids))
        every.append(rankings)
    data = RankedTokens(
        tokens=Joined(tokens),
        importance=torch.from_numpy(np.concatenate(importance)),
        prefix=tower.vit.num_prefix_tokens,
        grid=tower.vit.patch_embed.grid_size,
    )
    kept = np.concatenate(chosen)
    return Gathered(
        data=data if shots is None else data.take(torch.from_numpy(kept)),
        image_ids=tuple(ids[i] for i in kept),
        rankings=tuple(every),
        blocks=blocks_fingerprint(tower.vit.state_dict()),
    )


def _images(facts: Provenance, folders: Sequence[Path]) -> tuple[Dataset | None, Split]:
    """Find the images that rankings are of; those of a folder have no dataset.

    Raises:
        ValueError: unknown dataset, or a folder that isn't among ``folders``.
    """
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


def read_rankings(store: Path | Rankings) -> Rankings:
    """Read rankings unless they are read already."""
    return store if isinstance(store, Rankings) else Rankings.read(store)


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


@dataclass(frozen=True, kw_only=True)
class Entering:
    """Tokens of a dataset's images, in the order of the dataset.

    Attributes:
        tokens: (n, prefix + N, D) float16, read from disk where they are asked for.
        image_ids: n ids.
        labels: (n,) int64, the dataset's.
    """

    tokens: Tensor
    image_ids: tuple[str, ...]
    labels: NDArray[np.int64]


def entering(
    facts: Provenance,
    split: Split,
    image_ids: Sequence[str],
    vit: ReducedViT,
    preprocess: Any,
    progress: Progress,
) -> Entering:
    """Return the tokens of some images of a split, from disk if they were computed before.

    Args:
        facts: of rankings of these images: tower, weights, dataset, revision, split and block are
            what the tokens go by.
        split: where the images are.
        image_ids: of which images; their order doesn't matter.
        vit: the dense tower.
        preprocess: from PIL image to (C, H, W).
        progress: where to show how far things are.

    Raises:
        ValueError: the split lacks an image, or a token is beyond float16.
        OSError: no room on the disk; nothing is left there.
    """
    images = _subset(split, set(image_ids), facts)
    key_facts: dict[str, Any] = {name: getattr(facts, name) for name in _KEY}
    key_facts["versions"] = {name: metadata.version(name) for name in _PACKAGES}
    text = json.dumps([key_facts, sorted(image_ids)], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = f"{facts.dataset}-{facts.split}-b{facts.block}-{key}"
    path = cache_folder() / "tokens" / f"{name}.npy"
    cells = vit.patch_embed.grid_size[0] * vit.patch_embed.grid_size[1]
    shape = (len(images), vit.num_prefix_tokens + cells, vit.embed_dim)
    tokens = _read(path, shape, images.image_ids)
    if tokens is None:
        title, done = f"tokens of {facts.dataset} {facts.split}", 0
        with _growing(path, shape) as file, progress.task(title, len(images)) as update:
            for examples, batch in batches(images, preprocess):
                file.write(_advance(vit, batch, facts.block).tobytes())
                done += len(examples)
                update(done)
        # Last, so that tokens without it count as not there.
        key_facts["image_ids"] = images.image_ids
        write_whole(path.with_suffix(".json"), json.dumps(key_facts).encode())
        tokens = _read(path, shape, images.image_ids)
        assert tokens is not None
    return Entering(tokens=tokens, image_ids=images.image_ids, labels=images.labels)


def _subset(split: Split, image_ids: set[str], facts: Provenance) -> Split:
    """Keep the images of these ids, in the order of the split."""
    if lost := sorted(image_ids - set(split.image_ids)):
        raise ValueError(
            f"{len(lost)} ranked images are not in {facts.dataset} {facts.split}, such as "
            f"{lost[0]!r}; make rankings with: {facts.command()}"
        )
    return split.subset([i for i, name in enumerate(split.image_ids) if name in image_ids])


def _read(path: Path, shape: tuple[int, ...], image_ids: tuple[str, ...]) -> Tensor | None:
    """Map tokens on disk into memory; None if they aren't there, or not whole."""
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        # Copy on write: torch wants memory that may be written to, and the file must stay.
        tokens = np.load(path, mmap_mode="c", allow_pickle=False)
    except (FileNotFoundError, EOFError, ValueError):
        return None
    stored = (tokens.shape, tokens.dtype, tuple(facts["image_ids"]))
    return torch.from_numpy(tokens) if stored == (shape, _DTYPE, image_ids) else None


@contextlib.contextmanager
def _growing(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Yield a file for the rows of an array; it gets its name if the body ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
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
    """Tokens of several sets as one, without bringing them into memory.

    Args:
        parts: (n_i, T, D) each.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """Note where each part starts."""
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        self.shape = (self.starts[-1], *parts[0].shape[1:])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Read the images ``rows`` (k,), in this order."""
        result = torch.empty((len(rows), *self.shape[1:]), dtype=self.parts[0].dtype)
        for place, row in enumerate(rows.tolist()):
            part = bisect.bisect_right(self.starts, row) - 1
            result[place] = self.parts[part][row - self.starts[part]]
        return result
