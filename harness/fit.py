"""Fit a model's predictor from golden rankings."""

from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from harness.agreement import kendall_tau
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.evaluate import batches
from harness.golden.provenance import FOLDER_SPLIT
from harness.golden.store import Rankings, ranked
from harness.progress import Progress
from harness.towers import load_tower, split_name
from zoo.fit import FitConfig, RankedTokens, fit_predictor, save_predictor
from zoo.predictor import Predictor
from zoo.weights import cache_folder, fingerprint, predictor_name


def fit(
    model: str,
    train: list[Path],
    val: list[Path],
    config: FitConfig,
    *,
    out: Path | None,
    progress: Progress,
) -> tuple[Path, float]:
    """Fit a predictor and write it where ``pretrained=True`` finds it.

    Args:
        model: dense timm name.
        train: stores or files of rankings to learn from.
        val: the same for early stopping; of other images.
        config: recipe.
        out: result; None for the user's cache.
        progress: where to show how far things are.

    Returns:
        Path of the result, and the mean Kendall tau of predicted and golden on ``val``.

    Raises:
        ValueError: rankings of another tower, of several reduction points or scores,
            or images that are in both.
    """
    arch, tag = split_name(model)
    data, facts, ids = [], [], []
    for files in (train, val):
        tokens, found = gather(f"{arch}.{tag}", files, progress)
        data.append(tokens)
        facts += [asdict(rankings.provenance) for rankings in found]
        ids.append({image_id for rankings in found for image_id in rankings.image_ids})
    for field, what in (("block", "reduction points"), ("score", "scores")):
        values = sorted({fact[field] for fact in facts})
        if len(values) != 1:
            raise ValueError(f"rankings of several {what}: {values}; one at a time")
    if both := ids[0] & ids[1]:
        raise ValueError(
            f"{len(both)} images are in the rankings to learn from and in those for early stopping"
        )
    with progress.task(f"predictor {config.arch}", config.epochs) as update:
        predictor = fit_predictor(
            data[0], data[1], config, on_epoch=lambda epoch, *_: update(epoch + 1)
        )
    result = out or cache_folder() / "predictors" / predictor_name(arch, tag)
    save_predictor(
        predictor,
        result,
        model=arch,
        tag=tag,
        block=facts[0]["block"],
        config=config,
        provenance={"rankings": facts, "images": len(data[0].importance)},
    )
    return result, float(np.nanmean(tau_of(predictor, data[1])))


def gather(
    model: str, files: list[Path], progress: Progress
) -> tuple[RankedTokens, list[Rankings]]:
    """Compute the tokens that enter the reduction point for all ranked images.

    Raises:
        ValueError: rankings of another tower.
    """
    tower = load_tower(model)
    dense, preprocess = tower.vit, tower.preprocess
    weights = fingerprint(dense)
    tokens, importance, found = [], [], []
    for file in files:
        rankings = Rankings.read(file)
        rankings.require(model=model, weights=weights)
        found.append(rankings)
        facts = rankings.provenance
        if facts.split == FOLDER_SPLIT:
            raise ValueError(
                f"{str(file)!r} ranks a folder of images, which is not at hand here; predictors "
                "are fitted to rankings of a dataset"
            )
        every = get_dataset(facts.dataset).split(cast(SplitName, facts.split))
        split = every.subset(ranked(every, rankings))
        with progress.task(f"tokens of {facts.dataset} {facts.split}", len(split)) as update:
            done = 0
            for examples, images in batches(split, preprocess):
                with torch.inference_mode():
                    entering, _ = dense.advance(dense.embed(images), stop=facts.block)
                tokens.append(entering.x.half().clone())
                importance.append(rankings.of([example.image_id for example in examples]))
                done += len(examples)
                update(done)
    with torch.no_grad():
        joined = torch.cat(tokens)
    data = RankedTokens(
        tokens=joined,
        importance=torch.from_numpy(np.concatenate(importance)),
        prefix=dense.num_prefix_tokens,
        grid=dense.patch_embed.grid_size,
    )
    return data, found


@torch.inference_mode()
def tau_of(predictor: Predictor, data: RankedTokens) -> NDArray[np.float64]:
    """Return Kendall's tau of predicted and golden importance per image, (n,)."""
    predicted = torch.cat(
        [predictor(part.float(), data.prefix, data.grid) for part in data.tokens.split(64)]
    )
    return kendall_tau(predicted.numpy(), data.importance.numpy())
