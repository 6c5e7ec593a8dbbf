"""Removals followed into some tokens against whole sequences, and against loops."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.approximate import follow, run_whole
from zoo.suffix import Suffix
from zoo.tokens import Tokens
from zoo.windows import members, outside, windows

GRID = 8
PATCHES = GRID * GRID
CELLS = windows((GRID, GRID), 3, 2)


@pytest.fixture
def tower(tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """A tower lively enough that every window matters."""
    return tiny("clip_vit_b16", noise=0.3)


@torch.no_grad()
def entering(tower: zoo.ReducedViT, block: int, count: int = 2) -> Tokens:
    start, _ = tower.advance(tower.embed(torch.randn(count, 3, 64, 64)), stop=block)
    return start


@torch.no_grad()
def removed(suffix: Suffix, start: Tokens) -> Tensor:
    """Features of images without each window, (B, W, D)."""
    images = len(start.x)
    kept = outside(members(CELLS, PATCHES)).repeat(images, 1)
    rows = torch.arange(images).repeat_interleave(len(CELLS))
    return suffix.features(start, rows, kept).reshape(images, len(CELLS), -1)


@pytest.mark.parametrize(
    "options",
    [{}, {"init_values": 0.3}, {"qk_norm": True}, {"qkv_bias": False}, {"reg_tokens": 4}],
    ids=str,
)
@pytest.mark.parametrize("block", [0, 3, 5])
@torch.no_grad()
def test_a_removal_followed_into_all_patches_is_the_removal(
    options: dict[str, Any], block: int, tiny: Callable[..., nn.Module]
):
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, **options), block, batch=9)
    start = entering(suffix.model, block)
    target, found = follow(suffix, start, CELLS, PATCHES - 9)
    assert torch.allclose(found, removed(suffix, start), atol=1e-5)
    whole = suffix.features(start, torch.arange(2), torch.arange(PATCHES).expand(2, -1))
    assert torch.allclose(target, whole, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("prefix", [1, 3])
@torch.no_grad()
def test_followed_tokens_change_and_all_others_stay(
    count: int, prefix: int, tiny: Callable[..., nn.Module]
):
    """Run whole sequences with the window masked, and put back what may not change."""
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, reg_tokens=prefix - 1), 2, batch=3)
    start = entering(suffix.model, 2)
    carriers = run_whole(suffix, start.x, prefix, CELLS, choose=True).carriers
    assert carriers is not None
    _, found = follow(suffix, start, CELLS, count)
    for image in range(2):
        for index, cells in enumerate(CELLS.tolist()):
            still = whole = start.x[image : image + 1]
            mask = torch.zeros(prefix + PATCHES)
            mask[[prefix + cell for cell in cells]] = -torch.inf
            moved = [*range(prefix), *(prefix + carriers[image, index, :count]).tolist()]
            for block in suffix.model.blocks[2:]:
                whole = block(whole)
                changed = block(still, attn_mask=mask.expand(prefix + PATCHES, -1))
                still = whole.clone()
                still[:, moved] = changed[:, moved]
            features = suffix.model.forward_head(suffix.model.norm(still))
            assert torch.allclose(found[image, index], F.normalize(features[0], dim=0), atol=1e-5)


@torch.no_grad()
def test_carriers_attend_to_the_window_and_are_attended_to_later(tower: zoo.ReducedViT):
    suffix = Suffix(tower, 3)
    x = entering(tower, 3, count=1).x
    carriers = run_whole(suffix, x, 1, CELLS, choose=True).carriers
    assert carriers is not None
    attention = []
    for block in tower.blocks[3:]:
        qkv = block.attn.qkv(block.norm1(x)).reshape(1, 1 + PATCHES, 3, 3, 16)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        attention.append((query @ key.transpose(-2, -1) / 4).softmax(dim=-1).mean(dim=1)[0])
        x = block(x)
    for index in (0, 5, 8):
        inside = CELLS[index].tolist()
        carried = {}
        for patch in set(range(PATCHES)) - set(inside):
            carried[patch] = sum(
                float(attention[early][1 + patch, 1 + cell] * attention[late][0, 1 + patch])
                for late in range(3)
                for early in range(late)
                for cell in inside
            )
        order = carriers[0, index].tolist()
        assert set(order[-9:]) == set(inside)
        values = [carried[patch] for patch in order[:-9]]
        assert all(a >= b - 1e-7 for a, b in pairwise(values))
