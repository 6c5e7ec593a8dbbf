"""The flags of learned tokens."""

from pathlib import Path
from typing import Any

from harness.flags.command import Command, CommandParser
from harness.flags.declared import declared
from harness.flags.shared import data, machine


def prompts(parser: CommandParser) -> None:
    """Add the flags of ``fit prompts``."""
    recipe = declared("zoo.prompt_learner", "TuneConfig")
    what = parser.add_argument_group("what is tuned, on what")
    what.add_argument("--model", default="clip_vit_s14_patchrank60", help="dense or reduced")
    what.add_argument(
        "--dataset", required=True, metavar="NAME", help="see `datasets list`; or PREFIX:PATH"
    )
    what.add_argument("--shots", type=int, default=16, metavar="K", help="images per class")
    what.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of the images and of the recipe"
    )
    data(parser)
    tokens = tuning_recipe(parser)
    tokens.add_argument("--rounds", type=int, metavar="N", default=recipe.rounds, help="at most")
    tokens.add_argument(
        "--patience",
        type=int,
        metavar="N",
        default=recipe.patience,
        help="rounds without a better one",
    )
    tokens.add_argument(
        "--batch", type=int, metavar="N", default=recipe.batch, help="images per step"
    )
    for flag, text in (("learning-rate", "of text tokens"), ("visual-rate", "of visual ones")):
        default = getattr(recipe, flag.replace("-", "_"))
        tokens.add_argument(f"--{flag}", type=float, metavar="X", default=default, help=text)
    tokens.add_argument(
        "--no-augment", dest="augment", action="store_false", help="see them as they are"
    )
    how = parser.add_argument_group("conditions and files")
    machine(how, recipe.dtype, "float32 or bfloat16")
    how.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    how.add_argument("--out", type=Path, metavar="FILE", help="default: the user's cache")


def tuning_recipe(parser: CommandParser) -> Any:
    """Add what is learned and return its group."""
    recipe = declared("zoo.prompt_learner", "TuneConfig")
    group = parser.add_argument_group("learned tokens")
    group.add_argument("--tokens", default=recipe.tokens, help="t: text, v: visual, vt: both")
    group.add_argument(
        "--num-tokens",
        type=int,
        metavar="N",
        default=recipe.count,
        help="learned ones in a sequence",
    )
    group.add_argument(
        "--depth",
        type=int,
        metavar="N",
        default=recipe.depth,
        help="blocks that get tokens of their own",
    )
    group.add_argument(
        "--independent", action="store_true", help="visual tokens are no image of text tokens"
    )
    group.add_argument(
        "--class-specific", action="store_true", help="text tokens of each class's own"
    )
    group.add_argument("--init", metavar="WORDS", help="that text tokens begin with")
    group.add_argument(
        "--anchor",
        type=float,
        metavar="X",
        default=recipe.anchor,
        help="to the templates' features",
    )
    return group


COMMANDS = (
    Command(
        path="fit prompts",
        group="learn",
        what="Tune learned text and visual tokens on a few labelled images; "
        "timm.create_model(..., prompts=FILE) takes the result.",
        flags=prompts,
        run="harness.prompt_commands:run_prompts",
        examples=(
            ("fit prompts --dataset emoji --shots 16 --tokens t", "text tokens"),
            (
                "fit prompts --model clip_vit_s14 --dataset emoji --tokens vt --out vt.safetensors",
                "visual ones as well, for the dense model",
            ),
        ),
        output="what it took and gave, on standard output; the tokens in --out",
    ),
)
