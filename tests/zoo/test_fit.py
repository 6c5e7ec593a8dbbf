"""Fitting predictors: planted rankings are found, and saved files serve exactly their model."""

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.records.statistics import kendall_tau
from zoo.core.predictor import Predictor
from zoo.learning.fit import LOSSES, FitConfig, RankedTokens, fit_predictor, kept_share

QUICK = FitConfig(width=32, epochs=30)


def planted(count: int, seed: int) -> RankedTokens:
    """Draw images of 4 x 4 tokens whose importance is one linear function of the token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 17, 12, generator=generator)
    direction = torch.linspace(-1, 1, 12)
    return RankedTokens(tokens=tokens, importance=tokens[:, 1:] @ direction, prefix=1, grid=(4, 4))


def noise(count: int, seed: int) -> RankedTokens:
    """Draw images whose importance has nothing to do with the tokens."""
    drawn = torch.rand(count, 16, generator=torch.Generator().manual_seed(seed + 1000))
    return replace(planted(count, seed), importance=drawn)


@torch.no_grad()
def mean_tau(predictor: Predictor, data: RankedTokens) -> float:
    predicted = predictor(data.tokens.float(), data.prefix, data.grid)
    return kendall_tau(predicted.numpy(), data.importance.numpy()).mean()


@torch.no_grad()
def val_loss(predictor: Predictor, data: RankedTokens) -> float:
    """Compute ListNet's loss image by image."""
    total = 0.0
    for tokens, importance in zip(data.tokens, data.importance, strict=True):
        predicted = predictor(tokens[None].float(), data.prefix, data.grid)[0].tolist()
        target = (importance - importance.mean()) / importance.std()
        total += slow("listnet", predicted, target.tolist())
    return total / len(data.tokens)


@pytest.mark.parametrize(("arch", "loss"), [("mlp", "listnet"), ("conv", "bce")])
def test_a_planted_ranking_is_found(arch: str, loss: str):
    losses: list[float] = []
    config = replace(QUICK, arch=arch, loss=loss)
    predictor = fit_predictor(
        planted(512, 0), planted(32, 1), config, on_epoch=lambda epoch, train, val: losses.append(train)
    )
    assert not predictor.training
    assert losses[-1] < losses[0]
    assert mean_tau(predictor, planted(64, 2)) > 0.8
    assert abs(mean_tau(predictor, noise(64, 2))) < 0.1


def test_the_seed_decides():
    data = planted(64, 0), planted(16, 1)
    config = replace(QUICK, epochs=3)
    first = fit_predictor(*data, config).state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = fit_predictor(*data, config).state_dict()
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers
    assert all(torch.equal(first[k], again[k]) for k in first)
    other = fit_predictor(*data, replace(config, seed=1)).state_dict()
    assert not any(torch.equal(first[k], other[k]) for k in first if k.endswith("token.weight"))


def test_some_of_the_images_as_if_there_were_no_others():
    """``take`` is lazy, and the fit can't tell."""
    train, val = planted(40, 0), planted(16, 1)
    rows = torch.tensor([7, 3, 39, 3])
    chosen = train.take(rows)
    assert len(chosen) == chosen.tokens.shape[0] == 4
    assert torch.equal(chosen.tokens[torch.tensor([2, 0])], train.tokens[[39, 7]])
    copied = replace(train, tokens=train.tokens[rows], importance=train.importance[rows])
    config = replace(QUICK, epochs=2)
    fits = [fit_predictor(data, val, config).state_dict() for data in (chosen, copied)]
    assert all(torch.equal(fits[0][k], fits[1][k]) for k in fits[0])


def test_scale_and_level_of_the_importance_do_not_count():
    """The target is normalised per image; float16 tokens are taken as they are."""
    train, val, config = planted(64, 0), planted(16, 1), replace(QUICK, epochs=3, loss="mse")
    half = [replace(d, tokens=d.tokens.half()) for d in (train, val)]
    scale, level = torch.rand(64, 1) + 0.5, torch.randn(64, 1)
    moved = replace(half[0], importance=half[0].importance * scale + level)
    a, b = fit_predictor(half[0], half[1], config), fit_predictor(moved, half[1], config)
    x = planted(8, 2).tokens
    assert torch.allclose(a(x, 1, (4, 4)), b(x, 1, (4, 4)), atol=1e-2)


