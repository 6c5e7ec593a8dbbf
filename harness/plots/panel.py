"""A plot of several panels: all in one figure for a file, each by itself for a page."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.plots.style import OPTIONS, Style, saved

_TITLE = 56  # letters in a line
_LEGEND = 3  # columns below a panel


class Panel(Protocol):
    """One pair of axes."""

    @property
    def title(self) -> str:
        """What it is of."""

    @property
    def alt(self) -> str:
        """What it shows, in words."""

    @property
    def notes(self) -> Sequence[str]:
        """What to read with it."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the series, for their styles."""

    def draw(self, axes: Any, styles: Mapping[str, Style]) -> dict[str, Any]:
        """Draw, and return what the legend shows by name."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure.

    Attributes:
        name: of its files, without suffix.
        title: heading.
        about: what it shows and how to read it.
        panels: at least one.
    """

    name: str
    title: str
    about: str
    panels: Sequence[Panel]

    def draw(self, styles: Mapping[str, Style], form: str) -> bytes:
        """Return all panels in one figure, as "png" or "svg" bytes."""
        across = min(3, len(self.panels))
        down = -(-len(self.panels) // across)
        return _drawn(self.panels, (down, across), styles, form)

    def draw_each(self, styles: Mapping[str, Style]) -> list[bytes]:
        """Return each panel as an SVG of its own, without the title, small enough for a phone."""
        return [_drawn([panel], None, styles, "svg") for panel in self.panels]


def _drawn(
    panels: Sequence[Panel], grid: tuple[int, int] | None, styles: Mapping[str, Style], form: str
) -> bytes:
    """Draw panels in rows and columns with a legend aside; without, one with a legend below."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    down, across = grid or (1, 1)
    with mpl.rc_context(OPTIONS):
        size = (4.8 * across + 1.4, 3.8 * down) if grid else (4.5, 4.1)
        figure = Figure(figsize=size, layout="constrained")
        handles: dict[str, Any] = {}
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(down, across, place)
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
            if grid:
                axes.set_title("\n".join(textwrap.wrap(panel.title, _TITLE)))
            handles |= panel.draw(axes, styles)
        if grid:
            figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        else:
            columns = 1 if max(map(len, handles)) > 24 else _LEGEND
            figure.legend(
                handles.values(), handles.keys(), loc="outside lower center", ncols=columns
            )
        return saved(figure, form)
