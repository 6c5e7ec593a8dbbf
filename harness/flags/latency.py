"""The flags of ``latency``."""

from pathlib import Path
from typing import Any

from harness.flags.shared import add
from harness.latency.plan import CPU_BATCHES, CUDA_BATCHES, LatencyPlan
from harness.latency.ways import WAYS


def add_latency(commands: Any) -> None:
    """Add ``latency``."""
    parser = add(
        commands,
        "latency",
        "Time models in turn with their dense towers: is a pruned model faster here, and when?",
        "latency clip_vit_s14_patchrank60 clip_vit_s14_tome60 --batches 1 8",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="reduced or dense; see `list` and docs"
    )
    parser.add_argument("--methods", nargs="+", default=[], help="more reductions of each tower")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.6], help="of --methods")
    usual = [" ".join(map(str, batches)) for batches in (CPU_BATCHES, CUDA_BATCHES)]
    parser.add_argument(
        "--batches",
        nargs="+",
        type=int,
        help=f"images per call; default: {usual[0]}, on CUDA {usual[1]}",
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="bfloat16, float16")
    parser.add_argument("--ways", nargs="+", default=["eager"], help=", ".join(WAYS))
    parser.add_argument("--threads", nargs="+", type=int, help="of torch; default: its own choice")
    parser.add_argument("--rounds", type=int, default=LatencyPlan.rounds, help="at least")
    parser.add_argument(
        "--seconds", type=float, default=LatencyPlan.seconds, help="rounds go on for so long"
    )
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument(
        "--random-weights", action="store_true", help="without weights; times don't depend on them"
    )
    parser.add_argument("--fresh", action="store_true", help="time again what is known")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
