"""Subcommands of golden rankings and what is learned from them: ``rank``, ``show``, ``fit``."""

import time
from argparse import Namespace
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.base.table import Shown, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import Command, CommandParser

if TYPE_CHECKING:
    from zoo.ranking.golden import GoldenConfig

RANKED_BY = 2  # window and stride of rankings that `fit predictor` makes: a quarter of the passes of stride 1


def _rank_flags(parser: CommandParser) -> None:
    from zoo.ranking.golden import GoldenConfig

    what = parser.add_argument_group("what is ranked")
    flags.model(what)
    one = what.add_mutually_exclusive_group(required=True)
    flags.dataset(one)
    one.add_argument("--images", type=Path, metavar="FOLDER", help="any images, unlabelled")
    flags.images(what, 250, "test", "images; class-balanced")
    flags.number(what, "--variants", 1, "times that each image of a shipped dataset is drawn anew", metavar="K")
    flags.data(parser)
    how = parser.add_argument_group("golden rankings")
    text = "preservation, label, confidence; several share the passes"
    how.add_argument("--score", nargs="+", metavar="SCORE", dest="scores", default=[GoldenConfig.score], help=text)
    how.add_argument("--action", default=GoldenConfig.action, help="remove, or merge into the nearest")
    flags.block(how)
    # No defaults here: a budget picks these.
    flags.number(how, "--window", None, f"side in patches; {GoldenConfig.window} without --budget")
    flags.number(how, "--stride", None, f"in patches; {GoldenConfig.stride} without --budget")
    flags.number(how, "--greedy", None, "iterative search, K go per round", metavar="K")
    how.add_argument("--approx", metavar="SPEC", help="instead of every window, cheaper")
    flags.number(how, "--budget", None, "best way within N passes", kind=float, metavar="N")
    where = parser.add_argument_group("conditions")
    text = "Ray actors that share the work; default: this process"
    flags.number(where, "--workers", None, text, kind=flags.positive)
    flags.number(where, "--batch", None, "sequences per pass; default: from free memory")
    where.add_argument("--compile", action="store_true", help="use torch.compile")
    flags.device(where, text="of each worker")
    where.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto: the fastest")
    files = parser.add_argument_group("files")
    flags.output(files, None, "folder; default: in the user's cache", dest="out")
    flags.number(files, "--shard-size", 64, "images per file")


def run_rank(args: Namespace, status: Console) -> Shown:
    """Make golden rankings and say where they are."""
    from harness.datasets import get_dataset
    from harness.golden.rank import RankJob, Source, rank_by_scores
    from harness.records.conditions import DTYPES
    from zoo.core.messages import expected
    from zoo.core.precision import AUTO

    if args.dtype not in (AUTO, *DTYPES):
        raise ValueError(f"--dtype {args.dtype!r}: {expected(args.dtype, (AUTO, *DTYPES))}")
    for name in ("window", "stride", "greedy", "approx"):
        if args.budget is not None and vars(args)[name] is not None:
            raise ValueError(
                f"--budget {args.budget:g} with --{name}: a budget picks window, stride and "
                "approximation itself; give one of the two"
            )
    config = replace(flags.golden_config(args), score=args.scores[0])
    folder = args.images
    source = Source.of(get_dataset(args.dataset), args.split) if folder is None else Source.folder(folder)
    job = flags.settings(RankJob, args, source=source, config=config, compiled=args.compile)
    stores = rank_by_scores(job, Progress(status))
    lines = [f"wrote {path}: {images} of {total} images" for path, images, total in stores.values()]
    data = [{"path": str(path), "images": images, "images_there": total} for path, images, total in stores.values()]
    several = {"stores": [{"score": score} | one for score, one in zip(stores, data, strict=True)]}
    return Shown(parts=tuple(lines), data=several if len(data) > 1 else data[0])


