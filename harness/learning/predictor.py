"""Predictors' fits to ranked images."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from harness import git_commit
from harness.base.lines import lock_file
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Split, SplitName
from harness.datasets.few_shot import batches, draw_ranked
from harness.golden.store import FOLDER_SPLIT, Provenance, Rankings, Source
from harness.learning.sources import HELD_OUT, checkpoint_of, hold_out
from harness.records.statistics import kendall_tau
from zoo.core.digests import blocks_fingerprint, fingerprint
from zoo.core.files import cache_file
from zoo.core.host import Host
from zoo.core.recipes import FitConfig
from zoo.learning.fit import RankedTokens, fit_predictor, predict, save_predictor
from zoo.loading.learned_files import predictor_name
from zoo.loading.towers import Tower, load_tower


def gather(
    tower: Tower,
    stores: Sequence[Rankings],
    progress: Progress,
    *,
    shots: int | None = None,
    seed: int = 0,
    folders: Sequence[Path] = (),
) -> tuple[RankedTokens, tuple[str, ...]]:
    """Return the tokens that enter the reduction point of a dense tower for all ranked images, and the images' ids.

    ``shots`` are images per class of each set of rankings, chosen by ``seed``; None for all. ``folders`` have the
    images of rankings of folders.

    Raises:
        ValueError: rankings of another tower or of other images, a class with too few of them, a folder that isn't
            among ``folders``, or tokens beyond float16.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"--shots {shots}: expected a number from 1, or nothing for all images")
    weights, vit = fingerprint(tower.vit), tower.vit
    tokens, importance, image_ids = list[Tensor](), list[Tensor](), list[str]()
    for rankings in stores:
        rankings.require(model=tower.name, weights=weights)
        provenance = rankings.provenance
        source = _find_source(provenance, folders)
        rankings.require(revision=source.ranked_revision(provenance.score))
        images = _ranked_images(source.images, set(rankings.image_ids), provenance)
        if shots is not None:
            if source.dataset is None:
                raise ValueError(
                    f"--shots {shots}: the images of folder {provenance.dataset!r} have no classes; "
                    "leave it out, or rank fewer images"
                )
            images = images.subset(draw_ranked(source.dataset, images.image_ids, images.labels, shots, seed))
        with progress.task(f"tokens of {provenance.dataset} {provenance.split}", len(images)) as update:
            tokens.append(entering(vit, images, tower.preprocess, provenance.block, update))
        image_ids += images.image_ids
        importance.append(torch.from_numpy(rankings.of(images.image_ids)))
    data = {"tokens": torch.cat(tokens), "importance": torch.cat(importance)}
    return RankedTokens(**data, prefix=vit.prefix_count, grid=vit.grid), tuple(image_ids)


@torch.inference_mode()
def entering(vit: Host, images: Split, preprocess: Any, block: int, update: Callable[[int], object]) -> Tensor:
    """Return the tokens that enter a block for all images, (n, prefix + N, D) float16."""
    parts: list[Tensor] = []
    for _, batch in batches(images, preprocess):
        tokens, _ = vit.advance(vit.embed(batch), stop=block)
        parts.append(tokens.x.half())
        if not parts[-1].isfinite().all():
            raise ValueError(f"the tokens that enter block {block} are beyond float16's 65504, or NaN")
        update(sum(map(len, parts)))
    return torch.cat(parts)


def _find_source(provenance: Provenance, folders: Sequence[Path]) -> Source:
    """Find the images of rankings."""
    if provenance.split != FOLDER_SPLIT:
        return Source.of(get_dataset(provenance.dataset), cast(SplitName, provenance.split))
    revisions = []
    for path in folders:
        source = Source.folder(path)
        if (source.name, source.revision) == (provenance.dataset, provenance.revision):
            return source
        revisions.append(f"{str(path)!r} is of revision {source.revision}")
    there = f" ({'; '.join(revisions)})" if revisions else ""
    raise ValueError(
        f"these rankings are of the folder {provenance.dataset!r}, revision {provenance.revision}, which is "
        f"not at hand{there}; say where it is with --images FOLDER"
    )


