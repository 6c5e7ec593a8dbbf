"""The predictor: symmetry, freedom of the image size, and Patch Ranking's use of it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.predictor import ARCHITECTURES, Predictor
from zoo.reducer import HostSpec, build_reducer

FREE = ["linear", "mlp", "transformer"]  # of the place, and of how many patches there are
HOST = HostSpec(embed_dim=8, depth=6, grid=(4, 4), prefix=1)


def predictor(arch: str, grid: tuple[int, int] = (4, 4)) -> Predictor:
    model = Predictor(arch, 12, 8, grid, None, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("prefix", [1, 5])
@torch.no_grad()
def test_scores_each_patch_of_each_image_alone(arch: str, prefix: int):
    model, x = predictor(arch), torch.randn(3, prefix + 16, 12)
    scores = model(x, prefix, (4, 4))
    assert scores.shape == (3, 16)
    assert scores.dtype == torch.float32
    assert scores.std(dim=1).min() > 1e-3
    alone = torch.cat([model(image[None], prefix, (4, 4)) for image in x])
    assert torch.allclose(scores, alone, atol=1e-5)


@pytest.mark.parametrize("arch", FREE)
@torch.no_grad()
def test_permuting_patches_permutes_the_importance(arch: str):
    model, x = predictor(arch), torch.randn(2, 17, 12)
    order = torch.randperm(16)
    moved = torch.cat((x[:, :1], x[:, 1:][:, order]), dim=1)
    assert torch.allclose(model(moved, 1, (4, 4)), model(x, 1, (4, 4))[:, order], atol=1e-5)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES.keys() - set(FREE)))
@torch.no_grad()
def test_the_others_heed_the_place(arch: str):
    model, x = predictor(arch), torch.randn(2, 17, 12)
    order = torch.randperm(16)
    moved = torch.cat((x[:, :1], x[:, 1:][:, order]), dim=1)
    assert not torch.allclose(model(moved, 1, (4, 4)), model(x, 1, (4, 4))[:, order], atol=1e-2)


@torch.no_grad()
def test_conv_is_a_slow_neighbourhood_sum():
    """Check the first mixing step at each cell against a loop over its 5 x 5 neighbours."""
    net = predictor("conv").net
    x = torch.randn(1, 12, 8)  # 3 rows, 4 columns
    found = net._mix(net.mix1, x, (3, 4))
    for row in range(3):
        for column in range(4):
            total = net.mix1.bias.clone()
            for r in range(max(0, row - 2), min(3, row + 3)):
                for c in range(max(0, column - 2), min(4, column + 3)):
                    weight = net.mix1.weight[:, 0, r - row + 2, c - column + 2]
                    total += weight * x[0, 4 * r + c]
            assert torch.allclose(found[0, 4 * row + column], total, atol=1e-5)


@pytest.mark.parametrize("arch", ["conv", *FREE])
@torch.no_grad()
def test_free_of_the_number_of_patches(arch: str):
    assert predictor(arch)(torch.randn(2, 1 + 6 * 3, 12), 1, (6, 3)).shape == (2, 18)


@pytest.mark.parametrize("arch", FREE)
@torch.no_grad()
def test_free_of_which_patches_are_left(arch: str):
    """After an earlier reduction fewer tokens come than the grid has cells."""
    assert predictor(arch)(torch.randn(2, 1 + 11, 12), 1, (4, 4)).shape == (2, 11)


def test_the_free_ones_say_so():
    assert {name for name, network in ARCHITECTURES.items() if network.any_subset} == set(FREE)


@torch.no_grad()
def test_conv_refuses_a_grid_with_holes():
    match = r"needs the whole grid of 4 x 4 patches, got 11; use arch='mlp', 'transformer' or"
    with pytest.raises(ValueError, match=match):
        predictor("conv")(torch.randn(2, 12, 12), 1, (4, 4))


@pytest.mark.parametrize("arch", ["mixer", "pooledmixer"])
@torch.no_grad()
def test_mixers_refuse_another_number_of_patches(arch: str):
    with pytest.raises(ValueError, match=r"made for 16 patches, got 18; .* arch='conv', 'mlp'"):
        predictor(arch)(torch.randn(2, 19, 12), 1, (6, 3))


@pytest.mark.parametrize("arch", ["conv", *FREE])
@torch.no_grad()
def test_models_of_any_image_size(arch: str, tiny: Callable[..., nn.Module]):
    model = tiny("clip_vit_b16_patchrank50", arch=arch, dynamic_img_size=True)
    assert model.trace(torch.randn(1, 3, 64, 64)).final_tokens == 32
    assert model.trace(torch.randn(1, 3, 96, 48)).final_tokens == 36


@torch.no_grad()
def test_a_models_mixer_refuses_another_image_size(tiny: Callable[..., nn.Module]):
    model = tiny("clip_vit_b16_patchrank50", arch="mixer", dynamic_img_size=True)
    with pytest.raises(ValueError, match="made for 64 patches, got 72"):
        model(torch.randn(1, 3, 96, 48))


@pytest.mark.parametrize("arch", ["mlp", "conv", "transformer"])
@torch.no_grad()
def test_classes_matter(arch: str):
    """The class token takes part: the same patches rank otherwise in another image."""
    model, x = predictor(arch), torch.randn(2, 17, 12)
    other = x.clone()
    other[:, 0] = torch.randn(2, 12)
    assert not torch.allclose(model(other, 1, (4, 4)), model(x, 1, (4, 4)), atol=1e-3)


def test_unknown_architectures():
    with pytest.raises(ValueError, match=r"arch='mpl': did you mean 'mlp'\? expected one of conv"):
        Predictor("mpl", 12, 8, (4, 4), None, None)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_honours_device_and_dtype(arch: str):
    model = Predictor(arch, 12, 8, (4, 4), "meta", torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in model.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_trains(arch: str):
    """Fit one batch: the target is a function of the tokens."""
    model = predictor(arch)
    x = torch.randn(8, 17, 12)
    target = x[:, 1:, 0]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (model(x, 1, (4, 4)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_patchrank_drops_the_least_important(tiny: Callable[..., nn.Module], images: Tensor):
    model = tiny("clip_vit_b16_patchrank50", reduce_at=2)
    entering, _ = model.advance(model.embed(images), stop=2)
    importance = model.reducer.predictor(entering.x, 1, (8, 8))
    [went] = model.trace(images).reductions
    assert torch.equal(went.importance, importance)
    for image in range(3):
        best = importance[image].argsort(descending=True)[:32].tolist()
        assert went.after[image].tolist() == sorted(best)


@torch.no_grad()
def test_patchrank_ranks_once(tiny: Callable[..., nn.Module], images: Tensor):
    """With several points the first ranking serves all: survivors are its best."""
    model = tiny("clip_vit_b16_patchrank50", reduce_at=[1, 3, 5])
    first, *_, last = model.trace(images).reductions
    for image in range(3):
        best = first.importance[image].argsort(descending=True)[:32].tolist()
        assert last.after[image].tolist() == sorted(best)


@pytest.mark.parametrize("arch", FREE)
@torch.no_grad()
def test_permuting_patches_permutes_what_stays(
    arch: str, tiny: Callable[..., nn.Module], images: Tensor
):
    model = tiny("clip_vit_b16_patchrank50", arch=arch)
    tokens = model.embed(images)
    order = torch.randperm(64)
    moved = tokens._replace(
        x=torch.cat((tokens.x[:, :1], tokens.patches[:, order]), dim=1),
        patch_idx=tokens.patch_idx[:, order],
    )
    plain, _ = model.advance(tokens)
    permuted, _ = model.advance(moved)
    assert torch.equal(permuted.patch_idx.sort(dim=1).values, plain.patch_idx)
    assert torch.allclose(model.finish(permuted), model.finish(plain), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "attention"}, "arch='attention': expected one of conv, linear, mixer, mlp"),
        ({"arch": 3}, "arch=3: expected one of"),
        ({"width": 0}, "width=0: expected an integer from 1"),
        ({"width": 64.0}, "width=64.0: expected an integer from 1"),
        ({"hidden": 64}, "patchrank has no option 'hidden'"),
    ],
)
def test_refusals_of_patchrank(options: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        build_reducer("patchrank", {"keep": 0.5, **options}, HOST)
