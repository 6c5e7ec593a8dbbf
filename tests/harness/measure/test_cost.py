"""Counts against closed forms written here, of towers and predictors; times of rows."""

import io
import logging
from dataclasses import replace

import pytest
import timm
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from harness.base.terminal import Progress
from harness.measure import cost
from harness.measure.cost import FREE_OPERATORS, OperatorCost, count_costs, gflops
from harness.measure.plan import costs
from harness.measure.rows import variants
from zoo.core.learned import ARCHITECTURES, Predictor


class Applied(nn.Module):
    """Apply a function to the image."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images * self.weight)


@pytest.mark.parametrize(("function", "operator", "count"), [
    (lambda x: torch.cdist(x, x), "cdist", 3 * 8 * 8 * 8),
    (lambda x: torch.baddbmm(x[0], x[0], x[0]), "baddbmm", 3 * 8 * 8 * 8),
    (lambda x: x[0, 0].clone().addmm_(x[0, 0], x[0, 1]), "addmm_", 8 * 8 * 8),
    (lambda x: torch.bmm(x[0], x[0], out=torch.empty(3, 8, 8)), "bmm", 3 * 8 * 8 * 8),
    (lambda x: torch.mv(x[0, 0], x[0, 0, 0]), "mv", 8 * 8),
    (lambda x: torch.dot(x[0, 0, 0], x[0, 0, 1]), "dot", 8),
    (lambda x: F.interpolate(x, 5, mode="bicubic"), "upsample_bicubic2d", 3 * 25 * 16),
    (lambda x: x[0] @ x[0], "matmul", 3 * 8 * 8 * 8),
    (lambda x: F.scaled_dot_product_attention(x[:, :, :5], x, x[..., :6]), "scaled_dot_product_attention", 3 * 40 * 14),
])  # fmt: skip
def test_hidden_products_are_counted(function, operator, count):
    cost = gflops(Applied(function), 8)
    assert cost.by_operator == {operator: pytest.approx(count / 1e9)}
    assert cost.unsupported == ()


def test_selection_is_free_and_anything_unknown_is_reported():
    def select(x: Tensor) -> Tensor:
        scores = F.gelu(x).softmax(-1).mean(-1).add_(1).sub_(0.5)
        order = torch.argsort(scores + torch.rand_like(scores), dim=-1, descending=True)
        best = scores.topk(2).indices + order[..., :2]
        return x.gather(-1, best.clamp(0, 1).unsqueeze(-1).expand(-1, -1, -1, 2)) ** 2

    free = gflops(Applied(select), 8)
    assert free == OperatorCost(gflops=0, by_operator={}, unsupported=(), params=1)
    unknown = gflops(Applied(lambda x: torch.linalg.inv(x + torch.eye(8) * 9)), 8)
    assert unknown.unsupported == ("aten::linalg_inv",)
    names = {name.removeprefix("aten::") for name in FREE_OPERATORS}
    assert not names & {"matmul", "mm", "bmm", "addmm", "linear", "einsum", "cdist", "convolution", "conv2d"}
    assert {name for name in names if not hasattr(torch.ops.aten, name)} == set()  # misspelt


def test_open_blocks_are_counted_without_the_opaque_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), layer)  # (1, 3, 2, 4) becomes 3 tokens of width 8
    cost = gflops(model, (2, 4))
    linear = 3 * 8 * (3 * 8 + 8 + 2 * 16)
    attention = 2 * 3 * 3 * 8
    assert cost.gflops == pytest.approx((linear + attention + 2 * 5 * 3 * 8) / 1e9)
    assert cost.unsupported == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_model_random_state_and_loggers_are_left_alone(caplog, capfd):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.Sequential(nn.ReLU())).bfloat16()
    model.train()
    model[2].eval()
    flags = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    assert gflops(Applied(lambda x: torch.fft.fft(x + torch.rand_like(x))), 4).unsupported
    with caplog.at_level(logging.DEBUG):
        assert gflops(model, (4, 6)).gflops == pytest.approx(4 * 6 * 3 * 4 / 1e9)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not logging.getLogger("fvcore").disabled
    assert [module.training for module in model.modules()] == flags
    with pytest.raises(RuntimeError):
        gflops(model, 4, channels=5)  # a failing forward restores the flags, too
    assert [module.training for module in model.modules()] == flags


class OnTokens(nn.Module):
    """A predictor of one argument, as the counter wants it: tokens (1, 768, 197, 1)."""

    def __init__(self, arch: str, width: int) -> None:
        super().__init__()
        self.predictor = Predictor(arch, 768, width, (14, 14))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.predictor(tokens.flatten(2).transpose(1, 2), 1, (14, 14))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_predictors_cost_next_to_nothing_and_what_the_paper_says(arch):
    """At width 64, less than 0.5 % of the tower, and every operator is accounted for."""
    n, d, w = 196, 768, 64
    forms = {  # products alone: per patch, per class token and per pair of tokens
        "linear": n * d,
        "mlp": n * (d * w + w * w + w) + 2 * d * w,
        "mixer": n * d * w + 8 * n * w * w + w * w * n,
        "transformer": (n + 1) * (d * w + 12 * w * w + 2 * w * (n + 1)) + n * w,
    }
    model = OnTokens(arch, w)
    found = gflops(model, (197, 1), channels=768)
    assert found.unsupported == ()
    assert found.gflops < 0.005 * 17.58
    if arch in forms:
        products = found.gflops - found.by_operator["layer_norm"]
        assert 1e9 * products == pytest.approx(forms[arch], rel=1e-3)
    if arch == "mixer":  # of the paper: 4.9M parameters and 6 % of the tower
        wide = gflops(OnTokens(arch, 768), (197, 1), channels=768)
        assert wide.params / 1e6 == pytest.approx(4.9, abs=0.05)
        assert wide.gflops == pytest.approx(1.05, abs=0.005)
    if arch == "pooledmixer":  # of the released script, LayerNorm counted as free
        assert sum(p.numel() for p in model.predictor.net.parameters()) == pytest.approx(46_000, rel=0.015)
        assert 1e3 * found.by_operator["linear"] == pytest.approx(7.2, abs=0.1)


@pytest.mark.parametrize(("name", "options", "published"), [
    ("", {}, 17.58),
    ("_patchrank60", {}, 12.27 + 0.0112),
    ("_evit60", {"stage_rate": 0.7, "fuse": True}, 11.63),
    ("_tome60", {"r": 13}, 10.39),
])  # fmt: skip
def test_published_figures(name, options, published):
    """Exact counts are in closed forms elsewhere; the predictor is added to what is published without one."""
    model = timm.create_model(f"clip_vit_b16{name}", **options)
    found = gflops(model, 224)
    assert found.gflops == pytest.approx(published, rel=0.01)
    assert found.params == sum(p.numel() for p in model.parameters())


def test_costs_of_every_row_that_is_a_model(tower, monkeypatch, request):
    rows = variants(tower, ["dense", "tome", "random", "golden"], [0.5])
    facts = costs(rows, (1, 8), 2, Progress())
    plain, _, random, golden = facts.values()
    assert golden == {}
    assert random["tokens_per_block"] == (65,) * 3 + (33,) * 3
    assert [entry.batch for entry in random["latency"]] == [1, 8]
    assert [entry.ratio_to_dense for entry in plain["latency"]] == [None, None]

    request.getfixturevalue("busy_machine")
    console = Console(file=io.StringIO(), width=200)
    assert costs(rows, (1, 8), 2, Progress(console))["clip_vit_b16_tome50"]["latency"] == ()
    assert console.file.getvalue().startswith("batch 1: too busy to time: spread of dense 40 %")

    single = count_costs(rows[:2], Progress())
    assert [one["final_tokens"] for one in single.values()] == [64, 32]
    for row in rows[:2]:
        row.vit.to(torch.bfloat16)
    assert count_costs(rows[:2], Progress()) == single

    unknown = replace(gflops(tower.vit, 64), unsupported=("aten::linalg_inv",))
    monkeypatch.setattr(cost, "gflops", lambda *args: unknown)
    console = Console(file=io.StringIO(), width=200)
    found = costs(rows[:1], (), 0, Progress(console))["clip_vit_b16"]
    assert (found["uncounted_operators"], found["latency"]) == (("aten::linalg_inv",), ())
    assert "clip_vit_b16: GFLOPs lack operators of unknown cost: aten::linalg_inv" in console.file.getvalue()
