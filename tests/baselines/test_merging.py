"""ToMe, ToFu and PiToMe against loops over pairs of tokens; conserved sums, proportional attention."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from baselines.pitome import energy
from baselines.tome import merge
from zoo.core.tokens import Tokens, left_at, tokens_of

pytestmark = pytest.mark.usefixtures("no_grad")
Left = dict[int, tuple[float, Tensor]]  # what is left: size and token by place


def some_tokens(n: int, batch: int = 2, prefix: int = 1, sized: bool = True) -> Tokens:
    tokens = Tokens.start(torch.randn(batch, prefix + n, 6), prefix, (1, n))
    return tokens._replace(size=torch.randint(1, 5, (batch, n)).float()) if sized else tokens


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, 0))


def slow_energy(metric: Tensor, margin: float, alpha: float) -> list[float]:
    """Equation of PiToMe for one image: mean over all tokens of f_m of the cosine."""
    energies = []
    for one in metric:
        each = [cosine(one, other) for other in metric]
        total = sum(c if c >= margin else alpha * (math.exp(c - margin) - 1) for c in each)
        energies.append(total / len(metric))
    return energies


def slow_merge(x: Tensor, size: list[float], metric: Tensor, r: int, order: list[int], how: str = "mean") -> Left:
    """Reduce one image's tokens, those at ``order`` alternating into two sets, in which the nearest pairs meet."""
    nearest = {a: max(order[::2], key=lambda b: cosine(metric[a], metric[b])) for a in order[1::2]}
    gone = sorted(nearest, key=lambda a: -cosine(metric[a], metric[nearest[a]]))[:r]
    left: Left = {}
    for place in [p for p in range(len(x)) if p not in gone]:
        meet = [place, *(a for a in gone if nearest[a] == place and how != "prune")]
        count = sum(size[p] for p in meet)
        token = x[place] if len(meet) == 1 else sum(size[p] * x[p] for p in meet) / count
        if how == "stretch" and len(meet) > 1:
            token = token / token.norm() * max(float(x[p].norm()) for p in meet)
        left[place] = (count, token)
    return left


def in_order(left: Left) -> list[int]:
    """Return what is left of the odd places, then the even ones."""
    return sorted(left, key=lambda place: (place % 2 == 0, place))


@pytest.mark.parametrize(("n", "r"), [(2, 1), (7, 3), (16, 5), (16, 8)])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(
    ("method", "index", "how"),
    [("tome", 5, "mean"), ("tofu", 2, "prune"), ("tofu", 3, "stretch"), ("pitome", 2, "mean")],
)
def test_merging_is_the_slow_loop(
    method: str, index: int, how: str, n: int, r: int, sized: bool, tower: zoo.ReducedViT
):
    reducer = zoo.reduce(tower, method=method, keep=0.5).reducer
    tokens, metric = some_tokens(n, sized=sized), torch.randn(2, n, 4)
    after = reducer.merge(index, tokens, metric, r)
    for image in range(2):
        order, size = list(range(n)), tokens.size[image].tolist() if sized else [1.0] * n
        if method == "pitome":
            energies = slow_energy(metric[image], 0.9 - 0.9 * index / 6, 1.0)
            order = sorted(order, key=lambda place: -energies[place])[: 2 * r]
        left = slow_merge(tokens.patches[image], size, metric[image], r, order, how)
        wanted = sorted(left) if method == "pitome" else in_order(left)
        assert after.patch_idx[image].tolist() == wanted
        assert torch.allclose(after.patches[image], torch.stack([left[place][1] for place in wanted]), atol=1e-5)
        if after.size is not None:
            assert after.size[image].tolist() == [left[place][0] for place in wanted]
    assert (after.size is None) == (how == "prune" and not sized)
    assert after.patch_count == n - r
    assert torch.equal(after.x[:, :1], tokens.x[:, :1])  # the class token never merges
    if after.size is not None:
        assert torch.equal(reducer.attention_bias(after)[:, 0, 0, 1:], after.size.log())


def test_energy_is_the_slow_sum():
    metric = torch.randn(2, 12, 4)
    for found, image in zip(energy(metric, 0.3, 0.5), metric, strict=True):
        assert found.tolist() == pytest.approx(slow_energy(image, 0.3, 0.5), abs=1e-5)


def test_merged_first_ranks_last():
    metric = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.3, 1], [1, 1], [-1, -1]]])
    went = merge(0, some_tokens(6, batch=1), metric, 2).history[0]
    assert went.importance[0, 1] < went.importance[0, 3]
    assert went.importance[0, [0, 2, 4, 5]].isinf().all()


