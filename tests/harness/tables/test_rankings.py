"""Tables of rankings, studies and the paper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from by_hand import replace

from harness.base.table import Part
from harness.cli import study as studies
from harness.golden.budget import Curve, Point, Worth
from harness.measure.tuning import Judged
from harness.records.record import Record
from harness.records.statistics import Interval
from harness.studies.curve import curve_table
from harness.studies.dry_run import Step, plan_table
from harness.studies.objects import ObjectShare, objects_table
from harness.studies.paper import Row, get_reproduction
from harness.studies.reproduce import Comparison, Result
from harness.studies.run import Sheet, entries
from harness.studies.speed import Speed, Way, speed_table
from harness.studies.tuning import Trial, trials_table
from zoo.ranking.approximate import Effort

PERCENT = Interval(57.1, 50.04, 64.06)
SHARE = Interval(-0.0712, -0.1043, -0.0381)
LONG = "A dataset of some kind, in the form in which its makers gave it to the world in 2014"
Maker = Callable[[list[Record]], list[Part]]
Fit = Callable[[Part, int | None], None]


def _objects(records: list[Record]) -> list[Part]:
    values = np.linspace(0.1, 0.9, 7)
    share = ObjectShare(used=np.ones(7, bool), share=values, chance=values / 3, auc=values)
    names = ("golden preservation", "golden confidence", "patchrank")
    return [objects_table(dict.fromkeys(names, share), f"objects of {LONG}")]


def _curve(records: list[Record]) -> list[Part]:
    keeps = {"60": 0.9712, "30": 0.9512}
    worth = Worth(
        point=Point(),
        passes=169.0,
        seconds=1.0,
        tau=Interval(0.712, 0.701, 0.723),
        tau_of={"emoji": 0.7},
        match=keeps,
        top1=keeps,
        difference=dict.fromkeys(keeps, SHARE),
    )
    curve = Curve(
        model="clip_vit_s14.imgfocus_lit",
        weights="0" * 64,
        block=3,
        split="val",
        dtype="float32",
        device="a machine",
        images={"fashion": 60, "emoji": 60},
        named={"fashion": 60},
        effort=Effort(grid=(14, 14), blocks=9),
        dense=0.7,
        versions={},
        worths=[worth, replace(worth, point=Point(window=3, stride=2), passes=36.0)],
    )
    return [curve_table(curve)]


def _speed(records: list[Record]) -> list[Part]:
    rate = Interval(1234.5, 1111.1, 1333.3)
    way = Way(
        name="straightforward",
        precision="float32",
        batch=512,
        samples_ms=(1.0,) * 5,
        windows_per_s=rate,
        speed_up=Interval(12.34, 11.11, 13.33),
        tau=0.999,
        tau_least=0.998,
        same=1.0,
        multiply_adds=10**12,
        multiply_adds_per_s=1e12,
    )
    speed = Speed(
        created="2026-01-01T00:00:00+00:00",
        git_commit=None,
        model="clip_vit_b16.openai",
        random_weights=False,
        block=3,
        window=2,
        stride=1,
        windows=169,
        images=4,
        dataset="fashion (val)",
        device="a machine with a name of some length",
        threads=16,
        versions={},
        ways=(way, replace(way, name="engine, compiled, bfloat16", precision="bfloat16")),
    )
    return [speed_table(speed)]


def _study(records: list[Record]) -> list[Part]:
    dense, *others = records
    labels = {"score": "preservation", "ranking of": "the same images"}
    sheet = Sheet(
        title=f"Scores: emoji test, {LONG}",
        dense=dense,
        entries=entries([(labels, 0.6, [row, row]) for row in others[:3]], dense),
    )
    return [sheet.table(), *studies.run_study_list().parts]


def _recipes(records: list[Record]) -> list[Part]:
    judged = (Judged(0.5123, 1.2345), Judged(0.6123, 1.1345))
    about: dict[str, Any] = {"images": (400, 400), "untuned": judged, "tuned": judged[::-1]}
    names = ("as it is", "count=4,anchor=32,init=a photo of a")
    every = [Trial(name, dataset, **about) for name in names for dataset in ("fashion", "emoji-subcategory")]
    return [trials_table(every, f"recipes of learned tokens, {LONG}")]


def _reproduce(records: list[Record]) -> list[Part]:
    recipe = get_reproduction("table1")
    rows = [Row(name=f"golden by confidence {at}", against="dense") for at in range(3)]
    ours = dict.fromkeys(recipe.datasets, PERCENT)
    comparison = Comparison(
        recipe=recipe,
        tower="clip_vit_b16.openai",
        results=tuple(Result(row=row, ours=ours, to=ours) for row in rows),
        images=dict.fromkeys(recipe.datasets, 50_000),
    )
    step = Step(
        kind="fit predictors",
        of="pooledmixer 64 on emoji, preservation before block 3",
        total=1_281_167,
        cached=100,
        images=1_281_067,
        passes=216_500_323,
    )
    plan = plan_table(recipe, "clip_vit_b16.openai", [step] * 2, {"imagenet": LONG})
    return [comparison.table(), plan]


MAKERS = (_objects, _curve, _speed, _study, _recipes, _reproduce)


@pytest.mark.parametrize("width", [80, 160, None])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_table_fits(maker: Maker, width: int | None, records: list[Record], fit: Fit):
    for part in maker(records):
        fit(part, width)
