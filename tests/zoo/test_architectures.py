"""The networks, each against a slow form of itself."""

import pytest
import torch
from torch import Tensor, nn

from zoo.predictor import ARCHITECTURES, Mixer, PooledMixer, TokenLinear, TokenTransformer

GRID = (2, 3)


def lively(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return net.eval()


def mlp(block: nn.Sequential, vector: Tensor) -> Tensor:
    first, norm, _, second = block
    x = first.weight @ vector + first.bias
    x = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    return second.weight @ x + second.bias


@pytest.mark.parametrize("width", [8, 12])
@torch.no_grad()
def test_the_mixer_vector_by_vector(width: int):
    """Channel MLP for each token, then token MLP for each channel, then the mean over channels."""
    net = lively(Mixer(12, width, GRID))
    tokens = torch.randn(6, 12)
    x = tokens if width == 12 else tokens @ net.token.weight.T + net.token.bias
    x = torch.stack([row + mlp(net.channel_mlp, row) for row in x])
    x = torch.stack([column + mlp(net.token_mlp, column) for column in x.T], dim=1)
    found = net(tokens[None], torch.zeros(1, 1, 12), GRID)[0]
    assert torch.allclose(found, x.mean(dim=1), atol=1e-5)


@torch.no_grad()
def test_the_pooled_mixer_averages_channels_and_scores_linearly():
    net = lively(PooledMixer(12, 4, GRID))
    inside = Mixer(4, 4, GRID)
    inside.load_state_dict({k: v for k, v in net.state_dict().items() if "score" not in k})
    inside._score = lambda x: (x @ net.score.weight[0]) + net.score.bias
    tokens = torch.randn(2, 6, 12)
    averaged = torch.stack([tokens[..., i : i + 3].mean(dim=-1) for i in (0, 3, 6, 9)], dim=-1)
    cls = torch.zeros(2, 1, 12)
    assert torch.allclose(net(tokens, cls, GRID), inside(averaged, cls, GRID), atol=1e-5)


@torch.no_grad()
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


@pytest.mark.parametrize(("width", "heads"), [(64, 2), (32, 1), (48, 1), (7, 1)])
def test_heads_of_the_transformer(width: int, heads: int):
    assert TokenTransformer(12, width, GRID).attn.num_heads == heads


@torch.no_grad()
def test_linear_is_one_product_per_token():
    net = lively(TokenLinear(12, 5, GRID))
    tokens = torch.randn(1, 4, 12)
    slow = [float(token @ net.score.weight[0] + net.score.bias) for token in tokens[0]]
    assert net(tokens, torch.zeros(1, 1, 12), GRID)[0].tolist() == pytest.approx(slow, abs=1e-5)


def test_names_say_what_they_are():
    assert list(ARCHITECTURES) == sorted(ARCHITECTURES)
    assert all(name.isalpha() and name.islower() for name in ARCHITECTURES)
