"""Show a curve of cost and worth: a table on a terminal, Markdown, and a plot."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from harness.golden.budget import Curve, Worth
from harness.report.drawing import STYLES, Chart, Plot, Point, Style
from harness.statistics import Interval
from zoo.files import write_whole

FAMILIES = ("removal", "follow", "jacobian", "shallow", "clsattn", "random")
ALONE = ("clsattn", "random")


def family(worth: Worth) -> str:
    """Return what kind of way it is: ``removal`` of windows, or an approximation or method."""
    if worth.point.window is None:
        return worth.point.method
    return (worth.point.approximate or "removal").partition(":")[0]


def undominated(curve: Curve) -> list[Worth]:
    """List the ways that no other beats in tau at the same cost or less, cheapest first."""
    best, kept = -1.0, []
    for worth in sorted(curve.worths, key=lambda w: (w.passes, -w.tau.estimate)):
        if worth.tau.estimate > best:
            kept.append(worth)
            best = worth.tau.estimate
    return kept


def cells(curve: Curve) -> tuple[list[str], list[list[str]]]:
    """Return the head of the table and its rows, cheapest first."""
    keeps = list(curve.worths[0].match)
    timed = curve.worths[0].seconds is not None
    named = bool(curve.named)
    head = ["", "way", "passes", *(["time"] if timed else []), "Kendall tau"]
    head += [f"match at keep {keep}" for keep in keeps]
    if named:
        head += [f"top-1 at keep {keep}" for keep in keeps]
        head += [f"against exact at keep {keeps[-1]}"]
    best = undominated(curve)
    rows = []
    for worth in sorted(curve.worths, key=lambda w: (w.passes, -w.tau.estimate)):
        row = ["*" if worth in best else "", worth.point.label, f"{worth.passes:.1f}"]
        row += [f"{100 * worth.seconds:.1f} %"] if worth.seconds is not None else []
        row += [_interval(worth.tau, 1, 3)]
        row += [f"{worth.match[keep]:.3f}" for keep in keeps]
        if named:
            row += [f"{100 * worth.top1[keep]:.1f}" for keep in keeps]
            row += [_interval(worth.difference[keeps[-1]], 100, 1)]
        rows.append(row)
    return head, rows


def caption(curve: Curve) -> str:
    """Say what was measured on what."""
    images = ", ".join(f"{count} of {name}" for name, count in curve.images.items())
    text = (
        f"{curve.model}, before block {curve.block}, preservation; {curve.split} images: {images}. "
        "Tau and match are with the exact ranking (window 2, stride 1, float32); removed windows "
        f"of the others in {curve.dtype}. * = no other way is at least as cheap and closer."
    )
    if curve.named:
        named = ", ".join(f"{count} of {name}" for name, count in curve.named.items())
        text += f" Accuracy in %, on the images whose class has a caption ({named}); dense "
        text += f"{100 * (curve.dense or 0):.1f}."
    if curve.worths[0].seconds is not None:
        text += f" Time against the exact ranking, all in float32, on {curve.device}."
    return text


def curve_table(curve: Curve) -> Table:
    """Return the curve for a terminal."""
    head, rows = cells(curve)
    table = Table(caption=caption(curve), caption_justify="left")
    for name in head:
        table.add_column(name, justify="left" if name in ("", "way") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def curve_markdown(curve: Curve) -> str:
    """Return the curve as a Markdown table with its caption."""
    head, rows = cells(curve)
    ruler = ["---" if name in ("", "way") else "---:" for name in head]
    lines = [f"| {' | '.join(row)} |" for row in (head, ruler, *_starred(rows))]
    return "\n".join([*lines, "", caption(curve).replace("*", "\\*")]) + "\n"


def write_curve(curve: Curve, folder: Path) -> None:
    """Write the curve as JSON, Markdown and SVG, each whole or not at all."""
    curve.write(folder / "curve.json")
    write_whole(folder / "curve.md", curve_markdown(curve).encode())
    write_whole(folder / "curve.svg", draw_curve(curve, "svg"))


def draw_curve(curve: Curve, form: str) -> bytes:
    """Return tau, and accuracy at the lowest keep rate, against passes, as "png" or "svg" bytes."""
    keep = list(curve.worths[0].match)[-1]
    panels = [_panel(curve, [w.tau for w in curve.worths], "Kendall tau to exact")]
    if curve.named:
        top1 = [Interval(*[100 * worth.top1[keep]] * 3) for worth in curve.worths]
        dense = 100 * (curve.dense or 0)
        panels.append(_panel(curve, top1, f"top-1 at keep {keep}, %", level=dense))
    styles = {
        name: Style(*STYLES[place], "none" if name in ("removal", *ALONE) else "-")
        for place, name in enumerate(FAMILIES)
    }
    return Plot(name="curve", title="", about="", panels=panels).draw(styles, form)


def _panel(
    curve: Curve, values: Sequence[Interval], title: str, level: float | None = None
) -> Chart:
    """Return one quantity against cost."""
    series: dict[str, list[Point]] = {name: [] for name in FAMILIES}
    for worth, value in zip(curve.worths, values, strict=True):
        cost = Interval(worth.passes, worth.passes, worth.passes)
        series[family(worth)].append(Point(x=cost, y=value))
    return Chart(
        title="",
        alt="",
        x_label="passes per image (0 is drawn at the left end)",
        y_label=title,
        series={name: sorted(own, key=_cost) for name, own in series.items() if own},
        level=level,
        ticks={float(passes): str(passes) for passes in (0, 1, 3, 10, 30, 100)},
        symlog=True,
    )


def _cost(point: Point) -> float:
    return point.x.estimate


def _interval(value: Interval, factor: float, digits: int) -> str:
    middle, low, high = (f"{factor * part:.{digits}f}" for part in value)
    return f"{middle} [{low}, {high}]"


def _starred(rows: list[list[str]]) -> list[list[str]]:
    """Escape the stars, which Markdown would read as emphasis."""
    return [[cell.replace("*", "\\*") for cell in row] for row in rows]
