"""Cases to measure: rows of an expectation's records, or of words such as evit:fuse=true.

An expectation is a file of records. The first row of a name has its method's defaults; other rows
of the name differ from it in their options. So a default that changes later is seen as a changed
setting, and isn't taken for an option.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.datasets import get_dataset
from harness.datasets.base import SplitName
from harness.golden.store import find_rankings
from harness.measure.plan import Plan
from harness.measure.rows import known_methods, usual_methods
from harness.records.averages import protocol, tower_of
from harness.records.conditions import DENSE, GOLDEN, MATCHED
from harness.records.record import Record, read_run
from harness.report.changes import ABSENT
from zoo.core.messages import expected
from zoo.core.reducer import METHODS

FOLDER = Path(__file__).parents[2] / "expected"  # the expectation that ships
KEEPS = (0.6, 0.3)
LIMIT = 48
BATCHES = (1,)
# What no model's name asks for: a fused token, merging in some blocks only, so that others see
# merged tokens without merging, and several reduction points.
SETTINGS = ("evit:fuse=true,keep=0.3", "tome:reduce_at=[2,4,6],keep=0.3", "patchrank:reduce_at=[3,6],keep=0.3")
_OURS = ("baselines", "zoo")
_SHARED = ("split", "dtype", "device", "image_count")
# Rows of a dataset with captions are few: methods are seen on the others, here only what retrieves.
RETRIEVAL, RETRIEVED = "emoji-captions", "patchrank:keep=0.3"
# Hashes of what was learned for a row, and how its keep rate was found; nobody asks for them.
_LEARNED = ("predictor", "prompts", MATCHED)


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One row on one dataset."""

    method: str  # from ``known_methods``, or one that was registered once
    keep: float
    options: dict[str, Any]  # settings beside the keep rate that aren't the method's defaults
    record: Record | None = None  # what is expected; None of a new row

    @property
    def name(self) -> str:
        """Say method and keep rate as models' names do, and what else was asked for."""
        percent = "" if self.method == DENSE else str(round(100 * self.keep))
        return f"{self.method}{percent} {self.what}".rstrip()

    @property
    def what(self) -> str:
        """Write the options as ``MethodChoice.of`` reads them."""
        words = {name: json.dumps(own, separators=(",", ":")) for name, own in self.options.items()}
        return ",".join(f"{name}={word}" for name, word in words.items())


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured on one tower under one set of conditions."""

    tower: str  # dense name with its weight tag
    split: SplitName
    dtype: str
    device: str
    image_count: int | None  # judged per dataset; None for all
    batches: tuple[int, ...]  # sizes that are timed
    rows: dict[str, list[CheckRow]]  # by dataset, the dense one first


def read_expectation(file: Path) -> list[Record]:
    """Read a file of records, or the folder of a run.

    Raises:
        FileNotFoundError: it isn't there; says how to write one.
        ValueError: no records, or a line that is none.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"no expectation at {str(file)!r}; write one with: patchrank check {shlex.quote(str(file))} --update"
        )
    return read_run(file)


def cases_of(records: Iterable[Record], where: str) -> list[Case]:
    """Sort an expectation's records into cases; messages name the file by ``where``.

    Raises:
        ValueError: a row that wasn't classified by text or is with recovery, or no dense row among a case's.
    """
    cases: dict[tuple[Any, ...], dict[str, list[CheckRow]]] = {}
    for record in records:
        if record.shots:
            raise ValueError(
                f"{where}: {record.model} on {record.dataset} is {protocol(record)}; check "
                "measures by text, leave out rows that learned from shots"
            )
        if record.recovered:
            raise ValueError(
                f"{where}: {record.model} on {record.dataset} is with recovery, whose file no record holds; "
                "leave out rows with recovery"
            )
        shared = (tower_of(record), *(getattr(record, name) for name in _SHARED))
        _enter(cases.setdefault(shared, {}).setdefault(record.dataset, []), record)
    sorted_cases = []
    for (tower, *values), datasets in cases.items():
        batches = set()
        for dataset, rows in datasets.items():
            rows.sort(key=lambda row: row.method != DENSE)
            if rows[0].method != DENSE:
                raise ValueError(
                    f"{where}: no dense row of {tower} on {dataset}; the others are compared with "
                    "it, so an expectation needs one"
                )
            batches |= {e.batch for row in rows if row.record for e in row.record.latency}
        own = dict(zip(_SHARED, values, strict=True)) | {"batches": tuple(sorted(batches))}
        sorted_cases.append(Case(tower=tower, **own, rows=datasets))
    return sorted_cases


