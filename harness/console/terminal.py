"""The terminal: where results, notes and errors go, in colour or not, and progress of work."""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

WHENS = ("auto", "always", "never")
LINE_S = 30.0  # seconds between two lines of progress where there is no terminal
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
    """Return where errors go: standard error, even with ``--quiet``."""
    return Screen(stderr=True, **_colours(color, stderr=True))


def printable(text: str) -> str:
    """Return text of somebody else without what a terminal would obey; lines and tabs stay."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def has_width() -> bool:
    """Tell whether results have a width to keep to: a terminal's, or what COLUMNS says."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def _colours(when: str, *, stderr: bool) -> dict[str, Any]:
    stream = sys.stderr if stderr else sys.stdout
    when = colour_choice(when, os.environ)
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


def colour_choice(when: str, environ: Mapping[str, str]) -> str:
    """Return when to colour: the flag decides, then NO_COLOR, then FORCE_COLOR."""
    if when != "auto":
        return when
    if environ.get("NO_COLOR"):
        return "never"
    return "always" if environ.get("FORCE_COLOR") else "auto"


def pace(done: int, total: int, begun: int, seconds: float, per_image: float | None, what: str = "images") -> str:
    """Describe how fast this run is and how long it will take.

    Of ``total`` images, or ``what`` it is, earlier runs did ``begun``, and ``done`` includes these.
    ``seconds`` are since this run began, and ``per_image`` is the number of windows, None without any.
    """
    if done <= begun or seconds <= 0:
        return ""
    rate = (done - begun) / seconds
    text = f"{rate:.3g} {what}/s"
    if per_image is not None:
        text += f", {rate * per_image:,.0f} windows/s"
    left = timedelta(seconds=round((total - done) / rate))
    return f"{text}, {left} left" if done < total else text


class Progress:
    """Show bars on a terminal; elsewhere nothing, or for long work a line now and then."""

    def __init__(self, console: Console | None = None) -> None:
        """Take a console, or None to show nothing."""
        self._console = console

    @property
    def _has_bars(self) -> bool:
        return self._console is not None and self._console.is_interactive

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar while the body runs; call what it yields with the number done."""
        if not self._has_bars:
            yield lambda _: None
            return
        columns = (MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
        with self._bar(name, total, *columns) as bar:

            def update(done: int) -> None:
                speed = bar.tasks[0].speed
                bar.update(bar.task_ids[0], completed=done, text=f"{speed:.1f}/s" if speed else "")

            yield update

    @contextmanager
    def bytes(self, name: str, total: int = 0) -> Iterator[Callable[..., None]]:
        """Show a bar of bytes; call what it yields with those done, and the total if it is new.

        Where there is no terminal, a line says that it begins.
        """
        if not self._has_bars:
            self.say(name)
            yield lambda *_: None
            return
        columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with self._bar(name, total or None, *columns) as bar:

            def update(done: int, new_total: int = 0) -> None:
                bar.update(bar.task_ids[0], completed=done, total=new_total or total or None)

            yield update

    @contextmanager
    def long(
        self, name: str, total: int, begun: int, per_image: float | None = None, what: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """Show work that may go on for days; call what it yields with the number of images done.

        Rate and time left are of this run alone, see `pace`.
        """
        start = said = time.monotonic()
        last = begun
        if self._has_bars:
            columns = (MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            with self._bar(name, total, *columns, done=begun) as bar:

                def draw(done: int) -> None:
                    text = pace(done, total, begun, time.monotonic() - start, per_image, what)
                    bar.update(bar.task_ids[0], completed=done, text=text)

                yield draw
            return
        self.say(f"{name}: {begun} of {total} {what} are there")

        def line(done: int) -> None:
            nonlocal said, last
            now = time.monotonic()
            if done > last and (now - said >= LINE_S or done >= total):
                said, last = now, done
                text = pace(done, total, begun, now - start, per_image, what)
                self.say(f"{name}: {done} of {total} {what}, {text}")

        yield line

    def _bar(self, name: str, total: int | None, *columns: ProgressColumn, done: int = 0) -> Bars:
        """Return a bar for one task, whose columns may have a field ``text``."""
        first = (TextColumn("{task.description}", markup=False), BarColumn())
        bars = Bars(*first, *columns, console=self._console, transient=True)
        bars.add_task(name, total=total, completed=done, text="")
        return bars
