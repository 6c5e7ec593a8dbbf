"""Measure an expectation, which is a file of records, again and say what moved; or write it anew.

The first row of a name in it has its method's defaults; other rows of the name differ from it in their options. So a
default that changes later is seen as a changed setting, and isn't taken for an option.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import git_commit
from harness.apps.movements import EXACT, CheckedRow, Tolerances, other_conditions, show_verdict
from harness.base.lines import require_appendable
from harness.base.table import Shown
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import turns
from harness.golden.store import find_rankings
from harness.measure.bench import Bench
from harness.measure.plan import Plan
from harness.measure.rows import Variant, known_methods, make_row, optimized_row, usual_methods
from harness.measure.timing import BusyError
from harness.models.towers import TIMM, load_clip, named, split_name, text_classifier
from harness.records.averages import protocol, tower_of
from harness.records.record import (
    DENSE,
    GOLDEN,
    MATCHED,
    OPTIMIZED,
    Record,
    Tuning,
    lacks_times,
    read_run,
    record_lines,
)
from harness.records.statistics import LEAST_ROUNDS
from harness.report.changes import ABSENT
from zoo.core.files import fingerprint, write_whole
from zoo.core.messages import expected, tower_name
from zoo.core.reducer import METHODS
from zoo.loading.clip import ClipParts, CompactText
from zoo.loading.sizes import MODELS

FOLDER = Path(__file__).parents[1] / "expected"  # the expectation that ships, a file per dataset
KEEPS, LIMIT, BATCHES = (0.6, 0.3), 48, (1,)
# What no model's name asks for: a fused token, merging in some blocks only, so that others see
# merged tokens without merging, and several reduction points.
SETTINGS = ("evit:fuse=true,keep=0.3", "tome:reduce_at=[2,4,6],keep=0.3", "patchrank:reduce_at=[3,6],keep=0.3")
# Rows of a dataset with captions are few: methods are seen on the others, here only what retrieves.
RETRIEVAL, RETRIEVED = "emoji-captions", ("patchrank:keep=0.3",)
_OURS = ("baselines", "zoo")
_SHARED = ("split", "dtype", "device", "image_count")
# Hashes of what was learned for a row, and how its keep rate was found; nobody asks for them.
_LEARNED = ("predictor", "prompts", MATCHED)
ASKED = ("models", "methods", "keeps", "datasets")  # flags that say which rows
WRITTEN = ("split", "limit", "full", "dtype", "batches")  # flags that say how a new expectation is measured


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """Say what is checked, or with ``update`` written anew; what is None wasn't asked for."""

    files: Sequence[Path] = ()  # expectations; none for the one that ships
    models: Sequence[str] | None = None  # dense names
    methods: Sequence[str] | None = None  # as `parse_choice` reads them
    keeps: Sequence[float] | None = None
    datasets: Sequence[str] | None = None
    # Of a new expectation:
    split: SplitName | None = None
    limit: int | None = None  # images judged per dataset
    full: bool = False
    dtype: str | None = None
    batches: Sequence[int] | None = None  # sizes that are timed
    # Of all:
    device: str | None = None  # None for the expectation's
    rounds: int = 6
    no_latency: bool = False
    update: bool = False

    def __post_init__(self) -> None:
        """Refuse what doesn't go together, and values that would fail late."""
        written, every = (self.flags(names) for names in (WRITTEN, (*ASKED, *WRITTEN)))
        if written and not self.update:
            raise ValueError(f"{written[0]} without --update: a check measures what the expectation did")
        if every and self.update and not self.files:
            raise ValueError(
                f"{every[0]} with --update and no FILE: the shipped benchmark is written whole; "
                "name a FILE for an expectation of your own"
            )
        if self.update and len(self.files) > 1:
            raise ValueError(f"--update of {len(self.files)} files: give one FILE")
        for name, least in (("limit", 1), ("rounds", LEAST_ROUNDS)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"--{name} {value}: expected a number from {least}")

    def flags(self, names: Sequence[str]) -> list[str]:
        """Return the flags among these that were given."""
        words = {"models": "model", "datasets": "dataset"}
        return [f"--{words.get(name, name)}" for name in names if getattr(self, name) not in (None, False)]


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One row on one dataset."""

    method: str  # from ``known_methods``, or one that was registered once
    keep: float
    options: dict[str, Any]  # settings beside the keep rate that aren't the method's defaults
    record: Record | None = None  # what is expected; None of a new row

    @property
    def what(self) -> str:
        """Write the options as `parse_choice` reads them."""
        words = {name: json.dumps(own, separators=(",", ":")) for name, own in self.options.items()}
        return ",".join(f"{name}={word}" for name, word in words.items())

    @property
    def name(self) -> str:
        """Say method and keep rate as models' names do, and what else was asked for."""
        percent = "" if self.method == DENSE else str(round(100 * self.keep))
        return f"{self.method}{percent} {self.what}".rstrip()


