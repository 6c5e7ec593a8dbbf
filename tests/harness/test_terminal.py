"""Colour, width and silence."""

import argparse
import os
import pty
import re
import subprocess
import sys

import pytest
from harness.terminal import errors, has_width, notes, results, wanted


def args(color: str = "auto", quiet: bool = False) -> argparse.Namespace:
    return argparse.Namespace(color=color, quiet=quiet)


@pytest.mark.parametrize(
    ("when", "environ", "expected"),
    [
        ("auto", {}, "auto"),
        ("auto", {"NO_COLOR": "1"}, "never"),
        ("auto", {"NO_COLOR": ""}, "auto"),
        ("auto", {"FORCE_COLOR": "1"}, "always"),
        ("auto", {"FORCE_COLOR": ""}, "auto"),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, "never"),
        ("always", {"NO_COLOR": "1"}, "always"),
        ("never", {"FORCE_COLOR": "1"}, "never"),
    ],
)
def test_the_flag_decides_then_no_color_then_force_color(when, environ, expected):
    assert wanted(when, environ) == expected


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
        console.print("said")
    assert capsys.readouterr() == ("said\n", "said\n")


def test_words_between_colons_are_no_pictures(capsys):
    results(args()).print("a:x:b :smile:")
    assert capsys.readouterr().out == "a:x:b :smile:\n"


def test_a_pipe_has_no_width_unless_columns_gives_one(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert not has_width()
    assert results(args()).width > 10_000
    monkeypatch.setenv("COLUMNS", "120")
    assert has_width()
    assert results(args()).width == 120


@pytest.mark.parametrize(("flags", "coloured"), [([], True), (["--color", "never"], False)])
def test_a_terminal_has_colours_unless_refused(flags: list[str], coloured: bool):
    """On a pseudo-terminal; the error's first word is red."""
    main, side = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "harness", "rank", "--images", "gone", *flags]
    with subprocess.Popen(command, stderr=side, env=environ | {"TERM": "xterm"}) as process:
        os.close(side)
        text = b""
        try:
            while chunk := os.read(main, 4096):
                text += chunk
        except OSError:  # how a terminal says that its other side is closed
            pass
    os.close(main)
    assert process.returncode == 2
    assert b"error:" in text
    assert (b"\x1b[1;31merror:" in text) == coloured
