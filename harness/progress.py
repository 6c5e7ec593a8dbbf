"""Progress on a terminal, silence elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


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
        if self._console is None:
            yield lambda _: None
            return
        columns = (
            TextColumn("{task.description}"),
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
