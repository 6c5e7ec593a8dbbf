"""Plots of records: which rows they show, and how they are drawn, the same bytes every time."""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from harness.records.averages import Average, labels
from harness.records.conditions import DENSE, GOLDEN, RANDOM
from harness.records.metrics import METRICS
from harness.records.statistics import Interval
from harness.report.groups import Group
from harness.report.highlights import TOP1, Front, Highlights, Standing, describe_standings, exact, qualities
from harness.report.tables import short_heading

T = TypeVar("T")

# Okabe and Ito's colours first, told apart with any colour vision, on white and on black; the
# marker says the same once more. Dense is drawn in the colour of the text.
STYLES = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v"),
    ("#56B4E9", "P"), ("#A6761D", "X"), ("#7570B3", "*"), ("#888888", "<"),
)  # fmt: skip
LineStyle = Literal["-", "--", "-.", ":", "none"]
LINES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
INK = "#1b1c1d"  # text and axes; a page replaces it by currentColor to follow light and dark
FRONT = "Pareto front"
SMALL = 7.5  # points of a letter beside a marker
DRAWN = 6  # groups that are drawn, the first, unless all are asked for: a chart takes a while
_LABELLED = 24  # dots of a chart that have their keep rates beside them; of more, the ends of each series
_NAMES = {"top1": "accuracy", "cosine_distance": "fidelity"}  # of files of plots
_RATIO = "time, × dense"
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
    """Series of dots, with sentences to read with them."""

    title: str = ""
    alt: str = ""  # for those who can't see it: what it shows, in one or two sentences
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Dot]]  # in the order in which they are joined
    level: float | None = None  # height of a dotted line across
    front: Sequence[tuple[float, float]] = ()  # corners of a staircase, x rising
    ticks: Mapping[float, str] | None = None  # labels at places of x, not matplotlib's own
    symlog: bool = False  # x is logarithmic, save for its start, which has room for 0
    log: bool = False  # y is logarithmic
    aside: str = ""  # series that the axes aren't stretched for; its dots outside stand at the edge
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Charts of one kind, at least one; `page.html` says how to read them."""

    name: str  # of its files
    title: str
    charts: Sequence[Chart]
    axis: str = ""  # one of several plots of the same rows, which the page shows one at a time, by this name


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
    if chart.symlog:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    if chart.log:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # not powers of ten in TeX, which isn't read here
        axes.yaxis.set_minor_formatter(NullFormatter())
    if chart.ticks is not None:
        axes.set_xticks(list(chart.ticks), list(chart.ticks.values()))
    entries = {name: _draw_series(axes, dots, styles[name]) for name, dots in chart.series.items()}
    if chart.level is not None:
        axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=":")
    if chart.front:
        x, y = zip(*chart.front, strict=True)
        right = axes.get_xlim()[1]  # up to where the last corner still holds; the axes don't grow by it
        look = {"color": INK, "linewidth": 1.1, "alpha": 0.55, "zorder": 1.5}
        [entries[FRONT]] = axes.step([*x, right], [*y, y[-1]], where="post", **look)
        axes.set_xlim(right=right)
    if chart.aside in chart.series:
        _crop(axes, chart, styles[chart.aside])
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
            where = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": SMALL, "annotation_clip": True}
            axes.annotate(dot.label, (dot.x.estimate, dot.y.estimate), **where)
    return Line2D([], [], **line, **full)


def _bars(values: Sequence[Interval]) -> list[list[float]] | None:
    """Return lengths of bars down and up; None where there are none."""
    if all(value.low == value.estimate == value.high for value in values):
        return None
    return [[value.estimate - value.low for value in values], [value.high - value.estimate for value in values]]


def _crop(axes: Any, chart: Chart, style: Style) -> None:
    """Give the axes to the other series, and put what is outside at the edge, with its figure."""
    inside = [end for name, own in chart.series.items() if name != chart.aside for dot in own for end in dot.y]
    if not inside:
        return
    inside += [] if chart.level is None else [chart.level]
    low, high = (math.log10(max(end, 1e-9)) if chart.log else end for end in (min(inside), max(inside)))
    room = 0.08 * (high - low) or 1.0
    low, high = (10**end if chart.log else end for end in (low - room, high + room))
    outside = [dot for dot in chart.series[chart.aside] if not low <= dot.y.estimate <= high]
    if outside:
        axes.set_ylim(low, high)
    for dot in outside:
        above = dot.y.estimate > high
        axes.annotate(
            f"{dot.label} {dot.y.estimate:.3g}".strip(), (dot.x.estimate, high if above else low),
            xytext=(0, -14 if above else 14), textcoords="offset points", ha="center", va="center",
            fontsize=SMALL, arrowprops={"arrowstyle": "<-", "color": style.colour},
        )  # fmt: skip


def plots_of(short: Sequence[Highlights]) -> list[Plot]:
    """Return the plots of groups that there are figures for: fidelity and top-1 against each cost, and tau."""
    tau = [chart for one in short if (chart := _tau_chart(one.group)) is not None]
    title = f"{METRICS['tau'].heading} against keep rate"
    return [*_quality_plots(short), *([Plot(name="tau_keep", title=title, charts=tau)] if tau else [])]


def _quality_plots(short: Sequence[Highlights]) -> list[Plot]:
    """Return fidelity and top-1 against each cost, a chart per group in which two rows have both."""
    fronts: dict[tuple[int, int], list[tuple[Group, Front]]] = {}
    for one in short:
        for front in one.fronts:
            # The time that a user waits comes first, at the largest batch size.
            place = qualities().index(front.metric), -(front.cost.batch or 0)
            fronts.setdefault(place, []).append((one.group, front))
    plots = []
    for _, own in sorted(fronts.items(), key=lambda item: item[0]):
        front = own[0][1]
        name = f"{_NAMES.get(front.metric.name, front.metric.name)}_{front.cost.name}"
        if charts := [chart for one in own if (chart := _quality_chart(*one)).series]:
            plots.append(Plot(name=name, title=_title(front), charts=charts, axis=_axis(front)))
    return plots


def _axis(front: Front) -> str:
    return front.cost.words if front.cost.batch is None else f"{front.cost.words}, ratio to dense"


def _title(front: Front) -> str:
    name = f"{short_heading(TOP1)} to dense" if front.metric == TOP1 else front.metric.heading
    return f"{name[0].upper()}{name[1:]} against {_axis(front)}"


def _quality_chart(group: Group, front: Front) -> Chart:
    """Plot distance to dense, or the paired difference to it in top-1."""
    names, top1 = labels(group.rows), front.metric == TOP1

    def height(row: Average) -> Interval | None:
        if not top1:
            estimate = row.estimate(front.metric)
            return estimate if isinstance(estimate, Interval) else None
        difference = exact(0.0) if row.method == DENSE else row.to_dense
        return None if difference is None else Interval(*(100 * number for number in difference))

    heights = {one.row.identity: high for one in front.standings if (high := height(one.row)) is not None}
    rows = sorted(
        (one for one in front.standings if one.row.identity in heights),
        key=lambda one: (one.row.method != DENSE, names[one.row.identity], one.row.keep),
    )
    ends = dict[str, list[str]]()
    for one in rows:
        ends.setdefault(names[one.row.identity], []).append(one.row.identity)
    named = {key for keys in ends.values() for key in (keys if len(rows) <= _LABELLED else (keys[0], keys[-1]))}

    def dot(one: Standing) -> Dot:
        label = f"{100 * one.row.keep:.3g}" if one.row.method != DENSE and one.row.identity in named else ""
        return Dot(one.cost, heights[one.row.identity], one.verdict == "beaten", label)

    note = describe_standings(rows, names)
    return Chart(
        title=group.name,
        alt=f"{_title(front)}, {group.name}: {len(rows)} rows. {note}",
        x_label=f"{front.cost.words} per image" if front.cost.batch is None else _RATIO,
        y_label=f"{short_heading(TOP1)} to dense, points" if top1 else f"{front.metric.heading} to dense",
        series=_series(rows, lambda one: names[one.row.identity], dot),
        level=next((heights[one.row.identity].estimate for one in rows if one.row.method == DENSE), None),
        front=sorted((one.cost.estimate, heights[one.row.identity].estimate) for one in rows if one.verdict == "front"),
        log=not top1,
        aside=RANDOM,
        notes=[note],
    )


def _tau_chart(group: Group) -> Chart | None:
    names, heading = labels(group.rows), METRICS["tau"].heading
    taus = [
        (row, tau)
        for row in sorted(group.rows, key=lambda row: (names[row.identity], row.keep))
        if row.method != GOLDEN and isinstance(tau := row.estimate(METRICS["tau"]), Interval)
    ]
    if not taus:
        return None
    series = _series(taus, lambda one: names[one[0].identity], lambda one: Dot(exact(100 * one[0].keep), one[1]))
    means = {name: sum(dot.y.estimate for dot in own) / len(own) for name, own in series.items()}
    best = max(means, key=lambda name: means[name])
    ticks = sorted({100 * row.keep for row, _ in taus})
    return Chart(
        title=group.name,
        alt=f"{heading} against keep rate, {group.name}: {len(series)} methods; "
        f"{best} agrees most with the golden ranking, {means[best]:.2f} on average.",
        x_label="keep rate, %",
        y_label=f"{heading} to golden",
        series=series,
        level=0.0,
        ticks={tick: f"{tick:.3g}" for tick in ticks} if len(ticks) <= 6 else None,
    )


def _series(rows: Sequence[T], name: Callable[[T], str], dot: Callable[[T], Dot]) -> dict[str, list[Dot]]:
    """Return a dot per row, by the name of its series."""
    series: dict[str, list[Dot]] = {}
    for row in rows:
        series.setdefault(name(row), []).append(dot(row))
    return series
