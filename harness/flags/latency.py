"""The flags of the subcommand that times models."""

from pathlib import Path

from harness.flags.command import Command, CommandParser
from harness.flags.declared import declared
from harness.flags.shared import device, rounds


def _latency(parser: CommandParser) -> None:
    plan = declared("harness.latency.latency", "LatencyPlan")
    cpu = declared("harness.latency.latency", "CPU_BATCHES")
    cuda = declared("harness.latency.latency", "CUDA_BATCHES")
    ways = declared("harness.latency.ways", "WAYS")
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a reduced or dense model's name; see `list`"
    )
    what = parser.add_argument_group("what is timed")
    what.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=[], help="of each dense tower, too"
    )
    what.add_argument(
        "--keeps", nargs="+", type=float, metavar="RATE", default=[0.6], help="of --methods"
    )
    what.add_argument(
        "--random-weights", action="store_true", help="none are loaded; times don't depend on them"
    )
    how = parser.add_argument_group("conditions")
    usual, on_cuda = (" ".join(map(str, batches)) for batches in (cpu, cuda))
    how.add_argument(
        "--batches",
        nargs="+",
        type=int,
        metavar="N",
        help=f"images per call; default: {usual}, on CUDA {on_cuda}",
    )
    how.add_argument(
        "--dtypes",
        nargs="+",
        metavar="DTYPE",
        default=list(plan.dtypes),
        help="float32, bfloat16 or float16",
    )
    how.add_argument(
        "--ways", nargs="+", metavar="WAY", default=list(plan.ways), help=", ".join(ways)
    )
    how.add_argument(
        "--threads", nargs="+", type=int, metavar="N", help="torch's; default: as many as it takes"
    )
    device(how)
    rounds(how, plan.rounds, "calls of each model, in turn, at least")
    how.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        default=plan.seconds,
        help="rounds go on for so long",
    )
    where = parser.add_argument_group("where it goes")
    where.add_argument("--fresh", action="store_true", help="time again what is known")
    where.add_argument("--output", type=Path, default=Path("results"), help="folder")


COMMANDS = (
    Command(
        path="latency",
        group="measure",
        what="Time models in turn with their dense towers, and say what can be concluded.",
        flags=_latency,
        run="harness.latency.command:run_latency",
        examples=(
            ("latency clip_vit_s14_patchrank60 clip_vit_s14_tome60 --batches 1 8", "that ship"),
            (
                "latency clip_vit_b16_evit60 --random-weights --ways eager compile --threads 1 2",
                "compiled, too",
            ),
            (
                "latency clip_vit_b16_tome60 --random-weights --device cuda --dtypes float16 "
                "--ways eager cuda-graphs",
                "on a GPU",
            ),
        ),
        output="a table per condition on standard output; latency.jsonl and latency.md in "
        "--output. The same command goes on where it stopped",
    ),
)
