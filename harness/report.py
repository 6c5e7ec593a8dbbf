"""Turn records into a table, a plot of accuracy against cost, and a page that holds both."""

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from harness.plot import INK, draw
from harness.protocol import protocol
from harness.records import Latency, Record, refuse_mixed

NOT_MEASURED = "–"

_CSS = """
:root { color-scheme: light dark; --ink: #1b1c1d; --paper: #fdfdfc; --line: #c9c9c4;
  --soft: #60625e; --band: #f2f2ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #161716; --line: #3b3d3a;
  --soft: #a3a59f; --band: #20211f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1700px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { color: var(--soft); margin: .25rem 0; max-width: 100ch; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .5rem 0; }
svg { max-width: 100%; min-width: 40rem; height: auto; color: var(--ink); }
table { border-collapse: separate; border-spacing: 0; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: normal; border-bottom: 2px solid var(--ink);
  vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
tbody tr:hover { background: var(--band); }
"""

_NOTES = (
    "Top-1 with its 95 % Wilson interval; the difference to dense in points on the same images, "
    "with its 95 % paired bootstrap interval. GFLOPs are 1e9 multiply-adds per image, attention "
    "included. Latency is the median with the quartiles, interleaved with dense; below 1 × is "
    "faster than dense. Kendall τ, plain and top-weighted, match at k and border overlap are "
    "against the golden ranking; k is the number of patch tokens kept, and border overlap is the "
    "share of the patches within 10 % of all from golden's k-th that fall on its side. Chance is "
    "what unrelated rankings reach. – means not measured."
)

_SUMMARY = ("Method", "Keep", "Top-1, %", "To dense", "GFLOPs", "× dense", "Kendall τ")
_Column = tuple[str, Callable[[Record], str]]


