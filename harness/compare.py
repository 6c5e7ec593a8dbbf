"""The main job: methods side by side on the same images, as records."""

from collections.abc import Iterator, Sequence

from harness.bench import Bench
from harness.datasets import get_dataset
from harness.few_shot import draw_train
from harness.match import check_match
from harness.plan import Plan
from harness.progress import Progress
from harness.records import Record
from harness.towers import split_name


def compare(plan: Plan, known: Sequence[Record], progress: Progress) -> Iterator[list[Record]]:
    """Measure what the plan asks for and ``known`` lacks.

    Args:
        plan: what to compare.
        known: records of earlier runs; one that fits is used again.
        progress: where to show how far things are.

    Yields:
        For each model and dataset and number of shots the records of all rows, known ones included.

    Raises:
        ValueError: an unknown name, or something that can't be measured.
    """
    check_match(plan)
    datasets = [get_dataset(name) for name in plan.datasets]
    for dataset in datasets:
        for shots in filter(None, plan.shots):
            draw_train(dataset, shots, plan.seed)  # refuses at once what would fail after the work
    for name in plan.models:
        arch, tag = split_name(name)
        bench = Bench.build(plan, arch, tag, progress)
        for dataset in datasets:
            for shots in plan.shots:
                yield bench.measure(dataset, shots, known)
