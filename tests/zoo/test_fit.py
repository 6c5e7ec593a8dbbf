"""Fitting predictors: losses by their formulas, planted rankings are found, and a stopped fit goes on."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.records.statistics import kendall_tau
from zoo.core.learned import Predictor
from zoo.core.recipes import LOSSES, FitConfig
from zoo.learning.fit import LOSS_FUNCTIONS, RankedTokens, fit_predictor, kept_share

QUICK = FitConfig(width=32, epochs=8)


class Stopped(Exception):  # noqa: N818  (what happens to a run, no error of its own)
    """Whatever ends a run."""


class Watched:
    """Tokens that end the run after so many calls."""

    def __init__(self, tokens: Tensor, calls: int) -> None:
        self.tokens, self.calls, self.shape = tokens, iter(range(calls)), tokens.shape

    def __getitem__(self, rows: Tensor) -> Tensor:
        if next(self.calls, None) is None:
            raise Stopped
        return self.tokens[rows]


def planted(count: int, seed: int) -> RankedTokens:
    """Draw images of 4 x 4 tokens whose importance is one linear function of the token."""
    tokens = torch.randn(count, 17, 12, generator=torch.Generator().manual_seed(seed))
    return RankedTokens(tokens=tokens, importance=tokens[:, 1:] @ torch.linspace(-1, 1, 12), prefix=1, grid=(4, 4))


def noise(count: int, seed: int) -> RankedTokens:
    """Draw images whose importance has nothing to do with the tokens."""
    drawn = torch.rand(count, 16, generator=torch.Generator().manual_seed(seed + 1000))
    return replace(planted(count, seed), importance=drawn)


def same(first: Predictor, second: Predictor) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(("arch", "loss"), [("mlp", "listnet"), ("conv", "bce")])
def test_a_planted_ranking_is_found(arch: str, loss: str):
    losses: list[float] = []
    config = replace(QUICK, arch=arch, loss=loss)
    predictor = fit_predictor(planted(256, 0), planted(32, 1), config, on_epoch=lambda _, now, __: losses.append(now))
    assert not predictor.training
    assert losses[-1] < losses[0]
    data = planted(64, 2)
    predicted = predictor(data.tokens, data.prefix, data.grid).detach().numpy()
    assert kendall_tau(predicted, data.importance.numpy()).mean() > 0.8
    assert abs(kendall_tau(predicted, noise(64, 2).importance.numpy()).mean()) < 0.1


def test_the_seed_decides_and_the_callers_random_numbers_stay():
    train, val, config = planted(8, 0), planted(16, 1), replace(QUICK, epochs=2)
    first = fit_predictor(train, val, config)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(first, fit_predictor(train, val, config))
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, fit_predictor(train, val, replace(config, seed=1)))


@pytest.mark.parametrize(("options", "match"), [
    ({"loss": "lisnet"}, "'lisnet': did you mean 'listnet'"),
    ({"arch": "covn"}, "'covn': did you mean 'conv'"),
    ({"epochs": 0}, "epochs=0"),
    ({"learning_rate": math.nan}, "learning_rate=nan"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1"),
])  # fmt: skip
def test_refused_recipes(options: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        FitConfig(**options)
    with pytest.raises(ValueError, match="no images to learn from"):
        fit_predictor(planted(0, 0), planted(4, 1), QUICK)


def normalised(importance: Tensor) -> Tensor:
    return (importance - importance.mean(dim=1, keepdim=True)) / importance.std(dim=1, keepdim=True)


def slow(name: str, p: list[float], t: list[float]) -> float:
    """Compute one image's loss from the formula in the docstring, patch by patch."""
    n = range(len(p))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    if name == "listnet":
        share, said = (sum(math.exp(v) for v in x) for x in (t, p))
        return -sum(math.exp(t[i]) / share * math.log(math.exp(p[i]) / said) for i in n)
    if name == "mse":
        return sum((p[i] - t[i]) ** 2 for i in n) / len(p)
    if name == "paper":
        return -sum(sigmoid(t[i]) * math.log(sigmoid(p[i])) for i in n)
    if name == "ranknet":
        pairs = [(t[i] - t[j], math.log(1 + math.exp(p[j] - p[i]))) for i in n for j in n]
        return sum(max(w, 0) * v for w, v in pairs) / sum(max(w, 0) for w, _ in pairs)
    assert name == "bce"
    order = sorted(n, key=lambda i: -t[i])
    kept = [sum(i in order[:k] for k in range(1, len(p) + 1)) for i in n]
    y = [(k - 0.5) / len(p) for k in kept]
    return -sum(y[i] * math.log(sigmoid(p[i])) + (1 - y[i]) * math.log(1 - sigmoid(p[i])) for i in n) / len(p)


