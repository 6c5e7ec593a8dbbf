"""The flags of the subcommand that measures the paper's tables."""

from pathlib import Path
from typing import Any

from harness.flags.learning import predictor_recipe
from harness.flags.shared import add, data
from harness.flags.tuning import recipe
from zoo.tune_config import TuneConfig


def add_reproduce(commands: Any) -> None:
    """Add ``reproduce``."""
    parser = add(
        commands,
        "reproduce",
        "Measure a table or figure of the paper and print our figures beside the paper's; the same "
        "command goes on where it stopped.",
        "reproduce table1 --limit 60 --train-limit 100 --dry-run",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="table1 to 7, figure1, figure5")
    parser.add_argument(
        "--datasets", nargs="+", help="default: the paper's with a root, else the embedded ones"
    )
    data(parser)
    parser.add_argument(
        "--model", help="needs a text tower; default: the paper's with a root, else the embedded"
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what it would take, and stop")
    parser.add_argument(
        "--limit", type=int, help="test images per dataset; default: all with a root, else 300"
    )
    parser.add_argument("--full", action="store_true", help="all images, whatever --limit says")
    parser.add_argument("--train-limit", type=int, default=500, help="ranked images to learn from")
    parser.add_argument("--seeds", type=int, default=3, help="fits, tunings and random orders")
    parser.add_argument("--block", type=int, default=3, help="patches go before this block")
    parser.add_argument(
        "--window", type=int, help="in patches; default: 2, of embedded rankings the shipped 3"
    )
    parser.add_argument("--stride", type=int, help="in patches; default: 2, as the released code")
    predictor_recipe(parser)
    parser.add_argument(
        "--labelled", type=int, default=16, metavar="K", help="images per class that tokens see"
    )
    recipe(parser)
    parser.add_argument("--rounds", type=int, default=TuneConfig.rounds, help="of tuning, at most")
    # The released code's predictor, and a loss that can be minimised; the paper has no anchor.
    parser.set_defaults(arch="pooledmixer", loss="listnet", anchor=0.0)
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda:0")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--output", type=Path, default=Path("results/reproduce"), help="folder")
