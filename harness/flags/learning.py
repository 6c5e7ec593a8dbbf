"""The flags of the subcommands that fit and study predictors."""

from pathlib import Path
from typing import Any

from harness.flags.command import Command, CommandParser
from harness.flags.declared import declared
from harness.flags.shared import block, data, datasets, full, golden_windows, machine, seeds
from harness.flags.tuning import tuning_recipe


def _predictor(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is learned from")
    what.add_argument("--model", default="clip_vit_s14", help="dense name")
    what.add_argument(
        "--dataset",
        nargs="*",
        metavar="NAME",
        default=[],
        help="its rankings that ship; without them, rank first",
    )
    what.add_argument(
        "--limit", type=int, metavar="N", default=250, help="images to rank per split"
    )
    block(what, None, "reduction point; 3 if nothing is said")
    path: dict[str, Any] = {"nargs": "*", "type": Path, "default": [], "metavar": "PATH"}
    what.add_argument("--rankings", **path, help="stores or files of rankings to learn from")
    what.add_argument("--val", **path, help="for early stopping; default: a fifth held out")
    what.add_argument("--images", **path, help="folders that rankings of folders are of")
    what.add_argument("--shots", type=int, metavar="K", help="images per class; default: all")
    data(parser)
    predictor_recipe(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, metavar="FILE", help="default: the user's cache")


def predictor_recipe(parser: CommandParser) -> None:
    """Add how a predictor is fitted."""
    recipe = declared("zoo.fit", "FitConfig")
    group = parser.add_argument_group("predictor")
    group.add_argument("--arch", default=recipe.arch, help="see zoo/predictor.py")
    group.add_argument("--loss", default=recipe.loss, help="see zoo/fit.py")
    for name, text in (
        ("width", "channels inside the predictor"),
        ("epochs", "at most"),
        ("patience", "epochs without a better one"),
        ("batch", "images per step"),
        ("seed", "of weights, order and shots"),
    ):
        default = getattr(recipe, name)
        group.add_argument(f"--{name}", type=int, metavar="N", default=default, help=text)
    default = recipe.learning_rate
    group.add_argument("--learning-rate", type=float, metavar="X", default=default, help="of AdamW")


def _study(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the study, or `list`")
    what = parser.add_argument_group("what is studied")
    what.add_argument("--model", default="clip_vit_s14", help="needs a text tower")
    datasets(what)
    what.add_argument(
        "--keeps", nargs="+", type=float, metavar="RATE", help="default: the study's own"
    )
    seeds(what, 3, "fits, and random orders")
    what.add_argument(
        "--split", choices=("val", "test"), help="to judge by; test for learned tokens, else val"
    )
    what.add_argument("--limit", type=int, metavar="N", default=300, help="images per dataset")
    full(what)
    what.add_argument(
        "--train-limit", type=int, metavar="N", default=500, help="ranked images to learn from"
    )
    what.add_argument("--shots", type=int, metavar="K", help="of them per class; default: all")
    data(parser)
    golden = golden_windows(parser, window=3, stride=2)
    golden.add_argument("--score", default="preservation", help="preservation, label, confidence")
    golden.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    predictor_recipe(parser)
    _few_shots(parser)
    how = parser.add_argument_group("conditions and files")
    machine(how)
    how.add_argument("--fresh", action="store_true", help="measure again what is known")
    how.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("results/studies"), help="folder"
    )


def _few_shots(parser: CommandParser) -> None:
    """Add what tokens learn from, and what they are."""
    rounds = declared("zoo.prompt_learner", "TuneConfig").rounds
    tokens = tuning_recipe(parser)
    tokens.add_argument(
        "--labelled", type=int, default=16, metavar="K", help="images per class that tokens see"
    )
    tokens.add_argument(
        "--rounds", type=int, metavar="N", default=rounds, help="of tuning, at most"
    )


def _reproduce(parser: CommandParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="table1 to 7, figure1, figure5")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="tell what is cached, missing and left to do, and stop",
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="default: the paper's with a root, else the embedded ones",
    )
    what.add_argument(
        "--model", help="needs a text tower; default: the paper's with a root, else the embedded"
    )
    what.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="test images per dataset; default: all with a root, else 300",
    )
    full(what)
    what.add_argument(
        "--train-limit", type=int, metavar="N", default=500, help="ranked images to learn from"
    )
    seeds(what, 3, "fits, tunings and random orders")
    data(parser)
    golden = parser.add_argument_group("golden rankings")
    block(golden)
    golden.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="in patches; default: 2, of embedded rankings the shipped 3",
    )
    golden.add_argument(
        "--stride", type=int, metavar="N", help="in patches; default: 2, as the released code"
    )
    predictor_recipe(parser)
    _few_shots(parser)
    # The released code's predictor, and a loss that can be minimised; the paper has no anchor.
    parser.set_defaults(arch="pooledmixer", loss="listnet", anchor=0.0)
    how = parser.add_argument_group("conditions and files")
    machine(how)
    how.add_argument("--fresh", action="store_true", help="measure again what is known")
    how.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("results/reproduce"), help="folder"
    )


COMMANDS = (
    Command(
        path="fit predictor",
        group="learn",
        what="Fit a predictor to golden rankings, so that pretrained=True finds it.",
        flags=_predictor,
        run="harness.predictor_commands:run_fit",
        examples=(
            ("fit predictor --model clip_vit_b16.openai --dataset fashion", "ranks first"),
            ("fit predictor --rankings ranked --images photos", "to rankings of a folder"),
        ),
        output="how well it agrees, on standard output; the predictor in --out",
    ),
    Command(
        path="study",
        group="learn",
        what="Answer a question about pruning by golden and predicted rankings.",
        flags=_study,
        run="harness.studies.commands:run_study",
        examples=(
            ("study list", "the questions"),
            ("study scores --datasets fashion --keeps 0.6 0.5 --limit 100", "one of them"),
        ),
        output="a table per dataset on standard output; records and table in --output. The same "
        "command goes on where it stopped",
    ),
    Command(
        path="reproduce",
        group="measure",
        what="Measure a table or figure of the paper and print our figures beside the paper's.",
        flags=_reproduce,
        run="harness.studies.commands:run_reproduce",
        examples=(
            ("reproduce table1 --limit 60 --train-limit 100 --dry-run", "what is left to do"),
            ("reproduce table1 figure1 --root data", "on the paper's datasets"),
        ),
        output="a table each on standard output; records, table and figure in --output. The same "
        "command goes on where it stopped",
    ),
)
