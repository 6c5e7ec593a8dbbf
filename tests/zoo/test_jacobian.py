"""Gates and their slopes against removals, finite differences and loops."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.approximate import gate_slopes, gated, jacobian
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


@pytest.mark.parametrize("block", [0, 4])
@torch.no_grad()
def test_gates_go_from_the_whole_image_to_one_without_the_window(block: int, tower: zoo.ReducedViT):
    suffix = Suffix(tower, block)
    start = entering(tower, block)
    rows, everything = torch.arange(2), torch.arange(PATCHES).expand(2, -1)
    open_ = gated(suffix, start.x, torch.zeros(2, 1 + PATCHES))
    assert torch.allclose(open_, suffix.features(start, rows, everything), atol=1e-5)
    without = removed(suffix, start)
    for index, cells in enumerate(CELLS):
        gates = torch.zeros(2, 1 + PATCHES).index_fill(1, 1 + cells, -1e4)
        assert torch.allclose(gated(suffix, start.x, gates), without[:, index], atol=1e-5)


def test_slopes_are_those_of_finite_differences(tower: zoo.ReducedViT):
    suffix = Suffix(tower.double(), 3)
    with torch.no_grad():
        start, _ = tower.advance(tower.embed(torch.randn(2, 3, 64, 64).double()), stop=3)
    directions = torch.randn(2, 4, 7, dtype=torch.float64)
    slopes = gate_slopes(suffix, start, directions)
    assert slopes.shape == (2, 4, PATCHES)
    for patch in (0, 13, 63):
        step = torch.zeros(2, 1 + PATCHES, dtype=torch.float64)
        step[:, 1 + patch] = 1e-3
        with torch.no_grad():
            up, down = (gated(suffix, start.x, sign * step).double() for sign in (1, -1))
        slope = torch.einsum("bkd,bd->bk", directions, (up - down) / 2e-3)
        assert torch.allclose(slopes[:, :, patch], slope, rtol=1e-3, atol=1e-4)


def test_windows_add_up_from_their_patches_along_each_direction(tower: zoo.ReducedViT):
    """With all directions the change of features is the gradient's, summed patch by patch."""
    suffix = Suffix(tower, 2)
    start = entering(tower, 2)
    target, found = jacobian(suffix, start, CELLS, len(CELLS))
    slopes = gate_slopes(suffix, start, torch.eye(7).expand(2, -1, -1))  # features by gates
    for image in range(2):
        for index, cells in enumerate(CELLS.tolist()):
            features = target[image].clone()
            for cell in cells:
                features -= slopes[image, :, cell]
            assert torch.allclose(found[image, index], F.normalize(features, dim=0), atol=1e-5)


def test_fewer_directions_are_a_part_of_more(tower: zoo.ReducedViT):
    """Each direction adds to how far features move, so that cosines can only fall."""
    suffix = Suffix(tower, 2)
    start = entering(tower, 2)
    cosines = []
    for count in (1, 2, 4, 6):
        target, found = jacobian(suffix, start, CELLS, count)
        cosines.append((found * target.unsqueeze(1)).sum(dim=-1))
    assert all((b <= a + 1e-6).all() for a, b in pairwise(cosines))
    assert cosines[-1].mean() < cosines[0].mean() - 1e-4
