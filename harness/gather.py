"""What a predictor is fitted to: ranked images with the tokens that enter the reduction point."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from harness.datasets import get_dataset
from harness.datasets.base import Dataset, Split, SplitName
from harness.datasets.images import folder_images
from harness.entering import Joined, entering
from harness.golden.provenance import FOLDER_SPLIT, Provenance, ranked_revision
from harness.golden.store import Rankings
from harness.progress import Progress
from harness.sampling import draw_ranked, seeded_order
from harness.towers import Tower
from zoo.fit import RankedTokens
from zoo.weights import blocks_fingerprint, fingerprint

HELD_OUT = 5  # one image in so many


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
    given: Sequence[Path | Rankings],
    progress: Progress,
    *,
    shots: int | None = None,
    seed: int = 0,
    folders: Sequence[Path] = (),
) -> Gathered:
    """Find the tokens that enter the reduction point for all ranked images.

    Args:
        tower: the dense tower.
        given: rankings, or the stores or files that hold them.
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
    tokens, importance, found = [], [], []
    ids: list[str] = []
    chosen: list[NDArray[np.int64]] = []
    for rankings in map(read_rankings, given):
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


def _images(facts: Provenance, folders: Sequence[Path]) -> tuple[Dataset | None, Split]:
    """Find the images that rankings are of; those of a folder have no dataset.

    Raises:
        ValueError: unknown dataset, or a folder that isn't among ``folders``.
    """
    if facts.split != FOLDER_SPLIT:
        dataset = get_dataset(facts.dataset)
        return dataset, dataset.split(cast(SplitName, facts.split))
    seen = []
    for path in folders:
        images = folder_images(path)
        if (images.name, images.revision) == (facts.dataset, facts.revision):
            return None, images.split
        seen.append(f"{str(path)!r} is of revision {images.revision}")
    there = f" ({'; '.join(seen)})" if seen else ""
    raise ValueError(
        f"these rankings are of the folder {facts.dataset!r}, revision {facts.revision}, which is "
        f"not at hand{there}; say where it is with --images FOLDER"
    )


def read_rankings(given: Path | Rankings) -> Rankings:
    """Read rankings unless they are read already."""
    return given if isinstance(given, Rankings) else Rankings.read(given)


def held_out(given: Sequence[Rankings]) -> list[list[Rankings]]:
    """Part the ranked images of each store: those to learn from, and every fifth to stop by.

    Which go where depends on the images alone, not on their order.

    Raises:
        ValueError: a store of fewer than five images.
    """
    parts: list[list[Rankings]] = [[], []]
    for rankings in given:
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
