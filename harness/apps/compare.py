"""The main job: rows of dense towers side by side on one dataset after the other, as records."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.datasets.few_shot import draw, draw_train, require_labels, require_unseen
from harness.learning.prompts import Tuner, tuning_of
from harness.measure.bench import Bench
from harness.measure.plan import check_plan
from harness.measure.rows import Tuned, require_rows
from harness.measure.settings import Plan
from harness.records.record import GOLDEN, PROMPTS, Record
from zoo.core.recipes import TuneConfig
from zoo.core.settings import best_precision, tower_name
from zoo.loading.learned_files import PromptFile, RecoveryFile
from zoo.loading.towers import split_method, without_folders


def compare(
    plan: Plan, known: Sequence[Record], progress: Progress, *, release: bool = False, folder: Path | None = None
) -> Iterator[list[Record]]:
    """Measure the rows of a plan that ``known`` lacks; raise ValueError for a plan that can't be measured.

    A ``release`` may read the split "final". Outcomes of a run that is stopped are kept in ``folder``, for the next.

    Yields:
        For each model, dataset and number of shots the records of all rows, known ones included, seed by seed.
    """
    check_plan(plan)
    require_models(plan)
    datasets = [get_dataset(name) for name in plan.datasets]
    pairs = _pairs([dataset.released() for dataset in datasets] if release else datasets, plan, progress)
    if GOLDEN in plan.methods and any(plan.tunings(shots)[0].visual for shots in plan.shots):
        progress.say(
            f"no golden rows with --tokens {plan.tokens} and shots: golden rankings are the "
            "tower's without learned tokens"
        )
    if plan.precision == "bfloat16" != best_precision(plan.device):
        progress.say("this processor has no bfloat16 of its own: it takes many times as long as float32")
    done = 0
    with progress.task("models x datasets", len(plan.models) * len(pairs)) as update:
        for name in plan.models:
            bench = Bench.build(plan, name, pairs[0][0], progress, known, folder)
            for dataset, group in groupby(pairs, key=lambda pair: pair[0]):
                bench, tuner = replace(bench, dataset=dataset), None
                for _, shots in group:
                    if shots and tuner is None and plan.tokens in PROMPTS:
                        tuner = Tuner(bench.tower, dataset, weights=bench.weights, progress=progress)
                    yield _measure(bench, shots, tuner)
                    update(done := done + 1)
                bench.outputs.forget()


def _measure(bench: Bench, shots: int, tuner: Tuner | None) -> list[Record]:
    """Return the records of all rows, seed by seed; a tuner learns their prompts."""
    plan, records = bench.plan, list[Record]()
    for tuning in plan.tunings(shots):
        rows, prompts = [row for row in bench.rows if row.method != GOLDEN or not tuning.visual], dict[str, Tuned]()
        if tuning.prompted:
            assert tuner is not None
            config = TuneConfig(tokens=plan.tokens, count=plan.num_tokens, seed=tuning.seed)
            prompts = tuner.tune(bench.real_rows, shots, tuning.seed, config)
        records += bench.judge(tuning, rows, prompts)
    return records


def _pairs(datasets: Sequence[Dataset], plan: Plan, progress: Progress) -> list[tuple[Dataset, int]]:
    """Return the datasets with the numbers of shots that are measured on each; only 0 without labels."""
    pairs = [(dataset, shots) for dataset in datasets for shots in plan.shots if dataset.labelled or not shots]
    if not pairs:
        require_labels(datasets[0], f"--shots {plan.shots[0]}")
    for dataset in datasets:
        if any(plan.shots) and not dataset.labelled:
            progress.say(f"{dataset.name} has no labels, so nothing is learned from shots of it")
    for dataset, shots in pairs:
        # Refuses at once what would fail after the work.
        if shots and plan.tokens in PROMPTS:
            require_unseen(dataset, plan.split)
            draw(dataset, shots, plan.seed)
        elif shots:
            draw_train(dataset, shots, plan.seed)
    return pairs


def judge(plan: Plan, prompts: Path, progress: Progress) -> tuple[list[Record], list[Record]]:
    """Measure the plan's last row without prompts, beside the dense tower, and then alone with those of a file.

    The dense tower would have to be judged with prompts of its own. Raises ValueError for prompts of another tower or
    of other classes.
    """
    dataset = get_dataset(plan.datasets[0])
    file = PromptFile.read(prompts)
    file.require_classes(dataset.classes)
    tuning = tuning_of(file)
    require_models(plan)
    bench = Bench.build(plan, plan.models[0], dataset, progress)
    row = bench.rows[-1]
    tuned = {row.key: Tuned.of(row.vit, file)}  # refuses before anything is measured
    return _measure(bench, 0, None), bench.judge(tuning, [row], tuned)


def require_models(plan: Plan) -> None:
    """Refuse, before a tower is loaded, recoveries without keep rate, and those of no tower of the plan.

    Raises ValueError for these, and what `require_rows` does.
    """
    known = {without_folders(split_method(name)[0]).partition(".")[0] for name in plan.models}
    for path in plan.recoveries:
        file = RecoveryFile.read(path)
        if file.options.get("keep") is None:
            raise ValueError(f"recovery {str(path)!r} is of a model without keep rate, which no row can show")
        if file.model not in known:
            name = tower_name(file.model, file.tag)
            raise ValueError(f"recovery {str(path)!r} is of {name}, which is not measured: add it to --model")
    for name in plan.models:
        require_rows(name, product(plan.methods, plan.keeps))
