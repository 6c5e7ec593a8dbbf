"""PiToMe: energies by loops over pairs of tokens, who is protected, who merges into whom."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo
from baselines.pitome import energy
from baselines.tome import merge
from zoo.core.tokens import Tokens


def slow_energy(metric: Tensor, margin: float, alpha: float) -> list[float]:
    """Equation of the paper for one image: mean over all tokens of f_m of the cosine."""
    energies = []
    for one in metric:
        total = 0.0
        for other in metric:
            cosine = float(F.cosine_similarity(one, other, 0))
            total += cosine if cosine >= margin else alpha * (math.exp(cosine - margin) - 1)
        energies.append(total / len(metric))
    return energies


def slow_merge(x: Tensor, size: list[float], metric: Tensor, r: int, margin: float) -> dict[int, tuple[float, Tensor]]:
    """Merge one image's tokens by plain loops: the tokens that are left with their sizes, by place."""
    energies = slow_energy(metric, margin, 1.0)
    mergeable = sorted(range(len(x)), key=lambda place: -energies[place])[: 2 * r]
    left = {place: (size[place], x[place] * size[place]) for place in range(len(x))}
    for a in mergeable[1::2]:
        best = max(mergeable[::2], key=lambda b: float(F.cosine_similarity(metric[a], metric[b], 0)))
        left[best] = (left[best][0] + size[a], left[best][1] + x[a] * size[a])
    return {p: (s, total / s) for p, (s, total) in left.items() if p not in mergeable[1::2]}


@pytest.mark.parametrize(("n", "r", "index"), [(2, 1, 0), (9, 4, 5), (16, 3, 2), (16, 8, 3)])
def test_merging_is_the_slow_loop(n: int, r: int, index: int, tower: VisionTransformer):
    reducer = zoo.reduce(tower, method="pitome", keep=0.5).reducer
    tokens = Tokens.start(torch.randn(2, 1 + n, 6), 1, (1, n))
    tokens, metric = tokens._replace(size=torch.randint(1, 5, (2, n)).float()), torch.randn(2, n, 3)
    after = reducer.merge(index, tokens, metric, r)
    for image in range(2):
        size = tokens.size[image].tolist()
        wanted = slow_merge(tokens.patches[image], size, metric[image], r, 0.9 - 0.9 * index / 6)
        assert after.patch_idx[image].tolist() == sorted(wanted)
        assert after.size[image].tolist() == [wanted[place][0] for place in sorted(wanted)]
        stacked = torch.stack([wanted[place][1] for place in sorted(wanted)])
        assert torch.allclose(after.patches[image], stacked, atol=1e-5)


@pytest.mark.parametrize(("margin", "alpha"), [(0.9, 1.0), (0.0, 1.0), (0.3, 0.5)])
def test_energy_is_the_slow_sum(margin: float, alpha: float):
    metric = torch.randn(2, 12, 4)
    for found, image in zip(energy(metric, margin, alpha), metric, strict=True):
        assert found.tolist() == pytest.approx(slow_energy(image, margin, alpha), abs=1e-5)


def test_the_same_share_goes_in_every_block_with_the_keys_as_metric(tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="pitome", keep=0.5)
    trace = model.trace(images)
    assert trace.tokens_per_block == tuple(1 + round(64 * 0.5 ** (block / 6)) for block in range(1, 7))
    key = model.blocks[0].attn.qkv(model.blocks[0].norm1(model.embed(images).x))[:, 1:, 48:96]
    metric = key.unflatten(2, (3, 16)).mean(dim=2)
    energies = slow_energy(metric[0], 0.9, 1.0)
    mergeable = sorted(range(64), key=lambda place: -energies[place])[:14]
    gone = set(range(64)) - set(trace.reductions[0].after[0].tolist())
    assert gone == set(mergeable[1::2])


def test_blocks_before_energy_counts_merge_as_tome_does(tower: VisionTransformer):
    reducer = zoo.reduce(tower, method="pitome", keep=0.5, energy_from=3).reducer
    tokens, metric = Tokens.start(torch.randn(2, 17, 6), 1, (4, 4)), torch.randn(2, 16, 4)
    ours, theirs = reducer.merge(2, tokens, metric, 5), merge(2, tokens, metric, 5)
    assert torch.equal(ours.patch_idx, theirs.patch_idx)
    assert torch.equal(ours.x, theirs.x)
    assert not torch.equal(reducer.merge(3, tokens, metric, 5).patch_idx, ours.patch_idx)
