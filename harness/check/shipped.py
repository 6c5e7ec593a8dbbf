"""The expectation that ships: every method of ours on the embedded tower and datasets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.check.asked import Asked, own_methods, rows_of
from harness.check.wanted import Case, Wanted
from harness.measure.plan import Plan

FOLDER = Path(__file__).parents[1] / "expected"
KEEPS = (0.6, 0.3)
LIMIT = 48
BATCHES = (1,)
# What no model's name asks for: a fused token, merging in some blocks only, so that others see
# merged tokens without merging, and several reduction points.
SETTINGS = (
    "evit:fuse=true,keep=0.3",
    "tome:reduce_at=[2,4,6],keep=0.3",
    "patchrank:reduce_at=[3,6],keep=0.3",
)


def files() -> list[Path]:
    """Return the files of the expectation, one per dataset.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(FOLDER.glob("*.jsonl"))
    if not found:
        raise FileNotFoundError(
            "harness/expected/ holds no expectation; in a checkout, write it with: python -m "
            "harness check --update"
        )
    return found


def complete(case: Case) -> Case:
    """Add the rows that are missing, of which nothing is expected yet."""
    rows = {}
    for dataset, there in case.rows.items():
        names = {row.name for row in there}
        rows[dataset] = [*there, *(row for row in _rows() if row.name not in names)]
    return replace(case, rows=rows)


def whole(tower: str) -> Case:
    """Return the benchmark as it is written anew."""
    return Case(
        tower=tower,
        split="test",
        dtype=Plan.dtype,
        device=Plan.device,
        image_count=LIMIT,
        batches=BATCHES,
        rows={name: _rows() for name in Plan.datasets},
    )


def place(dataset: str) -> Path:
    """Return the file that holds a dataset's rows."""
    return FOLDER / f"{dataset}.jsonl"


def _rows() -> list[Wanted]:
    asked: Sequence[Asked] = [Asked(method=name, options={}) for name in own_methods()]
    return rows_of([*asked, *map(Asked.of, SETTINGS)], KEEPS)
