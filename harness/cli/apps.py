"""Subcommands of applications: choose, embed, search, serve, export, show, check, push."""

import contextlib
import json
import math
import shlex
import tempfile
import threading
from argparse import Namespace
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.table import Part, Shown, Table, estimate_cell, json_values
from harness.base.terminal import Progress
from harness.cli import flags
from harness.cli.command import PROGRAM

if TYPE_CHECKING:
    from torch import Tensor

    from harness.apps.vectors.embed import Embedded
    from harness.apps.vectors.settings import EmbedJob
    from harness.apps.vectors.source import PictureSource, TextSource
    from harness.records.statistics import Interval
    from zoo.deploy.export import FeatureAgreement
    from zoo.deploy.setup import Setup

CALIBRATION = 300  # pictures that int8 is calibrated with at most
LAYOUTS = {"triton": "onnxruntime", "ovms": "openvino"}  # other people's servers, and the runtime of each


def run_choose(args: Namespace, progress: Progress) -> Shown:
    """Search, write the setup with its certificate, draw the frontier, and show how the setup is used."""
    from harness.apps.choose import choose, selection_chart, selection_table
    from harness.base.lines import lock_file
    from harness.measure.candidates import ChooseConfig
    from harness.measure.fidelity import SetupBounds
    from harness.measure.lab import DENSE_RATIO, TOTAL
    from harness.report.charts import render
    from zoo.core.files import write_whole

    bounds, config = flags.settings(SetupBounds, args), flags.settings(ChooseConfig, args)
    if args.output.suffix != ".json":  # by which --model tells a setup from a name
        raise ValueError(f"--output {str(args.output)!r}: expected a name that ends with '.json'")
    dataset = args.dataset or f"images:{args.images}"
    with lock_file(args.output), lock_file(args.plot, "--plot"):
        selection = choose(args.model, dataset, bounds, config, fresh=args.fresh, progress=progress)
        if not selection.why:
            selection.setup.write(args.output)
        if args.plot is not None:
            write_whole(args.plot, render([selection_chart(selection)], form=args.plot.suffix[1:]))
    setup, last, parts = selection.setup, selection.judged[-1], list[Part]([selection_table(selection)])
    path, time, chosen = None if selection.why else args.output, last.time, last.candidate
    frontier = [row.plain() for row in selection.frontier]
    data = json_values({"path": path, "why": selection.why, "setup": setup, "frontier": frontier, "plot": args.plot})
    if args.plot is not None:
        parts.append(f"wrote {args.plot}")
    total = f"{_faster(time[TOTAL])} dense in eager float32"
    rates = f"{time['images_per_s']:.1f} images/s against {time['dense_images_per_s']:.1f} at batch {time['batch']}"
    if selection.why:
        nearest = f"the nearest is {chosen}, {total}"
        parts.append(f"nothing meets {bounds.words}; {nearest}: {selection.why}")
        return Shown(parts=tuple(parts), data=data, code=1)
    fastest = f"the fastest dense tower that meets the bounds ({time['fastest_dense']})"
    if setup.method is not None:
        text = f"{chosen} is {_faster(time[DENSE_RATIO])} {fastest}, and {total}"
    else:
        text = f"Don't reduce: {chosen} is {total}"
        reductions = [row for row in selection.judged if row.candidate.method is not None and row.passed]
        for row in reductions:
            slow = "but slower than what is chosen" if row.pays else "not clearly faster"
            text += f"; {row.candidate} is {_faster(row.time[DENSE_RATIO])} {fastest}, {slow}"
        if not reductions:
            text += "; no reduction was found that meets the bounds"
    wrote = f"wrote {args.output} in {setup.certificate['seconds']:.0f} s; {bounds.words}: met, by 95 % intervals"
    return Shown(parts=(*parts, f"{text} ({rates})", wrote, _describe_use(setup, args)), data=data)


def _faster(ratio: "Interval") -> str:
    """Say how many times as fast something is, by a ratio of times with its interval."""
    return f"{1 / ratio.estimate:.2f} [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}] times as fast as"


