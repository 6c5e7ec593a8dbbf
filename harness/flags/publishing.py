"""The flags of ``push``."""

import argparse
from pathlib import Path
from typing import Any

from harness.flags.shared import add


def add_push(commands: Any) -> None:
    """Add ``push``."""
    parser: argparse.ArgumentParser = add(
        commands,
        "push",
        "Publish a model with a generated card on the Hugging Face hub, or write it to a folder.",
        "push clip_vit_s14_patchrank60 --to OWNER/NAME --records results/records.jsonl",
    )
    parser.add_argument(
        "model", help="a name of `list`, dense or reduced, local-dir:FOLDER or hf-hub:OWNER/NAME"
    )
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository on the hub")
    parser.add_argument("--records", type=Path, metavar="FILE", help="what a run measured of it")
    parser.add_argument(
        "--predictor", type=Path, nargs="+", default=[], metavar="FILE", help="for patchrank"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="learned tokens")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="write there, upload nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="upload nothing, say what would be and show the card"
    )
    parser.add_argument(
        "--accept-license", metavar="ID", help="confirm that the weights' licence allows it"
    )
