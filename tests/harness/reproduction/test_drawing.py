"""What a figure shows: what is lost by method, ours with intervals beside the paper's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.reproduction.drawing import draw, series
from harness.reproduction.figure1 import Figure1
from harness.reproduction.measures import mean_of
from harness.statistics import Interval
from harness.studies.config import StudyConfig


def test_figure_5_is_drawn_along_the_keep_rate(tiny: StudyConfig, reproduced: Callable[..., Any]):
    comparison, _ = reproduced("figure5", replace(tiny, datasets=("elsewhere",), seeds=1))
    ours, paper = series(comparison)
    assert list(ours) == ["CLS attention", "golden", "predicted", "random"]
    for points in ours.values():
        assert [place for place, _ in points] == [50, 60]
    assert list(paper) == ["CLS attention", "golden"]
    lost = {name: [value.estimate for _, value in points] for name, points in paper.items()}
    assert lost["CLS attention"] == pytest.approx([62.0 - 67.9, 65.1 - 67.9])
    assert lost["golden"] == pytest.approx([64.0 - 67.9, 66.3 - 67.9])
    assert draw(comparison) == draw(comparison)


def test_the_paper_s_points_of_figure_1_stand_at_our_multiply_adds():
    recipe = Figure1()
    rows = {row.name: row for row in recipe.rows(StudyConfig(), 12)}
    assert recipe.paper_place(rows["patchrank, keep 60"]) == pytest.approx(12.25 / 17.58)
    assert recipe.paper_place(rows["unpruned"]) is None
    assert recipe.place(rows["patchrank, keep 60"], 0.7) == 0.7


def test_a_mean_over_datasets_is_as_sure_as_independent_ones_make_it():
    one, two = Interval(10.0, 7.0, 12.0), Interval(20.0, 16.0, 21.0)
    mean, low, high = mean_of([one, two])
    assert mean == 15.0
    assert mean - low == pytest.approx((3**2 + 4**2) ** 0.5 / 2)
    assert high - mean == pytest.approx((2**2 + 1**2) ** 0.5 / 2)
