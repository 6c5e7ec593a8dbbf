"""What a table would take: its steps, and how long each lasts on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from harness.datasets.base import Dataset
from harness.progress import Progress
from harness.records import Record
from harness.reproduction.base import Reproduction
from harness.reproduction.judging import note_judging
from harness.reproduction.pace import Pace
from harness.reproduction.rehearsal import Rehearsal, Step
from harness.reproduction.run import groups
from harness.shown import json_values
from harness.solve import KeepSolver
from harness.studies.config import StudyConfig
from harness.studies.run import speaking

CAPTION = (
    "Times are from a short measurement on this machine and device. Fits and tunings mostly stop "
    "earlier. What is there already costs nothing; tables share it through the user's cache."
)


def rehearse(
    recipe: Reproduction,
    config: StudyConfig,
    datasets: Sequence[Dataset],
    known: Sequence[Record],
    progress: Progress,
) -> list[Step]:
    """Return the steps of a table, those that are done already among them.

    Args:
        recipe: the table or figure.
        config: on what it would be made.
        datasets: those of it that can be read.
        known: records of earlier runs.
        progress: where to show how far things are.
    """
    if not datasets:
        return []
    named = {dataset.name: dataset for dataset in datasets}
    tower = speaking(config.model)
    pace = Pace(tower, config)
    found: list[Step] = []
    solvers: dict[str, KeepSolver] = {}
    parts = groups(recipe, replace(config, datasets=tuple(named)))
    with progress.task(f"what {recipe.name} takes", len(parts)) as update:
        for done, part in enumerate(parts, start=1):
            if known and done > 1:  # looking for records brought it to device and precision
                tower = speaking(config.model)
            shop = Rehearsal(part, tower, pace, solvers)
            made = [(named[name], recipe.study.lines(shop, named[name])) for name in part.datasets]
            for dataset, lines in made:
                note_judging(shop, dataset, lines, known)
            found += shop.steps.values()
            update(done)
    return found


def plan_data(
    recipe: Reproduction, model: str, steps: Sequence[Step], missing: Mapping[str, str]
) -> dict[str, Any]:
    """Return steps with their sum, and why datasets can't be read, as JSON values."""
    seconds = sum(step.seconds for step in steps)
    told: dict[str, Any] = {
        "name": recipe.name,
        "model": model,
        "seconds": seconds,
        "steps": list(steps),
    }
    found: dict[str, Any] = json_values(told | {"missing": missing})
    return found


def plan_table(
    recipe: Reproduction, model: str, steps: Sequence[Step], missing: Mapping[str, str]
) -> Table:
    """Lay out steps with their sum, and datasets that can't be read with the reason."""
    seconds = sum(step.seconds for step in steps)
    table = Table(title=f"{recipe.title}; {model}: {lasting(seconds)}", caption=CAPTION)
    for head in ("step", "of", "to do", "there", "takes"):
        table.add_column(head, justify="left" if head in ("step", "of") else "right")
    for step in steps:
        left = step.total - step.done
        to_do = f"{left:,} {step.unit}" if left else "–"
        table.add_row(step.kind, step.of, to_do, f"{step.done:,}", lasting(step.seconds))
    for name, reason in missing.items():
        table.add_section()
        table.add_row("missing", f"{name}: {reason}", "?", "", "?")
    table.add_section()
    table.add_row("all", "but what is missing" if missing else "", "", "", lasting(seconds))
    return table


def lasting(seconds: float) -> str:
    """Return a time with the unit that suits it."""
    if not seconds:
        return "–"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
