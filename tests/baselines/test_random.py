"""Random pruning: uniform, repeatable, blind to images."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo
from baselines.random import hashed


def kept(model: zoo.ReducedViT, images: Tensor) -> list[list[int]]:
    return model.trace(images).reductions[-1].after.tolist()


def slow_hash(position: int, seed: int) -> float:
    """Mix one position with Python's unbounded integers."""
    h = (position + 1) * 0x9E3779B1 + (seed * 0x85EBCA77) % 2**32
    for multiplier in (0x7FEB352D, 0x846CA68B):
        h %= 2**32
        h = ((h ^ (h >> 16)) * multiplier) % 2**32
    h ^= h >> 15
    return (h % 2**24) / 2**24


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31, 2**40 + 3])
def test_the_hash_is_32_bit_arithmetic(seed: int):
    positions = torch.arange(576)
    found = hashed(positions[None], seed)[0]
    assert found.dtype == torch.float32
    assert found.tolist() == [slow_hash(p, seed) for p in range(576)]
    assert found.unique().numel() >= 575


def test_every_patch_is_kept_equally_often():
    """Chi-square over 2000 seeds: each of 196 patches, kept with probability 0.6."""
    seeds, left = 2000, 118
    positions = torch.arange(196)[None]
    count = torch.zeros(196)
    for seed in range(seeds):
        count[hashed(positions, seed)[0].argsort(descending=True)[:left]] += 1
    mean = seeds * left / 196
    variance = mean * (1 - left / 196)
    chi = ((count - mean) ** 2 / variance).sum().item()
    assert 140 < chi < 260  # 195 degrees of freedom: mean 195, standard deviation 20


def test_one_order_serves_all_images_and_runs(tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="random", keep=0.5)
    first = kept(model, images)
    torch.manual_seed(99)
    assert first == kept(model, torch.randn(3, 3, 64, 64))
    assert first[0] == first[1] == first[2] == kept(model.train(), images[:1])[0]
    models = (zoo.reduce(tower, method="random", keep=0.5, seed=seed) for seed in range(20))
    assert len({tuple(kept(model, images)[0]) for model in models}) == 20


def test_lower_keep_rates_are_subsets(tower: VisionTransformer, images: Tensor):
    """One order: what stays at 30 % stays at 60 % as well, in one shot or in stages."""
    few = kept(zoo.reduce(tower, method="random", keep=0.3), images)[0]
    more = kept(zoo.reduce(tower, method="random", keep=0.6), images)[0]
    staged = zoo.reduce(tower, method="random", keep=0.3, reduce_at=[1, 2, 5])
    assert set(few) < set(more)
    assert kept(staged, images)[0] == few
