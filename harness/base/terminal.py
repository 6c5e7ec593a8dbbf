"""The terminal: where results, notes and errors go, in colour or not, and progress of work."""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

WHENS = ("auto", "always", "never")
LINE_S = 30.0  # seconds between two lines of progress where there is no terminal
FRAMES = 4.0  # of bars per second: few, as models are timed beside them
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


@dataclass
class _Work:
    """The work of a command, in units that take about the same time."""

    name: str
    total: float
    begin: float  # on the clock, in seconds
    said: float  # likewise, when the last line was printed
    done: float = 0.0
    part: float | None = None  # what is left of the part that goes on; None outside of parts

    def advance(self, units: float) -> None:
        """Count units as done, no more than the part or all have left: they are an estimate."""
        units = min(units, self.total - self.done if self.part is None else self.part)
        self.done += units
        if self.part is not None:
            self.part -= units

    @property
    def text(self) -> str:
        """Say how much is done, and how long the rest takes at the pace so far."""
        seconds = time.monotonic() - self.begin
        text = f"{timedelta(seconds=round(seconds))} so far"
        if not 0 < self.done < self.total:
            return text
        left = timedelta(seconds=round(seconds * (self.total - self.done) / self.done))
        return f"{100 * self.done / self.total:.0f} %, {text}, about {left} left"


class _WorkColumn(ProgressColumn):
    """A column that says what `_Work` does, and goes on with the clock."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def render(self, task: Task) -> Text:
        return Text(self._work.text)


class Progress:
    """Show bars on a terminal; elsewhere nothing, or for long work a line now and then.

    A command shows one `overall` bar, and below it one for each step (`task`, `long`, `bytes`). What does the work
    calls `advance`, whoever called it; outside of an overall bar that does nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Take a console, or None to show nothing."""
        self._console = console
        self._work: _Work | None = None
        self._bars: Bars | None = None  # of the work

    @property
    def _has_bars(self) -> bool:
        return self._console is not None and self._console.is_interactive

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def overall(self, name: str, total: float) -> Iterator[None]:
        """Show how far a whole command is while the body runs, and how long the rest takes.

        ``total`` is the work in units that take about the same time, such as passes of an image through a tower; it
        may be a guess. Within another overall bar the body is a part of it.
        """
        if self._work is not None:
            with self.part(total):
                yield
            return
        now = time.monotonic()
        self._work = _Work(name=name, total=total, begin=now, said=now)
        self._show()
        try:
            yield
        finally:
            self._hide()
            self._work = None

    @contextmanager
    def part(self, units: float) -> Iterator[None]:
        """Let the body do so much of the overall work; what it doesn't need, as it was known, was no work."""
        work = self._work
        if work is None or work.part is not None:
            yield
            return
        work.part = min(units, work.total - work.done)
        try:
            yield
        finally:
            work.total -= work.part
            work.part = None
            self._draw(work)

    def advance(self, units: float) -> None:
        """Count units of the overall work as done."""
        if (work := self._work) is not None:
            work.advance(units)
            self._draw(work)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the overall bar away while the body prints elsewhere on the terminal."""
        self._hide()
        try:
            yield
        finally:
            self._show()

    def _show(self) -> None:
        if self._has_bars and self._work is not None:
            self._bars = self._bar(self._work.name, None, _WorkColumn(self._work))
            self._draw(self._work)
            self._bars.start()

    def _hide(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _draw(self, work: _Work) -> None:
        now = time.monotonic()
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=work.done, total=work.total)
        elif not self._has_bars and now - work.said >= LINE_S and 0 < work.done < work.total:
            work.said = now
            self.say(f"{work.name}: {work.text}")

    @contextmanager
    def task(self, name: str, total: int, *, units: float = 0.0) -> Iterator[Callable[[int], None]]:
        """Show a bar while the body runs; call what it yields with the number done.

        Each of them is worth ``units`` of the overall work.
        """
        advance = self._advancing(0, units)
        if not self._has_bars:
            yield advance
            return
        columns = (MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
        with self._bar(name, total, *columns) as bar:

            def update(done: int) -> None:
                advance(done)
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
        self,
        name: str,
        total: int,
        begun: int,
        per_image: float | None = None,
        what: str = "images",
        *,
        units: float = 0.0,
    ) -> Iterator[Callable[[int], None]]:
        """Show work that may go on for days; call what it yields with the number of images done.

        Rate and time left are of this run alone, see `pace`; each image is worth ``units`` of the overall work.
        """
        advance = self._advancing(begun, units)
        start = said = time.monotonic()
        last = begun
        if self._has_bars:
            columns = (MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            with self._bar(name, total, *columns, done=begun) as bar:

                def draw(done: int) -> None:
                    advance(done)
                    text = pace(done, total, begun, time.monotonic() - start, per_image, what)
                    bar.update(bar.task_ids[0], completed=done, text=text)

                yield draw
            return
        self.say(f"{name}: {begun} of {total} {what} are there")

        def line(done: int) -> None:
            nonlocal said, last
            advance(done)
            now = time.monotonic()
            if done > last and (now - said >= LINE_S or done >= total):
                said, last = now, done
                text = pace(done, total, begun, now - start, per_image, what)
                self.say(f"{name}: {done} of {total} {what}, {text}")

        yield line

    def _advancing(self, begun: int, units: float) -> Callable[[int], None]:
        """Return what takes the number done, at first ``begun``, and counts what is new of the overall work."""
        last = begun

        def advance(done: int) -> None:
            nonlocal last
            if units and done > last:
                self.advance((done - last) * units)
            last = max(done, last)

        return advance

    def _bar(self, name: str, total: int | None, *columns: ProgressColumn, done: int = 0) -> Bars:
        """Return a bar for one task, whose columns may have a field ``text``."""
        first = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
        # Results go to standard output as they are, while no bar is shown.
        how: dict[str, Any] = {"transient": True, "redirect_stdout": False, "refresh_per_second": FRAMES}
        bars = Bars(*first, *columns, console=self._console, **how)
        bars.add_task(name, total=total, completed=done, text="")
        return bars
