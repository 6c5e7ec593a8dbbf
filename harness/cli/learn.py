"""Subcommands of golden rankings and of what is learned: ``rank`` and ``fit``."""

import time
from argparse import Namespace
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.base.table import Shown, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import CommandParser, command
from harness.cli.outline import outline


def _rank_flags(parser: CommandParser) -> None:
    config = outline("zoo.ranking.golden").GoldenConfig
    what = parser.add_argument_group("what is ranked")
    flags.usual(what, "model")
    one = what.add_mutually_exclusive_group(required=True)
    flags.usual(one, "dataset")
    flags.add(one, "--images", None, "a folder of pictures without labels", Path, metavar="DIR")
    flags.images(what, 250, "test", "images, class-balanced")
    flags.add(what, "--variants", 1, "drawings of each image of a shipped dataset", metavar="K")
    flags.data(parser)
    how = parser.add_argument_group("golden rankings")
    text = "preservation, label, confidence; several share the passes"
    flags.add(how, "--score", [config.score], text, dest="scores", metavar="SCORE")
    flags.fields(how, config, block="rank at the input of this block, from 0")
    flags.fields(how, config, window="window side in patches", stride="step of the window in patches")
    flags.add(how, "--greedy", None, "search round by round; K patches go in each", int, metavar="K")
    flags.add(how, "--approx", None, "cheaper approximation instead of every window, such as follow:2", metavar="SPEC")
    where = parser.add_argument_group("conditions")
    flags.add(where, "--workers", None, "Ray actors that share the work; default: this process", flags.positive)
    flags.add(where, "--batch", None, "sequences per call; default: by free memory", int)
    flags.usual(where, "device", text="torch device of each worker")
    text = f"precision: {', '.join(flags.DTYPES)}, or auto for the fastest"
    flags.add(where, "--dtype", "auto", text, choices=("auto", *flags.DTYPES), metavar="DTYPE")
    files = parser.add_argument_group("files")
    flags.output(files, None, "folder; default: in the user's cache", dest="out")
    flags.add(files, "--shard-size", 64, "images per file")


def run_rank(args: Namespace, status: Console) -> Shown:
    """Make golden rankings and say where they are."""
    from harness.datasets import get_dataset
    from harness.golden.rank import RankJob, Source, rank_by_scores

    config = replace(flags.golden_config(args), score=args.scores[0])
    folder = args.images
    source = Source.of(get_dataset(args.dataset), args.split) if folder is None else Source.folder(folder)
    progress = Progress(status)
    for note in source.notes:
        progress.say(note)
    stores = rank_by_scores(flags.settings(RankJob, args, source=source, config=config), progress)
    lines = [f"wrote {path}: {images} of {total} images" for path, images, total in stores.values()]
    data = [{"path": str(path), "images": images, "images_there": total} for path, images, total in stores.values()]
    several = {"stores": [{"score": score} | one for score, one in zip(stores, data, strict=True)]}
    return Shown(parts=tuple(lines), data=several if len(data) > 1 else data[0])


def _predictor_flags(parser: CommandParser) -> None:
    config = outline("zoo.learning.fit").FitConfig
    what = parser.add_argument_group("what is learned from")
    flags.usual(what, "model")
    flags.usual(what, "dataset", text="datasets whose shipped rankings are used; others are ranked first", nargs="*")
    flags.add(what, "--limit", 250, "images to rank per split", flags.positive)
    flags.add(what, "--block", None, "reduction point, from 0; default: 3", int)
    for name, text in (
        ("rankings", "stores or files of rankings to learn from"),
        ("val", "rankings for early stopping; default: a fifth of the others"),
        ("images", "folders of pictures that --rankings are of"),
    ):
        flags.add(what, f"--{name}", [], text, Path, nargs="*", metavar="PATH")
    flags.add(what, "--shots", None, "images per class; default: all", int, metavar="K")
    flags.data(parser)
    how = parser.add_argument_group("predictor")
    flags.fields(how, config, arch="architecture; see zoo/core/predictor.py", loss="see zoo/learning/fit.py")
    flags.fields(how, config, width="channels inside the predictor", epochs="epochs at most")
    flags.fields(how, config, patience="stop after this many epochs without a better one", batch="images per step")
    flags.fields(how, config, seed="seed of weights, order and shots", learning_rate="learning rate of AdamW")
    files = parser.add_argument_group("files")
    flags.output(files, None, "the predictor; default: in the user's cache", "FILE")