def _show_flags(parser: CommandParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, or dataset:split:index")
    what = parser.add_argument_group("what is drawn")
    flags.model(what)
    flags.keeps(what, [0.6], "in (0, 1)", float, dest="keep")
    what.add_argument("--by", metavar="RANKING", help="that decides what is kept; default: the predictor")
    flags.methods(what, [], "more columns; see `list`", "*")
    text = "instead of rankings, what these or golden leave"
    what.add_argument("--left", nargs="+", metavar="METHOD", default=[], help=text)
    flags.dataset(what, help="whose classes the files may show")
    what.add_argument("--classes", metavar="NAMES", default="", help="their names instead, as a,b,c")
    what.add_argument("--label", nargs="*", metavar="CLASS", default=[], help="of all files, or of each")
    flags.data(parser)
    flags.golden_windows(parser)
    where = parser.add_argument_group("conditions and files")
    flags.output(where, "show.png", "a PNG", "FILE", dest="out")
    flags.number(where, "--scale", 1.0, "of the figure's size")
    flags.device(where)


def run_show(args: Namespace, status: Console) -> Shown:
    """Draw images beside the importance of their patches."""
    from harness.apps.show import ShowConfig, find_subjects, show
    from harness.report.pictures import IMAGE

    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    subjects = find_subjects(args.images, dataset=args.dataset, classes=classes, labels=args.label)
    config = flags.settings(ShowConfig, args, keeps=tuple(args.keep), golden=flags.golden_config(args))
    progress = Progress(status)
    sheet = show(args.model, subjects, config, args.out, device=args.device, progress=progress)
    data = {"path": str(args.out), "columns": [IMAGE, *sheet.columns], "notes": sheet.notes}
    return Shown(parts=(*sheet.notes, f"wrote {args.out}"), data=json_values(data))


def _predictor_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is learned from")
    flags.model(what)
    flags.dataset(what, nargs="*", default=[], help="its rankings that ship; without them, rank first")
    flags.number(what, "--limit", 250, "images to rank per split", kind=flags.positive)
    flags.number(what, "--block", None, "reduction point; 3 if nothing is said")
    what.add_argument("--action", help="that was ranked for, remove or merge; remove if nothing is said")
    for name, text in (("window", "side in patches"), ("stride", "in patches")):
        about = f"{text}, of rankings made here; {RANKED_BY} if nothing is said"
        flags.number(what, f"--{name}", None, about, kind=flags.positive)
    for name, text in (
        ("rankings", "stores or files of rankings to learn from"),
        ("val", "for early stopping; default: a fifth held out"),
        ("images", "folders that rankings of folders are of"),
    ):
        what.add_argument(f"--{name}", nargs="*", type=Path, default=[], metavar="PATH", help=text)
    flags.number(what, "--shots", None, "images per class; default: all", metavar="K")
    flags.data(parser)
    flags.predictor_recipe(parser)
    files = parser.add_argument_group("files")
    flags.output(files, None, "default: the user's cache", "FILE")


def run_fit_predictor(args: Namespace, status: Console) -> Shown:
    """Fit a predictor, ranking images first where no rankings are given and none ship."""
    from harness.datasets import get_dataset
    from harness.datasets.few_shot import require_images, require_labels
    from harness.golden.fit import fit
    from harness.golden.rank import RankJob, Source, rank
    from harness.golden.store import shipped_rankings
    from harness.models.towers import load_tower

    config, progress, way = flags.fit_config(args), Progress(status), _ranked_by(args)
    train, val = list(args.rankings), list(args.val)
    for dataset in args.dataset:  # refuses before anything is loaded
        if args.shots is not None:
            require_labels(get_dataset(dataset), f"--shots {args.shots}")
        require_images(get_dataset(dataset), "train", "images to learn from asked for")
    ships = way.action == "remove" and (args.window, args.stride) == (None, None)
    jobs: list[tuple[RankJob, list[Path]]] = []
    tower = load_tower(args.model) if args.dataset else None
    for dataset, split in product(args.dataset, flags.SPLITS[:2]):
        assert tower is not None
        files = {"train": train, "val": val}[split]
        path = shipped_rankings(tower.name, dataset, split, way.block) if ships else None
        source = Source.of(get_dataset(dataset), split)
        if path is not None:
            files.append(path)
        elif len(source.images):
            jobs.append((RankJob(model=args.model, source=source, config=way, limit=args.limit), files))
        else:
            progress.say(f"{source.name} has no {split} images: none of its images decides when the fit stops")
    if not train and not jobs:
        raise ValueError("nothing to learn from: give --dataset, or --rankings")
    limits = {"shots": args.shots, "block": args.block, "action": args.action, "folders": args.images}
    with progress.task("fit predictor, steps", len(jobs) + 1) as update:
        for done, (job, files) in enumerate(jobs, start=1):
            files.append(rank(job, progress).path)
            update(done)
        path, tau = fit(args.model, train, val, config, progress=progress, out=args.output, **limits)
    text = f"wrote {path}; Kendall tau on the validation images {tau:.3f}"
    return Shown(parts=(text,), data=json_values({"path": path, "validation_tau": tau}))


def _ranked_by(args: Namespace) -> "GoldenConfig":
    """Return how images are ranked where no rankings are given and none ship.

    Raises:
        ValueError: windows of rankings that are given, or windows that can't be.
    """
    from zoo.ranking.golden import GoldenConfig

    for name in ("window", "stride"):
        if (value := vars(args)[name]) is not None and not args.dataset:
            raise ValueError(f"--{name} {value} without --dataset: the rankings are there, nothing is ranked here")
    block = GoldenConfig.block if args.block is None else args.block
    action, merges = args.action or GoldenConfig.action, args.action == "merge"
    window = args.window or (1 if merges else RANKED_BY)
    stride = args.stride or min(window, RANKED_BY)
    way = GoldenConfig(action=action, block=block, window=window, stride=stride)
    return replace(way, approximate="follow:0") if merges else way


def _prompts_flags(parser: CommandParser) -> None:
    from harness.datasets.few_shot import OURS
    from zoo.learning.prompt_learner import TuneConfig

    what = parser.add_argument_group("what is tuned, on what")
    what.add_argument("--model", default="clip_vit_s14_patchrank60", help="dense or reduced")
    flags.dataset(what, required=True)
    flags.number(what, "--shots", 16, "images per class", metavar="K")
    flags.draws(what, OURS, "")
    flags.number(what, "--seed", None, "of the images and of the recipe; default: 0, of CoOp's draws 1")
    flags.data(parser)
    tokens = flags.tuning_recipe(parser)
    tokens.add_argument("--no-augment", dest="augment", action="store_false", help="take the images as they are")
    how = parser.add_argument_group("conditions and files")
    flags.device(how)
    how.add_argument("--dtype", default=TuneConfig.dtype, help="float32, bfloat16, or auto: the fastest")
    how.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    flags.output(how, None, "default: the user's cache", "FILE")


def run_fit_prompts(args: Namespace, status: Console) -> Shown:
    """Tune prompts, write them, and say what that took and gave."""
    from harness.datasets import get_dataset
    from harness.datasets.few_shot import draw
    from harness.measure.tuning import load_tuners
    from zoo.core.files import write_whole

    config = flags.tune_config(args, args.draws)
    dataset = get_dataset(args.dataset)
    drawn = draw(dataset, args.shots, config.seed, args.draws)  # refuses before anything is loaded
    how = {"draws": args.draws, "device": args.device, "progress": Progress(status)}
    row, (tuner,) = load_tuners(args.model, [dataset], **how)
    begin = time.perf_counter()
    steps = config.total_steps(len(drawn.train))
    tuned = tuner.tuned([row], args.shots, config.seed, config)[row.key]
    seconds = time.perf_counter() - begin
    path = tuned.file.path
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.output, path.read_bytes())
        path = args.output
    untuned, top1 = (one.top1 for one in tuner.judge(row, tuned, drawn.val))
    parameters, memory_mib = tuned.file.provenance["parameters"], _memory_mib(args.device)
    text = (
        f"wrote {path}: {parameters:,} learned parameters, {len(drawn.train)} images, "
        f"{seconds:.1f} s, {memory_mib:,.0f} MiB at most; top-1 on the {len(drawn.val)} "
        f"validation images {100 * top1:.1f} % (untuned {100 * untuned:.1f} %)"
    )
    recipe = f"recipe {args.recipe}: {config.learned}, {config.described(len(drawn.train))}"
    data = {
        **{"path": path, "parameters": parameters, "seconds": seconds, "memory_mib": memory_mib},
        **{"train": len(drawn.train), "val": len(drawn.val), "top1": top1, "untuned": untuned},
        **{"draws": args.draws, "steps": steps, "recipe": config},
    }
    return Shown(parts=(text, recipe), data=json_values(data))


