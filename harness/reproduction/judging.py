"""How long it takes to judge the lines of a study, and which of their records are there."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from harness.bench import Bench
from harness.datasets.base import Dataset
from harness.evaluate import subset
from harness.plan import Plan, tuning_of
from harness.progress import Progress
from harness.records import Record
from harness.reproduction.rehearsal import Rehearsal
from harness.reproduction.work import alone, before, whole
from harness.studies.base import Line
from harness.studies.run import bench_of, untuned
from harness.tuning import Tuned
from harness.variants import Variant
from harness.view import View

JUDGE = "judge"


class MeasuringError(Exception):
    """Something would have to be measured."""


class Unmeasured(View):
    """A dataset that nothing is run on."""

    def outcomes(self, *_args: Any, **_told: Any) -> NoReturn:
        """Refuse.

        Raises:
            MeasuringError: always.
        """
        raise MeasuringError


def note_judging(
    shop: Rehearsal, dataset: Dataset, lines: Sequence[Line], known: Sequence[Record]
) -> None:
    """Note how the lines of a dataset would be judged.

    Args:
        shop: what made the lines, and notes it.
        dataset: whose images they are.
        lines: all of a study.
        known: records of earlier runs.
    """
    of = shop.pace.geometry
    images = len(subset(dataset.split(shop.config.split), shop.config.limit))
    plain = [row for line in lines if not line.prompts for row in line.rows]
    total = 1 + sum(len(line.rows) for line in lines)
    bench = _bench(shop, dataset, lines) if known else None
    work: list[int] = []  # multiply-adds for an image, each time that it is read
    if (
        bench is None
        or _stands_on_nothing(shop, plain)
        or not _answered(lambda: untuned(bench, dataset, lines, known))
    ):
        work.append(whole(of) + sum(alone(of, row) for row in plain))
    done = 0 if work else 1 + len(plain)
    seen = {row.key for row in plain} if work else set()
    for row, one in (
        (r, o) for line in lines for r, o in zip(line.rows, line.prompts, strict=False)
    ):
        if (
            bench is not None
            and not shop.missing(one)
            and _answered(
                lambda row=row, one=one: _tuned(bench, dataset, row, one, known)  # type: ignore[misc]
            )
        ):
            done += 1
        elif "v" in _tokens(shop, one):
            work.append(whole(of) + alone(of, row, shop.config.tune.count))
        elif row.key not in seen:
            work.append(whole(of) + alone(of, row))
            seen.add(row.key)
    seconds = 0.0
    if work:
        first = [line.rows[0] for line in lines]
        timed = _timed_images(shop.config.batches)
        each = whole(of) + sum(before(of, row) + alone(of, row) for row in first)
        seconds = images * len(work) * shop.pace.reading(dataset)
        seconds += shop.pace.passing(images * sum(work) + timed * each)
        seconds += (1 + len(first)) * shop.pace.counting()
    told = f"{dataset.name} {shop.config.split}, {images} images"
    shop.note(JUDGE, told, total, done, "rows", seconds)


def _timed_images(batches: Sequence[int]) -> int:
    """Return how many images a model is timed on; see ``harness.latency.cost.costs``."""
    return sum(batch * (1 + Plan.rounds * (4 if batch < 8 else 1)) for batch in batches)


def _bench(shop: Rehearsal, dataset: Dataset, lines: Sequence[Line]) -> Bench:
    bench = bench_of(shop, dataset, lines)
    told = (bench.plan, bench.parts, bench.rows[0].model, bench.tag, shop.weights, Progress())
    bench.view = Unmeasured(dataset, *told)
    return bench


def _stands_on_nothing(shop: Rehearsal, rows: Sequence[Variant]) -> bool:
    """Tell whether a row has a place holder for predictor or rankings."""
    return any(shop.missing(row.vit) or shop.missing(row.rankings) for row in rows)


def _tuned(
    bench: Bench, dataset: Dataset, row: Variant, one: Tuned, known: Sequence[Record]
) -> list[Record]:
    return bench.judged(dataset, tuning_of(one.file), [row], {row.key: one}, known)


def _tokens(shop: Rehearsal, one: Tuned) -> str:
    """Return which tokens prompts have, or would have."""
    if shop.missing(one):
        return shop.recipes[id(one)].tokens
    return str(one.file.recipe["tokens"])


def _answered(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except MeasuringError:
        return False
    return True
