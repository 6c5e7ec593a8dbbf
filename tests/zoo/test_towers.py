"""One contract for every family of towers and every kind of pooling: tiny towers of timm's real classes."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from torch import Tensor, nn

import zoo
from tools.write_towers import CHECKS, OPEN_CLIP, TOWERS, YES
from tools.write_towers import tiny as tiny_tower
from zoo.core.host import Host
from zoo.core.tokens import Tokens
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.ranking.windows import members, merge_windows, outside, windows
from zoo.towers.eva import rotation

pytestmark = pytest.mark.usefixtures("no_grad")
Build = Callable[..., nn.Module]
QUERYLESS = ("siglip averaged", "registers averaged", "averaged", "rope averaged", "naflex rope")
NEEDS_QUERY = ("clsattn", "evit", "evitfuse", "tca")
# One of each pool and family.
KINDS = (
    "siglip b16",
    "averaged",
    "averaged with maximum",
    "maximum",
    "dinov2 registers",
    "dinov3 s",
    "pe core",
    "rope mixed",
    "beit",
)


@pytest.fixture
def build(tiny: Build) -> Build:
    """Build a tower of 3 blocks with 16 patches: 4 x 4 of 8 or 14 pixels."""

    def make(kind: str, **overrides: Any) -> nn.Module:
        name, own = TOWERS[kind]
        return tiny(name, **{"img_size": 32, "embed_dim": 48, "depth": 3, **own, **overrides})

    return make


@pytest.fixture(params=TOWERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def some_images(tower: nn.Module, count: int = 2) -> Tensor:
    size = tower.patch_embed.img_size if hasattr(tower, "patch_embed") else (32, 32)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", [*TOWERS, *OPEN_CLIP])
def test_every_method_on_every_tower(kind: str):
    """All of it at keep 1 bit for bit, the count at .5, and the same of patches permuted with their places."""
    tower, refused = tiny_tower(kind)[1], list[str]()
    able = CHECKS["methods"](tower, refused)
    assert len(refused) == (len(NEEDS_QUERY) if kind in QUERYLESS else 0)
    assert able == f"{len(zoo.METHODS) - len(refused)} of {len(zoo.METHODS)}"
    assert CHECKS["any order"](tower, []) == YES


def test_a_reduced_tower_is_its_class_and_runs_in_bfloat16(kind: str, build: Build):
    tower = build(kind)
    images = some_images(tower)
    whole = zoo.reduce(tower, method="tome", keep=1.0)
    assert torch.equal(whole.forward_features(images), tower.forward_features(images))
    assert whole.trace(images).ranking is None
    half = zoo.reduce(tower, method="tome", keep=0.5, reduce_at=[1, 2])
    trace = half.trace(images)
    assert (trace.final_tokens, trace.tokens_per_block[-1]) == (8, tower.num_prefix_tokens + 8)
    assert not torch.allclose(trace.output, tower(images), atol=1e-5)
    assert torch.equal(half(images), trace.output)
    assert isinstance(half, type(tower))
    rough = half.bfloat16().trace(images.bfloat16())
    assert (rough.final_tokens, rough.output.dtype) == (8, torch.bfloat16)
    assert rough.output.isfinite().all()


def test_the_check_of_the_order_sees_places_left_behind(monkeypatch: pytest.MonkeyPatch):
    straight = zoo.Tokens._replace
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))

    def moved(tokens: Tokens, **changes: Any) -> Tokens:
        if changes.keys() == {"x", "patch_idx"}:
            changes["x"] = changes["x"].roll(1, dims=1)
        return straight(tokens, **changes)

    monkeypatch.setattr(zoo.Tokens, "_replace", moved)
    with pytest.raises(ValueError, match="permuted patches"):
        CHECKS["any order"](tiny_tower("dinov3 s")[1], [])


@pytest.mark.parametrize("kind", ["siglip b16", "rope mixed", "beit"])
def test_export_of_merging(kind: str):
    assert CHECKS["export"](tiny_tower(kind)[1], []) == YES


def test_methods_that_read_the_query_are_refused_without_one(build: Build):
    tower, able = build("averaged"), ", ".join(sorted(set(zoo.METHODS) - set(NEEDS_QUERY)))
    with pytest.raises(ValueError, match=f"method 'evit' goes by the attention.*expected one of {able}"):
        zoo.reduce(tower, method="evit", keep=0.5)
    with pytest.raises(ValueError, match="method 'rankmerge' with these settings"):
        zoo.reduce(tower, method="rankmerge", rank="cls", keep=0.5)


@pytest.mark.parametrize(
    ("kind", "overrides", "match"),
    [
        ("dinov3 s", {"patch_drop_rate": 0.5}, "patch_drop_rate > 0 loses patch positions"),
        ("averaged", {"global_pool": "prr"}, "pools by AttentionPoolPrr of global_pool='prr'"),
        ("beit", {"use_shared_rel_pos_bias": True}, "use_shared_rel_pos_bias=True: expected a bias for each"),
    ],
)
def test_refused_towers(kind: str, overrides: dict[str, Any], match: str, build: Build):
    with pytest.raises(ValueError, match=re.escape(match)):
        zoo.reduce(build(kind, **overrides), method="random", keep=0.5)


def test_naflex_takes_images_alone(build: Build):
    model = zoo.reduce(build("naflex siglip 2"), method="tome", keep=0.5)
    images = some_images(model)
    patches = {"patches": images, "patch_coord": None, "patch_valid": None}
    for given, named in ((patches, {}), (images, {"patch_valid": torch.ones(2, 16)})):
        with pytest.raises(ValueError, match=r"takes images \(B, C, H, W\) alone"):
            model(given, **named)
    assert model.trace(torch.randn(2, 3, 64, 48)).final_tokens == 24


def test_the_probe_attends_as_in_the_pool(build: Build):
    """To the tokens that leave the last block, written out; in the middle of the tower to those there."""
    tower = build("siglip b16")
    model = zoo.reduce(tower, method=None)
    tokens, _ = model.advance(model.embed(some_images(model)))
    pool, x = tower.attn_pool, tower.norm(tokens.x)
    query, key = pool.q(pool.latent)[0, 0], pool.kv(x)[..., :48]
    heads = [slice(16 * head, 16 * head + 16) for head in range(3)]
    shares = torch.stack([(key[..., part] @ query[part] / 4).softmax(dim=1) for part in heads]).mean(dim=0)
    assert torch.allclose(model.block(2).pooling_attention(tokens), shares, atol=1e-6)
    kept = zoo.reduce(tower, method="clsattn", keep=0.25, reduce_at=2).trace(some_images(model)).kept
    entering, _ = model.advance(model.embed(some_images(model)), stop=2)
    wanted = model.block(2).pooling_attention(entering).topk(4).indices.sort(dim=1).values
    assert torch.equal(kept, wanted)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        *((kind, {}) for kind in ("siglip b16", "averaged", "averaged with maximum", "maximum", "deit 3")),
        ("registers averaged", {"pool_include_prefix": True}),
        ("pe core", {"use_rot_pos_emb": False}),
        ("beit v2", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
    ],
)
def test_merging_equal_tokens_changes_nothing(kind: str, overrides: dict[str, Any], build: Build):
    """Every patch comes twice, and places don't matter: half of the tokens say the same."""
    tower = build(kind, **overrides)
    tower.pos_embed.zero_()
    half = some_images(tower)[..., :16].unflatten(3, (2, 8))
    images = half.repeat_interleave(2, dim=3).flatten(3)
    for method, options in (("tome", {}), ("rankmerge", {"distance": 0.0})):
        model = zoo.reduce(tower, method=method, keep=0.5, reduce_at=1, **options)
        assert model.trace(images).final_tokens == 8
        assert torch.allclose(model(images), tower(images), atol=1e-5)


