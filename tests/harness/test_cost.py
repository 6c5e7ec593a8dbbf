"""Check counts against closed forms written here, and that the model is left as it was."""

import logging

import pytest
import timm
import torch
from fvcore.nn import ActivationCountAnalysis
from torch import Tensor, nn
from torch.nn import functional as F

from harness.cost import FREE_OPERATORS, Cost, gflops


class ToyAttention(nn.Module):
    """Attend from 5 queries to 12 keys, 2 heads, key width 8, value width 6."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        q, k, v = (images.new_ones(1, 2, *size) for size in ((5, 8), (12, 8), (12, 6)))
        q = q * self.weight
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


NOTHING = {"gflops": 0, "by_operator": {}, "unsupported": (), "params": 1, "activations": 0}


class Applied(nn.Module):
    """Apply a function to the image seen as a batch of matrices."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images * self.weight)


def closed_form_vit(
    *, tokens: int, patch: int, width: int, depth: int, mlp: int, out: int, norms: int
) -> float:
    embed = (tokens - 1) * 3 * patch**2 * width
    attention = tokens * width * 3 * width + 2 * tokens**2 * width + tokens * width**2
    block = attention + 2 * tokens * width * mlp
    layer_norm = 5 * norms * tokens * width  # fvcore's figure: 5 per element
    return (embed + depth * block + layer_norm + width * out) / 1e9


def test_vit_b16_equals_the_closed_form_and_the_published_figure() -> None:
    model = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=512)
    cost = gflops(model, 224)
    assert cost.gflops == pytest.approx(17.58, abs=0.03)
    # norms: one before the blocks, two in each, one after
    expected = closed_form_vit(
        tokens=197, patch=16, width=768, depth=12, mlp=3072, out=512, norms=26
    )
    assert cost.gflops == pytest.approx(expected, rel=1e-9)
    assert cost.by_operator["scaled_dot_product_attention"] == pytest.approx(
        12 * 2 * 197**2 * 768 / 1e9
    )
    assert cost.unsupported == ()
    assert cost.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_the_same_fused_or_not(fused: bool) -> None:
    cost = gflops(ToyAttention(fused), 4)
    assert cost.gflops == pytest.approx(2 * 5 * 12 * (8 + 6) / 1e9)
    assert cost.activations == 2 * 5 * 12 + 2 * 5 * 6
    assert cost.unsupported == ()


@pytest.mark.parametrize(
    ("function", "operator", "count"),
    [
        (lambda x: torch.cdist(x, x), "cdist", 3 * 8 * 8 * 8),
        (lambda x: torch.baddbmm(x[0], x[0], x[0]), "baddbmm", 3 * 8 * 8 * 8),
        (lambda x: x[0, 0].clone().addmm_(x[0, 0], x[0, 1]), "addmm_", 8 * 8 * 8),
        (lambda x: torch.bmm(x[0], x[0], out=torch.empty(3, 8, 8)), "bmm", 3 * 8 * 8 * 8),
        (lambda x: torch.mv(x[0, 0], x[0, 0, 0]), "mv", 8 * 8),
        (lambda x: torch.dot(x[0, 0, 0], x[0, 0, 1]), "dot", 8),
        (lambda x: F.interpolate(x, 5, mode="bicubic"), "upsample_bicubic2d", 3 * 25 * 16),
        (lambda x: x[0] @ x[0], "matmul", 3 * 8 * 8 * 8),
    ],
)
def test_hidden_products_are_counted(function: object, operator: str, count: int) -> None:
    cost = gflops(Applied(function), 8)
    assert cost.by_operator == {operator: pytest.approx(count / 1e9)}
    resized = "bicubic" in operator  # no product
    with torch.no_grad():
        given = function(torch.ones(1, 3, 8, 8))
    assert cost.activations == (0 if resized else given.numel())
    assert cost.unsupported == ()


@pytest.mark.parametrize("layers", [nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(8, 5), nn.GELU())])
def test_activations_are_fvcores(layers: nn.Module) -> None:
    counted = ActivationCountAnalysis(layers, torch.ones(1, 3, 8, 8))
    counted.unsupported_ops_warnings(False)
    assert gflops(layers, 8).activations == counted.total()


@pytest.mark.parametrize("fused", [True, False])
def test_activations_of_vit_b16_are_fvcores_of_attention_in_the_open(fused: bool) -> None:
    model = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=512)
    for block in model.blocks:
        block.attn.fused_attn = fused
    linear = 196 * 768 + 12 * 197 * (3 * 768 + 768 + 3072 + 768) + 512
    attention = 12 * (12 * 197**2 + 197 * 768)
    assert gflops(model, 224).activations == linear + attention
    if not fused:
        counted = ActivationCountAnalysis(model.eval(), torch.ones(1, 3, 224, 224))
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert counted.total() == linear + attention


def test_selection_is_free_and_anything_unknown_is_reported() -> None:
    def select(x: Tensor) -> Tensor:
        scores = F.gelu(x).softmax(-1).mean(-1).add_(1).sub_(0.5)
        order = torch.argsort(scores + torch.rand_like(scores), dim=-1, descending=True)
        best = scores.topk(2).indices + order[..., :2]
        return x.gather(-1, best.clamp(0, 1).unsqueeze(-1).expand(-1, -1, -1, 2)) ** 2

    assert gflops(Applied(select), 8) == Cost(**NOTHING)
    unknown = gflops(Applied(lambda x: torch.linalg.inv(x + torch.eye(8) * 9)), 8)
    assert unknown.unsupported == ("aten::linalg_inv",)


def test_no_operator_with_a_product_is_called_free() -> None:
    names = {name.removeprefix("aten::") for name in FREE_OPERATORS}
    products = {
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "linear",
        "einsum",
        "cdist",
        "convolution",
        "conv2d",
    }
    assert not names & products
    missing = {name for name in names if not hasattr(torch.ops.aten, name)}
    assert not missing, "not torch operators, misspelt?"


def test_open_blocks_are_counted_without_the_opaque_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), layer)  # (1, 3, 2, 4) becomes 3 tokens of width 8
    cost = gflops(model, (2, 4))
    linear = 3 * 8 * (3 * 8 + 8 + 2 * 16)
    attention = 2 * 3 * 3 * 8
    assert cost.gflops == pytest.approx((linear + attention + 2 * 5 * 3 * 8) / 1e9)
    assert cost.unsupported == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_model_random_state_and_loggers_are_left_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.Sequential(nn.ReLU())).bfloat16()
    model.train()
    model[2].eval()
    flags = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    cost = gflops(Applied(lambda x: torch.fft.fft(x + torch.rand_like(x))), 4)
    with caplog.at_level(logging.DEBUG):
        assert gflops(model, (4, 6)).gflops == pytest.approx(4 * 6 * 3 * 4 / 1e9)
    assert cost.unsupported
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert [module.training for module in model.modules()] == flags
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not logging.getLogger("fvcore").disabled


def test_a_failing_forward_still_restores_the_flags() -> None:
    model = nn.Sequential(nn.Linear(5, 5)).train()
    with pytest.raises(RuntimeError):
        gflops(model, 4)
    assert model.training
    assert model[0].training


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_the_same_on_a_gpu(dtype: torch.dtype) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert gflops(model.to("cuda", dtype), 224) == gflops(model.to("cpu", torch.float32), 224)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="got 3x0x4"):
        gflops(nn.Conv2d(3, 1, 1), (0, 4))
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        gflops(nn.ReLU(), 4)
    with pytest.raises(ValueError, match="meta device cannot be traced"):
        gflops(nn.Conv2d(3, 1, 1, device="meta"), 4)
