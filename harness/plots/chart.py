"""Points with intervals, joined by series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.plots.style import INK, Style
from harness.statistics import Interval

FRONT = "Pareto front"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row.

    Attributes:
        x: with its interval, all three the same where it has none.
        y: with its interval.
        hollow: drawn without filling.
    """

    x: Interval
    y: Interval
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Series of points.

    Attributes:
        title: what it is of.
        alt: what it shows, in words.
        x_label: with unit.
        y_label: with unit.
        series: points by name, in the order in which they are joined.
        level: height of a dotted line across; None for none.
        front: corners of a staircase, x rising; empty for none.
        ticks: labels at places of x; none for matplotlib's own.
        notes: sentences to read with it.
    """

    title: str
    alt: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    level: float | None = None
    front: Sequence[tuple[float, float]] = ()
    ticks: Mapping[float, str] | None = None
    notes: Sequence[str] = ()

    @property
    def names(self) -> Sequence[str]:
        """Names of the series."""
        return list(self.series)

    def draw(self, axes: Any, styles: Mapping[str, Style]) -> dict[str, Any]:
        """Draw, and return what the legend shows by name."""
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        if self.ticks is not None:
            axes.set_xticks(list(self.ticks), list(self.ticks.values()))
        handles = {
            name: _series(axes, points, styles[name]) for name, points in self.series.items()
        }
        if self.level is not None:
            axes.axhline(self.level, color=INK, linewidth=0.8, linestyle=":")
        if self.front:
            x, y = zip(*self.front, strict=True)
            # On to the right edge, where the last corner still holds; the axes don't grow by it.
            right = axes.get_xlim()[1]
            [handles[FRONT]] = axes.step(
                [*x, right], [*y, y[-1]], where="post", color=INK, linewidth=1.1, alpha=0.55,
                zorder=1.5,
            )  # fmt: skip
            axes.set_xlim(right=right)
        return handles


def _series(axes: Any, points: Sequence[Point], style: Style) -> Any:
    """Draw a line with bars below its markers; return the legend's entry."""
    from matplotlib.lines import Line2D

    x, y = [point.x.estimate for point in points], [point.y.estimate for point in points]
    axes.errorbar(
        x, y, xerr=_bars([point.x for point in points]), yerr=_bars([point.y for point in points]),
        color=style.colour, linestyle=style.line, linewidth=1.3, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip
    look = {"marker": style.marker, "markersize": 6.5, "markeredgewidth": 0.7}
    for hollow in (False, True):
        some = [point for point in points if point.hollow == hollow]
        face, edge = ("none", style.colour) if hollow else (style.colour, INK)
        if hollow:
            look["markeredgewidth"] = 1.4
        axes.plot(
            [point.x.estimate for point in some],
            [point.y.estimate for point in some],
            linestyle="none",
            markerfacecolor=face,
            markeredgecolor=edge,
            **look,
        )
    return Line2D(
        [], [], color=style.colour, linestyle=style.line, linewidth=1.3, marker=style.marker,
        markersize=6.5, markeredgecolor=INK, markeredgewidth=0.7,
    )  # fmt: skip


def _bars(values: Sequence[Interval]) -> list[list[float]] | None:
    """Return lengths of bars down and up; None where there are none."""
    if all(value.low == value.estimate == value.high for value in values):
        return None
    return [
        [value.estimate - value.low for value in values],
        [value.high - value.estimate for value in values],
    ]
