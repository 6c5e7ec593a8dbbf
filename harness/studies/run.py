"""Make a study: judge its lines on each dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.bench import Bench
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.latency.cost import costs
from harness.plan import DTYPES, Plan, Tuning, tuning_of
from harness.progress import Progress
from harness.records import Record
from harness.studies.base import Line, Study
from harness.studies.config import StudyConfig
from harness.studies.sheet import Sheet, entries
from harness.studies.workshop import Workshop
from harness.towers import Tower, load_tower
from harness.variants import DENSE, Variant


def make(
    study: Study, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Judge the lines of a study on each dataset.

    Rankings and predictors that are missing are made first, and kept.

    Args:
        study: what to find out.
        config: on what.
        known: records of earlier runs; used again if all that a dataset needs are there.
        progress: where to show how far things are.

    Yields:
        The table of a dataset, and the records behind it.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    datasets = [get_dataset(name) for name in config.datasets]
    shop = Workshop(config, speaking(config.model), progress)
    # All before the first is measured: predictors know their tower by the weights as loaded.
    made = [(dataset, study.lines(shop, dataset)) for dataset in datasets]
    for dataset, lines in made:
        bench = bench_of(shop, dataset, lines)
        records = _judged(bench, dataset, lines, known)
        yield _sheet(study, lines, records, shop), [r for group in records for r in group]


def speaking(model: str) -> Tower:
    """Load a tower that has a text tower.

    Raises:
        ValueError: an unknown name, or a tower without one.
    """
    tower = load_tower(model)
    if tower.clip is None:
        raise ValueError(
            f"{tower.name} has no text tower here, so accuracy can't be judged; use --model "
            "clip_vit_s14, or open_clip:ARCH/PRETRAINED, which brings its text tower"
        )
    return tower


def bench_of(shop: Workshop, dataset: Dataset, lines: Sequence[Line]) -> Bench:
    """Bring the dense model and the lines of a dataset to the bench, in this order."""
    config, tower = shop.config, shop.tower
    assert tower.clip is not None
    arch, _, tag = tower.name.partition(".")
    dense = Variant(model=arch, method=DENSE, keep=1.0, vit=tower.vit, config={})
    plan = Plan(
        models=(config.model,),
        methods=(),
        datasets=(dataset.name,),
        limit=config.limit,
        split=config.split,
        seed=config.fit.seed,
        device=config.device,
        dtype=config.dtype,
        batches=config.batches,
    )
    rows = [dense, *(row for line in lines for row in line.rows)]
    return Bench.around(plan, tower.clip, rows, tag, shop.weights, shop.progress)


def untuned(
    bench: Bench, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]
) -> list[Record]:
    """Judge the dense model and the lines without prompts; return a record of each row."""
    rows = [bench.rows[0], *(row for line in lines if not line.prompts for row in line.rows)]
    return bench.judged(dataset, Tuning(seed=bench.plan.seed), rows, {}, known)


def _judged(
    bench: Bench, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]
) -> list[list[Record]]:
    """Return the dense model's record, and then those of each line."""
    bench.costs = _costs(bench, lines)
    text = iter(untuned(bench, dataset, lines, known))
    found = [[next(text)]]
    for line in lines:
        if line.prompts:
            found.append(_tuned(bench, dataset, line, known))
        else:
            found.append([next(text) for _ in line.rows])
    return found


def _tuned(bench: Bench, dataset: Dataset, line: Line, known: Sequence[Record]) -> list[Record]:
    """Judge each row of a line by its prompts; what it costs is counted once."""
    first = replace(line.rows[0], vit=line.prompts[0].vit)
    bench.prompted_costs = {}
    if first.prompted:
        spent = costs([first], (), 1, bench.progress)[first.key]
        bench.prompted_costs = {row.key: spent for row in line.rows}
    found = []
    for row, own in zip(line.rows, line.prompts, strict=True):
        own.vit.to(bench.plan.device, DTYPES[bench.plan.dtype])
        found += bench.judged(dataset, tuning_of(own.file), [row], {row.key: own}, known)
    return found


def _costs(bench: Bench, lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Count, and maybe time, one row of each line; its other seeds cost the same."""
    dense, told = bench.rows[0], (bench.plan.batches, bench.plan.rounds, bench.progress)
    found = costs([dense, *(line.rows[0] for line in lines)], *told)
    same = {row.key: found[line.rows[0].key] for line in lines for row in line.rows}
    return {dense.key: found[dense.key]} | same


def _sheet(
    study: Study, lines: Sequence[Line], records: Sequence[Sequence[Record]], shop: Workshop
) -> Sheet:
    told = [(o.labels, o.asked, group) for o, group in zip(lines, records[1:], strict=True)]
    first = records[0][0]
    title = (
        f"{study.title}: {first.dataset} ({first.split}, {first.image_count} images), "
        f"{shop.tower.name}, {first.dtype}; dense {100 * first.top1:.1f} %"
    )
    return Sheet(study=study.name, title=title, dense=first, entries=entries(told, first))
