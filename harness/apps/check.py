"""Measure the rows of an expectation (a file of records) again and list the values that moved; or write a new file.

The first row of a name in it has its method's defaults; other rows of the name differ from it in their options. So a
default that changes later is seen as a changed setting, and isn't taken for an option.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import git_commit
from harness.base.lines import require_appendable
from harness.base.table import Shown, Table, count_of
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset
from harness.datasets.few_shot import turns
from harness.datasets.text_features import named, text_classifier
from harness.golden.store import find_rankings
from harness.measure.bench import Bench, Costs
from harness.measure.exports import ExportCache, runtime_row
from harness.measure.rows import Variant, known_methods, make_row, usual_methods
from harness.measure.settings import Plan
from harness.measure.timing import BusyError
from harness.records.averages import protocol, tower_of
from harness.records.record import (
    DENSE,
    GOLDEN,
    MATCHED,
    RECORDS,
    Record,
    Tuning,
    lacks_times,
    read_run,
    record_lines,
)
from harness.records.statistics import LEAST_ROUNDS
from harness.report.changes import (
    ABSENT,
    EXACT,
    FIXED,
    Pair,
    Tolerances,
    describe_conditions,
    find_movements,
    movement_text,
)
from zoo.core.digests import fingerprint
from zoo.core.files import write_whole
from zoo.core.reducer import METHODS
from zoo.core.settings import check_fields, tower_name
from zoo.deploy.runtime import RUNTIMES
from zoo.loading.clip import ClipParts, CompactText
from zoo.loading.sizes import MODELS
from zoo.loading.towers import TIMM, Tower, load_tower, split_name

FOLDER = Path(__file__).parents[1] / "expected"  # the expectation that ships, a file per dataset
KEEPS = (0.6, 0.3)
# What no model's name asks for: a fused token, merging in some blocks only, so that others see
# merged tokens without merging, and several reduction points.
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("evit", {"fuse": True}),
    ("tome", {"reduce_at": [2, 4, 6]}),
    ("patchrank", {"reduce_at": [3, 6]}),
)
_OURS = ("baselines", "zoo")
# Hashes of what was learned for a row, and how its keep rate was found; nobody asks for them.
_LEARNED = ("predictor", "prompts", MATCHED)


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """Say which rows are checked, or with ``update`` written anew; None takes all of a kind."""

    files: Sequence[Path] = ()  # expectations; none for the one that ships
    models: Sequence[str] | None = None  # dense names
    methods: Sequence[str] | None = None
    keeps: Sequence[float] | None = None
    datasets: Sequence[str] | None = None
    device: str | None = None  # None for the expectation's
    rounds: int = 6
    no_latency: bool = False
    update: bool = False

    def __post_init__(self) -> None:
        check_fields(self, rounds=f"[{LEAST_ROUNDS}, inf)")

    @property
    def narrowing(self) -> str:
        """Flags that take some of the rows."""
        names = {"model": self.models, "methods": self.methods, "keeps": self.keeps, "dataset": self.datasets}
        return " ".join(f"--{name}" for name, values in names.items() if values)


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One row on one dataset."""

    dataset: str
    method: str  # one of ``known_methods``, or one that was registered once
    keep: float
    options: dict[str, Any] = field(default_factory=dict)  # settings beside the keep rate that aren't defaults
    record: Record | None = None  # what is expected; None of a new row

    @property
    def what(self) -> str:
        """The options in words."""
        return ",".join(f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in self.options.items())

    @property
    def name(self) -> str:
        """Method and keep rate as in models' names, with the options."""
        percent = "" if self.method == DENSE else str(round(100 * self.keep))
        return f"{self.method}{percent} {self.what}".rstrip()


class Case(NamedTuple):
    """The rows of one tower under one set of conditions."""

    tower: str  # dense name with its weight tag
    plan: Plan  # whose one model is how the tower is loaded
    rows: list[CheckRow]  # of each dataset the dense one first
    file: Path | None  # with what is expected; None of the expectation that ships, which has one per dataset