def run_fit_predictor(args: Namespace, status: Console) -> Shown:
    """Fit a predictor, ranking images first where no rankings are given and none ship."""
    from harness.base.lines import claim_file
    from harness.datasets import get_dataset
    from harness.datasets.base import SplitName
    from harness.datasets.few_shot import require_images, require_labels
    from harness.golden.fit import fit
    from harness.golden.rank import RankJob, Source, rank
    from harness.golden.store import shipped_rankings
    from harness.models.towers import load_tower
    from zoo.learning.fit import FitConfig
    from zoo.ranking.golden import GoldenConfig

    config, progress = flags.settings(FitConfig, args), Progress(status)
    way = flags.settings(GoldenConfig, args, window=2, stride=2)
    files: dict[SplitName, list[Path]] = {"train": list(args.rankings), "val": list(args.val)}
    names = args.dataset or []
    for dataset in names:  # refuses before anything is loaded
        if args.shots is not None:
            require_labels(get_dataset(dataset), f"--shots {args.shots}")
        require_images(get_dataset(dataset), "train", "images to learn from asked for")
    jobs: list[tuple[SplitName, RankJob]] = []
    tower = load_tower(args.model).name if names else ""
    for dataset, split in product(names, flags.SPLITS[:2]):
        path = shipped_rankings(tower, dataset, split, way.block)
        source = Source.of(get_dataset(dataset), split)
        if path is not None:
            files[split].append(path)
        elif len(source.images):
            jobs.append((split, RankJob(model=args.model, source=source, config=way, limit=args.limit)))
        else:
            progress.say(f"{source.name} has no {split} images; none decides when to stop")
    if not files["train"] and not jobs:
        raise ValueError("nothing to learn from: give --dataset or --rankings")
    limits = {"shots": args.shots, "block": args.block, "folders": args.images}
    with claim_file(args.output), progress.task("fit predictor, steps", len(jobs) + 1) as update:
        for done, (split, job) in enumerate(jobs, start=1):
            files[split].append(rank(job, progress).path)
            update(done)
        path, tau = fit(args.model, files["train"], files["val"], config, progress=progress, out=args.output, **limits)
    text = f"wrote {path}; Kendall tau on the validation images {tau:.3f}"
    return Shown(parts=(text,), data=json_values({"path": path, "validation_tau": tau}))


def _prompts_flags(parser: CommandParser) -> None:
    what = parser.add_argument_group("what is tuned, on what")
    flags.usual(what, "model", default="clip_vit_s14_patchrank60", text="a dense or reduced model's name, see `list`")
    flags.usual(what, "dataset", required=True)
    flags.add(what, "--shots", 16, "labelled images per class", metavar="K")
    flags.data(parser)
    tokens = parser.add_argument_group("learned tokens")
    flags.add(tokens, "--tokens", None, "t (text), v (visual) or vt (both); default: vt")
    flags.add(tokens, "--num-tokens", None, "number of learned tokens; default: 4", int)
    flags.tokens_recipe(tokens, outline("harness.datasets.few_shot").OURS)
    how = parser.add_argument_group("conditions and files")
    flags.usual(how, "device")
    flags.output(how, None, "the learned tokens; default: in the user's cache", "FILE")


def run_fit_prompts(args: Namespace, status: Console) -> Shown:
    """Tune prompts, write them, and say what that took and gave."""
    from harness.base.lines import claim_file, require_appendable
    from harness.datasets import get_dataset
    from harness.datasets.few_shot import draw
    from harness.measure.tuning import load_tuner
    from zoo.core.files import cache_folder, write_whole

    asked = {"tokens": args.tokens, "count": args.num_tokens}
    asked = {name: value for name, value in asked.items() if value is not None}
    config = flags.tune_config(args, args.draws, **asked)
    dataset = get_dataset(args.dataset)
    drawn = draw(dataset, args.shots, config.seed, args.draws)  # refuses before anything is loaded
    how = {"draws": args.draws, "device": args.device, "progress": Progress(status)}
    row, tuner = load_tuner(args.model, dataset, **how)
    begin = time.perf_counter()
    if args.output is None:
        require_appendable(cache_folder() / "prompts" / "any")
    with claim_file(args.output):
        tuned = tuner.tune([row], args.shots, config.seed, config)[row.key]
        seconds = time.perf_counter() - begin
        path = tuned.file.path
        if args.output is not None:
            write_whole(args.output, path.read_bytes())
            path = args.output
    untuned, top1 = tuner.judge(row, tuned, drawn.val)
    parameters = tuned.file.provenance["parameters"]
    text = (
        f"wrote {path}: {parameters:,} learned parameters, {len(drawn.train)} images, {seconds:.1f} s; top-1 on the "
        f"{len(drawn.val)} validation images {100 * top1:.1f} % (untuned {100 * untuned:.1f} %)"
    )
    recipe = f"{config.learned}, {config.describe()}"
    data = {"path": path, "parameters": parameters, "seconds": seconds, "train": len(drawn.train)}
    data |= {"val": len(drawn.val), "top1": top1, "untuned": untuned, "draws": args.draws}
    data |= {"steps": config.total_steps, "recipe": config}
    return Shown(parts=(text, recipe), data=json_values(data))


def _images_flags(group: Any, limit: int | None, learn: str, hold: str) -> None:
    """Add the datasets that something is learned from without labels."""
    flags.usual(group, "datasets", required=True)
    flags.limits(group, limit, f"images per dataset to {learn}")
    flags.fields(group, outline("harness.apps.recovery").Sources, held_out=f"images per dataset to {hold}")


