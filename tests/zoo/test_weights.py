"""Where weights and predictors come from, and what is said when they are missing."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

import zoo
from zoo.core.files import blocks_fingerprint, fingerprint, write_learned
from zoo.loading.predictor_file import PredictorFile, load_predictor
from zoo.loading.sizes import SIZES
from zoo.loading.weights import find_clip

NAME, TAG = "clip_vit_b16_patchrank60", "openai"
WORDS = ["a photo of a cat.", "a zebra crossing"]
Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's cache at an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def tower(tiny: Build, tmp_path: Path) -> dict[str, Any]:
    """Save a dense tower; return how to load it."""
    path = tmp_path / "tower.safetensors"
    save_file(tiny(f"clip_vit_b16.{TAG}").state_dict(), path)
    return {"file": str(path), "num_classes": 7}


def save_predictor(path: Path, source: zoo.ReducedViT, **facts: Any) -> Path:
    config = source.reducer.config
    facts = {"model": "clip_vit_b16", "tag": TAG, "block": 3, **facts}
    facts["options"] = {"arch": config.arch, "width": config.width}
    state = source.reducer.predictor.state_dict()
    write_learned(path, "predictor", state, facts)
    return path


def test_a_missing_predictor_is_an_error_that_says_which(tiny: Build, tower: dict):
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.openai") as error:
        tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower)
    facts = {"model": "clip_vit_b16", "tag": TAG, "block": 3, "options": {"keep": 0.6}, "action": "remove"}
    assert error.value.wanted == ("predictor", facts)
    assert "predictor=PATH" in str(error.value)
    assert "pretrained=False" in str(error.value)


def same_predictor(model: nn.Module, source: nn.Module) -> bool:
    ours, theirs = model.reducer.state_dict(), source.reducer.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("facts", "options", "match"),
    [
        ({"tag": "laion2b"}, {}, "fitted to clip_vit_b16.laion2b with tag='laion2b', this model has tag='openai'"),
        ({"block": 5}, {}, "was fitted at block 5, this model scores before block 3"),
        ({}, {"reduce_at": [2, 4]}, "was fitted at block 3, this model scores before block 2"),
        ({}, {"arch": "conv"}, "has arch='mlp', not arch='conv'"),
    ],
)
def test_refused_predictors(facts: dict, options: dict, match: str, tiny: Build, tower: dict, tmp_path: Path):
    source = tiny(f"{NAME}.{TAG}", arch="mlp")
    path = save_predictor(tmp_path / "p.safetensors", source, **facts)
    source = {"pretrained": True, "pretrained_cfg_overlay": tower, "predictor": str(path)}
    with pytest.raises(ValueError, match=re.escape(match)):
        tiny(f"{NAME}.{TAG}", **source, **options)


@pytest.fixture
def fitted(tiny: Build, tower: dict, tmp_path: Path) -> Path:
    """A predictor that tells the weights of the tower in ``tower``."""
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    weights = blocks_fingerprint(load_file(tower["file"]))
    return save_predictor(tmp_path / "fitted.safetensors", source, weights=weights)


@pytest.mark.parametrize("where", ["blocks.0.attn.qkv.bias", "blocks.5.mlp.fc2.weight"])
def test_predictors_of_other_weights(where: str, tiny: Build, tower: dict, fitted: Path):
    """The name is the same, one number in one block isn't: created by name, or by reduce."""
    state = load_file(tower["file"])
    state[where].view(-1)[0] += 1
    save_file(state, tower["file"])
    match = r"' was fitted to clip_vit_b16\.openai with weights='\w{16}', this model has weights="
    options = {"pretrained_cfg_overlay": tower, "noise": 0}
    with pytest.raises(ValueError, match=match):
        tiny(f"{NAME}.{TAG}", pretrained=True, predictor=str(fitted), **options)
    dense = tiny(f"clip_vit_b16.{TAG}", pretrained=True, **options)
    reduced = zoo.reduce(dense, method="patchrank", keep=0.6, arch="mlp", width=24)
    with pytest.raises(ValueError, match=match):
        load_predictor(reduced, PredictorFile.read(fitted))


@torch.no_grad()
def test_another_predictor(tiny: Build, tower: dict, fitted: Path, tmp_path: Path):
    """``local-dir:`` carries its predictor; ``predictor=PATH`` replaces it."""
    own = tiny(f"{NAME}.{TAG}", arch="mlp", width=24, noise=0)
    own.load_state_dict(load_file(tower["file"]), strict=False)
    save_for_hf(own, tmp_path / "saved", safe_serialization=True)
    folder = f"local-dir:{tmp_path / 'saved'}"
    carried = timm.create_model(folder, pretrained=True)
    assert same_predictor(carried, own)
    other = timm.create_model(folder, pretrained=True, predictor=str(fitted))
    assert not same_predictor(other, own)
    state = load_file(fitted)
    assert torch.equal(other.reducer.predictor.net.score.weight, state["net.score.weight"])


@torch.no_grad()
def test_the_hubs_cache_gives_both_towers(small_clip):
    theirs = small_clip.original()
    small_clip.cached(theirs)
    model, _, tokenizer = zoo.create_clip("clip_vit_b32.openai")
    images, tokens = torch.randn(2, 3, 224, 224), tokenizer(WORDS)
    assert torch.equal(tokens, open_clip.get_tokenizer("ViT-B-32")(WORDS))
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert torch.allclose(model.encode_text(tokens), theirs.encode_text(tokens), atol=1e-5)
    assert not torch.allclose(*theirs.encode_text(tokens), atol=1e-2)
    assert model.logit_scale.item() == 3.5
    assert not model.training
    assert "state_dict" not in model.visual.pretrained_cfg
    pruned = zoo.create_clip("clip_vit_b32_clsattn50").model
    again = zoo.reduce(model.visual, method="clsattn", keep=0.5)
    torch.testing.assert_close(pruned.visual(images), again(images))
    torch.testing.assert_close(pruned.encode_text(tokens), model.encode_text(tokens))