Checked = tuple[Case, CheckRow, Record | None]  # a row as it is now; None where it can't be made any more


def cases_of(records: Sequence[Record], file: Path | None) -> list[Case]:
    """Sort the records of a file into cases, the newest record of each row.

    Raises:
        ValueError: a row that wasn't classified by text or is with recovery, or no dense row among a case's.
    """
    where = file or "harness/expected"
    cases: dict[tuple[Any, ...], dict[tuple[str, str], CheckRow]] = {}
    for record in records:
        if record.shots or record.recovered:
            condition = "with recovery" if record.recovered else protocol(record)
            row_name = f"{record.model} on {record.dataset}"
            raise ValueError(f"{where}: {row_name} is {condition}; check measures by text, leave such rows out")
        shared = (tower_of(record), record.split, record.precision, record.device, record.image_count)
        rows, place = cases.setdefault(shared, {}), (record.dataset, record.method, record.keep)
        first = next((row.record for row in rows.values() if (row.dataset, row.method, row.keep) == place), None)
        options = {
            name: value
            for name, value in record.method_config.items()
            if first is not None and name not in _LEARNED and value != first.method_config.get(name, ABSENT)
        }
        row = CheckRow(dataset=record.dataset, method=record.method, keep=record.keep, options=options, record=record)
        rows[row.dataset, row.name] = row
    sorted_cases = []
    for (tower, split, precision, device, limit), rows in cases.items():
        datasets = tuple(dict.fromkeys(dataset for dataset, _ in rows))
        for dataset in datasets:
            if (dataset, DENSE) not in rows:
                raise ValueError(f"{where}: no dense row of {tower} on {dataset}, which the others are compared with")
        batches = tuple(sorted({entry.batch for row in rows.values() if row.record for entry in row.record.latency}))
        plan = Plan(
            models=(tower,), methods=(), datasets=datasets, split=split, precision=precision, device=device,
            limit=limit, batches=batches,
        )  # fmt: skip
        sorted_cases.append(Case(tower, plan, sorted(rows.values(), key=lambda row: row.method != DENSE), file))
    return sorted_cases


def shipped_rows(tower: str, dataset: str) -> list[CheckRow]:
    """Return the rows of the benchmark that ships: of methods of ours, golden ones if there are golden rankings."""
    row = partial(CheckRow, dataset=dataset)
    dense = row(method=DENSE, keep=1.0)
    if get_dataset(dataset).captioned:  # methods are seen on the others, here only what retrieves
        return [dense, row(method="patchrank", keep=0.3)]
    ranked = find_rankings(tower, get_dataset(dataset).images_of, Plan.split) is not None
    methods = [
        name
        for name in usual_methods()
        if name != DENSE and (ranked if name == GOLDEN else METHODS[name].__module__.split(".")[0] in _OURS)
    ]
    usual = [row(method=name, keep=keep) for name in methods for keep in KEEPS]
    return [dense, *usual, *(row(method=name, keep=0.3, options=options) for name, options in SETTINGS)]


def shipped_cases() -> list[Case]:
    """Return the expectation that ships, with the missing rows of our methods, which expect nothing yet."""
    cases = cases_of([record for file in sorted(FOLDER.glob("*.jsonl")) for record in read_run(file)], None)
    for case in cases:
        names = {(row.dataset, row.name) for row in case.rows}
        rows = [row for dataset in case.plan.datasets for row in shipped_rows(case.tower, dataset)]
        case.rows.extend(row for row in rows if (row.dataset, row.name) not in names)
    return cases


def tower_names(models: Sequence[str]) -> dict[str, str]:
    """Return how to load each tower, by its name in records, which is free of folders."""
    names = {}
    for name in models:
        ours = name.removeprefix(TIMM).partition(".")[0] in MODELS  # whose names say it without weights
        names[tower_name(*split_name(name)) if ours else load_tower(name).name] = name
    return names


