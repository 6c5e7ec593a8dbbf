"""One contract for every family of towers and every kind of pooling: tiny towers of the libraries' real classes."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from lively import lively
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from timm.models.vision_transformer import ResPostBlock
from tiny_towers import (
    NEEDS_QUERY,
    OPEN_CLIP,
    TIMM,
    build,
    check_any_order,
    check_export,
    check_methods,
    images_of,
    options_of,
    reduced,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zoo
from zoo.core.host import Host
from zoo.core.recipes import GoldenConfig, RecoveryConfig
from zoo.core.tokens import Tokens
from zoo.ranking.golden import GoldenEngine
from zoo.ranking.suffix import members, outside, windows
from zoo.towers.eva import rotation

pytestmark = pytest.mark.usefixtures("no_grad")
KINDS = (*TIMM, *OPEN_CLIP)
# One of each pool and family.
FEW = ("siglip b16", "averaged", "averaged with maximum", "maximum", "dinov2 registers", "dinov3 s", "pe core")
FEW += ("rope mixed", "beit", "open_clip", "norm behind", "coca", "cascade")
QUERYLESS = ("siglip averaged", "registers averaged", "averaged", "rope averaged", "naflex rope")


def parts(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_on_every_tower(kind: str):
    """All of it at keep 1 bit for bit, the count at .5, and the same of patches permuted with their places."""
    tower = build(kind)
    wanted = parts(tower(images_of(tower, 2)))[0].flatten(1)
    assert check_methods(tower, wanted) == (NEEDS_QUERY if kind in QUERYLESS else set())
    check_any_order(tower)
    if kind in ("siglip b16", "rope mixed", "beit", "coca"):
        check_export(tower)


class NoLists(TorchFunctionMode):
    """Refuse numbers of Python as tensors or indices, which would be copied from the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor)
        if func is Tensor.__getitem__:
            assert list not in map(type, args[1] if isinstance(args[1], tuple) else args[1:])
        return func(*args, **(kwargs or {}))


