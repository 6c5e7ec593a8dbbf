"""Pruning, placing and ranking of tokens against slow loops."""

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
        best = sorted(range(6), key=lambda place: (-row[place], place))[:count]
        assert kept == sorted(best)


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
    assert torch.equal(went.before, tokens.patch_idx)
    assert torch.equal(went.after, kept.patch_idx)
    assert torch.equal(went.importance, importance)


def slow_order(history: tuple[Reduction, ...], image: int, patches: int) -> list[int]:
    """Sort by last stage reached, survival of it, importance at it, then grid position."""
    fate: dict[int, tuple[int, bool, float]] = {}
    for stage, went in enumerate(history):
        after = went.after[image].tolist()
        scores = went.importance[image].tolist()
        for position, score in zip(went.before[image].tolist(), scores, strict=True):
            fate[position] = (stage, position in after, score)
    fate.pop(-1, None)
    return sorted(range(patches), key=lambda p: (*(-float(f) for f in fate[p]), p))


def pruned_in_stages(counts: list[int], ties: bool) -> Tokens:
    tokens = start(batch=3)
    for block, count in enumerate(counts):
        importance = torch.rand(3, tokens.patch_count)
        tokens = tokens.prune(block, importance.mul(3).floor() if ties else importance, count)
    return tokens


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("counts", [[7], [10, 6, 2], [11, 10, 9, 1]])
def test_ranking_is_by_departure_then_importance(counts: list[int], ties: bool):
    tokens = pruned_in_stages(counts, ties)
    order = rank_scores(tokens.history, 12).argsort(dim=1, descending=True, stable=True)
    for image in range(3):
        assert order[image].tolist() == slow_order(tokens.history, image, 12)


def test_ranking_leaves_out_fused_tokens():
    """A fused token, at position -1, takes part in a stage without a place in the ranking."""
    before = torch.tensor([[0, 2, 3, -1]])
    history = (
        Reduction(0, torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 2, 3, -1]]), Tensor([[0.9, 0, 1, 2]])),
        Reduction(1, before, torch.tensor([[0, -1]]), Tensor([[0.8, 0.2, 0.1, 0.9]])),
    )
    scores = rank_scores(history, 4)
    assert scores.shape == (1, 4)
    assert scores.argsort(dim=1, descending=True).tolist() == [[0, 2, 3, 1]]


@pytest.mark.parametrize("counts", [[7], [10, 6, 2], [11, 10, 9, 1]])
def test_a_pruned_patch_left_where_it_is_last_seen_and_is_in_no_token(counts: list[int]):
    tokens = pruned_in_stages(counts, ties=False)
    left, token = left_at(tokens.history, 12), tokens_of(tokens.history, 12)
    for image in range(3):
        for patch in range(12):
            lost = [
                r.block
                for r in tokens.history
                if patch in r.before[image].tolist() and patch not in r.after[image].tolist()
            ]
            stays = patch in tokens.patch_idx[image].tolist()
            assert left[image, patch] == (lost[0] if lost else -1)
            assert stays == (not lost)
            assert token[image, patch] == (patch if stays else -1)


def test_a_merged_patch_is_in_the_token_that_its_partner_went_into_later():
    """3 goes into 2, 2 into 0, which takes 3 along; 1 stays alone."""
    history = (
        Reduction(
            2, torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1, 0, 2]]), torch.rand(1, 4),
            torch.tensor([[0, 1, 2, 2]]),
        ),
        Reduction(
            5, torch.tensor([[1, 0, 2]]), torch.tensor([[1, 0]]), torch.rand(1, 3),
            torch.tensor([[1, 0, 0]]),
        ),
    )  # fmt: skip
    assert tokens_of(history, 4).tolist() == [[0, 1, 0, 0]]
    assert left_at(history, 4).tolist() == [[-1, -1, 5, 2]]


def test_what_a_fused_token_took_up_counts_as_dropped():
    history = (
        Reduction(
            4, torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 2, -1]]), torch.rand(1, 4)
        ),
        Reduction(7, torch.tensor([[0, 2, -1]]), torch.tensor([[2, -1]]), torch.rand(1, 3)),
    )  # fmt: skip
    assert tokens_of(history, 4).tolist() == [[-1, -1, 2, -1]]
    assert left_at(history, 4).tolist() == [[7, 4, -1, 4]]


CASES = [
    ("patchrank", {"reduce_at": [0, 2, 4], "arch": "mlp", "rescore": True}),
    ("clsattn", {"source": "previous", "reduce_at": [1, 3]}),
    ("evit", {"reduce_at": [1, 3], "fuse": True}),
    ("tome", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_a_trace_is_consistent(name: str, options: dict, tiny: Build, images: Tensor):
    model = tiny(f"clip_vit_b16_{name}50", **options)
    trace = model.trace(images)
    assert torch.equal(trace.output, model(images))
    assert trace.grid == (8, 8)

    fused = bool(options.get("fuse"))
    left, wanted = 64, []
    counts = model.reducer.counts(64)
    for block in range(6):
        if block in counts:
            left = counts[block] + fused
        wanted.append(1 + left)
    assert trace.tokens_per_block == tuple(wanted)
    assert trace.final_tokens == left
    assert torch.equal(trace.kept, trace.reductions[-1].after)
    assert [r.block for r in trace.reductions] == list(model.reducer.points)
    _, each = model.advance(model.embed(images), taps=range(6))
    for tokens in each:
        assert tokens.patch_count == tokens.patch_idx.shape[1] == tokens.patches.shape[1]

    arrived = torch.arange(64).expand(3, -1)
    for went in trace.reductions:
        assert torch.equal(went.before, arrived)
        assert went.importance.shape == went.before.shape
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


def test_scatter_puts_tokens_back_and_ignores_fused_ones():
    tokens = start()
    kept = tokens.prune(0, torch.rand(2, 12), 5)
    fused = kept._replace(
        x=torch.cat((kept.x, torch.ones(2, 1, 5)), dim=1),
        patch_idx=torch.cat((kept.patch_idx, torch.full((2, 1), -1)), dim=1),
    )
    grid = fused.scatter_to_grid()
    assert grid.shape == (2, 12, 5)
    for image in range(2):
        for position in range(12):
            stays = position in kept.patch_idx[image].tolist()
            wanted = tokens.patches[image, position] if stays else torch.zeros(5)
            assert torch.equal(grid[image, position], wanted)


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
