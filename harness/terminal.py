"""Where results, notes and errors go: how wide, in colour or not, for people or for programs."""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NoReturn

from rich.console import Console

WHENS = ("auto", "always", "never")
_ENDLESS = 100_000  # columns of a pipe: what is printed there brings its own width


class Screen(Console):
    """A console that draws no pictures for words between colons, and hides no broken pipe."""

    def __init__(self, **kwargs: Any) -> None:
        """Take what a console takes."""
        super().__init__(emoji=False, **kwargs)

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that it is called for."""
        raise  # noqa: PLE0704  (rich calls this while it handles the error)


def results(args: Namespace) -> Screen:
    """Return where results go, standard output."""
    width = None if has_width() else _ENDLESS
    return Screen(width=width, **_colours(args.color, stderr=False))


def notes(args: Namespace) -> Screen:
    """Return where progress and notes go: standard error, or nowhere with ``--quiet``."""
    return Screen(stderr=True, quiet=args.quiet, **_colours(args.color, stderr=True))


def errors(color: str = "auto") -> Screen:
    """Return where errors go, standard error, whatever else is wanted."""
    return Screen(stderr=True, **_colours(color, stderr=True))


def has_width() -> bool:
    """Tell whether results have a width to keep to: a terminal's, or what COLUMNS says."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def _colours(when: str, *, stderr: bool) -> dict[str, Any]:
    stream = sys.stderr if stderr else sys.stdout
    when = wanted(when, os.environ)
    if when == "never":
        return {"color_system": None, "force_terminal": stream.isatty()}
    if when == "always":
        # Colours in a pipe, but nothing that moves the cursor.
        return {
            "color_system": "standard",
            "force_terminal": True,
            "force_interactive": stream.isatty() and os.environ.get("TERM") != "dumb",
        }
    # Of colours forced by its own reading of the environment rich would make a terminal of a pipe.
    return {"force_terminal": stream.isatty()}


def wanted(when: str, environ: Mapping[str, str]) -> str:
    """Return whether colours are wanted: the flag decides, then NO_COLOR, then FORCE_COLOR."""
    if when != "auto":
        return when
    if environ.get("NO_COLOR"):
        return "never"
    return "always" if environ.get("FORCE_COLOR") else "auto"