def _recovery_flags(parser: CommandParser) -> None:
    config = outline("zoo.loading.recovery_file").RecoveryConfig
    what = parser.add_argument_group("what is trained, on what")
    flags.usual(what, "model", text="a reduced model's name, or a dense one with --method and --keep")
    flags.usual(what, "method", "keep")
    limit = outline("harness.apps.recovery").Sources.limit
    _images_flags(what, limit, "learn from", "decide when to stop")
    flags.data(parser)
    how = parser.add_argument_group("recovery")
    text = "what is learned: head (the last linear map, in closed form), norm (LayerNorms and biases), lora (low-rank "
    text += "updates), or one after the other, head+norm or head+lora"
    flags.fields(how, config, what=text, rank="rank of lora")
    flags.add(how, "--validations", config.rounds, "validations at most, each after --steps", dest="rounds")
    flags.fields(how, config, steps="steps of the optimiser between validations", batch="images per step")
    flags.fields(how, config, patience="stop after this many validations without a better one")
    flags.fields(how, config, learning_rate="learning rate of AdamW")
    flags.fields(how, config, crop="least area of a random crop, as a share", seed="seed of order and crops")
    where = parser.add_argument_group("conditions and files")
    flags.usual(where, "device")
    flags.add(where, "--dtype", config.dtype, "precision: float32, bfloat16, or auto for the fastest")
    flags.output(where, None, "the trained parameters; default: in the user's cache", "FILE")


def run_fit_recovery(args: Namespace, status: Console) -> Shown:
    """Train a recovery, write it, and say what that took and gave."""
    from harness.apps.recovery import Sources, train_recovery
    from zoo.loading.recovery_file import RecoveryConfig

    sources, config = flags.settings(Sources, args), flags.settings(RecoveryConfig, args)
    how = {name: vars(args)[name] for name in ("method", "keep", "device")}
    begin = time.perf_counter()
    file = train_recovery(args.model, sources, config, **how, out=args.output, progress=Progress(status))
    seconds = time.perf_counter() - begin
    losses = [f"{one['name']} {one['before']:.4f} to {one['after']:.4f}" for one in file.datasets]
    worth = "" if file.parameters else "; no change improved every dataset, so the model stays as it is"
    text = (
        f"wrote {file.path}: {file.parameters:,} parameters, {sum(one['images'] for one in file.datasets)} images, "
        f"{seconds:.1f} s; 1 - cosine to dense on images held out: {', '.join(losses)}{worth}"
    )
    data = {"path": file.path, "parameters": file.parameters, "seconds": seconds, "datasets": file.datasets}
    return Shown(parts=(text,), data=json_values(data))


def _schedule_flags(parser: CommandParser) -> None:
    config = outline("harness.apps.schedule").SearchConfig
    what = parser.add_argument_group("what is searched, on what")
    flags.usual(what, "model")
    flags.usual(what, "method", default="rankmerge", text="method whose schedule is searched; see `list`")
    _images_flags(what, 100, "search with", "judge with")
    flags.data(parser)
    how = parser.add_argument_group("cost and search")
    flags.add(how, "--match-to", config.match_to, "method whose cost is met, with --keep", metavar="METHOD")
    flags.usual(how, "keep")
    flags.add(how, "--cost", None, "cost as a share of the dense tower's, instead", float)
    flags.fields(how, config, points="reduction points at most", candidates="schedules to try at most")
    where = parser.add_argument_group("conditions and files")
    flags.usual(where, "device")
    flags.output(where, None, "the schedule; default: in the user's cache", "FILE")


def run_fit_schedule(args: Namespace, status: Console) -> Shown:
    """Search a schedule, write it, and say what it gives beside the default."""
    from harness.apps.recovery import Sources
    from harness.apps.schedule import SearchConfig, search_schedule

    sources, config = flags.settings(Sources, args), flags.settings(SearchConfig, args)
    where = {"out": args.output, "device": args.device, "progress": Progress(status)}
    path, file = search_schedule(args.model, args.method, sources, config, **where)
    numbers = f"reduce_at={file.reduce_at}, schedule={file.schedule}, keep={file.keep:g}"
    worth = "" if file.found else "; none is better on held-out images, so this is the default"
    losses = [f"{one['name']} {one['before']:.5f} to {one['after']:.5f}" for one in file.datasets]
    text = (
        f"wrote {path}: {numbers}; {file.candidates} schedules tried in {file.seconds:.1f} s{worth}; at "
        f"{file.cost['reached']:.3f} GFLOPs, 1 - cosine to dense on images held out: {', '.join(losses)}"
    )
    return Shown(parts=(text,), data=json_values({"path": path, "schedule": file}))


COMMANDS = (
    command("rank", run_rank, _rank_flags),
    command("fit predictor", run_fit_predictor, _predictor_flags),
    command("fit prompts", run_fit_prompts, _prompts_flags),
    command("fit recovery", run_fit_recovery, _recovery_flags),
    command("fit schedule", run_fit_schedule, _schedule_flags),
)
