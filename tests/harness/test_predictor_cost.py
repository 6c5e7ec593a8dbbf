"""What predictors cost and weigh on ViT-B/16, the paper's and its script's figures among that."""

import pytest
import timm
from torch import Tensor, nn

from harness.cost import Cost, gflops
from zoo.predictor import ARCHITECTURES, Predictor

TOWER = 17.58  # GFLOPs of the dense ViT-B/16


class OnTokens(nn.Module):
    """A predictor of one argument, as the counter wants it: tokens (1, 768, 197, 1)."""

    def __init__(self, arch: str, width: int) -> None:
        super().__init__()
        self.predictor = Predictor(arch, 768, width, (14, 14), None, None)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.predictor(tokens.flatten(2).transpose(1, 2), 1, (14, 14))


def cost(arch: str, width: int) -> Cost:
    return gflops(OnTokens(arch, width), (197, 1), channels=768)


def test_the_papers_mixer():
    """Full width: 4.9M parameters and 1.05 G multiply-adds, 6 % of the tower."""
    found = cost("mixer", 768)
    assert found.params / 1e6 == pytest.approx(4.9, abs=0.05)
    assert found.gflops == pytest.approx(1.05, abs=0.005)
    assert found.gflops / TOWER == pytest.approx(0.06, abs=0.001)


def test_the_mixer_of_the_released_script():
    """64 averaged channels: 46k parameters and 7 M multiply-adds, LayerNorm counted as free."""
    net = OnTokens("pooledmixer", 64).predictor.net
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(46_000, rel=0.015)
    found = cost("pooledmixer", 64)
    assert 1e3 * found.by_operator["linear"] == pytest.approx(7.2, abs=0.1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_narrow_ones_cost_next_to_nothing(arch: str):
    """At width 64, less than 0.5 % of the tower, and every operator is accounted for."""
    found = cost(arch, 64)
    assert found.unsupported == ()
    assert found.gflops < 0.005 * TOWER


def test_closed_forms():
    """Products alone: per patch, per class token and per pair of tokens."""
    n, d, w = 196, 768, 64
    forms = {
        "linear": n * d,
        "mlp": n * (d * w + w * w + w) + 2 * d * w,
        "mixer": n * d * w + 8 * n * w * w + w * w * n,
        "transformer": (n + 1) * (d * w + 12 * w * w + 2 * w * (n + 1)) + n * w,
    }
    for arch, form in forms.items():
        found = cost(arch, w)
        norms = found.by_operator["layer_norm"]
        assert 1e9 * (found.gflops - norms) == pytest.approx(form, rel=1e-3), arch


def test_rescoring_costs_a_predictor_on_what_is_left():
    """Keep 0.5 in three linear stages from N = 64: predictors see 64, 53 and 43 patches."""
    told = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}
    told |= {"arch": "mlp", "width": 16, "reduce_at": (1, 3, 5), "schedule": "linear"}
    anew, carried = (
        gflops(timm.create_model("clip_vit_b16_patchrank50", rescore=rescore, **told), 64)
        for rescore in (True, False)
    )
    d, w = 48, 16
    products = sum(n * (d * w + w * w + w) + 2 * d * w for n in (53, 43))
    norms = anew.by_operator["layer_norm"] - carried.by_operator["layer_norm"]
    assert 1e9 * (anew.gflops - carried.gflops - norms) == pytest.approx(products, rel=1e-6)
    assert 1e9 * norms == pytest.approx(5 * d * (53 + 1 + 43 + 1), rel=1e-6)
    assert anew.params - carried.params == 2 * (3 * d * w + w * w + 4 * w + 1 + 2 * d)
    assert anew.unsupported == ()
