"""The terminal: where results, notes and errors go, in colour or not, and progress of work."""

import json
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

WHENS = ("auto", "always", "never")
LINE_S = 30.0  # seconds between two lines of progress where there is no terminal
FRAMES = 4.0  # of bars per second: few, as models are timed beside them
_ENDLESS = 100_000  # columns of a pipe: what is printed there brings its own width
# C0 and C1, what turns the direction of text around, and halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Screen(Console):
    """A console that shows control characters, draws no pictures for words between colons, and hides no broken pipe."""

    def __init__(self, color: str, **kwargs: Any) -> None:
        """Take when to colour, of `WHENS`, and what a console takes."""
        terminal = (sys.stderr if kwargs.get("stderr") else sys.stdout).isatty()
        # Of colours forced by its own reading of the environment rich would make a terminal of a pipe.
        how: dict[str, Any] = {"force_terminal": terminal}
        when = colour_choice(color, os.environ)
        if when == "never":
            how["color_system"] = None
        elif when == "always":  # colours in a pipe, but nothing that moves the cursor
            moves = terminal and os.environ.get("TERM") != "dumb"
            how = {"color_system": "standard", "force_terminal": True, "force_interactive": moves}
        super().__init__(emoji=False, **how, **kwargs)

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Turn what is printed, a cell of a table too, into rich's text; see ``printable``."""
        return super().render_str(printable(text), **kwargs)

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that it is called for."""
        raise  # noqa: PLE0704  (rich calls this while it handles the error)


def results(args: Namespace) -> Screen:
    """Return where results go, standard output."""
    return Screen(args.color, width=None if has_width() else _ENDLESS)


def notes(args: Namespace) -> Screen:
    """Return where progress and notes go: standard error, or nowhere with ``--quiet``."""
    return Screen(args.color, stderr=True, quiet=args.quiet)


def errors(color: str = "auto") -> Screen:
    """Return where errors go: standard error, even with ``--quiet``."""
    return Screen(color, stderr=True)


def printable(text: str, kept: str = "\n\t") -> str:
    """Return text with escapes for what a terminal would obey, but for characters that are ``kept``.

    The escapes are JSON's, so that a JSON document keeps its meaning.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in kept else json.dumps(found[0])[1:-1], text)


def has_width() -> bool:
    """Tell whether results have a width to keep to: a terminal's, or what COLUMNS says."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def colour_choice(when: str, environ: Mapping[str, str]) -> str:
    """Return when to colour: the flag decides, then NO_COLOR, then FORCE_COLOR."""
    if when != "auto":
        return when
    if environ.get("NO_COLOR"):
        return "never"
    return "always" if environ.get("FORCE_COLOR") else "auto"


class Progress:
    """Show bars on a terminal, one below the other; elsewhere a line of the outermost one now and then."""

    def __init__(self, console: Console | None = None) -> None:
        """Take a console, or None to show nothing."""
        self._console = console
        self._bars: Bars | None = None  # while a task is shown
        self._depth = 0  # of tasks that go on

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: float, begun: int = 0, what: str = "") -> Iterator[Callable[[float], None]]:
        """Show how far work is; call what it yields with the number done.

        Of ``total``, earlier runs did ``begun``, which tells nothing of the pace. ``what`` they are is named for
        work that may go on for days: where there is no terminal a line says that it begins, and another that it ends.
        """
        if self._console is not None and self._console.is_interactive:
            with self._bar(name, total, begun) as update:
                yield update
            return
        begin = said = time.monotonic()
        outermost = self._depth == 0 or what
        if what:
            self.say(f"{name}: {begun} of {total} {what} are there")

        def line(done: float) -> None:
            nonlocal said
            now = time.monotonic()
            if not outermost or done <= begun or (now - said < LINE_S and not (what and done >= total)):
                return
            said, left = now, _left(now - begin, done, begun, total)
            pace = f" ({100 * done / total:.0f} %), {_clock(now - begin)} so far, about {left} left"
            self.say(f"{name}: {f'{done:g} of {total:g} {what}'.rstrip()}{pace if done < total else ''}")

        self._depth += 1
        try:
            yield line
        finally:
            self._depth -= 1

    @contextmanager
    def bytes(self, name: str, total: int = 0) -> Iterator[Callable[..., None]]:
        """Show a bar of bytes; call what it yields with those done, and the total if it is new.

        Where there is no terminal, a line says that it begins.
        """
        if self._console is None or not self._console.is_interactive:
            self.say(name)
            yield lambda *_: None
            return
        with self._bar(name, total, unit=decimal) as update:
            yield update

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bars away while the body prints elsewhere on the terminal."""
        bars = self._bars
        if bars is not None:
            bars.stop()
        try:
            yield
        finally:
            if bars is not None:
                bars.start()

    @contextmanager
    def _bar(
        self, name: str, total: float, begun: int = 0, unit: Callable[[Any], str] = "{:g}".format
    ) -> Iterator[Callable[..., None]]:
        """Add a bar below those that are shown; call what it yields with the number done, and the total if new."""
        if self._bars is None:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            )  # fmt: skip
            # Results go to standard output as they are, while no bar is shown.
            how: dict[str, Any] = {"transient": True, "redirect_stdout": False, "refresh_per_second": FRAMES}
            self._bars = Bars(*columns, console=self._console, **how)
            self._bars.start()
        bars, begin = self._bars, time.monotonic()
        key = bars.add_task(printable(name, ""), total=total or None, completed=begun, text="", left="")

        def update(done: float, new_total: float = 0) -> None:
            whole = new_total or total
            text = f"{unit(done)}/{unit(whole)}" if whole else unit(done)
            left = _left(time.monotonic() - begin, done, begun, whole) if whole and done > begun else "-:--:--"
            bars.update(key, text=text, left=left, completed=done, total=whole or None)

        try:
            yield update
        finally:
            bars.remove_task(key)
            if not bars.task_ids:
                bars.stop()
                self._bars = None


def _clock(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


def _left(spent_s: float, done: float, begun: float, total: float) -> str:
    """Return how long the rest takes at the pace of what was done beyond what earlier runs did."""
    return str(_clock(spent_s * max(total - done, 0) / (done - begun)))
