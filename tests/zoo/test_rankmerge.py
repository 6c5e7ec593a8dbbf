"""Rankmerge: matching against slow greedy loops, exact counts, twins, ranks that protect, points by depth."""

import itertools
import math
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from zoo.core import attention
from zoo.core.merger import pair_tokens
from zoo.core.tokens import Tokens

pytestmark = pytest.mark.usefixtures("no_grad")


def slow_costs(x: Tensor, places: Tensor, weight: list[float]) -> list[list[float]]:
    n, cosine = len(x), torch.nn.functional.cosine_similarity
    cost = [[math.inf] * n for _ in range(n)]
    for i, j in itertools.permutations(range(n), 2):
        apart = 1 - cosine(x[i], x[j], 0) + (places[i] - places[j]).square().sum()
        cost[i][j] = weight[i] * weight[j] * float(apart)
    return cost


def greedy(cost: list[list[float]], r: int) -> float:
    """Merge pair by pair, cheapest nearest first; none both goes and receives. Returns the sum of costs."""
    n, total = len(cost), 0.0
    went, received = set(), set()
    while len(went) < r:
        stay = [j for j in range(n) if j not in went]
        best = {i: min((cost[i][j], j) for j in stay if j != i) for i in stay if i not in received}
        price, i, j = min((price, i, j) for i, (price, j) in best.items())
        went.add(i)
        received.add(j)
        total += price
    return total


def some(n: int, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 4, 6, generator=generator)
    x = centres[:, torch.randint(4, (n,), generator=generator)] + 0.5 * torch.randn(batch, n, 6, generator=generator)
    return x, 0.3 * torch.rand(batch, n, 2, generator=generator), 1 + torch.rand(batch, n, generator=generator)


@pytest.mark.parametrize(("n", "r"), [(2, 1), (3, 1), (5, 2), (16, 3), (16, 8), (40, 10), (40, 20)])
def test_pairs_cost_what_the_slow_costs_say_and_little_more_than_greedy_ones(n: int, r: int):
    spent, least = 0.0, 0.0
    for seed in range(5):
        x, places, weight = some(n, seed=seed)
        gone, into, cost = pair_tokens(x, places, weight, r)
        for image in range(3):
            wanted = slow_costs(x[image], places[image], weight[image].tolist())
            of_pairs = [wanted[i][j] for i, j in zip(gone[image].tolist(), into[image].tolist(), strict=True)]
            assert cost[image].tolist() == pytest.approx(of_pairs, abs=1e-5)
            spent += sum(of_pairs)
            least += greedy(wanted, r)
    assert spent <= 1.1 * least


def test_protection_changes_whose_turn_it_is_and_not_the_goal():
    x, places, weight = some(16)
    protection = torch.ones(3, 16)
    protection[:, ::2] = 1e6
    gone, into, cost = pair_tokens(x, places, weight, 4, protection=protection)
    for image in range(3):
        wanted = slow_costs(x[image], places[image], weight[image].tolist())
        stay = set(range(16)) - set(gone[image].tolist())
        for i, j, price in zip(gone[image].tolist(), into[image].tolist(), cost[image].tolist(), strict=True):
            assert i % 2
            assert price == pytest.approx(min(wanted[i][other] for other in stay), abs=1e-5)
            assert price == pytest.approx(wanted[i][j], abs=1e-5)


