"""Budgets by measurement: the lines are those of least squares, bounds are met, and a stopped fit goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Rendered, Split, SplitName
from harness.learning import budgets
from harness.learning.schedule import closed_gflops
from harness.learning.settings import BudgetConfig, Sources
from harness.measure import budgets as measured
from harness.measure import fidelity, plan
from zoo.core.adaptive import LEAST
from zoo.loading.learned_files import BudgetFile, find_budgets
from zoo.loading.towers import load_tower

ARCH = "clip_vit_b16"
CONFIG = BudgetConfig(keeps=(1.0, 0.7, 0.4), cost=0.8)
COUNTS = {"train": 68, "val": 12, "test": 0}


@pytest.fixture(autouse=True)
def _pictures(benchmark: None, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give pictures from plain to detailed."""

    def split(name: SplitName) -> Split:
        def render(index: int, variant: int) -> Rendered:
            drawn = np.random.default_rng((COUNTS[name], index)).integers(-100, 100, (64, 64, 3))
            return Image.fromarray((128 + drawn * (index + 1) / COUNTS["train"]).clip(0, 255).astype(np.uint8)), None

        return Split(np.full(COUNTS[name], -1), lambda index: f"{name}-{index}", render)

    monkeypatch.setattr(toy, "split", split)
    monkeypatch.setattr("harness.learning.sources.get_dataset", lambda name: toy)
    monkeypatch.setattr("harness.learning.sources.require_images", lambda *_: None)
    monkeypatch.setattr(measured, "CHUNK", 34)
    for module in (measured, plan):  # counted without a trace
        monkeypatch.setattr(module, "gflops", lambda vit, _: SimpleNamespace(gflops=closed_gflops(vit)))


def fitted(config: BudgetConfig = CONFIG, method: str = "rankmerge", **options: Any) -> BudgetFile:
    sources = Sources(datasets=("toy",), limit=options.pop("limit", None))
    return budgets.fit_budgets(ARCH, method, sources, config, progress=Progress(), **options)[1]


def measured_again(dense: zoo.ReducedViT, file: BudgetFile, toy: Any, parts: Any) -> tuple[Any, Any]:
    """Return logarithms of signals and errors of the training pictures, by the zoo alone."""
    images = torch.stack([parts.preprocess(example.image) for example in toy.split("train")])
    with torch.no_grad():
        x = zoo.core.adaptive.signal(dense.embed(images)).double().log().numpy()
        truth = dense(images)
        features = [zoo.reduce(dense, method="rankmerge", keep=keep).eval()(images) for keep in file.budgets.keeps]
    return x, np.stack([1 - torch.cosine_similarity(f.double(), truth.double()).numpy() for f in features], axis=1)


def test_lines_are_those_of_least_squares(dense: zoo.ReducedViT, toy: Any, parts: Any, tmp_path: Path):
    file = fitted(out=tmp_path / "b.json")
    assert BudgetFile.read(tmp_path / "b.json") == file
    x, errors = measured_again(dense, file, toy, parts)
    assert np.allclose(file.budgets.signals, np.sort(x), atol=1e-5)
    for number in (1, 2):
        slope, intercept = np.polyfit(x, np.log(np.maximum(errors[:, number], LEAST)), 1)
        assert (file.budgets.slopes[number], file.budgets.intercepts[number]) == pytest.approx(
            (slope, intercept), rel=1e-2
        )
    assert file.budgets.costs[0] > 1 > file.budgets.costs[1] > file.budgets.costs[2]  # the signal costs something
    assert file.cost == 0.8
    vit = zoo.reduce(dense, method="rankmerge", budgets=tmp_path / "b.json").eval()
    images = torch.stack([parts.preprocess(example.image) for example in toy.split("train")])
    keeps = vit.assign(images).tolist()
    taken = [file.budgets.costs[file.budgets.keeps.index(round(keep, 4))] for keep in keeps]
    assert 0.75 < np.mean(taken) <= 0.8
    assert keeps[-1] > keeps[0]  # the most detailed and the plainest


def test_the_frontier_holds_fixed_keep_rates_and_budgets_of_equal_cost(dense: zoo.ReducedViT, toy: Any, parts: Any):
    file = fitted()
    images = torch.stack([parts.preprocess(example.image) for example in toy.split("val")])
    assert len(file.judged) == 2  # at keep rate .7 and at the cost that was asked for
    assert [row["keep"] for row in file.judged if row["keep"] in file.budgets.keeps] == [0.7]
    assert file.judged[0]["cost"] < file.judged[1]["cost"] <= 0.8
    for row in file.judged:
        vit = zoo.reduce(dense, method="rankmerge", keep=row["keep"]).eval()
        with torch.no_grad():
            errors = 1 - torch.cosine_similarity(vit(images).double(), dense(images).double())
        assert row["before"] == pytest.approx(float(errors.mean()), rel=1e-3)
        assert row["before_95"] == pytest.approx(float(errors.quantile(0.95)), rel=1e-3)
        assert row["difference"][1] <= row["difference"][0] <= row["difference"][2]
        assert row["difference"][0] == pytest.approx(row["after"] - row["before"])


