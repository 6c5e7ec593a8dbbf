"""The contract of tests/zoo/test_towers.py for open_clip's own towers: tiny ones of its real classes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

import zoo
from zoo.core.files import blocks_fingerprint, write_learned
from zoo.core.tokens import every_position
from zoo.loading.recovery_file import RecoveryConfig
from zoo.ranking.golden import GoldenConfig, golden_importance
from zoo.ranking.suffix import Suffix

pytestmark = pytest.mark.usefixtures("no_grad")
GEOMETRY: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0, "output_dim": 16,
}  # fmt: skip
POOLER = {"attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True}
TOWERS: dict[str, dict[str, Any]] = {
    "class token": {},
    "quick": {"ls_init_value": 0.5, "act_layer": QuickGELU, "no_ln_pre": True},
    "averaged": {"pool_type": "avg"},
    "norm behind": {"pool_type": "avg", "final_ln_after_pool": True, "output_tokens": True},
    "coca": {**POOLER, "attentional_pool": True},
    "parallel": {**POOLER, "attentional_pool": "parallel", "output_dim": 32},
    "cascade": {**POOLER, "attentional_pool": "cascade", "output_dim": 32},
}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8}


@pytest.fixture(params=TOWERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model.eval()


def build(kind: str, **overrides: Any) -> nn.Module:
    return lively(VisionTransformer(**{**GEOMETRY, **TOWERS[kind], **overrides}))


def some_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def options_of(method: str) -> dict[str, Any]:
    return {"reduce_at": 1} | ({"arch": "mlp", "width": 8} if method == "patchrank" else {})


def parts(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("grad", [False, True])
def test_a_reduced_tower_gives_what_the_whole_one_gives(kind: str, grad: bool):
    """Torch's attention takes another way where gradients are recorded; tests/zoo/test_towers.py has all methods."""
    tower, images = build(kind), some_images()
    with torch.set_grad_enabled(grad):
        wanted = parts(tower(images))
        whole = parts(zoo.reduce(tower, method="evitfuse", keep=1.0, reduce_at=1)(images))
    assert all(map(torch.equal, whole, wanted))
    assert len(whole) == len(wanted)
    half = zoo.reduce(tower, method="rankmerge", keep=0.5, reduce_at=1)
    trace = half.trace(images)
    assert (trace.final_tokens, trace.tokens_per_block) == (8, (17, 9, 9))
    assert torch.equal(trace.output, parts(half(images))[0].flatten(1))
    assert not torch.allclose(trace.output, wanted[0].flatten(1), atol=1e-5)
    assert isinstance(half, VisionTransformer)
    rough = half.bfloat16().trace(images.bfloat16())
    assert (rough.final_tokens, rough.output.dtype) == (8, torch.bfloat16)
    assert rough.output.isfinite().all()


def test_export():
    model = zoo.reduce(build("coca"), method="rankmerge", keep=0.5)
    batch = torch.export.Dim("batch", min=1, max=16)
    graph = torch.export.export(model, (some_images(),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5):
        pairs = zip(parts(graph(some_images(count))), parts(model(some_images(count))), strict=True)
        assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)


def test_pools_count_a_token_as_often_as_it_stands_for(kind: str):
    model = zoo.reduce(build(kind), method=None)
    tokens = model.embed(some_images())
    size = torch.ones(2, 16)
    size[:, 3], size[:, 7] = 3, 2
    x = torch.cat((tokens.x, tokens.patches[:, [3, 3, 7]]), dim=1)
    wanted = model.finish(tokens._replace(x=x, patch_count=19))
    assert torch.allclose(model.finish(tokens._replace(size=size)), wanted, atol=1e-5)


def test_attention_is_torchs(kind: str):
    model = zoo.reduce(build(kind), method=None)
    tokens = model.embed(some_images())
    block = model.block(1)
    normed = model.block_modules[1].ln_1(tokens.x)
    out, shares = model.block_modules[1].attn(normed, normed, normed)
    attended = block.attend(tokens, torch.zeros(1, 1, 1, 1))  # a bias of 0 goes the other way
    assert torch.allclose(attended.out, out, atol=1e-5)
    assert torch.allclose(block.cls_attention(tokens), shares[:, 0, 1:], atol=1e-6)
    first = block.first(tokens)
    assert torch.allclose(first, block.whole(tokens)[:, :1], atol=1e-5)


