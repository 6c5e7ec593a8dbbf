"""Weights of open_clip, loaded through our path, give its features, for every size and tag."""

import os
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import pretrained
from open_clip.model import CLIP
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers.activations import QuickGELU
from torch import nn

import zoo
from zoo.sizes import SIZES

MODELS = {size: spec.open_clip for size, spec in SIZES.items() if spec.open_clip}
PAIRS = [(size, tag) for size in MODELS for tag in SIZES[size].tags]
# One tag of each size and activation: nothing else of a tag reaches the features.
DIFFERENT = list({(size, SIZES[size].tags[tag].quick_gelu): (size, tag) for size, tag in PAIRS}.values())
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}


def published(size: str, tag: str) -> dict:
    """Return what open_clip itself says about these weights."""
    theirs = SIZES[size].tags[tag].open_clip
    assert theirs in list_pretrained_tags_by_model(MODELS[size])
    return get_pretrained_cfg(MODELS[size], theirs)


@pytest.mark.parametrize(("size", "tag"), PAIRS)
def test_what_is_said_of_the_weights_is_open_clips(size: str, tag: str):
    theirs = published(size, tag)
    model = timm.create_model(f"clip_vit_{size}.{tag}", device="meta")
    assert model.pretrained_cfg["mean"] == tuple(theirs["mean"])
    assert model.pretrained_cfg["std"] == tuple(theirs["std"])
    assert model.pretrained_cfg["interpolation"] == theirs["interpolation"]
    quick = bool(theirs.get("quick_gelu"))
    assert SIZES[size].tags[tag].quick_gelu == quick
    assert {type(b.mlp.act) for b in model.blocks} == {QuickGELU if quick else nn.GELU}
    config = open_clip.get_model_config(MODELS[size])
    assert model.num_classes == config["embed_dim"]
    assert model.pretrained_cfg["input_size"][1] == config["vision_cfg"]["image_size"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "tag"), DIFFERENT)
@torch.no_grad()
def test_features_are_open_clips(size: str, tag: str, tmp_path: Path):
    """Exact with the activation of the tag, and clearly different with the other one."""
    torch.manual_seed(3)
    config = open_clip.get_model_config(MODELS[size])
    quick = bool(published(size, tag).get("quick_gelu"))
    same, other = (
        CLIP(config["embed_dim"], config["vision_cfg"], TEXT, quick_gelu=q).eval() for q in (quick, not quick)
    )
    other.load_state_dict(same.state_dict(), assign=True)
    file = tmp_path / "open_clip.safetensors"
    save_file({k: v.contiguous() for k, v in same.state_dict().items()}, file)
    overlay = {"file": str(file)}
    name = f"clip_vit_{size}.{tag}"
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    images = torch.randn(1, 3, 224, 224)
    features = model(images)
    assert torch.allclose(features, same.encode_image(images), atol=1e-4)
    assert (features - other.encode_image(images)).abs().max() > 1e-3


NAME = "clip_vit_b32_clsattn50"
WORDS = ["a photo of a cat.", "a zebra crossing"]


@pytest.mark.parametrize("name", ["clip_vit_b32", NAME, "clip_vit_b32_tome50.openai"])
@torch.no_grad()
def test_open_clip_makes_the_same_model(name: str, small_clip):
    small_clip.cached(small_clip.original())
    theirs, _, preprocess = open_clip.create_model_and_transforms(name, pretrained="openai")
    ours = zoo.create_clip(name)
    images = torch.randn(2, 3, 224, 224)
    words = open_clip.get_tokenizer(name)(WORDS)
    assert torch.equal(words, ours.tokenizer(WORDS))
    assert torch.equal(theirs.eval().encode_image(images), ours.model.encode_image(images))
    assert torch.equal(theirs.encode_text(words), ours.model.encode_text(words))
    assert repr(preprocess) == repr(ours.preprocess)


def test_models_without_weights_of_their_own_share_one_checkpoint(small_clip):
    """It is made again when the weights in the cache are others."""
    file = small_clip.cached(small_clip.original())
    for name in ("clip_vit_b32", NAME, "clip_vit_b32_tome50"):
        open_clip.create_model(name, pretrained="openai")
    (made,) = small_clip.open_clip.iterdir()
    assert {"visual.trunk.head.weight", "token_embedding.weight"} <= load_file(made).keys()
    os.utime(file, ns=(1, 1))
    open_clip.create_model(NAME, pretrained="openai")
    assert len(list(small_clip.open_clip.iterdir())) == 2


def test_open_clip_refuses_weights_of_another_activation(small_clip):
    match = "need another activation: give the model name 'clip_vit_b32_clsattn50.laion2b'"
    with pytest.raises(RuntimeError, match=re.escape(match)):
        open_clip.create_model(NAME, pretrained="laion2b")
    small_clip.cached(small_clip.original(quick=False), "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K")
    model = open_clip.create_model(f"{NAME}.laion2b", pretrained="laion2b").eval()
    images = torch.randn(1, 3, 224, 224)
    ours = zoo.create_clip(f"{NAME}.laion2b").model
    assert torch.equal(model.encode_image(images), ours.encode_image(images))


@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_open_clip_knows_every_name(name: str):
    size = zoo.MODELS[name].size
    for tag in SIZES[size].tags:
        config = open_clip.get_model_config(f"{name}.{tag}")
        assert config["vision_cfg"]["timm_model_name"] == f"{name}.{tag}"
        assert config["quick_gelu"] == SIZES[size].tags[tag].quick_gelu
        assert pretrained.is_pretrained_cfg(name, tag)
        assert pretrained.is_pretrained_cfg(f"{name}.{tag}", tag)
    assert open_clip.get_model_config(name)["vision_cfg"]["image_size"] == SIZES[size].image


MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "LA")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(300, 200), (97, 511), (224, 224), (31, 17)], ids=str)
def test_preprocessing_is_open_clips_pixel_for_pixel(mode: str, shape: tuple[int, int], small_clip):
    noise = torch.randint(0, 256, (*shape[::-1], 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(noise).convert(mode)
    _, _, theirs = open_clip.create_model_and_transforms("ViT-B-32")
    ours = zoo.create_clip("clip_vit_b32_tome50", pretrained=False).preprocess
    assert torch.equal(ours(image), theirs(image))


PAGE = Path(__file__).parents[2] / "docs" / "open_clip.md"


@torch.no_grad()
def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    model, tokenizer = names["model"].eval(), names["tokenizer"]
    ours = zoo.create_clip(names["name"])
    tokens = tokenizer(["a photo of a sneaker."])
    assert torch.equal(names["features"], ours.model.encode_text(tokens, normalize=True))
    images = torch.randn(2, 3, 196, 196)
    assert torch.equal(model.encode_image(images), ours.model.encode_image(images))
    assert repr(names["preprocess"]) == repr(ours.preprocess)
    assert model.encode_text(tokenizer(["a zebra crossing"])).isnan().all()  # never seen
