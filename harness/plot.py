"""Draw top-1 against GFLOPs, one panel per group of rows, the same bytes every time."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from harness.averages import Average

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


def draw(groups: Mapping[str, Sequence[Average]], form: str) -> bytes:
    """Return the plot as "png" or "svg" bytes.

    Rows of one method are joined in order of keep; bars are 95 % intervals; rows without
    GFLOPs are left out. Colours go by method over all panels.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    across = min(3, len(groups))
    down = -(-len(groups) // across)
    methods = sorted({row.method for group in groups.values() for row in group} - {"dense"})
    styles = {method: STYLES[place % len(STYLES)] for place, method in enumerate(methods)}
    styles["dense"] = (INK, "h")
    with mpl.rc_context(OPTIONS):
        figure = Figure(figsize=(4.8 * across + 1.4, 3.8 * down), layout="constrained")
        handles: dict[str, Any] = {}
        for place, (name, group) in enumerate(groups.items(), start=1):
            handles |= _panel(figure.add_subplot(down, across, place), name, group, styles)
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        buffer = io.BytesIO()
        undated = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=160, transparent=form == "svg", metadata=undated)
    return buffer.getvalue()


def _panel(
    axes: Any, name: str, group: Sequence[Average], styles: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Draw one group and return what the legend shows, by method."""
    axes.set_title(name)
    axes.set_xlabel("GFLOPs per image")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.25)
    handles = {}
    for method in sorted({row.method for row in group}, key=lambda m: (m != "dense", m)):
        points = sorted(
            (row.mean("gflops"), *(100 * number for number in row.top1))
            for row in group
            if row.method == method and row.mean("gflops") is not None
        )
        if not points:
            continue
        cost, top1, low, high = zip(*points, strict=True)
        bars = [[t - b for t, b in zip(top1, low, strict=True)],
                [b - t for t, b in zip(top1, high, strict=True)]]  # fmt: skip
        colour, marker = styles[method]
        handles[method] = axes.errorbar(
            cost, top1, yerr=bars, color=colour, marker=marker, markersize=6, capsize=2.5,
            linewidth=1.4, elinewidth=0.9,
        )  # fmt: skip
        if method == "dense":
            axes.axhline(max(top1), color=colour, linewidth=0.8, linestyle=":")
    if not handles:
        axes.text(0.5, 0.5, "GFLOPs not measured", ha="center", transform=axes.transAxes)
    return handles
