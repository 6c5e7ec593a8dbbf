"""timm's interfaces keep working while tokens go, for every method."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zoo

LEFT = 32  # of 64 patch tokens


def scattered(model: zoo.ReducedViT, images: Tensor) -> list[Tensor]:
    """Slowly place what leaves each block in a grid of zeros, (B, N, D) per block."""
    maps = []
    for index in range(len(model.blocks)):
        tokens, _ = model.advance(model.embed(images), stop=index + 1)
        cells = tokens.grid[0] * tokens.grid[1]
        grid = torch.zeros(len(images), cells, tokens.x.shape[-1])
        for image in range(len(images)):
            for place, position in enumerate(tokens.patch_idx[image].tolist()):
                if position >= 0:
                    grid[image, position] = tokens.x[image, tokens.prefix + place]
        maps.append(grid)
    return maps


@torch.no_grad()
def test_features_and_head_make_the_forward(half: zoo.ReducedViT, images: Tensor):
    features = half.forward_features(images)
    assert features.shape == (3, 1 + LEFT, 48)
    assert torch.equal(half.forward_head(features), half(images))
    pooled = half.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, features[:, 0])
    assert torch.equal(half.head(pooled), half(images))


@torch.no_grad()
def test_reduction_changes_the_output(half: zoo.ReducedViT, images: Tensor):
    dense = zoo.reduce(half, method=None)
    assert not torch.allclose(half(images), dense(images), atol=1e-3)


@torch.no_grad()
def test_reset_classifier(half: zoo.ReducedViT, images: Tensor):
    pooled = half.forward_head(half.forward_features(images), pre_logits=True)
    half.reset_classifier(0)
    assert torch.equal(half(images), pooled)
    half.reset_classifier(5)
    assert half(images).shape == (3, 5)
    half.reset_classifier(0, "avg")
    features = half.forward_features(images)
    assert torch.allclose(half(images), features[:, 1:].mean(dim=1), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_hold_the_kept_tokens_in_their_places(
    half: zoo.ReducedViT, images: Tensor, norm: bool
):
    final, maps = half.forward_intermediates(images, norm=norm, output_fmt="NLC")
    assert torch.equal(final, half.forward_features(images))
    history = half.trace(images).reductions
    assert history
    for index, (found, placed) in enumerate(zip(maps, scattered(half, images), strict=True)):
        there = placed.abs().sum(dim=-1, keepdim=True) > 0
        wanted = half.norm(placed).where(there, 0.0) if norm else placed
        assert torch.allclose(found, wanted, atol=1e-6)
        gone = [r for r in history if r.block <= index]
        if gone:
            for row, positions in enumerate(gone[-1].after.tolist()):
                assert there[row].flatten().nonzero().flatten().tolist() == sorted(positions)
        else:
            assert there.all()


@torch.no_grad()
def test_intermediates_in_all_forms(half: zoo.ReducedViT, images: Tensor):
    lines = half.forward_intermediates(images, [1, 5], output_fmt="NLC", intermediates_only=True)
    planes = half.forward_intermediates(images, [1, 5], intermediates_only=True)
    assert [p.shape for p in planes] == [(3, 48, 8, 8)] * 2
    for line, plane in zip(lines, planes, strict=True):
        assert torch.equal(plane.flatten(2).transpose(1, 2), line)
    pairs = half.forward_intermediates(
        images, [5], return_prefix_tokens=True, intermediates_only=True, norm=True
    )
    assert torch.equal(pairs[0][1], half.forward_features(images)[:, :1])
    both = half.forward_intermediates(images, 2, output_dict=True, return_prefix_tokens=True)
    assert sorted(both) == ["image_features", "image_intermediates", "image_intermediates_prefix"]
    assert torch.equal(both["image_features"], half.forward_features(images))
    only = half.forward_intermediates(images, 2, output_dict=True, intermediates_only=True)
    assert list(only) == ["image_intermediates"]
    early = half.forward_intermediates(images, [1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], planes[0])
    with pytest.raises(ValueError, match="output_fmt='NHWC': expected NCHW or NLC"):
        half.forward_intermediates(images, output_fmt="NHWC")


@torch.no_grad()
def test_get_intermediate_layers(half: zoo.ReducedViT, images: Tensor):
    last = half.get_intermediate_layers(images, n=2, norm=True)
    wanted = half.forward_intermediates(images, 2, norm=True, output_fmt="NLC")[1]
    assert len(last) == 2
    assert all(torch.equal(a, b) for a, b in zip(last, wanted, strict=True))
    assert half.get_intermediate_layers(images, reshape=True)[0].shape == (3, 48, 8, 8)


@torch.no_grad()
def test_features_only(method: str, tiny: Callable[..., nn.Module], images: Tensor):
    name, take = f"clip_vit_b16_{method}50", [1, 4]
    whole = tiny(name)
    part = tiny(name, features_only=True, out_indices=take)
    assert part.feature_info.channels() == [48, 48]
    assert part.feature_info.reduction() == [8, 8]
    missing, _ = part.model.load_state_dict(whole.state_dict(), strict=False)
    assert missing == []
    assert len(part.model.blocks) == 5  # timm drops the blocks that nobody asks for
    wanted = whole.forward_intermediates(images, take, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(part(images), wanted, strict=True))


@torch.no_grad()
def test_towers_cut_before_the_reduction_are_dense(tiny: Callable[..., nn.Module], images: Tensor):
    model = tiny("clip_vit_b16_random50")
    dense = zoo.reduce(model, method=None)
    wanted = dense.forward_intermediates(images, [2], intermediates_only=True)[0]
    model.prune_intermediate_layers([2], prune_norm=True)
    assert torch.equal(model.forward_intermediates(images, 1, intermediates_only=True)[0], wanted)


@torch.no_grad()
def test_dynamic_image_size(method: str, tiny: Callable[..., nn.Module]):
    model = tiny(f"clip_vit_b16_{method}50", dynamic_img_size=True)
    for rows, columns in ((8, 8), (12, 12), (6, 10), (3, 5)):
        trace = model.trace(torch.randn(2, 3, 8 * rows, 8 * columns))
        assert trace.grid == (rows, columns)
        assert trace.final_tokens == round(0.5 * rows * columns)
        assert int(trace.reductions[-1].after.max()) < rows * columns
        features = model.forward_intermediates(torch.randn(1, 3, 8 * rows, 8 * columns))[1]
        assert features[-1].shape == (1, 48, rows, columns)


@torch.no_grad()
def test_dynamic_padding(method: str, tiny: Callable[..., nn.Module]):
    model = tiny(f"clip_vit_b16_{method}50", dynamic_img_size=True, dynamic_img_pad=True)
    trace = model.trace(torch.randn(1, 3, 60, 77))
    assert (trace.grid, trace.final_tokens) == ((8, 10), 40)


@torch.no_grad()
def test_set_input_size(half: zoo.ReducedViT):
    half.set_input_size(img_size=(96, 80))
    trace = half.trace(torch.randn(1, 3, 96, 80))
    assert (trace.grid, trace.final_tokens) == ((12, 10), 60)
    half.set_input_size(img_size=(64, 64), patch_size=(16, 16))
    trace = half.trace(torch.randn(1, 3, 64, 64))
    assert (trace.grid, trace.final_tokens) == ((4, 4), 8)


@torch.no_grad()
def test_other_image_sizes_are_refused_as_by_timm(half: zoo.ReducedViT):
    with pytest.raises(AssertionError, match="Input height"):
        half(torch.randn(1, 3, 96, 96))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"reduce_at": [1, 2, 4]}, {"schedule": "linear"}])
def test_an_image_fares_the_same_alone_and_in_company(
    method: str, options: dict, tiny: Callable[..., nn.Module]
):
    model = tiny(f"clip_vit_b16_{method}50", **options)
    images = torch.randn(5, 3, 64, 64)
    together = model.trace(images)
    for index in range(5):
        alone = model.trace(images[index : index + 1])
        assert torch.allclose(alone.output[0], together.output[index], atol=1e-5)
        for one, all_ in zip(alone.reductions, together.reductions, strict=True):
            assert torch.equal(one.after[0], all_.after[index])
        assert torch.equal(alone.ranking[0], together.ranking[index])


@torch.no_grad()
def test_copies_live_their_own_life(half: zoo.ReducedViT, images: Tensor):
    twin = copy.deepcopy(half)
    assert torch.equal(twin(images), half(images))
    before = half(images)
    twin.blocks[0].mlp.fc1.weight.zero_()
    assert torch.equal(half(images), before)


def test_the_settings_are_printed(half: zoo.ReducedViT):
    assert "keep=0.5" in repr(half.reducer)