def _describe_use(setup: "Setup", args: Namespace) -> str:
    """Return how a setup is used: commands that run what was judged, and some Python."""
    from zoo.deploy.runtime import find_runtime

    file = shlex.quote(str(args.output))
    prefix, _, path = (args.dataset or f"images:{args.images}").partition(":")
    pictures = shlex.quote(path) if prefix in ("images", "folder") else "FOLDER"
    device = "" if args.device == "cpu" else f" --device {shlex.quote(args.device)}"
    lines = [
        f"# vectors, by {setup.runtime} in {setup.precision}",
        f"{PROGRAM} embed {pictures} --model {file}{device} --output vectors",
    ]
    if suffix := find_runtime(setup.runtime).suffix:
        lines += [f"# a copy of the file for {setup.runtime}", f"{PROGRAM} export --model {file} --output m{suffix}"]
    python = ["# Python", "from zoo.deploy.setup import Setup", f"model = Setup.read({str(args.output)!r}).build()"]
    return "\n".join(["", *lines, *python])


def _file_precision(runtime: str, precision: str) -> str:
    """Return the precision of an exported file: the model's, or float32 where the runtime hasn't that."""
    from zoo.deploy.runtime import find_runtime

    return precision if precision in find_runtime(runtime).precisions else "float32"


def _require_layout(layout: str | None, setup: "Setup", runtime: str) -> None:
    if layout is None:
        return
    if LAYOUTS[layout] != runtime:
        raise ValueError(f"--layout {layout} with --runtime {runtime}: expected {LAYOUTS[layout]}")
    if setup.budgets is not None:
        raise ValueError(
            f"--layout {layout} with --budgets: these servers run one file per model; leave the layout out, "
            "or serve the model by: patchrank serve"
        )


def run_export(args: Namespace, progress: Progress) -> Shown:
    """Write a file, and keep it if its runtime gives the model's features."""
    from harness.base.lines import lock_file
    from zoo.deploy.export import DisagreementError, export_model, find_file_runtime, read_description
    from zoo.deploy.runtime import ONNXRUNTIME

    runtime, path = args.runtime or LAYOUTS.get(args.layout, ONNXRUNTIME), args.output
    setup = flags.setup_of(args, None if args.precision is None else runtime)
    if setup.exported is not None:
        return _copy_exported(setup, args)
    lower = setup.precision
    _require_layout(args.layout, setup, runtime)
    if args.precision is None:
        setup = replace(setup, precision=_file_precision(runtime, lower))
    suffix = find_file_runtime(runtime, setup.precision).suffix  # before anything is loaded
    if args.layout is not None:
        path = args.output / "1" / f"model{suffix}"
    tower = setup.load(random_weights=args.random_weights)
    images, calibration = _export_images(tower.preprocess, args, progress)
    origin = setup.describe(tower) | {"random_weights": args.random_weights}
    where = f"for {runtime} in {setup.precision}"
    progress.say(f"{setup.name}: writing a file {where}, then checking it on {len(images)} images")
    data: dict[str, Any] = {"runtime": runtime, "precision": setup.precision}
    options = data | {"batches": args.batches, "least_cosine": args.least_cosine, "facts": origin}
    options |= {"recipe": args.recipe, "calibration": calibration}
    with lock_file(path), progress.task("checked", len(images) * len(args.batches)) as tick:
        try:
            data["agreement"] = export_model(tower.vit, path, images, tick=tick, **options)
        except DisagreementError as error:
            data |= {"path": None, "problem": str(error), "agreement": error.agreement}
    table = _agreement_table(setup, runtime, data["agreement"])
    if "problem" in data:
        return Shown(parts=(table, data["problem"]), data=json_values(data), code=1)
    size = path.stat().st_size
    text = f"wrote {path} ({size:,} bytes) and {path.name}.json, which says what it is"
    if names := read_description(path).budget_files:
        whole = sum(path.with_name(name).stat().st_size for name in names)
        text += f", and {len(names)} files of the budgets ({whole:,} bytes), {names[0]} to {names[-1]}"
    if args.layout is not None:
        text += f", and {_write_layout(args.layout, path)}"
    if setup.precision != lower:
        text += f"; it is in {setup.precision}, as {runtime} has no {lower}"
    return Shown(parts=(table, text), data=json_values(data | {"path": path, "bytes": size}))


