"""What a report can't show, and the command that measures it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from harness.conditions import DENSE, GOLDEN
from harness.protocol import tower_of
from harness.report.groups import Group, Grouped
from harness.report.sections import shot_columns

# Flags, the fields that they decide, and what they are if nothing is said.
_CONDITIONS = (
    ("--split", "split", "test"),
    ("--limit", "image_count", "250"),
    ("--device", "device", "cpu"),
    ("--dtype", "dtype", "float32"),
)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A plot that records lack the figures for.

    Attributes:
        title: what would be shown.
        groups: headings of the groups that lack it.
        why: what they lack.
        command: what measures it.
    """

    title: str
    groups: Sequence[str]
    why: str
    command: str


def missing(found: Grouped, *, traced: bool) -> list[Missing]:
    """Return what none of a group's rows has, one entry per subject.

    Args:
        found: the groups.
        traced: pictures were drawn from traces.
    """
    lacking: tuple[tuple[str, str, list[Group], list[str]], ...] = (
        (
            "Top-1 against GFLOPs",
            "multiply-adds weren't counted",
            [g for g in found.groups if not _any(g, "gflops")],
            [],
        ),
        (
            "Top-1 against time",
            "nothing was timed",
            [g for g in found.groups if not any(row.latency for row in g.rows)],
            ["--batches", "1", "32"],
        ),
        (
            "Kendall τ against keep rate",
            "there were no golden rankings, or no methods that rank",
            [g for g in found.groups if not _any(g, "tau")],
            ["--methods", GOLDEN, *_methods(found.groups)],
        ),
        (
            "Tokens per block",
            "they weren't recorded",
            [g for g in found.groups if not _any(g, "tokens_per_block")],
            [],
        ),
        (
            "Top-1 by shots",
            "there is one number of shots only",
            [] if shot_columns(found) else list(found.groups),
            ["--shots", "0", "1", "2", "4", "8", "16"],
        ),
        (
            "Agreement of rankings, and kept patches",
            "no traces lie beside the records",
            [] if traced else list(found.groups),
            ["--fresh"],
        ),
    )
    return [
        Missing(
            title=title,
            groups=[group.name for group in groups],
            why=why,
            command=_command(groups, flags),
        )
        for title, why, groups, flags in lacking
        if groups
    ]


def _any(group: Group, field: str) -> bool:
    return any(getattr(r, field) is not None for row in group.rows for r in row.records)


def _methods(groups: Sequence[Group]) -> list[str]:
    """Return the methods that take part, without dense and golden."""
    every = dict.fromkeys(row.method for group in groups for row in group.rows)
    return [method for method in every if method not in (DENSE, GOLDEN)]


def _command(groups: Sequence[Group], flags: Sequence[str]) -> str:
    """Return a command for towers, datasets and keep rates of the groups."""
    first = [group.first for group in groups]
    keeps = {row.keep for group in groups for row in group.rows if row.method != DENSE}
    words = ["--models", *dict.fromkeys(tower_of(record) for record in first)]
    words += ["--datasets", *dict.fromkeys(record.dataset for record in first)]
    if keeps:
        words += ["--keeps", *(f"{keep:.3g}" for keep in sorted(keeps, reverse=True))]
    if "--shots" not in flags and (shots := sorted({record.shots for record in first})) != [0]:
        words += ["--shots", *map(str, shots)]
    for flag, field, usual in _CONDITIONS:
        values = {str(getattr(record, field)) for record in first}
        if len(values) == 1 and values != {usual}:
            words += [flag, *values]
    return f"python -m harness compare {shlex.join([*words, *flags])}"
