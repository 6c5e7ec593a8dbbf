"""Greedy golden rankings against a loop that removes one window of one image at a time."""

import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.golden import SCORES, GoldenConfig, GoldenEngine, greedy_passes

GRID = 4  # of patches of 16 pixels
LABELS = torch.tensor([4, 0])
SCALE = 5.0


@pytest.fixture
def tower(tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """A tower of 16 patches, lively enough that every window matters."""
    return tiny("clip_vit_b16", noise=0.3, patch_size=16, depth=4)


@pytest.fixture
def text() -> Tensor:
    """Five classes in the joint space of 7."""
    return F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(3)), dim=-1)


@torch.no_grad()
def slow_order(
    tower: nn.Module, image: Tensor, config: GoldenConfig, text: Tensor, label: int
) -> list[int]:
    """Return the patches in the order of removal, scoring each window by timm's own blocks."""

    def rest(keep: list[int]) -> Tensor:
        x = entering[:, [0, *(1 + p for p in keep)]]
        for block in tower.blocks[config.block :]:
            x = block(x)
        return F.normalize(tower.head(tower.norm(x)[:, 0])[0], dim=0)

    def score(keep: list[int]) -> float:
        features = rest(keep)
        if config.score == "preservation":
            return float(features @ full)
        posterior = (SCALE * text @ features).softmax(dim=0)
        return float(posterior.max() if config.score == "confidence" else posterior[label])

    entering = tower.norm_pre(tower._pos_embed(tower.patch_embed(image[None])))
    for block in tower.blocks[: config.block]:
        entering = block(entering)
    left = list(range(GRID * GRID))
    full = rest(left)
    removed: list[int] = []
    while left:
        found: dict[int, list[float]] = {patch: [] for patch in left}
        for corner in product(range(0, GRID - config.window + 1, config.stride), repeat=2):
            steps = product(range(config.window), repeat=2)
            inside = {(corner[0] + r) * GRID + corner[1] + c for r, c in steps} & set(left)
            for patch in inside:
                found[patch].append(score([p for p in left if p not in inside]))
        mean = {patch: sum(s) / len(s) for patch, s in found.items()}
        # The most dispensable first; of equals the later patch.
        going = sorted(left, key=lambda p: (mean[p], p), reverse=True)[: config.greedy]
        removed += going
        left = [p for p in left if p not in going]
    return removed


@pytest.mark.parametrize(
    ("score", "block", "window", "stride", "step"),
    [
        ("preservation", 1, 2, 1, 3),
        ("preservation", 0, 1, 1, 1),
        ("preservation", 2, 2, 2, 16),
        ("label", 1, 2, 2, 4),
        ("confidence", 0, 2, 1, 5),
        ("preservation", 3, 3, 1, 99),
    ],
)
@pytest.mark.parametrize("batch", [5, 500])
def test_equals_the_slow_search(
    score: str,
    block: int,
    window: int,
    stride: int,
    step: int,
    batch: int,
    tower: nn.Module,
    text: Tensor,
):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    config = GoldenConfig(score=score, block=block, window=window, stride=stride, greedy=step)
    engine = GoldenEngine(tower, config, text=text, scale=SCALE, batch=batch)
    importance = engine.importance(images, LABELS)
    for i in range(2):
        slow = slow_order(tower, images[i], config, text, int(LABELS[i]))
        assert importance[i].argsort().tolist() == slow
        assert sorted(importance[i].tolist()) == list(range(GRID * GRID))


@pytest.mark.parametrize("score", SCORES)
def test_one_round_for_all_patches_is_one_shot(score: str, tower: nn.Module, text: Tensor):
    images = torch.randn(2, 3, 64, 64)
    orders = []
    for step in (None, GRID * GRID):
        config = GoldenConfig(score=score, block=1, greedy=step)
        engine = GoldenEngine(tower, config, text=text, scale=SCALE)
        orders.append(engine.importance(images, LABELS).argsort(dim=1, stable=True))
    assert torch.equal(orders[0], orders[1])


def test_scoring_anew_changes_the_ranking(tower: nn.Module):
    """Else the search would be a slow way of doing one-shot."""
    images = torch.randn(2, 3, 64, 64)
    once, anew = (
        GoldenEngine(tower, GoldenConfig(block=1, greedy=step)).importance(images)
        for step in (16, 2)
    )
    assert not torch.equal(once, anew)


def test_the_cost_told_is_never_less_than_the_cost(
    tower: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    engine = GoldenEngine(tower, GoldenConfig(block=1, stride=2, greedy=3))
    ran = []
    features = engine.suffix.features
    monkeypatch.setattr(engine.suffix, "features", lambda *a: ran.append(len(a[1])) or features(*a))
    engine.importance(torch.randn(1, 3, 64, 64))
    assert engine.passes == greedy_passes(4, 16, 3) == 24
    # The whole image comes on top; windows that are empty or equal are not run again.
    assert 6 < sum(ran) - 1 <= engine.passes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"greedy": 0}, "greedy=0: expected an integer from 1"),
        ({"greedy": 2.0}, "greedy=2.0: expected an integer from 1"),
        ({"greedy": 4, "approximate": "shallow:6"}, "give one of the two"),
    ],
)
def test_refused_settings(options: dict, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenConfig(**options)
