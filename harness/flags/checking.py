"""The flags of the subcommand that holds a benchmark to what is expected."""

from pathlib import Path

from harness.flags.command import Command, CommandParser
from harness.flags.shared import SPLITS, data, full, rounds


def _check(parser: CommandParser) -> None:
    from harness.check.verdict import Bounds

    text = "expectations, which are files of records; default: the one that ships"
    files = parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", default=[], help=text
    )
    files.required = False  # not "*": see `compare`
    asked = parser.add_argument_group(
        "which rows", "a check takes these alone, --update of a FILE measures these"
    )
    asked.add_argument("--models", nargs="+", metavar="MODEL", help="dense names")
    asked.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="or METHOD:OPTION=VALUE,... with JSON values"
    )
    asked.add_argument("--keeps", nargs="+", type=float, metavar="RATE", help="in (0, 1]")
    asked.add_argument("--datasets", nargs="+", metavar="NAME", help="or PREFIX:PATH")
    data(parser)
    bounds = parser.add_argument_group("how far things may move")
    for name, kind, metavar, text in (
        ("images", int, "N", "right answers, net"),
        ("flips", int, "N", "images whose answer flips"),
        ("cosine", float, "X", "mean cosines, to dense and between classes"),
        ("tau", float, "X", "in its expected interval besides"),
        ("slower", float, "FACTOR", "on the expected ratio of time to dense"),
    ):
        default = getattr(Bounds, name)
        bounds.add_argument(f"--{name}", type=kind, metavar=metavar, default=default, help=text)
    how = parser.add_argument_group("how it is measured")
    how.add_argument("--device", help="torch device; default: the expectation's, or cpu")
    rounds(how, 2, "latency samples, four times as many below batch 8")
    how.add_argument("--no-latency", action="store_true", help="time nothing")
    written = parser.add_argument_group("an expectation is written")
    written.add_argument("--update", action="store_true", help="write anew, tell what changed")
    written.add_argument("--split", choices=SPLITS, help="default: test")
    written.add_argument("--limit", type=int, metavar="N", help="images judged; default: 48")
    full(written)
    written.add_argument("--dtype", help="default: float32")
    written.add_argument("--batches", nargs="*", type=int, metavar="N", help="timed; default: 1")
    told = parser.add_argument_group("what is told")
    told.add_argument("--markdown", type=Path, metavar="FILE", help="the outcome as Markdown")


COMMANDS = (
    Command(
        path="check",
        group="measure",
        what="Measure a reduced benchmark again and tell what moved.",
        flags=_check,
        run="harness.check.check:run_check",
        examples=(
            ("check", "the expectation that ships"),
            ("check --methods tome --no-latency", "some of its rows"),
            ("check --update", "write it anew, in a checkout"),
            (
                "check mine.jsonl --update --models clip_vit_b16.openai --methods patchrank",
                "write one of your own, which `check mine.jsonl` then holds to",
            ),
        ),
        output="what moved and by how much on standard output; the same as Markdown in --markdown",
        problems="something moved",
    ),
)
