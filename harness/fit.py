"""Fit a model's predictor from golden rankings."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from harness.agreement import kendall_tau
from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.entering import Joined, entering
from harness.few import few
from harness.golden.provenance import FOLDER_SPLIT
from harness.golden.store import Rankings
from harness.progress import Progress
from harness.towers import load_tower, split_name
from zoo.fit import FitConfig, fit_predictor, predict, save_predictor
from zoo.predictor import Predictor
from zoo.predictor_file import predictor_name
from zoo.ranked import RankedTokens
from zoo.weights import blocks_fingerprint, cache_folder, fingerprint


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
) -> tuple[Path, float]:
    """Fit a predictor and write it where ``pretrained=True`` finds it.

    A fit that was stopped goes on where it was when it is asked for again.

    Args:
        model: dense timm name.
        train: rankings to learn from, or the stores or files that hold them.
        val: the same for early stopping; of other images.
        config: recipe; its seed also chooses the shots.
        out: result; None for the user's cache.
        progress: where to show how far things are.
        shots: ranked images per class to learn from, of each store; None for all.
        block: reduction point that the rankings must be of; None for whichever they are of.

    Returns:
        Path of the result, and the mean Kendall tau of predicted and golden on ``val``.

    Raises:
        ValueError: rankings of another tower, of several reduction points or scores, images that
            are in both, or classes with too few of them.
    """
    arch, tag = split_name(model)
    rankings = [[_read(given) for given in part] for part in (train, val)]
    facts = [asdict(one.provenance) for part in rankings for one in part]
    found = _agreed(facts, block)
    ids = [{name for one in part for name in one.image_ids} for part in rankings]
    if both := ids[0] & ids[1]:
        raise ValueError(
            f"{len(both)} images are in the rankings to learn from and in those for early stopping"
        )
    learn = gather(f"{arch}.{tag}", rankings[0], progress, shots=shots, seed=config.seed)
    stop = gather(f"{arch}.{tag}", rankings[1], progress)
    checkpoint = _checkpoint(config, learn, stop, facts)
    with progress.task(f"predictor {config.arch}", config.epochs) as update:
        predictor = fit_predictor(
            learn.data,
            stop.data,
            config,
            on_epoch=lambda epoch, *_: update(epoch + 1),
            checkpoint=checkpoint,
        )
    result = out or cache_folder() / "predictors" / predictor_name(arch, tag, found)
    save_predictor(
        predictor,
        result,
        model=arch,
        tag=tag,
        block=found,
        config=config,
        provenance={"rankings": facts, "images": len(learn.data), "shots": shots},
        weights=learn.blocks,
    )
    checkpoint.unlink(missing_ok=True)
    return result, float(np.nanmean(tau_of(predictor, stop.data)))


def gather(
    model: str,
    given: Sequence[Path | Rankings],
    progress: Progress,
    *,
    shots: int | None = None,
    seed: int = 0,
) -> Gathered:
    """Find the tokens that enter the reduction point for all ranked images.

    Args:
        model: dense timm name with its tag.
        given: rankings, or the stores or files that hold them.
        progress: where to show how far things are.
        shots: images per class, of each store; None for all.
        seed: of the choice of shots.

    Raises:
        ValueError: rankings of another tower or of other images, or a class with too few of them.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"--shots {shots}: expected a number from 1, or nothing for all images")
    tower = load_tower(model)
    weights = fingerprint(tower.vit)
    tokens, importance, found = [], [], []
    ids: list[str] = []
    chosen: list[NDArray[np.int64]] = []
    for rankings in map(_read, given):
        rankings.require(model=model, weights=weights)
        facts = rankings.provenance
        if facts.split == FOLDER_SPLIT:
            raise ValueError(
                f"the rankings of {facts.dataset!r} are of a folder of images, which is not at "
                "hand here; predictors are fitted to rankings of a dataset"
            )
        dataset = get_dataset(facts.dataset)
        rankings.require(revision=dataset.revision)
        split = dataset.split(cast(SplitName, facts.split))
        part = entering(facts, split, rankings.image_ids, tower.vit, tower.preprocess, progress)
        rows = np.arange(len(part.image_ids))
        if shots is not None:
            rows = few(dataset, part.image_ids, part.labels, shots, seed)
        chosen.append(rows + len(ids))
        ids += part.image_ids
        tokens.append(part.tokens)
        importance.append(rankings.of(part.image_ids))
        found.append(rankings)
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
        rankings=tuple(found),
        blocks=blocks_fingerprint(tower.vit.state_dict()),
    )


def _read(given: Path | Rankings) -> Rankings:
    return given if isinstance(given, Rankings) else Rankings.read(given)


def _agreed(facts: list[dict[str, Any]], block: int | None) -> int:
    """Return the one reduction point of all rankings.

    Raises:
        ValueError: they have several, or another than ``block``, or several scores.
    """
    for field, what in (("block", "reduction points"), ("score", "scores")):
        values = sorted({fact[field] for fact in facts})
        if len(values) != 1:
            raise ValueError(f"rankings of several {what}: {values}; one at a time")
    found = int(facts[0]["block"])
    if block is not None and found != block:
        raise ValueError(f"--block {block}: these rankings are of block {found}; leave it out")
    return found


def _checkpoint(
    config: FitConfig, learn: Gathered, stop: Gathered, facts: list[dict[str, Any]]
) -> Path:
    """Return where a fit keeps its state: by all that decides its result."""
    images = [learn.image_ids, stop.image_ids]
    told = [asdict(config), facts, images, learn.blocks, torch.__version__]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "fits" / f"{digest[:16]}.pt"


def tau_of(predictor: Predictor, data: RankedTokens) -> NDArray[np.float64]:
    """Return Kendall's tau of predicted and golden importance per image, (n,)."""
    return kendall_tau(predict(predictor, data).numpy(), data.importance.numpy())
