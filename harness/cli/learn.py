"""Subcommands of golden rankings and of learning: ``rank`` and ``fit``."""

import time
from argparse import Namespace
from itertools import product
from pathlib import Path

from harness.base.table import Shown, json_values
from harness.base.terminal import Progress
from harness.cli import flags


def run_rank(args: Namespace, progress: Progress) -> Shown:
    """Make golden rankings and say where they are."""
    from harness.golden.rank import rank
    from harness.golden.settings import RankJob
    from zoo.core.recipes import GoldenConfig

    source, config = flags.source_of(args, progress), flags.settings(GoldenConfig, args)
    job = flags.settings(RankJob, args, source=source, config=config)
    path, images, total = rank(job, progress)
    text = f"wrote {path}: {images} of {total} images"
    return Shown(parts=(text,), data={"path": str(path), "images": images, "images_there": total})


def run_fit_predictor(args: Namespace, progress: Progress) -> Shown:
    """Fit a predictor, ranking images first where no rankings are given and none ship."""
    from harness.base.lines import lock_file
    from harness.datasets import get_dataset
    from harness.datasets.base import SplitName
    from harness.datasets.few_shot import require_images, require_labels
    from harness.golden.rank import rank
    from harness.golden.settings import RankJob
    from harness.golden.store import Source, shipped_rankings
    from harness.learning.predictor import fit
    from zoo.core.recipes import FitConfig, GoldenConfig
    from zoo.loading.towers import load_tower

    config = flags.settings(FitConfig, args)
    golden = flags.settings(GoldenConfig, args, window=2, stride=2)
    files: dict[SplitName, list[Path]] = {"train": list(args.rankings), "val": list(args.val)}
    names = args.dataset or []
    for dataset in names:  # refuses before anything is loaded
        if args.shots is not None:
            require_labels(get_dataset(dataset), f"--shots {args.shots}")
        require_images(get_dataset(dataset), "train", "images to learn from asked for")
    jobs: list[tuple[SplitName, RankJob]] = []
    tower = load_tower(args.model).name if names else ""
    for dataset, split in product(names, flags.SPLITS[:2]):
        path = shipped_rankings(tower, dataset, split, golden.block)
        source = Source.of(get_dataset(dataset), split)
        if path is not None:
            files[split].append(path)
        elif len(source.images):
            jobs.append((split, RankJob(model=args.model, source=source, config=golden, limit=args.limit)))
        else:
            progress.say(f"{source.name} has no {split} images; none decides when to stop")
    if not files["train"] and not jobs:
        raise ValueError("nothing to learn from: give --dataset or --rankings")
    limits = {"shots": args.shots, "block": args.block, "folders": args.images}
    with lock_file(args.output), progress.task("fit predictor, steps", len(jobs) + 1) as update:
        for done, (split, job) in enumerate(jobs, start=1):
            files[split].append(rank(job, progress).path)
            update(done)
        path, tau = fit(args.model, files["train"], files["val"], config, progress=progress, out=args.output, **limits)
    text = f"wrote {path}; Kendall tau on the validation images {tau:.3f}"
    return Shown(parts=(text,), data=json_values({"path": path, "validation_tau": tau}))


def run_fit_prompts(args: Namespace, progress: Progress) -> Shown:
    """Tune prompts, write them, and report time and accuracy."""
    from harness.base.lines import lock_file
    from harness.datasets import get_dataset
    from harness.datasets.few_shot import draw
    from harness.learning.prompts import load_tuner
    from zoo.core.files import write_whole

    config = flags.tune_config(args, args.draws, tokens=args.tokens, count=args.count)
    dataset = get_dataset(args.dataset)
    drawn = draw(dataset, args.shots, config.seed, args.draws)  # refuses before anything is loaded
    row, tuner = load_tuner(args.model, dataset, draws=args.draws, device=args.device, progress=progress)
    begin = time.perf_counter()
    with lock_file(args.output):
        tuned = tuner.tune([row], args.shots, config.seed, config)[row.key]
        seconds = time.perf_counter() - begin
        path = args.output or tuned.file.path
        if args.output is not None:
            write_whole(path, tuned.file.path.read_bytes())
    untuned, top1 = tuner.judge(row, tuned, drawn.val)
    parameters = tuned.file.provenance["parameters"]
    text = (
        f"wrote {path}: {parameters:,} learned parameters, {len(drawn.train)} images, {seconds:.1f} s; top-1 on the "
        f"{len(drawn.val)} validation images {100 * top1:.1f} % (untuned {100 * untuned:.1f} %)"
    )
    data = {"path": path, "parameters": parameters, "seconds": seconds, "train": len(drawn.train)}
    data |= {"val": len(drawn.val), "top1": top1, "untuned": untuned, "draws": args.draws}
    data |= {"steps": config.total_steps, "recipe": config}
    return Shown(parts=(text, config.describe()), data=json_values(data))