class OnDevice(TorchDispatchMode):
    """Refuse tensors of the host, and sums that a GPU takes in any order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)} <= {"meta"}, func
        assert not re.search("(index|scatter)_(add|put)", str(func))
        return out


@pytest.mark.parametrize("kind", FEW)
def test_a_cuda_graph_can_hold_every_method_and_gives_the_same_each_time(kind: str):
    """By a device without numbers, which refuses to wait for one."""
    images, tower = images_of(build(kind), 2).to("meta"), build(kind).to("meta")
    for method in sorted(zoo.METHODS.keys() - (NEEDS_QUERY if kind in QUERYLESS else set())):
        models = [reduced(tower, method, keep=0.5, **options_of(method))]
        with suppress(ValueError):
            models.append(zoo.optimize(models[0]))
        for model in models:
            with torch.device("meta"), OnDevice(), NoLists():
                model(images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_tower_gives_what_the_whole_one_gives(kind: str):
    """With gradients, too, for which torch's attention takes another way."""
    tower = build(kind)
    images = images_of(tower, 2)
    with torch.enable_grad():
        wanted = parts(tower(images))
        whole = zoo.reduce(tower, method="tome", keep=1.0)
        assert len(parts(whole(images))) == len(wanted)
        assert all(map(torch.equal, parts(whole(images)), wanted))
    assert whole.trace(images).ranking is None
    norm = {"normalize_intermediates": kind != "coca"} if kind in OPEN_CLIP else {"norm": True}
    theirs, ours = (each.forward_intermediates(images, **norm) for each in (tower, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    half = zoo.reduce(tower, method="rankmerge", keep=0.5, reduce_at=1)
    trace = half.trace(images)
    assert trace.tokens_per_block[-1] == half.prefix_count + 8
    assert torch.equal(trace.output, parts(half(images))[0].flatten(1))
    assert not torch.allclose(trace.output, wanted[0].flatten(1), atol=1e-5)
    assert isinstance(half, type(tower))
    rough = half.bfloat16().trace(images.bfloat16())
    assert (rough.final_tokens, rough.output.dtype) == (8, torch.bfloat16)
    assert rough.output.isfinite().all()


@pytest.mark.parametrize(("kind", "overrides", "options", "quoted"), [
    ("averaged", {"block_fn": ResPostBlock, "init_values": 1.0}, {}, "ResPostBlock with Attention; expected"),
    ("averaged", {"attn_layer": "diff"}, {}, "Block with DiffAttention"),
    ("averaged", {"patch_drop_rate": 0.5}, {}, "patch_drop_rate > 0 loses patch positions; set it to 0"),
    ("averaged", {}, {"method": "evit"}, ", ".join(sorted(zoo.METHODS.keys() - NEEDS_QUERY))),
    ("averaged", {}, {"method": "rankmerge", "rank": "cls"}, "method 'rankmerge' with these settings"),
    ("averaged", {"global_pool": "prr"}, {}, "pools by AttentionPoolPrr of global_pool='prr'"),
    ("dinov3 s", {"patch_drop_rate": 0.5}, {}, "patch_drop_rate > 0"),
    ("beit", {"use_shared_rel_pos_bias": True}, {}, "use_shared_rel_pos_bias=True"),
    ("open_clip", {"patch_dropout": 0.5}, {}, "patch_dropout > 0"),
    ("open_clip", {"pool_type": "none"}, {}, "pool_type='none'"),
    ("open_clip", {"qk_norm": True}, {}, "CustomResidualAttentionBlock with Attention"),
])  # fmt: skip
def test_refused_towers(kind: str, overrides: dict[str, Any], options: dict[str, Any], quoted: str):
    with pytest.raises(ValueError, match=re.escape(quoted)):
        zoo.reduce(build(kind, **overrides), **{"method": "random", "keep": 0.5, **options})


def test_what_is_no_tower_and_what_reduced_towers_refuse():
    for make, quoted in (
        (lambda: nn.Linear(2, 2), "Linear is no tower that can be reduced; expected one of timm's Vision"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", device="meta"), "overrides parts of timm's"),
    ):
        with pytest.raises(ValueError, match=quoted):
            zoo.reduce(make(), method="tome", keep=0.5)
    model = zoo.reduce(build("naflex siglip 2"), method="tome", keep=0.5)
    images = images_of(model, 2)
    with pytest.raises(ValueError, match=r"takes images \(B, C, H, W\) alone"):
        model(images, patch_valid=torch.ones(2, 16))
    assert model.trace(torch.randn(2, 3, 64, 48)).final_tokens == 24
    with pytest.raises(ValueError, match="unmerge=True: VisionTransformer has forward_intermediates for it"):
        zoo.reduce(build("open_clip"), method="random", keep=0.5, reduce_at=1, unmerge=True)


@pytest.mark.parametrize("kind", ["dinov3 s", "beit", "naflex rope", "open_clip"])
@pytest.mark.parametrize("method", ["rankmerge", "random"])
def test_features_of_all_patches_of_a_reduced_tower(kind: str, method: str):
    model = zoo.reduce(build(kind), method=method, keep=0.5, reduce_at=1)
    images, own = images_of(model, 2), {"output_extra_tokens": True} if kind == "open_clip" else {"output_dict": True}
    found = model.forward_intermediates(images, [0, 2], output_fmt="NLC", **own)
    tokens, [first, _] = model.advance(model.embed(images), taps=[0, 2])
    maps = found["image_intermediates"]
    assert torch.equal(maps[0], first.patches)
    assert torch.equal(maps[1], tokens.unmerge()[:, model.prefix_count :])


def test_the_probe_attends_as_in_the_pool():
    """To the tokens that leave the last block, written out; in the middle of the tower to those there."""
    tower = build("siglip b16")
    model, images = zoo.reduce(tower, method=None), images_of(tower, 2)
    tokens, _ = model.advance(model.embed(images))
    pool, x = tower.attn_pool, tower.norm(tokens.x)
    query, key = pool.q(pool.latent)[0, 0], pool.kv(x)[..., :48]
    heads = [slice(16 * head, 16 * head + 16) for head in range(3)]
    shares = torch.stack([(key[..., part] @ query[part] / 4).softmax(dim=1) for part in heads]).mean(dim=0)
    assert torch.allclose(model.block(2).pooling_attention(tokens), shares, atol=1e-6)
    kept = zoo.reduce(tower, method="clsattn", keep=0.25, reduce_at=2).trace(images).kept
    entering, _ = model.advance(model.embed(images), stop=2)
    wanted = model.block(2).pooling_attention(entering).topk(4).indices.sort(dim=1).values
    assert torch.equal(kept, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_token_alone_is_the_first_of_all(kind: str):
    model = zoo.reduce(build(kind), method=None)
    tokens, block = model.embed(images_of(model, 2)), model.block(1)
    assert torch.allclose(block.first(tokens), block.whole(tokens)[:, :1], atol=1e-5)
    attended = block.attend(tokens)
    logits = attended.query[:, :, :1] * attended.scale @ attended.key.mT
    wanted = logits.softmax(dim=-1)[:, :, 0, tokens.prefix :].mean(dim=1)
    if kind not in ("beit", "beit v2"):  # its bias isn't in queries and keys
        assert torch.allclose(block.cls_attention(tokens), wanted, atol=1e-6)
    if kind in OPEN_CLIP:
        module = model.block_modules[1]
        normed = module.ln_1(tokens.x)
        out, shares = module.attn(normed, normed, normed)
        attended = block.attend(tokens, torch.zeros(1, 1, 1, 1))  # a bias of 0 goes the other way
        assert torch.allclose(attended.out, out, atol=1e-5)
        assert torch.allclose(wanted, shares[:, 0, 1:], atol=1e-6)


@pytest.mark.parametrize(("kind", "overrides"), [
    *((kind, {}) for kind in ("siglip b16", "averaged", "averaged with maximum", "maximum", "deit 3")),
    ("registers averaged", {"pool_include_prefix": True}),
    ("pe core", {"use_rot_pos_emb": False}),
    ("beit v2", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
])  # fmt: skip
def test_merging_equal_tokens_changes_nothing(kind: str, overrides: dict[str, Any]):
    """Every patch comes twice, and places don't matter: half of the tokens say the same."""
    tower = build(kind, **overrides)
    tower.pos_embed.zero_()
    half = images_of(tower, 2)[..., :16].unflatten(3, (2, 8))
    images = half.repeat_interleave(2, dim=3).flatten(3)
    for method, point in (("tome", 1), ("rankmerge", 0), ("rankmerge", 1)):
        model = zoo.reduce(tower, method=method, keep=0.5, reduce_at=point)
        assert model.trace(images).final_tokens == 8
        assert torch.allclose(model(images), tower(images), atol=1e-5)


@pytest.mark.parametrize("kind", ["averaged", "averaged with maximum", "siglip b16", *OPEN_CLIP])
def test_pools_count_a_token_as_often_as_it_stands_for(kind: str):
    model = zoo.reduce(build(kind), method=None)
    tokens = model.embed(images_of(model, 2))
    size = torch.ones(2, 16)
    size[:, 3], size[:, 7] = 3, 2
    x = torch.cat((tokens.x, tokens.patches[:, [3, 3, 7]]), dim=1)
    wanted = model.finish(tokens._replace(x=x))
    assert torch.allclose(model.finish(tokens._replace(size=size)), wanted, atol=1e-5)
    assert torch.allclose(model.finish(tokens), wanted, atol=1e-5) == model.pools_first


@pytest.mark.parametrize("kind", ["dinov3 s", "eva clip b", "rope mixed"])
def test_rotations_follow_places(kind: str):
    tower = build(kind)
    model = zoo.reduce(tower, method=None)
    tokens = model.embed(images_of(model, 2))
    table = tower.rope.get_embed(shape=(4, 4))
    patch_idx = torch.tensor([[5, 2, 3], [0, 15, 7]])
    rows = table[1] if kind == "rope mixed" else table.unsqueeze(0)
    # A fused token counts from the first position, a merged one from its own.
    place = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [0.0, 3.0]], [[0.0, 0.0], [3.0, 3.0], [1.5, 2.0]]])
    patch_idx[0, 1] = -1
    found = rotation(tokens._replace(patch_idx=patch_idx, place=place), 1)
    assert torch.equal(found[0, :, [0, 2]], rows[:, [5, 3]])
    assert torch.allclose(found[0, :, 1], rows[:, 10], atol=1e-5)
    middle = rows[:, 6] + rows[:, 10]  # half-way between them
    length = middle.unflatten(-1, (2, -1)).norm(dim=-2, keepdim=True)
    either = length.expand(-1, 2, -1).flatten(-2) < 1e-3  # half a turn from one to the next
    wanted = middle / length.expand(-1, 2, -1).flatten(-2)
    assert torch.allclose(found[1, :, 2][~either], wanted[~either], atol=1e-5)


def features(model: Host, tokens: Tokens) -> Tensor:
    for index in (1, 2):
        tokens = tokens._replace(x=model.block(index).whole(tokens))
    return F.normalize(model.finish(tokens), dim=-1)


@pytest.mark.parametrize("kind", FEW)
def test_golden_rankings_watch_the_pooled_output(kind: str):
    model = zoo.reduce(build(kind), method=None)
    images = images_of(model, 2)
    found = GoldenEngine(model, GoldenConfig(block=1, stride=2)).importance(images)
    start, _ = model.advance(model.embed(images), stop=1)
    whole = features(model, start)
    wanted = torch.zeros(2, 16)
    for window in windows((4, 4), 2, 2):
        keep = outside(members(window[None], 16)).expand(2, -1)
        left = features(model, start.select(1, torch.zeros(2, 16), keep))
        wanted[:, window] = -(left * whole).sum(dim=1, keepdim=True)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_approximations_of_towers_with_places():
    """With all other patch tokens recomputed, following is exact; a bias by pairs of places is refused."""
    config = GoldenConfig(block=1, approximate="follow:12")
    for kind in ("dinov3 s", "eva clip b"):
        model = zoo.reduce(build(kind, global_pool="token"), method=None)
        images = images_of(model, 2)
        exact = GoldenEngine(model, GoldenConfig(block=1)).importance(images)
        assert torch.allclose(GoldenEngine(model, config).importance(images), exact, atol=1e-5)
    with pytest.raises(ValueError, match=r"approximate='follow:12' knows no bias for pairs of places"):
        GoldenEngine(zoo.reduce(build("beit", global_pool="token"), method=None), config)
    with pytest.raises(ValueError, match="precision='bfloat16': expected 'float32' for this tower"):
        GoldenEngine(zoo.reduce(build("rope mixed"), method=None), GoldenConfig(block=1), precision="bfloat16")


@torch.enable_grad()
@pytest.mark.parametrize("kind", ["averaged", "siglip b16", "dinov3 s", "beit"])
def test_training_draws_the_same_random_numbers(kind: str):
    rates = dict.fromkeys(("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "drop_path_rate"), 0.2)
    with torch.no_grad():
        tower = build(kind, **rates).train()
    model = zoo.reduce(tower, method="rankmerge", keep=1.0)
    outputs = []
    for each in (tower, model):
        torch.manual_seed(5)
        outputs.append(each(images_of(tower, 2)))
    assert torch.equal(*outputs)
    model = zoo.reduce(tower.eval(), method="rankmerge", keep=0.5)
    model.set_grad_checkpointing()
    model(images_of(tower, 2)).square().sum().backward()
    assert tower.blocks[2].mlp.fc2.weight.grad.isfinite().all()


@torch.enable_grad()
@pytest.mark.parametrize(("kind", "what"), [("coca", "norm"), ("open_clip", "lora"), ("siglip b16", "head+lora")])
def test_recovery_of_other_towers(kind: str, what: str, tmp_path: Path):
    """What is saved brings the features as near to dense as training said; of CoCa as ``load_open_clip`` gives it."""
    with torch.no_grad():
        tower = reduced(build(kind), None) if kind == "coca" else build(kind)
    images = [images_of(tower, 6)]
    options = {"method": "rankmerge", "keep": 0.3, "reduce_at": 0}
    config = RecoveryConfig(what=what, rounds=2, steps=8, batch=6, learning_rate=1e-3, crop=1, precision="float32")
    student = zoo.reduce(tower, **options)
    recovered = zoo.recover(student, images, images, config)
    assert recovered.after[0] < recovered.before[0]
    path = tmp_path / "r.safetensors"
    zoo.save_recovery(path, student, recovered, config, name=kind, tag="", datasets=[{"name": "random"}])
    model = zoo.reduce(tower, **options, recovery=path)
    with torch.no_grad():
        near, truth = parts(model(images[0]))[0].squeeze(1), parts(tower(images[0]))[0].squeeze(1)
    apart = (1 - F.cosine_similarity(near, truth, dim=-1)).mean()
    assert apart.item() == pytest.approx(recovered.after[0], abs=1e-6)


def test_a_head_is_refused_where_no_linear_map_gives_the_features():
    tower = build("open_clip")
    tower.proj = None
    images = [images_of(tower, 2)]
    with pytest.raises(ValueError, match="this ReducedOpenClip come from no linear map"):
        zoo.recover(zoo.reduce(tower, method="tome", keep=0.5), images, images, RecoveryConfig(what="head"))


TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8}
COCA = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
TRUNK = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": ""}
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: CLIP(16, VISION, TEXT),
    "custom text": lambda: CustomTextCLIP(16, VISION, TEXT),
    "coca": lambda: CoCa(16, {**TEXT, "mlp_ratio": 2}, {**TEXT, "output_tokens": True}, COCA),
    "timm trunk": lambda: CustomTextCLIP(192, TRUNK, TEXT),
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
    assert {**dict(half.named_children()), "visual": model.visual} == dict(model.named_children())
    words = torch.tensor([[1, 2, 7, 0]])
    assert torch.equal(half.encode_text(words), model.encode_text(words))
    assert torch.equal(zoo.reduce(half, method=None).encode_image(images), wanted)


def test_beit_gathers_the_bias_of_what_is_left():
    tower = build("beit")
    model = zoo.reduce(tower, method=None)
    tokens = model.embed(images_of(model, 2))
    whole = tower.blocks[1].attn._get_rel_pos_bias()[0]
    assert torch.equal(model.block(1).bias(tokens), whole.expand(2, -1, -1, -1))
    found = model.block(1).bias(tokens._replace(patch_idx=torch.tensor([[5, -1], [0, 15]])))
    assert torch.equal(found[1], whole[:, [0, 1, 16]][:, :, [0, 1, 16]])
    assert torch.equal(found[0, :, :2, :2], whole[:, [0, 6]][:, :, [0, 6]])
    assert not found[0, :, 2].any()
