"""timm's interfaces keep working while tokens go, for every method."""

import pytest
import torch
from lively import Build
from torch import Tensor, nn

import zoo

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(params=["evitfuse", "patchrank", "rankmerge"])
def method(request: pytest.FixtureRequest) -> str:
    """One method that prunes, one that fuses and one that merges."""
    return request.param


def scattered(model: zoo.ReducedViT, images: Tensor) -> list[Tensor]:
    """Slowly place what leaves each block in a grid of zeros, (B, N, D) per block."""
    _, each = model.advance(model.embed(images), taps=range(model.depth))
    maps = [torch.zeros(len(images), 64, 48) for _ in each]
    for tokens, grid in zip(each, maps, strict=True):
        for image, positions in enumerate(tokens.patch_idx.tolist()):
            for place, position in enumerate(positions):
                if position >= 0:
                    grid[image, position] = tokens.patches[image, place]
    return maps


def test_features_and_head_make_the_forward(half: zoo.ReducedViT, images: Tensor):
    assert not torch.allclose(half(images), zoo.reduce(half, method=None)(images), atol=1e-3)
    features = half.forward_features(images)
    assert features.shape == (3, 1 + 32, 48)
    assert torch.equal(half.forward_head(features), half(images))
    pooled = half.forward_head(features, pre_logits=True)
    assert torch.equal(half.head(pooled), half(images))
    half.reset_classifier(0)
    assert torch.equal(half(images), pooled)
    half.reset_classifier(0, "avg")
    tokens, _ = half.advance(half.embed(images))
    size = torch.ones_like(tokens.patch_idx) if tokens.size is None else tokens.size
    mass = size if tokens.mass is None else tokens.mass
    mean = (half.forward_features(images)[:, 1:] * mass[..., None]).sum(dim=1) / size.sum(dim=1, keepdim=True)
    assert torch.allclose(half(images), mean, atol=1e-5)
    for mask in ({"is_causal": True}, {"attn_mask": torch.zeros(65, 65)}):
        with pytest.raises(ValueError, match="attn_mask and is_causal need all tokens"):
            half.forward_features(images, **mask)


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_hold_kept_tokens(half: zoo.ReducedViT, images: Tensor, norm: bool):
    final, maps = half.forward_intermediates(images, norm=norm, output_fmt="NLC")
    assert torch.equal(final, half.forward_features(images))
    history = half.trace(images).reductions
    for index, (found, placed) in enumerate(zip(maps, scattered(half, images), strict=True)):
        there = placed.abs().sum(dim=-1, keepdim=True) > 0
        wanted = half.norm(placed).where(there, 0.0) if norm else placed
        assert torch.allclose(found, wanted, atol=1e-6)
        gone = [r.after for r in history if r.block <= index]
        for row, positions in enumerate(gone[-1].tolist() if gone else [list(range(64))] * 3):
            assert there[row].flatten().nonzero().flatten().tolist() == sorted(p for p in positions if p >= 0)


def test_intermediates_in_all_forms(half: zoo.ReducedViT, images: Tensor):
    lines = half.forward_intermediates(images, [1, 5], output_fmt="NLC", intermediates_only=True)
    planes = half.forward_intermediates(images, [1, 5], intermediates_only=True)
    assert [p.shape for p in planes] == [(3, 48, 8, 8)] * 2
    for line, plane in zip(lines, planes, strict=True):
        assert torch.equal(plane.flatten(2).transpose(1, 2), line)
    pairs = half.forward_intermediates(images, [5], return_prefix_tokens=True, intermediates_only=True, norm=True)
    assert torch.equal(pairs[0][1], half.forward_features(images)[:, :1])
    both = half.forward_intermediates(images, 2, output_dict=True, return_prefix_tokens=True)
    assert sorted(both) == ["image_features", "image_intermediates", "image_intermediates_prefix"]
    early = half.forward_intermediates(images, [1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], planes[0])


