"""How many tokens leave each block."""

from collections.abc import Sequence

from harness.averages import Average, labels
from harness.plots.panel import Plot
from harness.plots.steps import Line, Steps
from harness.report.groups import Group


def tokens_plot(groups: Sequence[Group]) -> Plot | None:
    """Return tokens per block, a panel for each set of rows; datasets share it where all is one."""
    panels: dict[tuple[Line, ...], list[str]] = {}
    for group in groups:
        if lines := _lines(group.rows):
            panels.setdefault(lines, []).append(group.name)
    if not panels:
        return None
    about = (
        "Tokens that leave each block, class token and learned tokens included; the area below a "
        "line is about what the blocks cost. At its right end stands the keep rate. Methods that "
        "share a line have it in their colours by turns."
    )
    made = [_panel(lines, names) for lines, names in panels.items()]
    return Plot(name="tokens_per_block", title="Tokens per block", about=about, panels=made)


def _lines(rows: Sequence[Average]) -> tuple[Line, ...]:
    named = labels(rows)
    shared: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for row in rows:
        counts = row.first.tokens_per_block
        if counts is not None:
            key = (f"{100 * row.keep:.3g} %", tuple(counts))
            shared.setdefault(key, []).append(named[row.identity])
    return tuple(
        Line(names=tuple(dict.fromkeys(names)), end=end, counts=counts)
        for (end, counts), names in shared.items()
    )


def _panel(lines: tuple[Line, ...], names: Sequence[str]) -> Steps:
    told = [f"{', '.join(line.names)} {line.end}: {_runs(line.counts)}" for line in lines]
    return Steps(
        title="; ".join(names),
        alt=f"Tokens per block, {'; '.join(names)}: {len(lines)} different courses.",
        lines=lines,
        notes=[f"{'; '.join(told)}."],
    )


def _runs(counts: Sequence[float]) -> str:
    """Say numbers of tokens, equal ones in a row once."""
    parts: list[tuple[float, int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1] = (count, parts[-1][1] + 1)
        else:
            parts.append((count, 1))
    return ", ".join(f"{count} × {many}" if many > 1 else str(count) for count, many in parts)
