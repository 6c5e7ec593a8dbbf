"""Gradients, checkpointing, parameter groups, number formats: with reduction, for every method."""

from collections.abc import Callable

import pytest
import torch
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

import zoo


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(images)
    output.square().sum().backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_all_but_the_scorer_of_a_hard_choice(half: zoo.ReducedViT, images: Tensor):
    _, grads = gradients(half.train(), images)
    without = {name for name, _ in half.named_parameters()} - grads.keys()
    scorer = {name for name, _ in half.named_parameters() if name.startswith("reducer.predictor.")}
    assert without == scorer  # a top-k has no gradient
    assert bool(scorer) == (half.reducer.method == "patchrank")
    assert all(grad.isfinite().all() for grad in grads.values())
    assert sum(bool(grad.any()) for grad in grads.values()) > 0.9 * len(grads)


def test_checkpointing_changes_nothing(half: zoo.ReducedViT, images: Tensor):
    half.train()
    output, grads = gradients(half, images)
    half.set_grad_checkpointing()
    again, same = gradients(half, images)
    assert torch.equal(again, output)
    assert same.keys() == grads.keys()
    assert all(torch.allclose(same[name], grads[name], atol=1e-6) for name in grads)
    half.set_grad_checkpointing(False)
    assert torch.equal(gradients(half, images)[0], output)


def test_checkpointing_saves_activations(half: zoo.ReducedViT, images: Tensor):
    def saved() -> int:
        kept = []
        hooks = (lambda t: kept.append(t.numel()), lambda t: t)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            half(images)
        return sum(kept)

    half.train()
    everything = saved()
    half.set_grad_checkpointing()
    assert saved() < everything / 2


def test_checkpointed_intermediates(half: zoo.ReducedViT, images: Tensor):
    wanted = half.forward_intermediates(images, [5], intermediates_only=True)[0]
    half.set_grad_checkpointing()
    found = half.forward_intermediates(images, [5], intermediates_only=True)[0]
    assert torch.equal(found, wanted)


def test_every_parameter_has_one_group(half: zoo.ReducedViT):
    names = [name for name, _ in half.named_parameters()]
    for coarse in (False, True):
        groups = group_parameters(half, half.group_matcher(coarse=coarse))
        assert sorted(name for group in groups.values() for name in group) == sorted(names)
    groups = group_parameters(half, half.group_matcher(), reverse=True)
    assert groups["head.weight"] == max(groups.values()) == 7
    for name in names:
        if name.startswith(("norm.", "reducer.")):
            assert groups[name] == 6
        if name.startswith("blocks."):
            assert groups[name] == 1 + int(name.split(".")[1])
    assert groups["patch_embed.proj.weight"] == 0


def test_layer_decay_scales_the_rates(half: zoo.ReducedViT):
    groups = param_groups_layer_decay(
        half, weight_decay=0.1, no_weight_decay_list=half.no_weight_decay(), layer_decay=0.5
    )
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in half.parameters())
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(half.head.weight)] == 1.0
    assert scale[id(half.patch_embed.proj.weight)] == pytest.approx(0.5**7)
    create_optimizer_v2(half, "adamw", lr=0.1, weight_decay=0.1, layer_decay=0.5).step()


def test_no_weight_decay_is_timms(half: zoo.ReducedViT):
    assert half.no_weight_decay() == VisionTransformer.no_weight_decay(half)
    groups = param_groups_layer_decay(
        half, weight_decay=0.1, no_weight_decay_list=half.no_weight_decay(), layer_decay=1.0
    )
    free = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {id(half.pos_embed), id(half.cls_token)} <= free
    assert id(half.blocks[0].mlp.fc1.weight) not in free


@torch.no_grad()
def test_channels_last(half: zoo.ReducedViT, images: Tensor):
    wanted = half(images)
    model = half.to(memory_format=torch.channels_last)
    found = model(images.to(memory_format=torch.channels_last))
    assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(half: zoo.ReducedViT, images: Tensor, dtype: torch.dtype):
    exact = half(images)
    half.to(dtype)
    trace = half.trace(images.to(dtype))
    assert trace.output.dtype == dtype
    assert trace.output.isfinite().all()
    assert trace.final_tokens == 32
    assert half.forward_intermediates(images.to(dtype))[1][-1].dtype == dtype
    if dtype == torch.float64:
        assert torch.allclose(trace.output.float(), exact, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method_", ["evit", "tome"])
def test_bf16_stays_near_fp32(method_: str, tiny: Callable[..., nn.Module], images: Tensor):
    """Near on average: a token at the threshold may be chosen differently."""
    model = tiny(f"clip_vit_b16_{method_}90")
    exact = model(images)
    rough = model.to(torch.bfloat16)(images.to(torch.bfloat16)).float()
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.98


@torch.no_grad()
def test_autocast(half: zoo.ReducedViT, images: Tensor):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = half.trace(images)
    assert trace.final_tokens == 32
    assert trace.output.isfinite().all()


def test_autocast_trains(half: zoo.ReducedViT, images: Tensor):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = half.train()(images).float().square().sum()
    loss.backward()
    assert half.blocks[0].attn.qkv.weight.grad.isfinite().all()


def test_built_in_the_dtype_asked_for(method: str, tiny: Callable[..., nn.Module]):
    model = tiny(f"clip_vit_b16_{method}50", dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    wide = zoo.reduce(model, method=method, keep=0.5)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


@pytest.mark.cuda
@torch.no_grad()
def test_cuda_keeps_what_the_cpu_keeps(half: zoo.ReducedViT, images: Tensor):
    cpu = half.double().trace(images.double())
    gpu = half.cuda().trace(images.double().cuda())
    assert torch.allclose(gpu.output.cpu(), cpu.output, atol=1e-6)
    for here, there in zip(cpu.reductions, gpu.reductions, strict=True):
        assert torch.equal(here.after, there.after.cpu())
