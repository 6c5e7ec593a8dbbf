"""EViT against slow stages: which tokens stay, what the fused token is, how many there are."""

import math

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

import zoo


def slow_block(block: Block, x: Tensor, count: int, fuse: bool) -> tuple[Tensor, list[list[int]]]:
    """Run one image at a time: attention, keep ``count`` patch tokens, fuse the rest, MLP."""
    rows, places = [], []
    heads, width = block.attn.num_heads, block.attn.head_dim
    for before in x:
        q, k, v = block.attn.qkv(block.norm1(before)).chunk(3, dim=-1)
        mixed, seen = [], torch.zeros(len(before))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = (q[:, part] @ k[:, part].T * width**-0.5).softmax(dim=-1)
            mixed.append(weights @ v[:, part])
            seen += weights[0] / heads
        image = before + block.attn.proj(torch.cat(mixed, dim=-1))
        order = seen[1:].argsort(descending=True).tolist()
        stays, goes = sorted(order[:count]), order[count:]
        parts = [image[:1], image[1:][stays]]
        if fuse:
            parts.append(sum(seen[1 + place] * image[1 + place] for place in goes)[None])
        after = torch.cat(parts)
        rows.append(after + block.mlp(block.norm2(after)))
        places.append(stays)
    return torch.stack(rows), places


@pytest.mark.parametrize("fuse", [False, True])
def test_stages_are_the_slow_ones(fuse: bool, tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="evit", stage_rate=0.7, reduce_at=[1, 3, 4], fuse=fuse)
    trace = model.trace(images)
    x = tower._pos_embed(tower.patch_embed(images))
    positions, stage = [list(range(64))] * 3, 0
    for index in range(6):
        if index not in (1, 3, 4):
            x = tower.blocks[index](x)
            continue
        count = math.ceil(0.7 * (x.shape[1] - 1))
        x, places = slow_block(tower.blocks[index], x, count, fuse)
        for image in range(3):
            kept = [positions[image][place] for place in places[image]] + [-1] * fuse
            positions[image] = kept
            assert trace.reductions[stage].after[image].tolist() == kept
        stage += 1
    wanted = tower.forward_head(tower.norm(x))
    assert torch.allclose(trace.output, wanted, atol=1e-4)


def test_the_fused_token_has_no_place_in_the_grid(tower: VisionTransformer, images: Tensor):
    """``keep`` counts what attention keeps, so that the fused token comes on top."""
    model = zoo.reduce(tower, method="evit", keep=0.25, reduce_at=[1], fuse=True)
    trace = model.trace(images)
    after = trace.reductions[0].after
    assert trace.final_tokens == 17
    assert (after[:, -1] == -1).all()
    last = model.forward_intermediates(images, 1, output_fmt="NLC", intermediates_only=True)[0]
    for image in range(3):
        there = last[image].abs().sum(dim=-1).nonzero().flatten().tolist()
        assert there == [p for p in after[image].tolist() if p >= 0]
        assert len(there) == 16


def test_a_named_row_counts_its_fused_token(tower: VisionTransformer, images: Tensor):
    """It is EViT's with one token less kept by attention; with one left, all of them are fused."""
    model = zoo.reduce(tower, method="evitfuse", keep=0.5, reduce_at=[2])
    same = zoo.reduce(tower, method="evit", keep=31 / 64, reduce_at=[2], fuse=True)
    assert model.trace(images).final_tokens == 32
    assert torch.equal(model(images), same(images))
    trace = zoo.reduce(tower, method="evitfuse", keep=0.001, reduce_at=[2, 4]).trace(images)
    assert trace.tokens_per_block == (65, 65, 3, 3, 2, 2)
    assert trace.kept.tolist() == [[-1]] * 3


@pytest.mark.parametrize(("fuse", "counts"), [(False, {1: 138, 3: 97, 5: 68}), (True, {1: 138, 3: 98, 5: 70})])
def test_the_papers_counts(fuse: bool, counts: dict[int, int], tower: VisionTransformer):
    model = zoo.reduce(tower, method="evit", stage_rate=0.7, reduce_at=[1, 3, 5], fuse=fuse)
    assert model.reducer.counts(196) == counts


def test_the_class_token_of_the_same_block_decides(tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="evit", keep=0.5, reduce_at=2)
    same = zoo.reduce(tower, method="clsattn", keep=0.5, reduce_at=2)
    ours, theirs = model.trace(images).reductions[0], same.trace(images).reductions[0]
    assert torch.allclose(ours.importance, theirs.importance, atol=1e-6)
    assert torch.equal(ours.after, theirs.after)
    assert not torch.allclose(model(images), same(images), atol=1e-3)  # attention saw all tokens
