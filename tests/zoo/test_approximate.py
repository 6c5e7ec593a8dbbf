"""Specs of approximations, what the engine makes of them, and what they cost."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from harness.models.cost import gflops
from zoo.core.tokens import Tokens
from zoo.ranking.approximate import Effort, follow, gate_slopes, gated, jacobian, run_whole
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance
from zoo.ranking.suffix import Suffix
from zoo.ranking.windows import members, outside, windows

pytestmark = pytest.mark.usefixtures("no_grad")
Build = Callable[..., nn.Module]
GRID = 8
PATCHES = GRID * GRID
SPECS = ("follow:0", "follow:5", "jacobian:3", "shallow:4")
LABELS = torch.tensor([4, 0, 2])


@pytest.fixture
def text() -> dict[str, Any]:
    """Five classes in the joint space of 7."""
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    return {"text": F.normalize(features, dim=-1), "scale": 5.0}


@pytest.mark.parametrize("score", SCORES)
def test_the_last_block_or_all_patches_make_it_exact(score: str, tower: zoo.ReducedViT, text: dict):
    images = torch.randn(3, 3, 64, 64)
    exact = golden_importance(tower, images, GoldenConfig(score=score), labels=LABELS, **text)
    for spec in ("shallow:5", f"follow:{PATCHES - 4}"):
        config = GoldenConfig(score=score, approximate=spec)
        found = golden_importance(tower, images, config, labels=LABELS, **text)
        assert torch.allclose(found, exact, atol=1e-5)


def test_a_shallower_tower_is_one_that_ends_there(tower: zoo.ReducedViT, tiny: Build):
    images = torch.randn(2, 3, 64, 64)
    short = tiny("clip_vit_b16", depth=4)
    weights = {k: v for k, v in tower.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(weights)
    found = golden_importance(tower, images, GoldenConfig(block=1, approximate="shallow:3"))
    assert torch.equal(found, golden_importance(short, images, GoldenConfig(block=1)))
    assert len(tower.blocks) == 6  # cutting the one leaves the other whole


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("score", SCORES)
def test_images_and_calls_are_independent(score: str, spec: str, tower: zoo.ReducedViT, text: dict):
    images = torch.randn(3, 3, 64, 64)
    config = GoldenConfig(score=score, block=2, approximate=spec)
    together = GoldenEngine(tower, config, batch=64, **text).importance(images, LABELS)
    again = GoldenEngine(tower, config, batch=64, **text).importance(images, LABELS)
    assert torch.equal(together, again)
    narrow = GoldenEngine(tower, config, batch=5, **text)
    for i in range(3):
        alone = narrow.importance(images[i : i + 1], LABELS[i : i + 1])
        assert alone.shape == (1, PATCHES)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("spec", ["follow:5", "jacobian:3"])
def test_gradients_and_flags_of_the_tower_stay_as_they_are(spec: str, tower: zoo.ReducedViT):
    golden_importance(tower, torch.randn(1, 3, 64, 64), GoldenConfig(approximate=spec))
    assert all(p.requires_grad and p.grad is None for p in tower.parameters())
    assert not torch.is_inference_mode_enabled()


def test_costs_grow_from_about_one_pass_to_that_of_the_removals(tiny: Build):
    shape = {"img_size": 196, "patch_size": 14, "embed_dim": 384, "depth": 9, "num_heads": 6}
    tower = tiny("clip_vit_b16", **shape)

    def passes(spec: str | None) -> float:
        return GoldenEngine(tower, GoldenConfig(approximate=spec)).passes

    assert passes(None) == passes("shallow:8") == 169
    assert passes("follow:0") == pytest.approx(1.02, abs=0.02)
    assert passes("follow:192") == pytest.approx(169, rel=0.1)
    followed = [passes(f"follow:{n}") for n in (0, 1, 4, 16, 64, 192)]
    assert followed == sorted(followed)
    assert passes("jacobian:9") - passes("jacobian:8") == pytest.approx(1.15, abs=0.02)
    assert passes("shallow:5") == pytest.approx(169 * 2 / 5, rel=0.01)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("folow:4", "approximate='folow:4': did you mean 'follow'? expected one of follow"),
        ("", "approximate='': expected one of follow, jacobian, shallow, as in follow:N"),
        ("follow", "approximate='follow': expected follow:N with an integer N from 0"),
        ("follow:-1", "approximate='follow:-1': expected follow:N with an integer N from 0"),
        ("jacobian:0", "approximate='jacobian:0': expected jacobian:N with an integer N from 1"),
        ("shallow:1.5", "approximate='shallow:1.5': expected shallow:N with an integer"),
    ],
)
def test_refused_specs(spec: str, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenConfig(approximate=spec)


@pytest.mark.parametrize(
    ("spec", "options", "match"),
    [
        ("follow:61", {}, "approximate='follow:61': expected a number from 0 to 60 here"),
        ("jacobian:50", {}, "approximate='jacobian:50': expected a number from 1 to 49 here"),
        ("shallow:6", {}, "approximate='shallow:6': expected a number from 3 to 5 here"),
        ("shallow:2", {}, "approximate='shallow:2': expected a number from 3 to 5 here"),
        ("follow:4", {"global_pool": "avg"}, "needs features that come from the class token"),
    ],
)
def test_what_a_tower_can_not_do(spec: str, options: dict, match: str, tiny: Build):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenEngine(tiny("clip_vit_b16", **options), GoldenConfig(approximate=spec))


class Part(nn.Module):
    """Embed an image, run it up to a block and, if ``rest``, on from there for CLS alone."""

    def __init__(self, tower: zoo.ReducedViT, block: int, rest: bool) -> None:
        super().__init__()
        self.tower, self.block, self.rest = tower, block, rest

    def forward(self, images: Tensor) -> Tensor:
        start, _ = self.tower.advance(self.tower.embed(images), stop=self.block)
        if not self.rest:
            return start.x
        last = len(self.tower.blocks) - 1
        end, _ = self.tower.advance(start, self.block, last)
        return self.tower.block(last).first(end)


@pytest.mark.parametrize("block", [0, 3, 5])
@pytest.mark.parametrize("prefix", [1, 4])
def test_a_whole_pass_counts_what_fvcore_counts(block: int, prefix: int, tiny: Build):
    tower = tiny("clip_vit_b16", num_classes=0, reg_tokens=prefix - 1)

    def products(rest: bool) -> float:
        counted = gflops(Part(tower, block, rest), 64).by_operator
        return sum(n for name, n in counted.items() if "norm" not in name)

    effort = Effort.of(tower, block)
    assert (effort.grid, effort.tokens, effort.blocks) == ((8, 8), 64 + prefix, 6 - block)
    assert effort.whole == pytest.approx(1e9 * (products(True) - products(False)), rel=1e-6)


CELLS = windows((GRID, GRID), 3, 2)


def entering(tower: zoo.ReducedViT, block: int, count: int = 2) -> Tokens:
    start, _ = tower.advance(tower.embed(torch.randn(count, 3, 64, 64)), stop=block)
    return start


def removed(suffix: Suffix, start: Tokens) -> Tensor:
    """Features of images without each window, (B, W, D)."""
    images = len(start.x)
    kept = outside(members(CELLS, PATCHES)).repeat(images, 1)
    rows = torch.arange(images).repeat_interleave(len(CELLS))
    return suffix.features(start, rows, kept).reshape(images, len(CELLS), -1)


@pytest.mark.parametrize(
    "options", [{}, {"init_values": 0.3}, {"qk_norm": True}, {"qkv_bias": False}, {"reg_tokens": 4}], ids=str
)
@pytest.mark.parametrize("block", [0, 3, 5])
def test_a_removal_followed_into_all_patches_is_the_removal(options: dict, block: int, tiny: Build):
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, **options), block, batch=9)
    start = entering(suffix.model, block)
    target, found = follow(suffix, start, CELLS, PATCHES - 9)
    assert torch.allclose(found, removed(suffix, start), atol=1e-5)
    whole = suffix.features(start, torch.arange(2), torch.arange(PATCHES).expand(2, -1))
    assert torch.allclose(target, whole, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("prefix", [1, 3])
def test_followed_tokens_change_and_all_others_stay(count: int, prefix: int, tiny: Build):
    """Run whole sequences with the window masked, and put back what may not change."""
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, reg_tokens=prefix - 1), 2, batch=3)
    start = entering(suffix.model, 2)
    *_, carriers = run_whole(suffix, start, CELLS, choose=True)
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


def test_carriers_attend_to_the_window_and_are_attended_to_later(tower: zoo.ReducedViT):
    suffix = Suffix(tower, 3)
    start = entering(tower, 3, count=1)
    *_, carriers = run_whole(suffix, start, CELLS, choose=True)
    x = start.x
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


@pytest.mark.parametrize("block", [0, 4])
def test_gates_go_from_the_whole_image_to_one_without_the_window(block: int, tower: zoo.ReducedViT):
    suffix = Suffix(tower, block)
    start = entering(tower, block)
    rows, everything = torch.arange(2), torch.arange(PATCHES).expand(2, -1)
    open_ = gated(suffix, start, torch.zeros(2, 1 + PATCHES))
    assert torch.allclose(open_, suffix.features(start, rows, everything), atol=1e-5)
    without = removed(suffix, start)
    for index, cells in enumerate(CELLS):
        gates = torch.zeros(2, 1 + PATCHES).index_fill(1, 1 + cells, -1e4)
        assert torch.allclose(gated(suffix, start, gates), without[:, index], atol=1e-5)


def test_slopes_are_those_of_finite_differences(tower: zoo.ReducedViT):
    suffix = Suffix(tower.double(), 3)
    start, _ = tower.advance(tower.embed(torch.randn(2, 3, 64, 64).double()), stop=3)
    directions = torch.randn(2, 4, 7, dtype=torch.float64)
    slopes = gate_slopes(suffix, start, directions)
    assert slopes.shape == (2, 4, PATCHES)
    for patch in (0, 13, 63):
        step = torch.zeros(2, 1 + PATCHES, dtype=torch.float64)
        step[:, 1 + patch] = 1e-3
        up, down = (gated(suffix, start, sign * step).double() for sign in (1, -1))
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
