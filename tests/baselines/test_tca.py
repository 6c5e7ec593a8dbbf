"""TCA's condensation by loops: ranks of every head, who is pruned, centres and their clusters."""

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

import zoo


def slow_score(block: Block, x: Tensor) -> list[float]:
    """Return for one image the mean over heads of each patch token's rank by the class token's attention."""
    q, k, _ = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    heads, width = block.attn.num_heads, block.attn.head_dim
    total = [0.0] * (len(x) - 1)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        attention = (q[:, part] @ k[:, part].T * width**-0.5).softmax(dim=-1)[0, 1:].tolist()
        for rank, place in enumerate(sorted(range(len(attention)), key=attention.__getitem__)):
            total[place] += rank / heads
    return total


def slow_condensation(score: list[float], x: Tensor, count: int, centers: int, merged: float) -> dict[int, Tensor]:
    """Condense one image's tokens to ``count``: the tokens that are left, by place."""
    order = sorted(range(len(x)), key=lambda place: -score[place])
    whole, rest = order[: count - centers], order[count - centers :]
    pruned = min(int(len(rest) / (1 + merged)), len(x) - count)
    between = rest[: len(rest) - pruned]
    chosen = between[:1]
    while len(chosen) < centers:
        others = [place for place in between if place not in chosen]
        chosen.append(max(others, key=lambda place: min(float((x[place] - x[c]).norm()) for c in chosen)))
    clusters = {place: [place] for place in chosen}
    for place in between:
        if place not in chosen:
            clusters[min(chosen, key=lambda c: float((x[place] - x[c]).norm()))].append(place)
    means = {place: x[members].mean(dim=0) for place, members in clusters.items()}
    return {place: x[place] for place in whole} | means


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"keep": 0.5}, 32),
        ({"keep": 0.5, "centers": 1, "merged": 0.1}, 32),
        ({"keep": 63 / 64, "centers": 7}, 63),
        ({"keep": 0.04}, 3),
        ({"keep": 0.3, "centers": 19, "merged": 1e-9}, 19),
    ],
)
def test_condensation_is_the_slow_loop(options: dict, count: int, tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="tca", reduce_at=2, **options)
    config, block = model.reducer.config, tower.blocks[2]
    entering = tower.blocks[:2](tower._pos_embed(tower.patch_embed(images)))
    attended = entering + block.attn(block.norm1(entering))
    trace = model.trace(images)
    rows = []
    for image in range(3):
        score = slow_score(block, entering[image])
        left = slow_condensation(score, attended[image, 1:], count, min(config.centers, count), config.merged)
        assert trace.reductions[0].after[image].tolist() == sorted(left)
        rows.append(torch.stack([attended[image, 0], *(left[place] for place in sorted(left))]))
    x = torch.stack(rows)
    x = tower.blocks[3:](x + block.mlp(block.norm2(x)))
    assert torch.allclose(trace.output, tower.forward_head(tower.norm(x)), atol=1e-4)


def test_a_later_stage_takes_centres_for_tokens(tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="tca", keep=0.25, reduce_at=[1, 3])
    trace = model.trace(images)
    assert trace.tokens_per_block == (65, 33, 33, 17, 17, 17)
    _, each = model.advance(model.embed(images), taps=range(6))
    assert all(tokens.size is None for tokens in each)


def test_the_pruned_rank_below_the_merged_and_those_below_the_rest(tower: VisionTransformer, images: Tensor):
    [went] = zoo.reduce(tower, method="tca", keep=0.5, reduce_at=2).trace(images).reductions
    for image in range(3):
        after = set(went.after[image].tolist())
        importance, into = went.importance[image].tolist(), went.into[image].tolist()
        merged = [place for place in range(64) if into[place] != place]
        pruned = [place for place in range(64) if into[place] == place and place not in after]
        assert (len(pruned), len(merged)) == (12, 20)
        assert len({into[place] for place in merged}) <= 4
        assert {into[place] for place in merged} <= after
        assert max(importance[place] for place in pruned) <= min(importance[place] for place in merged)
        assert all(importance[place] == float("inf") for place in after)
