"""Progress on a terminal; elsewhere silence, or for long work a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

LINE_S = 30.0  # seconds between two lines where there is no terminal


def pace(done: int, total: int, begun: int, seconds: float, per_image: float) -> str:
    """Describe how fast this run is and how long it will take.

    Args:
        done: images done, by earlier runs too.
        total: images in all.
        begun: images that were done when this run began.
        seconds: since this run began.
        per_image: windows that an image takes.
    """
    if done <= begun or seconds <= 0:
        return ""
    rate = (done - begun) / seconds
    text = f"{rate:.3g} images/s, {rate * per_image:,.0f} windows/s"
    left = timedelta(seconds=round((total - done) / rate))
    return f"{text}, {left} left" if done < total else text


class Progress:
    """Show tasks with rate and time left.

    Args:
        console: where; None for nowhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Show nothing yet."""
        self._console = console

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        if self._console is not None:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar while the body runs; call what it yields with the number done."""
        if self._console is None or not self._console.is_interactive:
            yield lambda _: None
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(name, total=total, rate="")

            def update(done: int) -> None:
                speed = bars.tasks[0].speed
                bars.update(task, completed=done, rate=f"{speed:.1f}/s" if speed else "")

            yield update

    @contextmanager
    def bytes(self, name: str, total: int = 0) -> Iterator[Callable[..., None]]:
        """Show a bar of bytes; call what it yields with those done, and the total if it is new.

        Where there is no terminal, a line says that it begins.
        """
        if self._console is None or not self._console.is_interactive:
            self.say(name)
            yield lambda *_: None
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(name, total=total or None)

            def update(done: int, whole: int = 0) -> None:
                bars.update(task, completed=done, total=whole or total or None)

            yield update

    @contextmanager
    def long(
        self, name: str, total: int, begun: int, per_image: float
    ) -> Iterator[Callable[[int], None]]:
        """Show work that may go on for days; call what it yields with the number of images done.

        Rate and time left are of this run alone, whatever earlier runs did.

        Args:
            name: what is done.
            total: images in all.
            begun: images that earlier runs did.
            per_image: windows that an image takes.
        """
        start = said = time.monotonic()
        last = begun
        if self._console is None:
            yield lambda _: None
        elif self._console.is_interactive:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
            )
            with Bars(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(name, total=total, completed=begun, pace="")

                def draw(done: int) -> None:
                    seconds = time.monotonic() - start
                    text = pace(done, total, begun, seconds, per_image)
                    bars.update(task, completed=done, pace=text)

                yield draw
        else:
            self.say(f"{name}: {begun} of {total} images are there")

            def line(done: int) -> None:
                nonlocal said, last
                now = time.monotonic()
                if done > last and (now - said >= LINE_S or done >= total):
                    said, last = now, done
                    text = pace(done, total, begun, now - start, per_image)
                    self.say(f"{name}: {done} of {total} images, {text}")

            yield line