def _enter(rows: list[CheckRow], record: Record) -> None:
    """Add a record's row to those of its dataset; of one row the newest record counts."""
    first = next((r.record for r in rows if (r.method, r.keep) == (record.method, record.keep)), None)
    options = {
        name: value
        for name, value in record.method_config.items()
        if first is not None and name not in _LEARNED and value != first.method_config.get(name, ABSENT)
    }
    row = CheckRow(method=record.method, keep=record.keep, options=options, record=record)
    names = [other.name for other in rows]
    at = names.index(row.name) if row.name in names else len(rows)
    rows[at : at + 1] = [row]


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """A method of ``--methods``, with settings that aren't its defaults; ``keep`` may be one."""

    method: str
    options: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> "MethodChoice":
        """Read ``METHOD`` or ``METHOD:OPTION=VALUE,...`` with JSON values.

        Raises:
            ValueError: no such method, or options that aren't written like this.
        """
        method, colon, rest = text.partition(":")
        if method not in known_methods():
            raise ValueError(f"method {method!r}: {expected(method, known_methods())}")
        if not colon:
            return cls(method=method, options={})
        if method in (DENSE, GOLDEN):
            raise ValueError(f"--methods {text!r}: {method} has no options")
        try:
            # Other commas belong to a list or an object.
            names = [part.partition("=") for part in re.split(r",(?=\w+=)", rest)]
            options = {name: json.loads(value) for name, _, value in names}
        except ValueError as error:
            raise ValueError(
                f"--methods {text!r}: expected METHOD:OPTION=VALUE,... with JSON values, such as "
                "evit:fuse=true or tome:reduce_at=[2,5,7],keep=0.3"
            ) from error
        return cls(method=method, options=options)


def rows_of(choices: Sequence[MethodChoice], keeps: Sequence[float]) -> list[CheckRow]:
    """Return the rows of these choices: defaults first, then those with options.

    A method with options brings the row of its defaults along, which says what they are.
    """
    rows = [CheckRow(method=DENSE, keep=1.0, options={})]
    for one in sorted(choices, key=lambda one: bool(one.options)):
        options = {name: value for name, value in one.options.items() if name != "keep"}
        own_keeps = [one.options["keep"]] if "keep" in one.options else keeps
        for keep in (1.0,) if one.method == DENSE else own_keeps:
            for own in ({}, options):
                row = CheckRow(method=one.method, keep=keep, options=own)
                if row not in rows:
                    rows.append(row)
    return rows


def own_methods() -> tuple[str, ...]:
    """Return the methods that the shipped benchmark must have: ours, not another distribution's."""
    return tuple(
        name for name in usual_methods() if name in (DENSE, GOLDEN) or METHODS[name].__module__.split(".")[0] in _OURS
    )


def shipped_files() -> list[Path]:
    """Return the files of the expectation, one per dataset."""
    files = sorted(FOLDER.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(
            "harness/expected/ holds no expectation; in a checkout, write it with: patchrank check --update"
        )
    return files


def complete(case: Case) -> Case:
    """Add the rows that are missing, of which nothing is expected yet."""
    rows = {}
    for dataset, there in case.rows.items():
        names = {row.name for row in there}
        rows[dataset] = [*there, *(row for row in _shipped_rows(case.tower, dataset) if row.name not in names)]
    return replace(case, rows=rows)


def shipped_case(tower: str) -> Case:
    """Return the benchmark as it is written anew."""
    return Case(
        tower=tower, split="test", dtype=Plan.dtype, device=Plan.device, image_count=LIMIT,
        batches=BATCHES, rows={name: _shipped_rows(tower, name) for name in (*Plan.datasets, RETRIEVAL)},
    )  # fmt: skip


def _shipped_rows(tower: str, dataset: str) -> list[CheckRow]:
    """Return the rows of a dataset, the golden ones if it has golden rankings."""
    if get_dataset(dataset).captioned:
        return rows_of([MethodChoice.of(RETRIEVED)], KEEPS)
    ranked = find_rankings(tower, get_dataset(dataset).images_of, Plan.split) is not None
    methods = [method for method in own_methods() if ranked or method != GOLDEN]
    return rows_of([MethodChoice.of(text) for text in (*methods, *SETTINGS)], KEEPS)
