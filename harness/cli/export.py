"""The subcommand that writes a model for another runtime: ``export``."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.base.table import Shown, Table, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import Command, CommandParser

if TYPE_CHECKING:
    from zoo.deploy.export import FeatureAgreement

CHECKED = 64  # images


def _export_flags(parser: CommandParser) -> None:
    from zoo.deploy.export import BATCHES, FORMATS, LEAST_COSINE, ONNX

    flags.setup(parser)
    file = parser.add_argument_group("file")
    file.add_argument("--format", choices=list(FORMATS), default=ONNX, metavar="FORMAT", help=", ".join(FORMATS))
    ends = ", ".join(sorted({kind.suffix for kind in FORMATS.values()}))
    flags.output(file, None, f"ends with {ends}, by the format", metavar="FILE", required=True)
    check = parser.add_argument_group("check by real images")
    flags.dataset(check, default="photos")
    check.add_argument("--images", type=Path, metavar="FOLDER", help="any images instead, unlabelled")
    flags.images(check, CHECKED, "val", "images; class-balanced")
    flags.number(check, "--batches", list(BATCHES), "images per call", kind=flags.positive, nargs="+")
    flags.number(check, "--least-cosine", LEAST_COSINE, "that lower precision may have on average with float32")
    flags.data(parser)


def run_export(args: Namespace, status: Console) -> Shown:
    """Write a file, and keep it if its runtime gives the model's features.

    Raises:
        ValueError: what the model or the format refuses, or too few images.
        FileNotFoundError: weights or images are missing.
    """
    import torch

    from harness.datasets import get_dataset
    from harness.datasets.few_shot import subset
    from harness.golden.rank import Source
    from zoo.deploy.export import DisagreementError, export_model, require_format

    setup, progress = flags.setup_of(args), Progress(status)
    require_format(args.format, setup.dtype)  # before anything is loaded
    tower = setup.load(random_weights=args.random_weights)
    source = Source.folder(args.images) if args.images else Source.of(get_dataset(args.dataset), args.split)
    split = subset(source.images, flags.limit_of(args))
    if len(split) < 2:
        raise ValueError(f"{len(split)} images to check with of {source.name!r}: expected two at least")
    images = torch.stack([tower.preprocess(split[index].image) for index in range(len(split))])
    about: dict[str, Any] = {"model": setup.name, "tower": setup.model, "preprocessing": tower.preprocessing}
    about |= {"recovery": setup.recovery, "random_weights": args.random_weights, "features": tower.vit.num_classes}
    progress.say(f"{setup.name}: writing {args.format} in {setup.dtype}, then {len(images)} images run through it")
    data: dict[str, Any] = {"path": str(args.output), "format": args.format, "dtype": setup.dtype}
    how = {"format": args.format, "dtype": setup.dtype, "batches": args.batches, "least_cosine": args.least_cosine}
    with progress.task("checked", len(images) * len(args.batches)) as tick:
        try:
            agreement = export_model(tower.vit, args.output, images, **how, facts=about, tick=tick)
        except DisagreementError as error:
            table = _table(setup.name, args.format, setup.dtype, error.agreement)
            failed = {**data, "path": None, "problem": str(error), "agreement": error.agreement}
            return Shown(parts=(table, str(error)), data=json_values(failed), code=1)
    table = _table(setup.name, args.format, setup.dtype, agreement)
    size = args.output.stat().st_size
    text = f"wrote {args.output} ({size:,} bytes) and {args.output.name}.json, which says what it is"
    return Shown(parts=(table, text), data=json_values({**data, "bytes": size, "agreement": agreement}))


def _table(name: str, format: str, dtype: str, agreement: "FeatureAgreement") -> Table:
    """Lay out how a file's features agree with the eager model's."""
    heads = ("runtime", "precision", "images", "cosine", "5 % quantile", "largest difference", "same nearest")
    row = (
        *(format, dtype, str(agreement.images)),
        f"{agreement.cosine_mean:.5f}",
        f"{agreement.cosine_q05:.5f}",
        f"{agreement.deviation:.1e}",
        f"{100 * agreement.same_nearest:.1f} %",
    )
    batches = " and ".join(map(str, agreement.batches))
    title = f"{name} against eager float32, {batches} images per call"
    return Table.of(title, heads, [row], words=heads[:2])


COMMANDS = (
    Command(
        path="export",
        what="Write a model, dense or reduced, as a file for ONNX Runtime, OpenVINO or PyTorch, and check it.",
        flags=_export_flags,
        run=run_export,
        examples=(
            ("export --model clip_vit_s14_rankmerge60 --output rankmerge60.onnx", "a model that ships"),
            ("export --model clip_vit_s14_rankmerge60 --format openvino --dtype bfloat16 --output m.xml", "OpenVINO"),
            ("export --model chosen.json --format aoti --output model.pt2 --images photos/", "what `choose` found"),
        ),
        output="how features of the file's runtime agree with the eager float32 model's, on standard output; --output, "
        "and the same name with .json behind, which says what it is",
        problems="the runtime gives other features, so that no file was written",
    ),
)
