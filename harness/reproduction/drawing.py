"""Draw a figure: what is lost against the unpruned tower, ours beside the paper's."""

import textwrap
from collections.abc import Sequence
from typing import Any

from harness.report.drawing import INK, OPTIONS, STYLES, saved
from harness.reproduction.measures import mean_of
from harness.reproduction.sheet import Comparison
from harness.statistics import Interval

Series = dict[str, list[tuple[float, Interval]]]


def series(comparison: Comparison) -> tuple[Series, Series]:
    """Return our points and the paper's by method: place, ascending, and mean loss over datasets.

    The paper's have no interval.

    Args:
        comparison: rows called ``method, keep rate``.
    """
    ours: Series = {}
    paper: Series = {}
    for one in comparison.found:
        method, told, _ = one.row.name.partition(", ")
        if not told:
            continue
        place = comparison.recipe.place(one.row, one.share)
        if place is not None and set(one.to) == set(comparison.datasets):
            ours.setdefault(method, []).append((place, mean_of(list(one.to.values()))))
        place, lost = comparison.recipe.paper_place(one.row), one.paper_to(comparison.datasets)
        if place is not None and lost is not None:
            paper.setdefault(method, []).append((place, Interval(lost, lost, lost)))
    for points in (*ours.values(), *paper.values()):
        points.sort(key=lambda point: point[0])
    return ours, paper


def draw(comparison: Comparison) -> bytes:
    """Return an SVG, the same bytes for the same figures; the paper's lines are dashed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ours, paper = series(comparison)
    names = list(dict.fromkeys([*ours, *paper]))
    with mpl.rc_context(OPTIONS):
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(textwrap.fill(comparison.title, 76), fontsize="small")
        axes.set_xlabel(comparison.recipe.axis)
        axes.set_ylabel("top-1 against unpruned, points")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
        for place, name in enumerate(names):
            style = STYLES[place % len(STYLES)]
            _line(axes, ours.get(name, []), style, f"{name}, ours", dashed=False)
            _line(axes, paper.get(name, []), style, f"{name}, paper", dashed=True)
        figure.legend(loc="outside right upper")
        return saved(figure, "svg")


def _line(
    axes: Any,
    points: Sequence[tuple[float, Interval]],
    style: tuple[str, str],
    label: str,
    *,
    dashed: bool,
) -> None:
    if not points:
        return
    places = [place for place, _ in points]
    values = [value.estimate for _, value in points]
    bars = [
        [value.estimate - value.low for _, value in points],
        [value.high - value.estimate for _, value in points],
    ]
    colour, marker = style
    axes.errorbar(
        places, values, yerr=None if dashed else bars, color=colour, marker=marker, markersize=6,
        markerfacecolor="none" if dashed else colour, linestyle="--" if dashed else "-",
        capsize=2.5, linewidth=1.4, elinewidth=0.9, label=label,
    )  # fmt: skip
