"""ToMe: bipartite matching by a slow loop, conserved sums, proportional attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo
from baselines.tome import merge
from zoo.core.tokens import Tokens, left_at, tokens_of


def some_tokens(n: int, batch: int = 2, prefix: int = 1, sized: bool = True) -> Tokens:
    tokens = Tokens.start(torch.randn(batch, prefix + n, 6), prefix, (1, n))
    return tokens._replace(size=torch.randint(1, 5, (batch, n)).float()) if sized else tokens


def slow_merge(x: Tensor, size: list[float], metric: Tensor, r: int) -> list[tuple]:
    """Merge one image's tokens by plain loops: (place, size, token) in the order that comes out."""
    n = len(x)
    pairs = []
    for a in range(1, n, 2):
        cosine = {b: float(F.cosine_similarity(metric[a], metric[b], 0)) for b in range(0, n, 2)}
        best = max(cosine, key=cosine.__getitem__)
        pairs.append((cosine[best], a, best))
    pairs.sort(key=lambda pair: -pair[0])
    total = {b: x[b] * size[b] for b in range(0, n, 2)}
    count = {b: size[b] for b in range(0, n, 2)}
    for _, a, b in pairs[:r]:
        total[b] = total[b] + x[a] * size[a]
        count[b] += size[a]
    unmerged = sorted(a for _, a, _ in pairs[r:])
    merged = [(b, count[b], total[b] / count[b]) for b in range(0, n, 2)]
    return [(a, size[a], x[a]) for a in unmerged] + merged


@pytest.mark.parametrize(("n", "r"), [(2, 1), (7, 1), (7, 3), (16, 5), (16, 8)])
@pytest.mark.parametrize("sized", [False, True])
def test_merging_is_the_slow_loop(n: int, r: int, sized: bool):
    tokens, metric = some_tokens(n, sized=sized), torch.randn(2, n, 4)
    after = merge(5, tokens, metric, r)
    for image in range(2):
        size = tokens.size[image].tolist() if sized else [1.0] * n
        wanted = slow_merge(tokens.patches[image], size, metric[image], r)
        assert after.patch_idx[image].tolist() == [place for place, _, _ in wanted]
        assert after.size[image].tolist() == [count for _, count, _ in wanted]
        stacked = torch.stack([token for _, _, token in wanted])
        assert torch.allclose(after.patches[image], stacked, atol=1e-5)
    assert torch.equal(after.x[:, :1], tokens.x[:, :1])  # the class token never merges
    [went] = after.history
    assert went.block == 5
    assert torch.equal(went.after, after.patch_idx)


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
    r = max(1, int(share * (n // 2)))
    tokens = some_tokens(n, prefix=prefix, sized=sized)
    after = merge(0, tokens, torch.randn(2, n, 4), r)
    size = tokens.size if sized else torch.ones(2, n)
    before = (size.unsqueeze(-1) * tokens.patches).sum(dim=1)
    assert torch.allclose((after.size.unsqueeze(-1) * after.patches).sum(dim=1), before, atol=1e-4)
    assert torch.equal(after.size.sum(dim=1), size.sum(dim=1))
    assert after.patch_count == n - r


def test_merged_first_ranks_last():
    metric = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.3, 1], [1, 1], [-1, -1]]])
    went = merge(0, some_tokens(6, batch=1), metric, 2).history[0]
    assert went.importance[0, 1] < went.importance[0, 3]
    assert went.importance[0, [0, 2, 4, 5]].isinf().all()


def test_sizes_reach_blocks_that_do_not_merge(tower: VisionTransformer, images: Tensor):
    """Slowly: blocks 0 and 1, merge in 1, then attention with log sizes in all later blocks."""
    model = zoo.reduce(tower, method="tome", keep=0.6, reduce_at=[1])
    x = tower.blocks[0](tower._pos_embed(tower.patch_embed(images)))
    block = tower.blocks[1]
    attended = model.block(1).attend(Tokens.start(x, 1, (8, 8)))
    rows, sizes = [], []
    for image, key in zip(x + attended.out, attended.key, strict=True):
        out = slow_merge(image[1:], [1.0] * 64, key.mean(dim=0)[1:], 26)
        rows.append(torch.stack([image[0], *(token for _, _, token in out)]))
        sizes.append([0.0, *(math.log(count) for _, count, _ in out)])
    x, bias = torch.stack(rows), torch.tensor(sizes)[:, None, None]
    x = x + block.mlp(block.norm2(x))
    for block in tower.blocks[2:]:
        x = block(x, attn_mask=bias)
    assert torch.allclose(model(images), tower.forward_head(tower.norm(x)), atol=1e-4)


@pytest.mark.parametrize("r", [1, 8, 13, 40])
def test_r_per_block_and_at_most_half(r: int, tower: VisionTransformer, images: Tensor):
    trace = zoo.reduce(tower, method="tome", r=r).trace(images)
    left, wanted = 64, []
    for _ in range(6):
        left -= min(r, left // 2)
        wanted.append(1 + left)
    assert trace.tokens_per_block == tuple(wanted)


def test_more_than_half_is_refused_on_small_images_too(tower: VisionTransformer):
    model = zoo.reduce(tower, method="tome", keep=0.5, reduce_at=0)
    with pytest.raises(ValueError, match="raise keep or add reduction points"):
        model.reducer.counts(37)  # rounds to 18, and 18 pairs leave 19


def test_the_papers_counts(tower: VisionTransformer):
    counts = zoo.reduce(tower, method="tome", r=8).reducer.counts(196)
    assert list(counts.values()) == [188, 180, 172, 164, 156, 148]