class Case(NamedTuple):
    """What is measured on one tower under one set of conditions."""

    tower: str  # dense name with its weight tag
    plan: Plan
    rows: dict[str, list[CheckRow]]  # by dataset, the dense one first

    @classmethod
    def of(cls, tower: str, rows: dict[str, list[CheckRow]], **conditions: Any) -> "Case":
        """Return a case under these conditions, which are fields of `Plan`."""
        return cls(tower, Plan(models=(tower,), methods=(), datasets=tuple(rows), **conditions), rows)


def read_cases(file: Path) -> list[Case]:
    """Read an expectation, a file of records or the folder of a run, and sort its records into cases.

    Raises:
        FileNotFoundError: it isn't there; says how to write one.
        ValueError: a line that is no record, a row that wasn't classified by text or is with recovery, or no dense row
            among a case's.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"no expectation at {str(file)!r}; write one with: patchrank check {shlex.quote(str(file))} --update"
        )
    return cases_of(read_run(file), str(file))


def cases_of(records: Sequence[Record], where: str) -> list[Case]:
    """Sort records into cases; messages name their file by ``where``, see `read_cases`."""
    cases: dict[tuple[Any, ...], dict[str, list[CheckRow]]] = {}
    for record in records:
        if record.shots or record.recovered:
            what = "with recovery" if record.recovered else protocol(record)
            raise ValueError(
                f"{where}: {record.model} on {record.dataset} is {what}; check measures by text, leave such rows out"
            )
        shared = (tower_of(record), *(getattr(record, name) for name in _SHARED))
        rows = cases.setdefault(shared, {}).setdefault(record.dataset, [])
        first = next((r.record for r in rows if (r.method, r.keep) == (record.method, record.keep)), None)
        options = {
            name: value
            for name, value in record.method_config.items()
            if first is not None and name not in _LEARNED and value != first.method_config.get(name, ABSENT)
        }
        row = CheckRow(method=record.method, keep=record.keep, options=options, record=record)
        names = [other.name for other in rows]
        at = names.index(row.name) if row.name in names else len(rows)
        rows[at : at + 1] = [row]  # of one row the newest record counts
    found = []
    for (tower, *values), datasets in cases.items():
        for dataset, rows in datasets.items():
            rows.sort(key=lambda row: row.method != DENSE)
            if rows[0].method != DENSE:
                raise ValueError(f"{where}: no dense row of {tower} on {dataset}, which the others are compared with")
        own = (row.record for rows in datasets.values() for row in rows if row.record)
        batches = tuple(sorted({entry.batch for record in own for entry in record.latency}))
        split, dtype, device, limit = values
        found.append(Case.of(tower, datasets, split=split, dtype=dtype, device=device, limit=limit, batches=batches))
    return found


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``METHOD`` or ``METHOD:OPTION=VALUE,...`` with JSON values, ``keep`` perhaps among the options.

    Raises:
        ValueError: no such method, or options that aren't written like this.
    """
    method, colon, rest = text.partition(":")
    if method not in known_methods():
        raise ValueError(f"method {method!r}: {expected(method, known_methods())}")
    if not colon:
        return method, {}
    if method in (DENSE, GOLDEN):
        raise ValueError(f"--methods {text!r}: {method} has no options")
    try:
        # Other commas belong to a list or an object.
        names = [part.partition("=") for part in re.split(r",(?=\w+=)", rest)]
        return method, {name: json.loads(value) for name, _, value in names}
    except ValueError as error:
        raise ValueError(
            f"--methods {text!r}: expected METHOD:OPTION=VALUE,... with JSON values, such as "
            "evit:fuse=true or tome:reduce_at=[2,5,7],keep=0.3"
        ) from error


def rows_of(choices: Sequence[str], keeps: Sequence[float] = KEEPS) -> list[CheckRow]:
    """Return the rows of these choices: defaults first, then those with options.

    A method with options brings the row of its defaults along, which says what they are.
    """
    rows = [CheckRow(method=DENSE, keep=1.0, options={})]
    for method, options in sorted(map(parse_choice, choices), key=lambda one: bool(one[1])):
        own = {name: value for name, value in options.items() if name != "keep"}
        for keep in (1.0,) if method == DENSE else [options["keep"]] if "keep" in options else keeps:
            rows += [CheckRow(method=method, keep=keep, options=each) for each in ({}, own)]
    return list({row.name: row for row in rows}.values())


