"""A-ViT, CLS attention, EViT, random pruning and TCA's condensation against loops over heads and tokens."""

import math
from collections.abc import Iterator

import pytest
import torch
from lively import Build
from timm.models.vision_transformer import Block
from torch import Tensor

import zoo
from baselines.random import hash_positions

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def tower(tiny: Build) -> zoo.ReducedViT:
    """Build one whose scores aren't so near to each other that rounding decides."""
    return tiny("clip_vit_b16")


def slow_heads(block: Block, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each head's attention (T, T) and values (T, d) for one image's tokens (T, D)."""
    q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    width = block.attn.head_dim
    for head in range(block.attn.num_heads):
        part = slice(head * width, head * width + width)
        yield (q[:, part] @ k[:, part].T * width**-0.5).softmax(dim=-1), v[:, part]


def attention_of_cls(block: Block, x: Tensor) -> Tensor:
    """Return the class token's row of the softmax for the patch tokens of (B, T, D), mean over heads, (B, n)."""
    rows = [torch.stack([weights[0] for weights, _ in slow_heads(block, image)]).mean(dim=0) for image in x]
    return torch.stack(rows)[:, 1:]


def picked(x: Tensor, best: Tensor) -> Tensor:
    """Return the class token and the patch tokens at ``best`` (B, k) of (B, T, D)."""
    return torch.stack([torch.cat((row[:1], row[1:][keep])) for row, keep in zip(x, best, strict=True)])


def slow_halting(
    tower: zoo.ReducedViT, image: Tensor, left: dict[int, int], channel: int, gamma: float, beta: float
) -> tuple[Tensor, list[list[int]]]:
    """Run one image: after each block each token's score grows, before a point the largest go."""
    x, places = tower.embed(image[None]).x, list(range(64))
    total, kept = dict.fromkeys(range(64), 0.0), []
    for index, block in enumerate(tower.blocks):
        if index in left:
            stay = sorted(sorted(places, key=lambda place: total[place])[: left[index]])
            x, places = picked(x, torch.tensor([[places.index(place) for place in stay]])), stay
            kept.append(places)
        x = block(x)
        for row, place in enumerate(places):
            total[place] += 1 / (1 + math.exp(-gamma * float(x[0, 1 + row, channel]) - beta))
    return tower.forward_head(tower.norm(x))[0], kept


@pytest.mark.parametrize(("options", "left"), [
    ({"keep": 0.5}, {1: 58, 2: 51, 3: 45, 4: 38, 5: 32}),
    ({"keep": 0.25, "reduce_at": [2, 4], "schedule": "geometric", "channel": 5}, {2: 32, 4: 16}),
    ({"keep": 0.5, "reduce_at": 3, "gamma": 2.0, "beta": 1.0}, {3: 32}),
])  # fmt: skip
def test_halting_is_the_slow_loop(options: dict, left: dict[int, int], tower: zoo.ReducedViT, images: Tensor):
    model = zoo.reduce(tower, method="avit", **options)
    trace, config = model.trace(images), model.reducer.config
    assert model.reducer.counts(64) == left
    for index, image in enumerate(images):
        wanted, kept = slow_halting(tower, image, left, config.channel, config.gamma, config.beta)
        assert [went.after[index].tolist() for went in trace.reductions] == kept
        assert trace.output[index].tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_cls_attention_and_the_rest_on_what_is_left(tower: zoo.ReducedViT, images: Tensor):
    """Slowly: dense blocks, pick tokens by hand, dense blocks."""
    model = zoo.reduce(tower, method="clsattn", keep=0.5, reduce_at=[2, 4])
    x, reductions = tower.blocks[0](tower.embed(images).x), model.trace(images).reductions
    for index in range(1, 6):
        if index in (2, 4):
            seen = attention_of_cls(tower.blocks[index], x)
            assert torch.allclose(reductions[index // 2 - 1].importance, seen, atol=1e-6)
            x = picked(x, seen.topk(45 if index == 2 else 32, dim=1).indices.sort(dim=1).values)
        x = tower.blocks[index](x)
    assert torch.allclose(model(images), tower.forward_head(tower.norm(x)), atol=1e-4)


def slow_stage(block: Block, before: Tensor, count: int, fuse: bool) -> tuple[Tensor, list[int]]:
    """Run one image through a stage of EViT: attention, keep ``count`` patch tokens, fuse the rest, MLP."""
    heads = list(slow_heads(block, before))
    seen = torch.stack([weights[0] for weights, _ in heads]).mean(dim=0)
    image = before + block.attn.proj(torch.cat([weights @ v for weights, v in heads], dim=-1))
    order = seen[1:].argsort(descending=True).tolist()
    stays, goes = sorted(order[:count]), order[count:]
    parts = [image[:1], image[1:][stays]]
    if fuse:
        parts.append(sum(seen[1 + place] * image[1 + place] for place in goes)[None])
    after = torch.cat(parts)
    return after + block.mlp(block.norm2(after)), stays


@pytest.mark.parametrize("fuse", [False, True])
def test_stages_of_evit_are_the_slow_ones(fuse: bool, tower: zoo.ReducedViT, images: Tensor):
    points = [1, 3, 4]
    model = zoo.reduce(tower, method="evit", stage_rate=0.7, reduce_at=points, fuse=fuse)
    assert list(model.reducer.counts(196).values()) == ([138, 98, 70] if fuse else [138, 97, 68])  # the paper's
    trace = model.trace(images)
    x, positions = tower.embed(images).x, [list(range(64))] * 3
    for index in range(6):
        if index not in points:
            x = tower.blocks[index](x)
            continue
        count, rows = math.ceil(0.7 * (x.shape[1] - 1)), []
        for image in range(3):
            row, stays = slow_stage(tower.blocks[index], x[image], count, fuse)
            rows.append(row)
            positions[image] = [positions[image][place] for place in stays] + [-1] * fuse
            assert trace.reductions[points.index(index)].after[image].tolist() == positions[image]
        x = torch.stack(rows)
    assert torch.allclose(trace.output, tower.forward_head(tower.norm(x)), atol=1e-4)


def test_a_named_row_counts_its_fused_token(tower: zoo.ReducedViT, images: Tensor):
    """It is EViT's with one token less kept by attention; with one left, all of them are fused."""
    model = zoo.reduce(tower, method="evitfuse", keep=0.5, reduce_at=[2])
    same = zoo.reduce(tower, method="evit", keep=31 / 64, reduce_at=[2], fuse=True)
    assert model.trace(images).final_tokens == 32
    assert torch.equal(model(images), same(images))
    trace = zoo.reduce(tower, method="evitfuse", keep=0.001, reduce_at=[2, 4]).trace(images)
    assert trace.tokens_per_block == (65, 65, 3, 3, 2, 2)
    assert trace.kept.tolist() == [[-1]] * 3


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
    found = hash_positions(torch.arange(576)[None], seed)[0]
    assert found.dtype == torch.float32
    assert found.tolist() == [slow_hash(p, seed) for p in range(576)]
    assert found.unique().numel() >= 575


def test_one_random_order_serves_all_images_runs_and_rates(tower: zoo.ReducedViT, images: Tensor):
    """What stays at 30 % stays at 60 % as well, in one shot or in stages."""

    def kept(x: Tensor = images, keep: float = 0.5, **options: object) -> list[list[int]]:
        return zoo.reduce(tower, method="random", keep=keep, **options).trace(x).kept.tolist()

    first = kept()
    torch.manual_seed(99)
    assert first == kept(torch.randn(3, 3, 64, 64))
    assert first[0] == first[1] == first[2] == kept(images[:1])[0]
    assert len({tuple(kept(seed=seed)[0]) for seed in range(20)}) == 20
    few = kept(keep=0.3)[0]
    assert set(few) < set(kept(keep=0.6)[0])
    assert kept(keep=0.3, reduce_at=[1, 2, 5])[0] == few


def slow_condensation(score: Tensor, x: Tensor, count: int, centers: int) -> list[Tensor]:
    """Condense one image's tokens to ``count`` as TCA does: the tokens that are left, the fused one last."""
    order = score.argsort(descending=True).tolist()
    gone = (len(x) - count + 3) // 3
    whole, between, tail = order[: count - 1 - centers], order[count - 1 - centers : -gone], order[-gone:]
    chosen = between[:1]
    while len(chosen) < centers:
        others = [place for place in between if place not in chosen]
        chosen.append(max(others, key=lambda place: min(float((x[place] - x[c]).norm()) for c in chosen)))
    weights = {place: {place: 1.0} for place in chosen}
    for place in between:
        if place not in chosen:
            center = min(chosen, key=lambda c: float((x[place] - x[c]).norm()))
            weights[center][place] = 1 / float((x[place] - x[center]).norm())
    left = {place: x[place] for place in whole}
    for center, own in weights.items():
        left[center] = sum(w * x[place] for place, w in own.items()) / sum(own.values())
    return [*(left[place] for place in sorted(left)), sum(score[place] * x[place] for place in tail)]


@pytest.mark.parametrize(("options", "count"), [
    ({"keep": 0.5}, 32),
    ({"keep": 0.5, "centers": 1}, 32),
    ({"keep": 63 / 64, "centers": 7}, 63),
    ({"keep": 0.04}, 3),
])  # fmt: skip
def test_condensation_is_the_slow_loop(options: dict, count: int, tower: zoo.ReducedViT, images: Tensor):
    model = zoo.reduce(tower, method="tca", reduce_at=2, **options)
    block, x = tower.blocks[2], tower.blocks[:2](tower.embed(images).x)
    attended, seen = x + block.attn(block.norm1(x)), attention_of_cls(block, x)
    rows = []
    for image in range(3):
        left = slow_condensation(seen[image], attended[image, 1:], count, min(model.reducer.config.centers, count - 1))
        assert len(left) == count
        rows.append(torch.stack([attended[image, 0], *left]))
    x = torch.stack(rows)
    x = tower.blocks[3:](x + block.mlp(block.norm2(x)))
    trace = model.trace(images)
    assert torch.allclose(trace.output, tower.forward_head(tower.norm(x)), atol=1e-4)
    assert trace.kept[:, -1].tolist() == [-1] * 3


def test_condensation_to_four_centres_takes_three_times_what_it_fuses(tower: zoo.ReducedViT, images: Tensor):
    """In the code's words: n tokens become n - 3 d + 3 where d are fused; one token left is all of them fused."""
    [first, second] = zoo.reduce(tower, method="tca", reduce_at=2, keep=31 / 64).trace(images).reductions
    assert [first.before.shape[1] - first.after.shape[1] + 1, 64 - 3 * 12 + 3] == [12, second.after.shape[1]]
    assert zoo.reduce(tower, method="tca", reduce_at=2, keep=0.001).trace(images).kept.tolist() == [[-1]] * 3
