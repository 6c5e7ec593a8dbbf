"""Predictors' fits to ranked images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from harness import git_commit
from harness.base.lines import claim_file
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Split, SplitName
from harness.datasets.few_shot import batches, draw_ranked, seeded_order
from harness.golden.store import FOLDER_SPLIT, Provenance, Rankings, Source
from harness.records.statistics import kendall_tau
from zoo.core.files import blocks_fingerprint, cache_file, cache_folder, digest, fingerprint
from zoo.core.recipes import FitConfig
from zoo.learning.fit import RankedTokens, fit_predictor, predict, save_predictor
from zoo.loading.learned_files import predictor_name
from zoo.loading.towers import Tower, load_tower
from zoo.towers.vit import ReducedViT

HELD_OUT = 5  # one image in so many


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
    """Compute the tokens that enter the reduction point of a dense tower for all ranked images.

    ``shots`` are images per class of each set of rankings, chosen by ``seed``; None for all. ``folders`` are where the
    images are that rankings of folders are of.

    Raises:
        ValueError: rankings of another tower or of other images, a class with too few of them, a folder that isn't
            among ``folders``, or tokens beyond float16.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"--shots {shots}: expected a number from 1, or nothing for all images")
    weights, vit = fingerprint(tower.vit), tower.vit
    tokens, importance, ids = list[Tensor](), list[Tensor](), list[str]()
    for one in every:
        one.require(model=tower.name, weights=weights)
        facts = one.provenance
        source = _find_source(facts, folders)
        one.require(revision=source.ranked_revision(facts.score))
        images = _ranked(source.images, set(one.image_ids), facts)
        if shots is not None:
            if source.dataset is None:
                raise ValueError(
                    f"--shots {shots}: the images of folder {facts.dataset!r} have no classes; "
                    "leave it out, or rank fewer images"
                )
            images = images.subset(draw_ranked(source.dataset, images.image_ids, images.labels, shots, seed))
        with progress.task(f"tokens of {facts.dataset} {facts.split}", len(images)) as update:
            tokens.append(entering(vit, images, tower.preprocess, facts.block, update))
        ids += images.image_ids
        importance.append(torch.from_numpy(one.of(images.image_ids)))
    data = {"tokens": torch.cat(tokens), "importance": torch.cat(importance)}
    return Gathered(RankedTokens(**data, prefix=vit.prefix_count, grid=vit.grid), tuple(ids))


@torch.inference_mode()
def entering(vit: ReducedViT, images: Split, preprocess: Any, block: int, update: Callable[[int], object]) -> Tensor:
    """Return the tokens that enter a block for all images, (n, prefix + N, D) float16."""
    parts: list[Tensor] = []
    for _, batch in batches(images, preprocess):
        tokens, _ = vit.advance(vit.embed(batch), stop=block)
        parts.append(tokens.x.half())
        if not parts[-1].isfinite().all():
            raise ValueError(f"the tokens that enter block {block} are beyond float16's 65504, or NaN")
        update(sum(map(len, parts)))
    return torch.cat(parts)


def _find_source(facts: Provenance, folders: Sequence[Path]) -> Source:
    """Find the images that rankings are of."""
    if facts.split != FOLDER_SPLIT:
        return Source.of(get_dataset(facts.dataset), cast(SplitName, facts.split))
    others = []
    for path in folders:
        source = Source.folder(path)
        if (source.name, source.revision) == (facts.dataset, facts.revision):
            return source
        others.append(f"{str(path)!r} is of revision {source.revision}")
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


def _ranked(split: Split, image_ids: set[str], facts: Provenance) -> Split:
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
    early stopping. `gather` says what ``shots`` (of ``train`` alone) and ``folders`` are; ``block`` is what the
    rankings must be of, and ``out`` None is for the user's cache.

    Returns the path of the result, and the mean Kendall tau of predicted and golden on ``val``.

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
    agreed = _agree(facts, block)
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
        made_from = [asdict(one.provenance) | {"images": len(one)} for part in rankings for one in part]
        provenance = {"rankings": made_from, "images": len(learn.data), "shots": shots, "commit": git_commit()}
        save_predictor(
            predictor, result, model=tower.arch, tag=tower.tag, block=agreed, config=config, provenance=provenance,
            weights=blocks,
        )  # fmt: skip
        checkpoint.unlink(missing_ok=True)
        taus = kendall_tau(predict(predictor, stop.data).numpy(), stop.data.importance.numpy())
        return result, float(np.nanmean(taus))


def _agree(facts: Sequence[Mapping[str, Any]], asked: int | None) -> int:
    """Return the one reduction point of all rankings, which must be the one ``asked`` for; they have one score, too."""
    for field, what in (("block", "reduction points"), ("score", "scores")):
        values = sorted({fact[field] for fact in facts})
        if len(values) != 1:
            raise ValueError(f"rankings of several {what}: {values}; one at a time")
    block = int(facts[0]["block"])
    if asked not in (None, block):
        raise ValueError(f"--block {asked}: these rankings are of block {block}; leave it out")
    return block
