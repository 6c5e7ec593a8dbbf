"""Charts of series with intervals: what they hold, how they are drawn, and their bytes, the same every time."""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from harness.records.record import DENSE
from harness.records.statistics import Interval

# Okabe and Ito's colours first, told apart with any colour vision, on white and on black; the
# marker says the same once more. Dense is drawn in the colour of the text.
STYLES = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v"),
    ("#56B4E9", "P"), ("#A6761D", "X"), ("#7570B3", "*"), ("#888888", "<"),
)  # fmt: skip
LineStyle = Literal["-", "--", "-.", ":", "none"]
LINES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
INK = "#1b1c1d"  # text and axes; a page replaces it by currentColor to follow light and dark
FRONT = "best at this cost"
SMALL = 7.5  # points of a letter beside a marker
OPTIONS: Any = {
    "svg.hashsalt": "clip-patchrank", "svg.fonttype": "none", "text.color": INK,
    "text.parse_math": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium",
    "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
}  # fmt: skip


class Style(NamedTuple):
    """Colour, marker and line of a series."""

    colour: str
    marker: str
    line: LineStyle


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, by its place in the alphabet; dense has the text's colour.

    Beyond as many as there are colours, lines differ.
    """
    count = len(STYLES)
    styles = {
        name: Style(*STYLES[at % count], LINES[at // count % len(LINES)])
        for at, name in enumerate(sorted(set(names) - {DENSE}))
    }
    return styles | {DENSE: Style(INK, "h", "-")}


def encode(figure: Any, form: str, dpi: int = 160, **how: Any) -> bytes:
    """Return a figure as "png", "svg" or "jpg" bytes, without the day that it was drawn on."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    undated = {"svg": {"metadata": {"Date": None}}, "png": {"metadata": {"Software": None}}}
    how |= undated.get(form, {"pil_kwargs": {"quality": 80}})
    with mpl.rc_context(OPTIONS):
        figure.savefig(buffer, format=form, dpi=dpi, transparent=form == "svg", **how)
    return buffer.getvalue()


class Dot(NamedTuple):
    """A row in a chart, with the intervals of both values; a hollow one is drawn without filling."""

    x: Interval
    y: Interval
    hollow: bool = False
    label: str = ""  # stands beside it


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Series of dots."""

    title: str = ""
    alt: str = ""  # for those who can't see it: what it shows, in one or two sentences
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Dot]]  # in the order in which they are joined
    level: float | None = None  # height of a dotted line across
    front: Sequence[tuple[float, float]] = ()  # corners of a staircase, x rising
    log: bool = False  # y is logarithmic
    aside: str = ""  # series that the axes aren't stretched for: it is worse than all others


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Charts of one kind, at least one."""

    name: str  # of its files
    title: str
    charts: Sequence[Chart]

    @property
    def names(self) -> list[str]:
        """Names of all series."""
        return [name for chart in self.charts for name in chart.series]


def draw(charts: Sequence[Chart], styles: Mapping[str, Style] | None = None, *, small: bool = False) -> Any:
    """Return a figure of charts in rows of up to three; a ``small`` one fits a phone and has no titles.

    Series that ``styles`` lacks get styles of their own.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    styles = styles_of(name for chart in charts for name in chart.series) | dict(styles or {})
    across = min(3, len(charts))
    down = -(-len(charts) // across)
    with mpl.rc_context(OPTIONS):
        figure = Figure(layout="constrained")
        entries: dict[str, Any] = {}
        for at, chart in enumerate(charts, start=1):
            axes = figure.add_subplot(down, across, at)
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
            if not small:
                axes.set_title("\n".join(textwrap.wrap(chart.title, 44)))
            entries |= _draw(axes, chart, styles)
        width = 4.5 if small else 4.8 * across + 0.4
        columns = max(1, int(width / (0.5 + 0.08 * max(map(len, entries)))))
        below = 0.22 * -(-len(entries) // columns)
        figure.set_size_inches(width, (3.4 if small else 3.8 * down) + below)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    return figure


def render(charts: Sequence[Chart], styles: Mapping[str, Style] | None = None, form: str = "svg") -> bytes:
    """Draw charts as "png" or "svg" bytes."""
    return encode(draw(charts, styles), form)


def _draw(axes: Any, chart: Chart, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Draw a chart and return what the legend shows by name."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.log:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # not powers of ten in TeX, which isn't read here
        axes.yaxis.set_minor_formatter(NullFormatter())
    entries = {name: _draw_series(axes, dots, styles[name]) for name, dots in chart.series.items()}
    if chart.level is not None:
        axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=":")
    if chart.front:
        x, y = zip(*chart.front, strict=True)
        right = axes.get_xlim()[1]  # up to where the last corner still holds; the axes don't grow by it
        look = {"color": INK, "linewidth": 1.1, "alpha": 0.55, "zorder": 1.5}
        [entries[FRONT]] = axes.step([*x, right], [*y, y[-1]], where="post", **look)
        axes.set_xlim(right=right)
    others = [end for name, own in chart.series.items() if name != chart.aside for dot in own for end in dot.y]
    if chart.aside in chart.series and others:
        low, high = min(others), max(others)
        if not chart.log:
            axes.set_ylim(bottom=low - (0.08 * (high - low) or 1.0))
        elif high > 0:
            axes.set_ylim(top=1.25 * high)
    return entries


def _draw_series(axes: Any, dots: Sequence[Dot], style: Style) -> Any:
    """Draw a line with bars below its markers; return the legend's entry."""
    from matplotlib.lines import Line2D

    x, y = [dot.x.estimate for dot in dots], [dot.y.estimate for dot in dots]
    line: dict[str, Any] = {"color": style.colour, "linestyle": style.line, "linewidth": 1.3}
    bars = {"xerr": _bars([dot.x for dot in dots]), "yerr": _bars([dot.y for dot in dots])}
    axes.errorbar(x, y, **bars, **line, elinewidth=0.9, capsize=2.5)
    marker: dict[str, Any] = {"marker": style.marker, "markersize": 6.5}
    full = marker | {"markeredgecolor": INK, "markeredgewidth": 0.7}
    empty = marker | {"markeredgecolor": style.colour, "markeredgewidth": 1.4, "markerfacecolor": "none"}
    for dot in dots:
        look = empty if dot.hollow else full
        axes.plot(dot.x.estimate, dot.y.estimate, linestyle="none", color=style.colour, **look)
        if dot.label:
            where = {
                "xytext": (4, 4),
                "textcoords": "offset points",
                "fontsize": SMALL,
                "annotation_clip": True,
                "clip_on": True,
            }
            axes.annotate(dot.label, (dot.x.estimate, dot.y.estimate), **where)
    return Line2D([], [], **line, **full)


def _bars(values: Sequence[Interval]) -> list[list[float]] | None:
    """Return lengths of bars down and up; None where there are none."""
    if all(value.low == value.estimate == value.high for value in values):
        return None
    return [[value.estimate - value.low for value in values], [value.high - value.estimate for value in values]]