def _ranked_images(split: Split, image_ids: set[str], provenance: Provenance) -> Split:
    """Keep the images of these ids, variants among them, in the order of the split."""
    known = set(split.image_ids)
    drawn = (name.rpartition("/") for name in image_ids - known)
    split = split.variants(1 + max((int(v) for name, _, v in drawn if name in known and v.isdecimal()), default=0))
    if lost := sorted(image_ids - set(split.image_ids)):
        raise ValueError(
            f"{len(lost)} ranked images are not in {provenance.dataset} {provenance.split}, such as "
            f"{lost[0]!r}; make rankings with: {provenance.command()}"
        )
    return split.subset([i for i, name in enumerate(split.image_ids) if name in image_ids])


def split_rankings(stores: Sequence[Rankings]) -> list[list[Rankings]]:
    """Split the ranked images of each store: those to learn from, and every fifth to stop by.

    Which go where depends on the images alone, not on their order.

    Raises:
        ValueError: a store of fewer than five images.
    """
    parts: list[list[Rankings]] = [[], []]
    for rankings in stores:
        names = sorted(rankings.image_ids)
        if len(names) < HELD_OUT:
            raise ValueError(
                f"{len(names)} ranked images of {rankings.provenance.dataset!r} are too few to "
                f"hold one in {HELD_OUT} out for early stopping; rank more, or give --val"
            )
        for part, positions in zip(parts, hold_out(len(names)), strict=True):
            kept = {names[i] for i in positions}
            part.append(rankings.take([name for name in rankings.image_ids if name in kept]))
    return parts


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

    ``train`` and ``val`` are rankings, stores or files; without ``val`` a fifth of each of ``train`` is for early
    stopping. `gather` explains ``shots`` (of ``train`` alone) and ``folders``. ``block`` is the reduction point that
    all rankings must have; ``out`` None is for the user's cache, whose file is locked meanwhile.

    Returns the path of the result, and the mean Kendall tau of predicted and golden on ``val``.

    Raises:
        ValueError: rankings of several reduction points or scores, images that are in both, or
            what `gather` refuses.
    """
    tower = load_tower(model)
    parts = [[each if isinstance(each, Rankings) else Rankings.read(each) for each in part] for part in (train, val)]
    if not val:
        parts = split_rankings(parts[0])
        progress.say(f"held out for early stopping: {sum(map(len, parts[1]))} ranked images")
    stores = [rankings for part in parts for rankings in part]
    provenance = [asdict(rankings.provenance) for rankings in stores]
    block = _require_alike(stores, block)
    learned, stopped = ({name for rankings in part for name in rankings.image_ids} for part in parts)
    if both := learned & stopped:
        raise ValueError(f"{len(both)} images are in the rankings to learn from and in those for early stopping")
    path = out or cache_file("predictors", predictor_name(tower.arch, tower.tag, block))
    with lock_file(None if out else path):
        data, image_ids = gather(tower, parts[0], progress, shots=shots, seed=config.seed, folders=folders)
        stop, stop_ids = gather(tower, parts[1], progress, folders=folders)
        blocks = blocks_fingerprint(tower.vit.state_dict(), tower.vit.blocks_prefix)
        with checkpoint_of(asdict(config), provenance, [image_ids, stop_ids], blocks) as checkpoint:
            with progress.task(f"epochs of {config.arch}", config.epochs) as update:
                predictor = fit_predictor(
                    data, stop, config, on_epoch=lambda epoch, *_: update(epoch + 1), checkpoint=checkpoint
                )
            counted = [asdict(each.provenance) | {"images": len(each)} for each in stores]
            save_predictor(
                predictor, path, model=tower.arch, tag=tower.tag, block=block, config=config, weights=blocks,
                provenance={"rankings": counted, "images": len(data), "shots": shots, "commit": git_commit()},
            )  # fmt: skip
        taus = kendall_tau(predict(predictor, stop).numpy(), stop.importance.numpy())
        return path, float(np.nanmean(taus))


def _require_alike(stores: Sequence[Rankings], asked: int | None) -> int:
    """Return the reduction point of all rankings; ValueError for several points or scores, or not the ``asked`` one."""
    for field, what in (("block", "reduction points"), ("score", "scores")):
        values = sorted({getattr(rankings.provenance, field) for rankings in stores})
        if len(values) != 1:
            raise ValueError(f"rankings of several {what}: {values}; one at a time")
    block = stores[0].provenance.block
    if asked not in (None, block):
        raise ValueError(f"--block {asked}: these rankings are of block {block}; leave it out")
    return block