def _recovery_flags(parser: CommandParser) -> None:
    from harness.apps.recovery import Sources
    from zoo.loading.recovery_file import RecoveryConfig

    what = parser.add_argument_group("what is trained, on what")
    flags.model(what, "a reduced name, or a dense one with --method and --keep")
    what.add_argument("--method", metavar="METHOD", help="of a dense model; see `list`")
    flags.number(what, "--keep", None, "in (0, 1]", kind=flags.keep_rate, metavar="RATE")
    flags.dataset(what, nargs="+", required=True)
    flags.limits(what, Sources.limit, "images to learn from, per dataset")
    flags.fields(what, Sources, held_out="images to stop by, per dataset")
    flags.data(parser)
    how = parser.add_argument_group("recovery")
    text = "norm: LayerNorms and biases; lora: low-rank updates; tokens: learned visual tokens"
    how.add_argument("--what", default=RecoveryConfig.what, help=text)
    flags.fields(how, RecoveryConfig, rank="of lora", count="learned tokens of tokens")
    flags.fields(how, RecoveryConfig, rounds="at most", steps="per round", patience="rounds without a better one")
    flags.fields(how, RecoveryConfig, batch="images per step", learning_rate="of AdamW")
    flags.fields(how, RecoveryConfig, crop="least area of a random crop", seed="of order and crops")
    where = parser.add_argument_group("conditions and files")
    flags.device(where)
    where.add_argument("--dtype", default=RecoveryConfig.dtype, help="float32, bfloat16, or auto: the fastest")
    flags.output(where, None, "default: the user's cache", "FILE")


