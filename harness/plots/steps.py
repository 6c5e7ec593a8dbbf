"""Numbers of tokens, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.plots.style import INK, Style

_DASH = 4.0  # of one colour, where several rows share a line; in widths of it


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one or more rows have in common.

    Attributes:
        names: of the series whose line it is, each in its colour by turns.
        end: what stands at its right end.
        counts: one per block.
    """

    names: Sequence[str]
    end: str
    counts: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Lines of steps over blocks.

    Attributes:
        title: what it is of.
        alt: what it shows, in words.
        lines: what is drawn.
        notes: sentences to read with it.
    """

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
                    markevery=(place, every), **_look(styles[name]),
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
        return {name: Line2D([], [], **_look(styles[name])) for name in self.names}


def _look(style: Style) -> dict[str, Any]:
    return {
        "color": style.colour,
        "linewidth": 2.2,
        "marker": style.marker,
        "markersize": 5.5,
        "markeredgecolor": INK,
        "markeredgewidth": 0.7,
    }
