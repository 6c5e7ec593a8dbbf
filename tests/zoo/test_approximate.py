"""Specs of approximations, what the engine makes of them, and what they cost."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.approximate import KINDS, parse
from zoo.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance

GRID = 8
PATCHES = GRID * GRID
SPECS = ("follow:0", "follow:5", "jacobian:3", "shallow:4")
LABELS = torch.tensor([4, 0, 2])


@pytest.fixture
def tower(tiny: Callable[..., nn.Module]) -> zoo.ReducedViT:
    """A tower lively enough that every window matters."""
    return tiny("clip_vit_b16", noise=0.3)


@pytest.fixture
def told() -> dict[str, Any]:
    """Five classes in the joint space of 7."""
    text = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    return {"text": F.normalize(text, dim=-1), "scale": 5.0}


@pytest.mark.parametrize("score", SCORES)
def test_the_last_block_or_all_patches_make_it_exact(
    score: str, tower: zoo.ReducedViT, told: dict[str, Any]
):
    images = torch.randn(3, 3, 64, 64)
    exact = golden_importance(tower, images, GoldenConfig(score=score), labels=LABELS, **told)
    for spec in ("shallow:5", f"follow:{PATCHES - 4}"):
        config = GoldenConfig(score=score, approximate=spec)
        found = golden_importance(tower, images, config, labels=LABELS, **told)
        assert torch.allclose(found, exact, atol=1e-5)


def test_a_shallower_tower_is_one_that_ends_there(
    tower: zoo.ReducedViT, tiny: Callable[..., nn.Module]
):
    images = torch.randn(2, 3, 64, 64)
    short = tiny("clip_vit_b16", depth=4)
    weights = {k: v for k, v in tower.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(weights)
    found = golden_importance(tower, images, GoldenConfig(block=1, approximate="shallow:3"))
    assert torch.equal(found, golden_importance(short, images, GoldenConfig(block=1)))
    assert len(tower.blocks) == 6  # cutting the one leaves the other whole


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("score", SCORES)
def test_images_do_not_touch_each_other_and_every_call_gives_the_same(
    score: str, spec: str, tower: zoo.ReducedViT, told: dict[str, Any]
):
    images = torch.randn(3, 3, 64, 64)
    config = GoldenConfig(score=score, block=2, approximate=spec)
    together = GoldenEngine(tower, config, batch=64, **told).importance(images, LABELS)
    again = GoldenEngine(tower, config, batch=64, **told).importance(images, LABELS)
    assert torch.equal(together, again)
    narrow = GoldenEngine(tower, config, batch=5, **told)
    for i in range(3):
        alone = narrow.importance(images[i : i + 1], LABELS[i : i + 1])
        assert alone.shape == (1, PATCHES)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("spec", ["follow:5", "jacobian:3"])
def test_gradients_and_flags_of_the_tower_stay_as_they_are(spec: str, tower: zoo.ReducedViT):
    golden_importance(tower, torch.randn(1, 3, 64, 64), GoldenConfig(approximate=spec))
    assert all(p.requires_grad and p.grad is None for p in tower.parameters())
    assert not torch.is_inference_mode_enabled()


def test_costs_grow_from_about_one_pass_to_that_of_the_removals(
    tiny: Callable[..., nn.Module],
):
    shape = {"img_size": 196, "patch_size": 14, "embed_dim": 384, "depth": 9, "num_heads": 6}
    tower = tiny("clip_vit_b16", **shape)

    def passes(spec: str | None) -> float:
        return GoldenEngine(tower, GoldenConfig(approximate=spec)).passes

    assert passes(None) == passes("shallow:8") == 169
    assert passes("follow:0") == pytest.approx(1.02, abs=0.02)
    assert passes("follow:192") == pytest.approx(169, rel=0.1)
    followed = [passes(f"follow:{n}") for n in (0, 1, 4, 16, 64, 192)]
    assert followed == sorted(followed)
    assert passes("jacobian:9") - passes("jacobian:8") == pytest.approx(1.15, abs=0.02)
    assert passes("shallow:5") == pytest.approx(169 * 2 / 5, rel=0.01)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("folow:4", "approximate='folow:4': did you mean 'follow'? expected one of follow"),
        ("", "approximate='': expected one of follow, jacobian, shallow, as in follow:N"),
        ("follow", "approximate='follow': expected follow:N with an integer N from 0"),
        ("follow:-1", "approximate='follow:-1': expected follow:N with an integer N from 0"),
        ("jacobian:0", "approximate='jacobian:0': expected jacobian:N with an integer N from 1"),
        ("shallow:1.5", "approximate='shallow:1.5': expected shallow:N with an integer"),
    ],
)
def test_refused_specs(spec: str, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenConfig(approximate=spec)


@pytest.mark.parametrize(
    ("spec", "options", "match"),
    [
        ("follow:61", {}, "approximate='follow:61': expected a number from 0 to 60 here"),
        ("jacobian:50", {}, "approximate='jacobian:50': expected a number from 1 to 49 here"),
        ("shallow:6", {}, "approximate='shallow:6': expected a number from 3 to 5 here"),
        ("shallow:2", {}, "approximate='shallow:2': expected a number from 3 to 5 here"),
        ("follow:4", {"global_pool": "avg"}, "this tower has global_pool='avg'"),
    ],
)
def test_what_a_tower_can_not_do(
    spec: str, options: dict[str, Any], match: str, tiny: Callable[..., nn.Module]
):
    with pytest.raises(ValueError, match=re.escape(match)):
        GoldenEngine(tiny("clip_vit_b16", **options), GoldenConfig(approximate=spec))


def test_a_greedy_search_removes_for_real():
    with pytest.raises(ValueError, match="greedy=4 with approximate='follow:4'"):
        GoldenConfig(greedy=4, approximate="follow:4")


def test_compiling_is_for_removals(tower: zoo.ReducedViT):
    with pytest.raises(ValueError, match="compiled=True with approximate='follow:4': exact only"):
        GoldenEngine(tower, GoldenConfig(approximate="follow:4"), compiled=True)


def test_every_kind_is_tested_here():
    assert {parse(spec)[0] for spec in SPECS} == set(KINDS)