def shipped_rows(tower: str, dataset: str) -> list[CheckRow]:
    """Return the rows of the benchmark that ships: of methods of ours, golden ones if there are golden rankings."""
    if get_dataset(dataset).captioned:
        return rows_of(RETRIEVED)
    ranked = find_rankings(tower, get_dataset(dataset).images_of, Plan.split) is not None
    methods = [
        name
        for name in usual_methods()
        if name == DENSE or (ranked if name == GOLDEN else METHODS[name].__module__.split(".")[0] in _OURS)
    ]
    return rows_of((*methods, *SETTINGS))


def shipped_cases() -> list[Case]:
    """Return the expectation that ships, with rows of our methods that it lacks, of which nothing is expected yet.

    Raises:
        FileNotFoundError: none ships.
    """
    files = sorted(FOLDER.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{FOLDER} holds no expectation; in a checkout write it: patchrank check --update")
    cases = cases_of([record for file in files for record in read_run(file)], "harness/expected")
    for case in cases:
        for dataset, rows in case.rows.items():
            names = {row.name for row in rows}
            rows += [row for row in shipped_rows(case.tower, dataset) if row.name not in names]
    return cases


def tower_names(models: Sequence[str]) -> dict[str, str]:
    """Return how to load each tower, by its name in records, which is free of folders."""
    names = {}
    for name in models:
        if name.removeprefix(TIMM).partition(".")[0] in MODELS:  # whose names say it without weights
            arch, tag = split_name(name)
        else:
            _, arch, tag = load_clip(name)
        names[tower_name(arch, tag)] = name
    return names


def check(plan: CheckPlan, bounds: Tolerances, progress: Progress) -> Shown:
    """Measure expectations again and say what moved; exit code 1 if something did.

    Raises:
        ValueError: an expectation that can't be measured, or no such row in it.
        FileNotFoundError: an expectation, weights or images are missing.
    """
    towers = tower_names(plan.models or ())
    cases = [case for file in plan.files for case in read_cases(file)] if plan.files else shipped_cases()
    checked = list(measure(narrow(cases, plan, towers), plan, towers, progress))
    both = [(one.then, one.now) for one in checked if one.then is not None and one.now is not None]
    return show_verdict(checked, bounds, other_conditions(both))


def narrow(cases: Sequence[Case], plan: CheckPlan, towers: Mapping[str, str]) -> list[Case]:
    """Return the cases with the rows that were asked for; the dense one stays.

    Raises:
        ValueError: none is left.
    """
    methods = [parse_choice(text)[0] for text in plan.methods or ()]

    def stays(row: CheckRow) -> bool:
        by_method = not methods or row.method in methods
        return row.method == DENSE or (by_method and row.keep in (plan.keeps or (row.keep,)))

    left = []
    for case in cases:
        datasets = [name for name in case.rows if name in (plan.datasets or (name,))]
        if datasets and case.tower in (towers or (case.tower,)):
            left.append(case._replace(rows={name: list(filter(stays, case.rows[name])) for name in datasets}))
    if not left:
        there = sorted({case.tower for case in cases}), sorted({name for case in cases for name in case.rows})
        raise ValueError(
            f"{' '.join(plan.flags(ASKED))}: the expectation has no such row; it is of "
            f"{' on '.join(', '.join(names) for names in there)}"
        )
    return left


def measure(
    cases: Sequence[Case], asked: CheckPlan, towers: Mapping[str, str], progress: Progress
) -> Iterator[CheckedRow]:
    """Measure cases; earlier records are never used again. ``towers`` are those that aren't loaded by their names."""
    for name in dict.fromkeys(name for case in cases for name in case.rows):
        get_dataset(name)  # what can't be found is refused before anything is measured
    for case in cases:
        batches = () if asked.no_latency else case.plan.batches
        plan = replace(case.plan, device=asked.device or case.plan.device, batches=batches, rounds=asked.rounds)
        for one in _measure_case(case._replace(plan=plan), towers.get(case.tower, case.tower), progress):
            if asked.update and one.now is not None and lacks_times(one.now, plan.latency_rounds):
                raise BusyError("the expectation would lose its times")
            yield one


def _measure_case(case: Case, name: str, progress: Progress) -> Iterator[CheckedRow]:
    """Measure a case, one dataset after the other."""
    parts, arch, tag = load_clip(name)
    methods = (*known_methods(), OPTIMIZED)  # others aren't registered any more
    rows = {row.name: row for own in case.rows.values() for row in own if row.method in methods}
    variants = {name: _variant(parts, arch, tag, row) for name, row in rows.items()}
    bench = Bench(case.plan, parts, list(variants.values()), tag, fingerprint(parts.model.visual), progress)
    for where, own in case.rows.items():
        dataset = get_dataset(where)
        bench.plan, bench.view = _with_enough_images(case.plan, parts, dataset), None
        known = [row for row in own if row.method in methods]
        records = bench.judge(dataset, Tuning(), [variants[row.name] for row in known], {})
        if len(records) < len(known):  # the images have no golden rankings
            known = [row for row in known if row.method != GOLDEN]
        now = dict(zip((row.name for row in known), records, strict=True))
        for row in own:
            yield CheckedRow(case.tower, where, row.name, row.record, now.get(row.name))


def _variant(parts: ClipParts, arch: str, tag: str, row: CheckRow) -> Variant:
    own = {} if row.method in (DENSE, GOLDEN) else row.options
    options, what = {"keep": row.keep, **own}, row.what if own else ""
    if row.method == OPTIMIZED:
        return optimized_row(make_row(parts.model.visual, arch, tag, DENSE, {}))
    return make_row(parts.model.visual, arch, tag, row.method, options, what)


def _with_enough_images(plan: Plan, parts: ClipParts, dataset: Dataset) -> Plan:
    """Return the plan with a limit that leaves as many images as the expectation has.

    A compact text tower can't name every class, and images of those it can't are left out after
    the limit was applied. A smaller subset is part of a larger one, so the number of those judged
    says which they are.
    """
    if plan.limit is None or not dataset.classes or not isinstance(parts.model.text, CompactText):
        return plan
    classifier, left_out = text_classifier(parts, dataset)
    if not left_out:
        return plan
    labels = dataset.split(plan.split).labels
    able = named(classifier)[labels[turns(labels)]]
    return replace(plan, limit=int(np.searchsorted(np.cumsum(able), plan.limit)) + 1)


def update(plan: CheckPlan, progress: Progress) -> Shown:
    """Measure what was asked for, or what the file itself holds, and write it; say what changed.

    Files are written when everything is measured, each whole or not at all.

    Raises:
        ValueError: something that can't be measured.
        FileNotFoundError: weights or images are missing.
        OSError: a FILE can't be written; nothing is measured.
    """
    towers = tower_names(plan.models or Plan.models)
    for file in plan.files:
        if file.is_dir():
            example = str(file / "expected.jsonl")
            raise IsADirectoryError(f"--update of {str(file)!r}, a folder; give a file of records, such as {example!r}")
        require_appendable(file, "--update in")
        there = read_cases(file) if file.exists() else []  # one that can't be read is refused before measuring
        asked = plan.flags((*ASKED, *WRITTEN)) or not there
        cases = [_new_case(plan, tower) for tower in towers] if asked else there
        measured = {file: list(measure(cases, plan, towers, progress))}
    if not plan.files:
        if git_commit() is None:
            raise ValueError(
                "--update without FILE writes the expectation that ships with this package, for which "
                "it takes a checkout; name a FILE for one of your own"
            )
        [tower] = towers
        rows = {name: shipped_rows(tower, name) for name in (*Plan.datasets, RETRIEVAL)}
        case = Case.of(tower, rows, limit=LIMIT, batches=BATCHES)
        by_dataset = groupby(measure([case], plan, towers, progress), attrgetter("dataset"))
        measured = {FOLDER / f"{name}.jsonl": list(own) for name, own in by_dataset}
    pairs = [pair for file, checked in measured.items() for pair in _beside_known(checked, file)]
    for file, checked in measured.items():
        write_whole(file, record_lines(one.now for one in checked if one.now is not None))
    notes = [f"wrote {file}" for file in measured]
    if (git_commit() or "").endswith("-dirty"):
        notes.append(f"measured with uncommitted changes on {git_commit()}")
    return show_verdict(pairs, EXACT, notes, update=True)


def _new_case(plan: CheckPlan, tower: str) -> Case:
    """Return what was asked to be measured on a tower, named with its tag."""
    rows = rows_of(plan.methods or usual_methods(), plan.keeps or KEEPS)
    asked = {name: getattr(plan, name) for name in ("split", "dtype", "device") if getattr(plan, name) is not None}
    batches = BATCHES if plan.batches is None else tuple(plan.batches)
    limit = None if plan.full else plan.limit or LIMIT
    return Case.of(tower, dict.fromkeys(plan.datasets or Plan.datasets, rows), limit=limit, batches=batches, **asked)


def _beside_known(rows: Sequence[CheckedRow], file: Path) -> list[CheckedRow]:
    """Put what was measured beside what the file holds; what it holds alone is gone."""
    known = {
        (case.tower, dataset, row.name): row.record
        for case in (read_cases(file) if file.exists() else ())
        for dataset, own in case.rows.items()
        for row in own
    }
    pairs = [one._replace(then=known.pop(one[:3], None)) for one in rows]
    gone = [CheckedRow(*place, then=record, now=None) for place, record in known.items()]
    return [one for one in (*pairs, *gone) if one.now is not None or one.then is not None]
