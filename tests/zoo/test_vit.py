"""timm's interfaces and attention stay what they are while tokens go; weights are shared, saved models come back."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from lively import Build, lively
from timm.layers import Attention, LayerNorm
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import zoo
from zoo.core.attention import is_plain
from zoo.core.tokens import Tokens
from zoo.towers.vit import ViTBlock

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(params=["evitfuse", "patchrank", "rankmerge"])
def method(request: pytest.FixtureRequest) -> str:
    """One method that prunes, one that fuses and one that merges."""
    return request.param


def test_features_and_head_make_the_forward(half: zoo.ReducedViT, images: Tensor):
    assert not torch.allclose(half(images), zoo.reduce(half, method=None)(images), atol=1e-3)
    features = half.forward_features(images)
    assert features.shape == (3, 1 + 32, 48)
    assert torch.equal(half.forward_head(features), half(images))
    pooled = half.forward_head(features, pre_logits=True)
    assert torch.equal(half.head(pooled), half(images))
    half.reset_classifier(0)
    assert torch.equal(half(images), pooled)
    half.reset_classifier(0, "avg")
    tokens, _ = half.advance(half.embed(images))
    size = torch.ones_like(tokens.patch_idx) if tokens.size is None else tokens.size
    key_weight = size if tokens.key_weight is None else tokens.key_weight
    mean = (half.forward_features(images)[:, 1:] * key_weight[..., None]).sum(dim=1) / size.sum(dim=1, keepdim=True)
    assert torch.allclose(half(images), mean, atol=1e-5)
    for mask in ({"is_causal": True}, {"attn_mask": torch.zeros(65, 65)}):
        with pytest.raises(ValueError, match="attn_mask and is_causal need all tokens"):
            half.forward_features(images, **mask)


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_have_features_of_all_patches(half: zoo.ReducedViT, images: Tensor, norm: bool):
    final, maps = half.forward_intermediates(images, norm=norm, output_fmt="NLC")
    assert torch.equal(final, half.forward_features(images))
    _, each = half.advance(half.embed(images), taps=range(half.depth))
    for found, tokens in zip(maps, each, strict=True):
        wanted = tokens.unmerge()[:, 1:]
        assert torch.allclose(found, half.norm(wanted) if norm else wanted, atol=1e-6)
    [last] = half.forward_intermediates(images, 1, norm=norm, intermediates_only=True, missing="zeros")
    absent = (each[-1].unmerge("zeros")[:, 1:] == 0).all(dim=2)
    assert torch.equal((last == 0).all(dim=1).flatten(1), absent)
    with pytest.raises(ValueError, match="missing='mean': expected one of nearest, zeros"):
        half.forward_intermediates(images, missing="mean")


def test_other_image_sizes(method: str, tiny: Build):
    model = tiny(f"clip_vit_b16_{method}50", dynamic_img_size=True)
    for rows, columns in ((12, 12), (6, 10), (3, 5)):
        images = torch.randn(2, 3, 8 * rows, 8 * columns)
        trace = model.trace(images)
        assert (trace.grid, trace.final_tokens) == ((rows, columns), round(0.5 * rows * columns))
        assert int(trace.reductions[-1].after.max()) < rows * columns
        assert model.forward_intermediates(images)[1][-1].shape == (2, 48, rows, columns)
    model = tiny(f"clip_vit_b16_{method}50")
    for size, patch, grid in (((96, 80), (8, 8), (12, 10)), ((64, 64), (16, 16), (4, 4))):
        model.set_input_size(img_size=size, patch_size=patch)
        trace = model.trace(torch.randn(1, 3, *size))
        assert (trace.grid, trace.final_tokens) == (grid, grid[0] * grid[1] // 2)


@pytest.mark.parametrize("method", sorted(zoo.METHODS))
@pytest.mark.parametrize("options", [{}, {"reduce_at": [1, 3], "schedule": [0.7]}])
def test_an_image_fares_the_same_alone_and_in_company(method: str, options: dict, tiny: Build):
    model = tiny(f"clip_vit_b16_{method}50", **options)
    images = torch.randn(5, 3, 64, 64)
    together = model.trace(images)
    for index in range(5):
        alone = model.trace(images[index : index + 1])
        assert torch.allclose(alone.output[0], together.output[index], atol=1e-5)
        for one, all_ in zip(alone.reductions, together.reductions, strict=True):
            assert torch.equal(one.after[0], all_.after[index])
        assert torch.equal(alone.ranking[0], together.ranking[index])


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(images)
    output.square().sum().backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@torch.enable_grad()
def test_gradients_reach_all_but_the_scorer_of_a_hard_choice_checkpointed_or_not(half: zoo.ReducedViT, images: Tensor):
    output, grads = gradients(half.train(), images)
    without = {name for name, _ in half.named_parameters()} - grads.keys()
    scorer = {name for name, _ in half.named_parameters() if name.startswith("reducer.predictor.")}
    assert without == scorer  # a top-k has no gradient
    assert bool(scorer) == (half.reducer.method == "patchrank")
    assert all(grad.isfinite().all() for grad in grads.values())
    assert sum(bool(grad.any()) for grad in grads.values()) > 0.9 * len(grads)
    maps = half.forward_intermediates(images, [5], intermediates_only=True)
    half.set_grad_checkpointing()
    assert torch.equal(half.forward_intermediates(images, [5], intermediates_only=True)[0], maps[0])
    again, same = gradients(half, images)
    assert torch.equal(again, output)
    assert same.keys() == grads.keys()
    assert all(torch.allclose(same[name], grads[name], atol=1e-6) for name in grads)


def test_features_only(method: str, tiny: Build, images: Tensor):
    name, take = f"clip_vit_b16_{method}50", [1, 4]
    whole = tiny(name)
    part = tiny(name, features_only=True, out_indices=take)
    assert part.feature_info.channels() == [48, 48]
    assert part.feature_info.reduction() == [8, 8]
    missing, _ = part.model.load_state_dict(whole.state_dict(), strict=False)
    assert missing == []
    assert len(part.model.blocks) == 5  # timm drops the blocks that nobody asks for
    wanted = whole.forward_intermediates(images, take, intermediates_only=True)
    torch.testing.assert_close(part(images), wanted)


def test_weights_are_shared_not_copied(tiny: Build, images: Tensor):
    tower = tiny("deit_tiny_patch16_224.fb_in1k")
    model = zoo.reduce(tower, method="patchrank", keep=0.5)
    theirs, ours = dict(tower.named_parameters()), dict(model.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    assert all(name.startswith("reducer.") for name in ours.keys() - theirs.keys())
    before = model(images)
    tower.head.bias.add_(1.0)
    assert torch.allclose(model(images), before + 1.0, atol=1e-5)
    model.reset_classifier(0)
    assert (tower(images).shape, model(images).shape) == ((3, 7), (3, 48))
    assert (tower.num_classes, model.num_classes) == (7, 0)
    assert type(tower) is VisionTransformer
    assert not hasattr(tower, "reducer")
    assert "method" not in getattr(tower, "_model_args", {})


PATCHRANK = {"keep": 0.4, "reduce_at": [1, 3], "arch": "mlp", "width": 16}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("name", "own", "method", "options"), [
    ("clip_vit_b16.laion2b", {}, "", {}),
    ("clip_vit_b16_patchrank60.openai", PATCHRANK, "", {}),
    ("deit_small_patch16_224", {}, "tome", {"keep": 0.5}),
    ("clip_vit_b16_rankmerge50", {"distance": 0.3}, "rankmerge", {"keep": 0.4, "distance": 0.2, "reduce_at": (1, 2)}),
    ("vit_base_patch16_clip_quickgelu_224.openai", {}, None, {}),
])  # fmt: skip
def test_round_trip(
    name: str, own: dict, method: str | None, options: dict, safe: bool, tiny: Build, images: Tensor, tmp_path: Path
):
    model = tiny(name, **own)
    if method != "":
        first = zoo.reduce(model, method="random", keep=0.3)  # reducing again keeps the first base
        model = zoo.reduce(first, method=method, **options).eval()
    save_for_hf(model, tmp_path, safe_serialization=safe)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert isinstance(again, zoo.ReducedViT)
    assert repr(again.blocks) == repr(model.blocks)  # the activation, too
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again(images), model(images))
    assert tuple(again.pretrained_cfg["mean"]) == tuple(model.pretrained_cfg["mean"])
    empty = timm.create_model(f"local-dir:{tmp_path}")
    assert not torch.equal(empty.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    if model.reducer is not None:
        assert again.reducer.config == empty.reducer.config == model.reducer.config
    if method:
        with pytest.raises(ValueError, match=r"keep=0\.25: a saved model has its method's settings"):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, keep=0.25)
    elif method == "" and model.reducer is not None:
        fewer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, keep=0.25).eval()
        assert fewer.reducer.points == model.reducer.points
        assert fewer.trace(images).final_tokens == 16


class Adapted(nn.Module):
    """An adapter around a linear layer whose weights and bias it shows as its own."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner(x.flip(-1))


