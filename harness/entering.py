"""The tokens that enter a reduction point, computed once per image and kept on disk."""

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
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Split
from harness.golden.provenance import Provenance
from harness.progress import Progress
from harness.sampling import batches
from zoo.files import PARTIAL, write_whole
from zoo.vit import ReducedViT
from zoo.weights import cache_folder

_DTYPE = np.dtype("<f2")
_GOES_BY = ("model", "weights", "dataset", "revision", "split", "block")
# What else decides the tokens' last bits: who decodes, scales and multiplies.
_PACKAGES = ("torch", "torchvision", "timm", "pillow")


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
        image_ids: which are wanted; their order doesn't matter.
        vit: the dense tower.
        preprocess: from PIL image to (C, H, W).
        progress: where to show how far things are.

    Raises:
        ValueError: the split lacks an image, or a token is beyond float16.
        OSError: no room on the disk; nothing is left there.
    """
    wanted = _wanted(split, set(image_ids), facts)
    told: dict[str, Any] = {name: getattr(facts, name) for name in _GOES_BY}
    told["versions"] = {name: metadata.version(name) for name in _PACKAGES}
    text = json.dumps([told, sorted(image_ids)], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = f"{facts.dataset}-{facts.split}-b{facts.block}-{key}"
    path = cache_folder() / "tokens" / f"{name}.npy"
    cells = vit.patch_embed.grid_size[0] * vit.patch_embed.grid_size[1]
    shape = (len(wanted), vit.num_prefix_tokens + cells, vit.embed_dim)
    tokens = _read(path, shape, wanted.image_ids)
    if tokens is None:
        title, done = f"tokens of {facts.dataset} {facts.split}", 0
        with _growing(path, shape) as file, progress.task(title, len(wanted)) as update:
            for examples, images in batches(wanted, preprocess):
                file.write(_advance(vit, images, facts.block).tobytes())
                done += len(examples)
                update(done)
        # Last, so that tokens without it count as not there.
        told |= {"image_ids": wanted.image_ids}
        write_whole(path.with_suffix(".json"), json.dumps(told).encode())
        tokens = _read(path, shape, wanted.image_ids)
        assert tokens is not None
    return Entering(tokens=tokens, image_ids=wanted.image_ids, labels=wanted.labels)


def _wanted(split: Split, image_ids: set[str], facts: Provenance) -> Split:
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
    found = (tokens.shape, tokens.dtype, tuple(facts["image_ids"]))
    return torch.from_numpy(tokens) if found == (shape, _DTYPE, image_ids) else None


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
