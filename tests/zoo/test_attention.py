"""Attention that hands out queries and keys, against timm's and against a written-out softmax."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from lively import Build
from timm.layers import Attention, LayerNorm
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from zoo.core.attention import cls_attention, is_plain
from zoo.core.tokens import Tokens
from zoo.towers.vit import ViTBlock

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(params=["plain", "qk_norm", "scale_norm"])
def layer(request: pytest.FixtureRequest) -> Attention:
    norm = {} if request.param == "plain" else {request.param: True, "norm_layer": LayerNorm}
    attention = Attention(24, num_heads=3, qkv_bias=True, **norm).eval()
    for parameter in attention.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return attention


def block_of(layer: Attention) -> ViTBlock:
    """Return a block whose norm does nothing."""
    return ViTBlock(SimpleNamespace(attn=layer, norm1=nn.Identity()))


def written_out(layer: Attention, x: Tensor) -> Tensor:
    """Return the attention weights (B, H, T, T) by plain loops over heads."""
    q, k, _ = layer.qkv(x).chunk(3, dim=-1)
    weights = []
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        logits = layer.q_norm(q[..., part]) @ layer.k_norm(k[..., part]).mT / 8**0.5
        weights.append(logits.softmax(dim=-1))
    return torch.stack(weights, dim=1)


@pytest.mark.parametrize("prefix", [1, 4])
def test_output_is_timms_and_cls_attention_the_first_row_of_the_softmax(layer: Attention, prefix: int):
    tokens = Tokens.start(torch.randn(2, prefix + 6, 24), prefix, (2, 3))
    attended = block_of(layer).attend(tokens)
    assert torch.equal(attended.out, layer(tokens.x))
    bias = torch.randn(2, 1, 1, prefix + 6)
    assert torch.equal(block_of(layer).attend(tokens, bias).out, layer(tokens.x, attn_mask=bias))
    wanted = written_out(layer, tokens.x)[:, :, 0, prefix:].mean(dim=1)
    found = cls_attention(attended.query, attended.key, attended.scale, prefix)
    assert found.shape == (2, 6)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(block_of(layer).cls_attention(tokens), wanted, atol=1e-6)


class LowRank(nn.Module):
    """A LoRA adapter around a linear layer whose weights and bias it shows as its own."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias
        self.down = nn.Parameter(torch.randn(2, inner.in_features))
        self.up = nn.Parameter(torch.randn(inner.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def quantized(attn: Attention) -> None:
    attn.qkv = torch.ao.quantization.quantize_dynamic(nn.Sequential(attn.qkv), {nn.Linear})[0]


CHANGES: dict[str, Callable[[Attention], None]] = {
    "wrapped": lambda attn: setattr(attn, "qkv", LowRank(attn.qkv)),
    "parametrized": lambda attn: parametrize.register_parametrization(attn.qkv, "weight", Doubled()),
    "pruned": lambda attn: prune.l1_unstructured(attn.qkv, "weight", 0.5),
    "quantized": quantized,
}


@pytest.mark.filterwarnings("ignore")  # torch's quantization moves to a package of its own
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_layer_computes_counts_not_its_weights(change: str, layer: Attention, tiny: Build):
    tokens = Tokens.start(torch.randn(2, 10, 24), 1, (3, 3))
    assert is_plain(layer.qkv)
    before = block_of(layer).cls_attention(tokens)
    CHANGES[change](layer)
    assert not is_plain(layer.qkv)
    wanted = written_out(layer, tokens.x)[:, :, 0, 1:].mean(dim=1)
    assert torch.allclose(block_of(layer).cls_attention(tokens), wanted, atol=1e-6)
    assert not torch.allclose(wanted, before, atol=1e-6)
    block = tiny("vit_small_patch14_dinov2.lvd142m").blocks[0]
    CHANGES[change](block.attn)
    x = torch.randn(2, 10, 48)
    first = ViTBlock(block).first(Tokens.start(x, 1, (3, 3)))
    assert torch.allclose(first, block(x)[:, :1], atol=1e-5)