def check(plan: CheckPlan, bounds: Tolerances, progress: Progress) -> Shown:
    """Measure expectations again and list the values that moved; exit code 1 if there are any.

    With ``plan.update`` nothing is judged: the files are written when everything is measured, each whole.

    Raises:
        ValueError: an expectation that can't be measured, or no such row in it.
        FileNotFoundError: an expectation, weights or images are missing.
        OSError: a file can't be written; nothing is measured.
    """
    files = [path / RECORDS if path.is_dir() else path for path in plan.files]
    for file in files if plan.update else ():
        require_appendable(file, "--update in")
    cases = [case for file in files for case in cases_of(read_run(file), file)] if files else shipped_cases()
    cases = narrow(cases, plan)
    if plan.update and not plan.files and git_commit() is None:
        reason = (
            "--update without FILE writes the expectation that ships with this package, for which it takes a checkout"
        )
        raise ValueError(f"{reason}; name a FILE for one of your own")
    checked = list(measure(cases, plan, progress))
    if not plan.update:
        both = [Pair(then=row.record, now=now) for _, row, now in checked if row.record is not None and now is not None]
        notes = describe_conditions(both, ("expected", "now"), (*FIXED, "git_commit"), ["device"])
        return show_verdict(checked, bounds, notes)
    records: dict[Path, list[Record]] = {}
    for case, row, now in checked:
        records.setdefault(case.file or FOLDER / f"{row.dataset}.jsonl", []).extend([] if now is None else [now])
    for file, written in records.items():
        write_whole(file, record_lines(written))
    notes = [f"wrote {file}" for file in records]
    if (git_commit() or "").endswith("-dirty"):
        notes.append(f"measured with uncommitted changes on {git_commit()}")
    return show_verdict(checked, EXACT, notes, update=True)


def show_verdict(
    checked: Sequence[Checked], bounds: Tolerances, notes: Sequence[str], *, update: bool = False
) -> Shown:
    """Lay out the values that moved, a table per tower; with ``update`` nothing is judged."""
    keys = ("tower", "dataset", "row", "quantity", "expected", "now", "by", "allowed")
    moved = [
        dict(zip(keys, (case.tower, row.dataset, row.name, *movement), strict=True))
        for case, row, now in checked
        for movement in find_movements(row.record, now, bounds)
    ]
    what = "changed" if update else "moved"
    heads = ("row", "quantity", "expected", "now", f"{what} by", "allowed")
    lines: dict[str, list[list[str]]] = {}
    for line in moved:
        values = [movement_text(line[key]) for key in keys[4:]]
        lines.setdefault(line["tower"], []).append([f"{line['dataset']} {line['row']}", line["quantity"], *values])
    tables = [Table.of(f"{what}: {tower}", heads, rows, words=heads) for tower, rows in lines.items()]
    hit = len({(line["tower"], line["dataset"], line["row"]) for line in moved})
    where = f"{count_of(len(moved), 'value')} {what} in {hit} of {len(checked)} rows"
    passed = f"check passed: nothing moved in {count_of(len(checked), 'row')}"
    summary = f"expectation written: {where}" if update else f"check failed: {where}" if moved else passed
    code = 0 if update or not moved else 1
    data = {"passed": not code, "updated": update, "rows": len(checked), "moved": moved, "notes": list(notes)}
    return Shown(parts=(*tables, *notes, summary), data=data, code=code)


