"""Learned visual tokens in the tower: where they are, who sees them, what they leave alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from lively import Build
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.core.files import blocks_fingerprint
from zoo.core.prompts import CosineHead, CoupledPrompts, VisualPrompts
from zoo.loading.learned_files import PromptFile, save_prompts

COUNT = 5
CLASSES = ("cat", "dog", "house")
FACTS: dict[str, Any] = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "weights": "0" * 16, "width": 384}
FACTS |= {"classes": CLASSES, "dataset": "toy", "recipe": {"tokens": "vt", "count": 2}, "provenance": {"shots": 4}}


def prompted(model: Any, depth: int = 1, count: int = COUNT) -> zoo.ReducedViT:
    """Return the model with lively learned tokens, sharing everything else."""
    other = type(model).adopt(model)
    prompts = VisualPrompts(depth, count, model.embed_dim, device=None, dtype=None)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        prompts.tokens.copy_(torch.randn(prompts.tokens.shape, generator=generator))
    other.prompts = prompts
    return other.eval()


def by_hand(model: Any, images: Tensor) -> Tensor:
    """Compute a dense prompted tower with timm's own parts, token by token list."""
    prompts = model.prompts()
    x = model._pos_embed(model.patch_embed(images))
    x = torch.stack([torch.stack([row[0], *prompts[0], *row[1:]]) for row in x])
    x = model.norm_pre(x)
    for index, block in enumerate(model.blocks):
        if 0 < index < len(prompts):
            x = torch.stack([torch.stack([row[0], *prompts[index], *row[6:]]) for row in x])
        x = block(x)
    return model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize("depth", [1, 6])
@torch.no_grad()
def test_equals_the_tower_by_hand(tiny: Build, images: Tensor, depth: int):
    model = prompted(tiny("clip_vit_b16.openai"), depth)
    assert torch.allclose(model(images), by_hand(model, images), atol=1e-5)
    tokens = model.forward_features(images)
    assert torch.allclose(model.pool(tokens, "avg"), tokens[:, 1 + COUNT :].mean(dim=1), atol=1e-6)


@torch.no_grad()
def test_no_method_touches_learned_tokens(half: zoo.ReducedViT, images: Tensor):
    model = prompted(half)
    plain, tuned = half.trace(images), model.trace(images)
    assert tuned.final_tokens == plain.final_tokens
    assert tuned.tokens_per_block == tuple(n + COUNT for n in plain.tokens_per_block)
    assert all((r.before < 64).all() for r in tuned.reductions)
    assert (tuned.output - plain.output).abs().max() > 1e-3
    model.prompts = None
    assert torch.equal(model(images), plain.output)


def test_coupled_tokens_are_a_linear_image_of_the_text(tiny: Build):
    context = nn.Parameter(torch.randn(1, 2, 4, 7))
    coupled = CoupledPrompts(context, torch.randn(2, 48))
    assert torch.equal(coupled(), coupled.begin.expand(2, 4, 48))
    torch.nn.init.normal_(coupled.projection.weight)
    moved = coupled() - coupled.begin
    expected = torch.einsum("ktd,cd->ktc", context[0], coupled.projection.weight)
    assert torch.allclose(moved, expected, atol=1e-5)
    assert sum(p.numel() for p in coupled.parameters()) == context.numel() + 7 * 48
    printed, again = (CoupledPrompts(context, torch.zeros(2, 48), torch.Generator().manual_seed(1)) for _ in "12")
    assert torch.allclose(printed(), context[0] @ printed.projection.weight.T, atol=1e-6)
    assert torch.equal(again(), printed())
    assert 0.9 * 7**-0.5 < printed.projection.weight.abs().max() <= 7**-0.5


