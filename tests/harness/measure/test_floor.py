"""Methods beside random pruning: the arithmetic on a toy, and what is refused."""

import numpy as np
import pytest

from harness.base.terminal import Progress
from harness.measure import bench
from harness.measure import compare as floor_module
from harness.measure.compare import floor, floor_table
from harness.measure.plan import Plan

PLAN = Plan(methods=("clsattn",), keeps=(0.3,), datasets=("emoji",), limit=8, split="val")


def test_the_difference_is_the_methods_accuracy_minus_the_mean_of_the_orders():
    (rows,) = floor(PLAN, 3, Progress())
    (row,) = rows
    assert (row.method, row.keep, row.image_count) == ("clsattn", 0.3, 8)
    assert row.difference.estimate == pytest.approx(row.top1 - row.random_top1)
    assert row.difference.low <= row.difference.estimate <= row.difference.high
    assert len(floor_table(rows, 3).rows) == 1


def test_the_orders_are_averaged_and_the_oracle_has_its_own_images(monkeypatch):
    """Right and wrong are planted: golden is right everywhere, the orders on known images."""

    def right(model, classifier, labels):
        return np.arange(len(labels)) % 3 == int(model[-1]) if "random" in model else labels >= 0

    class Named(str):
        features = property(str)

    monkeypatch.setattr(bench.View, "outcomes", lambda self, rows, *_: {row.key: Named(row.key) for row in rows})
    monkeypatch.setattr(floor_module, "correct", right)
    plan = Plan(methods=("golden",), keeps=(0.5,), datasets=("emoji",), limit=9, split="test")
    ((row,),) = floor(plan, 3, Progress())
    assert (row.image_count, row.top1, row.random_top1) == (9, 1, pytest.approx(1 / 3))
    assert row.difference.estimate == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="--seeds 2: expected at least 3"):
        next(floor(PLAN, 2, Progress()))
