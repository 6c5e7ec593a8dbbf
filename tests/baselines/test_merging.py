"""Methods that merge against loops over pairs of tokens; conserved sums, proportional attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

import zoo
from baselines.atc import LINKAGES, cluster
from baselines.tome import merge
from zoo.core.tokens import Tokens

pytestmark = pytest.mark.usefixtures("no_grad")
Left = dict[int, tuple[float, Tensor]]  # what is left: size and token by place


def some_tokens(n: int, batch: int = 2, prefix: int = 1, sized: bool = True) -> Tokens:
    tokens = Tokens.start(torch.randn(batch, prefix + n, 6), prefix, (1, n))
    return tokens._replace(size=torch.randint(1, 5, (batch, n)).float()) if sized else tokens


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, 0))


def slow_energy(metric: Tensor, margin: float) -> list[float]:
    """Sum up PiToMe's energies of one image: means over all tokens of ELU of the cosine minus the margin."""
    energies = []
    for one in metric:
        apart = [cosine(one, other) - margin for other in metric]
        energies.append(sum(a if a >= 0 else math.exp(a) - 1 for a in apart) / len(metric))
    return energies


def slow_merge(
    x: Tensor, size: list[float], metric: Tensor, r: int, order: list[int], how: str = "mean", goes: int = 1
) -> Left:
    """Reduce one image's tokens, those at ``order`` alternating into two sets, in which the nearest pairs meet.

    Of the pairs the odd places go, or the even ones with ``goes`` 0.
    """
    nearest = {a: max(order[1 - goes :: 2], key=lambda b: cosine(metric[a], metric[b])) for a in order[goes::2]}
    gone = sorted(nearest, key=lambda a: -cosine(metric[a], metric[nearest[a]]))[:r]
    left: Left = {}
    for place in [p for p in range(len(x)) if p not in gone]:
        meet = [place, *(a for a in gone if nearest[a] == place and how != "prune")]
        count = sum(size[p] for p in meet)
        token = x[place] if len(meet) == 1 else sum(size[p] * x[p] for p in meet) / count
        if how == "stretch":
            token = x[meet].mean(dim=0) * max(float(x[p].norm()) for p in meet) / x[place].norm()
        left[place] = (count, token)
    return left


def in_order(left: Left) -> list[int]:
    """Return what is left of the odd places, then the even ones."""
    return sorted(left, key=lambda place: (place % 2 == 0, place))


