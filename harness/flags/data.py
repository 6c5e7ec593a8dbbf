"""The flags of the subcommands that look at datasets."""

from pathlib import Path
from typing import Any

from harness.flags.shared import add


def add_datasets(commands: Any) -> None:
    """Add ``datasets``."""
    datasets = commands.add_parser("datasets", help="List datasets, or check one.")
    kinds = datasets.add_subparsers(required=True, metavar="WHAT")
    listed = add(kinds, "list", "Show what datasets there are, and where.", "datasets list")
    checked = add(
        kinds,
        "check",
        "Verify a local copy before hours are spent on it: counts, checksums, every image.",
        "datasets check folder:photos",
    )
    for parser, what in ((listed, "list"), (checked, "check")):
        parser.set_defaults(what=what, command="datasets")
        parser.add_argument(
            "--root", type=Path, metavar="DIR", help="of datasets; default: CLIP_PATCHRANK_DATA's"
        )
    checked.add_argument("dataset", metavar="NAME", help="see `datasets list`; or PREFIX:PATH")
    checked.add_argument("--download", action="store_true", help="get what is missing")
    checked.add_argument("--fast", action="store_true", help="decode no image")
