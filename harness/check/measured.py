"""Measure what an expectation asks for: each row beside the dense one, on the same images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from harness.check.wanted import Case, Wanted
from harness.conditions import DENSE, GOLDEN, Tuning
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.measure.bench import Bench
from harness.measure.plan import Plan
from harness.measure.rows import Variant, golden_row, reduced_row
from harness.progress import Progress
from harness.records import Record
from harness.sampling import turns
from harness.towers import load_clip, text_classifier
from zoo.clip import ClipParts
from zoo.golden import GoldenConfig
from zoo.reducer import ReducerConfig
from zoo.text import CompactText
from zoo.vit import ReducedViT
from zoo.weights import fingerprint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row, measured.

    Attributes:
        tower: dense name with its weight tag.
        dataset: its name.
        wanted: what was asked for, with what is expected.
        now: what was found; None where the row can't be made any more.
    """

    tower: str
    dataset: str
    wanted: Wanted
    now: Record | None

    @property
    def place(self) -> tuple[str, str, str]:
        """Tower, dataset and row: what no other outcome has."""
        return self.tower, self.dataset, self.wanted.name


def measure(
    case: Case, rounds: int, progress: Progress, given: str | None = None
) -> Iterator[list[Outcome]]:
    """Measure a case; earlier records are never used again.

    Args:
        case: what to measure.
        rounds: latency samples.
        progress: where to show how far things are.
        given: the tower's name as it is loaded, if it isn't the case's (``local-dir:FOLDER``).

    Yields:
        The rows of one dataset after the other.

    Raises:
        ValueError: an unknown name, or something that can't be measured.
        FileNotFoundError: weights or images are missing.
    """
    parts, arch, tag = load_clip(given or case.tower)
    dense = parts.model.visual
    variants: dict[str, Variant] = {}
    for row in (row for rows in case.rows.values() for row in rows if row.known):
        if row.name not in variants:
            variants[row.name] = _variant(dense, arch, tag, row)
    plan = Plan(
        models=(case.tower,),
        methods=(),
        datasets=tuple(case.rows),
        limit=case.image_count,
        split=case.split,
        device=case.device,
        dtype=case.dtype,
        batches=case.batches,
        rounds=rounds,
    )
    bench = Bench.around(plan, parts, list(variants.values()), tag, fingerprint(dense), progress)
    for name, rows in case.rows.items():
        dataset = get_dataset(name)
        bench.plan, bench.view = _enough(plan, parts, dataset), None
        known = [row for row in rows if row.known]
        found = bench.judged(dataset, Tuning(), [variants[row.name] for row in known], {})
        if len(found) < len(known):  # the images have no golden rankings
            known = [row for row in known if row.method != GOLDEN]
        now = dict(zip((row.name for row in known), found, strict=True))
        place = {"tower": case.tower, "dataset": name}
        yield [Outcome(**place, wanted=row, now=now.get(row.name)) for row in rows]


def _variant(dense: ReducedViT, arch: str, tag: str, row: Wanted) -> Variant:
    """Make a row that can be run."""
    if row.method == DENSE:
        return Variant(model=arch, method=DENSE, keep=1.0, vit=dense, config={})
    name = f"{arch}_{row.method}{round(100 * row.keep)}"
    if row.method == GOLDEN:
        config = ReducerConfig(keep=row.keep, reduce_at=(GoldenConfig.block,))
        return golden_row(dense, name, config)
    options = {"keep": row.keep, **row.options}
    return reduced_row(dense, arch, tag, name, row.method, options, what=row.what)


def _enough(plan: Plan, parts: ClipParts, dataset: Dataset) -> Plan:
    """Return the plan with a limit that leaves as many images as the expectation has.

    A compact text tower can't name every class, and images of those it can't are left out after
    the limit was applied. A smaller subset is part of a larger one, so the number of those judged
    says which they are.
    """
    if plan.limit is None or not isinstance(parts.model.text, CompactText):
        return plan
    classifier, left_out = text_classifier(parts, dataset)
    if not left_out:
        return plan
    labels = dataset.split(plan.split).labels
    named = ~classifier.isnan().any(dim=1).numpy()[labels[turns(labels)]]
    judged = np.cumsum(named)
    return replace(plan, limit=int(np.searchsorted(judged, plan.limit)) + 1)