@pytest.mark.parametrize("name", ["min_cosine", "min_cosine_95"])
def test_a_bound_is_met_at_no_more_than_it_takes(name: str, dense: zoo.ReducedViT, toy: Any, parts: Any):
    x, errors = measured_again(dense, fitted(), toy, parts)
    figure: Callable[[Any], float] = np.mean if name == "min_cosine" else lambda e: np.quantile(e, 0.95)
    least = 1 - figure(errors[:, 1]) / 2
    file = fitted(replace(CONFIG, cost=None, **{name: float(least)}))
    guesses = file.budgets.errors(torch.from_numpy(x))
    dealt = file.budgets.deal(guesses, file.budgets.penalty(file.cost, guesses)).numpy()
    assert 1 - figure(errors[np.arange(len(dealt)), dealt]) >= least - 1e-6
    assert file.bound == {name: pytest.approx(least)}
    assert file.cost < 1
    with pytest.raises(ValueError, match=r"no budgets meet it; the highest keep rate .*, 0\.7, .*add 1 to --keeps"):
        fitted(replace(CONFIG, cost=None, keeps=(0.7, 0.4), **{name: 1 - 1e-9}))


def test_a_fit_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch):
    run, calls, stop = fidelity.run, 0, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return run(*args, **options)

    monkeypatch.setattr(fidelity, "run", counted)
    whole = fitted()
    every, calls, stop = calls, 0, 5
    with pytest.raises(KeyboardInterrupt):
        fitted()
    calls = stop = 0
    assert fitted() == whole
    assert 0 < calls < every
    assert find_budgets("clip_vit_b16", "openai", "rankmerge").is_file()  # where names of models look


@pytest.mark.parametrize(("method", "change", "limit", "quoted"), [
    ("rankmerge", {"cost": 0.1}, None, r"cost=0\.1: expected a share .* of keep rate 0\.4"),
    ("rankmrge", {}, None, "'rankmrge': did you mean 'rankmerge'"),
    ("rankmerge", {}, 63, "63 pictures to fit to, beside 12 held out: expected 64 at least"),
    ("rankmerge", {"keeps": (0.4, 0.7)}, None, r"keeps=\[0\.4, 0\.7\]: expected two budgets at least"),
    ("patchrank", {}, None, "predictor"),
])  # fmt: skip
def test_refusals(method: str, change: dict[str, Any], limit: int | None, quoted: str):
    with pytest.raises((ValueError, FileNotFoundError), match=quoted):
        fitted(replace(CONFIG, **change), method, limit=limit)
    with pytest.raises(ValueError, match="--cost and --min-cosine: each decides"):
        replace(CONFIG, min_cosine=0.9)


@pytest.mark.parametrize(("value", "quoted"), [
    (1.0, r"signals of all 68 pictures are alike, about 1"),
    (np.nan, "picture 'train-0' has no finite signal"),
])  # fmt: skip
def test_pictures_that_tell_nothing(value: float, quoted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fidelity.Pictures, "signals", lambda self, at: np.full(len(self), value))
    with pytest.raises(ValueError, match=quoted):
        fitted()


def test_plain_pictures_are_named_and_left_out(monkeypatch: pytest.MonkeyPatch):
    signals, said = fidelity.Pictures.signals, list[str]()
    monkeypatch.setattr(fidelity.Pictures, "signals", lambda self, at: signals(self, at) * (np.arange(len(self)) > 0))
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    assert len(fitted().budgets.signals) == 68 - 2  # the first of each chunk
    assert "picture 'train-34' has no detail, its signal is 0: left out of the fit" in said


@pytest.mark.parametrize("method", ["rankmerge", "tome"])
def test_budgets_of_a_comparison_cost_the_same_for_all_methods(method: str, dense: zoo.ReducedViT):
    tower = load_tower(ARCH)
    fixed = zoo.reduce(dense, method=method, keep=0.6)
    keeps = measured.spread_keeps(tower, method, [fixed])
    rows = measured.BudgetRows(tower, method, keeps)
    assert keeps[0] == 1
    own = rows.costs[0] - 1  # of the signal
    least = 0.75 * closed_gflops(fixed) / closed_gflops(dense)
    reached = [cost - own for cost in rows.costs[1:]]
    assert reached == pytest.approx(np.geomspace(0.9, least, measured.COSTS)[: len(reached)], abs=0.02)


@pytest.mark.command("fit budgets")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.datasets.names_of", lambda names, _: list(names), raising=False)
    path = str(tmp_path / "b.json")
    words = ["fit", "budgets", "--model", ARCH, "--dataset", "emoji", "--keeps", "1", "0.5", "--cost", "0.8"]
    plot = tmp_path / "b.svg"
    assert main([*words, "--plot", str(tmp_path / "b.tiff")]) == 2
    assert "b.tiff': expected a name that ends with '.png' or '.svg'" in capsys.readouterr().err
    assert main([*words, "--full", "--output", path, "--plot", str(plot), "--json"]) == 0
    assert "one keep rate, 95 % quantile" in plot.read_text("utf-8")
    assert json.loads(capsys.readouterr().out)["budgets"]["budgets"]["keeps"] == [1.0, 0.5]
