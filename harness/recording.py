"""Records in the making: the conditions first, what was measured when it is there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.commit import git_commit
from harness.datasets.base import Dataset
from harness.evaluate import Outcome
from harness.measure import agreement, device_name, fidelity
from harness.plan import Plan, Tuning
from harness.records import Record, images_digest, pack_correct, utc_now
from harness.statistics import paired_difference, wilson_interval
from harness.variants import DENSE, GOLDEN, Variant

Answers = tuple[Outcome, NDArray[np.bool_]]  # what a row said, and whether it was right


def blank(
    row: Variant,
    dataset: Dataset,
    tuning: Tuning,
    image_ids: Sequence[str],
    *,
    plan: Plan,
    tag: str,
    weights: str,
) -> Record:
    """Return a record with the conditions and no measurement.

    Args:
        row: whose.
        dataset: of the images.
        tuning: what classifies them.
        image_ids: which they are, in order.
        plan: the other conditions.
        tag: of the tower's weights.
        weights: their fingerprint.
    """
    config, count = row.config, len(image_ids)
    if row.method == GOLDEN and row.rankings is not None:
        facts = row.rankings.provenance
        told = ("score", "window", "stride", "dtype", "greedy", "approximate")
        known = {name: getattr(facts, name) for name in told}
        config = config | {name: value for name, value in known.items() if value is not None}
    return Record(
        created=utc_now(),
        version=version("clip-patchrank"),
        model=row.model,
        method=row.method,
        keep=row.keep,
        method_config=config,
        tag=tag,
        weights_sha256=weights,
        dataset=dataset.name,
        dataset_revision=dataset.condition,
        split=plan.split,
        shots=tuning.shots,
        tuning=tuning.kind,
        prompt_tokens=tuning.prompt_tokens,
        seed=tuning.seed,
        image_count=count,
        images_sha256=images_digest(image_ids),
        image_size=tuple(row.vit.patch_embed.img_size),
        correct_bits=pack_correct(np.zeros(count, dtype=np.bool_)),
        top1=0.0,
        top1_low=0.0,
        top1_high=0.0,
        device=plan.device,
        device_name=device_name(plan.device),
        dtype=plan.dtype,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        timm=version("timm"),
    )


def filled(
    record: Record,
    answers: Answers,
    dense: Answers | None,
    costs: Mapping[str, Any],
    truth: NDArray[np.float32] | None,
) -> Record:
    """Complete a record with everything measured.

    Args:
        record: a blank one.
        answers: the row's.
        dense: those of the dense row on the same images; None if it isn't there.
        costs: fields of ``Record``.
        truth: golden importance of the images, None if there is none.
    """
    outcome, hits = answers
    low, high = wilson_interval(int(hits.sum()), len(hits))
    facts: dict[str, Any] = {
        "created": utc_now(),
        "git_commit": git_commit(),
        "correct_bits": pack_correct(hits),
        "top1": float(hits.mean()),
        "top1_low": low,
        "top1_high": high,
        "final_tokens": outcome.final_tokens,
        **costs,
        **agreement(outcome, truth),
    }
    if record.method != DENSE and dense is not None:
        facts |= fidelity(outcome, dense[0])
        difference = paired_difference(hits, dense[1], seed=0)
        facts |= dict(zip(("diff_to_dense", "diff_low", "diff_high"), difference, strict=True))
    return replace(record, **facts)
