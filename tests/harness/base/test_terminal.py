"""Colour, width and silence; progress of long work, and no silence of it in a pipe."""

import argparse
import io
import itertools
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from harness.base import terminal as module
from harness.base.terminal import Progress, colour_choice, errors, has_width, notes, pace, results


def args(color: str = "auto", quiet: bool = False) -> argparse.Namespace:
    return argparse.Namespace(color=color, quiet=quiet)


@pytest.mark.parametrize(
    ("when", "environ", "expected"),
    [
        *(("auto", {}, "auto"), ("auto", {"NO_COLOR": "1"}, "never")),
        *(("auto", {"NO_COLOR": ""}, "auto"), ("auto", {"FORCE_COLOR": ""}, "auto")),
        *(("auto", {"FORCE_COLOR": "1"}, "always"), ("always", {"NO_COLOR": "1"}, "always")),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, "never"),
        ("never", {"FORCE_COLOR": "1"}, "never"),
    ],
)
def test_the_flag_decides_then_no_color_then_force_color(when, environ, expected):
    assert colour_choice(when, environ) == expected


@pytest.mark.parametrize(
    ("environ", "color", "coloured"),
    [
        ({}, "auto", False),
        ({"FORCE_COLOR": "1"}, "auto", True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False),
        ({}, "always", True),
        ({"TERM": "dumb"}, "always", True),
        ({"FORCE_COLOR": "1"}, "never", False),
    ],
)
def test_a_pipe_has_colours_only_when_asked(environ, color, coloured, monkeypatch, capsys):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for console in (results(args(color)), notes(args(color)), errors(color)):
        console.print("[bold red]error:[/] what")
        assert not console.is_interactive  # nothing moves the cursor in a pipe
    out, err = capsys.readouterr()
    assert ("\x1b[" in out, "\x1b[" in err) == (coloured, coloured)
    assert "error:" in re.sub(r"\x1b\[[\d;]*m", "", out)


def test_quiet_silences_notes_and_neither_results_nor_errors(capsys):
    for console in (results(args(quiet=True)), notes(args(quiet=True)), errors()):
        console.print("a:x:b :smile:")  # words between colons are no pictures
    assert capsys.readouterr() == ("a:x:b :smile:\n", "a:x:b :smile:\n")


def test_a_pipe_has_no_width_unless_columns_gives_one(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert not has_width()
    assert results(args()).width > 10_000
    monkeypatch.setenv("COLUMNS", "120")
    assert has_width()
    assert results(args()).width == 120


def read_to_end(terminal: int) -> bytes:
    """Read what is shown on a pseudo-terminal until nobody has its other side, and close it."""
    text = b""
    try:
        while chunk := os.read(terminal, 4096):
            text += chunk
    except OSError:  # how a terminal says that its other side is closed
        pass
    os.close(terminal)
    return text


@pytest.mark.parametrize(("flags", "coloured"), [([], True), (["--color", "never"], False)])
def test_a_terminal_has_colours_unless_refused(flags: list[str], coloured: bool):
    """On a pseudo-terminal; the error's first word is red."""
    main, side = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "harness", "rank", "--images", "gone", *flags]
    with subprocess.Popen(command, stderr=side, env=environ | {"TERM": "xterm"}) as process:
        os.close(side)
        text = read_to_end(main)
    assert process.returncode == 2
    assert b"error:" in text
    assert (b"\x1b[1;31mpatchrank: error:" in text) == coloured


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


def test_an_overall_bar_counts_what_steps_report_and_parts_leave_out(clock: None):
    """Each look at the clock takes ten seconds; in a pipe there is a line every 30 seconds at most."""
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(console)
    progress.advance(3)  # of nothing
    with progress.overall("compare", 100):
        with progress.part(40), progress.task("rows", 5, units=4) as update:
            for done in (1, 2, 2, 5):
                update(done)
        # The part needed 20 of 40, so 60 are left of 80, in which more than 30 can't be done by this one.
        with progress.part(30):
            progress.advance(50)
        with progress.part(20):
            pass  # known
        with progress.long("rankings", 8, 2, what="shards", units=5) as show:
            show(4)
        progress.advance(17)
    assert progress._work is None
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("compare")]
    shares = [line.split()[1] for line in lines]
    assert shares == sorted(shares, key=int)
    assert lines[-1].startswith("compare: ")
    assert re.fullmatch(r"compare: \d+ %, \d:\d\d:\d\d so far, about \d:\d\d:\d\d left", lines[0])


