"""The terminal: results, notes and errors, in colour or not, and progress of work."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

LINE_S = 30.0  # seconds between two lines of progress where there is no terminal
FRAMES = 4.0  # of bars per second: few, as models are timed beside them
_ENDLESS = 100_000  # columns of a pipe: what is printed there brings its own width
# C0 and C1, what turns the direction of text around, and halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Screen(Console):
    """A console that shows control characters, draws no pictures for words between colons, and hides no broken pipe."""

    def __init__(self, **kwargs: Any) -> None:
        # rich follows NO_COLOR and FORCE_COLOR; nothing moves the cursor of a pipe.
        terminal = (sys.stderr if kwargs.get("stderr") else sys.stdout).isatty()
        super().__init__(emoji=False, force_interactive=None if terminal else False, **kwargs)

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Escape all that is printed, cells of tables included; see ``printable``."""
        return super().render_str(printable(text), **kwargs)

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that it is called for."""
        raise  # noqa: PLE0704  (rich calls this while it handles the error)


def results() -> Screen:
    """Return the screen of results, standard output."""
    return Screen(width=None if has_width() else _ENDLESS)


def notes(*, quiet: bool = False) -> Screen:
    """Return the screen of errors, progress and notes, standard error; a quiet one shows nothing."""
    return Screen(stderr=True, quiet=quiet)


def printable(text: str, kept: str = "\n\t") -> str:
    """Return text with escapes for all characters that a terminal would obey, but those that are ``kept``.

    The escapes are JSON's, so that a JSON document keeps its meaning.
    """
    return _OBEYED.sub(lambda match: match[0] if match[0] in kept else json.dumps(match[0])[1:-1], text)


def has_width() -> bool:
    """Tell whether results have a width to keep to: a terminal's, or the variable COLUMNS."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


@dataclass(eq=False)
class _Task:
    """Work in progress, as it is shown."""

    name: str
    total: float  # 0 if unknown
    begun: float  # done by earlier runs, so that it doesn't count for the pace
    what: str
    unit: Callable[[int], str]
    done: float
    begin_s: float

    @property
    def text(self) -> str:
        done = self.unit(int(self.done))
        return f"{done}/{self.unit(int(self.total))}" if self.total else done

    @property
    def line(self) -> str:
        line = f"{self.name}: {self.text.replace('/', ' of ')} {self.what}".rstrip()
        if self.done < self.total:
            spent_s = time.monotonic() - self.begin_s
            line += f" ({100 * self.done / self.total:.0f} %), {timedelta(seconds=round(spent_s))} so far"
            if self.done > self.begun:
                left_s = spent_s * (self.total - self.done) / (self.done - self.begun)
                line += f", about {timedelta(seconds=round(left_s))} left"
        return line


class Progress:
    """Show bars of tasks on a terminal, one below the other; elsewhere a line of the outermost task now and then."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console  # None shows nothing
        self._bars: Bars | None = None  # while a task is shown on a terminal
        self._tasks: list[_Task] = []  # that go on, the outermost first
        self._said_s = 0.0  # when the last line was printed

    def __reduce__(self) -> tuple[type["Progress"], tuple[()]]:
        """Show nothing in another process."""
        return Progress, ()

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(
        self, name: str, total: float, begun: float = 0, what: str = "", *, unit: Callable[[int], str] = str
    ) -> Iterator[Callable[..., None]]:
        """Show how far work is; yield a function of the number done, and of the total if that is new.

        Earlier runs did ``begun`` of ``total``. Work that names its items, ``what``, has a line at its begin and one at
        its end even without a terminal.
        """
        task = _Task(name, total, begun, what, unit, begun, time.monotonic())
        if not self._tasks:
            self._said_s = task.begin_s
        self._tasks.append(task)
        try:
            if self._console is not None and self._console.is_interactive:
                with self._bar(task) as update:
                    yield update
            else:
                if what:
                    self.say(f"{name}: {begun} of {total} {what} are there")
                yield partial(self._say_line, task)
        finally:
            self._tasks.remove(task)

    def _say_line(self, task: _Task, done: float, total: float = 0) -> None:
        """Print a line if a task of named work ends; else one of the outermost task, if the last line is old."""
        task.done, task.total = done, total or task.total
        now_s, ends = time.monotonic(), bool(task.what) and done >= task.total > task.begun
        if ends or now_s - self._said_s >= LINE_S:
            self._said_s = now_s
            outer = task if ends else self._tasks[0]
            self.say(outer.line + (f"; {task.name}: {task.text}" if outer is not task else ""))

    @contextmanager
    def _bar(self, task: _Task) -> Iterator[Callable[..., None]]:
        if self._bars is None:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            # Results go to standard output as they are, while no bar is shown.
            options: dict[str, Any] = {"transient": True, "redirect_stdout": False, "refresh_per_second": FRAMES}
            self._bars = Bars(*columns, console=self._console, **options)
            self._bars.start()
        bars, begun = self._bars, int(task.begun)
        key = bars.add_task(printable(task.name, ""), total=task.total or None, completed=begun, text=task.text)

        def update(done: float, total: float = 0) -> None:
            task.done, task.total = done, total or task.total
            bars.update(key, text=task.text, completed=done, total=task.total or None)

        try:
            yield update
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
