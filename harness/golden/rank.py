"""Make golden rankings of a dataset's images, resumable."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harness.datasets.base import Dataset, SplitName
from harness.evaluate import subset, text_classifier
from harness.golden.store import Provenance, Rankings
from harness.plan import DTYPES
from harness.progress import Progress
from harness.variants import load_tower, split_name
from zoo.clip import create_clip
from zoo.golden import GoldenConfig, golden_importance
from zoo.weights import cache_folder, fingerprint

PART = 16


def rank(
    model: str,
    dataset: Dataset,
    split_of: SplitName,
    config: GoldenConfig,
    *,
    limit: int | None,
    dtype: str,
    device: str,
    out: Path | None,
    progress: Progress,
) -> Path:
    """Rank the images of a split and write them as Parquet.

    What is done is kept in parts of 16 images beside the result; a second call goes on there.

    Args:
        model: dense timm name.
        dataset: the dataset.
        split_of: its split.
        config: score, block, windows.
        limit: images, see ``evaluate.subset``; None for all.
        dtype: name in ``plan.DTYPES``.
        device: torch device.
        out: result; None for the user's cache, where ``compare`` finds it.
        progress: where to show how far things are.

    Returns:
        Path of the result.

    Raises:
        ValueError: a name or setting that doesn't fit, or a score that needs classes named.
    """
    arch, tag = split_name(model)
    dense, preprocess = load_tower(arch, tag)
    provenance = Provenance(
        model=f"{arch}.{tag}",
        weights=fingerprint(dense),
        dataset=dataset.name,
        revision=dataset.revision,
        split=split_of,
        score=config.score,
        block=config.block,
        window=config.window,
        stride=config.stride,
        dtype=dtype,
    )
    split = subset(dataset.split(split_of), limit)
    text, scale = None, 1.0
    if config.score != "preservation":
        parts = create_clip(f"{arch}.{tag}")
        scale = parts.model.logit_scale.exp().item()
        text, left_out = text_classifier(parts, dataset)
        if left_out:
            raise ValueError(
                f"score={config.score!r} needs every class named, but {len(left_out)} of "
                f"{dataset.name} have words the text tower never saw: {', '.join(left_out[:5])}; "
                "use --score preservation"
            )
        text = text.to(device)
    dense.to(device, DTYPES[dtype])
    facts = json.dumps(asdict(provenance), sort_keys=True)
    folder = cache_folder() / "parts" / hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ids: list[str] = []
    rows = []
    with progress.task(f"golden rankings of {dataset.name} {split_of}", len(split)) as update:
        for start in range(0, len(split), PART):
            examples = [split[i] for i in range(start, min(start + PART, len(split)))]
            part_ids = [example.image_id for example in examples]
            key = hashlib.sha256("\n".join(part_ids).encode()).hexdigest()[:16]
            path = folder / f"{key}.npy"
            if not path.is_file():
                images = torch.stack([preprocess(example.image) for example in examples])
                importance = golden_importance(
                    dense,
                    images.to(device, DTYPES[dtype]),
                    config,
                    text=text,
                    scale=scale,
                    labels=torch.tensor([example.label for example in examples], device=device),
                )
                partial = path.with_suffix(".partial")
                with partial.open("wb") as file:
                    np.save(file, importance.cpu().numpy())
                partial.replace(path)
            rows.append(np.load(path, allow_pickle=False))
            ids += part_ids
            update(start + len(examples))
    role = "golden" if config.score == "preservation" else f"golden_{config.score}"
    name = f"{role}-{arch}.{tag}-{dataset.name}-{split_of}.parquet"
    result = out or cache_folder() / "rankings" / name
    importance16 = _to_half(np.concatenate(rows))
    Rankings(image_ids=tuple(ids), importance=importance16, provenance=provenance).write(result)
    return result


def _to_half(importance: NDArray[np.float32]) -> NDArray[np.float16]:
    """Store importance as float16 of its distance to the image's least, which keeps the order.

    Cosines crowd just below 1, where float16 is coarse; their differences don't.
    """
    lifted = importance - importance.min(axis=1, keepdims=True)
    return np.asarray(lifted, dtype=np.float16)
