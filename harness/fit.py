"""Fit a model's predictor from golden rankings."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.agreement import kendall_tau
from harness.console import Progress
from harness.gather import Gathered, gather, held_out, read_rankings
from harness.golden.store import Rankings
from harness.towers import load_tower
from zoo.fit import FitConfig, RankedTokens, fit_predictor, predict, save_predictor
from zoo.predictor import Predictor, predictor_name
from zoo.weights import cache_folder


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
    """Fit a predictor and write it where ``pretrained=True`` finds it.

    A fit that was stopped goes on where it was when it is asked for again.

    Args:
        model: dense tower, see ``harness.towers.load_tower``.
        train: rankings to learn from, or the stores or files that hold them.
        val: the same for early stopping; of other images. Without them a fifth of each of
            ``train`` is held out.
        config: recipe; its seed also chooses the shots.
        out: result; None for the user's cache.
        progress: where to show how far things are.
        shots: ranked images per class to learn from, of each store; None for all.
        block: reduction point that the rankings must be of; None for whichever they are of.
        folders: where the images are that rankings of folders are of.

    Returns:
        Path of the result, and the mean Kendall tau of predicted and golden on ``val``.

    Raises:
        ValueError: rankings of another tower, of several reduction points or scores, images that
            are in both, classes with too few of them, or a folder that isn't
            given.
    """
    tower = load_tower(model)
    rankings = [[read_rankings(one) for one in part] for part in (train, val)]
    if not val:
        rankings = held_out(rankings[0])
        progress.say(f"held out for early stopping: {sum(map(len, rankings[1]))} ranked images")
    facts = [asdict(one.provenance) for part in rankings for one in part]
    agreed = _agreed(facts, block)
    ids = [{name for one in part for name in one.image_ids} for part in rankings]
    if both := ids[0] & ids[1]:
        raise ValueError(
            f"{len(both)} images are in the rankings to learn from and in those for early stopping"
        )
    learn = gather(tower, rankings[0], progress, shots=shots, seed=config.seed, folders=folders)
    stop = gather(tower, rankings[1], progress, folders=folders)
    checkpoint = _checkpoint(config, learn, stop, facts)
    with progress.task(f"predictor {config.arch}", config.epochs) as update:
        predictor = fit_predictor(
            learn.data,
            stop.data,
            config,
            on_epoch=lambda epoch, *_: update(epoch + 1),
            checkpoint=checkpoint,
        )
    result = out or cache_folder() / "predictors" / predictor_name(tower.arch, tower.tag, agreed)
    save_predictor(
        predictor,
        result,
        model=tower.arch,
        tag=tower.tag,
        block=agreed,
        config=config,
        provenance={"rankings": facts, "images": len(learn.data), "shots": shots},
        weights=learn.blocks,
    )
    checkpoint.unlink(missing_ok=True)
    return result, float(np.nanmean(tau_of(predictor, stop.data)))


def _agreed(facts: list[dict[str, Any]], block: int | None) -> int:
    """Return the one reduction point of all rankings.

    Raises:
        ValueError: they have several, or another than ``block``, or several scores.
    """
    for field, what in (("block", "reduction points"), ("score", "scores")):
        values = sorted({fact[field] for fact in facts})
        if len(values) != 1:
            raise ValueError(f"rankings of several {what}: {values}; one at a time")
    agreed = int(facts[0]["block"])
    if block is not None and agreed != block:
        raise ValueError(f"--block {block}: these rankings are of block {agreed}; leave it out")
    return agreed


def _checkpoint(
    config: FitConfig, learn: Gathered, stop: Gathered, facts: list[dict[str, Any]]
) -> Path:
    """Return where a fit keeps its state: by all that decides its result."""
    images = [learn.image_ids, stop.image_ids]
    conditions = [asdict(config), facts, images, learn.blocks, torch.__version__]
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "fits" / f"{digest[:16]}.pt"


def tau_of(predictor: Predictor, data: RankedTokens) -> NDArray[np.float64]:
    """Return Kendall's tau of predicted and golden importance per image, (n,)."""
    return kendall_tau(predict(predictor, data).numpy(), data.importance.numpy())
