"""Losses against slow forms, where they are least, and what is wrong with the printed one."""

import math
import re

import pytest
import torch
from torch import Tensor

from zoo.fit import LOSSES, kept_share, loss_of


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
    return -sum(
        y[i] * math.log(sigmoid(p[i])) + (1 - y[i]) * math.log(1 - sigmoid(p[i])) for i in n
    ) / len(p)


@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_formula_image_by_image(name: str):
    predicted, target = drawn()
    each = [slow(name, p.tolist(), t.tolist()) for p, t in zip(predicted, target, strict=True)]
    assert loss_of(name, predicted, target).item() == pytest.approx(sum(each) / 3)


@pytest.mark.parametrize("name", ["listnet", "mse", "bce"])
def test_least_at_the_golden_ranking(name: str):
    _, target = drawn()
    best = target if name != "bce" else torch.logit(kept_share(target))
    here = best.clone().requires_grad_()
    least = loss_of(name, here, target)
    least.backward()
    assert here.grad.abs().max() < 1e-12
    for step in (0.01, 0.1, 1.0):
        assert loss_of(name, best + step * torch.randn_like(target), target) > least
    assert torch.equal(best.argsort(dim=1), target.argsort(dim=1))


@pytest.mark.parametrize("name", ["listnet", "ranknet"])
def test_only_differences_count(name: str):
    predicted, target = drawn()
    moved = loss_of(name, predicted + 5, target)
    assert moved.item() == pytest.approx(loss_of(name, predicted, target).item())


def test_ranknet_wants_every_pair_in_order():
    """Whatever two patches change places: the order as it was is better."""
    _, target = drawn(1)
    right = loss_of("ranknet", target, target)
    for i in range(9):
        for j in range(i):
            swapped = target.clone()
            swapped[0, [i, j]] = target[0, [j, i]]
            assert loss_of("ranknet", swapped, target) > right


def test_bce_knows_the_order_alone_and_shares_ties():
    target = torch.tensor([[3.0, 1.0, 2.0, 2.0, -9.0]])
    shares = torch.tensor([[0.9, 0.3, 0.6, 0.6, 0.1]])
    assert torch.allclose(kept_share(target), shares)
    assert torch.allclose(kept_share(target.exp()), shares)


def test_the_printed_loss_is_degenerate():
    """Growing always helps, whatever the target; the others have none of it."""
    predicted, target = drawn()
    for wanted in (target, -target):
        grown = [loss_of("paper", predicted + c, wanted).item() for c in (0, 1, 10, 100, 700)]
        assert grown == sorted(grown, reverse=True)
        assert grown[0] > 1
        assert grown[-1] < 1e-12  # with the ranking of random predictions
    predicted.requires_grad_()
    loss_of("paper", predicted, target).backward()
    assert (predicted.grad < 0).all()
    perfect = loss_of("paper", target, target)
    upside_down = loss_of("paper", 100 - target, target)
    assert upside_down < perfect
    for name in LOSSES.keys() - {"paper"}:
        assert loss_of(name, 100 - target, target) > loss_of(name, target, target)


def test_a_flat_image_has_no_pairs():
    flat = torch.zeros(2, 5)
    assert loss_of("ranknet", torch.randn(2, 5), flat) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_large_predictions_stay_finite(name: str):
    _, target = drawn()
    predicted = (1e4 * target).requires_grad_()
    loss = loss_of(name, predicted, target)
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad.isfinite().all()


def test_unknown_losses():
    match = "loss='rancnet': did you mean 'ranknet'? expected one of bce, listnet, mse"
    with pytest.raises(ValueError, match=re.escape(match)):
        loss_of("rancnet", *drawn())
