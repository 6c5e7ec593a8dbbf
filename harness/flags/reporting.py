"""The flags of the subcommand that writes reports."""

from pathlib import Path
from typing import Any

from harness.flags.shared import add


def add_report(commands: Any) -> None:
    """Add ``report``."""
    parser = add(
        commands,
        "report",
        "Write a page, tables (Markdown, CSV, LaTeX) and plots of one or more runs.",
        "report results results_gpu/records.jsonl --output report --title 'Two machines'",
    )
    text = "a file of records, or the folder of one"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=text)
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder")
    parser.add_argument(
        "--title", default="Token reduction for CLIP, side by side", help="of the page"
    )
