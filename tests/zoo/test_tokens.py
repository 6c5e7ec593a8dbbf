"""Pruning, merging, placing and ranking of tokens against slow loops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from zoo.core.tokens import Reduction, Tokens, left_at, rank_scores, tokens_of, top

Build = Callable[..., nn.Module]


def start(batch: int = 2, prefix: int = 1, grid: tuple[int, int] = (3, 4), dim: int = 5) -> Tokens:
    return Tokens.start(torch.randn(batch, prefix + grid[0] * grid[1], dim), prefix, grid)


@given(
    values=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3),
    count=st.integers(1, 6),
)
def test_top_is_a_stable_sort(values: list[list[int]], count: int):
    found = top(torch.tensor(values, dtype=torch.float32), count)
    for row, kept in zip(values, found.tolist(), strict=True):
        assert kept == sorted(sorted(range(6), key=lambda place: (-row[place], place))[:count])


@pytest.mark.parametrize("prefix", [1, 5])
def test_prune_keeps_prefix_order_and_places(prefix: int):
    tokens = start(prefix=prefix)
    importance = torch.rand(2, 12)
    kept = tokens.prune(7, importance, 4)
    assert kept.patch_count == 4
    assert torch.equal(kept.x[:, :prefix], tokens.x[:, :prefix])
    for image in range(2):
        best = sorted(importance[image].argsort(descending=True)[:4].tolist())
        assert kept.patch_idx[image].tolist() == best
        assert torch.equal(kept.patches[image], tokens.patches[image][best])
        assert torch.equal(kept.importance[image], importance[image][best])
    [went] = kept.history
    assert went.block == 7
    for found, wanted in zip(went[1:4], (tokens.patch_idx, kept.patch_idx, importance), strict=True):
        assert torch.equal(found, wanted)


def test_merged_tokens_have_the_mean_place():
    tokens = Tokens.start(torch.randn(1, 9, 4), 0, (3, 3), torch.zeros(9, 2))
    for gone, into, count in (([0], [8], 8), ([0, 3], [7, 7], 6)):  # then positions in the shorter sequence
        positions = torch.tensor([gone]), torch.tensor([into])
        tokens = tokens.merge(0, *positions, torch.zeros(1, len(gone)), count)
    last = tokens.token_of_patch()[0]
    cells = torch.tensor([[cell // 3, cell % 3] for cell in range(9)]).float()
    means = torch.stack([cells[last == token].mean(dim=0) for token in range(6)])
    assert torch.allclose(tokens.places()[0], means)
    kept = tokens.select(1, torch.zeros(1, 6), torch.tensor([[1, 5]]))
    assert torch.equal(kept.places()[0], tokens.places()[0, [1, 5]])


def slow_order(history: tuple[Reduction, ...], image: int, patches: int) -> list[int]:
    """Sort by last stage reached, survival of it, importance at it, then grid position."""
    fate: dict[int, tuple[int, bool, float]] = {}
    for stage, went in enumerate(history):
        after, scores = went.after[image].tolist(), went.importance[image].tolist()
        for position, score in zip(went.before[image].tolist(), scores, strict=True):
            fate[position] = (stage, position in after, score)
    return sorted(range(patches), key=lambda p: (*(-float(f) for f in fate[p]), p))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("counts", [[7], [10, 6, 2], [11, 10, 9, 1]])
def test_what_a_history_of_pruning_tells(counts: list[int], ties: bool):
    """The ranking is by departure, then importance; a pruned patch left where it is last seen and is in no token."""
    tokens = start(batch=3)
    for block, count in enumerate(counts):
        importance = torch.rand(3, tokens.patch_count)
        tokens = tokens.prune(block, importance.mul(3).floor() if ties else importance, count)
    order = rank_scores(tokens.history, 12).argsort(dim=1, descending=True, stable=True)
    left, token = left_at(tokens.history, 12), tokens_of(tokens.history, 12)
    for image in range(3):
        assert order[image].tolist() == slow_order(tokens.history, image, 12)
        for patch in range(12):
            seen = [r.block for r in tokens.history if patch in r.before[image].tolist()]
            stays = patch in tokens.patch_idx[image].tolist()
            assert left[image, patch] == (-1 if stays else seen[-1])
            assert token[image, patch] == (patch if stays else -1)


def reduction(block: int, before: list[int], after: list[int], *more: list[float]) -> Reduction:
    parts = [torch.tensor([part]) for part in (before, after, *more)]
    return Reduction(block, *parts) if more else Reduction(block, *parts, torch.rand(1, len(before)))


def test_histories_of_merging_and_fusing():
    """3 goes into 2, 2 into 0, which takes 3 along; what a fused token (-1) took up counts as dropped."""
    first = reduction(2, [0, 1, 2, 3], [1, 0, 2], [0.0] * 4, [0, 1, 2, 2])
    history = (first, reduction(5, [1, 0, 2], [1, 0], [0.0] * 3, [1, 0, 0]))
    assert tokens_of(history, 4).tolist() == [[0, 1, 0, 0]]
    assert left_at(history, 4).tolist() == [[-1, -1, 5, 2]]
    history = (reduction(4, [0, 1, 2, 3], [0, 2, -1]), reduction(7, [0, 2, -1], [2, -1]))
    assert tokens_of(history, 4).tolist() == [[-1, -1, 2, -1]]
    assert left_at(history, 4).tolist() == [[7, 4, -1, 4]]
    first = reduction(0, [0, 1, 2, 3], [0, 2, 3, -1], [0.9, 0.0, 1.0, 2.0])
    scores = rank_scores((first, reduction(1, [0, 2, 3, -1], [0, -1], [0.8, 0.2, 0.1, 0.9])), 4)
    assert scores.argsort(dim=1, descending=True).tolist() == [[0, 2, 3, 1]]


CASES = [
    ("patchrank", {"reduce_at": [0, 2, 4], "arch": "mlp"}),
    ("clsattn", {"source": "previous", "reduce_at": [1, 3]}),
    ("evit", {"reduce_at": [1, 3], "fuse": True}),
    ("tome", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_a_trace_is_consistent(name: str, options: dict, tiny: Build, images: Tensor):
    model = tiny(f"clip_vit_b16_{name}50", **options)
    trace, counts, fused = model.trace(images), model.reducer.counts(64), bool(options.get("fuse"))
    assert torch.equal(trace.output, model(images))
    left, wanted = 64, []
    for block in range(6):
        if block in counts:
            left = counts[block] + fused
        wanted.append(1 + left)
    assert (trace.grid, trace.tokens_per_block, trace.final_tokens) == ((8, 8), tuple(wanted), left)
    assert torch.equal(trace.kept, trace.reductions[-1].after)
    assert [r.block for r in trace.reductions] == list(model.reducer.points)
    arrived = torch.arange(64).expand(3, -1)
    for went in trace.reductions:
        assert torch.equal(went.before, arrived)
        assert went.after.shape[1] == counts[went.block] + fused
        for image in range(3):
            after = [p for p in went.after[image].tolist() if p >= 0]
            assert len(set(after)) == len(after)
            assert set(after) <= set(went.before[image].tolist())
            # Whoever went at an earlier point ranks below all who went later.
            assert set(trace.ranking[image, : len(after)].tolist()) == set(after)
        arrived = went.after
    assert trace.ranking.sort(dim=1).values.tolist() == [list(range(64))] * 3
    assert (trace.scores.gather(1, trace.ranking).diff() <= 0).all()


@torch.no_grad()
def test_a_shared_prefix_gives_the_same_result(half: zoo.ReducedViT, images: Tensor):
    """The harness runs the dense blocks once for all methods; ``first_block`` says which."""
    dense = zoo.reduce(half, method=None)
    shared, _ = dense.advance(dense.embed(images), stop=half.reducer.first_block)
    tokens, _ = half.advance(shared, start=half.reducer.first_block)
    assert torch.equal(half.finish(tokens), half(images))


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """List every attribute of every module by identity, and every tensor by value."""
    entries: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        for key, value in sorted(module.__dict__.items()):
            inner = value.items() if isinstance(value, dict) else [("", value)]
            entries += [(name, key, k, id(v)) for k, v in inner]
    return entries + [(name, v.double().sum().item()) for name, v in model.state_dict().items()]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_nothing_is_left_on_the_model(name: str, options: dict, tiny: Build, images: Tensor):
    model = tiny(f"clip_vit_b16_{name}50", **options)
    before = state(model)
    with torch.no_grad():
        model.trace(images)
        model(images)
        model.forward_intermediates(images)
    assert state(model) == before
