"""The figures that the models must show on fvcore, and the closed forms behind them."""

import pytest
import timm

import zoo  # noqa: F401  (registers the models)
from harness.models.cost import gflops


def block(tokens_in: int, tokens_out: int, dim: int = 768) -> float:
    """Return 1e9 multiply-adds of one block whose MLP sees fewer tokens than its attention."""
    attention = 4 * tokens_in * dim**2 + 2 * tokens_in**2 * dim
    return (attention + 8 * tokens_out * dim**2) / 1e9


def tower(into: list[int], out: list[int]) -> float:
    """Return 1e9 multiply-adds of B/16 at 224: embedding, blocks, projection; no LayerNorm."""
    blocks = sum(block(1 + a, 1 + b) for a, b in zip(into, out, strict=True))
    return 196 * 768 * 768 / 1e9 + blocks + 768 * 512 / 1e9


def cost(name: str, **options: object) -> tuple[float, float]:
    """Return what fvcore counts with and without LayerNorm."""
    found = gflops(timm.create_model(f"clip_vit_{name}", **options), 224)
    assert found.unsupported == ()
    return found.gflops, found.gflops - found.by_operator["layer_norm"]


def test_dense_b16():
    found, plain = cost("b16")
    assert found == pytest.approx(17.58, abs=0.03)
    assert plain == pytest.approx(tower([196] * 12, [196] * 12), rel=1e-4)


def test_patchrank_60():
    """One shot before block 3, and what the predictor adds."""
    found, plain = cost("b16_patchrank60")
    counts = [196] * 3 + [118] * 9
    # conv predictor, width 64: tokens, context, two 5 x 5 depthwise, hidden, score; LayerNorm
    predictor = 196 * 64 * (768 + 25 + 64 + 25 + 1) / 1e9 + 2 * 768 * 64 / 1e9
    assert predictor < 0.02
    assert found - predictor == pytest.approx(12.27, rel=0.015)
    assert plain == pytest.approx(tower(counts, counts) + predictor, rel=1e-4)


def test_random_50():
    found, plain = cost("b16_random50")
    counts = [196] * 3 + [98] * 9
    assert found == pytest.approx(10.94, rel=0.01)
    assert plain == pytest.approx(tower(counts, counts), rel=1e-4)


def test_clsattn_60_pays_for_its_row():
    """Keys of all tokens, the class token's query, their product, and block 3 without savings."""
    _, plain = cost("b16_clsattn60")
    counts = [196] * 3 + [118] * 9
    row = (198 * 768**2 + 197 * 768) / 1e9
    assert plain == pytest.approx(tower(counts, counts) + row, rel=1e-3)


def test_evit_with_stage_rate():
    """As published, with the fused token; without it the keep rate is met exactly, for less."""
    found, plain = cost("b16_evit60", stage_rate=0.7, fuse=True)
    into = [196] * 4 + [139] * 3 + [99] * 3 + [71] * 2
    out = [196] * 3 + [139] * 3 + [99] * 3 + [71] * 3
    assert found == pytest.approx(11.63, rel=0.01)
    assert plain == pytest.approx(tower(into, out), rel=1e-3)
    assert cost("b16_evit60", stage_rate=0.7)[0] == pytest.approx(11.50, abs=0.01)


def test_tome_with_r_13():
    """The matching is counted too: cosine similarities by matrix product."""
    found, plain = cost("b16_tome60", r=13)
    into = [196 - 13 * i for i in range(12)]
    out = [196 - 13 * i for i in range(1, 13)]
    matching = sum((n // 2) * (n - n // 2) * 64 for n in into) / 1e9
    assert found == pytest.approx(10.39, rel=0.01)
    assert plain == pytest.approx(tower(into, out) + matching, rel=2e-3)
    assert tower(into, out) == pytest.approx(10.37, abs=0.02)


@pytest.mark.parametrize("method", ["patchrank", "clsattn", "evit", "tome", "random"])
def test_fewer_tokens_cost_less(method: str):
    args = {"embed_dim": 96, "num_heads": 4, "depth": 6}
    names = ["b32", f"b32_{method}60", f"b32_{method}30"]
    ladder = [gflops(timm.create_model(f"clip_vit_{name}", **args), 224).gflops for name in names]
    assert ladder == sorted(ladder, reverse=True)
    assert ladder[-1] < 0.8 * ladder[0]
