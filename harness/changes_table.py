"""Two runs side by side: in words what differs in conditions, then a table per tower and tuning."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from harness.averages import uncounted
from harness.changes import ABSENT, Change, Changes, Difference
from harness.judging import MCNEMAR, Together, detectable_note, mark_note, together
from harness.protocol import protocol, tower_of
from harness.records import Record
from harness.report.markdown import markdown_cell
from harness.table import NOT_MEASURED, points

_CAPTION = (
    "top-1 in %; B - A in points with 95 % paired bootstrap interval over images; only A, only B: "
    "images that one alone got right; p: exact McNemar test, one comparison at a time; batch: "
    "median time of B over A's, without interval, as the two were not timed in turns; to dense: "
    "the same of the ratios to dense, which were, with an interval that covers at least 90 %; tau: "
    "mean Kendall tau of B minus A's"
)
_DIGITS = 16  # of a hash
_NARROW = ("method", "keep", "seed", "top-1 A", "top-1 B", "B - A", "p", "GFLOPs")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pairs of one dataset, tower and tuning, as text.

    Attributes:
        title: what the rows have in common.
        heads: one per column.
        rows: cells, as many as heads.
        note: what marks say, and what so many images can show; empty if nothing was judged.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str

    def table(self, *, wide: bool = True) -> Table:
        """Lay it out for the terminal: all columns, or the most telling ones (80 characters)."""
        caption = f"{_CAPTION}; {self.note}" if self.note else _CAPTION
        table = Table(
            title=escape(self.title),
            caption=caption if wide else f"{caption}; all columns: a wider terminal, or --output",
            box=box.HEAVY_HEAD if wide else box.SIMPLE,
        )
        shown = [at for at, head in enumerate(self.heads) if wide or head in _NARROW]
        for at in shown:
            left = self.heads[at] == "method"
            table.add_column(self.heads[at], justify="left" if left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(row[at]) for at in shown))
        return table

    def markdown(self) -> str:
        """Lay it out as Markdown."""
        marks = ("---" if head == "method" else "---:" for head in self.heads)
        lines = [f"## {markdown_cell(self.title)}", ""]
        for cells in (self.heads, marks, *self.rows):
            lines.append(f"| {' | '.join(map(markdown_cell, cells))} |")
        note = ["", f"{self.note[0].upper()}{self.note[1:]}."] if self.note else []
        return "\n".join([*lines, *map(markdown_cell, note), ""])


def sheets(found: Changes) -> list[Sheet]:
    """Return a table per dataset, split, tower and tuning."""
    return [_sheet(group) for group in found.groups()]


def notes(found: Changes) -> list[str]:
    """Say in words what is not the same in both runs, and what is therefore not compared."""
    pairs = len(found.pairs)
    lines = [f"{pairs} {'row is' if pairs == 1 else 'rows are'} in both runs"]
    for run, count in zip("AB", found.replaced, strict=True):
        if count:
            what = "1 record gives" if count == 1 else f"{count} records give"
            lines.append(f"in {run} {what} way to newer ones of the same row and conditions")
    lines += [
        f"conditions differ: {_told(difference)} ({_share(count, pairs)})"
        for difference, count in found.conditions()
    ]
    if pairs and not found.conditions():
        lines.append("conditions are the same in every row")
    lines += _apart(found)
    for pair in found.pairs:
        lines += [f"{_name(pair.a)}: cost differs: {_told(cost)}" for cost in pair.costs]
    both = (record for pair in found.pairs for record in (pair.a, pair.b))
    if told := uncounted(*both):
        lines.append(_plain(told))
    assumed = sum(not pair.proven and not pair.other_images for pair in found.pairs)
    if assumed:
        lines.append(
            f"images taken for the same by revision and count ({_share(assumed, pairs)}): one of "
            "the two is from before records of version 6, which know their images"
        )
    untimed = sum(bool(p.a.latency and p.b.latency and not p.latency) for p in found.pairs)
    if untimed:
        lines.append(
            f"latency not compared ({_share(untimed, pairs)}): it takes the same device, "
            "device_name, dtype, threads and batch"
        )
    for run, rest in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"only in {run}: {_name(record)}" for record in rest]
    return lines


def _apart(found: Changes) -> Iterator[str]:
    """Say which rows are of other images in the other run, those of one reason in one line."""
    rows: dict[tuple[str, str, str], list[Record]] = {}
    for pair in found.pairs:
        if pair.other_images:
            reason = (pair.a.dataset, pair.a.split, pair.other_images)
            rows.setdefault(reason, []).append(pair.a)
    for (dataset, split, why), told in rows.items():
        named = _plain(f"{len(told)} rows on {dataset} {split}") if told[1:] else _name(told[0])
        yield f"{named}: accuracy not compared, images or prompts differ: {_plain(why)}"


def changes_markdown(found: Changes, a: str, b: str) -> str:
    """Return notes and tables as one document; ``a`` and ``b`` say which runs they are."""
    lines = ["# Changes from A to B", ""]
    lines += [f"- {run}: {markdown_cell(name)}" for run, name in (("A", a), ("B", b))]
    lines += [f"- {markdown_cell(line)}" for line in notes(found)]
    tables = [sheet.markdown() for sheet in sheets(found)]
    return "\n".join([*lines, "", *tables, *([f"{_CAPTION}."] if tables else []), ""])


def _sheet(group: Sequence[Change]) -> Sheet:
    first = group[0].a
    seeded = len({pair.a.seed for pair in group}) > 1
    batches = sorted({batch for pair in group for batch in pair.latency})
    beside = sorted({batch for pair in group for batch in pair.latency_to_dense})
    family = together({at: pair.p_value for at, pair in enumerate(group)})
    rows = []
    for at, pair in enumerate(group):
        answers, tau = pair.answers, pair.tau
        rows.append(
            (
                _plain(pair.a.method),
                f"{100 * pair.a.keep:.4g}",
                *([str(pair.a.seed)] if seeded else []),
                f"{100 * pair.a.top1:.1f}",
                f"{100 * pair.b.top1:.1f}",
                NOT_MEASURED if pair.top1 is None else points(pair.top1, family.mark(at)),
                NOT_MEASURED if answers is None else f"{answers[0]}, {answers[1]}",
                NOT_MEASURED if pair.p_value is None else f"{pair.p_value:.3f}",
                _cost(pair),
                *(_times(pair, batch) for batch in batches),
                *(_beside_dense(pair, batch) for batch in beside),
                NOT_MEASURED if tau is None else f"{tau:+.3f}",
            )
        )
    images = {record.image_count for pair in group for record in (pair.a, pair.b)}
    count = " or ".join(map(str, sorted(images)))
    named = f"{first.dataset} ({first.split}, {count} images; {protocol(first)}), {tower_of(first)}"
    heads = ("method", "keep", *(["seed"] if seeded else []), "top-1 A", "top-1 B", "B - A")
    times = [f"batch {batch}, B / A" for batch in batches]
    times += [f"batch {batch}, to dense" for batch in beside]
    return Sheet(
        title=_plain(named),
        heads=(*heads, "only A, only B", "p", "GFLOPs", *times, "tau"),
        rows=tuple(rows),
        note=_judged(group, family),
    )


def _judged(group: Sequence[Change], family: Together[int]) -> str:
    """Say what the marks are, and what so many images show of the rows without one."""
    if not family.alone:
        return ""
    left = [group[at] for at in family.alone if not family.mark(at)]
    images = {pair.a.image_count for pair in left}
    note = mark_note(MCNEMAR, "all rows of this table")
    if len(images) > 1:
        return note
    shares = [float((pair.a.correct != pair.b.correct).mean()) for pair in left]
    return note + detectable_note(min(images, default=1), shares)


def _cost(pair: Change) -> str:
    a, b = (
        NOT_MEASURED if record.gflops is None else f"{record.gflops:.3f}"
        for record in (pair.a, pair.b)
    )
    return a if pair.a.gflops == pair.b.gflops else f"{a} → {b}"


def _times(pair: Change, batch: int) -> str:
    return f"{pair.latency[batch]:.2f}x" if batch in pair.latency else NOT_MEASURED


def _beside_dense(pair: Change, batch: int) -> str:
    found = pair.latency_to_dense.get(batch)
    return NOT_MEASURED if found is None else "{:.2f}x [{:.2f}, {:.2f}]".format(*found)


def _told(difference: Difference) -> str:
    a, b = (_value(difference.name, value) for value in (difference.a, difference.b))
    return f"{_plain(difference.name)} {a} in A, {b} in B"


def _value(name: str, value: object) -> str:
    if name.endswith("_sha256"):
        value = str(value)[:_DIGITS]
    if value == ABSENT:
        return ABSENT
    return "none" if value is None else json.dumps(value)


def _share(count: int, pairs: int) -> str:
    return "every row" if count == pairs else f"{count} of {pairs} rows"


def _name(record: Record) -> str:
    text = f"{record.model}.{record.tag} on {record.dataset} {record.split}"
    if record.shots:
        text += f", {protocol(record)}, seed {record.seed}"
    return _plain(text)


def _plain(text: str) -> str:
    """Return text of somebody else's file without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
