"""Research tools: ``study floor``, ``curve``, ``speed``, ``reproduce``, ..., and ``study NAME``."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from harness.cli import flags
from harness.cli.command import ANY, Command, CommandParser
from harness.console.terminal import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from harness.console.table import Shown, Work
    from harness.measure.compare import Floor


def _floor_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    text = "see `list`; golden needs rankings"
    flags.methods(what, ["golden", "patchrank", "clsattn"], text)
    flags.keeps(what, [0.6, 0.5, 0.3])
    flags.datasets(what)
    flags.seeds(what, 3, "random orders")
    _paths(what, "--rankings", "other golden files")
    flags.data(parser)
    flags.conditions(parser)


def _paths(group: Any, flag: str, text: str) -> None:
    from pathlib import Path

    group.add_argument(flag, nargs="*", type=Path, metavar="PATH", default=[], help=text)


def run_floor(args: Namespace, status: "Console") -> "Work":
    """Measure methods against random pruning, and show a table per dataset."""
    from harness.console.table import Shown, json_values
    from harness.golden.store import Rankings
    from harness.measure.compare import floor
    from harness.measure.plan import Plan
    from harness.report.tables import floor_table

    plan = Plan(
        models=(args.model,),
        methods=tuple(args.methods),
        keeps=tuple(args.keeps),
        datasets=tuple(args.datasets),
        limit=flags.limit_of(args),
        split=args.split,
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
    )
    rankings = [Rankings.read(path) for path in args.rankings]
    found: list[Floor] = []
    for rows in floor(plan, args.seeds, Progress(status), rankings):
        found += rows
        yield floor_table(rows, args.seeds)
    return Shown(parts=(), data={"random_orders": args.seeds, "rows": json_values(found)})


def _overhead_flags(parser: CommandParser) -> None:
    from zoo.fit import FitConfig

    what = parser.add_argument_group("what is measured")
    flags.model(what)
    what.add_argument("--random-weights", action="store_true", help="where none can be had")
    text = "default: all, and the paper's Mixer"
    what.add_argument("--archs", nargs="+", metavar="ARCH", help=text)
    flags.fields(what, FitConfig, width="channels inside")
    how = parser.add_argument_group("conditions")
    flags.number(how, "--batch", 32, "images per call", kind=flags.positive)
    flags.rounds(how, 11, "samples of each, in turn")
    flags.machine(how)


def run_overhead(args: Namespace, status: "Console") -> "Shown":
    """Measure predictors beside their tower."""
    from harness.console.table import Shown, json_values
    from harness.measure.cost import overhead, overhead_table
    from harness.models.towers import find_tower
    from harness.records.conditions import device_name
    from zoo.fit import FitConfig
    from zoo.predictor import ARCHITECTURES

    tower = find_tower(args.model, random_weights=args.random_weights)
    shapes = [(arch, args.width) for arch in args.archs or ARCHITECTURES]
    if not args.archs:
        shapes.append(("mixer", int(tower.vit.embed_dim)))
    for arch, _ in shapes:
        FitConfig(arch=arch, width=args.width)  # refuses what can't be built
    rows = overhead(
        tower.vit.to(args.device),
        shapes,
        batch=args.batch,
        rounds=args.rounds,
        dtype=args.dtype,
        progress=Progress(status),
    )
    machine = device_name(args.device)
    title = f"predictors beside {tower.name}, batch {args.batch}, {args.dtype}, {machine}"
    data = {
        "model": tower.name,
        "batch": args.batch,
        "dtype": args.dtype,
        "device_name": machine,
        "predictors": json_values(rows),
    }
    return Shown(parts=(overhead_table(rows, title),), data=data)


def _objects_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    flags.dataset(what, default="fashion", help="one with masks")
    scores = ["preservation", "label", "confidence"]
    what.add_argument("--scores", nargs="*", metavar="SCORE", default=scores, help="golden ones")
    flags.methods(what, ["patchrank", "clsattn", "random"], "see `list`", "*")
    flags.data(parser)
    flags.golden_windows(parser)
    how = parser.add_argument_group("conditions")
    flags.images(how, 60, "val", "images")
    flags.device(how)


def _run_objects(args: Namespace, status: "Console") -> "Shown":
    from harness.cli.runs import run_objects

    return run_objects(args, status)


def _curve_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    flags.datasets(what)
    flags.block(what)
    flags.seeds(what, 3, "random orders")
    flags.data(parser)
    how = parser.add_argument_group("conditions and files")
    flags.images(how, 60, "val")
    flags.rounds(how, 3, "timings; 0: none", int)
    flags.machine(how, "of removed windows, exact excepted")
    flags.output(how, "results/curve", "folder", dest="out")


def _run_curve(args: Namespace, status: "Console") -> "Shown":
    from harness.cli.runs import run_curve

    return run_curve(args, status)


def _speed_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is measured")
    flags.model(what)
    what.add_argument("--random-weights", action="store_true", help="where none can be had")
    flags.dataset(what, default="fashion", help="where images are from")
    what.add_argument("--split", default="val", choices=flags.SPLITS, help="of the dataset")
    flags.number(what, "--images", 4, "how many")
    default, text = ["float32", "bfloat16"], "of the engine"
    what.add_argument("--precisions", nargs="+", metavar="DTYPE", default=default, help=text)
    flags.number(what, "--batches", [], "default: its own choice", nargs="*")
    what.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    flags.data(parser)
    flags.golden_windows(parser)
    how = parser.add_argument_group("conditions and files")
    flags.rounds(how, 5, "samples of each way", int)
    flags.number(how, "--threads", None, "default: torch's choice", kind=flags.positive)
    flags.device(how)
    flags.output(how, None, "JSON file for the record", "FILE", dest="out")


def _run_speed(args: Namespace, status: "Console") -> "Shown":
    from harness.cli.runs import run_speed

    return run_speed(args, status)


def _reproduce_flags(parser: CommandParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="table1 to 7, figure1, figure5")
    text = "tell what is cached, what is missing and what is left to do, and stop"
    parser.add_argument("--dry-run", action="store_true", help=text)
    what = parser.add_argument_group("what is measured")
    flags.datasets(what, None, "default: the paper's with a root, else the embedded ones")
    text = "needs a text tower; default: the paper's with a root, else the embedded"
    what.add_argument("--model", help=text)
    text = "test images per dataset; default: all with a root, else 300"
    flags.number(what, "--limit", None, text, kind=flags.limit)
    flags.full(what)
    flags.number(what, "--train-limit", 500, "ranked images to learn from")
    flags.seeds(what, 3, "fits, tunings and random orders")
    flags.data(parser)
    golden = parser.add_argument_group("golden rankings")
    flags.block(golden)
    text = "in patches; default: 2, of embedded rankings the shipped 3"
    flags.number(golden, "--window", None, text)
    flags.number(golden, "--stride", None, "in patches; default: 2, as the released code")
    flags.predictor_recipe(parser)
    _few_shots(parser)
    # The released code's predictor, and a loss that can be minimised; the paper has no anchor.
    parser.set_defaults(arch="pooledmixer", loss="listnet", anchor=0.0)
    how = parser.add_argument_group("conditions and files")
    flags.machine(how)
    flags.fresh(how)
    flags.output(how, "results/reproduce", "folder")


def _few_shots(parser: CommandParser) -> None:
    """Add what tokens learn from, and what they are."""
    from zoo.prompt_learner import TuneConfig

    tokens = flags.tuning_recipe(parser)
    flags.number(tokens, "--labelled", 16, "images per class that tokens see", metavar="K")
    flags.fields(tokens, TuneConfig, rounds="of tuning, at most")


def _run_reproduce(args: Namespace, status: "Console") -> "Work":
    from harness.cli.runs import run_reproduce

    return run_reproduce(args, status)


def _run_list(_args: Namespace, _status: "Console") -> "Shown":
    from harness.cli.runs import run_study_list

    return run_study_list()


def _study_flags(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the study; see `study list`")
    what = parser.add_argument_group("what is studied")
    flags.model(what, "needs a text tower")
    flags.datasets(what)
    flags.keeps(what, None, "default: the study's own")
    flags.seeds(what, 3, "fits, and random orders")
    text = "to judge by; test for learned tokens, else val"
    what.add_argument("--split", choices=("val", "test"), help=text)
    flags.number(what, "--limit", 300, "images per dataset", kind=flags.limit)
    flags.full(what)
    flags.number(what, "--train-limit", 500, "ranked images to learn from")
    flags.number(what, "--shots", None, "of them per class; default: all", metavar="K")
    flags.data(parser)
    golden = flags.golden_windows(parser, window=3, stride=2)
    golden.add_argument("--score", default="preservation", help="preservation, label, confidence")
    golden.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    flags.predictor_recipe(parser)
    _few_shots(parser)
    how = parser.add_argument_group("conditions and files")
    flags.machine(how)
    flags.fresh(how)
    flags.output(how, "results/studies", "folder")


def _run_study(args: Namespace, status: "Console") -> "Shown | Work":
    from harness.cli.runs import run_study
    from harness.studies.run import list_studies
    from zoo.reducer import expected

    if args.name not in list_studies():
        names = [*list_studies(), *(command.path.split()[1] for command in COMMANDS[:-1])]
        near = expected(args.name, names, shown_by="patchrank study --help")
        raise ValueError(f"study {args.name!r}: {near}")
    return run_study(args, status)


COMMANDS = (
    Command(
        path="study floor",
        what="Measure how far methods are above random pruning, over several random orders.",
        flags=_floor_flags,
        run=run_floor,
        examples=(
            (
                "study floor --methods golden patchrank clsattn --keeps 0.6 0.5 0.3 --split val "
                "--full",
                "all images of a split",
            ),
        ),
        output="a table per dataset on standard output; no files",
    ),
    Command(
        path="study overhead",
        what="Measure what predictors cost beside their tower: multiply-adds, parameters, time.",
        flags=_overhead_flags,
        run=run_overhead,
        examples=(
            ("study overhead", "all architectures, on the tower that ships"),
            (
                "study overhead --model clip_vit_b16 --random-weights --archs conv mlp --batch 8",
                "two, on another tower",
            ),
        ),
        output="a table on standard output; no files",
    ),
    Command(
        path="study objects",
        what="Measure how well rankings find the object, where a dataset knows its mask.",
        flags=_objects_flags,
        run=_run_objects,
        examples=(
            ("study objects --dataset fashion --split val --limit 60 --stride 2", "60 images"),
        ),
        output="a table on standard output; no files",
    ),
    Command(
        path="study curve",
        what="Measure what cheaper golden rankings cost and are worth; `rank --budget` picks from "
        "it.",
        flags=_curve_flags,
        run=_run_curve,
        examples=(("study curve --dataset fashion emoji --split val --limit 60", "two datasets"),),
        output="a table on standard output; curve.json, curve.md and curve.svg in --output. The "
        "same command goes on where it stopped",
    ),
    Command(
        path="study speed",
        what="Measure how fast golden rankings are made, against the straightforward way.",
        flags=_speed_flags,
        run=_run_speed,
        examples=(
            ("study speed --images 2 --stride 2 --output speed.json", "on the tower that ships"),
            (
                "study speed --model clip_vit_b16 --random-weights --stride 2 --images 1",
                "on another one, whose weights don't change the time",
            ),
        ),
        output="a table on standard output; the record in --output",
    ),
    Command(
        path="study reproduce",
        what="Measure a table or figure of the paper and print our figures beside the paper's.",
        flags=_reproduce_flags,
        run=_run_reproduce,
        examples=(
            (
                "study reproduce table1 --limit 60 --train-limit 100 --dry-run",
                "what is cached, and what is left to do",
            ),
            ("study reproduce table1 figure1 --root data", "on the paper's datasets"),
        ),
        output="a table each on standard output; records, table and figure in --output. The same "
        "command goes on where it stopped",
    ),
    Command(
        path="study list",
        what="Show the questions that studies answer.",
        flags=lambda _parser: None,
        run=_run_list,
        examples=(("study list", "the questions"),),
    ),
    Command(
        path=f"study {ANY}",
        what="Answer one of these questions about pruning by golden and predicted rankings.",
        flags=_study_flags,
        run=_run_study,
        examples=(
            (
                "study scores --dataset fashion --keeps 0.6 0.5 --limit 100",
                "which score to rank by",
            ),
        ),
        output="a table per dataset on standard output; records and table in --output. The same "
        "command goes on where it stopped",
    ),
)