@pytest.mark.parametrize("links", [0, 1, 4])
@given(n=st.integers(2, 24), share=st.floats(0.0, 1.0), values=st.integers(1, 3), seed=st.integers(0, 99))
def test_so_many_go_and_none_into_one_that_goes(links: int, n: int, share: float, values: int, seed: int):
    """Of few different values, with many ties and zeros."""
    r = max(1, round(share * (n // 2)))
    x = torch.randint(values, (2, n, 2), generator=torch.Generator().manual_seed(seed)).float()
    gone, into, _ = pair_tokens(x, torch.zeros(2, n, 2), None, r, links)
    for goes, target in zip(gone.tolist(), into.tolist(), strict=True):
        assert len(set(goes)) == r
        assert not set(goes) & set(target)
        assert set(goes) | set(target) <= set(range(n))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_tiny_grids_and_equal_tokens_meet_the_count(count: int, keep: float, tower: zoo.ReducedViT):
    model = zoo.reduce(tower, method="rankmerge", keep=keep, reduce_at=0, rank="cls", rank_at=0)
    after, _ = model.advance(Tokens.start(torch.ones(2, 1 + count, 48), 1, (1, count)), stop=1)
    left = max(1, round(keep * count))
    assert after.patch_count == left == after.patches.shape[1]
    assert after.x.isfinite().all()
    if left < count:
        assert after.size.sum(dim=1).tolist() == [count, count]


def test_what_ranks_high_merges_late(tower: zoo.ReducedViT, images: Tensor):
    options = {"method": "rankmerge", "keep": 0.6, "reduce_at": 1}
    ranked = options | {"rank": "cls", "rank_at": 1}
    model, unweighted = (zoo.reduce(tower, **ranked, rank_weight=weight) for weight in (50.0, 0.0))
    assert torch.allclose(unweighted(images), zoo.reduce(tower, **options)(images), atol=1e-5)
    before, _ = model.advance(model.embed(images), stop=1)
    tokens, _ = model.advance(before, 1, 2)
    importance = tower.block(1).cls_attention(before)
    [went] = tokens.history
    for best, after in zip(importance.topk(8).indices.tolist(), went.after.tolist(), strict=True):
        assert set(best) <= set(after)


def test_a_mean_of_unlike_tokens_is_stretched_and_weighs_less():
    """Its value, stretched again by LayerNorm, counts for as much as those of its parts."""
    x = torch.tensor([[[9.0, 9], [3, 0], [0, 3], [2, 2], [4, 4]]])
    tokens = Tokens.start(x, 1, (1, 4))
    merged = tokens.merge(0, torch.tensor([[1, 3]]), torch.tensor([[0, 2]]), torch.zeros(1, 2), rescale=True)
    norm = math.hypot(1.5, 1.5)
    assert merged.size.tolist() == [[2, 2]]
    assert merged.key_weight[0].tolist() == pytest.approx([2 * norm / 3, 2 * 3 * 2**0.5 / (4 * 2**0.5)])
    assert merged.patches[0, 0].tolist() == pytest.approx([1.5 * 3 / norm] * 2)
    assert merged.patches[0, 1].tolist() == pytest.approx([4, 4])
    assert tokens.merge(0, torch.tensor([[1]]), torch.tensor([[0]]), torch.zeros(1, 1)).key_weight is None
    again = merged.merge(1, torch.tensor([[1]]), torch.tensor([[0]]), torch.zeros(1, 1))
    assert torch.equal(again.key_weight, merged.key_weight.sum(dim=1, keepdim=True))
    assert torch.allclose(again.size_bias()[0, 0, 0, 1:].exp(), again.key_weight)
    assert torch.allclose(merged.mean(merged.x), x.mean(dim=1), atol=1e-6)


def test_a_mask_on_a_gpu_has_the_queries_dtype_and_rows_that_begin_at_multiples_of_8():
    for count in (9, 16, 197):
        bias = torch.randn(2, 1, 1, count)
        mask = attention.as_mask(bias, Mock(dtype=torch.bfloat16, is_cuda=True))
        assert torch.equal(mask, bias.bfloat16())
        assert [step % 8 for step in mask.stride()[:3]] == [0, 0, 0]
        assert attention.as_mask(bias, bias) is bias  # on a CPU nothing is copied


def test_long_sequences_attend_by_channels_on_a_gpu_in_low_precision():
    for count, dtype in ((1023, torch.bfloat16), (1024, torch.float32), (1024, torch.float16)):
        query, key, bias = Mock(dtype=dtype, is_cuda=True), torch.empty(2, 3, count, 8), torch.empty(2, 1, 1, count)
        assert attention._prefers_channels(query, key, bias) == (dtype == torch.float16)
        assert not attention._prefers_channels(key.to(dtype), key, bias)


def test_towers_attend_by_channels_or_by_a_mask(tower: zoo.ReducedViT, images: Tensor, monkeypatch):
    masks = []

    def attend(query: Tensor, *others: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        masks.append(None if attn_mask is None else (attn_mask.dtype, query.dtype))
        return fused(query, *others, attn_mask=attn_mask, **options)

    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    model = zoo.reduce(tower, method="rankmerge", keep=0.5).eval()
    towers = (model, zoo.optimize(model))
    wanted = [one(images) for one in towers]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(images)
    assert F.cosine_similarity(low, wanted[0]).min() > 0.99
    assert {mask and mask[0] == mask[1] for mask in masks} == {None, True}
    assert (torch.bfloat16, torch.bfloat16) in masks
    monkeypatch.setattr(attention, "_prefers_channels", lambda *_: True)
    masks.clear()
    for one, features in zip(towers, wanted, strict=True):
        assert torch.allclose(one(images), features, atol=1e-5)
    assert set(masks) == {None}