@pytest.mark.parametrize("norm", ["", "qk_norm", "scale_norm"])
def test_what_the_layer_computes_counts_not_its_weights(norm: str, tiny: Build):
    """Attention of the class token is written out head by head."""
    options = {norm: True, "norm_layer": LayerNorm} if norm else {}
    layer = lively(Attention(24, num_heads=3, qkv_bias=True, **options), 0.2)
    block = ViTBlock(SimpleNamespace(attn=layer, norm1=nn.Identity()))
    tokens = Tokens.start(torch.randn(2, 10, 24), 1, (3, 3))
    assert is_plain(layer.qkv)
    before = block.cls_attention(tokens)
    layer.qkv = Adapted(layer.qkv)
    assert not is_plain(layer.qkv)
    query, key, _ = layer.qkv(tokens.x).unflatten(2, (9, 8)).chunk(3, dim=2)
    wanted = torch.zeros(2, 9)
    for head in range(3):
        logits = layer.k_norm(key[:, :, head]) @ layer.q_norm(query[:, 0, head])[..., None] / 8**0.5
        wanted += logits[..., 0].softmax(dim=1)[:, 1:] / 3
    assert torch.allclose(block.cls_attention(tokens), wanted, atol=1e-6)
    assert not torch.allclose(wanted, before, atol=1e-6)
    dino = tiny("vit_small_patch14_dinov2.lvd142m").blocks[0]
    dino.attn.qkv = Adapted(dino.attn.qkv)
    x = torch.randn(2, 10, 48)
    first = ViTBlock(dino).first(Tokens.start(x, 1, (3, 3)))
    assert torch.allclose(first, dino(x)[:, :1], atol=1e-5)