def test_sizes_reach_blocks_that_do_not_merge(tower: zoo.ReducedViT, images: Tensor):
    """Slowly: blocks 0 and 1, merge in 1, then attention with log sizes in all later blocks."""
    model = zoo.reduce(tower, method="tome", keep=0.6, reduce_at=[1])
    x = tower.blocks[0](tower.embed(images).x)
    block = tower.blocks[1]
    attended = model.block(1).attend(Tokens.start(x, 1, (8, 8)))
    rows, sizes = [], []
    for image, key in zip(x + attended.out, attended.key, strict=True):
        left = slow_merge(image[1:], [1.0] * 64, key.mean(dim=0)[1:], 26, list(range(64)))
        rows.append(torch.stack([image[0], *(left[place][1] for place in in_order(left))]))
        sizes.append([0.0, *(math.log(left[place][0]) for place in in_order(left))])
    x, bias = torch.stack(rows), torch.tensor(sizes)[:, None, None]
    x = x + block.mlp(block.norm2(x))
    for block in tower.blocks[2:]:
        x = block(x, attn_mask=bias)
    assert torch.allclose(model(images), tower.forward_head(tower.norm(x)), atol=1e-4)


def test_r_per_block_and_at_most_half(tower: zoo.ReducedViT, images: Tensor):
    trace = zoo.reduce(tower, method="tome", r=13).trace(images)
    assert trace.tokens_per_block == (52, 39, 26, 14, 8, 5)
    counts = zoo.reduce(tower, method="tome", r=8).reducer.counts(196)
    assert list(counts.values()) == [188, 180, 172, 164, 156, 148]  # the paper's
    model = zoo.reduce(tower, method="tome", keep=0.5, reduce_at=0)
    with pytest.raises(ValueError, match="raise keep or add reduction points"):
        model.reducer.counts(37)  # rounds to 18, and 18 pairs leave 19


@pytest.mark.parametrize(
    ("method", "options", "same"),
    [("tofu", {"merge_from": 6}, False), ("tofu", {"merge_from": 0}, False), ("pitome", {"energy_from": 3}, True)],
)
def test_the_pairs_are_those_of_tome(
    method: str, options: dict[str, Any], same: bool, tower: zoo.ReducedViT, images: Tensor
):
    """ToFu drops one of each, or keeps norms; PiToMe is ToMe in the blocks before energy counts."""
    ours = zoo.reduce(tower, method=method, keep=0.5, reduce_at=2, **options)
    tome = zoo.reduce(tower, method="tome", keep=0.5, reduce_at=2)
    [one], [other] = ours.trace(images).reductions, tome.trace(images).reductions
    assert torch.equal(one.after, other.after)
    assert one.into is None or torch.equal(one.into, other.into)
    assert torch.equal(ours(images), tome(images)) == same
    later = zoo.reduce(tower, method=method, keep=0.5, reduce_at=3, **options)
    tome = zoo.reduce(tower, method="tome", keep=0.5, reduce_at=3)
    assert not torch.allclose(later(images), tome(images), atol=1e-4)


def test_pitome_merges_the_same_share_in_every_block_by_the_keys(tower: zoo.ReducedViT, images: Tensor):
    model = zoo.reduce(tower, method="pitome", keep=0.5)
    trace = model.trace(images)
    assert trace.tokens_per_block == tuple(1 + round(64 * 0.5 ** (block / 6)) for block in range(1, 7))
    key = model.blocks[0].attn.qkv(model.blocks[0].norm1(model.embed(images).x))[:, 1:, 48:96]
    energies = slow_energy(key.unflatten(2, (3, 16)).mean(dim=2)[0], 0.9, 1.0)
    mergeable = sorted(range(64), key=lambda place: -energies[place])[:14]
    assert set(range(64)) - set(trace.reductions[0].after[0].tolist()) == set(mergeable[1::2])


@pytest.mark.parametrize("counts", [[9], [12, 7, 4]])
def test_as_many_patches_are_in_a_token_as_its_size_says(counts: list[int]):
    tokens = some_tokens(16, sized=False)
    for block, count in enumerate(counts):
        tokens = merge(block, tokens, torch.randn(2, tokens.patch_count, 4), tokens.patch_count - count)
    token, left = tokens_of(tokens.history, 16), left_at(tokens.history, 16)
    for image in range(2):
        places = tokens.patch_idx[image].tolist()
        inside = [int((token[image] == place).sum()) for place in places]
        assert inside == tokens.size[image].tolist()
        assert sorted(torch.arange(16)[left[image] == -1].tolist()) == sorted(places)
        assert (token[image, places] == torch.tensor(places)).all()


@given(n=st.integers(2, 20), share=st.floats(0.0, 1.0), prefix=st.integers(1, 3), sized=st.booleans())
def test_the_size_weighted_sum_is_conserved(n: int, share: float, prefix: int, sized: bool):
    tokens = some_tokens(n, prefix=prefix, sized=sized)
    after = merge(0, tokens, torch.randn(2, n, 4), max(1, int(share * (n // 2))))
    size = tokens.size if sized else torch.ones(2, n)
    before = (size.unsqueeze(-1) * tokens.patches).sum(dim=1)
    assert torch.allclose((after.size.unsqueeze(-1) * after.patches).sum(dim=1), before, atol=1e-4)
    assert torch.equal(after.size.sum(dim=1), size.sum(dim=1))
