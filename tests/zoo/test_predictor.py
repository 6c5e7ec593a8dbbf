"""The predictor: symmetry, freedom of the image size, and Patch Ranking's use of it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.core.predictor import ARCHITECTURES, Mixer, PooledMixer, Predictor, TokenTransformer
from zoo.core.reducer import HostSpec, build_reducer

pytestmark = pytest.mark.usefixtures("no_grad")
Build = Callable[..., nn.Module]
FREE = ["linear", "mlp", "transformer"]  # of the place
GRID = (2, 3)


def lively(net: nn.Module) -> Any:
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return net.eval()


def predictor(arch: str) -> Predictor:
    return lively(Predictor(arch, 12, 8, (4, 4), None, None))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("prefix", [1, 5])
def test_scores_each_image_alone_and_each_patch_where_places_do_not_count(arch: str, prefix: int):
    model, x = predictor(arch), torch.randn(3, prefix + 16, 12)
    scores = model(x, prefix, (4, 4))
    assert (scores.shape, scores.dtype) == ((3, 16), torch.float32)
    assert scores.std(dim=1).min() > 1e-3
    alone = torch.cat([model(image[None], prefix, (4, 4)) for image in x])
    assert torch.allclose(scores, alone, atol=1e-5)
    order = torch.randperm(16)
    moved = model(torch.cat((x[:, :prefix], x[:, prefix:][:, order]), dim=1), prefix, (4, 4))
    assert torch.allclose(moved, scores[:, order], atol=1e-5 if arch in FREE else 1e-2) == (arch in FREE)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_grids_of_other_sizes(arch: str, tiny: Build):
    model, images = tiny("clip_vit_b16_patchrank50", arch=arch, dynamic_img_size=True), torch.randn(1, 3, 96, 48)
    if "mixer" in arch:
        with pytest.raises(ValueError, match="made for 64 patches, got 72; use a predictor with arch='conv'"):
            model(images)
        return
    assert model.trace(images).final_tokens == 36


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
                    total += net.mix1.weight[:, 0, r - row + 2, c - column + 2] * x[0, 4 * r + c]
            assert torch.allclose(found[0, 4 * row + column], total, atol=1e-5)


def mlp(block: nn.Sequential, vector: Tensor) -> Tensor:
    first, norm, _, second = block
    x = first.weight @ vector + first.bias
    x = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    return second.weight @ x + second.bias


@pytest.mark.parametrize("width", [8, 12])
def test_the_mixer_vector_by_vector(width: int):
    """Channel MLP for each token, then token MLP for each channel, then the mean over channels."""
    net = lively(Mixer(12, width, GRID))
    tokens = torch.randn(6, 12)
    x = tokens if width == 12 else tokens @ net.token.weight.T + net.token.bias
    x = torch.stack([row + mlp(net.channel_mlp, row) for row in x])
    x = torch.stack([column + mlp(net.token_mlp, column) for column in x.T], dim=1)
    found = net(tokens[None], torch.zeros(1, 1, 12), GRID)[0]
    assert torch.allclose(found, x.mean(dim=1), atol=1e-5)


def test_the_pooled_mixer_averages_channels_and_scores_linearly():
    net = lively(PooledMixer(12, 4, GRID))
    inside = Mixer(4, 4, GRID)
    inside.load_state_dict({k: v for k, v in net.state_dict().items() if "score" not in k})
    inside._score = lambda x: (x @ net.score.weight[0]) + net.score.bias
    tokens, cls = torch.randn(2, 6, 12), torch.zeros(2, 1, 12)
    averaged = torch.stack([tokens[..., i : i + 3].mean(dim=-1) for i in (0, 3, 6, 9)], dim=-1)
    assert torch.allclose(net(tokens, cls, GRID), inside(averaged, cls, GRID), atol=1e-5)


def test_the_transformer_attends_to_class_token_and_patches():
    """One head of 16 channels, written out."""
    net = lively(TokenTransformer(12, 16, GRID))
    tokens, cls = torch.randn(6, 12), torch.randn(1, 12)
    x = net.token(torch.cat((cls, tokens)))
    query, key, value = net.attn.qkv(net.norm1(x)).split(16, dim=1)
    weights = torch.stack([(key @ q / 4).softmax(dim=0) for q in query])
    x = x + net.attn.proj(weights @ value)
    x = x + net.mlp.fc2(torch.nn.functional.gelu(net.mlp.fc1(net.norm2(x))))
    slow = net.score(net.norm(x))[1:, 0]
    assert torch.allclose(net(tokens[None], cls[None], GRID)[0], slow, atol=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.985])  # of which nothing goes at the first point
def test_each_point_keeps_the_best_of_the_first_ranking(keep: float, tiny: Build, images: Tensor):
    """The slow way: dense blocks by hand, image by image, and the top of what is left."""
    points = (1, 3, 5)
    model = tiny("clip_vit_b16_patchrank50", width=16, reduce_at=points, keep=keep)
    counts, output = model.reducer.counts(64), model(images)
    reductions = {went.block: went for went in model.trace(images).reductions}
    before = dict(zip(points, [64, *counts.values()], strict=False))
    assert list(reductions) == [point for point in points if counts[point] < before[point]]
    for image in range(3):
        x, left = model.embed(images[image : image + 1]).x, torch.arange(64)
        for index, block in enumerate(model.blocks):
            if index in reductions:
                if len(left) == 64:
                    scores = model.reducer.predictor(x, 1, (8, 8))[0]
                best = scores.argsort(descending=True)[: counts[index]].sort().values
                left, x, scores = left[best], torch.cat((x[:, :1], x[:, 1:][:, best]), dim=1), scores[best]
                assert torch.equal(reductions[index].after[image], left)
            x = block(x)
        assert torch.allclose(output[image], model.head(model.norm(x)[:, 0])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "mpl"}, "arch='mpl': did you mean 'mlp'? expected one of conv"),
        ({"width": 0}, "width=0: expected an integer in [1, inf)"),
    ],
)
def test_refusals_of_patchrank(options: dict[str, Any], match: str):
    host = HostSpec(embed_dim=8, depth=6, grid=(4, 4))
    with pytest.raises(ValueError, match=re.escape(match)):
        build_reducer("patchrank", {"keep": 0.5, **options}, host)


def test_linear_is_one_product_per_token():
    net, tokens = predictor("linear").net, torch.randn(1, 4, 12)
    slow = [float(token @ net.score.weight[0] + net.score.bias) for token in tokens[0]]
    assert net(tokens, torch.zeros(1, 1, 12), GRID)[0].tolist() == pytest.approx(slow, abs=1e-5)