def _export_images(preprocess: Any, args: Namespace, progress: Progress) -> "tuple[Tensor, Tensor | None]":
    """Return pictures (n, 3, H, W) to check a file on, and others to calibrate with, None without --calibrate."""
    from harness.datasets.few_shot import stack_images, subset
    from harness.golden.store import Source

    sources = {"check": (flags.source_of(args, progress), flags.limit_of(args))}
    if args.calibrate is not None:
        sources["calibrate"] = (Source.folder(args.calibrate), CALIBRATION)
        for note in sources["calibrate"][0].notes:
            progress.say(note)
    parts = []
    for purpose, (source, limit) in sources.items():
        split = subset(source.images, limit)
        if len(split) < 2:
            raise ValueError(f"{len(split)} images to {purpose} with of {source.name!r}: expected two at least")
        parts.append(stack_images(split, preprocess))
    return parts[0], parts[1] if len(parts) > 1 else None


def _copy_exported(setup: "Setup", args: Namespace) -> Shown:
    """Copy the exported file of a setup, the very one that was chosen, with the files that belong to it."""
    from harness.base.lines import lock_file
    from zoo.deploy.export import copy_exported, find_file_runtime

    if name := next((name for name in ("runtime", "layout", "calibrate", "recipe") if getattr(args, name)), None):
        raise ValueError(f"--model {args.model!r} with --{name}: its file is copied as it is; leave the flag out")
    find_file_runtime(setup.runtime, setup.precision, path=args.output, loading=True)
    setup.load_exported()
    with lock_file(args.output):
        path = copy_exported(Path(str(setup.exported)), args.output)
    data = {"runtime": setup.runtime, "precision": setup.precision, "recipe": setup.recipe, "path": path}
    text = (
        f"wrote {path} ({path.stat().st_size:,} bytes) and {path.name}.json: the file that {args.model} was chosen by"
    )
    return Shown(parts=(text,), data=json_values(data))


def _write_layout(server: str, model: Path) -> Path:
    """Write what a server reads beside the folder of a model's version, and return its path.

    Raise ValueError for a file that isn't OpenVINO Model Server's where its file should be.
    """
    from zoo.core.files import write_whole
    from zoo.core.json_reader import strict_json
    from zoo.deploy.runtimes.openvino import OpenVino

    description, folder = strict_json(Path(f"{model}.json").read_bytes()), model.absolute().parents[1]
    if server == "triton":
        lines = [
            f"name: {json.dumps(folder.name)}",
            'backend: "onnxruntime"',
            "max_batch_size: 64",
            f'input {{ name: "images" data_type: TYPE_FP32 dims: {[3, *description["image_size"]]} }}',
            f'output {{ name: "features" data_type: TYPE_FP32 dims: [{description["features"]}] }}',
            "dynamic_batching { max_queue_delay_microseconds: 2000 }",
        ]
        path, content = folder / "config.pbtxt", "\n".join(lines)
    else:
        path = folder.parent / "config.json"  # of all models of the repository
        try:
            whole = strict_json(path.read_bytes()) if path.exists() else {"model_config_list": []}
            kept = [model for model in whole["model_config_list"] if model["config"]["name"] != folder.name]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is no file of OpenVINO Model Server ({error!r}); move it away") from error
        properties = OpenVino().properties(description["precision"], description.get("recipe"))
        config = {"name": folder.name, "base_path": folder.name, "plugin_config": properties}
        content = json.dumps({**whole, "model_config_list": [*kept, {"config": config}]}, indent=2)
    write_whole(path, f"{content}\n".encode())
    return path


def _agreement_table(setup: "Setup", runtime: str, agreement: "FeatureAgreement") -> Table:
    """Lay out how a file's features agree with the eager model's."""
    heads = ("runtime", "precision", "images", "cosine", "5 % quantile", "largest difference", "same nearest")
    cosines = f"{agreement.cosine_mean:.5f}", f"{agreement.cosine_q05:.5f}"
    shares = f"{agreement.deviation:.1e}", f"{100 * agreement.same_nearest:.1f} %"
    row = (runtime, setup.precision, str(agreement.images), *cosines, *shares)
    title = f"{setup.name} against eager float32, {' and '.join(map(str, agreement.batches))} images per call"
    return Table.of(title, heads, [row], words=heads[:2])