@pytest.mark.parametrize(("n", "r"), [(2, 1), (7, 3), (16, 5), (16, 8)])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(
    ("method", "index", "how"),
    [("tome", 5, "mean"), ("tofu", 3, "prune"), ("tofu", 4, "stretch"), ("pitome", 2, "mean"), ("pitome", 3, "mean")],
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
            energies = slow_energy(metric[image], 0.75 - 0.75 * index / 6)
            order = sorted(order, key=lambda place: -energies[place])[: 2 * r if index >= 3 else n]
        left = slow_merge(tokens.patches[image], size, metric[image], r, order, how, method != "pitome")
        wanted = sorted(left) if method == "pitome" else in_order(left)
        assert after.patch_idx[image].tolist() == wanted
        assert torch.allclose(after.patches[image], torch.stack([left[place][1] for place in wanted]), atol=1e-5)
        if after.size is not None:
            assert after.size[image].tolist() == [left[place][0] for place in wanted]
    assert (after.size is None) == (how == "stretch" or (how == "prune" and not sized))
    assert after.patch_count == n - r
    assert torch.equal(after.x[:, :1], tokens.x[:, :1])  # the class token never merges
    bias = reducer.attention_bias(after)
    assert torch.equal(bias[:, 0, 0, 1:], after.size.log()) if method == "tome" else bias is None


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


@pytest.mark.parametrize("metric", ["keys", "residual"])
def test_pitome_merges_the_same_share_in_every_block(metric: str, tower: zoo.ReducedViT, images: Tensor):
    model = zoo.reduce(tower, method="pitome", keep=0.5, energy_from=0, metric=metric)
    trace = model.trace(images)
    assert trace.tokens_per_block == tuple(1 + round(64 * 0.5 ** (block / 6)) for block in range(1, 7))
    x, block = model.embed(images).x, model.blocks[0]
    seen = block.attn.qkv(block.norm1(x))[:, 1:, 48:96].unflatten(2, (3, 16)).mean(dim=2)
    seen = seen if metric == "keys" else (x + block.attn(block.norm1(x)))[:, 1:]
    energies = slow_energy(seen[0], 0.75)
    mergeable = sorted(range(64), key=lambda place: -energies[place])[:14]
    assert set(range(64)) - set(trace.reductions[0].after[0].tolist()) == set(mergeable[::2])


@pytest.mark.parametrize("kind", LINKAGES)
def test_clusters_are_those_of_scipy(kind: str):
    metric = F.normalize(torch.randn(3, 40, 5), dim=-1)
    distance = (1 - metric @ metric.transpose(1, 2)).double()
    gone, into, height = cluster(distance, 29, kind)
    assert (height.diff() >= -1e-6).all()  # these linkages have no inversions
    for image in range(3):
        condensed = squareform(distance[image].numpy(), checks=False)
        wanted = cut_tree(linkage(condensed, kind), n_clusters=11)[:, 0]
        first = list(range(40))
        for place, goal in zip(gone[image].tolist(), into[image].tolist(), strict=True):
            first[place] = goal
        assert [wanted.tolist().index(label) for label in wanted] == first


def test_atc_merges_clusters_into_their_weighted_means(tower: zoo.ReducedViT):
    reducer = zoo.reduce(tower, method="atc", keep=0.5).reducer
    assert reducer.points == (2, 3, 5)
    tokens, metric = some_tokens(12), torch.randn(2, 12, 4)
    after, apart = reducer.merge(2, tokens, metric, 9), F.normalize(metric, dim=-1)
    for image, own in enumerate(1 - apart @ apart.transpose(1, 2)):
        labels = cut_tree(linkage(squareform(own.double().numpy(), checks=False), "average"), n_clusters=3)[:, 0]
        size = tokens.size[image]
        means = [(size[labels == c, None] * tokens.patches[image][labels == c]).sum(0) for c in range(3)]
        weights = torch.stack([size[labels == c].sum() for c in range(3)])
        assert torch.allclose(after.patches[image], torch.stack(means) / weights[:, None], atol=1e-5)
        assert torch.equal(after.size[image], weights)
    assert torch.equal(reducer.attention_bias(after)[:, 0, 0, 1:], after.size.log())


@pytest.mark.parametrize(("pruned", "stages"), [(0.5, [1, 2]), (0.0, [1]), (1.0, [3])])
def test_diffrate_is_the_slow_loop(pruned: float, stages: list[int], tower: zoo.ReducedViT, images: Tensor):
    """Slowly: in each block attention in proportion to size, prune the tail, merge the next into what is alike."""
    model = zoo.reduce(tower, method="diffrate", keep=0.5, reduce_at=stages, pruned=pruned)
    trace = model.trace(images)
    for image in range(3):
        x, size = tower.embed(images[image : image + 1]).x, torch.ones(64)
        for index, block in enumerate(tower.blocks):
            bias = F.pad(size.log(), (1, 0))
            heads = block.attn.qkv(block.norm1(x))[0].unflatten(1, (3, 3, 16)).permute(1, 2, 0, 3)
            logits = heads[0][:, :1] @ heads[1].transpose(1, 2) / 4 + bias
            seen = logits.softmax(dim=-1).mean(dim=0)[0, 1:]
            x = x + block.attn(block.norm1(x), attn_mask=bias[None, None, None])
            if index in stages:
                left = round(64 * (1 - (stages.index(index) + 1) / len(stages) / 2))
                r = len(size) - left
                order = sorted(range(len(size)), key=lambda place: -float(seen[place]))
                head, tail = sorted(order[:left]), order[left : len(order) - round(pruned * r)]
                meet, grown = {place: [place] for place in head}, size.clone()
                for place in tail:
                    goal = max(head, key=lambda other: cosine(x[0, 1 + place], x[0, 1 + other]))
                    meet[goal].append(place)
                    grown[goal] += size[place] * cosine(x[0, 1 + place], x[0, 1 + goal])
                rows = [x[0, 0], *(x[0, 1:][meet[place]].mean(dim=0) for place in head)]
                x, size = torch.stack(rows)[None], grown[head]
            x = x + block.mlp(block.norm2(x))
        assert torch.allclose(trace.output[image], tower.forward_head(tower.norm(x))[0], atol=1e-4)


@given(n=st.integers(2, 20), share=st.floats(0.0, 1.0), prefix=st.integers(1, 3), sized=st.booleans())
def test_the_size_weighted_sum_is_conserved(n: int, share: float, prefix: int, sized: bool):
    tokens = some_tokens(n, prefix=prefix, sized=sized)
    after = merge(0, tokens, torch.randn(2, n, 4), max(1, int(share * (n // 2))))
    size = tokens.size if sized else torch.ones(2, n)
    before = (size.unsqueeze(-1) * tokens.patches).sum(dim=1)
    assert torch.allclose((after.size.unsqueeze(-1) * after.patches).sum(dim=1), before, atol=1e-4)
    assert torch.equal(after.size.sum(dim=1), size.sum(dim=1))
