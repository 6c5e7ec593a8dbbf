"""Answers of studies: the lines of each dataset are judged; or, in a dry run, what that takes is counted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import FINAL
from harness.datasets.few_shot import require_apart, require_labels
from harness.measure.bench import PROBE_SPLITS, Bench
from harness.measure.cost import costs
from harness.measure.plan import Plan
from harness.measure.tuning import tuning_of
from harness.models.towers import Tower, load_tower, no_text
from harness.records.averages import judged_on
from harness.records.record import DTYPES, Record, Tuning
from harness.studies.tables import StudyTable, compare_lines
from harness.studies.workshop import Study, StudyCase, StudyConfig, StudyLine
from zoo.core.files import fingerprint

STOCK = ("kind", "of", "cached", "missing")


def get_tower(model: str) -> Tower:
    """Load a tower that has a text tower; ValueError if it has none."""
    tower = load_tower(model)
    if tower.clip is None:
        raise no_text(tower)
    return tower


def take_stock(study: Study, config: StudyConfig, progress: Progress) -> list[dict[str, Any]]:
    """Return how much of what a study makes and keeps the user's cache has, and how much it lacks; make nothing."""
    counts: dict[tuple[str, str], list[int]] = {}
    for case in _cases(study, config, progress, counts):
        list(study.lines(case))
    return [dict(zip(STOCK, (*key, *found), strict=True)) for key, found in counts.items()]


def answer(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress, folder: Path | None = None
) -> Iterator[tuple[StudyTable, list[Record]]]:
    """Judge the lines of a study on each dataset; yield its table, and the records behind it.

    Rankings and predictors that are missing are made first, and kept. ``folder`` is for outcomes of a run that is
    stopped.

    Raises:
        ValueError: a tower without text tower, or something that can't be made.
    """
    cases = _cases(study, config, progress)
    with progress.task(f"study {study.name}, datasets", len(cases)) as update:
        # All is made before the first is measured: predictors know their tower by the weights as loaded.
        every = [list(study.lines(case)) for case in cases]
        for done, (case, lines) in enumerate(zip(cases, every, strict=True), start=1):
            bench, (dense, *others) = _judge(case, lines, study.foreground, known, folder)
            rows = compare_lines([(o.labels, o.group, own) for o, own in zip(lines, others, strict=True)], dense[0])
            yield StudyTable(title=_title(study, case, dense[0]), dense=dense[0], rows=rows), sum(others, dense)
            bench.outcomes.forget()  # records are written by now
            update(done)


def _cases(
    study: Study, config: StudyConfig, progress: Progress, stock: dict[tuple[str, str], list[int]] | None = None
) -> list[StudyCase]:
    """Return the datasets that a study can do something with, each as a case.

    Raises:
        ValueError: no dataset has the labels that it needs, or one is judged by images that tokens are learned from.
    """
    tower, datasets = get_tower(config.model), [get_dataset(name) for name in config.datasets]
    usable = [dataset for dataset in datasets if dataset.labelled or not study.labels]
    for dataset in datasets:
        if dataset not in usable:
            progress.say(f"left out: {dataset.name} has no labels, which study {study.name} needs")
        elif study.tunes:
            require_apart(dataset, config.split)
    if study.foreground and config.split in PROBE_SPLITS:
        raise ValueError(f"--split {config.split}: probes of foreground are fitted or chosen by it; expected test")
    if not usable:
        require_labels(datasets[0], f"study {study.name}")
    if config.split == FINAL:
        usable = [dataset.released() for dataset in usable]
    config = replace(config, datasets=tuple(dataset.name for dataset in usable))
    weights, keeps, made = fingerprint(tower.vit), config.keeps or study.keeps, dict[Any, Any]()
    return [StudyCase(config, tower, weights, dataset, keeps, progress, made, stock) for dataset in usable]


def _title(study: Study, case: StudyCase, dense: Record) -> str:
    top1 = f"; dense {100 * dense.correct.mean():.1f} %" if dense.labelled else ""
    if (iou := dense.mean("foreground_iou")) is not None:
        top1 += f"; dense IoU {100 * iou:.1f} %"
    images = f"{dense.dataset} ({judged_on(dense)}, {dense.image_count} images)"
    return f"{study.title}: {images}, {case.tower.name}, {dense.dtype}{top1}"


def _judge(
    case: StudyCase, lines: Sequence[StudyLine], foreground: bool, known: Sequence[Record], folder: Path | None
) -> tuple[Bench, list[list[Record]]]:
    """Return the bench, and records: the dense model's, then each line's. Lines without prompts are judged at once."""
    config, tower = case.config, case.tower
    assert tower.clip is not None
    plan = Plan(
        models=(config.model,), methods=(), datasets=(case.dataset.name,), limit=config.limit, split=config.split,
        seed=config.fit.seed, device=config.device, dtype=config.dtype, batches=config.batches, foreground=foreground,
    )  # fmt: skip
    dense = case.untuned(1.0)
    rows = [dense, *{row.key: row for line in lines for row in line.rows}.values()]
    bench = Bench(plan, case.dataset, tower.clip, rows, tower.tag, case.weights, case.progress, known, folder=folder)
    # Other seeds cost the same as the first.
    first = costs([dense, *(line.rows[0] for line in lines)], plan.latency_rounds, case.progress)
    bench.costs = {row.key: first[line.rows[0].key] for line in lines for row in line.rows}
    bench.costs |= {dense.key: first[dense.key]}
    plain = {dense.key: dense} | {row.key: row for line in lines if not line.prompts for row in line.rows}
    judged = dict(zip(plain, bench.judge(Tuning(seed=plan.seed), list(plain.values()), {}), strict=True))
    records = [[judged[dense.key]]]
    for line in lines:
        records.append(_judge_tuned(bench, line) if line.prompts else [judged[row.key] for row in line.rows])
    return bench, records


def _judge_tuned(bench: Bench, line: StudyLine) -> list[Record]:
    """Judge each row of a line by its prompts; what it costs is counted once."""
    first = replace(line.rows[0], vit=line.prompts[0].vit)
    bench.prompted_costs = {}
    if first.prompted:
        cost = costs([first], {}, bench.progress)[first.key]
        bench.prompted_costs = {row.key: cost for row in line.rows}
    records = []
    for row, own in zip(line.rows, line.prompts, strict=True):
        own.vit.to(bench.plan.device, DTYPES[bench.plan.dtype])
        records += bench.judge(tuning_of(own.file), [row], {row.key: own})
    return records