def run_embed(args: Namespace, progress: Progress) -> Shown:
    """Embed pictures or texts; name the folder, the bad items, and the bottleneck."""
    from harness.apps.vectors.embed import embed
    from harness.apps.vectors.settings import EmbedJob

    job = flags.settings(EmbedJob, args, setup=flags.setup_of(args, args.runtime), source=_source(args, progress))
    done = embed(job, progress)
    counts = {"total": done.total, "embedded": done.total - done.bad, "bad": done.bad}
    data = {"path": done.path, **counts, "errors": done.errors, "per_s": done.rates, "binds": done.binds}
    return Shown(parts=_embedded_lines(done, job), data=json_values(data))


def _source(args: Namespace, progress: Progress) -> "PictureSource | TextSource":
    from harness.apps.vectors.source import EXPECTED, TextSource, open_source

    if args.texts is None:
        if not args.source:
            raise ValueError(f"nothing to embed: give {EXPECTED}; or --texts FILE")
        return open_source(args.source, column=args.column, progress=progress)
    if args.source or args.column is not None:
        other = args.source[0] if args.source else "--image-column"
        raise ValueError(f"--texts {str(args.texts)!r} with {other!r}: embed pictures and texts by two commands")
    return TextSource(args.texts)


def _embedded_lines(done: "Embedded", job: "EmbedJob") -> tuple[str, ...]:
    """Return a line of speeds, and a line with the folder and the number of bad items."""
    lines = []
    if done.binds is not None:
        count = job.processes * (job.workers or 1)
        processes = f"{count} processes decode" if count > 1 else f"{count} process decodes"
        decoding = processes if count else "the model's process decodes"
        verbs = {"decoding": decoding, "copying": "copying takes", "model": "the model embeds"}
        rates = {name: f"{float(format(rate, '.3g')):,g} {job.kind}/s" for name, rate in done.rates.items()}
        line = ", ".join(f"{verbs[name]} {rate}" for name, rate in rates.items())
        lines.append(f"{done.binds} is the bottleneck: {line}" if len(done.rates) > 1 else line)
    text = f"wrote {done.path}: {done.total - done.bad:,} of {done.total:,} {job.kind}"
    if done.bad:
        text += f"; {done.bad:,} can't be embedded; {done.errors} lists them"
    return (*lines, text)


def run_search(args: Namespace, progress: Progress) -> Shown:
    """Search embeddings and show the nearest ones."""
    from harness.apps.vectors.embed import read_vectors
    from harness.apps.vectors.search import nearest, query_vector, write_sheet
    from harness.apps.vectors.settings import IMAGES
    from harness.apps.vectors.source import open_source
    from harness.base.lines import lock_file

    if (args.query is None) != args.losses:
        raise ValueError("give words or a picture to search by, or --losses" + ", not both" * args.losses)
    if args.losses:
        return _show_losses(args, progress)
    provenance = next(read_vectors(args.vectors)).provenance
    if args.sheet is not None and provenance.kind != IMAGES:
        raise ValueError(f"--sheet {str(args.sheet)!r}: these embeddings are of texts, not of pictures")
    source = None if args.sheet is None else open_source(provenance.source, column=provenance.column)
    with lock_file(args.sheet, "--sheet"):
        vector = query_vector(args.query, provenance, progress.say, device=args.device, file=args.model)
        result = nearest(args.vectors, vector, args.top, progress.say)
        if source is not None:
            write_sheet(args.sheet, args.query, result, source)
    name = "path" if provenance.kind == IMAGES else "text"
    rows = [(str(hit.rank), f"{hit.score:.4f}", hit.name) for hit in result.hits]
    below = provenance.source[0]
    some = "" if result.searched == provenance.count else f"{result.searched:,} of "
    text = f"searched {some}{provenance.count:,} {provenance.kind}, embedded by {provenance.setup.name}"
    if name == "path" and Path(below).is_dir():
        text += f"; paths are below {below}"
    parts: list[Part] = [Table.of(f"nearest to {args.query}", ("rank", "score", name), rows, words=(name,)), text]
    if source is not None:
        parts.append(f"wrote {args.sheet}")
    hits = [{"rank": hit.rank, "score": hit.score, "id": hit.id, name: hit.name} for hit in result.hits]
    data = {"query": args.query, "source": provenance.source, "model": provenance.setup.name}
    data |= {"searched": result.searched, "of": provenance.count, "missing": result.missing, "hits": hits}
    return Shown(parts=tuple(parts), data=data | {"sheet": None if source is None else str(args.sheet)})


