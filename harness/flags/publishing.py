"""The flags of ``push``."""

from pathlib import Path

from harness.flags.command import Command, CommandParser


def _push(parser: CommandParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of `list`, dense or reduced, local-dir:FOLDER or hf-hub:OWNER/NAME",
    )
    where = parser.add_argument_group("where it goes")
    where.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository on the hub")
    where.add_argument("--private", action="store_true", help="make a private repository")
    where.add_argument("--folder", type=Path, metavar="DIR", help="write there, upload nothing")
    where.add_argument(
        "--dry-run", action="store_true", help="upload nothing, say what would be and show the card"
    )
    what = parser.add_argument_group("what goes with it")
    what.add_argument("--records", type=Path, metavar="FILE", help="what a run measured of it")
    what.add_argument(
        "--predictor", type=Path, nargs="+", default=[], metavar="FILE", help="for patchrank"
    )
    what.add_argument("--prompts", type=Path, metavar="FILE", help="learned tokens")
    what.add_argument(
        "--accept-license", metavar="ID", help="confirm that the weights' licence allows it"
    )


COMMANDS = (
    Command(
        path="push",
        group="publish",
        what="Publish a model with a generated card on the Hugging Face hub, or write it to a "
        "folder.",
        flags=_push,
        run="harness.publish:run_push",
        examples=(
            ("push clip_vit_s14_patchrank60 --to OWNER/NAME --dry-run", "see the card first"),
            (
                "push clip_vit_s14_patchrank60 --to OWNER/NAME --records results/records.jsonl",
                "with measured figures",
            ),
            (
                "push clip_vit_s14_patchrank60 --to OWNER/NAME --folder model",
                "a folder that timm loads",
            ),
        ),
        output="what was written, on standard output; the model at --to or in --folder",
    ),
)