def narrow(cases: Sequence[Case], plan: CheckPlan) -> list[Case]:
    """Return the cases with the rows that were asked for; the dense one stays.

    Raises:
        ValueError: none is left of a method or at all, or not all are left and the file is to be written.
    """

    def stays(row: CheckRow) -> bool:
        by_method = not plan.methods or row.method in plan.methods
        by_keep = row.keep in (plan.keeps or (row.keep,))
        return (row.method == DENSE or (by_method and by_keep)) and row.dataset in (plan.datasets or (row.dataset,))

    towers = tower_names(plan.models or ())
    left = [
        case._replace(rows=rows, plan=replace(case.plan, models=(towers.get(case.tower, case.tower),)))
        for case in cases
        if case.tower in (towers or (case.tower,)) and (rows := list(filter(stays, case.rows)))
    ]
    known = {row.method for case in left for row in case.rows}
    if set(plan.methods or known) - known or not left:
        every = sorted({case.tower for case in cases}), sorted({row.dataset for case in cases for row in case.rows})
        known_rows = " on ".join(", ".join(names) for names in every)
        raise ValueError(f"{plan.narrowing}: the expectation has no such row; it is of {known_rows}")
    before, after = (sum(len(case.rows) for case in some) for some in (cases, left))
    if plan.update and after < before:
        raise ValueError(f"{plan.narrowing} with --update takes {after} of {before} rows, and a file is written whole")
    return left


def measure(cases: Sequence[Case], asked: CheckPlan, progress: Progress) -> Iterator[Checked]:
    """Measure cases; earlier records are never used again."""
    for name in dict.fromkeys(row.dataset for case in cases for row in case.rows):
        get_dataset(name)  # what can't be found is refused before anything is measured
    for case in cases:
        batches = () if asked.no_latency else case.plan.batches
        plan = replace(case.plan, device=asked.device or case.plan.device, batches=batches, rounds=asked.rounds)
        for row, now in _measure_rows(case.rows, plan, progress):
            if asked.update and now is not None and lacks_times(now, plan.timed_batches):
                raise BusyError("the expectation would lose its times")
            yield case, row, now


def _measure_rows(
    every: Sequence[CheckRow], plan: Plan, progress: Progress
) -> Iterator[tuple[CheckRow, Record | None]]:
    """Measure rows of the plan's tower, one dataset after the other."""
    tower = load_tower(plan.models[0])
    clip = tower.require_clip()
    methods = (*known_methods(), *RUNTIMES)  # others aren't registered any more
    unique = {row.name: row for row in every if row.method in methods}  # the same on several datasets
    runtimes = [row.method for row in every if row.method in RUNTIMES]
    exports = ExportCache.for_runtimes(tower, runtimes, progress.say)
    variants = {name: _variant(tower, row, exports) for name, row in unique.items()}
    weights, costs = fingerprint(tower.vit), Costs()
    for where in dict.fromkeys(row.dataset for row in every):
        dataset, rows = get_dataset(where), [row for row in every if row.dataset == where]
        enough = _with_enough_images(plan, clip, dataset)
        bench = Bench(enough, dataset, tower, list(variants.values()), weights, progress, costs=costs)
        known = [row.name for row in rows if row.name in variants]
        records = bench.judge(Tuning(), [variants[name] for name in known], {})
        if len(records) < len(known):  # the images have no golden rankings
            known = [row.name for row in rows if row.name in variants and row.method != GOLDEN]
        now = dict(zip(known, records, strict=True))
        yield from ((row, now.get(row.name)) for row in rows)


def _variant(tower: Tower, row: CheckRow, exports: ExportCache | None) -> Variant:
    if row.method in RUNTIMES:
        assert row.record is not None
        return runtime_row(make_row(tower, DENSE, {}), row.method, row.record.method_config["precision"], exports)
    options = {} if row.method in (DENSE, GOLDEN) else row.options
    return make_row(tower, row.method, {"keep": row.keep, **options}, row.what if options else "")


def _with_enough_images(plan: Plan, clip: ClipParts, dataset: Dataset) -> Plan:
    """Return the plan with a limit that leaves as many images as the expectation has.

    Images of classes that a compact text tower can't name are left out after the limit was applied.
    """
    if plan.limit is None or not dataset.classes or not isinstance(clip.model.text, CompactText):
        return plan
    classifier, left_out = text_classifier(clip, dataset)
    if not left_out:
        return plan
    labels = dataset.split(plan.split).labels
    able = named(classifier)[labels[turns(labels)]]
    return replace(plan, limit=int(np.searchsorted(np.cumsum(able), plan.limit)) + 1)
