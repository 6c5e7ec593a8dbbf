"""Subcommands that pass results on: ``report``, ``check``, ``push``."""

import tempfile
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.base.table import Shown
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import Command, CommandParser


def _report_flags(parser: CommandParser) -> None:
    text = "a file of records or of `latency`, or the folder of one"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=text)
    files = parser.add_argument_group("files")
    flags.output(files, "report", "folder of the report")
    title = "Token reduction for CLIP, side by side"
    files.add_argument("--title", default=title, help="of the page")
    files.add_argument("--all-plots", action="store_true", help="draw every table; default: the first 6")


def run_report(args: Namespace, status: Console) -> Shown:
    """Write a report and show the Pareto fronts."""
    from harness.report.folder import report_runs

    return report_runs(args.runs, args.output, Progress(status), title=args.title, every_plot=args.all_plots)


def _check_flags(parser: CommandParser) -> None:
    from harness.apps.movements import Tolerances

    text = "expectations, which are files of records; default: the one that ships"
    files = parser.add_argument("files", nargs="+", type=Path, metavar="FILE", default=[], help=text)
    files.required = False  # not "*": see `compare`
    rows = parser.add_argument_group("which rows", "a check takes these alone, --update of a FILE measures these")
    rows.add_argument("--model", dest="models", nargs="+", metavar="MODEL", help="dense names")
    flags.methods(rows, None, "or METHOD:OPTION=VALUE,... with JSON values")
    flags.keeps(rows, None)
    flags.datasets(rows, None, help="or PREFIX:PATH")
    flags.data(parser)
    bounds = parser.add_argument_group("how far things may move")
    flags.fields(bounds, Tolerances, images="right answers, net", flips="images whose answer flips")
    flags.fields(bounds, Tolerances, cosine="mean cosines, to dense and between classes")
    flags.fields(bounds, Tolerances, divergence="mean KL to dense in nats, and share of dense's neighbours")
    flags.fields(bounds, Tolerances, probe="mean feature in fixed directions")
    flags.fields(bounds, Tolerances, tau="in its expected interval besides")
    flags.number(bounds, "--slower", Tolerances.slower, "on the expected ratio of time to dense", metavar="FACTOR")
    how = parser.add_argument_group("how it is measured")
    flags.device(how, None, "default: the expectation's, or cpu")
    flags.number(how, "--rounds", 2, "latency samples, four times as many below batch 8", kind=flags.positive)
    how.add_argument("--no-latency", action="store_true", help="time nothing")
    new = parser.add_argument_group("a new expectation")
    new.add_argument("--update", action="store_true", help="write anew, tell what changed")
    flags.split_of(new, "default: test")
    flags.limits(new, None, "images judged; default: 48")
    new.add_argument("--dtype", type=flags.dtype, help="default: float32")
    flags.number(new, "--batches", None, "timed; default: 1", kind=flags.positive, nargs="*")


def run_check(args: Namespace, status: Console) -> Shown:
    """Check expectations, or write one anew."""
    from harness.apps.check import CheckPlan, check, update
    from harness.apps.movements import Tolerances

    plan = CheckPlan(**{field.name: getattr(args, field.name) for field in fields(CheckPlan)})
    if plan.update:
        return update(plan, Progress(status))
    slower = None if args.no_latency else args.slower
    bounds = {field.name: getattr(args, field.name) for field in fields(Tolerances)} | {"slower": slower}
    return check(plan, Tolerances(**bounds), Progress(status))


def _push_flags(parser: CommandParser) -> None:
    where = parser.add_argument_group("what goes where")
    text = "a name of `list`, dense or reduced, local-dir:FOLDER or hf-hub:OWNER/NAME"
    where.add_argument("--model", required=True, help=text)
    where.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository on the hub")
    where.add_argument("--private", action="store_true", help="make a private repository")
    where.add_argument("--folder", type=Path, metavar="DIR", help="write there, upload nothing")
    where.add_argument("--dry-run", action="store_true", help="upload nothing, say what would be and show the card")
    what = parser.add_argument_group("what goes with it")
    what.add_argument("--records", type=Path, metavar="FILE", help="what a run measured of it")
    several: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "FILE"}
    what.add_argument("--predictor", type=Path, help="for patchrank", **several)
    what.add_argument("--prompts", type=Path, metavar="FILE", help="learned tokens")
    what.add_argument("--recovery", type=Path, metavar="FILE", help="trained for this model, as `fit recovery` writes")
    what.add_argument("--accept-license", metavar="ID", help="confirm that the weights' licence allows it")


def run_push(args: Namespace, status: Console) -> Shown:
    """Write a model with its card, and upload it unless only a folder is asked for."""
    from harness.apps import push
    from harness.records.record import read_run

    push.check_repo(args.to)
    records = read_run(args.records) if args.records is not None else []
    model = push.load_publishable(args.model, args.predictor, args.prompts, args.recovery)
    uploads = args.folder is None and not args.dry_run
    push.check_license(model, args.accept_license, uploads=uploads)
    rows = model.rows(records, args.records) if args.records is not None else []
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        card = push.write_folder(model, folder, args.to, rows)
        sizes = {file: (folder / file).stat().st_size for file in push.FILES}
        where = None if args.folder is None else str(args.folder)
        if uploads:
            Progress(status).say(f"uploading {sum(sizes.values()):,} bytes to {args.to}")
            where = push.upload(folder, args.to, private=args.private)
    files = ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes.items())
    text = f"wrote {where}: {files}"
    if where is None:
        text = f"nothing was written or sent; it would be {files}\n\n{card}"
    return Shown(parts=(text,), data={"where": where, "bytes_by_file": sizes, "card": card})


PUSH = "push --model clip_vit_s14_patchrank60 --to OWNER/NAME"
COMMANDS = (
    Command(
        path="report",
        what="Write a page, tables (Markdown, CSV, LaTeX) and plots of one or more runs.",
        flags=_report_flags,
        run=run_report,
        examples=(
            ("report results", "what `compare` and `latency` measured"),
            ("report results results_gpu/records.jsonl --title 'Two machines'", "two runs"),
        ),
        output="which rows are on the Pareto fronts, on standard output; report.html, table.md, "
        "table.csv, latency.csv, table.tex, agreement.csv and every plot as "
        "SVG and PNG in --output",
    ),
    Command(
        path="check",
        what="Measure a reduced benchmark again and tell what moved.",
        flags=_check_flags,
        run=run_check,
        examples=(
            ("check", "the expectation that ships"),
            ("check --methods tome --no-latency", "some of its rows"),
            ("check --update", "write it anew, in a checkout"),
            ("check mine.jsonl --update --methods patchrank", "write one of your own"),
        ),
        output="what moved, and by how much, on standard output",
        problems="something moved",
    ),
    Command(
        path="push",
        what="Publish a model with a generated card on the Hugging Face hub, or write it to a folder.",
        flags=_push_flags,
        run=run_push,
        examples=(
            (f"{PUSH} --dry-run", "see the card first"),
            (f"{PUSH} --records results/records.jsonl", "with measured figures"),
            (f"{PUSH} --folder model", "for timm"),
        ),
        output="what was written, on standard output; the model at --to or in --folder",
    ),
)