def write_report(records: Iterable[Record], path_html: str | Path, title: str) -> None:
    """Write a page that needs no network: the plot, then one table per group of records.

    Raises:
        ValueError: No records, or a group mixes conditions; see `records.refuse_mixed`.
    """
    groups = _groups(records)
    sections = [_section(name, group) for name, group in groups.items()]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<figure class="wide" tabindex="0" aria-label="Top-1 against GFLOPs">
{_inline_svg(groups)}
</figure>
<p>{_NOTES}</p>
{"".join(sections)}</body>
</html>
"""
    Path(path_html).write_text(page, encoding="utf-8")


def write_plot(records: Iterable[Record], path: str | Path) -> None:
    """Write top-1 against GFLOPs, one panel per group; the suffix .png or .svg decides the format.

    The same records give the same bytes.

    Raises:
        ValueError: No records, a group mixes conditions, or the suffix is another.
    """
    path = Path(path)
    if path.suffix not in {".png", ".svg"}:
        raise ValueError(f"a plot's name ends with .png or .svg, got {path.name!r}")
    path.write_bytes(draw(_groups(records), path.suffix.removeprefix(".")))


def markdown_table(records: Iterable[Record], *, summary: bool = False) -> str:
    """Return one Markdown table per group of records, each under its heading.

    Args:
        records: What to show.
        summary: Leave out what a first look doesn't need.

    Raises:
        ValueError: No records, or a group mixes conditions.
    """
    parts = []
    for name, group in _groups(records).items():
        columns = [c for c in _columns(group) if not summary or c[0].endswith(_SUMMARY)]
        rows = [[heading for heading, _ in columns]]
        rows += [["---"] + ["---:"] * (len(columns) - 1)]
        rows += [[render(record) for _, render in columns] for record in group]
        lines = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in rows]
        about = _markdown_cell(_about(group))
        parts.append("\n".join([f"### {_markdown_cell(name)}", about, "", *lines, ""]))
    return "\n".join(parts)


def _groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records by dataset and tower under a heading, dense first, keeps falling."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        key = (record.dataset, record.split, record.shots, record.tag, record.weights_sha256)
        groups.setdefault(key, []).append(record)
    if not groups:
        raise ValueError("there are no records to report")
    named: dict[str, list[Record]] = {}
    for group in groups.values():
        refuse_mixed(group)
        group.sort(key=lambda record: (record.method != "dense", -record.keep))
        first = group[0]
        shots = f"{first.shots} shots" if first.shots else "by text"
        name = f"{first.dataset} {first.split}, {shots}, {first.model}.{first.tag}"
        named[name if name not in named else f"{name} ({first.weights_sha256[:8]})"] = group
    return named


def _columns(records: Sequence[Record]) -> list[_Column]:
    """Return the headings and what fills them, with three columns for each batch size timed."""
    columns: list[_Column] = [
        ("Method", lambda record: record.method),
        ("Keep", lambda record: f"{100 * record.keep:.3g} %"),
        ("Top-1, %", lambda r: _interval(r.top1, r.top1_low, r.top1_high, 100, "{:.1f}")),
        ("To dense", lambda r: _interval(r.diff_to_dense, r.diff_low, r.diff_high, 100, "{:+.1f}")),
        ("GFLOPs", lambda record: _number(record.gflops, "{:.2f}")),
    ]
    for batch in sorted({latency.batch for record in records for latency in record.latency}):
        columns += [
            (f"Batch {batch}, ms [IQR]", _timed(batch, _milliseconds)),
            (f"Batch {batch}, × dense", _timed(batch, _ratio)),
            (f"Batch {batch}, images/s", _timed(batch, lambda timed: f"{timed.images_per_s:.1f}")),
        ]
    return [
        *columns,
        ("Kendall τ", lambda r: _interval(r.tau, r.tau_low, r.tau_high, 1, "{:+.2f}")),
        (
            "Weighted τ",
            lambda r: _interval(
                r.weighted_tau, r.weighted_tau_low, r.weighted_tau_high, 1, "{:+.2f}"
            ),
        ),
        ("Match at k (chance), %", _match),
        ("Border overlap (chance), %", _border),
        ("Final tokens", lambda record: _number(record.final_tokens, "{}")),
    ]


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _interval(
    value: float | None, low: float | None, high: float | None, scale: int, form: str
) -> str:
    if value is None or low is None or high is None:
        return NOT_MEASURED
    return "{} [{}, {}]".format(*(form.format(scale * number) for number in (value, low, high)))


def _timed(batch: int, render: Callable[[Latency], str]) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        return next((render(t) for t in record.latency if t.batch == batch), NOT_MEASURED)

    return cell


def _milliseconds(timed: Latency) -> str:
    return f"{timed.median_ms:.1f} [{timed.q1_ms:.1f}, {timed.q3_ms:.1f}]"


def _ratio(timed: Latency) -> str:
    return _interval(timed.ratio_to_dense, timed.ratio_low, timed.ratio_high, 1, "{:.2f}")


def _match(record: Record) -> str:
    if record.match_at_k is None or record.match_k is None or record.match_chance is None:
        return NOT_MEASURED
    shown = _interval(record.match_at_k, record.match_low, record.match_high, 100, "{:.1f}")
    if record.match_low is None:
        shown = f"{100 * record.match_at_k:.1f}"
    return f"{shown} at {record.match_k} ({100 * record.match_chance:.1f})"


def _border(record: Record) -> str:
    shown = _interval(record.border_overlap, record.border_low, record.border_high, 100, "{:.1f}")
    if record.border_chance is None:
        return shown
    return f"{shown} ({100 * record.border_chance:.1f})"


def _about(group: Sequence[Record]) -> str:
    """Say what all records of a group have in common."""
    first = group[0]
    golden = sorted({record.golden_images for record in group if record.golden_images})
    return (
        f"{protocol(first)}; {first.image_count} images (revision {first.dataset_revision}, "
        f"seed {first.seed}), "
        f"{first.device_name}, {first.device}, {first.dtype}, {first.threads} threads, torch "
        f"{first.torch}, timm {first.timm}, weights {first.weights_sha256[:12]}; agreement on "
        f"{', '.join(map(str, golden)) or 'no'} images."
    )


def _section(name: str, group: Sequence[Record]) -> str:
    columns = _columns(group)
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading, _ in columns)
    rows = "".join(
        f'<tr title="{escape(f"{record.model} {record.method_config}")}">'
        + "".join(f"<td>{escape(render(record))}</td>" for _, render in columns)
        + "</tr>\n"
        for record in group
    )
    return (
        f"<section>\n<h2>{escape(name)}</h2>\n<p>{escape(_about(group))}</p>\n"
        f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n</section>\n"
    )


def _markdown_cell(text: str) -> str:
    """Return text that can neither end the cell nor become a tag, a link or an image."""
    plain = escape(" ".join(text.split()), quote=False)
    return plain.replace("|", "&#124;").replace("](", "]&#40;")


def _inline_svg(groups: dict[str, list[Record]]) -> str:
    """Return the plot as an element: no prolog, no document type, ink in the text's colour."""
    text = draw(groups, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(INK, "currentColor").strip()
