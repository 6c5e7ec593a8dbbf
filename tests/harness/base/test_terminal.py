"""Colour, width and silence; progress of long work, and no silence of it in a pipe."""

import io
import json

import pytest
from rich.console import Console

from harness.base import terminal as module
from harness.base.table import Table
from harness.base.terminal import Progress, notes, printable, results


def test_the_environment_colours_a_pipe_and_nothing_moves_its_cursor(monkeypatch):
    for name, value, coloured in (("FORCE_COLOR", "1", True), ("NO_COLOR", "1", False)):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv("TERM", "xterm-256color")
        screen = results()
        with screen.capture() as shown:
            screen.print("[red]x[/]")
        assert ("\x1b[31m" in shown.get(), screen.is_interactive) == (coloured, False)


def test_a_pipe_has_no_width_unless_columns_gives_one(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert results().width > 10_000
    monkeypatch.setenv("COLUMNS", "120")
    assert results().width == 120


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    return seconds


HOSTILE = "a\x1b[31m\x9b2J\x7f\u202e\udcff [red]\nb"
SHOWN = r"a\u001b[31m\u009b2J\u007f\u202e\udcff [red]"


def test_names_of_others_can_not_steer_a_terminal(capsys):
    """Of a table's cells newlines neither; JSON keeps its meaning."""
    screen = notes()
    Progress(screen).say(HOSTILE)
    screen.print(Table.of(HOSTILE, ["name"], [[HOSTILE]], words=["name"]).form())
    err = capsys.readouterr().err
    assert err.startswith(f"{SHOWN}\nb\n")
    assert err.count(SHOWN + r"\nb") == 2
    document = printable(json.dumps([HOSTILE], ensure_ascii=False))
    assert (document.encode(), json.loads(document)) == (json.dumps([HOSTILE]).encode(), [HOSTILE])


def test_long_work_in_a_pipe_has_a_line_when_it_begins_and_ends(clock):
    """The four of earlier runs make this one no faster."""
    console = Console(file=io.StringIO(), width=20)
    with Progress(console).task("rankings", 12, 4, "images") as update:
        for done in (6, 8, 12):
            clock[0] += 15.0
            update(done)
    assert console.file.getvalue().splitlines() == [
        "rankings: 4 of 12 images are there",
        "rankings: 8 of 12 images (67 %), 0:00:30 so far, about 0:00:30 left",
        "rankings: 12 of 12 images",
    ]


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
