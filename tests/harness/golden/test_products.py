"""The closed form of what golden rankings cost is what fvcore counts."""

import pytest
import timm
import torch
from torch import Tensor, nn

import zoo
from harness.cost import gflops
from harness.golden.products import (
    Geometry,
    Product,
    engine_products,
    multiply_adds,
    plain_products,
    prefix_products,
    replay,
)
from harness.golden.runners import find_tower, image_multiply_adds
from zoo.approximate import Effort
from zoo.golden import GoldenConfig
from zoo.suffix import Suffix

B16 = Geometry(
    grid=(14, 14), pixels=768, prefix=1, dim=768, hidden=3072, heads=12, depth=12, features=512
)


class Removed(nn.Module):
    """One image without its last four patches, by engine or straightforward, to be counted."""

    def __init__(self, vit: zoo.ReducedViT, block: int, precision: str | None) -> None:
        super().__init__()
        self.vit, self.block = vit, block
        self.suffix = Suffix(vit, block, precision=precision, batch=1) if precision else None

    def forward(self, images: Tensor) -> Tensor:
        start, _ = self.vit.advance(self.vit.embed(images), stop=self.block)
        if self.suffix is None:
            x = start.x[:, :-4]
            for block in self.vit.blocks[self.block :]:
                x = block(x)
            return self.vit.forward_head(self.vit.norm(x))
        keep = torch.arange(start.patch_count - 4)[None]
        return self.suffix.features(start, torch.zeros(1, dtype=torch.long), keep)


def counted(vit: zoo.ReducedViT, block: int, precision: str | None) -> int:
    """Let fvcore count, which takes LayerNorm for 5 multiply-adds per number."""
    cost = gflops(Removed(vit, block, precision), vit.patch_embed.img_size)
    assert cost.unsupported == ()
    return round(1e9 * (cost.gflops - cost.by_operator["layer_norm"]))


def removed(of: Geometry, block: int, precision: str | None) -> int:
    tokens = of.tokens - 4
    once = prefix_products(of, block)
    if precision is None:
        return multiply_adds([*once, *plain_products(of, block, 1, tokens)])
    return multiply_adds([*once, *engine_products(of, block, 1, tokens, precision)])


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("block", [0, 2, 5])
def test_the_closed_form_is_what_fvcore_counts(
    dense: zoo.ReducedViT, block: int, precision: str | None
) -> None:
    assert removed(Geometry.of(dense), block, precision) == counted(dense, block, precision)


def test_the_closed_form_is_what_fvcore_counts_where_all_tokens_leave_the_tower() -> None:
    tiny = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    vit = zoo.reduce(
        timm.create_model("vit_tiny_patch16_224", global_pool="avg", num_classes=0, **tiny).eval(),
        method=None,
    )
    of = Geometry.of(vit)
    assert not of.token_pooled
    for precision in (None, "float32"):
        assert removed(of, 1, precision) == counted(vit, 1, precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_closed_form_is_what_fvcore_counts_on_b16(precision: str) -> None:
    vit = find_tower("clip_vit_b16", random_weights=True).vit
    assert Geometry.of(vit) == B16
    assert removed(B16, 3, precision) == counted(vit, 3, precision)


def test_a_pass_is_the_same_here_and_for_approximations() -> None:
    vit = find_tower("clip_vit_b16", random_weights=True).vit
    effort = Effort.of(vit, 3)
    assert effort.whole + 768 * 512 == multiply_adds(engine_products(B16, 3, 1, 197))


def test_an_image_takes_embedding_whole_and_every_window() -> None:
    first = 196 * 768 * 768
    blocks = [t * (4 * 768**2 + 2 * 768 * 3072 + 2 * t * 768) for t in (197, 193)]
    last = [4 * 768**2 + 2 * t * 12 * 768 + 2 * 768 * 3072 + 768 * 512 for t in (197, 193)]
    expected = first + 3 * blocks[0] + 8 * blocks[0] + last[0] + 169 * (8 * blocks[1] + last[1])
    assert image_multiply_adds(B16, GoldenConfig()) == expected


def test_products_alone_are_plain_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    for name in ("mm", "bmm"):
        monkeypatch.setattr(
            torch,
            name,
            lambda a, b, out, name=name: done.append((name, a.dtype, a.shape, b.shape, out.shape)),
        )
    products = [
        Product(dtype="bfloat16", rows=2, inner=3, columns=4, times=2),
        Product(dtype="float32", rows=2, inner=3, columns=4, batch=5),
    ]
    replay(products, torch.device("cpu"))(None)
    low, full = torch.bfloat16, torch.float32
    assert done == [("mm", low, (2, 3), (3, 4), (2, 4))] * 2 + [
        ("bmm", full, (5, 2, 3), (5, 3, 4), (5, 2, 4))
    ]
    assert multiply_adds(products) == 2 * 24 + 5 * 24