def test_the_best_epoch_is_kept_and_patience_ends_it():
    """Nothing can be learnt here: validation is best early, training goes on getting better."""
    train, val = noise(16, 0), noise(32, 1)
    epochs: list[tuple[float, float]] = []
    config = FitConfig(arch="mlp", loss="listnet", learning_rate=1e-2, epochs=60, patience=6)
    predictor = fit_predictor(train, val, config, on_epoch=lambda _, *both: epochs.append(both))
    losses = [v for _, v in epochs]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + config.patience < config.epochs
    assert epochs[-1][0] < epochs[best][0]
    assert val_loss(predictor, val) == pytest.approx(losses[best], abs=1e-5)
    assert losses[-1] > losses[best] + 1e-3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "lisnet"}, "loss='lisnet': did you mean 'listnet'"),
        ({"arch": "covn"}, "arch='covn': did you mean 'conv'"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_refused_recipes(options: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        FitConfig(**options)
    with pytest.raises(ValueError, match="no images to learn from"):
        fit_predictor(planted(0, 0), planted(4, 1), QUICK)


def drawn(count: int = 3, patches: int = 9) -> tuple[Tensor, Tensor]:
    predicted, target = torch.randn(2, count, patches, dtype=torch.float64)
    centred = target - target.mean(dim=1, keepdim=True)
    return predicted, centred / centred.std(dim=1, keepdim=True)


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
    predicted, target = drawn()
    each = [slow(name, p.tolist(), t.tolist()) for p, t in zip(predicted, target, strict=True)]
    assert LOSSES[name](predicted, target).item() == pytest.approx(sum(each) / 3)


@pytest.mark.parametrize("name", LOSSES)
def test_large_predictions_stay_finite(name: str):
    _, target = drawn()
    predicted = (1e4 * target).requires_grad_()
    loss = LOSSES[name](predicted, target)
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad.isfinite().all()


def test_bce_knows_the_order_alone_and_shares_ties():
    target = torch.tensor([[3.0, 1.0, 2.0, 2.0, -9.0]])
    shares = torch.tensor([[0.9, 0.3, 0.6, 0.6, 0.1]])
    assert torch.allclose(kept_share(target), shares)
    assert torch.allclose(kept_share(target.exp()), shares)


@pytest.mark.parametrize(("count", "steps"), [(1, 16), (70, 18), (640, 20)])
def test_few_images_are_gone_through_again(count: int, steps: int):
    """An epoch has at least 16 steps, in whole rounds through the images."""
    batches: list[list[int]] = []
    data = planted(count, 0)

    class Tokens:
        shape = (count, 17, 12)

        def __getitem__(self, rows: Tensor) -> Tensor:
            batches.append(rows.tolist())
            return data.tokens[rows]

    config = FitConfig(arch="linear", epochs=1)
    fit_predictor(replace(data, tokens=Tokens()), planted(8, 1), config)
    assert len(batches) == steps
    assert Counter(chain(*batches)) == dict.fromkeys(range(count), sum(map(len, batches)) // count)


@pytest.mark.parametrize("name", ["listnet", "mse", "bce"])
def test_least_at_the_golden_ranking(name: str):
    _, target = drawn()
    best = target if name != "bce" else torch.logit(kept_share(target))
    here = best.clone().requires_grad_()
    least = LOSSES[name](here, target)
    least.backward()
    assert here.grad.abs().max() < 1e-12
    for step in (0.01, 0.1, 1.0):
        assert LOSSES[name](best + step * torch.randn_like(target), target) > least
    assert torch.equal(best.argsort(dim=1), target.argsort(dim=1))


def test_the_printed_loss_is_degenerate():
    """Growing always helps, whatever the target; the others have none of it."""
    predicted, target = drawn()
    grown = [LOSSES["paper"](predicted + c, target).item() for c in (0, 1, 10, 100, 700)]
    assert grown == sorted(grown, reverse=True)
    assert grown[-1] < 1e-12  # with the ranking of random predictions
    assert LOSSES["paper"](100 - target, target) < LOSSES["paper"](target, target)
    for name in LOSSES.keys() - {"paper"}:
        assert LOSSES[name](100 - target, target) > LOSSES[name](target, target)
