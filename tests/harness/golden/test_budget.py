"""What a budget buys, on curves made up for it."""

import pytest

from harness.golden.budget import SHIPPED, Curve, Point, Worth, best_within
from harness.records.statistics import Interval
from zoo.ranking.approximate import Effort
from zoo.ranking.golden import GoldenConfig

MADE = {
    Point(): 1.0,
    Point(window=2, stride=2): 0.75,
    Point(approximate="follow:0"): 0.8,
    Point(approximate="follow:16"): 0.85,
}


@pytest.mark.parametrize(("budget", "label"), [
    *((1e9, "window 2, stride 1"), (169, "window 2, stride 1"), (168, "follow:16")),
    *((16, "follow:16"), (10, "follow:0"), (1.1, "follow:0")),
])  # fmt: skip
def test_a_budget_buys_the_closest_ranking_within_it(budget, label):
    """On a curve made up for a tower of 14 x 14 patches and 9 blocks."""
    effort = Effort(grid=(14, 14), blocks=6)
    worths = [Worth(point=p, passes=0, tau=Interval(t, t, t), tau_of={}, match={}) for p, t in MADE.items()]
    names = {"model": "m", "weights": "w", "split": "val", "dtype": "float32", "device": "d"}
    curve = Curve(block=3, effort=effort, worths=worths, images={}, versions={}, **names)
    assert best_within(curve, budget, effort).label == label
    with pytest.raises(ValueError, match=r"--budget 0.5: the cheapest golden ranking, follow:0, takes 1.03 passes"):
        best_within(curve, 0.5, effort)


def test_the_shipped_curve_serves_every_budget():
    shipped = Curve.read(SHIPPED)
    taus = {worth.point: worth.tau.estimate for worth in shipped.worths}
    last = 0.0
    for budget in (1.5, 5, 10, 25, 49, 100, 169):
        point = best_within(shipped, budget, shipped.effort)
        assert point.passes(shipped.effort) <= budget
        assert taus[point] >= last
        last = taus[point]
        GoldenConfig(window=point.window, stride=point.stride, approximate=point.approximate)
    assert point == Point()
    assert best_within(shipped, 1e6, Effort(grid=(7, 7), blocks=12, dim=768)) == Point()
    for budget, removal_only in ((0.01, False), (5, True)):
        with pytest.raises(ValueError, match="the cheapest golden ranking"):
            best_within(shipped, budget, shipped.effort, removal_only=removal_only)
