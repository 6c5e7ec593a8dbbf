"""A report as a folder: tables in Markdown, LaTeX and CSV, plots, and a page of all that needs no network."""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from html import escape
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.base.table import Shown, Table, count_of
from harness.base.terminal import Progress, printable
from harness.records.metrics import METRICS
from harness.records.record import RECORDS, UNITS, Record, Times, halves, read_run
from harness.report.charts import INK, Plot, draw, draw_sample, encode, id_of, names_of, render, styles_of
from harness.report.highlights import headline, plots_of, standings
from harness.report.pictures import Gallery, read_galleries
from harness.report.tables import RATIO, Group, group_records, sections
from zoo.core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Token reduction for CLIP, side by side"
ON_PAGE = 4  # plots at most, the first; files have all
_LATEX_HEAD = r"""% Needs \usepackage{booktabs}. Written by patchrank report.
% Square brackets are 95 % intervals; those of times are in table.csv.
"""
_SIGN = re.compile(r"(?<![\w.])([-+])(?=\d)")  # of a number
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which text begins that spreadsheets run
_ESCAPED = str.maketrans(
    {letter: f"\\{letter}" for letter in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"[": "{[}", "]": "{]}"}  # behind \\ a bracket would be its argument
    | {"×": r"$\times$", "τ": r"$\tau$", "–": "--", "*": r"\textsuperscript{*}"}
)
_UNTABLED = ("metrics", "latency", "image_groups")  # fields that aren't a column in CSV


def read_runs(paths: Sequence[Path]) -> dict[str, list[Record]]:
    """Read runs, each once, by the path that names it first; raises what `read_run` does."""
    unique: dict[Path, Path] = {}
    for run in paths:
        unique.setdefault((run / RECORDS if run.is_dir() else run).resolve(), run)
    return {str(run): read_run(run) for run in unique.values()}


def write_report(
    runs: Mapping[str, Sequence[Record]],
    folder: Path,
    progress: Progress,
    *,
    drawn: Collection[str] | None = None,
    by_half: bool = False,
) -> Shown:
    """Write the report of runs, each file whole; say which method is nearest to dense at equal cost.

    All records are in the CSV; the newest of a row are in the rest. ``drawn`` are the files of plots to write, None for
    all. ``by_half`` adds tables and plots of the `halves` of images by detail. ValueError without records, or for a
    gallery that can't be read; NotADirectoryError if ``folder`` is a file.
    """
    records = list(chain.from_iterable(runs.values()))
    groups = group_records([*records, *chain.from_iterable(halves(records))] if by_half else records)
    pictures = read_galleries(run if run.is_dir() else run.parent for run in map(Path, runs))
    plots, ranked, tables = plots_of(groups), standings(groups), list(sections(groups))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for the report")
    brief, conclusion = [standing.table() for standing in ranked], headline(ranked)
    files: dict[str, Callable[[], bytes | str]] = {
        "report.html": lambda: page(groups, plots, tables, brief, conclusion, pictures),
        "table.md": lambda: markdown([*brief, *tables]),
        "table.tex": lambda: latex([table.wide(summary=True) for table in tables]),
        "table.csv": lambda: records_csv(records, [run for run, of_run in runs.items() for _ in of_run]),
    }
    styles = styles_of(chart for plot in plots for chart in plot.charts)
    for plot, form in product(plots, ("svg", "png")):
        if drawn is None or f"{plot.name}.{form}" in drawn:
            files[f"{plot.name}.{form}"] = partial(render, plot.charts, styles, form)
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("report", len(files)) as update:
        for count, (name, make) in enumerate(files.items(), start=1):
            content = make()
            write_whole(folder / name, content.encode() if isinstance(content, str) else content)
            update(count)
    data = {"runs": list(runs), "records": len(records), "files": [str(folder / name) for name in files]}
    summary = f"wrote {folder / 'report.html'} and {len(files) - 1} files beside it"
    return Shown(parts=(*brief, *conclusion, summary), data=data | {"conclusion": conclusion})


def page(
    groups: Sequence[Group],
    plots: Sequence[Plot],
    tables: Sequence[Table],
    brief: Sequence[Table] = (),
    conclusion: Sequence[str] = (),
    pictures: Sequence[Gallery] = (),
) -> str:
    """Return all as one page; its template, style and script lie beside this."""
    styles = styles_of(chart for plot in plots for chart in plot.charts)
    shown = [(plot, chart) for plot in plots for chart in plot.charts][:ON_PAGE]
    return _template().render(
        groups=groups,
        title=TITLE,
        brief=brief,
        tables=[table.wide() for table in tables],
        headline=conclusion,
        legend=[
            (id_of(name, styles), name, inline(draw_sample(styles[name]), f"sample-{id_of(name, styles)}"))
            for name in names_of([chart for _, chart in shown], styles)
        ],
        plots=[  # each chart by itself, small enough for a phone
            (plot, chart, inline(draw([chart], styles, small=True), f"plot-{at}", chart.alt))
            for at, (plot, chart) in enumerate(shown, start=1)
        ],
        pictures=pictures,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.globals["count_of"] = count_of
    environment.filters["settings"] = lambda settings: json.dumps(settings, sort_keys=True)[1:-1] or "no settings"
    return environment.get_template("page.html")


def inline(figure: "Figure", name: str, alt: str = "") -> Markup:
    """Return a figure as an SVG element with the words of a picture, or hidden from those who need words.

    Ink has the colour of the page's text; ids begin with the drawing's name, and those of series are classes.
    """
    text = encode(figure, "svg", transparent=True).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'id="(series-\d+)"', r'class="\1"', text)
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    head, _, body = text.partition(">")
    head += f' role="img" aria-labelledby="{name}-alt"' if alt else ' aria-hidden="true"'
    words = f'<title id="{name}-alt">{escape(alt)}</title>' if alt else ""
    return Markup(f"{head}>{words}{body}".replace(INK, "currentColor").strip())


