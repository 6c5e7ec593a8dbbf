"""Colour, width and silence; progress of long work, and no silence of it in a pipe."""

import argparse
import io
import itertools
import json

import pytest
from rich.console import Console

from harness.base import terminal as module
from harness.base.table import Table
from harness.base.terminal import Progress, colour_choice, notes, printable, results


@pytest.mark.parametrize(("when", "environ", "expected"), [
    *(("auto", {}, "auto"), ("auto", {"NO_COLOR": "1"}, "never"), ("auto", {"NO_COLOR": ""}, "auto")),
    *(("auto", {"FORCE_COLOR": "1"}, "always"), ("always", {"NO_COLOR": "1"}, "always")),
    *(("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, "never"), ("never", {"FORCE_COLOR": "1"}, "never")),
])  # fmt: skip
def test_the_flag_decides_then_no_color_then_force_color(when, environ, expected):
    assert colour_choice(when, environ) == expected


def test_a_pipe_has_no_width_unless_columns_gives_one(monkeypatch):
    args = argparse.Namespace(color="auto", quiet=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert results(args).width > 10_000
    monkeypatch.setenv("COLUMNS", "120")
    assert results(args).width == 120


HOSTILE = "a\x1b[31m\x9b2J\x7f\u202e\udcff [red]\nb"
SHOWN = r"a\u001b[31m\u009b2J\u007f\u202e\udcff [red]"


def test_names_of_others_can_not_steer_a_terminal(capsys):
    """Of a table's cells newlines neither; JSON keeps its meaning."""
    screen = notes(argparse.Namespace(color="never", quiet=False))
    Progress(screen).say(HOSTILE)
    screen.print(Table.of(HOSTILE, ["name"], [[HOSTILE]], words=["name"]))
    err = capsys.readouterr().err
    assert err.startswith(f"{SHOWN}\nb\n")
    assert err.count(SHOWN + r"\nb") == 2
    document = printable(json.dumps([HOSTILE], ensure_ascii=False))
    assert (document.encode(), json.loads(document)) == (json.dumps([HOSTILE]).encode(), [HOSTILE])


def test_long_work_in_a_pipe_has_a_line_when_it_begins_and_ends(monkeypatch):
    """Ten seconds pass between two looks at the clock; the four of earlier runs make this one no faster."""
    ticks = itertools.count(step=10)
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))
    console = Console(file=io.StringIO(), width=20)
    with Progress(console).task("rankings", 12, 4, "images") as update:
        for done in (4, 6, 8, 10, 12):
            update(done)
    assert console.file.getvalue().splitlines() == [
        "rankings: 4 of 12 images are there",
        "rankings: 8 of 12 images (67 %), 0:00:30 so far, about 0:00:30 left",
        "rankings: 12 of 12 images",
    ]


def test_only_the_outermost_task_has_lines_at_the_pace_of_what_was_not_spared(monkeypatch):
    """Of four datasets the first is known; the parts of the others take 6 seconds for each of ten images."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=20)
    progress = Progress(console)
    with progress.task("datasets", 4, parts=True) as outer:
        outer(1)
        with progress.task("loading", 1) as update:
            clock[0] = 40.0
            update(1)
        for dataset in (2, 3):
            with progress.task("images", 10, part=True) as update:
                for done in range(1, 11):
                    clock[0] += 6.0
                    update(done)
            outer(dataset)
    assert console.file.getvalue().splitlines() == [
        "datasets: 1 of 4 (25 %), 0:00:40 so far; loading: 1/1",
        "datasets: 1 of 4 (38 %), 0:01:10 so far, about 0:05:50 left",
        "datasets: 2 of 4 (50 %), 0:01:40 so far, about 0:03:20 left",
        "datasets: 2 of 4 (62 %), 0:02:10 so far, about 0:02:10 left",
        "datasets: 3 of 4 (75 %), 0:02:40 so far, about 0:01:20 left",
    ]


def test_images_of_earlier_runs_make_the_whole_no_faster(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=20)
    progress = Progress(console)
    with progress.task("datasets", 2, parts=True), progress.task("images", 10, 8, part=True) as update:
        clock[0] = 40.0
        update(9)
    assert console.file.getvalue() == "datasets: 0 of 2 (45 %), 0:00:40 so far, about 0:07:20 left\n"


def test_bars_on_a_terminal_go_when_their_tasks_end():
    console = Console(file=io.StringIO(), width=99, force_terminal=True)
    progress = Progress(console)
    with progress.task("downloading", 0, unit="{} B".format) as outer, progress.task("inner", 4) as inner:
        outer(30, 300)
        inner(3)
        progress._bars.refresh()
    shown = console.file.getvalue()
    assert "30 B/300 B" in shown
    assert "3/4" in shown
    assert progress._bars is None