def run_fit_recovery(args: Namespace, progress: Progress) -> Shown:
    """Train a recovery, write it, and report time and losses."""
    from harness.learning.recovery import train_recovery
    from harness.learning.settings import Sources
    from zoo.core.recipes import RecoveryConfig
    from zoo.deploy.setup import Setup

    sources, config = flags.settings(Sources, args), flags.settings(RecoveryConfig, args)
    setup = Setup.of(args.model, method=args.method, keep=args.keep)
    if setup.method is None:
        raise ValueError(
            f"--model {setup.model!r}: expected a reduced model, such as clip_vit_s14_tome30, or a dense one with "
            "--method and --keep"
        )
    where = {"out": args.output, "device": args.device, "progress": progress}
    begin = time.perf_counter()
    file = train_recovery(setup.model, setup.method, setup.options, sources, config, **where)
    seconds = time.perf_counter() - begin
    losses = [f"{dataset['name']} {dataset['before']:.4f} to {dataset['after']:.4f}" for dataset in file.datasets]
    worth = "" if file.parameters else "; no change improved every dataset, so the model stays as it is"
    images = sum(dataset["images"] for dataset in file.datasets)
    text = (
        f"wrote {file.path}: {file.parameters:,} parameters, {images} images, "
        f"{seconds:.1f} s; 1 - cosine to dense on images held out: {', '.join(losses)}{worth}"
    )
    data = {"path": file.path, "parameters": file.parameters, "seconds": seconds, "datasets": file.datasets}
    return Shown(parts=(text,), data=json_values(data))


def run_fit_schedule(args: Namespace, progress: Progress) -> Shown:
    """Search a schedule, write it, and report its losses beside the default's."""
    from harness.learning.schedule import search_schedule
    from harness.learning.settings import SearchConfig, Sources

    sources, config = flags.settings(Sources, args), flags.settings(SearchConfig, args)
    where = {"out": args.output, "device": args.device, "progress": progress}
    path, file = search_schedule(args.model, args.method, sources, config, **where)
    numbers = f"reduce_at={file.reduce_at}, schedule={file.schedule}, keep={file.keep:g}"
    worth = "" if file.found else "; none is better on held-out images, so this is the default"
    losses = [f"{dataset['name']} {dataset['before']:.5f} to {dataset['after']:.5f}" for dataset in file.datasets]
    text = (
        f"wrote {path}: {numbers}; {file.candidates} schedules tried in {file.seconds:.1f} s{worth}; at "
        f"{file.cost['reached']:.3f} GFLOPs, 1 - cosine to dense on images held out: {', '.join(losses)}"
    )
    return Shown(parts=(text,), data=json_values({"path": path, "schedule": file}))


def run_fit_budgets(args: Namespace, progress: Progress) -> Shown:
    """Fit budgets, write them, and set them beside fixed keep rates of equal cost."""
    from harness.base.lines import lock_file
    from harness.learning.budgets import fit_budgets, frontier_chart, frontier_table
    from harness.learning.settings import BudgetConfig, Sources
    from harness.report.charts import render
    from zoo.core.files import write_whole

    datasets = tuple(args.datasets or (f"images:{args.images}",))
    sources, config = flags.settings(Sources, args, datasets=datasets), flags.settings(BudgetConfig, args)
    where = {"out": args.output, "device": args.device, "progress": progress}
    with lock_file(args.plot, "--plot"):
        path, file = fit_budgets(args.model, args.method, sources, config, **where)
        if args.plot is not None:
            write_whole(args.plot, render([frontier_chart(file)], form=args.plot.suffix[1:]))
    text = f"wrote {path}: {file.method} at {file.cost:.3f} of dense's GFLOPs on average"
    data = json_values({"path": path, "budgets": file, "plot": args.plot})
    if args.plot is not None:
        text += f"\nwrote {args.plot}"
    return Shown(parts=(frontier_table(file), text), data=data)
