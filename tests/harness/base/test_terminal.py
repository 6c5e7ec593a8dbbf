"""Colour, width and silence; progress of long work, and no silence of it in a pipe."""

import argparse
import io
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
    """An image takes ten seconds; the four of earlier runs make this one no faster."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=20)
    progress = Progress(console)
    with progress.task("rankings", 12, 4, "images") as update, progress.task("inner", 9) as inner:
        for done in range(4, 13):
            clock[0] = 10.0 * (done - 4)
            update(done)
            if done == 8:
                inner(3)
    assert console.file.getvalue().splitlines() == [
        "rankings: 4 of 12 images are there",
        "rankings: 7 of 12 images (58 %), 0:00:30 so far, about 0:00:50 left",
        "inner: 3 of 9 (33 %), 0:00:40 so far",
        "rankings: 10 of 12 images (83 %), 0:01:00 so far, about 0:00:20 left",
        "rankings: 12 of 12 images",
    ]


def test_bars_on_a_terminal_go_when_their_tasks_end():
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    progress = Progress(console)
    with progress.task("downloading", 0, unit="{} B".format) as outer, progress.task("inner", 4) as inner:
        outer(30, 300)
        inner(3)
        progress._bars.refresh()
    shown = console.file.getvalue()
    assert "30 B/300 B" in shown
    assert "3/4" in shown
    assert progress._bars is None
