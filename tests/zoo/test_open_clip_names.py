"""The same models through open_clip, by name and tag."""

import os
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained
from PIL import Image
from safetensors.torch import load_file

import zoo
from zoo.sizes import SIZES

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
    small_clip.cached(
        small_clip.original(quick=False), "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    )
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
def test_the_pages_example_runs_and_gives_our_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
    assert (
        model.encode_text(tokenizer(["a zebra crossing"])).isnan().all()
    )  # never seen, so never guessed
