"""The flags of the subcommand that compares with what is expected."""

from pathlib import Path
from typing import Any

from harness.check.bounds import Bounds
from harness.flags.shared import add, data


def add_check(commands: Any) -> None:
    """Add ``check``."""
    parser = add(
        commands,
        "check",
        "Measure a reduced benchmark again; exit 1 with a table if something moved.",
        "check --markdown check.md",
    )
    text = "expectations, which are files of records; default: the one that ships"
    files = parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=text)
    files.required, files.default = False, []  # not "*": see `compare`
    asked = parser.add_argument_group(
        "what", "a check takes these rows alone; --update of a FILE measures these instead"
    )
    asked.add_argument("--models", nargs="+", help="dense names")
    asked.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="or METHOD:OPTION=VALUE,... with JSON values"
    )
    asked.add_argument("--keeps", nargs="+", type=float, help="in (0, 1]")
    asked.add_argument("--datasets", nargs="+", help="names, or PREFIX:PATH")
    data(parser)
    written = parser.add_argument_group("writing an expectation")
    written.add_argument("--update", action="store_true", help="write anew, tell what changed")
    written.add_argument("--split", choices=("train", "val", "test"), help="default: test")
    written.add_argument("--limit", type=int, help="images judged per dataset; default: 48")
    written.add_argument("--full", action="store_true", help="all images")
    written.add_argument("--dtype", help="default: float32")
    written.add_argument("--batches", nargs="*", type=int, help="to time; default: 1")
    bounds = parser.add_argument_group("how far things may move")
    bounds.add_argument("--images", type=int, default=Bounds.images, help="right answers, net")
    bounds.add_argument("--flips", type=int, default=Bounds.flips, help="answers that flip")
    bounds.add_argument("--cosine", type=float, default=Bounds.cosine, help="of mean cosines")
    bounds.add_argument("--tau", type=float, default=Bounds.tau, help="in its interval besides")
    bounds.add_argument(
        "--slower", type=float, default=Bounds.slower, help="factor on the ratio of time to dense"
    )
    bounds.add_argument("--no-latency", action="store_true", help="time nothing")
    parser.add_argument("--rounds", type=int, default=2, help="latency samples")
    parser.add_argument("--device", help="torch device; default: the expectation's, or cpu")
    parser.add_argument("--since", metavar="REV", help="suspects come after; default: its commit")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the outcome as Markdown")
