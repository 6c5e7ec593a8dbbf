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
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

WHENS = ("auto", "always", "never")
LINE_S = 30.0  # seconds between two lines of progress where there is no terminal
PACE_S = 3600.0  # seconds of work that tell its pace
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
    """Show bars on a terminal, one below the other; elsewhere a line now and then."""

    def __init__(self, console: Console | None = None) -> None:
        """Take a console, or None to show nothing."""
        self._console = console
        self._bars: Bars | None = None  # while a task is shown

    def __reduce__(self) -> tuple[type["Progress"], tuple[()]]:
        """Show nothing in another process."""
        return Progress, ()

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(
        self, name: str, total: float, begun: int = 0, what: str = "", unit: Callable[[Any], str] = "{:g}".format
    ) -> Iterator[Callable[..., None]]:
        """Show how far work is; call what it yields with the number done, and the total if that is new.

        Earlier runs did ``begun`` of ``total``. ``what`` they are is named for work that may go on for days: where
        there is no terminal a line says that it begins, and another that it ends.
        """
        drawn = self._console is not None and self._console.is_interactive
        if self._bars is None:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            # Results go to standard output as they are, while no bar is shown.
            options: dict[str, Any] = {"transient": True, "redirect_stdout": False, "refresh_per_second": FRAMES}
            options |= {"speed_estimate_period": PACE_S, "get_time": time.monotonic, "disable": not drawn}
            self._bars = Bars(*columns, console=self._console, **options)
            self._bars.start()
        bars = self._bars
        key = bars.add_task(printable(name, ""), total=total or None, completed=begun, text="")
        task = next(one for one in bars.tasks if one.id == key)
        said = task.get_time()
        if what and not drawn:
            self.say(f"{name}: {begun} of {total} {what} are there")

        def update(done: float, new_total: float = 0) -> None:
            nonlocal said
            whole = new_total or total
            text = "/".join(map(unit, (done, whole) if whole else (done,)))
            bars.update(key, text=text, completed=done, total=whole or None)
            now, ends = task.get_time(), bool(what) and done >= whole
            if drawn or done <= begun or (now - said < LINE_S and not ends):
                return
            said, line = now, f"{name}: {text.replace('/', ' of ')} {what}".rstrip()
            if done < whole:
                line += f" ({task.percentage:.0f} %), {_clock(task.elapsed)} so far"
                line += f", about {_clock(task.time_remaining)} left" if task.time_remaining else ""
            self.say(line)

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


def _clock(seconds: float | None) -> timedelta:
    return timedelta(seconds=round(seconds or 0))
