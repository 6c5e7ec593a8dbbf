"""Tables of measured models, runs and data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from by_hand import replace

from harness.apps.check.datasets import Checked, class_table
from harness.apps.choose import Choice, Judged, choice_table
from harness.apps.fidelity import CHANGE, COSINE, Q05
from harness.apps.schedule import Finalist, Found, Schedule, schedule_table
from harness.apps.setup import Setup
from harness.base.table import Part
from harness.cli.data import datasets_table, list_tables
from harness.measure.compare import Floor
from harness.measure.cost import Overhead, overhead_table
from harness.records.averages import averages, matched
from harness.records.record import Record
from harness.records.statistics import Interval
from harness.report.changes import changes, tables
from harness.report.folder import front_table
from harness.report.groups import grouped
from harness.report.highlights import Cost, Front, Standing
from harness.report.tables import comparison_table, floor_table, matched_table, shot_tables, shots_apart
from zoo.loading.schedule_file import ScheduleFile

SHARE = Interval(-0.0712, -0.1043, -0.0381)
LONG = "A dataset of some kind, in the form in which its makers gave it to the world in 2014"
Maker = Callable[[list[Record]], list[Part]]
Fit = Callable[[Part, int | None], None]


def _compare(records: list[Record]) -> list[Part]:
    return [comparison_table(records)]


def _changes(records: list[Record]) -> list[Part]:
    dearer = [replace(row, gflops=row.mean("gflops") and row.mean("gflops") * 3) for row in records]
    return list(tables(changes(records, dearer)))


def _shots(records: list[Record]) -> list[Part]:
    options = {"tuning": "probe", "prompt_tokens": None}
    groups = [records, *([replace(r, shots=k, **options) for r in records] for k in (1, 2, 4, 8, 16))]
    tables = list(shot_tables(list(map(averages, groups))))
    assert shots_apart(groups) == tables  # without recovery
    return tables


def _matched(records: list[Record]) -> list[Part]:
    return [matched_table(matched(records, "patchrank"))]


def _floor(records: list[Record]) -> list[Part]:
    row = Floor(
        dataset="emoji-subcategory",
        split="val",
        method="patchrank",
        keep=0.6,
        image_count=50_000,
        top1=0.571,
        random_top1=0.502,
        difference=SHARE,
        p_value=0.01,
    )
    return [floor_table([row, replace(row, p_value=0.0)], 3)]


def _list(records: list[Record]) -> list[Part]:
    return [*list_tables(), datasets_table()]


def _classes(records: list[Record]) -> list[Part]:
    counts = np.full(30, 1_281_167)
    found = Checked(
        name="folder-photos",
        revision="0123456789ab",
        classes=tuple(f"{LONG} {i}" for i in range(30)),
        counts={"train": counts, "val": counts, "test": counts},
        bad={"train": counts, "val": counts, "test": counts},
        problems=(),
        notes=(),
        unreadable=(),
    )
    return [class_table(found)]


def _overhead(records: list[Record]) -> list[Part]:
    row = Overhead(
        arch="pooledmixer", width=768, params=12_345_678, gflops=0.123, share=0.03, uncounted=(), latency=SHARE
    )
    return [overhead_table([row], "predictors beside clip_vit_b16.openai, batch 32, float32, x")]


def _schedules(records: list[Record]) -> list[Part]:
    default = Finalist(
        schedule=Schedule((0, 4, 8), (165, 138, 116)),
        gflops=12.345,
        time_ratio=0.678,
        means=(0.01234, 0.00012),
        differences=(SHARE, SHARE),
    )
    file = ScheduleFile(
        reduce_at=(0, 4, 8),
        schedule=(0.8, 0.7),
        keep=0.6,
        model="clip_vit_b16",
        tag="openai",
        weights="w",
        method="rankmerge",
        options={},
        cost={"match": "time", "of": "patchrank at keep 60 %"},
        found=True,
        datasets=[{"name": "emoji-subcategory"}, {"name": "photos"}],
        candidates=70,
        seconds=1.0,
        version="1",
    )
    longer = replace(default, schedule=Schedule((0, 3, 5, 7), (165, 138, 116, 100)))
    return [schedule_table(Found(file=file, path=Path("s.json"), default=default, best=(longer, longer)))]


def _choice(_records: list[Record]) -> list[Part]:
    whole = {"estimate": 0.99391, "low": 0.99287, "high": 0.99479}
    facts = {"dataset": {"name": "photos", "held_out": {"pictures": 122, "photographs": 20}}}
    setup = Setup(model="clip_vit_s14", method="rankmerge", options={"keep": 0.6}, certificate=facts)
    fidelity = {COSINE: whole, Q05: whole, CHANGE: {"estimate": -0.012, "low": -0.031, "high": 0.004}}
    time = {"ratio_to_dense": {"estimate": 0.4762, "low": 0.1618, "high": 0.9434}}
    first = Judged(setup=setup, name="rankmerge", keep=0.6, passed=True, fidelity=fidelity)
    chosen = replace(first, setup=replace(setup, dtype="bfloat16"), name="rankmerge", keep=0.42, time=time)
    return [choice_table(Choice(setup=setup, met=True, why="", judged=(first, chosen), seconds=3.0))]


def _report(records: list[Record]) -> list[Part]:
    (group,) = grouped(records).groups
    row = group.rows[0]
    stood = [Standing(row=row, cost=1.0, verdict="front")]
    costs = (Cost(kind="gflops"), Cost(kind="ratio", batch=32))
    return [front_table(group, [Front(cost=cost, standings=stood) for cost in costs])]


MAKERS = (_compare, _changes, _shots, _matched, _floor, _list, _classes, _overhead, _schedules, _choice, _report)


@pytest.mark.parametrize("width", [80, 160, None])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_table_fits(maker: Maker, width: int | None, records: list[Record], fit: Fit):
    for part in maker(records):
        fit(part, width)
