"""Charts of series with intervals: what they hold, how they are drawn, and their bytes, the same every time."""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.records.record import DENSE
from harness.records.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours first, told apart with any colour vision, on white and on black; the
# marker says the same once more. Dense is drawn in the colour of the text.
STYLES = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#D55E00", "v"),
    ("#56B4E9", "P"), ("#A6761D", "X"), ("#7570B3", "*"), ("#888888", "<"),
)  # fmt: skip
LINES = ("-", "--", "-.", ":")
INK = "#1b1c1d"  # text and axes; a page replaces it by currentColor to follow light and dark
SMALL = 7.5  # points of a letter beside a marker
# Where a label may stand: how it is aligned, and points right of the marker and above it; the best place first.
PLACES = (
    ("left", 5, 7), ("left", 5, -7), ("right", -5, 7), ("right", -5, -7), ("center", 0, 11), ("center", 0, -11),
)  # fmt: skip
OPTIONS: Any = {
    "svg.hashsalt": "clip-patchrank", "svg.fonttype": "none", "text.color": INK,
    "text.parse_math": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium",
    "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
}  # fmt: skip


class Style(NamedTuple):
    """How a series is drawn."""

    colour: str
    marker: str
    line: str

    @property
    def look(self) -> dict[str, Any]:
        """Matplotlib's settings of a line with its markers."""
        edge = {"markersize": 6.5, "markeredgecolor": INK, "markeredgewidth": 0.7}
        return {"color": self.colour, "linestyle": self.line, "linewidth": 1.3, "marker": self.marker, **edge}


def encode(figure: "Figure", form: str, dpi: int = 160, **options: Any) -> bytes:
    """Return a figure as "png", "svg" or "jpg" bytes, without the day that it was drawn on."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    undated = {"svg": {"metadata": {"Date": None}}, "png": {"metadata": {"Software": None}}}
    options = undated.get(form, {"pil_kwargs": {"quality": 80}}) | options
    with mpl.rc_context(OPTIONS):
        figure.savefig(buffer, format=form, dpi=dpi, **options)
    return buffer.getvalue()


class Dot(NamedTuple):
    """A row in a chart, with the intervals of both values."""

    x: Interval
    y: Interval
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
    log: bool = False  # y is logarithmic


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Charts of one kind, at least one."""

    name: str  # of its files
    title: str
    charts: Sequence[Chart]


def styles_of(charts: Iterable[Chart]) -> dict[str, Style]:
    """Return a style for each series, by its place in the alphabet; dense has the text's colour.

    Beyond as many as there are colours, lines differ.
    """
    names = sorted({name for chart in charts for name in chart.series} - {DENSE})
    looks = cycle(Style(*style, line) for line in LINES for style in STYLES)
    return dict(zip(names, looks, strict=False)) | {DENSE: Style(INK, "h", "-")}


def draw(charts: Sequence[Chart], styles: Mapping[str, Style] | None = None, *, small: bool = False) -> "Figure":
    """Return a figure of charts, two in a row; a ``small`` one fits a phone, without titles and legend.

    ``styles`` has one for every series, in the order of the legend.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    styles = styles or styles_of(charts)
    across = min(2, len(charts))
    down = -(-len(charts) // across)
    with mpl.rc_context(OPTIONS):
        figure = Figure((4.5, 3.4) if small else (4.8 * across + 0.4, 3.4 * down), layout="constrained")
        for at, chart in enumerate(charts, start=1):
            axes = figure.add_subplot(down, across, at)
            if not small:
                axes.set_title("\n".join(textwrap.wrap(chart.title, 44)))
            _draw(axes, chart, styles)
        if not small:
            shown = {name: Line2D([], [], **styles[name].look) for name in names_of(charts, styles)}
            columns = max(1, int(figure.get_figwidth() / (0.5 + 0.08 * max(map(len, shown)))))
            figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(shown) // columns))
            figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns)
        figure.draw_without_rendering()  # so that it is known where everything is
        for axes, chart in zip(figure.axes, charts, strict=True):
            _label(axes, chart, styles)
    return figure


def names_of(charts: Sequence[Chart], styles: Mapping[str, Style]) -> list[str]:
    """Return what a legend of charts names, in the order of the styles."""
    drawn = {name for chart in charts for name in chart.series}
    return [name for name in styles if name in drawn]


def draw_sample(style: Style) -> "Figure":
    """Return a figure with the line and the marker of a legend's entry."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure((0.36, 0.18))
    figure.add_artist(Line2D([0.0, 0.5, 1.0], [0.5] * 3, markevery=[1], **style.look))
    return figure