def test_a_stretched_token_counts_for_its_parts_in_a_mean():
    x = torch.randn(2, 5, 6)
    tokens = Tokens.start(x, 1, (2, 2))
    gone, into = torch.tensor([[0], [3]]), torch.tensor([[2], [1]])
    merged = tokens.merge(0, gone, into, torch.zeros(2, 1), 3, rescale=True)
    assert not torch.allclose(merged.mass.sum(dim=1), torch.tensor([4.0, 4.0]))
    assert torch.allclose(merged.mean(merged.x), x.mean(dim=1), atol=1e-6)
    assert torch.equal(tokens.mean(x), x.mean(dim=1))


def test_rotations_follow_places(build: Build):
    for kind in ("dinov3 s", "eva clip b", "rope mixed"):
        tower = build(kind)
        model = zoo.reduce(tower, method=None)
        tokens = model.embed(some_images(model))
        table = tower.rope.get_embed(shape=(4, 4))
        patch_idx = torch.tensor([[5, 2, 3], [0, 15, 7]])
        rows = table[1] if kind == "rope mixed" else table.unsqueeze(0)
        assert torch.equal(rotation(tokens._replace(patch_idx=patch_idx), 1)[1], rows[:, [0, 15, 7]])
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


def test_merged_tokens_have_the_mean_place():
    tokens = Tokens.start(torch.randn(1, 9, 4), 0, (3, 3), torch.zeros(9, 2))
    for gone, into, count in (([0], [8], 8), ([0, 3], [7, 7], 6)):  # then positions in the shorter sequence
        positions = torch.tensor([gone]), torch.tensor([into])
        tokens = tokens.merge(0, *positions, torch.zeros(1, len(gone)), count)
    last = tokens.token_of_patch()[0]
    cells = torch.tensor([[cell // 3, cell % 3] for cell in range(9)]).float()
    means = torch.stack([cells[last == token].mean(dim=0) for token in range(6)])
    assert torch.allclose(tokens.places()[0], means)
    kept = tokens.select(1, torch.zeros(1, 6), torch.tensor([[1, 5]]))
    assert torch.equal(kept.places()[0], tokens.places()[0, [1, 5]])


def test_beit_gathers_the_bias_of_what_is_left(build: Build):
    tower = build("beit")
    assert type(tower) is Beit
    model = zoo.reduce(tower, method=None)
    tokens = model.embed(some_images(model))
    whole = tower.blocks[1].attn._get_rel_pos_bias()[0]
    assert torch.equal(model.block(1).bias(tokens), whole.expand(2, -1, -1, -1))
    found = model.block(1).bias(tokens._replace(patch_idx=torch.tensor([[5, -1], [0, 15]])))
    assert torch.equal(found[1], whole[:, [0, 1, 16]][:, :, [0, 1, 16]])
    assert torch.equal(found[0, :, :2, :2], whole[:, [0, 6]][:, :, [0, 6]])
    assert not found[0, :, 2].any()


def features(model: Host, tokens: Tokens, *, merged: bool = False) -> Tensor:
    """Run tokens that enter block 1 through the rest, attending by size."""
    for index in (1, 2):
        block = model.block(index)
        tokens = tokens._replace(x=block.whole(tokens, tokens.size_bias() if merged else None))
    return F.normalize(model.finish(tokens), dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ["remove", "merge"])
def test_golden_rankings_watch_the_pooled_output(kind: str, action: str, build: Build):
    """Against windows removed or merged one by one."""
    model = zoo.reduce(build(kind), method=None)
    images = some_images(model)
    side = 1 if action == "merge" else 2
    found = GoldenEngine(model, GoldenConfig(action=action, block=1, window=side, stride=side)).importance(images)
    start, _ = model.advance(model.embed(images), stop=1)
    whole = features(model, start)
    cells = windows((4, 4), side, side)
    wanted = torch.zeros(2, 16)
    if action == "merge":
        merges = merge_windows(start, cells)
    for index, window in enumerate(cells):
        if action == "merge":
            gone, zero = window.expand(2, 1), torch.zeros(2, 1)
            tokens = start.merge(1, gone, merges.into[:, index], zero, 15, rescale=True)._replace(mass=None)
        else:
            keep = outside(members(window[None], 16)).expand(2, -1)
            tokens = start.select(1, zero_importance(start), keep)
        left = features(model, tokens, merged=action == "merge")
        wanted[:, window] = -(left * whole).sum(dim=1, keepdim=True)
    assert torch.allclose(found, wanted, atol=1e-4)


def zero_importance(tokens: Tokens) -> Tensor:
    return torch.zeros_like(tokens.patch_idx, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["dinov3 s", "eva clip b", "beit"])
def test_approximations_of_towers_with_places(kind: str, build: Build):
    """With all other patch tokens recomputed, following is exact; a bias by pairs of places is refused."""
    model = zoo.reduce(build(kind, global_pool="token"), method=None)
    images = some_images(model)
    config = GoldenConfig(block=1, approximate="follow:12")
    if kind == "beit":
        with pytest.raises(ValueError, match=r"approximate='follow:12' knows no bias for pairs of places"):
            GoldenEngine(model, config)
        return
    exact = GoldenEngine(model, GoldenConfig(block=1)).importance(images)
    assert torch.allclose(GoldenEngine(model, config).importance(images), exact, atol=1e-5)


@torch.enable_grad()
@pytest.mark.parametrize("kind", ["averaged", "siglip b16", "dinov3 s", "beit"])
def test_training_draws_the_same_random_numbers(kind: str, build: Build):
    rates = dict.fromkeys(("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "drop_path_rate"), 0.2)
    tower = build(kind, **rates).train()
    model = zoo.reduce(tower, method="rankmerge", keep=1.0)
    outputs = []
    for each in (tower, model):
        torch.manual_seed(5)
        outputs.append(each(some_images(tower)))
    assert torch.equal(*outputs)
    model = zoo.reduce(tower.eval(), method="rankmerge", keep=0.5)
    model.set_grad_checkpointing()
    model(some_images(tower)).square().sum().backward()
    assert tower.blocks[2].mlp.fc2.weight.grad.isfinite().all()


@pytest.mark.parametrize("pool", ["avg", "avgmax", "map"])
def test_pools_count_a_token_as_often_as_it_stands_for(pool: str, build: Build):
    kind = {"avg": "averaged", "avgmax": "averaged with maximum", "map": "siglip b16"}[pool]
    model = zoo.reduce(build(kind), method=None)
    tokens = model.embed(some_images(model))
    size = torch.ones(2, 16)
    size[:, 3], size[:, 7] = 3, 2
    order = torch.tensor([*range(16), 3, 3, 7])
    x = torch.cat((tokens.x[:, : tokens.prefix], tokens.patches[:, order]), dim=1)
    wanted = model.finish(tokens._replace(x=x, patch_count=19))
    assert torch.allclose(model.finish(tokens._replace(size=size)), wanted, atol=1e-5)
    assert not torch.allclose(model.finish(tokens), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [*TOWERS, *OPEN_CLIP])
def test_permuted_patches_with_their_places_change_nothing(kind: str):
    assert CHECKS["any order"](tiny_tower(kind)[1], []) == YES
