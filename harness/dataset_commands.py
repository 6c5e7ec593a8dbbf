"""What `datasets` does: from parsed arguments to tables and lines."""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from harness.dataset_check import Checked, check_dataset
from harness.datasets import KINDS, get_dataset
from harness.datasets.base import SPLITS
from harness.listing import datasets_data, datasets_table, fitting
from harness.progress import Progress
from harness.shown import Shown, json_values

ROWS = 40  # classes that a table shows; of more, those that stand out
LISTED = 20  # unreadable images


def run_list(args: argparse.Namespace, _status: Console) -> Shown:
    """List datasets.

    Raises:
        FileNotFoundError: a root that isn't there.
        NotADirectoryError: a root that is a file.
    """
    _require_root(args.root)
    made = [f"{prefix}:PATH is {kind.what}" for prefix, kind in KINDS.items()]
    kinds = [{"prefix": prefix, "what": kind.what} for prefix, kind in KINDS.items()]
    data = {"datasets": datasets_data(args.root), "by_path": kinds}
    return Shown(parts=(fitting(datasets_table(args.root)), *made), data=data)


def _require_root(given: Path | None) -> None:
    """Refuse a root below which nothing can be."""
    if given is None or given.is_dir():
        return
    told = f"--root {str(given)!r}"
    if given.exists():
        raise NotADirectoryError(f"{told} is a file; give a folder")
    raise FileNotFoundError(
        f"{told}: there is no such folder; give the one that datasets lie below"
    )


def run_check(args: argparse.Namespace, status: Console) -> Shown:
    """Check a dataset."""
    found = check_dataset(get_dataset(args.dataset), Progress(status), fast=args.fast)
    lines = [f"note: {line}" for line in found.notes]
    lines += [f"problem: {line}" for line in found.problems]
    lines += [f"  {line}" for line in found.unreadable[:LISTED]]
    if (more := len(found.unreadable) - LISTED) > 0:
        lines.append(f"  and {more} more")
    total = sum(int(counts.sum()) for counts in found.counts.values())
    read = f"{total:,} images {'listed' if found.bad is None else 'read'}"
    outcome = f"problems: {len(found.problems)}" if found.problems else "no problem found"
    lines.append(f"{found.name}, revision {found.revision}: {read}, {outcome}")
    return Shown(
        parts=(class_table(found), *lines),
        data=json_values(found),
        code=1 if found.problems else 0,
    )


def class_table(found: Checked) -> Table:
    """Lay out the images of each class; of many classes those that lack some."""
    table = Table(title=f"{found.name}: {len(found.classes)} classes")
    table.add_column("class")
    splits = [name for name in SPLITS if found.counts[name].any()]
    for name in splits:
        table.add_column(name, justify="right")
    if found.bad is not None:
        table.add_column("unreadable", justify="right")
    counts = np.stack([found.counts[name] for name in splits])
    bad = np.zeros_like(counts[0])
    if found.bad is not None:
        bad = np.sum([found.bad[name] for name in splits], axis=0)

    def row(name: str, values: list[int], lost: int) -> None:
        cells = [f"{value:,}" for value in values]
        table.add_row(name, *cells, *([f"{lost:,}"] if found.bad is not None else []))

    odd = np.flatnonzero((counts == 0).any(axis=0) | (bad > 0))
    short = len(found.classes) <= ROWS
    for label in range(len(found.classes)) if short else odd[:ROWS]:
        row(found.classes[label], counts[:, label].tolist(), int(bad[label]))
    if not short:
        if len(odd) > ROWS:
            row(f"... and {len(odd) - ROWS} more like these", [], 0)
        for word, of in (("fewest", np.min), ("median", np.median), ("most", np.max)):
            row(f"({word})", [int(of(line)) for line in counts], int(of(bad)))
    row("(all)", counts.sum(axis=1).tolist(), int(bad.sum()))
    return table