def _show_losses(args: Namespace, progress: Progress) -> Shown:
    """Lay out the loss of each storage."""
    from harness.apps.vectors.search import measure_losses

    count, losses = measure_losses(args.vectors, progress.say)
    headings = ("stored as", "bytes", "mean cosine", "10 nearest found, %")
    shares = [estimate_cell(loss.overlap, lambda value: f"{100 * value:.1f}") for loss in losses]
    cells = [(loss.stored, str(loss.bytes), f"{loss.cosine:.4f}") for loss in losses]
    rows = [(*row, share) for row, share in zip(cells, shares, strict=True)]
    title = f"{count:,} embeddings against float32, each searched for among the others"
    table = Table.of(title, headings, rows, words=headings[:1])
    return Shown(parts=(table,), data=json_values({"count": count, "losses": losses}))


def run_serve(args: Namespace, progress: Progress) -> Shown:
    """Serve a model until Ctrl-C or SIGTERM."""
    if missing := [name for name in ("ray", "fastapi", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'clip-patchrank[ray]'")
    from harness.apps.serve import ServeConfig, serving

    setup, config = flags.setup_of(args, args.runtime), flags.settings(ServeConfig, args)
    progress.say(f"{setup.name}: starting, replicas: {config.replicas}, threads of each: {config.cores}")
    with serving(setup, config) as served:
        address = f"{served['url']}/v1/embeddings"
        progress.say(f"{setup.name} is served at {address}; Ray's metrics are at {served['metrics']}")
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            threading.Event().wait()
    return Shown(parts=("stopped; requests that were accepted are answered",), data=served)


def run_show(args: Namespace, _progress: Progress) -> Shown:
    """Draw images beside the importance of their patches."""
    from harness.apps.show import ShowConfig, find_subjects, show
    from harness.report.pictures import IMAGE
    from zoo.core.recipes import GoldenConfig
    from zoo.deploy.setup import Setup

    setup = Setup.of(args.model, budgets=None if args.budgets is None else str(args.budgets), cost=args.cost)
    subjects = [load for place in args.images for load in find_subjects(place)]
    config = flags.settings(ShowConfig, args, keeps=tuple(args.keeps), golden=flags.settings(GoldenConfig, args))
    sheet = show(setup, subjects, config, args.output, args.device)
    data = {"path": str(args.output), "columns": [IMAGE, *sheet.columns], "notes": sheet.notes}
    return Shown(parts=(*sheet.notes, f"wrote {args.output}"), data=json_values(data))


def run_check(args: Namespace, progress: Progress) -> Shown:
    """Check expectations, or write them anew."""
    from harness.apps.check import CheckPlan, check
    from harness.report.changes import Tolerances

    untimed = {"slower": math.inf} if args.no_latency else {}
    plan, bounds = flags.settings(CheckPlan, args), flags.settings(Tolerances, args, **untimed)
    return check(plan, bounds, progress)


def run_push(args: Namespace, progress: Progress) -> Shown:
    """Write a model with its card, and upload it unless only a folder is asked for."""
    from harness.apps import push
    from harness.records.record import read_run

    push.check_repo(args.to)
    records = [] if args.records is None else read_run(args.records)
    model = push.load_publishable(args.model, args.predictor, args.prompts, args.recovery)
    uploads = args.folder is None and not args.dry_run
    push.check_license(model, args.accept_license, uploads=uploads)
    rows = [] if args.records is None else model.find_rows(records, args.records)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        card = push.write_folder(model, folder, args.to, rows, args.format)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        where = None if args.folder is None else str(args.folder)
        if uploads:
            progress.say(f"uploading {sum(sizes.values()):,} bytes to {args.to}")
            where = push.upload(folder, args.to, private=args.private)
    files = ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes.items())
    text = f"wrote {where}: {files}"
    if where is None:
        text = f"nothing was written or uploaded; these files would be: {files}\n\n{card}"
    return Shown(parts=(text,), data={"where": where, "bytes_by_file": sizes, "card": card})
