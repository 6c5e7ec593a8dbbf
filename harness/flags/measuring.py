"""The flags of the subcommands that measure models."""

from pathlib import Path
from typing import Any

from harness.flags.command import Command, CommandParser
from harness.flags.declared import declared
from harness.flags.shared import conditions, data, datasets, machine, rounds, seeds


def _compare(parser: CommandParser) -> None:
    plan, traced = (
        declared("harness.measure.plan", "Plan"),
        declared("harness.measure.plan", "TRACED"),
    )
    text = "two files of records, or their folders: what changed; nothing is measured then"
    runs = parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", default=[], help=text)
    # Not "*": that takes nothing before the first flag, and refuses the runs after it.
    runs.required = False
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--models", nargs="+", metavar="MODEL", default=["clip_vit_s14"], help="dense names"
    )
    what.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all; see `list`")
    what.add_argument(
        "--keeps", nargs="+", type=float, metavar="RATE", default=[0.6, 0.3], help="in (0, 1]"
    )
    what.add_argument("--match", metavar="WHAT", help="gflops: rows of equal cost, not keep")
    what.add_argument(
        "--match-to", metavar="METHOD", default="patchrank", help="has --keeps, others its cost"
    )
    datasets(what)
    what.add_argument(
        "--shots", nargs="+", type=int, metavar="K", default=[0], help="0: text classifier"
    )
    _learned(what)
    seeds(what, plan.seeds, "with shots; from --seed on")
    data(parser)
    how = conditions(parser, 250)
    rounds(how, 5, "latency samples")
    how.add_argument(
        "--batches", nargs="*", type=int, metavar="N", default=[1, 32], help="for latency"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--fresh", action="store_true", help="measure again what is known")
    files.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("results"), help="folder of the run"
    )
    text = "images of each dataset whose kept patches are stored; 0: none"
    files.add_argument("--traces", type=int, metavar="N", default=traced, help=text)
    text = "store no small copies of these images"
    files.add_argument("--no-thumbnails", dest="thumbnails", action="store_false", help=text)


def _learned(group: Any) -> None:
    """Add what is learned from shots."""
    plan = declared("harness.measure.plan", "Plan")
    text = "learned from shots: t text, v visual, vt both, probe a linear classifier instead"
    group.add_argument("--tokens", default=plan.tokens, help=text)
    group.add_argument(
        "--num-tokens", type=int, metavar="N", default=plan.num_tokens, help="learned tokens"
    )


def _eval(parser: CommandParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's name, dense or reduced")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--dataset", required=True, metavar="NAME", help="see `datasets list`")
    what.add_argument("--shots", type=int, metavar="K", default=0, help="0: text classifier")
    _learned(what)
    what.add_argument("--prompts", type=Path, metavar="FILE", help="learned before; no --shots")
    data(parser)
    conditions(parser, 250)


def _floor(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    what.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=["golden", "patchrank", "clsattn"],
        help="see `list`; golden needs rankings",
    )
    what.add_argument(
        "--keeps", nargs="+", type=float, metavar="RATE", default=[0.6, 0.5, 0.3], help="in (0, 1]"
    )
    datasets(what)
    seeds(what, 3, "random orders")
    what.add_argument(
        "--rankings", nargs="*", type=Path, metavar="PATH", default=[], help="other golden files"
    )
    data(parser)
    conditions(parser, 250)


def _overhead(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    what.add_argument("--random-weights", action="store_true", help="where none can be had")
    what.add_argument(
        "--archs", nargs="+", metavar="ARCH", help="default: all, and the paper's Mixer"
    )
    what.add_argument(
        "--width",
        type=int,
        metavar="N",
        default=declared("zoo.fit", "FitConfig").width,
        help="channels inside",
    )
    how = parser.add_argument_group("conditions")
    how.add_argument("--batch", type=int, metavar="N", default=32, help="images per call")
    rounds(how, 11, "samples of each, in turn")
    machine(how)


COMMANDS = (
    Command(
        path="compare",
        group="measure",
        what="Measure methods side by side: accuracy, cost, latency, agreement; or tell what "
        "changed between two runs.",
        flags=_compare,
        run="harness.commands:run_compare",
        examples=(
            ("compare --methods patchrank evit --keeps 0.7 0.5", "two methods, no shots"),
            ("compare --datasets fashion --shots 0 16 --tokens t", "with tokens from 16 shots"),
            ("compare --match gflops --keeps 0.6 --output equal", "at patchrank's cost"),
            ("compare results equal", "what changed between two runs; measures nothing"),
            ("compare --json --limit 8 --batches 1 > run.json", "for a program"),
        ),
        output="a table per dataset on standard output; records.jsonl, report.html, table.md, "
        "table.csv, table.tex, summary.md, agreement.csv, accuracy_gflops.svg, traces and "
        "thumbnails in --output. The same command goes on where it stopped. With two runs: what "
        "changed, and with --output changes.md",
    ),
    Command(
        path="eval",
        group="measure",
        what="Measure one model's accuracy and agreement on one dataset.",
        flags=_eval,
        run="harness.commands:run_eval",
        examples=(
            ("eval clip_vit_s14_patchrank60 --dataset emoji", "a model that ships"),
            ("eval clip_vit_b16_tome50 --dataset folder:photos --full", "on your own images"),
            ("eval clip_vit_s14 --dataset emoji --shots 4 --tokens probe", "a linear probe"),
        ),
        output="a table on standard output, the model beside its dense tower; no files",
    ),
    Command(
        path="floor",
        group="measure",
        what="Measure how far methods are above random pruning, over several random orders.",
        flags=_floor,
        run="harness.commands:run_floor",
        examples=(
            (
                "floor --methods golden patchrank clsattn --keeps 0.6 0.5 0.3 --split val --full",
                "all images of a split",
            ),
        ),
        output="a table per dataset on standard output; no files",
    ),
    Command(
        path="overhead",
        group="measure",
        what="Measure what predictors cost beside their tower: multiply-adds, parameters, time.",
        flags=_overhead,
        run="harness.predictor_commands:run_overhead",
        examples=(
            ("overhead", "all architectures, on the tower that ships"),
            (
                "overhead --model clip_vit_b16 --random-weights --archs conv mlp --batch 8",
                "two, on another tower",
            ),
        ),
        output="a table on standard output; no files",
    ),
)
