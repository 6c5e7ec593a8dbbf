"""Schedules by measurement: the cost is met, what is known to be best is found, and stopped searches go on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.learning import schedule
from harness.learning.schedule import Schedule, Shape, search
from harness.learning.settings import SearchConfig, Sources
from harness.measure import fidelity
from harness.measure.cost import gflops
from harness.measure.plan import TOLERANCE
from zoo.core.files import cache_folder
from zoo.loading.learned_files import ScheduleFile, read_schedule

ARCH = "clip_vit_b16"
TOY = Sources(datasets=("toy",))
CONFIG = SearchConfig(points=2, candidates=16, cost=0.7)


@pytest.fixture(autouse=True)
def _toy(benchmark: None, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count multiply-adds without a trace, as if a method's own work were a tenth of what the blocks save."""
    monkeypatch.setattr("harness.learning.sources.get_dataset", lambda name: toy)

    def quick(vit: zoo.ReducedViT, size: Any) -> SimpleNamespace:
        dense, own = (schedule.closed_gflops(each) for each in (zoo.reduce(vit, method=None), vit))
        return SimpleNamespace(gflops=0.9 * own + 0.1 * dense)

    monkeypatch.setattr(schedule, "gflops", quick)


@pytest.fixture
def planted(dense: zoo.ReducedViT) -> zoo.ReducedViT:
    """The class token looks at patches in blocks 0 to 2 alone, so that later they can go for nothing."""
    with torch.no_grad():
        for block in dense.blocks[3:]:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    return dense


def searched(method: str = "rankmerge", config: SearchConfig = CONFIG, **options: Any) -> ScheduleFile:
    return schedule.search_schedule(ARCH, method, TOY, config, progress=Progress(), **options)[1]


def far(shape: Shape, best: Shape) -> float:
    """Return how differently two candidates share the work over the blocks."""
    done = [np.zeros(9), np.zeros(9)]
    for each, (points, parts) in zip(done, (shape, best), strict=True):
        each[list(points)] = parts
    return float(np.abs(np.cumsum(done[0]) - np.cumsum(done[1])).sum())


def test_a_planted_optimum_is_found():
    best, asked = Shape((0, 1, 7), (2, 5, 5)), list[Shape]()

    def look(shapes: Sequence[Shape], whole: bool) -> Mapping[Shape, float]:
        asked.extend([] if whole else shapes)
        return {shape: far(shape, best) for shape in shapes if 8 not in shape.points}  # which can't be had

    losses, tried = search(look, 9, SearchConfig(cost=0.5, candidates=400))
    assert next(iter(losses.items())) == (best, 0.0)
    assert tried == len(asked) == len(set(asked)) < 300
    short, tried = search(look, 9, SearchConfig(cost=0.5, candidates=20))
    assert len(short) <= tried == 20
    assert list(short.values()) == sorted(short.values())


def test_the_cost_is_met_as_nearly_as_the_slow_way(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "gflops", gflops)  # as the command counts
    goal, shape = 0.7 * gflops(dense, 64).gflops, Shape((1, 4), (4, 8))
    one = schedule._Search(ARCH, "rankmerge", TOY, CONFIG, "cpu", Progress()).solve(shape)
    last, off = one.counts[-1], {}
    for count in range(last - 2, last + 3):
        vit = zoo.reduce(dense, method="rankmerge", **shape.options(count / 64))
        off[Schedule.of(vit)] = abs(gflops(vit, 64).gflops / goal - 1)
    assert off[one] == min(off.values()) <= TOLERANCE["gflops"]


def test_what_is_known_to_be_best_is_found(planted: zoo.ReducedViT, toy: Dataset, parts: Any, tmp_path: Path):
    file = searched(out=tmp_path / "s.json")
    assert ScheduleFile.read(tmp_path / "s.json") == file
    assert file.found
    assert file.reduce_at[0] >= 2  # between attention and MLP of block 2 patches are of no use any more
    [facts] = file.datasets
    assert facts["after"] < 1e-12
    assert facts["before"] > 1e-6
    assert facts["difference"][2] < 0
    assert (facts["images"], facts["held_out"]) == (12, 9)
    vit = zoo.reduce(planted, method="rankmerge", **read_schedule(tmp_path / "s.json")).eval()
    assert file.cost["reached"] == schedule.gflops(vit, 64).gflops
    assert abs(file.cost["reached"] / (0.7 * schedule.closed_gflops(planted)) - 1) <= TOLERANCE["gflops"]
    images = torch.stack([parts.preprocess(example.image) for example in toy.split("val")])
    with torch.no_grad():
        assert torch.allclose(vit(images), planted(images), atol=1e-5)


def test_a_search_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch):
    config = replace(CONFIG, candidates=8)
    run, calls, stop = fidelity.run, 0, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return run(*args, **options)

    monkeypatch.setattr(fidelity, "run", counted)
    whole = searched(config=config)
    every, calls, stop = calls, 0, 6
    with pytest.raises(KeyboardInterrupt):
        searched(config=config)
    calls = stop = 0
    assert replace(searched(config=config), seconds=0) == replace(whole, seconds=0)
    assert 5 + calls <= every + 2  # dense runs again on two parts of the images, nothing else
    assert not list((cache_folder() / "fits").iterdir())  # it has done its work


@pytest.mark.parametrize(("method", "change", "quoted"), [
    ("rankmerge", {"cost": 1.5}, r"cost=1\.5"),
    ("rankmerge", {"points": 0}, "points=0"),
    ("rankmrge", {}, "'rankmrge': did you mean 'rankmerge'"),
    ("clsattn", {"cost": 0.2}, r"clsattn can't meet the \S+ GFLOPs of --cost 0\.2"),
    ("patchrank", {}, "predictor"),
])  # fmt: skip
def test_refusals(method: str, change: dict[str, Any], quoted: str):
    with pytest.raises((ValueError, FileNotFoundError), match=quoted):
        searched(method, SearchConfig(**asdict(CONFIG) | change))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.datasets.names_of", lambda names, _: list(names), raising=False)
    path = str(tmp_path / "s.json")
    words = ["fit", "schedule", "--model", ARCH, "--dataset", "emoji", "--points", "2", "--candidates", "6"]
    assert main([*words, "--cost", "0.7", "--output", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["schedule"]
    assert found["reduce_at"] == list(read_schedule(path)["reduce_at"])
    assert found["cost"]["of"] == "0.7 x dense"
