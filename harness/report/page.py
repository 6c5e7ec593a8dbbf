"""A report as one page that needs no network."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from harness.picture import Picture
from harness.plots.panel import Plot
from harness.plots.style import Style
from harness.report.groups import Grouped, counted
from harness.report.highlights import Highlights
from harness.report.missing import missing
from harness.report.parts import (
    Part,
    in_short_part,
    left_out_part,
    missing_part,
    pictures_part,
    plain,
    plots_part,
    tables_part,
    times_part,
)
from harness.tables import Table


def page(
    found: Grouped,
    title: str,
    plots: Sequence[Plot],
    styles: Mapping[str, Style],
    pictures: Sequence[Picture] = (),
    *,
    short: Sequence[Highlights],
    times: Sequence[Table] = (),
    left_out: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        found: what it is of.
        title: heading.
        plots: in order.
        styles: of their series.
        pictures: more figures, drawn already.
        short: each group in short.
        times: tables of what `latency` timed.
        left_out: why files beside the records are not in it.
    """
    first, parts = [], []
    if left_out:
        first.append(left_out_part(left_out))
    if found.groups:
        tables = tables_part(found)
        first.append(in_short_part(short, {part.title: part.anchor for part in tables.parts}))
        parts.append(tables)
    if times:
        parts.append(times_part(times))
    if plots:
        parts.append(plots_part(plots, styles))
    if pictures:
        parts.append(pictures_part(pictures))
    if lacking := missing(found, traced=bool(pictures)):
        parts.append(missing_part(lacking))
    # The answer before the contents, which fill a phone's screen.
    answer, body = ("".join(_section(part, 2) for part in each) for each in (first, parts))
    script, policy = _asset("sort.js"), _policy()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{plain(title)}</title>
<style>{_asset("style.css")}</style>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<header>
<h1>{plain(title)}</h1>
<p class="soft">{plain(_lead(found))}</p>
</header>
<main id="report" tabindex="-1">
{answer}<nav aria-label="Contents">{_contents(parts)}</nav>
{body}</main>
<script>{script}</script>
</body>
</html>
"""


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _policy() -> str:
    """Return what the browser lets the page do: our script by its hash, and nothing outside."""
    digest = base64.b64encode(hashlib.sha256(_asset("sort.js").encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _lead(found: Grouped) -> str:
    """Say how much is in it."""
    if not found.groups:
        return "Times alone, without records of accuracy."
    rows = sum(len(group.rows) for group in found.groups)
    told = f"{counted(rows, 'row')} in {counted(len(found.groups), 'group')}; rows of one table "
    told += "were measured under the same conditions."
    if found.replaced:
        told += (
            f" Left out for newer ones of the same rows under the same conditions: "
            f"{counted(found.replaced, 'earlier measurement')}."
        )
    return told


def _contents(parts: Sequence[Part]) -> str:
    entries = "".join(
        f'<li><a href="#{part.anchor}">{plain(part.title)}</a>'
        f"{_contents(part.parts) if part.parts else ''}</li>\n"
        for part in parts
    )
    return f"<ul>\n{entries}</ul>"


def _section(part: Part, level: int) -> str:
    inside = "".join(_section(inner, level + 1) for inner in part.parts)
    return (
        f'<section id="{part.anchor}" aria-labelledby="{part.anchor}-title">\n'
        f'<h{level} id="{part.anchor}-title">{plain(part.title)}</h{level}>\n'
        f"{part.html}{inside}</section>\n"
    )