def test_other_image_sizes(method: str, tiny: Build):
    model = tiny(f"clip_vit_b16_{method}50", dynamic_img_size=True)
    for rows, columns in ((12, 12), (6, 10), (3, 5)):
        images = torch.randn(2, 3, 8 * rows, 8 * columns)
        trace = model.trace(images)
        assert (trace.grid, trace.final_tokens) == ((rows, columns), round(0.5 * rows * columns))
        assert int(trace.reductions[-1].after.max()) < rows * columns
        assert model.forward_intermediates(images)[1][-1].shape == (2, 48, rows, columns)
    model = tiny(f"clip_vit_b16_{method}50")
    for size, patch, grid in (((96, 80), (8, 8), (12, 10)), ((64, 64), (16, 16), (4, 4))):
        model.set_input_size(img_size=size, patch_size=patch)
        trace = model.trace(torch.randn(1, 3, *size))
        assert (trace.grid, trace.final_tokens) == (grid, grid[0] * grid[1] // 2)


@pytest.mark.parametrize("method", sorted(zoo.METHODS))
@pytest.mark.parametrize("options", [{}, {"reduce_at": [1, 3], "schedule": [0.7]}])
def test_an_image_fares_the_same_alone_and_in_company(method: str, options: dict, tiny: Build):
    model = tiny(f"clip_vit_b16_{method}50", **options)
    images = torch.randn(5, 3, 64, 64)
    together = model.trace(images)
    for index in range(5):
        alone = model.trace(images[index : index + 1])
        assert torch.allclose(alone.output[0], together.output[index], atol=1e-5)
        for one, all_ in zip(alone.reductions, together.reductions, strict=True):
            assert torch.equal(one.after[0], all_.after[index])
        assert torch.equal(alone.ranking[0], together.ranking[index])


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(images)
    output.square().sum().backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@torch.enable_grad()
def test_gradients_reach_all_but_the_scorer_of_a_hard_choice_checkpointed_or_not(half: zoo.ReducedViT, images: Tensor):
    output, grads = gradients(half.train(), images)
    without = {name for name, _ in half.named_parameters()} - grads.keys()
    scorer = {name for name, _ in half.named_parameters() if name.startswith("reducer.predictor.")}
    assert without == scorer  # a top-k has no gradient
    assert bool(scorer) == (half.reducer.method == "patchrank")
    assert all(grad.isfinite().all() for grad in grads.values())
    assert sum(bool(grad.any()) for grad in grads.values()) > 0.9 * len(grads)
    maps = half.forward_intermediates(images, [5], intermediates_only=True)
    half.set_grad_checkpointing()
    assert torch.equal(half.forward_intermediates(images, [5], intermediates_only=True)[0], maps[0])
    again, same = gradients(half, images)
    assert torch.equal(again, output)
    assert same.keys() == grads.keys()
    assert all(torch.allclose(same[name], grads[name], atol=1e-6) for name in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_and_layouts(half: zoo.ReducedViT, images: Tensor, dtype: torch.dtype):
    exact = half(images)
    half.to(dtype=dtype, memory_format=torch.channels_last)
    trace = half.trace(images.to(dtype))
    assert trace.output.dtype == dtype
    assert trace.output.isfinite().all()
    assert trace.final_tokens == 32
    assert half.forward_intermediates(images.to(dtype))[1][-1].dtype == dtype
    if dtype == torch.float64:
        assert torch.allclose(trace.output.float(), exact, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("method", sorted(zoo.METHODS))
def test_cuda_keeps_what_the_cpu_keeps(half: zoo.ReducedViT, images: Tensor):
    cpu = half.double().trace(images.double())
    gpu = half.cuda().trace(images.double().cuda())
    assert torch.allclose(gpu.output.cpu(), cpu.output, atol=1e-6)
    for here, there in zip(cpu.reductions, gpu.reductions, strict=True):
        assert torch.equal(here.after, there.after.cpu())


def test_features_only(method: str, tiny: Build, images: Tensor):
    name, take = f"clip_vit_b16_{method}50", [1, 4]
    whole = tiny(name)
    part = tiny(name, features_only=True, out_indices=take)
    assert part.feature_info.channels() == [48, 48]
    assert part.feature_info.reduction() == [8, 8]
    missing, _ = part.model.load_state_dict(whole.state_dict(), strict=False)
    assert missing == []
    assert len(part.model.blocks) == 5  # timm drops the blocks that nobody asks for
    wanted = whole.forward_intermediates(images, take, intermediates_only=True)
    torch.testing.assert_close(part(images), wanted)
