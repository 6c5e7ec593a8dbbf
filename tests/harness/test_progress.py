"""Progress of long work: rate and time left of this run alone, and no silence in a pipe."""

import io
import itertools

import pytest
from rich.console import Console

from harness import progress as module
from harness.progress import Progress, pace


@pytest.mark.parametrize(
    ("done", "begun", "seconds", "expected"),
    [
        (100, 0, 10.0, "10 images/s, 1,690 windows/s, 0:01:30 left"),
        # The 900 images of earlier runs make this one no faster.
        (910, 900, 10.0, "1 images/s, 169 windows/s, 0:01:30 left"),
        (1000, 900, 50.0, "2 images/s, 338 windows/s"),
        (900, 900, 10.0, ""),
    ],
)
def test_pace_is_of_this_run(done: int, begun: int, seconds: float, expected: str):
    assert pace(done, 1000, begun, seconds, 169) == expected


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ten seconds pass between two looks at the clock."""
    ticks = itertools.count(step=10)
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))


def test_in_a_pipe_there_is_a_line_now_and_then(clock: None):
    console = Console(file=io.StringIO(), width=20)
    with Progress(console).long("rankings", 12, 4, 16) as show:
        for done in (4, 5, 6, 7, 8, 9, 10, 11, 12, 12):
            show(done)
    assert console.file.getvalue().splitlines() == [
        "rankings: 4 of 12 images are there",
        "rankings: 6 of 12 images, 0.0667 images/s, 1 windows/s, 0:01:30 left",
        "rankings: 9 of 12 images, 0.0833 images/s, 1 windows/s, 0:00:36 left",
        "rankings: 12 of 12 images, 0.0889 images/s, 1 windows/s",
    ]


def test_on_a_terminal_there_is_a_bar_that_goes_away():
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=120)
    with Progress(console).long("rankings", 12, 4, 16) as show:
        show(8)
    shown = console.file.getvalue()
    assert "8/12" in shown
    assert "images/s" in shown
    assert shown.endswith("\x1b[2K")


def test_a_bar_names_a_folder_with_brackets_as_it_is():
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=120)
    with Progress(console).task("rows on folder-[bold]", 12) as update:
        update(8)
    with Progress(console).long("folder-[red]", 12, 4, 16) as show:
        show(8)
    shown = console.file.getvalue()
    assert "rows on folder-[bold]" in shown
    assert "folder-[red]" in shown


def test_nowhere_is_nowhere():
    with Progress().long("rankings", 12, 4, 16) as show:
        show(8)


def test_bytes_are_drawn_on_a_terminal_and_named_in_a_pipe():
    screen, pipe = io.StringIO(), io.StringIO()
    terminal = Console(file=screen, force_terminal=True, force_interactive=True, width=100)
    for console in (terminal, Console(file=pipe, width=100)):
        with Progress(console).bytes("downloading x.tgz") as update:
            update(500_000, 1_000_000)
            update(1_000_000)
    assert "downloading x.tgz" in screen.getvalue()
    assert "/1.0 MB" in screen.getvalue()
    assert pipe.getvalue() == "downloading x.tgz\n"
    with Progress().bytes("unpacking x.tgz", 9) as update:
        update(3)