def markdown(tables: Sequence[Table], level: int = 3) -> str:
    """Return tables in their fullest form, each under its heading, with its caption above and its notes below."""
    lines: list[str] = []
    for table in tables:
        places = table.places()
        marks = ["---" if at == 0 or table.columns[at].left else "---:" for at in places]
        heads = [table.columns[at].heading for at in places]
        rows = [[row[at].marked for at in places] for row in table.rows]
        lines += [f"{'#' * level} {_markdown_text(table.title)}", *filter(None, [_markdown_text(table.explain())]), ""]
        lines += [f"| {' | '.join(map(_markdown_text, row))} |" for row in (heads, marks, *rows)]
        lines += ["", *(f"- {_markdown_text(note)}" for note in table.notes)] if table.notes else []
        lines.append("")
    return "\n".join(lines)


def _markdown_text(text: str) -> str:
    """Return text that can neither end a cell nor become a tag, a link or an image."""
    plain = escape(printable(" ".join(text.split())), quote=False)
    return plain.replace("|", "&#124;").replace("](", "]&#40;")


def latex(tables: Sequence[Table]) -> str:
    """Return tables with booktabs, each a ``table`` with a caption and a label."""
    return _LATEX_HEAD + "\n".join(_latex_table(table, at) for at, table in enumerate(tables, 1))


def _latex_table(table: Table, number: int) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    heads = [_latex_text(head).replace(", $", r",\\$") for head in table.heads]  # a long heading is broken in two
    heads = [rf"\shortstack[r]{{{head}}}" if r"\\" in head else head for head in heads]
    lines = [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_latex_text(table.title)}. {_latex_text(table.explain())}}}",
        rf"\label{{tab:{label}-{number}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(table.columns) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for at, row in enumerate(table.rows):
        lines += [r"\addlinespace"] if at in table.sections else []
        # Times stand without intervals, so that a page holds all columns.
        cells = [
            cell.marked.partition(" [")[0] if head.endswith(RATIO) else cell.marked
            for head, cell in zip(table.heads, row, strict=True)
        ]
        lines.append(" & ".join(_SIGN.sub(r"$\1$", _latex_text(cell)) for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_text(text: str) -> str:
    """Return text in which nothing is a command of LaTeX's."""
    return " ".join(text.split()).translate(_ESCAPED)


def records_csv(records: Sequence[Record], runs: Sequence[str] = ()) -> str:
    """Return CSV with a line per record, at least one, of all fields but values per image; None is empty.

    Each batch size that was timed has a column per figure. The last column has ``runs``, the run of each record.
    """
    batches = sorted({timed.batch for record in records for timed in record.latency})
    times = [field.name for field in fields(Times) if field.name != "batch"]
    units = {each.name: UNITS.get(each.name) for each in fields(Record) if each.name not in _UNTABLED}
    measured = list(dict.fromkeys([*METRICS, *(name for record in records for name in record.metrics)]))
    rows = []
    for record, run in zip_longest(records, runs):
        row = {f"{name}_{unit}" if unit else name: getattr(record, name) for name, unit in units.items()}
        for name in measured:
            value, unit = record.metrics.get(name), METRICS[name].unit if name in METRICS else ""
            for part in ("mean", "low", "high", "chance"):
                column = filter(None, (name, part.removeprefix("mean"), unit))
                row["_".join(column)] = getattr(value, part, None)
            row[f"{name}_at"] = getattr(value, "at", None)
        timed = {entry.batch: entry for entry in record.latency}
        row |= {f"latency_batch{b}_{name}": getattr(timed.get(b), name, None) for b in batches for name in times}
        rows.append(row | ({"run": run} if runs else {}))
    return csv_text(rows)


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of the same columns, at least one, as CSV: numbers as JSON has them; None is empty.

    Text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(map(_csv_cell, row.values()))
    return buffer.getvalue()


def _csv_cell(value: object) -> str | None:
    if not isinstance(value, str):
        return None if value is None else json.dumps(value, sort_keys=True)
    return f"'{value}" if value.startswith(_FORMULA) else value
