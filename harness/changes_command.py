"""What ``compare RUN_A RUN_B`` does."""

import argparse
from itertools import takewhile

from rich.console import Console

from harness.changes import changes, read_run
from harness.changes_data import changes_data
from harness.changes_table import changes_markdown, notes, sheets
from harness.shown import Forms, Shown
from zoo.files import write_whole


def run_changes(args: argparse.Namespace, status: Console) -> Shown:
    """Tell what changed between two runs; with --output write changes.md, too.

    Raises:
        FileNotFoundError: a run isn't there.
        ValueError: not two runs, a flag for measuring, or a run that can't be read.
    """
    words = takewhile(lambda word: word != "--", args.argv)
    flags = [word for word in words if word.startswith("--")]
    wrong = [flag for flag in flags if flag.split("=")[0] != "--output"]
    if wrong:
        raise ValueError(
            f"{wrong[0]} with runs to compare: it is for measuring; expected compare RUN_A RUN_B, "
            "with --output at most, or no runs"
        )
    if len(args.runs) != 2:
        raise ValueError(
            f"compare {' '.join(repr(str(run)) for run in args.runs)}: expected two runs, python "
            "-m harness compare RUN_A RUN_B, or none, to measure"
        )
    a, b = args.runs
    found = changes(read_run(a), read_run(b))
    if flags:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / "changes.md"
        write_whole(path, changes_markdown(found, str(a), str(b)).encode())
        status.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    tables = [Forms((sheet.table(), sheet.table(wide=False))) for sheet in sheets(found)]
    lines = (f"A: {a}", f"B: {b}", *notes(found))
    return Shown(parts=(*lines, *tables), data={"a": str(a), "b": str(b), **changes_data(found)})
