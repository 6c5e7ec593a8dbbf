"""Measure a reduced benchmark again and say what is no longer as expected, or write it anew."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness import git_commit
from harness.apps.check.cases import (
    BATCHES,
    FOLDER,
    KEEPS,
    LIMIT,
    Case,
    CheckRow,
    MethodChoice,
    cases_of,
    complete,
    read_expectation,
    rows_of,
    shipped_case,
    shipped_files,
)
from harness.apps.check.verdict import EXACT, CheckedRow, Tolerances, Verdict, find_movements, other_conditions
from harness.base.lines import require_appendable
from harness.base.terminal import Progress
from harness.datasets import get_dataset, kind_of, list_datasets
from harness.datasets.base import Dataset, SplitName
from harness.datasets.few_shot import turns
from harness.measure.bench import Bench
from harness.measure.plan import Plan
from harness.measure.rows import Variant, golden_row, known_methods, reduced_row, usual_methods
from harness.models.towers import TIMM, load_clip, split_name, text_classifier
from harness.records.conditions import DENSE, GOLDEN, Tuning
from harness.records.record import record_lines
from zoo.core.files import fingerprint, write_whole
from zoo.core.messages import tower_name
from zoo.core.reducer import ReducerConfig
from zoo.loading.clip import ClipParts, CompactText
from zoo.loading.sizes import MODELS
from zoo.ranking.golden import GoldenConfig
from zoo.towers.vit import ReducedViT

# Flags that only say what is written; a check measures what the expectation did.
WRITTEN = ("split", "limit", "full", "dtype", "batches")
ASKED = ("models", "methods", "keeps", "datasets")

Known = dict[tuple[str, str, str], CheckRow]  # by tower, dataset and row


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """Say what is checked, or with ``update`` written anew; what is None wasn't asked for."""

    files: Sequence[Path] = ()  # expectations; none for the one that ships
    models: Sequence[str] | None = None  # dense names
    methods: Sequence[str] | None = None  # as ``MethodChoice.of`` reads them
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
    rounds: int = 2
    no_latency: bool = False
    update: bool = False

    def __post_init__(self) -> None:
        """Refuse what doesn't go together, and values that would fail late."""
        written, every = (self.named(names) for names in (WRITTEN, (*ASKED, *WRITTEN)))
        if written and not self.update:
            what = "a check measures what the expectation did"
            raise ValueError(f"{written[0]} without --update: {what}")
        if every and self.update and not self.files:
            raise ValueError(
                f"{every[0]} with --update and no FILE: the shipped benchmark is written whole; "
                "name a FILE for an expectation of your own"
            )
        if every and self.update and len(self.files) > 1:
            raise ValueError(
                "--update of several FILEs with other rows: give one FILE, or no flags that say what is measured"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: expected a number from 1")

    def named(self, names: Sequence[str]) -> list[str]:
        """Return the flags among these that were given."""
        words = {"models": "model", "datasets": "dataset"}
        return [f"--{words.get(name, name)}" for name in names if getattr(self, name) not in (None, False)]


def check(plan: CheckPlan, bounds: Tolerances, progress: Progress) -> Verdict:
    """Measure expectations again and judge what moved.

    Raises:
        ValueError: an expectation that can't be measured, or no such row in it.
        FileNotFoundError: an expectation, weights or images are missing.
    """
    towers = tower_names(plan.models or ())
    records = [r for file in plan.files or shipped_files() for r in read_expectation(file)]
    where = ", ".join(map(str, plan.files)) or "harness/expected"
    cases = cases_of(records, where)
    if not plan.files:  # what ships must have a row for every method of ours
        cases = [complete(case) for case in cases]
    outcomes = _measure_cases(narrow(cases, plan, towers), plan, towers, progress)
    changes = [one for outcome in outcomes for one in find_movements(outcome, bounds)]
    return Verdict(rows=len(outcomes), moved=tuple(changes), notes=_notes(outcomes))


def _notes(outcomes: Sequence[CheckedRow]) -> tuple[str, ...]:
    """Say once which conditions differ, and in how many rows."""
    pairs = [(one.row.record, one.now) for one in outcomes]
    both = [(then, now) for then, now in pairs if then is not None and now is not None]
    counts = Counter(text for then, now in both for text in other_conditions(then, now))
    return tuple(
        text if count == len(both) else f"{text} ({count} of {len(both)} rows)" for text, count in counts.items()
    )


def narrow(cases: Sequence[Case], plan: CheckPlan, towers: Mapping[str, str]) -> list[Case]:
    """Return the cases with the rows that were asked for; the dense one stays.

    Raises:
        ValueError: none is left, or a dataset isn't found by its name.
    """
    methods = [MethodChoice.of(text).method for text in plan.methods or ()]

    def stays(row: CheckRow) -> bool:
        by_method = not methods or row.method in methods
        return row.method == DENSE or (by_method and row.keep in (plan.keeps or (row.keep,)))

    cases_left = []
    for case in cases:
        rows = {
            dataset: list(filter(stays, there))
            for dataset, there in case.rows.items()
            if dataset in (plan.datasets or (dataset,))
        }
        if rows and case.tower in (towers or (case.tower,)):
            for dataset in rows.keys() - {*list_datasets(), *(plan.datasets or ())}:
                if prefix := kind_of(dataset):
                    raise ValueError(
                        f"dataset {dataset!r} of the expectation is made from your files, and "
                        f"records hold no path; say where they are: --dataset {prefix}:PATH"
                    )
            cases_left.append(replace(case, rows=rows))
    if not cases_left:
        towers_there = sorted({case.tower for case in cases})
        datasets = sorted({dataset for case in cases for dataset in case.rows})
        raise ValueError(
            f"{' '.join(plan.named(ASKED))}: the expectation has no such row; it is of "
            f"{', '.join(towers_there)} on {', '.join(datasets)}"
        )
    return cases_left


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


def _measure_cases(
    cases: Sequence[Case], plan: CheckPlan, towers: Mapping[str, str], progress: Progress
) -> list[CheckedRow]:
    outcomes: list[CheckedRow] = []
    for case in cases:
        batches = () if plan.no_latency else case.batches
        own = replace(case, device=plan.device or case.device, batches=batches)
        outcomes += measure(own, plan.rounds, progress, towers.get(case.tower))
    return outcomes


def measure(case: Case, rounds: int, progress: Progress, name: str | None = None) -> Iterator[CheckedRow]:
    """Measure a case, one dataset after the other; earlier records are never used again.

    ``name`` is the tower's, as it is loaded, if it isn't the case's (``local-dir:FOLDER``).

    Raises:
        ValueError: an unknown name, or something that can't be measured.
        FileNotFoundError: weights or images are missing.
    """
    parts, arch, tag = load_clip(name or case.tower)
    dense = parts.model.visual
    variants: dict[str, Variant] = {}
    methods = known_methods()  # others aren't registered any more
    for row in (row for rows in case.rows.values() for row in rows if row.method in methods):
        if row.name not in variants:
            variants[row.name] = _variant(dense, arch, tag, row)
    plan = Plan(
        models=(case.tower,), methods=(), datasets=tuple(case.rows), limit=case.image_count,
        split=case.split, device=case.device, dtype=case.dtype, batches=case.batches,
        rounds=rounds,
    )  # fmt: skip
    bench = Bench(plan, parts, list(variants.values()), tag, fingerprint(dense), progress)
    for where, rows in case.rows.items():
        dataset = get_dataset(where)
        bench.plan, bench.view = _with_enough_images(plan, parts, dataset), None
        known = [row for row in rows if row.method in methods]
        records = bench.judged(dataset, Tuning(), [variants[row.name] for row in known], {})
        if len(records) < len(known):  # the images have no golden rankings
            known = [row for row in known if row.method != GOLDEN]
        now = dict(zip((row.name for row in known), records, strict=True))
        for row in rows:
            yield CheckedRow(tower=case.tower, dataset=where, row=row, now=now.get(row.name))


def _variant(dense: ReducedViT, arch: str, tag: str, row: CheckRow) -> Variant:
    if row.method == DENSE:
        return Variant(model=arch, method=DENSE, keep=1.0, vit=dense, config={})
    name = f"{arch}_{row.method}{round(100 * row.keep)}"
    if row.method == GOLDEN:
        config = ReducerConfig(keep=row.keep, reduce_at=(GoldenConfig.block,))
        return golden_row(dense, name, config)
    options = {"keep": row.keep, **row.options}
    return reduced_row(dense, arch, tag, name, row.method, options, what=row.what)


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
    named = ~classifier.isnan().any(dim=1).numpy()[labels[turns(labels)]]
    judged = np.cumsum(named)
    return replace(plan, limit=int(np.searchsorted(judged, plan.limit)) + 1)


def update(plan: CheckPlan, progress: Progress) -> Verdict:
    """Measure what was asked for, or what the files themselves hold, and write it.

    Files are written when everything is measured, each whole or not at all.

    Raises:
        ValueError: something that can't be measured.
        FileNotFoundError: weights or images are missing.
        OSError: a FILE can't be written; nothing is measured.
    """
    for file in plan.files:
        if file.is_dir():
            raise IsADirectoryError(
                f"--update of {str(file)!r}, which is a folder; give a file of records, such as "
                f"{str(file / 'expected.jsonl')!r}"
            )
        require_appendable(file, "--update in")
    known = {file: _known(file) for file in plan.files}
    measured: dict[Path, list[CheckedRow]] = {}
    if plan.files:
        flags = plan.named((*ASKED, *WRITTEN))
        towers = tower_names(plan.models or Plan.models) if flags else {}
        for file in plan.files:
            if flags or not file.exists():
                cases = [new_case(plan, name) for name in towers or tower_names(Plan.models)]
            else:
                cases = cases_of(read_expectation(file), str(file))
            measured[file] = _measure_cases(cases, plan, towers, progress)
    elif git_commit() is None:
        raise ValueError(
            "--update without FILE writes the expectation that ships with this package, for which "
            "it takes a checkout; name a FILE for one of your own"
        )
    else:
        case = shipped_case(tower_name(*split_name(Plan.models[0])))
        for one in _measure_cases([case], plan, {}, progress):
            measured.setdefault(FOLDER / f"{one.dataset}.jsonl", []).append(one)
        known = {file: _known(file) for file in measured}
    outcomes = [one for file, rows in measured.items() for one in _pair_known(rows, known[file])]
    for file, rows in measured.items():
        write_whole(file, record_lines(one.now for one in rows if one.now is not None))
    notes = [f"wrote {file}" for file in measured]
    if (git_commit() or "").endswith("-dirty"):
        notes.append(f"measured with uncommitted changes on {git_commit()}")
    differences = [one for outcome in outcomes for one in find_movements(outcome, EXACT)]
    return Verdict(rows=len(outcomes), moved=tuple(differences), notes=tuple(notes), update=True)


def new_case(plan: CheckPlan, tower: str) -> Case:
    """Return what was asked to be measured on a tower, named with its tag."""
    methods = [MethodChoice.of(text) for text in plan.methods or usual_methods()]
    rows = rows_of(methods, plan.keeps or KEEPS)
    return Case(
        tower=tower, split=plan.split or Plan.split, dtype=plan.dtype or Plan.dtype,
        device=plan.device or Plan.device, image_count=None if plan.full else plan.limit or LIMIT,
        batches=BATCHES if plan.batches is None else tuple(plan.batches),
        rows=dict.fromkeys(plan.datasets or Plan.datasets, rows),
    )  # fmt: skip


def _known(file: Path) -> Known:
    """Return what a file holds already."""
    if not file.exists():
        return {}
    return {
        (case.tower, dataset, row.name): row
        for case in cases_of(read_expectation(file), str(file))
        for dataset, rows in case.rows.items()
        for row in rows
    }


def _pair_known(rows: Sequence[CheckedRow], known: Known) -> list[CheckedRow]:
    """Put what was measured beside what was known; what is known alone is gone."""
    outcomes = []
    for one in rows:
        before = known.get(one.place)
        if one.now is not None or before is not None:
            record = None if before is None else before.record
            outcomes.append(replace(one, row=replace(one.row, record=record)))
    places = {one.place for one in rows}
    return outcomes + [
        CheckedRow(tower=place[0], dataset=place[1], row=row, now=None)
        for place, row in known.items()
        if place not in places
    ]