def run_fit_recovery(args: Namespace, status: Console) -> Shown:
    """Train a recovery, write it, and say what that took and gave."""
    from harness.apps.recovery import Sources, train_recovery
    from zoo.loading.recovery_file import RecoveryConfig

    sources = flags.settings(Sources, args, datasets=tuple(dict.fromkeys(args.dataset)))
    config = flags.settings(RecoveryConfig, args)
    how = {name: vars(args)[name] for name in ("method", "keep", "device")}
    begin = time.perf_counter()
    file = train_recovery(args.model, sources, config, **how, out=args.output, progress=Progress(status))
    seconds = time.perf_counter() - begin
    losses = [f"{one['name']} {one['before']:.4f} to {one['after']:.4f}" for one in file.datasets]
    worth = "" if file.parameters else "; nothing was better than the model as it is, on every dataset"
    text = (
        f"wrote {file.path}: {file.parameters:,} parameters, {sum(one['images'] for one in file.datasets)} images, "
        f"{seconds:.1f} s; 1 - cosine to dense on images held out: {', '.join(losses)}{worth}"
    )
    data = {"path": file.path, "parameters": file.parameters, "seconds": seconds, "datasets": file.datasets}
    return Shown(parts=(text,), data=json_values(data))


def _schedule_flags(parser: CommandParser) -> None:
    from harness.apps.recovery import Sources
    from harness.apps.schedule import SearchConfig

    what = parser.add_argument_group("what is searched, on what")
    flags.model(what)
    what.add_argument("--method", metavar="METHOD", default="rankmerge", help="see `list`")
    flags.dataset(what, nargs="+", required=True)
    flags.limits(what, 100, "images to search on, per dataset")
    flags.fields(what, Sources, held_out="images to judge by, per dataset")
    flags.data(parser)
    how = parser.add_argument_group("cost and search")
    how.add_argument("--match", metavar="WHAT", default=SearchConfig.match, help="gflops or time")
    how.add_argument("--match-to", metavar="METHOD", default=SearchConfig.match_to, help="whose cost it is")
    flags.number(how, "--keep", None, "its keep rate, in (0, 1]", kind=flags.keep_rate, metavar="RATE")
    flags.number(how, "--cost", None, "share of the dense tower's cost instead", kind=float)
    flags.fields(how, SearchConfig, points="reduction points at most", candidates="schedules to try at most")
    where = parser.add_argument_group("conditions and files")
    flags.fields(where, SearchConfig, match_batch="images per call, where time is matched")
    flags.machine(where, "that is timed; features are compared in float32")
    flags.output(where, None, "default: the user's cache", "FILE")


