"""The main job: methods side by side on the same images, as records."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.datasets.few_shot import draw, draw_train, require_apart, require_labels
from harness.measure.bench import Bench, Tracer
from harness.measure.plan import Plan, check_plan, tuning_of
from harness.measure.rows import require_rows, require_towers
from harness.measure.tuning import Tuned
from harness.records.conditions import GOLDEN, PROMPTS
from harness.records.record import Record
from zoo.core.precision import best_precision
from zoo.loading.learned_files import PromptFile


def compare(
    plan: Plan,
    known: Sequence[Record],
    progress: Progress,
    tracer: Tracer | None = None,
    *,
    release: bool = False,
) -> Iterator[list[Record]]:
    """Measure what the plan asks for and ``known`` lacks; ``tracer`` stores single images.

    A ``release`` may read the split "final".

    Yields:
        For each model and dataset and number of shots the records of all rows, known ones included;
        those of one seed after those of another.

    Raises:
        ValueError: an unknown name, or something that can't be measured.
    """
    check_plan(plan)
    require_towers(plan.recoveries, plan.models)
    _require_predictors(plan)
    datasets = [get_dataset(name) for name in plan.datasets]
    pairs = _pairs([dataset.released() for dataset in datasets] if release else datasets, plan, progress)
    if GOLDEN in plan.methods and any(plan.tunings(shots)[0].visual for shots in plan.shots):
        progress.say(
            f"no golden rows with --tokens {plan.tokens} and shots: golden rankings are the "
            "tower's without learned tokens"
        )
    if plan.dtype == "bfloat16" != best_precision(plan.device):
        progress.say("this processor has no bfloat16 of its own: it takes many times as long as float32")
    for name in plan.models:
        bench = replace(Bench.build(plan, name, progress, known), tracer=tracer)
        for dataset, shots in pairs:
            yield bench.measure(dataset, shots, known)
            if tracer is not None:  # what was measured is kept by now
                tracer.flush()


def _require_predictors(plan: Plan) -> None:
    """Refuse methods whose predictor is missing, of all towers before the first is loaded."""
    for name in plan.models:
        require_rows(name, product(plan.methods, plan.keeps))


def _pairs(datasets: Sequence[Dataset], plan: Plan, progress: Progress) -> list[tuple[Dataset, int]]:
    """Return the datasets with the numbers of shots that are measured on each; 0 alone without labels."""
    pairs = [(dataset, shots) for dataset in datasets for shots in plan.shots if dataset.labelled or not shots]
    if not pairs:
        require_labels(datasets[0], f"--shots {plan.shots[0]}")
    for dataset in datasets:
        if any(plan.shots) and not dataset.labelled:
            progress.say(f"{dataset.name} has no labels, so nothing is learned from shots of it")
    for dataset, shots in pairs:
        # Refuses at once what would fail after the work.
        if shots and plan.tokens in PROMPTS:
            require_apart(dataset, plan.split)
            draw(dataset, shots, plan.seed)
        elif shots:
            draw_train(dataset, shots, plan.seed)
    return pairs


def judge(plan: Plan, prompts: Path, progress: Progress) -> tuple[list[Record], list[Record]]:
    """Measure the plan's last row with prompts from a file, and without them beside the dense tower.

    Returns:
        The records without prompts, the dense tower's first, and the one with prompts. The dense tower has none in the
        second: it would have to be judged with prompts of its own.

    Raises:
        ValueError: an unknown name, or prompts of another tower or of other classes.
        FileNotFoundError: no such file.
    """
    dataset = get_dataset(plan.datasets[0])
    file = PromptFile.read(prompts)
    file.require_classes(dataset.classes)
    tuning = tuning_of(file)
    _require_predictors(plan)
    bench = Bench.build(plan, plan.models[0], progress)
    row = bench.rows[-1]
    tuned = {row.key: Tuned.of(row.vit, file)}  # refuses before anything is measured
    return bench.measure(dataset, 0, []), bench.judged(dataset, tuning, [row], tuned)
