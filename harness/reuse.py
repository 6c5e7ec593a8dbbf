"""Which earlier record may be used again instead of measuring."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from harness.appending import to_go_on_from
from harness.conditions import DENSE, GOLDEN
from harness.progress import Progress
from harness.records import LATER_CONDITIONS, Record, read_records


def earlier(path: Path, progress: Progress, *, fresh: bool) -> list[Record]:
    """Return the records that a command wrote before, none if it is to measure afresh.

    A torn last line is dropped, so that a command that was killed goes on from there.

    Raises:
        ValueError: another line is no record.
    """
    return read_records(path) if to_go_on_from(path, progress.say, fresh=fresh) else []


def fitting(
    blank: Record, known: Sequence[Record], batches: Sequence[int], *, ranked: bool = False
) -> Record | None:
    """Find the newest known record made under the same conditions as ``blank``.

    Args:
        blank: a record without measurements.
        known: earlier records.
        batches: batch sizes whose latency is wanted too.
        ranked: agreement with golden rankings is wanted too; it needs tokens that went.
    """
    for record in reversed(known):
        same = all(_fits(record, blank, name) for name in _GIVEN)
        timed = record.method == GOLDEN or {e.batch for e in record.latency} >= set(batches)
        compared = record.weighted_tau is not None or not ranked or record.keep == 1
        # A tuned row may stand alone; see Bench.judged.
        alone = record.method == DENSE or record.tuning is not None
        near = record.cosine_to_dense is not None or alone
        if same and timed and compared and near:
            return record
    return None


def _fits(record: Record, blank: Record, name: str) -> bool:
    """Say if a condition is the same; what an earlier version didn't know stands for any."""
    known = getattr(record, name)
    return known == getattr(blank, name) or (known is None and name in LATER_CONDITIONS)


def measured_alike(record: Record) -> str:
    """Return what is the same text for all records made under the same conditions."""
    return json.dumps([getattr(record, name) for name in _GIVEN], sort_keys=True)


_MEASURED = (
    "created", "git_commit", "correct_bits", "top1", "top1_low", "top1_high", "diff_to_dense",
    "margin", "cosine_to_dense", "cosine_low", "cosine_high", "diff_low", "diff_high", "gflops",
    "uncounted_operators", "activations", "params", "tokens_per_block", "final_tokens", "latency",
    "tau", "tau_low", "tau_high", "weighted_tau", "weighted_tau_low", "weighted_tau_high",
    "match_at_k", "match_low", "match_high", "match_k", "match_chance", "border_overlap",
    "border_low", "border_high", "border_chance", "golden_images", "tau_undefined",
)  # fmt: skip
_GIVEN = tuple(field.name for field in fields(Record) if field.name not in _MEASURED)