@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_formula_image_by_image(name: str):
    predicted, target = torch.randn(2, 3, 9, dtype=torch.float64)
    target = normalised(target)
    each = [slow(name, p.tolist(), t.tolist()) for p, t in zip(predicted, target, strict=True)]
    assert LOSS_FUNCTIONS[name](predicted, target).item() == pytest.approx(sum(each) / 3)
    large = (1e4 * target).requires_grad_()
    loss = LOSS_FUNCTIONS[name](large, target)
    loss.backward()
    assert loss.isfinite()
    assert large.grad.isfinite().all()


def test_bce_knows_the_order_alone_and_shares_ties():
    target = torch.tensor([[3.0, 1.0, 2.0, 2.0, -9.0]])
    shares = torch.tensor([[0.9, 0.3, 0.6, 0.6, 0.1]])
    assert torch.allclose(kept_share(target), shares)
    assert torch.allclose(kept_share(target.exp()), shares)


CONFIG = FitConfig(arch="mlp", width=16, epochs=4, patience=3, learning_rate=1e-2)
TRAIN, VAL = planted(80, 0), planted(24, 1)


@pytest.mark.parametrize("calls", [0, 51])
def test_stopped_within_an_epoch(calls: int, tmp_path: Path):
    """16 or more steps make an epoch: the one that broke off is done again, the others are not."""
    path, epochs, every = tmp_path / "fit.pt", list[Any](), list[Any]()
    whole = fit_predictor(TRAIN, VAL, CONFIG, on_epoch=lambda *facts: every.append(facts))
    broken = replace(TRAIN, tokens=Watched(TRAIN.tokens, calls))
    options: dict[str, Any] = {"on_epoch": lambda *facts: epochs.append(facts), "checkpoint": path}
    with pytest.raises(Stopped):
        fit_predictor(broken, VAL, CONFIG, **options)
    assert len(epochs) == calls // 18
    assert path.is_file() == bool(epochs)
    assert same(fit_predictor(TRAIN, VAL, CONFIG, **options), whole)
    assert epochs == every  # every epoch once, with the same losses
    assert [file.name for file in tmp_path.iterdir()] == ["fit.pt"]
    nothing = replace(TRAIN, tokens=Watched(TRAIN.tokens, 0))  # a finished fit is not done again
    assert same(fit_predictor(nothing, VAL, CONFIG, checkpoint=path), whole)


def test_checkpoints_of_another_fit(tmp_path: Path):
    fit: dict[str, Any] = {"train": TRAIN, "val": VAL, "config": replace(CONFIG, epochs=1)}
    fit["checkpoint"] = tmp_path / "fit.pt"
    fit_predictor(**fit)
    for other in (
        {"config": replace(CONFIG, epochs=1, seed=1)},
        {"train": replace(TRAIN, importance=-TRAIN.importance)},
        {"val": planted(25, 1)},
    ):
        with pytest.raises(ValueError, match="is of another recipe or of other rankings"):
            fit_predictor(**fit | other)
    fit["checkpoint"].write_bytes(fit["checkpoint"].read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"fit\.pt' can't be read .*; delete it, and the fit"):
        fit_predictor(**fit)


def test_the_best_epoch_is_kept_and_patience_ends_it_also_over_breaks(tmp_path: Path):
    """Nothing can be learnt here: validation is best early, training goes on getting better."""
    train, val = noise(16, 0), noise(32, 1)
    config = FitConfig(arch="mlp", loss="listnet", learning_rate=1e-2, epochs=60, patience=6)
    epochs: list[tuple[float, float]] = []
    predictor = fit_predictor(train, val, config, on_epoch=lambda _, *both: epochs.append(both))
    losses = [v for _, v in epochs]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + config.patience < config.epochs
    assert epochs[-1][0] < epochs[best][0]
    predicted = predictor(val.tokens, val.prefix, val.grid).tolist()
    each = [slow("listnet", p, t.tolist()) for p, t in zip(predicted, normalised(val.importance), strict=True)]
    assert sum(each) / len(each) == pytest.approx(losses[best], abs=1e-5)
    assert losses[-1] > losses[best] + 1e-3
    again: list[tuple[float, float]] = []

    def stop(epoch: int, *both: float) -> None:
        again.append(both)
        if epoch in (len(epochs) - 2, 1):
            raise Stopped

    options: dict[str, Any] = {"on_epoch": stop, "checkpoint": tmp_path / "fit.pt"}
    for _ in range(2):
        with pytest.raises(Stopped):
            fit_predictor(train, val, config, **options)
    assert same(fit_predictor(train, val, config, **options), predictor)
    assert again == epochs
