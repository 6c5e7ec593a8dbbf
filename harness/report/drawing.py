"""Charts as data, how they are drawn, and their bytes, which are the same every time."""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from harness.records.conditions import DENSE
from harness.records.statistics import Interval

# Okabe and Ito's colours first, told apart with any colour vision, on white and on black; the
# marker says the same once more. Dense is drawn in the colour of the text.
STYLES = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v"),
    ("#56B4E9", "P"), ("#A6761D", "X"), ("#7570B3", "*"), ("#888888", "<"),
)  # fmt: skip
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
INK = "#1b1c1d"  # text and axes; a page replaces it by currentColor to follow light and dark
FRONT = "Pareto front"
_DASH = 4.0  # of one colour, where several rows share a line; in widths of it
_TITLE = 44  # letters in a line
_LEGEND = 3  # columns below a panel
_LONG = 24  # letters of a name for which the legend has less room
_BELOW, _ENTRY = 0.62, 0.2  # inches below a panel's axes: for their label, and for a line of the legend
_SMALL = 7.5  # points of a letter beside a marker
_ROOM = 0.08  # of the axes above and below the series, where another one is cropped
_LEAST = 1e-9  # of a value on a logarithmic axis

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
    line: Literal["-", "--", "-.", ":", "none"]


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, by its place in the alphabet; dense has the text's colour.

    Beyond as many as there are colours, lines differ.
    """
    ordered = sorted(set(names) - {DENSE})
    count = len(STYLES)
    styles = {
        name: Style(*STYLES[place % count], LINES[place // count % len(LINES)]) for place, name in enumerate(ordered)
    }
    return styles | {DENSE: Style(INK, "h", "-")}


def saved(figure: Any, form: str, dpi: int = 160) -> bytes:
    """Return a figure as "png" or "svg" bytes, without the day that it was drawn on."""
    buffer = io.BytesIO()
    undated = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=dpi, transparent=form == "svg", metadata=undated)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawn figure of a report: files of that name, and what the page says of it."""

    name: str
    title: str
    about: str  # what it shows and how to read it, one paragraph
    alt: str  # for those who can't see it: what it shows, in one or two sentences
    svg: bytes  # which the page puts in as an element
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row, with the intervals of both values; a hollow one is drawn without filling."""

    x: Interval
    y: Interval
    hollow: bool = False
    label: str = ""  # stands beside it


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Series of points, with sentences to read with them."""

    title: str
    alt: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]  # in the order in which they are joined
    level: float | None = None  # height of a dotted line across
    front: Sequence[tuple[float, float]] = ()  # corners of a staircase, x rising
    ticks: Mapping[float, str] | None = None  # labels at places of x, not matplotlib's own
    symlog: bool = False  # x is logarithmic, save for its start, which has room for 0
    log: bool = False  # y is logarithmic
    aside: str = ""  # series that the axes aren't stretched for; its points outside stand at the edge
    notes: Sequence[str] = ()

    @property
    def names(self) -> Sequence[str]:
        """Names of the series."""
        return list(self.series)

    def draw(self, axes: Any, styles: Mapping[str, Style]) -> dict[str, Any]:
        """Draw, and return what the legend shows by name."""
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        if self.symlog:
            axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        if self.log:
            axes.set_yscale("log", nonpositive="clip")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")  # not powers of ten in TeX, which isn't read here
            axes.yaxis.set_minor_formatter(NullFormatter())
        if self.ticks is not None:
            axes.set_xticks(list(self.ticks), list(self.ticks.values()))
        handles = {name: _series(axes, points, styles[name]) for name, points in self.series.items()}
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
        if self.aside in self.series:
            self._crop(axes, styles[self.aside])
        return handles

    def _crop(self, axes: Any, style: Style) -> None:
        """Give the axes to the other series, and put what is outside at the edge, with its figure."""
        inside = [end for name, own in self.series.items() if name != self.aside for p in own for end in p.y]
        if not inside:
            return
        inside += [] if self.level is None else [self.level]
        low, high = (_scaled(end, log=self.log) for end in (min(inside), max(inside)))
        room = _ROOM * (high - low) or 1.0
        low, high = (10**end if self.log else end for end in (low - room, high + room))
        outside = [point for point in self.series[self.aside] if not low <= point.y.estimate <= high]
        if not outside:
            return
        axes.set_ylim(low, high)
        for point in outside:
            above = point.y.estimate > high
            axes.annotate(
                f"{point.label} {point.y.estimate:.3g}".strip(), (point.x.estimate, high if above else low),
                xytext=(0, -14 if above else 14), textcoords="offset points", ha="center", va="center",
                fontsize=_SMALL, arrowprops={"arrowstyle": "<-", "color": style.colour},
            )  # fmt: skip


def _scaled(value: float, *, log: bool) -> float:
    return math.log10(max(value, _LEAST)) if log else value