def test_done_and_left_of_an_overall_bar():
    work = module._Work(name="any", total=100, begin=0, said=0)
    work.part = 30
    work.advance(10)
    assert (work.done, work.part) == (10, 20)
    work.advance(50)  # more than was expected of the part
    assert (work.done, work.part) == (30, 0)
    work.part = None
    work.advance(500)
    assert work.done == 100


def test_the_time_left_goes_by_the_pace_of_what_was_done(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress = Progress(Console(file=io.StringIO()))
    with progress.overall("compare", 100):
        assert progress._work.text == "0:00:00 so far"
        with progress.part(50):
            now = 0.0  # known from an earlier run: it takes no time and tells nothing of the pace
        now = 10.0
        progress.advance(10)
        assert progress._work.text == "20 %, 0:00:10 so far, about 0:00:40 left"
        now = 30.0
        assert progress._work.text == "20 %, 0:00:30 so far, about 0:02:00 left"
        with progress.overall("inner", 1000):  # a part of the outer one
            progress.advance(400)
        assert progress._work.text == "0:00:30 so far"


def test_on_a_terminal_the_overall_bar_stays_while_steps_come_and_go_and_gives_way_to_results():
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=120)
    progress = Progress(console)
    with progress.overall("study [x]", 8):
        with progress.task("first", 4, units=1) as update:
            update(2)
            console._live_stack[0].refresh()
        first = console.file.getvalue()
        assert "study [x]" in first
        assert "first" in first
        assert re.search(r"25 %.* so far, about ", first)
        with progress.hidden():
            assert not console._live_stack
            assert console.file.getvalue().endswith("\x1b[2K")
            before = len(console.file.getvalue())
        with progress.task("second", 4, units=1) as update:
            update(4)
            console._live_stack[0].refresh()
            after = console.file.getvalue()[before:]
            assert "second" in after
            assert "75 %" in after
    assert not console._live_stack
    assert console.file.getvalue().endswith("\x1b[2K")


def work(console: Console | None) -> None:
    progress = Progress(console)
    with progress.task("rows on folder-[bold]", 12) as update:  # brackets are no markup
        update(8)
    with progress.long("folder-[red]", 12, 4, 16) as show:
        show(7)
    with progress.bytes("downloading x.tgz") as update:
        update(500_000, 1_000_000)
        update(1_000_000)


def test_on_a_terminal_there_are_bars_that_go_away():
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=120)
    work(console)
    shown = console.file.getvalue()
    for text in ("rows on folder-[bold]", "8/12", "folder-[red]", "7/12", "images/s", "/1.0 MB"):
        assert text in shown
    assert shown.endswith("\x1b[2K")


def test_in_a_pipe_downloads_and_long_work_are_named_and_nowhere_nothing(capsys):
    work(None)
    assert capsys.readouterr() == ("", "")
    console = Console(file=io.StringIO(), width=100)
    work(console)
    assert console.file.getvalue().splitlines() == ["folder-[red]: 4 of 12 images are there", "downloading x.tgz"]


def test_compare_on_a_terminal_shows_one_bar_over_all_and_results_stay_whole(tmp_path):
    """The real command; errors are a pseudo-terminal, results a pipe."""
    main, side = pty.openpty()
    words = "compare --methods random --keeps 0.6 --limit 4 --batches --dataset emoji fashion --traces 0"
    command = [sys.executable, "-m", "harness", *words.split(), "--output", str(tmp_path / "run")]
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    environ |= {"TERM": "xterm", "COLUMNS": "150"}
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=side, env=environ)
    os.close(side)
    text = read_to_end(main)
    assert process.wait() == 0
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.decode())
    assert re.search(r"compare .*\d+ %, \d:\d\d:\d\d so far, about \d:\d\d:\d\d left", shown)
    assert "images x rows" in shown
    results = (tmp_path / "out").read_text()
    assert results.count("random") >= 2
    assert "so far" not in results
    assert "\x1b" not in results
