"""The rest of a tower on shortened sequences, whole or by following a removal; lean blocks."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from lively import Build
from torch import Tensor, nn

import zoo
from harness.measure.cost import gflops
from harness.records.statistics import kendall_tau
from zoo.core.tokens import Tokens
from zoo.ranking.approximate import Effort
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.suffix import Suffix, follow, run_whole
from zoo.ranking.windows import members, outside, windows
from zoo.towers.lean import LeanBlock, Product

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize(("there", "least"), [("bfloat16", 0.95), pytest.param("cuda", 0.98, marks=pytest.mark.cuda)])
def test_rankings_agree_in_low_precision_and_on_a_gpu(there: str, least: float):
    """On the embedded tower and images with a bright spot; how much so differs between CPUs."""
    model = zoo.create_clip("clip_vit_s14").model.visual
    images = torch.rand(4, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        image[:, 20 * index : 60 + 20 * index, 80:150] += 2
    config = GoldenConfig(window=4, stride=4)
    exact = GoldenEngine(model, config).importance(images)
    if there == "cuda":
        other = GoldenEngine(model.cuda(), config).importance(images)
    else:
        other = GoldenEngine(model, config, precision=there).importance(images)
        assert not torch.equal(exact, other)
    assert kendall_tau(exact.numpy(), other.numpy()).mean() > least


PATCHES = 64
CELLS = windows((8, 8), 3, 2)


def test_costs_grow_from_about_one_pass_to_that_of_the_removals(tiny: Build):
    tower = tiny("clip_vit_b16", img_size=196, patch_size=14, embed_dim=384, depth=9, num_heads=6)

    def passes(spec: str | None) -> float:
        return GoldenEngine(tower, GoldenConfig(approximate=spec)).passes

    assert passes(None) == 169
    assert passes("follow:0") == pytest.approx(1.02, abs=0.02)
    assert passes("follow:192") == pytest.approx(169, rel=0.1)
    followed = [passes(f"follow:{n}") for n in (0, 1, 4, 16, 64, 192)]
    assert followed == sorted(followed)


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


@pytest.mark.parametrize(("block", "prefix"), [(0, 1), (3, 4), (5, 1)])
def test_a_whole_pass_counts_what_fvcore_counts(block: int, prefix: int, tiny: Build):
    tower = tiny("clip_vit_b16", num_classes=0, reg_tokens=prefix - 1)

    def products(rest: bool) -> float:
        counted = gflops(Part(tower, block, rest), 64).by_operator
        return sum(n for name, n in counted.items() if "norm" not in name)

    effort = Effort.of(tower, block)
    assert (effort.grid, effort.tokens, effort.blocks) == ((8, 8), 64 + prefix, 6 - block)
    assert effort.whole == pytest.approx(1e9 * (products(True) - products(False)), rel=1e-6)


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
    ("block", "options"),
    [(0, {}), (5, {}), (3, {"init_values": 0.3}), (3, {"qk_norm": True, "qkv_bias": False}), (3, {"reg_tokens": 4})],
    ids=str,
)
def test_a_removal_followed_into_all_patches_is_the_removal(block: int, options: dict, tiny: Build):
    suffix = Suffix(tiny("clip_vit_b16", noise=0.3, **options), block, batch=9)
    start = entering(suffix.model, block)
    target, found = follow(suffix, start, CELLS, PATCHES - 9)
    assert torch.allclose(found, removed(suffix, start), atol=1e-5)
    whole = suffix.features(start, torch.arange(2), torch.arange(PATCHES).expand(2, -1))
    assert torch.allclose(target, whole, atol=1e-5)


@pytest.mark.parametrize(("count", "prefix"), [(0, 1), (1, 3), (7, 1)])
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


@pytest.mark.parametrize("cls", [False, True])
def test_projection_and_mlp_of_the_class_token_are_not_rounded(cls: bool, tiny: Build):
    """With all values 0, and the projection's bias kept, nothing else is left that could be."""
    block = tiny("clip_vit_b16", noise=0.3).blocks[3]
    lean = LeanBlock(block, torch.bfloat16, cls=cls)
    assert lean.low is not None
    qkv = lean.low.qkv
    assert qkv.bias is not None
    lean.low.qkv = Product(*(torch.cat((each[:96], torch.zeros_like(each[96:]))) for each in (qkv.weight, qkv.bias)))
    x = torch.randn(4, 30, 48)
    wanted = x + block.attn.proj.bias
    wanted = wanted + block.mlp(block.norm2(wanted))
    mixed = x.clone()
    lean.run(mixed)
    assert torch.allclose(mixed[:, 0], wanted[:, 0], atol=1e-5) == cls
    assert 1e-4 < (mixed[:, 1:] - wanted[:, 1:]).norm() / wanted.norm() < 0.03
