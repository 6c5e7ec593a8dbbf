"""A trace tells what happened, and leaves nothing behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo

CASES = [
    ("patchrank", {}),
    ("patchrank", {"reduce_at": [0, 2, 4], "schedule": "linear"}),
    ("patchrank", {"reduce_at": [0, 2, 4], "arch": "mlp", "rescore": True}),
    ("clsattn", {"reduce_at": [1, 3]}),
    ("clsattn", {"source": "previous", "reduce_at": [1, 3]}),
    ("evit", {"reduce_at": [1, 3, 5]}),
    ("evit", {"reduce_at": [1, 3], "fuse": True}),
    ("random", {"reduce_at": [2, 3]}),
    ("tome", {}),
    ("tome", {"reduce_at": [0, 3]}),
]


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """List every attribute of every module by identity, and every tensor by value."""
    attributes = [
        (name, key, id(value))
        for name, module in model.named_modules()
        for key, value in sorted(module.__dict__.items())
        if not isinstance(value, dict)
    ]
    entries = [
        (name, key, inner, id(value))
        for name, module in model.named_modules()
        for key, holder in sorted(module.__dict__.items())
        if isinstance(holder, dict)
        for inner, value in holder.items()
    ]
    tensors = [(name, value.double().sum().item()) for name, value in model.state_dict().items()]
    return [*attributes, *entries, *tensors]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_nothing_is_left_on_the_model(
    name: str, options: dict, tiny: Callable[..., nn.Module], images: Tensor
):
    model = tiny(f"clip_vit_b16_{name}50", **options)
    before = state(model)
    with torch.no_grad():
        model.trace(images)
        model(images)
        model.forward_intermediates(images)
    assert state(model) == before


@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_a_trace_is_consistent(
    name: str, options: dict, tiny: Callable[..., nn.Module], images: Tensor
):
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

    arrived = torch.arange(64).expand(3, -1)
    for went in trace.reductions:
        assert torch.equal(went.before, arrived)
        assert went.importance.shape == went.before.shape
        assert went.after.shape[1] == counts[went.block] + fused
        for image in range(3):
            after = [p for p in went.after[image].tolist() if p >= 0]
            assert len(set(after)) == len(after)
            assert set(after) <= set(went.before[image].tolist())
        arrived = went.after


@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_survivors_lead_the_ranking(
    name: str, options: dict, tiny: Callable[..., nn.Module], images: Tensor
):
    trace = tiny(f"clip_vit_b16_{name}50", **options).trace(images)
    assert trace.ranking.shape == trace.scores.shape == (3, 64)
    assert trace.ranking.sort(dim=1).values.tolist() == [list(range(64))] * 3
    for image in range(3):
        stays = {p for p in trace.reductions[-1].after[image].tolist() if p >= 0}
        assert set(trace.ranking[image, : len(stays)].tolist()) == stays
        ranked = trace.scores[image][trace.ranking[image]]
        assert (ranked.diff() <= 0).all()
        # Whoever went at an earlier point ranks below all who went later.
        bounds = [set(r.after[image].tolist()) - {-1} for r in trace.reductions]
        for stays in bounds:
            assert set(trace.ranking[image, : len(stays)].tolist()) == stays


@torch.no_grad()
def test_one_shot_ranking_is_the_importance(tiny: Callable[..., nn.Module], images: Tensor):
    trace = tiny("clip_vit_b16_patchrank50").trace(images)
    [went] = trace.reductions
    assert torch.equal(trace.ranking, went.importance.argsort(dim=1, descending=True, stable=True))


@torch.no_grad()
def test_nothing_reduced_means_no_ranking(
    method: str, tiny: Callable[..., nn.Module], images: Tensor
):
    for model in (tiny("clip_vit_b16"), tiny(f"clip_vit_b16_{method}50", keep=1.0)):
        trace = model.trace(images)
        assert trace.scores is trace.ranking is None
        assert trace.reductions == ()
        assert trace.tokens_per_block == (65,) * 6
        assert trace.final_tokens == 64
        assert trace.kept.tolist() == [list(range(64))] * 3


@torch.no_grad()
def test_a_shared_prefix_gives_the_same_result(half: zoo.ReducedViT, images: Tensor):
    """The harness runs the dense blocks once for all methods; ``first_block`` says which."""
    dense = zoo.reduce(half, method=None)
    shared, _ = dense.advance(dense.embed(images), stop=half.reducer.first_block)
    tokens, _ = half.advance(shared, start=half.reducer.first_block)
    assert torch.equal(half.finish(tokens), half(images))


@torch.no_grad()
def test_printed_forms_are_short(tiny: Callable[..., nn.Module], images: Tensor):
    trace = tiny("clip_vit_b16_evit50", reduce_at=[1, 3]).trace(images)
    assert repr(trace) == "Trace(3 images, 8 x 8 patches: 45 at block 1, 32 at block 3)"
    assert repr(trace.reductions[1]) == "Reduction(block 3: 45 to 32 patch tokens, 3 images)"
    assert "none reduced" in repr(tiny("clip_vit_b16").trace(images))