def test_golden_rankings_watch_the_output(kind: str):
    """Against patches removed one by one."""
    model = zoo.reduce(build(kind), method=None)
    found = golden_importance(model, some_images(), GoldenConfig(block=1, window=1))
    start, _ = model.advance(model.embed(some_images()), stop=1)
    whole = Suffix(model, 1, None).features(start, torch.arange(2), every_position(start.x, 16))
    for patch in range(16):
        keep = torch.tensor([i for i in range(16) if i != patch]).expand(2, -1)
        left, _ = model.advance(start.select(1, torch.zeros(2, 16), keep), 1)
        wanted = -(F.normalize(model.finish(left), dim=-1) * whole).sum(dim=1)
        assert torch.allclose(found[:, patch], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"patch_dropout": 0.5}, "patch_dropout > 0 loses patch positions"),
        ({"pool_type": "none"}, "pool_type='none' gives tokens"),
        ({"qk_norm": True}, "blocks are CustomResidualAttentionBlock with Attention; expected open_clip's"),
    ],
)
def test_refused_towers(overrides: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        zoo.reduce(build("class token", **overrides), method="random", keep=0.5)


def test_what_a_reduced_tower_refuses():
    model = zoo.reduce(build("class token"), method="random", keep=0.5, reduce_at=1)
    with pytest.raises(ValueError, match="forward_intermediates gives maps of all patches"):
        model.forward_intermediates(some_images())
    maps = zoo.reduce(build("class token"), method=None).forward_intermediates(some_images())
    assert maps["image_intermediates"][0].shape == (2, 32, 4, 4)
    with pytest.raises(ValueError, match="what='tokens': ReducedOpenClip takes no learned tokens"):
        zoo.recover(model, [some_images()], [some_images()], RecoveryConfig(what="tokens"))


@torch.enable_grad()
@pytest.mark.parametrize(("kind", "what"), [("norm behind", "norm"), ("coca", "norm"), ("class token", "lora")])
def test_recovery(kind: str, what: str, tmp_path: Path):
    """What is saved brings the features as near to dense as training said, and fits no other tower."""
    tower, images = build(kind), [some_images(6)]
    student = zoo.reduce(tower, method="rankmerge", keep=0.3, reduce_at=0)
    config = RecoveryConfig(what=what, rounds=2, steps=8, batch=6, learning_rate=1e-3, crop=1, dtype="float32")
    recovered = zoo.recover(student, images, images, config)
    assert recovered.after[0] < recovered.before[0]
    path = tmp_path / "r.safetensors"
    zoo.save_recovery(path, student, recovered, config, name=kind, tag="", datasets=[{"name": "random"}])
    model = zoo.reduce(tower, method="rankmerge", keep=0.3, reduce_at=0, recovery=path)
    with torch.no_grad():
        near, truth = parts(model(images[0]))[0].squeeze(1), parts(tower(images[0]))[0].squeeze(1)
    apart = (1 - F.cosine_similarity(near, truth, dim=-1)).mean()
    assert apart.item() == pytest.approx(recovered.after[0], abs=1e-6)
    with pytest.raises(ValueError, match="was trained on"):
        zoo.reduce(build(kind), method="rankmerge", keep=0.3, reduce_at=0, recovery=path)


def coca() -> nn.Module:
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    decoder = {**TEXT, "mlp_ratio": 2}
    return CoCa(16, multimodal_cfg=decoder, text_cfg={**TEXT, "output_tokens": True}, vision_cfg=vision)


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: CLIP(16, VISION, TEXT),
    "custom text": lambda: CustomTextCLIP(16, VISION, TEXT),
    "coca": coca,
    "timm trunk": lambda: CustomTextCLIP(
        192, {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": ""}, TEXT
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_models_that_hold_a_tower(name: str):
    model = lively(WHOLE[name]())
    images = torch.randn(1, 3, *model.visual.image_size)
    before = dict(model.named_modules())
    wanted = model.encode_image(images)
    whole = zoo.reduce(model, method="evit", keep=1.0, reduce_at=1)
    half = zoo.reduce(model, method="evit", keep=0.5, reduce_at=1)
    assert type(half) is type(model)
    assert torch.equal(whole.encode_image(images), wanted)
    assert not torch.allclose(half.encode_image(images), wanted, atol=1e-4)
    assert dict(model.named_modules()) == before
    shared = {name: part for name, part in half.named_children() if name != "visual"}
    assert shared == {name: part for name, part in model.named_children() if name != "visual"}
    words = torch.tensor([[1, 2, 7, 0]])
    assert torch.equal(half.encode_text(words), model.encode_text(words))
    again = zoo.reduce(half, method=None)
    assert torch.equal(again.encode_image(images), wanted)


def test_predictors_tell_the_weights_of_their_tower(tmp_path: Path):
    tower, path = build("coca"), tmp_path / "p.safetensors"
    source = zoo.reduce(tower, method="patchrank", keep=0.5, **options_of("patchrank"))
    weights = blocks_fingerprint(tower.state_dict(), source.blocks_prefix)
    facts = {"model": "coca", "tag": "", "block": 1, "options": {"arch": "mlp", "width": 8}, "weights": weights}
    write_learned(path, "predictor", source.reducer.predictor.state_dict(), facts)
    model = zoo.reduce(tower, method="patchrank", keep=0.5, reduce_at=1, predictor=path)
    torch.testing.assert_close(parts(model(some_images()))[0], parts(source(some_images()))[0])
    tower.transformer.resblocks[2].ln_1.bias[0] += 1
    with pytest.raises(ValueError, match=rf"was fitted to coca\S* with weights {weights}, these are"):
        zoo.reduce(tower, method="patchrank", keep=0.5, reduce_at=1, predictor=path)
