"""How plots look, and their bytes, which are the same every time."""

import io
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from harness.conditions import DENSE

# Okabe and Ito's colours first, told apart with any colour vision, on white and on black; the
# marker says the same once more. Dense is drawn in the colour of the text.
STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#D55E00", "v"),
    ("#56B4E9", "P"),
    ("#A6761D", "X"),
    ("#7570B3", "*"),
    ("#888888", "<"),
)
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
INK = "#1b1c1d"  # text and axes; a page replaces it by currentColor to follow light and dark

OPTIONS: Any = {
    "svg.hashsalt": "clip-patchrank",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


class Style(NamedTuple):
    """Colour, marker and line of a series."""

    colour: str
    marker: str
    line: Literal["-", "--", "-.", ":"]


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, by its place in the alphabet; dense has the text's colour.

    Beyond as many as there are colours, lines differ.
    """
    ordered = sorted(set(names) - {DENSE})
    count = len(STYLES)
    found = {
        name: Style(*STYLES[place % count], LINES[place // count % len(LINES)])
        for place, name in enumerate(ordered)
    }
    return found | {DENSE: Style(INK, "h", "-")}


def saved(figure: Any, form: str, dpi: int = 160) -> bytes:
    """Return a figure as "png" or "svg" bytes, without the day that it was drawn on."""
    buffer = io.BytesIO()
    undated = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=dpi, transparent=form == "svg", metadata=undated)
    return buffer.getvalue()
