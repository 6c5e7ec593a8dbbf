"""Make a table or figure of the paper: its study, one dataset after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.progress import Progress
from harness.records import Record
from harness.reproduction.base import Reproduction
from harness.studies.config import StudyConfig
from harness.studies.run import make
from harness.studies.sheet import Sheet


def under_its_conditions(recipe: Reproduction, config: StudyConfig) -> StudyConfig:
    """Return a table's own keep rates and settings on top of those that were asked for."""
    datasets = config.datasets[:1] if recipe.single else config.datasets
    told = {"keeps": recipe.keeps, "datasets": datasets, **recipe.changes}
    return replace(config, **told)


def groups(recipe: Reproduction, config: StudyConfig) -> list[StudyConfig]:
    """Return what the study is made of at a time: one dataset, whose predictors are its own.

    All at once where lines learn from other datasets, too.
    """
    if recipe.joint:
        return [config]
    return [replace(config, datasets=(name,)) for name in config.datasets]


def produce(
    recipe: Reproduction, config: StudyConfig, known: Sequence[Record], progress: Progress
) -> Iterator[tuple[Sheet, list[Record]]]:
    """Measure what a table needs and ``known`` lacks.

    Args:
        recipe: the table or figure.
        config: on what, see ``under_its_conditions``.
        known: records of earlier runs.
        progress: where to show how far things are.

    Yields:
        What the study found on a dataset, and the records behind it.

    Raises:
        ValueError: an unknown name, a tower without text tower, or something that can't be made.
    """
    for part in groups(recipe, config):
        yield from make(recipe.study, part, known, progress)
