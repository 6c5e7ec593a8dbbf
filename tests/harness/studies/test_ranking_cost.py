"""A curve in miniature: agreement by hand, and what is written."""

from pathlib import Path

import pytest
import torch

from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.datasets.few_shot import subset
from harness.golden.rank import Curve, Point
from harness.models.towers import Tower
from harness.records.statistics import Interval, kendall_tau
from harness.studies.ranking_cost import curve_table, measure_curve
from zoo.ranking.golden import GoldenConfig, golden_importance

POINTS = (Point(window=3, stride=3), Point(approximate="follow:2"), Point(window=9, stride=9))


def test_measures_agreement_with_the_exact_ranking(tower: Tower, toy: Dataset):
    def measure(block: int = 3, limit: int = 12) -> Curve:
        splits, how = {"toy": subset(toy.split("test"), limit)}, {"dtype": "float32", "progress": Progress()}
        return measure_curve(tower, splits, block, split="test", points=POINTS, **how)

    curve = measure()
    exact, coarse, follow = curve.worths  # the third window is larger than the grid
    assert (exact.tau, exact.passes) == (Interval(1.0, 1.0, 1.0), 49)
    assert exact.match == {"60": 1.0, "50": 1.0, "30": 1.0}
    images = torch.stack([tower.preprocess(example.image) for example in subset(toy.split("test"), 12)])
    truth = golden_importance(tower.vit, images, GoldenConfig())
    order = golden_importance(tower.vit, images, GoldenConfig(window=3, stride=3))
    # Batches of another size round differently, so that near ties may turn.
    assert coarse.tau.estimate == pytest.approx(kendall_tau(order, truth).mean(), abs=2e-3)
    assert coarse.tau_of == {"toy": pytest.approx(coarse.tau.estimate)}
    assert follow.passes < coarse.passes < exact.passes
    assert curve_table(curve).cells("way") == ["follow:2", "window 3, stride 3", "window 2, stride 1"]
    assert measure(block=1).worths[1].tau != coarse.tau
    with pytest.raises(ValueError, match="--block 6: this tower has blocks 0 to 5"):
        measure(block=6)
    with pytest.raises(ValueError, match="two images"):
        measure(limit=1)


def test_the_command_writes_what_rank_reads(tmp_path: Path):
    path = tmp_path / "new" / "curve.json"
    assert main(f"study ranking-cost --dataset fashion --limit 2 --block 8 --output {path}".split()) == 0
    curve = Curve.read(path)
    assert curve.images == {"fashion": 2}
    assert curve.worths[0].point == Point()
