"""The main job: methods side by side on the same images, as records."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.bench import Bench
from harness.datasets import get_dataset
from harness.few_shot import draw, draw_train, require_apart
from harness.match import check_match
from harness.plan import PROMPTS, Plan, check_tunings, tuning_of
from harness.progress import Progress
from harness.records import Record
from harness.traces import Tracer
from harness.tuning import Tuned
from harness.variants import GOLDEN
from zoo.prompts import PromptFile


def compare(
    plan: Plan, known: Sequence[Record], progress: Progress, tracer: Tracer | None = None
) -> Iterator[list[Record]]:
    """Measure what the plan asks for and ``known`` lacks.

    Args:
        plan: what to compare.
        known: records of earlier runs; one that fits is used again.
        progress: where to show how far things are.
        tracer: stores what rows do to single images; None to store nothing.

    Yields:
        For each model and dataset and number of shots the records of all rows, known ones included;
        those of one seed after those of another.

    Raises:
        ValueError: an unknown name, or something that can't be measured.
    """
    check_match(plan)
    check_tunings(plan)
    datasets = [get_dataset(name) for name in plan.datasets]
    for dataset in datasets:
        for shots in filter(None, plan.shots):
            # Refuses at once what would fail after the work.
            if plan.tokens in PROMPTS:
                require_apart(dataset, plan.split)
                draw(dataset, shots, plan.seed)
            else:
                draw_train(dataset, shots, plan.seed)
    if GOLDEN in plan.methods and any(plan.tunings(shots)[0].visual for shots in plan.shots):
        progress.say(
            f"no golden rows with --tokens {plan.tokens} and shots: golden rankings are the "
            "tower's without learned tokens"
        )
    for name in plan.models:
        bench = replace(Bench.build(plan, name, progress), tracer=tracer)
        for dataset in datasets:
            for shots in plan.shots:
                yield bench.measure(dataset, shots, known)


def judge(plan: Plan, prompts: Path, progress: Progress) -> list[Record]:
    """Measure the plan's last row with prompts from a file.

    The dense tower is no row beside it: it would have to be judged with prompts of its own.

    Args:
        plan: one model, one method, one keep rate and one dataset.
        prompts: the file.
        progress: where to show how far things are.

    Raises:
        ValueError: an unknown name, or prompts of another tower or of other classes.
        FileNotFoundError: no such file.
    """
    dataset = get_dataset(plan.datasets[0])
    file = PromptFile.read(prompts)
    file.require_classes(dataset.classes)
    tuning = tuning_of(file)
    bench = Bench.build(plan, plan.models[0], progress)
    row = bench.rows[-1]
    return bench.judged(dataset, tuning, [row], {row.key: Tuned.of(row.vit, file)})
