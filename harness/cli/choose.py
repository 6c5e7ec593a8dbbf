"""The subcommand that finds the fastest setup meeting a bound: ``choose``."""

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.base.table import Part, Shown, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import PROGRAM, Command, CommandParser


def _choose_flags(parser: CommandParser) -> None:
    from harness.apps.choose import ChooseConfig

    what = parser.add_argument_group("model and pictures")
    flags.model(what)
    pictures: Any = what.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--images", type=Path, metavar="DIR", help="your pictures, without labels")
    flags.dataset(pictures)
    flags.data(parser)
    bounds = parser.add_argument_group("bounds, of which at least one is given")
    for flag, text in (
        ("--min-cosine", "mean cosine to dense features, such as 0.99"),
        ("--min-overlap", "mean share of dense's 10 nearest pictures; 1000 pictures at least"),
        ("--max-loss", "points of top-1, such as 0.5; needs classes"),
        ("--speed-up", "times as fast as dense, such as 1.5"),
    ):
        flags.number(bounds, flag, None, text, kind=float)
    among = parser.add_argument_group("what is chosen from")
    flags.methods(among, None, "default: all but other papers' that the tower can run; see `list`")
    text = "default: float32, and bfloat16 where it is fast"
    among.add_argument("--dtypes", nargs="+", metavar="DTYPE", default=[], help=text)
    how = parser.add_argument_group("how it is measured")
    flags.fields(how, ChooseConfig, search="pictures to search by", held_out="other pictures, that decide")
    flags.fields(how, ChooseConfig, batch="images per call, where time is measured")
    flags.fields(how, ChooseConfig, rounds="calls of the chosen setup and of dense, at least")
    flags.number(how, "--seconds", ChooseConfig.seconds, "that these go on for", metavar="S")
    flags.fields(how, ChooseConfig, seed="of the choice of pictures, and of intervals")
    flags.device(how)
    files = parser.add_argument_group("files")
    flags.fresh(files)
    flags.output(files, "setup.json", "the setup with its certificate", "FILE")


def run_choose(args: Namespace, status: Console) -> Shown:
    """Search, write the setup with its certificate, and show how it is used."""
    from harness.apps.choose import ChooseConfig, choose, selection_table
    from harness.apps.fidelity import SetupBounds

    bounds = flags.settings(SetupBounds, args)
    config = flags.settings(ChooseConfig, args)
    dataset = args.dataset or f"images:{args.images}"
    selection = choose(args.model, dataset, bounds, config, fresh=args.fresh, progress=Progress(status))
    setup, table = selection.setup, selection_table(selection)
    data = {
        "path": args.output if selection.met else None,
        "why": selection.why,
        "setup": setup,
        "judged": selection.judged,
    }
    time = setup.certificate["time"]
    ratio = time["ratio_to_dense"]
    text = (
        f"{setup.name} in {setup.dtype}: {1 / ratio['estimate']:.2f} times as fast as dense in float32 "
        f"[{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}], {time['images_per_s']:.1f} images/s against "
        f"{time['dense_images_per_s']:.1f} at batch {time['batch']}"
    )
    warnings = [f"be wary of times: {warning}" for warning in time["warnings"]]
    if not selection.met:
        parts: tuple[Part, ...] = (
            table,
            f"nothing meets {bounds.words}; the nearest is {text}; {selection.why}",
            *warnings,
        )
        return Shown(parts=parts, data=json_values(data), code=1)
    if time["verdict"] != "faster":
        warnings.append("that it is faster than dense isn't shown: the interval of the ratio includes 1")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    setup.write(args.output)
    file = shlex.quote(str(args.output))
    pictures = shlex.quote(str(args.images)) if args.images is not None else "FOLDER"
    use = [
        f"{PROGRAM} embed {pictures} --model {file} --output vectors",
        f"{PROGRAM} export --model {file} --format onnx --output model.onnx",
    ]
    lines = ["from harness.apps.setup import Setup", f"model = Setup.read({str(args.output)!r}).build()"]
    ends = "by the ends of 95 % intervals"
    wrote = f"wrote {args.output} in {selection.seconds:.0f} s; {bounds.words}: met, {ends}. {text}"
    return Shown(parts=(table, wrote, *warnings, "\n".join(["", *use, "", *lines])), data=json_values(data))


COMMANDS = (
    Command(
        path="choose",
        what="Find the fastest setup (method, keep rate, precision) that meets a bound, on your own pictures.",
        flags=_choose_flags,
        run=run_choose,
        examples=(
            ("choose --dataset photos --min-cosine 0.99", "on pictures that ship"),
            ("choose --images photos --min-cosine 0.98 --speed-up 1.5", "on your own, without labels"),
            ("choose --dataset fashion --max-loss 1 --held-out 1800", "by answers that are right"),
            ("choose --images photos --speed-up 2", "the most faithful one that is twice as fast"),
        ),
        output="the setups that were judged on pictures held out, and how to use the chosen one, on standard output; "
        "the setup with its certificate in --output. The same command goes on where it stopped",
        problems="nothing meets the bound; the nearest is shown",
    ),
)
