"""torch.fx and TorchScript record every method as one straight line, equal to the model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.vit import straight_line

# torch warns of an annotation in its own GraphModule.
pytestmark = pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
OPTIONS = [
    ("evit", {"fuse": True, "reduce_at": [1, 3]}),
    ("tome", {"proportional": False}),
    ("clsattn", {"source": "previous"}),
    ("patchrank", {"arch": "mlp", "reduce_at": [1, 3], "rescore": True}),
    ("patchrank", {"arch": "mixer"}),
    ("patchrank", {"arch": "transformer"}),
    ("random", {"keep": 1.0}),
]


@torch.no_grad()
def check(recorded: Callable[[Tensor], Tensor], model: nn.Module) -> None:
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 64)
        assert torch.allclose(recorded(images), model(images), atol=1e-5)


def test_recorded_by_fx(half: zoo.ReducedViT):
    recorded = straight_line(half)
    check(recorded, half)
    assert dict(recorded.named_parameters()).keys() == dict(half.named_parameters()).keys()
    assert recorded.head.weight is half.head.weight


def test_scripted(half: zoo.ReducedViT):
    check(torch.jit.script(half), half)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_scripted_with_options(name: str, options: dict, tiny: Callable[..., nn.Module]):
    model = tiny(f"clip_vit_b16_{name}50", **options)
    check(torch.jit.script(model), model)


def test_scripted_dense(tiny: Callable[..., nn.Module]):
    model = tiny("clip_vit_b16")
    check(torch.jit.script(model), model)


def test_the_recording_is_short_of_the_history(half: zoo.ReducedViT):
    """Nothing is recorded whose result nobody reads."""
    nodes = straight_line(half).graph.nodes
    assert all(node.users or node.op in ("placeholder", "output") for node in nodes)


def test_a_recorded_model_trains(half: zoo.ReducedViT, images: Tensor):
    half.train()
    half(images).square().sum().backward()
    wanted = half.blocks[0].attn.qkv.weight.grad.clone()
    half.zero_grad()
    straight_line(half)(images).square().sum().backward()
    assert torch.allclose(half.blocks[0].attn.qkv.weight.grad, wanted, atol=1e-5)


@pytest.mark.parametrize("given", [{"attn_mask": torch.ones(65, 65)}, {"is_causal": True}])
def test_a_recorded_reduced_model_refuses_masks(half: zoo.ReducedViT, images: Tensor, given: dict):
    with pytest.raises(ValueError, match="need all tokens in place"):
        straight_line(half)(images, **given)
    with pytest.raises(torch.jit.Error, match="need all tokens in place"):
        torch.jit.script(half)(images, **given)


def test_the_count_of_patches_follows_the_sequence(half: zoo.ReducedViT, images: Tensor):
    tokens, each = half.advance(half.embed(images), taps=range(6))
    for passed in (tokens, *each):
        assert passed.patch_count == passed.patch_idx.shape[1] == passed.patches.shape[1]
    assert tokens.patch_count == 32


def test_the_fused_token_is_counted(tiny: Callable[..., nn.Module], images: Tensor):
    model = tiny("clip_vit_b16_evit50", fuse=True, reduce_at=[1, 3])
    tokens, _ = model.advance(model.embed(images))
    assert tokens.patch_count == tokens.patches.shape[1] == 33


def test_picking_positions_counts_them(half: zoo.ReducedViT, images: Tensor):
    start = half.embed(images)
    picked = start.select(0, torch.zeros(3, 64), torch.tensor([[0, 5], [1, 9], [2, 3]]))
    assert picked.patch_count == picked.patches.shape[1] == 2