def render(charts: Sequence[Chart], styles: Mapping[str, Style] | None = None, form: str = "svg") -> bytes:
    """Draw charts as "png" or "svg" bytes."""
    return encode(draw(charts, styles), form)


def _draw(axes: "Axes", chart: Chart, styles: Mapping[str, Style]) -> None:
    """Draw a chart; all that is drawn of a series has its id."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.margins(x=0.1, y=0.1 if chart.log else 0.05)  # room for labels
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.log:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # not powers of ten in TeX, which isn't read here
        axes.yaxis.set_minor_formatter(NullFormatter())
    for name, dots in chart.series.items():
        x, y = [dot.x for dot in dots], [dot.y for dot in dots]
        across, up = [[value.estimate for value in values] for values in (x, y)]
        look = styles[name].look | {"elinewidth": 0.9, "capsize": 2.5}
        for artist in axes.errorbar(across, up, xerr=_bars(x), yerr=_bars(y), **look).get_children():
            artist.set_gid(id_of(name, styles))
    if chart.level is not None:
        axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=":")


def _label(axes: "Axes", chart: Chart, styles: Mapping[str, Style]) -> None:
    """Write labels beside their markers, clear of markers and of each other, those without room not at all.

    Of places with room the first that crosses no line is taken, or as little of lines as can be.
    """
    from matplotlib.transforms import Bbox

    point = axes.figure.dpi / 72
    frame = Bbox(axes.bbox.get_points() / point)
    centres, lines = list[tuple[str, Dot, NDArray[np.float64]]](), [np.empty((0, 2))]
    for name, dots in chart.series.items():
        places = axes.transData.transform([(dot.x.estimate, dot.y.estimate) for dot in dots]) / point
        centres += [(name, dot, place) for dot, place in zip(dots, places, strict=True)]
        lines += [np.linspace(start, end, 60) for start, end in pairwise(places)]
    crossed, taken = np.concatenate(lines), [Bbox.from_bounds(x - 3.5, y - 3.5, 7, 7) for *_, (x, y) in centres]
    for name, dot, (x, y) in centres:
        free = dict[int, tuple[Any, str, tuple[int, int]]]()  # by how much of lines a place crosses
        width = 0.64 * SMALL * len(dot.label)
        for align, right, up in PLACES if dot.label else ():
            left = x + right - {"left": 0, "center": width / 2, "right": width}[align]
            box = Bbox.from_bounds(left, y + up - SMALL / 2, width, SMALL)
            if frame.contains(*box.min) and frame.contains(*box.max) and not box.count_overlaps(taken):
                within = ((box.min < crossed) & (crossed < box.max)).all(axis=1)
                free.setdefault(int(within.sum()), (box, align, (right, up)))
        if free:
            box, align, offset = free[min(free)]
            axes.annotate(
                dot.label, (dot.x.estimate, dot.y.estimate), offset, textcoords="offset points", ha=align, va="center",
                fontsize=SMALL, in_layout=False, gid=id_of(name, styles),
            )  # fmt: skip
            taken.append(box)


def id_of(name: str, styles: Mapping[str, Style]) -> str:
    """Return the id of all that is drawn of a series, by its place among the styles."""
    return f"series-{list(styles).index(name)}"


def _bars(values: Sequence[Interval]) -> NDArray[np.float64] | None:
    """Return lengths of bars down and up, (2, n); None where there are none."""
    estimates, *ends = np.transpose(values)
    lengths = np.abs(np.array(ends) - estimates)
    return lengths if lengths.any() else None