def run_fit_schedule(args: Namespace, status: Console) -> Shown:
    """Search a schedule, write it, and show the default and the best beside it."""
    from harness.apps.recovery import Sources
    from harness.apps.schedule import SearchConfig, schedule_table, search_schedule

    sources = flags.settings(Sources, args, datasets=tuple(dict.fromkeys(args.dataset)))
    config = flags.settings(SearchConfig, args)
    where = {"out": args.output, "device": args.device, "progress": Progress(status)}
    result = search_schedule(args.model, args.method, sources, config, **where)
    file = result.file
    numbers = f"reduce_at={file.reduce_at}, schedule={file.schedule}, keep={file.keep:g}"
    worth = "" if file.found else "; nothing found is better on held-out images, so this is the default"
    text = f"wrote {result.path}: {numbers}; {file.candidates} schedules tried in {file.seconds:.1f} s{worth}"
    data = {"path": result.path, "schedule": file, "default": result.default, "best": result.best}
    return Shown(parts=(schedule_table(result), text), data=json_values(data))


def _memory_mib(device: str) -> float:
    """Return the most memory of this process so far; on CUDA, of its tensors."""
    import resource
    import sys

    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


COMMANDS = (
    Command(
        path="rank", flags=_rank_flags, run=run_rank,
        what="Make golden rankings of images; the same command goes on where it stopped.",
        examples=(
            ("rank --dataset fashion --split train --limit 100 --stride 2", "100 training images"),
            ("rank --images photos --output ranked --full", "any folder of images"),
            ("rank --dataset emoji --budget 20", "the best way within 20 passes per image"),
            ("rank --dataset fashion --score preservation label", "a store for each score, from the same passes"),
        ),
        output="where the store is, on standard output; Parquet files in --output",
    ),
    Command(
        path="fit predictor", flags=_predictor_flags, run=run_fit_predictor,
        what="Fit a predictor to golden rankings, so that pretrained=True finds it.",
        examples=(
            ("fit predictor --model clip_vit_b16.openai --dataset fashion", "ranks first"),
            ("fit predictor --rankings ranked --images photos", "to rankings of a folder"),
        ),
        output="how well it agrees, on standard output; the predictor in --output",
    ),
    Command(
        path="fit prompts", flags=_prompts_flags, run=run_fit_prompts,
        what="Tune learned text and visual tokens on a few labelled images; "
        "timm.create_model(..., prompts=FILE) takes the result.",
        examples=(
            ("fit prompts --dataset emoji --shots 16 --tokens t", "text tokens"),
            ("fit prompts --model clip_vit_s14 --dataset emoji --tokens vt", "visual ones, too"),
            ("fit prompts --dataset dtd --root data --recipe coop --draws coop", "as CoOp learns, from its images"),
        ),
        output="what it took and gave, on standard output; the tokens in --output",
    ),
    Command(
        path="fit recovery", flags=_recovery_flags, run=run_fit_recovery,
        what="Train a reduced tower, without labels, to give the dense tower's features; "
        "timm.create_model(..., recovery=FILE) takes the result.",
        examples=(
            ("fit recovery --model clip_vit_s14_tome30 --dataset photos --output tome30.safetensors", "norms, biases"),
            ("fit recovery --model clip_vit_b16_evit60 --dataset images:photos --what lora", "any folder of images"),
        ),
        output="what it took and gave, on standard output; the changes of the weights in --output",
    ),
    Command(
        path="fit schedule", flags=_schedule_flags, run=run_fit_schedule,
        what="Search reduction points and counts that keep a method nearest to dense at one cost, on images without "
        "labels; zoo.read_schedule(FILE) gives them as a model's options.",
        examples=(
            ("fit schedule --dataset photos --keep 0.6 --output s.json", "rankmerge at patchrank's GFLOPs"),
            ("fit schedule --method evit --dataset images:photos --cost 0.5 --match time", "half the time of dense"),
        ),
        output="the default and the best found, on standard output; the schedule in --output",
    ),
    Command(
        path="show", flags=_show_flags, run=run_show,
        what="Draw images beside the importance of their patches by several rankings, as PNG.",
        examples=(
            ("show fashion:val:3 --keeps 0.6 0.3", "an image of a dataset"),
            ("show photo.jpg --dataset fashion --label bag", "a file of a known class"),
            ("show photos:test:2 --left rankmerge patchrank", "the tokens that methods leave"),
        ),
        output="the figure in --output; its notes on standard output",
    ),
)  # fmt: skip
