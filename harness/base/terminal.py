"""The terminal: where results, notes and errors go, in colour or not, and progress of work."""

import json
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from rich.console import Console
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


@dataclass(eq=False)
class _Task:
    """Work that goes on."""

    name: str
    total: float  # 0 if unknown
    what: str
    unit: Callable[[int], str]
    done: float
    spared: float  # of what is done: it took no time here and tells nothing of the pace
    begin_s: float

    def text(self) -> str:
        done = self.unit(int(self.done))
        return f"{done}/{self.unit(int(self.total))}" if self.total else done

    def left(self, spent_s: float) -> str:
        """Return how long the rest takes at the pace until now, "" if there is none."""
        if not self.total or self.done <= self.spared:
            return ""
        return str(_clock(spent_s * max(self.total - self.done, 0) / (self.done - self.spared)))

    def line(self, spent_s: float) -> str:
        line = f"{self.name}: {self.text().replace('/', ' of ')} {self.what}".rstrip()
        if self.done < self.total:
            left = self.left(spent_s)
            line += f" ({100 * self.done / self.total:.0f} %), {_clock(spent_s)} so far"
            line += f", about {left} left" if left else ""
        return line


class Progress:
    """Show bars on a terminal, one below the other; elsewhere a line of the outermost one now and then."""

    def __init__(self, console: Console | None = None) -> None:
        """Take a console, or None to show nothing."""
        self._console = console
        self._bars: Bars | None = None  # while a task is shown on a terminal
        self._tasks: list[_Task] = []  # that go on, the outermost first
        self._said_s = 0.0  # when the last line was printed
        self._move: Callable[..., None] = lambda *_, **__: None  # moves the task around the next one

    def __reduce__(self) -> tuple[type["Progress"], tuple[()]]:
        """Show nothing in another process."""
        return Progress, ()

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(
        self,
        name: str,
        total: float,
        begun: float = 0,
        what: str = "",
        *,
        unit: Callable[[int], str] = str,
        parts: bool = False,
        part: bool = False,
    ) -> Iterator[Callable[..., None]]:
        """Show how far work is; call what it yields with the number done, and the total if that is new.

        Of ``total``, earlier runs did ``begun``, which tells nothing of the pace. ``what`` they are is named for
        work that may go on for days: where there is no terminal a line says that it begins, and another that it ends.
        A task of ``parts`` goes on by one while a task in it does that is a ``part``; else it was spared work.
        """
        now_s = time.monotonic()
        task, outer_move = _Task(name, total, what, unit, begun, begun, now_s), self._move
        if not self._tasks:
            self._said_s = now_s
        if part and begun:
            outer_move(begun / total, spared=True)
        self._tasks.append(task)
        counted = float(begun)
        with self._bar(task) as draw:

            def show(done: float) -> None:
                task.done = done
                draw()
                if part and task.total:
                    outer_move(done / task.total)
                if not self._drawn:
                    self._say_line(task, ends=bool(what) and done >= task.total > begun)

            def move(fraction: float, *, spared: bool = False) -> None:
                done = max(task.done, counted + fraction)
                task.spared += spared * (done - task.done)
                show(done)

            def update(done: float, new_total: float = 0) -> None:
                nonlocal counted
                task.total = new_total or task.total
                task.spared += parts * max(done - task.done, 0)
                counted = done
                show(done)

            if what and not self._drawn:
                self.say(f"{name}: {begun} of {total} {what} are there")
            self._move = move if parts else lambda *_, **__: None
            try:
                yield update
            finally:
                self._move = outer_move
                self._tasks.remove(task)

    @property
    def _drawn(self) -> bool:
        return self._console is not None and self._console.is_interactive

    def _say_line(self, task: _Task, ends: bool) -> None:
        """Print a line if ``task`` ends; else one of the outermost task, if the last line is old."""
        now_s = time.monotonic()
        if ends or now_s - self._said_s >= LINE_S:
            self._said_s = now_s
            outer = task if ends else self._tasks[0]  # of no pace at first, so the line says how far its inner task is
            spent_s = now_s - outer.begin_s
            inner = f"; {task.name}: {task.text()}" if outer is not task and not outer.left(spent_s) else ""
            self.say(outer.line(spent_s) + inner)

    @contextmanager
    def _bar(self, task: _Task) -> Iterator[Callable[[], None]]:
        """Add a bar below those that are shown; call what it yields when the task went on."""
        if not self._drawn:
            yield lambda: None
            return
        if self._bars is None:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            )  # fmt: skip
            # Results go to standard output as they are, while no bar is shown.
            how: dict[str, Any] = {"transient": True, "redirect_stdout": False, "refresh_per_second": FRAMES}
            self._bars = Bars(*columns, console=self._console, **how)
            self._bars.start()
        bars = self._bars
        key = bars.add_task(
            printable(task.name, ""), total=task.total or None, completed=int(task.done), text="", left=""
        )
        try:

            def draw() -> None:
                left = task.left(time.monotonic() - task.begin_s) or "-:--:--"
                bars.update(key, text=task.text(), left=left, completed=task.done, total=task.total or None)

            yield draw
        finally:
            bars.remove_task(key)
            if not bars.task_ids:
                bars.stop()
                self._bars = None

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


def _clock(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