def _series(axes: Any, points: Sequence[Point], style: Style) -> Any:
    """Draw a line with bars below its markers; return the legend's entry."""
    from matplotlib.lines import Line2D

    x, y = [point.x.estimate for point in points], [point.y.estimate for point in points]
    axes.errorbar(
        x, y, xerr=_bars([point.x for point in points]), yerr=_bars([point.y for point in points]),
        color=style.colour, linestyle=style.line, linewidth=1.3, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip
    for hollow in (False, True):
        some = [point for point in points if point.hollow == hollow]
        axes.plot(
            [point.x.estimate for point in some], [point.y.estimate for point in some],
            linestyle="none", marker=style.marker, markersize=6.5,
            markerfacecolor="none" if hollow else style.colour,
            markeredgecolor=style.colour if hollow else INK,
            markeredgewidth=1.4 if hollow else 0.7,
        )  # fmt: skip
    for point in points:
        if point.label:
            axes.annotate(
                point.label, (point.x.estimate, point.y.estimate), xytext=(4, 4), textcoords="offset points",
                fontsize=_SMALL, annotation_clip=True,
            )  # fmt: skip
    return Line2D(
        [], [], color=style.colour, linestyle=style.line, linewidth=1.3, marker=style.marker,
        markersize=6.5, markeredgecolor=INK, markeredgewidth=0.7,
    )  # fmt: skip


def _bars(values: Sequence[Interval]) -> list[list[float]] | None:
    """Return lengths of bars down and up; None where there are none."""
    if all(value.low == value.estimate == value.high for value in values):
        return None
    return [[value.estimate - value.low for value in values], [value.high - value.estimate for value in values]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one or more rows have in common: a count per block."""

    names: Sequence[str]  # of the series whose line it is, each in its colour by turns
    end: str  # what stands at its right end
    counts: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Lines of steps over blocks, with sentences to read with them."""

    title: str
    alt: str
    lines: Sequence[Line]
    notes: Sequence[str] = ()

    @property
    def names(self) -> Sequence[str]:
        """Names of the series."""
        return list(dict.fromkeys(name for line in self.lines for name in line.names))

    def draw(self, axes: Any, styles: Mapping[str, Style]) -> dict[str, Any]:
        """Draw, and return what the legend shows by name."""
        from matplotlib.lines import Line2D

        axes.set_xlabel("block")
        axes.set_ylabel("tokens that leave it")
        for line in self.lines:
            every = len(line.names)
            for place, name in enumerate(line.names):
                dashes = (-_DASH * place, (_DASH, _DASH * (every - 1))) if every > 1 else "-"
                blocks = range(len(line.counts))
                axes.step(
                    blocks, line.counts, where="mid", linestyle=dashes, dash_capstyle="butt",
                    markevery=(place, every), **_step_look(styles[name]),
                )  # fmt: skip
        depth = max(len(line.counts) for line in self.lines)
        axes.set_xticks(range(0, depth, 1 if depth <= 12 else 2))
        axes.set_ylim(bottom=0)
        ends = {(len(line.counts), line.counts[-1], line.end) for line in self.lines}
        for length, count, end in sorted(ends):
            axes.annotate(
                end, (length - 1, count), xytext=(5, 0), textcoords="offset points", va="center",
                annotation_clip=False,
            )  # fmt: skip
        axes.margins(x=0.02)
        return {name: Line2D([], [], **_step_look(styles[name])) for name in self.names}


def _step_look(style: Style) -> dict[str, Any]:
    return {
        "color": style.colour, "linewidth": 2.2, "marker": style.marker, "markersize": 5.5,
        "markeredgecolor": INK, "markeredgewidth": 0.7,
    }  # fmt: skip


Panel = Chart | Steps


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of at least one panel; `about` says what it shows and how to read it."""

    name: str
    title: str
    about: str
    panels: Sequence[Panel]
    axis: str = ""  # one of several plots of the same rows, which the page shows one at a time, by this name

    def draw(self, styles: Mapping[str, Style], form: str) -> bytes:
        """Return all panels in one figure, as "png" or "svg" bytes."""
        return _drawn(self.panels, self._grid, styles, form)[form]

    def draw_both(self, styles: Mapping[str, Style]) -> dict[str, bytes]:
        """Return the same as "svg" and as "png", in less time than one by one."""
        return _drawn(self.panels, self._grid, styles, "svg", "png")

    @property
    def _grid(self) -> tuple[int, int]:
        across = min(3, len(self.panels))
        return -(-len(self.panels) // across), across

    def draw_each(self, styles: Mapping[str, Style]) -> list[bytes]:
        """Return each panel as an SVG of its own, without the title, small enough for a phone."""
        return [_drawn([panel], None, styles, "svg")["svg"] for panel in self.panels]


def _drawn(
    panels: Sequence[Panel], grid: tuple[int, int] | None, styles: Mapping[str, Style], *forms: str
) -> dict[str, bytes]:
    """Draw panels in rows and columns with a legend aside; without a grid, the legend is below."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    down, across = grid or (1, 1)
    with mpl.rc_context(OPTIONS):
        size = (4.8 * across + 1.4, 3.8 * down) if grid else (4.5, 4.1)
        figure = Figure(figsize=size, layout="constrained" if grid else None)
        handles: dict[str, Any] = {}
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(down, across, place)
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
            if grid:
                axes.set_title("\n".join(textwrap.wrap(panel.title, _TITLE)))
            handles |= panel.draw(axes, styles)
        long = max(map(len, handles)) > _LONG
        if grid is None:
            # The axes stay as large as they are; the legend has the room below that it needs.
            columns = 1 if long else _LEGEND
            rows = -(-len(handles) // columns)
            below = _BELOW + rows * _ENTRY
            figure.set_size_inches(size[0], 3.2 + below)
            figure.subplots_adjust(0.15, below / (3.2 + below), 0.97, 1 - 0.1 / (3.2 + below))
            figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns)
        elif long:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across)
        else:
            figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        drawings = {}
        for form in forms:
            drawings[form] = saved(figure, form)
            figure.set_layout_engine("none")  # the places that the first one found are the others', too
        return drawings