@torch.no_grad()
def test_a_file_of_a_custom_text_model_serves_as_well(small_clip, tmp_path: Path):
    theirs, file = small_clip.original().half().float(), tmp_path / "weights.pt"
    state, towers = theirs.half().state_dict(), ("visual.", "logit_scale")
    torch.save({k if k.startswith(towers) else f"text.{k}": v for k, v in state.items()}, file)
    theirs.float()
    model = zoo.create_clip("clip_vit_b32.openai", pretrained=file).model
    images, words = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert torch.allclose(model.encode_text(words), theirs.encode_text(words), atol=1e-5)
    with pytest.raises(ValueError, match="clip_vit_s14 has no weights but the embedded ones"):
        zoo.create_clip("clip_vit_s14", pretrained=file)


@torch.no_grad()
def test_a_file_laid_into_the_cache_is_taken_before_the_hub(small_clip):
    small_clip.cached(small_clip.original())
    own = small_clip.original()
    own.visual.proj.mul_(2)
    small_clip.weights.mkdir(parents=True)
    file = small_clip.weights / "clip_vit_b32.openai.bin"
    torch.save(own.state_dict(), file)
    assert find_clip("b32", "openai") == file
    images = torch.randn(1, 3, 224, 224)
    expected = own.encode_image(images)
    alone = timm.create_model("clip_vit_b32.openai", pretrained=True).eval()
    for visual in (zoo.create_clip("clip_vit_b32").model.visual, alone):
        assert torch.allclose(visual(images), expected, atol=1e-5)


@torch.no_grad()
def test_the_tag_decides_the_activation_of_both_towers(small_clip, tmp_path: Path):
    file = tmp_path / "weights.pt"
    torch.save(small_clip.original().state_dict(), file)
    images, words = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(WORDS)
    for tag in ("openai", "laion2b"):
        facts = SIZES["b32"].tags[tag]
        model = zoo.create_clip(f"clip_vit_b32.{tag}", pretrained=file).model
        same = small_clip.original(quick=facts.quick_gelu)
        other = small_clip.original(quick=not facts.quick_gelu)
        for encode, data in (("encode_image", images), ("encode_text", words)):
            features = getattr(model, encode)(data)
            assert torch.allclose(features, getattr(same, encode)(data), atol=1e-5)
            assert not torch.allclose(features, getattr(other, encode)(data), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"visual.positional_embedding": torch.zeros(145, 64)}, "trained with 145 tokens, this"),
        ({"text_projection": None}, 'no text tower of ViT-B-32: Missing key(s) in state_dict: "t'),
        ({"visual.ln_post.bias": None}, 'Missing key(s) in state_dict: "norm.bias"'),
        ({"extra": torch.zeros(1)}, "no text tower of ViT-B-32: Unexpected key(s) in state_dict"),
    ],
    ids=["size", "no text", "holed", "more"],
)
def test_a_file_of_another_model_is_refused(change: dict, match: str, small_clip, tmp_path: Path):
    state = {**small_clip.original().state_dict(), **change}
    file = tmp_path / "weights.pt"
    torch.save({k: v for k, v in state.items() if v is not None}, file)
    start = f"weights {str(file)!r} for clip_vit_b32.openai: "
    with pytest.raises(ValueError, match=re.escape(start) + ".*" + re.escape(match)):
        zoo.create_clip("clip_vit_b32", pretrained=file)


def test_the_fingerprint_is_that_of_the_towers_weights_alone(tiny: Build):
    """One in every lossless precision, whatever reduces, another for each weight and place."""
    tower = tiny("clip_vit_b16", depth=2).half().float()
    digits = fingerprint(tower)
    assert len(bytes.fromhex(digits)) == 8
    assert fingerprint(copy.deepcopy(tower).half()) == digits
    assert fingerprint(copy.deepcopy(tower).double()) == digits
    assert fingerprint(copy.deepcopy(tower).bfloat16()) != digits
    for options in ({"reduce_at": 0}, {"reduce_at": 1, "arch": "mlp"}):
        reduced = zoo.reduce(tower, method="patchrank", keep=0.5, **options)
        assert reduced.reducer.state_dict()
        assert fingerprint(reduced) == digits
    swapped = copy.deepcopy(tower)
    swapped.blocks = nn.Sequential(*reversed(swapped.blocks))
    known = {digits, fingerprint(swapped)}
    assert len(known) == 2
    for name, parameter in tower.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.5
        digits = fingerprint(tower)
        assert digits not in known, name
        known.add(digits)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "mlp", "width": 24, "reduce_at": [1, 3]}, "at block 3, .* scores before block 1"),
        ({"arch": "mlp", "width": 8}, "has another architecture"),
    ],
)
def test_unfilled_models(options: dict, match: str, tiny: Build, fitted: Path):
    with pytest.raises(ValueError, match=match):
        load_predictor(tiny(f"{NAME}.{TAG}", **options), PredictorFile.read(fitted))
    with pytest.raises(ValueError, match=r"predictor='.+' without .* add pretrained=True"):
        tiny(f"{NAME}.{TAG}", predictor=str(fitted))
