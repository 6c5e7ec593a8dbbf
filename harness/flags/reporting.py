"""The flags of the subcommand that writes reports."""

from pathlib import Path

from harness.flags.command import Command, CommandParser


def _report(parser: CommandParser) -> None:
    text = "a file of records or of `latency`, or the folder of one"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=text)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("report"), help="folder of the report"
    )
    files.add_argument(
        "--title", default="Token reduction for CLIP, side by side", help="of the page"
    )


COMMANDS = (
    Command(
        path="report",
        group="measure",
        what="Write a page, tables (Markdown, CSV, LaTeX) and plots of one or more runs.",
        flags=_report,
        run="harness.report.folder:run_report",
        examples=(
            ("report results", "what `compare` and `latency` measured"),
            ("report results results_gpu/records.jsonl --title 'Two machines'", "two runs"),
        ),
        output="which rows are on the Pareto fronts, on standard output; report.html, table.md, "
        "summary.md, table.csv, latency.csv, table.tex and every plot as SVG and PNG in --output",
    ),
)
