"""ToFu: early blocks drop what later blocks merge, by a loop over pairs; MLERP keeps norms."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo
from zoo.core.tokens import Tokens


def slow_fusion(x: Tensor, size: list[float], metric: Tensor, r: int, prune: bool) -> list[tuple[int, float, Tensor]]:
    """Reduce one image's tokens by plain loops: (place, size, token) in the order that comes out."""
    pairs = []
    for a in range(1, len(x), 2):
        cosine = {b: float(F.cosine_similarity(metric[a], metric[b], 0)) for b in range(0, len(x), 2)}
        best = max(cosine, key=cosine.__getitem__)
        pairs.append((cosine[best], a, best))
    pairs.sort(key=lambda pair: -pair[0])
    unmatched = sorted(a for _, a, _ in pairs[r:])
    out = [(a, size[a], x[a]) for a in unmatched]
    for b in range(0, len(x), 2):
        meet = [b] if prune else [b, *(a for _, a, best in pairs[:r] if best == b)]
        count = sum(size[place] for place in meet)
        mean = sum(size[place] * x[place] for place in meet) / count
        longest = max(float(x[place].norm()) for place in meet)
        out.append((b, count, mean / mean.norm() * longest if len(meet) > 1 else x[b]))
    return out


@pytest.mark.parametrize(("n", "r"), [(2, 1), (7, 3), (16, 8)])
@pytest.mark.parametrize(("index", "prune"), [(2, True), (3, False)])
def test_fusion_is_the_slow_loop(n: int, r: int, index: int, prune: bool, tower: VisionTransformer):
    reducer = zoo.reduce(tower, method="tofu", keep=0.5).reducer
    tokens = Tokens.start(torch.randn(2, 1 + n, 6), 1, (1, n))
    tokens, metric = tokens._replace(size=torch.randint(1, 5, (2, n)).float()), torch.randn(2, n, 4)
    after = reducer.merge(index, tokens, metric, r)
    for image in range(2):
        wanted = slow_fusion(tokens.patches[image], tokens.size[image].tolist(), metric[image], r, prune)
        assert after.patch_idx[image].tolist() == [place for place, _, _ in wanted]
        assert after.size[image].tolist() == [count for _, count, _ in wanted]
        assert torch.allclose(after.patches[image], torch.stack([token for _, _, token in wanted]), atol=1e-5)
    assert after.patch_count == n - r
    assert torch.equal(reducer.attention_bias(after)[:, 0, 0, 1:], after.size.log())


def test_early_blocks_leave_tokens_as_they_are(tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="tofu", keep=0.5, merge_from=6)
    _, each = model.advance(model.embed(images), taps=range(6))
    assert all(tokens.size is None for tokens in each)
    went = each[-1].history
    assert all(reduction.into is None for reduction in went)
    like = zoo.reduce(tower, method="tome", keep=0.5).trace(images).reductions[0]
    assert torch.equal(went[0].after, like.after)  # the same pairs, of which one is dropped


def test_with_no_block_that_prunes_it_is_tome_but_for_norms(tower: VisionTransformer, images: Tensor):
    ours = zoo.reduce(tower, method="tofu", keep=0.5, merge_from=0, reduce_at=2)
    tome = zoo.reduce(tower, method="tome", keep=0.5, reduce_at=2)
    [one], [other] = ours.trace(images).reductions, tome.trace(images).reductions
    assert torch.equal(one.after, other.after)
    assert torch.equal(one.into, other.into)
    assert not torch.allclose(ours(images), tome(images), atol=1e-4)
