"""Draw how the rankings of methods agree with the golden one and with each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.agreement import Agreement
from harness.picture import Picture
from harness.plots.style import OPTIONS, saved
from harness.records import Record
from harness.report_pictures.agreement import compared, pairs
from harness.report_pictures.groups import Group, groups, keeps, label
from harness.traces import RowTraces

CELL = (0.98, 0.62)  # inches
COLOURS = "PuOr_r"  # diverging, its ends told apart with any colour vision
# Not the colour of the text, which a page changes: cells have their own background.
DARK, LIGHT = "#0b0b0b", "#ffffff"
ABOUT = (
    "Mean Kendall τ-b between two rankings of the same image's patches, over {images} traced "
    "images, with its 95 % bootstrap interval over images below: 1 is the same order, 0 what "
    "unrelated rankings give, -1 the reverse. A ranking is by when a patch went, then by how it "
    "was judged; patches of equal fate tie. {golden}. Methods that are no judge of patches, such "
    "as merging, are ranked by when they merge."
)


def matrix(*runs: Path | str, records: Sequence[Record] | None = None) -> list[Picture]:
    """Draw the agreement of all pairs of rankings, one picture per dataset, tower and tuning.

    Args:
        runs: folders of records, or the files of records in them; one without traces adds nothing.
        records: rows that are wanted; None for all.

    Raises:
        ValueError: a file of traces is torn, somebody else's, or of a newer version.
    """
    return matrices(groups(runs, records))


def matrices(traced: Sequence[Group]) -> list[Picture]:
    """Do what `matrix` does, of groups that were read already."""
    found = []
    for group in traced:
        panels = [(rows, pairs(rows)) for rows in compared(group)]
        if panels:
            found.append(_picture(group, panels))
    return found


Panel = tuple[Sequence[RowTraces], Mapping[tuple[int, int], Agreement]]


def _picture(group: Group, panels: Sequence[Panel]) -> Picture:
    golden = "The golden ranking comes first" if group.golden else "There is no golden ranking"
    return Picture(
        name=f"agreement_{group.slug}",
        title=f"Agreement of rankings: {group.title}",
        about=ABOUT.format(images=len(group.image_ids), golden=golden),
        alt=" ".join(_alt(rows, found) for rows, found in panels),
        svg=_draw(panels, "svg"),
        png=_draw(panels, "png"),
    )


def _alt(rows: Sequence[RowTraces], found: Mapping[tuple[int, int], Agreement]) -> str:
    """Say how each row agrees with the golden ranking, and which others agree most and least."""
    known = {pair: tau.mean for pair, tau in found.items()}
    first = [label(row, rows) for row in rows]
    told = [
        f"{first[i]} and {first[j]} {_number(mean)}"
        for (i, j), mean in known.items()
        if rows[i].golden
    ]
    others = [
        (mean, i, j) for (i, j), mean in known.items() if not rows[i].golden and mean is not None
    ]
    for how, choose in (("most", max), ("least", min)) if others else ():
        mean, i, j = choose(others)
        told.append(f"{first[i]} and {first[j]} agree {how} of the others, {_number(mean)}")
    return f"Kendall τ-b with {keeps(rows)}: {', '.join(told) or 'none is defined'}."


def _number(tau: float | None) -> str:
    return "–" if tau is None else f"{tau:.2f}".replace("-0.00", "0.00")


def _draw(panels: Sequence[Panel], form: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    most = max(len(rows) for rows, _ in panels) - 1
    across = 1 if most > 6 else min(2, len(panels))
    down = -(-len(panels) // across)
    size = (across * (CELL[0] * most + 1.6) + 0.6, down * (CELL[1] * most + 1.0))
    with mpl.rc_context(OPTIONS | {"axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=size, layout="constrained")
        axes = [figure.add_subplot(down, across, i) for i in range(1, len(panels) + 1)]
        for each, (rows, found) in zip(axes, panels, strict=True):
            mesh = _panel(each, rows, found)
        bar = figure.colorbar(mesh, ax=axes, ticks=[-1, 0, 1], aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("Kendall τ-b")
        return saved(figure, form)


def _panel(axes: Any, rows: Sequence[RowTraces], found: Mapping[tuple[int, int], Agreement]) -> Any:
    """Draw the pairs below the diagonal and return what the colour bar is of."""
    names = [label(row, rows) for row in rows]
    size = len(rows) - 1
    values = np.full((size, size), np.nan)
    for (i, j), tau in found.items():
        values[j - 1, i] = np.nan if tau.mean is None else tau.mean
    mesh = axes.pcolormesh(values, cmap=COLOURS, vmin=-1, vmax=1, edgecolors="none")
    axes.invert_yaxis()
    axes.set_xticks(np.arange(size) + 0.5, [name.replace(" ", "\n", 1) for name in names[:-1]])
    axes.set_yticks(np.arange(size) + 0.5, names[1:])
    axes.tick_params(length=0)
    axes.set_title(keeps(rows), loc="left")
    for (i, j), tau in found.items():
        ink = DARK if tau.mean is None or abs(tau.mean) < 0.6 else LIGHT
        where = {"ha": "center", "color": ink}
        axes.text(i + 0.5, j - 0.53, _number(tau.mean), va="bottom", fontsize=11, **where)
        if tau.low is not None and tau.high is not None:
            ends = f"{_number(tau.low)} to {_number(tau.high)}"
            axes.text(i + 0.5, j - 0.45, ends, va="top", fontsize=7, **where)
    return mesh
