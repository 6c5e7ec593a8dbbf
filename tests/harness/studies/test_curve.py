"""A curve in miniature: what is measured, what a second run keeps, and what a budget buys."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.golden.budget import Curve, Point
from harness.models.towers import Tower, text_classifier
from harness.records.agreement import kendall_tau
from harness.records.statistics import Interval
from harness.studies import curve as module
from harness.studies.curve import (
    CurveConfig,
    curve_table,
    draw_curve,
    measure_curve,
    undominated,
    usual_points,
    write_curve,
)
from zoo.loading.clip import ClipParts
from zoo.ranking.approximate import Effort
from zoo.ranking.golden import GoldenConfig, golden_importance

POINTS = (
    Point(window=3, stride=3),
    Point(approximate="follow:2"),
    Point(method="random", window=None, stride=None, seed=0),
    Point(method="random", window=None, stride=None, seed=1),
)
Measure = Callable[..., Curve]


@pytest.fixture
def measure(parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measure on twelve toy images with the miniature tower."""
    tower = Tower(parts.model.visual, parts.preprocess, "clip_vit_b16.openai", parts)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)

    def call(points: tuple[Point, ...] | None = POINTS, **facts: Any) -> Curve:
        facts = {"datasets": ("toy",), "split": "test", "limit": 12, "rounds": 0} | facts
        return measure_curve(CurveConfig(**facts), Progress(), points)

    return call


def test_measures_agreement_and_accuracy_of_each_way(measure, parts: ClipParts, toy: Dataset):
    curve = measure()
    labels = ["window 2, stride 1", "window 3, stride 3", "follow:2", "random"]
    assert [worth.point.label for worth in curve.worths] == labels
    assert (curve.images, curve.named) == ({"toy": 12}, {"toy": 9})
    split = module.subset(toy.split("test"), 12)
    images = torch.stack([parts.preprocess(example.image) for example in split])
    dense = parts.model.visual
    exact = golden_importance(dense, images, GoldenConfig())
    coarse = golden_importance(dense, images, GoldenConfig(window=3, stride=3))
    worth = curve.worths[1]
    # Batches of another size round differently, so that near ties may turn.
    tau = kendall_tau(coarse, exact).mean()
    assert worth.tau.estimate == pytest.approx(tau, abs=2e-3)
    assert worth.tau.low < worth.tau.estimate < worth.tau.high
    assert worth.tau_of == {"toy": pytest.approx(worth.tau.estimate)}
    # Prune the three tokens out of ten by hand, and ask the text tower.
    classifier, _ = text_classifier(parts, toy)
    right = []
    with torch.no_grad():
        start, _ = dense.advance(dense.embed(images), stop=3)
        for i in np.flatnonzero(split.labels < 3):
            kept = coarse[i].argsort(descending=True, stable=True)[:19].sort().values
            end, _ = dense.advance(start._replace(x=start.x[i : i + 1, [0, *(1 + kept)]]), 3)
            cosines = F.normalize(dense.finish(end), dim=-1) @ classifier.T
            right.append(cosines.nan_to_num(-1).argmax().item() == split.labels[i])
    assert worth.top1["30"] == pytest.approx(np.mean(right))
    lost = worth.top1["30"] - curve.worths[0].top1["30"]
    assert worth.difference["30"].estimate == pytest.approx(lost)


def test_the_exact_ranking_agrees_with_itself_and_random_orders_with_nothing(measure):
    exact, *_, random = measure().worths
    assert (exact.tau, exact.passes) == (Interval(1.0, 1.0, 1.0), 49)
    assert exact.match == {"60": 1.0, "50": 1.0, "30": 1.0}
    assert all(value == (0, 0, 0) for value in exact.difference.values())
    assert abs(random.tau.estimate) < 0.2
    assert random.passes == 0
    assert random.match["50"] == pytest.approx(0.5, abs=0.1)


def test_what_a_ranking_depends_on_changes_it(measure):
    before = measure(POINTS[:1])
    assert measure(POINTS[:1], block=1) != before
    assert measure(POINTS[:1], dtype="bfloat16").worths[1].tau != before.worths[1].tau


def test_time_is_that_of_the_exact_ranking(measure):
    worths = measure(POINTS[1:2], rounds=1).worths
    assert worths[0].seconds == 1
    assert worths[1].seconds is not None
    assert 0 < worths[1].seconds < 1


def test_a_tower_without_text_has_no_accuracy(measure, parts: ClipParts, monkeypatch):
    tower = Tower(parts.model.visual, parts.preprocess, "local-dir:other")
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    curve = measure(POINTS[:1])
    assert (curve.dense, curve.named, curve.worths[1].top1) == (None, {}, {})
    assert not [head for head in curve_table(curve).heads if "top-1" in head]
    assert draw_curve(curve, "png").startswith(b"\x89PNG")


def test_files_hold_what_was_measured_and_are_the_same_every_time(measure, tmp_path: Path):
    curve = measure()
    write_curve(curve, tmp_path)
    assert Curve.read(tmp_path / "curve.json") == replace(curve, worths=tuple(curve.worths))
    table = (tmp_path / "curve.md").read_text()
    assert table.count("\n|") == 6
    assert f"| {curve.worths[1].tau.estimate:.3f} [" in table
    assert (tmp_path / "curve.svg").read_bytes() == draw_curve(curve, "svg")
    files = ["curve.json", "curve.md", "curve.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_the_command_prints_the_table(measure, tmp_path: Path, capsys):
    flags = f"--dataset toy --split test --limit 2 --rounds 0 --seeds 1 --output {tmp_path / 'c'}"
    assert main(["study", "curve", *flags.split()]) == 0
    printed = capsys.readouterr().out
    for label in ("window 2, stride 2", "follow:4", "clsattn", "random"):
        assert label in printed
    assert (tmp_path / "c" / "curve.json").is_file()


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"dtype": "float3"}, "dtype='float3': did you mean 'float32'?"),
        ({"rounds": -1}, "rounds=-1: expected a number from 0"),
        ({"block": 6}, "block=6: this tower has blocks 0 to 5"),
        ({"limit": 1}, "a curve needs at least two images"),
    ],
)
def test_refused(facts: dict[str, Any], match: str, measure):
    with pytest.raises(ValueError, match=re.escape(match)):
        measure(POINTS[:1], **facts)


def test_usual_points_are_what_the_tower_can_do():
    small = usual_points(Effort(grid=(4, 4), blocks=2, dim=48, hidden=192), seeds=2)
    labels = [point.label for point in small]
    assert labels[0] == "window 2, stride 1"
    assert "follow:8" in labels
    assert "follow:16" not in labels  # only 12 patches are outside a window
    assert "window 5, stride 5" not in labels
    assert labels[-2:] == ["random", "random"]


def test_ways_that_others_beat_are_told_apart(measure):
    curve = measure()
    exact, coarse, follow, random = curve.worths
    passes_and_taus = ((exact, 49, 1.0), (coarse, 9, 0.8), (follow, 3, 0.85), (random, 0, 0.1))
    worths = [replace(w, passes=n, tau=Interval(tau, tau, tau)) for w, n, tau in passes_and_taus]
    best = undominated(replace(curve, worths=worths))
    assert [worth.point for worth in best] == [random.point, follow.point, exact.point]