def tensors(width: int = 384, features: int = 256, **changes: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    every = {
        "classifier": F.normalize(torch.randn(3, features, generator=generator), dim=-1),
        "logit_scale": torch.tensor(4.0),
        "visual": torch.randn(2, COUNT, width, generator=generator),
        "context": torch.randn(1, 2, COUNT, 192, generator=generator),
    }
    return every | changes


def save(folder: Path, tower: nn.Module | None = None, **changes: Any) -> PromptFile:
    """Write prompts of clip_vit_s14, or of a tower whose tokens are 48 wide and have 7 features."""
    facts, content = {**FACTS, **changes}, tensors()
    if tower is not None:
        facts |= {"weights": blocks_fingerprint(tower.state_dict()), "width": tower.embed_dim}
        content = tensors(tower.embed_dim, tower.num_classes)
    return save_prompts(folder / "prompts.safetensors", content, **facts)


@pytest.mark.parametrize("method", [None, "patchrank"])
@torch.no_grad()
def test_class_logits(tiny: Build, images: Tensor, tmp_path: Path, method: str | None):
    options = {} if method is None else {"keep": 0.5}
    tower = zoo.reduce(tiny("clip_vit_b16.openai"), method=method, **options)
    file = save(tmp_path, tower)
    assert file == PromptFile.read(file.path)
    tuned = zoo.add_prompts(tower, file)
    features = zoo.add_prompts(tower, file.path, classify=False)
    unit = F.normalize(features(images), dim=-1)
    scale = torch.tensor(4.0).exp()
    assert torch.allclose(tuned(images), scale * unit @ file.load()["classifier"].T, atol=1e-3)
    assert (tuned.num_classes, tuned.pretrained_cfg["label_names"]) == (3, list(CLASSES))
    assert (tower.prompts, tower(images).shape) == (None, (3, 7))
    assert tuned.blocks[0] is tower.blocks[0]
    again = zoo.add_prompts(tuned, file)
    torch.testing.assert_close(again(images), tuned(images))


@pytest.mark.parametrize("method", ["patchrank", "evit"])
@torch.no_grad()
def test_saved_and_loaded(tiny: Build, images: Tensor, method: str, tmp_path: Path):
    tower = zoo.reduce(tiny("clip_vit_b16.openai"), method=method, keep=0.5, reduce_at=(1, 3))
    model, folder = zoo.add_prompts(tower, save(tmp_path, tower)), tmp_path / "saved"
    save_for_hf(model, folder, safe_serialization=True)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(again(images), model(images))
    assert isinstance(again.head, CosineHead)
    features = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(features(images), model.forward_head(model.forward_features(images), True))
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=9).eval()
    assert other(images).shape == (3, 9)
    assert torch.equal(other.prompts(), model.prompts())
    model.reset_classifier(0)
    assert model(images).shape == (3, 48)


def test_golden_rankings(tiny: Build, images: Tensor):
    tower = tiny("clip_vit_b16.openai")
    model, config = prompted(tower, depth=3), zoo.GoldenConfig(window=4, stride=4, block=3)
    importance = zoo.golden_importance(model, images, config)
    assert (importance - zoo.golden_importance(tower, images, config)).abs().max() > 1e-4
    with pytest.raises(ValueError, match="block=2: later blocks get learned tokens"):
        zoo.GoldenEngine(model, zoo.GoldenConfig(block=2))


@torch.no_grad()
def test_timm_creates_a_tuned_model(tmp_path: Path):
    name = "clip_vit_s14_patchrank60"
    plain = timm.create_model(name, pretrained=True).eval()
    file = save(tmp_path, weights=blocks_fingerprint(plain.state_dict()))
    assert all(torch.equal(file.load()[part], tensor) for part, tensor in tensors().items())
    model, images = timm.create_model(name, prompts=file.path).eval(), torch.randn(2, 3, 196, 196)
    torch.testing.assert_close(model(images), zoo.add_prompts(plain, file)(images))
    assert torch.equal(model.prompts(), tensors()["visual"])
    assert "prompts.safetensors" not in json.dumps(model._model_args)
    features = timm.create_model(name, prompts=str(file.path), num_classes=0).eval()
    assert features(images).shape == (2, 384)
    with pytest.raises(ValueError, match=r"num_classes=7: .* has 3; leave it out"):
        timm.create_model(name, prompts=file.path, num_classes=7)


@pytest.mark.parametrize(
    ("use", "match"),
    [
        (lambda file: timm.create_model("clip_vit_s14", prompts=file.path), "imgfocus_lit with weights='0{16}'"),
        (lambda file: zoo.create_clip("clip_vit_s14", prompts=file.path), "a tuned model classifies"),
        (lambda file: file.require_classes(CLASSES[:2]), "are for 3 classes of toy, not for 2"),
        (lambda file: file.require_classes(("cat", "house", "dog")), "their class 1 is 'dog', not 'house'"),
        (lambda file: PromptFile.read(file.path.with_name("none")), "no prompts at"),
        (lambda file: PromptFile.read(file.path.with_name("other")), "lacks the 'prompts' metadata"),
        (lambda file: timm.create_model("clip_vit_s14", prompts=file.path.with_name("wide")), "width=768, this model"),
    ],
)
def test_refuses_other_towers_classes_and_files(use: Callable[[PromptFile], Any], match: str, tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    save_prompts(tmp_path / "wide", tensors(768), **{**FACTS, "width": 768})
    file = save(tmp_path)
    file.require_classes(CLASSES)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        use(file)
