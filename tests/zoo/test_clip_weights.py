"""Both towers of CLIP from one file, wherever it lies."""

import re
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

import zoo
from zoo.sizes import SIZES
from zoo.weights import SUFFIXES, find_clip

NAME = "clip_vit_b32_clsattn50"
WORDS = ["a photo of a cat.", "a zebra crossing"]


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


@torch.no_grad()
def test_a_reduced_model_has_the_same_towers(small_clip):
    small_clip.cached(small_clip.original())
    dense, pruned = (zoo.create_clip(n).model for n in ("clip_vit_b32.openai", NAME))
    images = torch.randn(2, 3, 224, 224)
    again = zoo.reduce(dense.visual, method="clsattn", keep=0.5)
    assert torch.equal(pruned.visual(images), again(images))
    assert pruned.visual.trace(images).final_tokens == round(0.5 * 49)
    words = open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert torch.equal(pruned.encode_text(words), dense.encode_text(words))


@pytest.mark.parametrize(
    "kind", ["safetensors", "state dict", "training checkpoint", "custom text"]
)
@torch.no_grad()
def test_a_file_serves_as_well(kind: str, small_clip, tmp_path: Path):
    theirs = small_clip.original()
    state = theirs.state_dict()
    file = tmp_path / "weights.pt"
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    elif kind == "training":
        names = {f"module.{k}": v for k, v in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": names}, file)
    elif kind == "custom text":
        towers = ("visual.", "logit_scale")
        torch.save({k if k.startswith(towers) else f"text.{k}": v for k, v in state.items()}, file)
    else:
        torch.save({k: v.half() for k, v in state.items()}, file)
        theirs = theirs.half().float()
    model = zoo.create_clip("clip_vit_b32.openai", pretrained=file).model
    images, words = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert torch.allclose(model.encode_text(words), theirs.encode_text(words), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@torch.no_grad()
def test_a_file_laid_into_the_cache_is_taken_before_the_hub(
    suffix: str, small_clip, tmp_path: Path
):
    small_clip.cached(small_clip.original())
    own = small_clip.original()
    own.visual.proj.mul_(2)
    small_clip.weights.mkdir(parents=True)
    file = small_clip.weights / f"clip_vit_b32.openai{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write({k: v.contiguous() for k, v in own.state_dict().items()}, file)
    assert find_clip("b32", "openai") == file
    images = torch.randn(1, 3, 224, 224)
    wanted = own.encode_image(images)
    assert torch.allclose(
        zoo.create_clip("clip_vit_b32").model.encode_image(images), wanted, atol=1e-5
    )
    alone = timm.create_model("clip_vit_b32.openai", pretrained=True).eval()
    assert torch.allclose(alone(images), wanted, atol=1e-5)


@torch.no_grad()
def test_the_tag_decides_the_activation_of_both_towers(small_clip, tmp_path: Path):
    file = tmp_path / "weights.pt"
    torch.save(small_clip.original().state_dict(), file)
    images, words = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(WORDS)
    for tag, facts in SIZES["b32"].tags.items():
        model = zoo.create_clip(f"clip_vit_b32.{tag}", pretrained=file).model
        same, other = (
            small_clip.original(quick=q) for q in (facts.quick_gelu, not facts.quick_gelu)
        )
        for encode, data in (("encode_image", images), ("encode_text", words)):
            found = getattr(model, encode)(data)
            assert torch.allclose(found, getattr(same, encode)(data), atol=1e-5)
            assert not torch.allclose(found, getattr(other, encode)(data), atol=1e-4)


def test_without_weights_both_towers_are_random(small_clip):
    first, second = (zoo.create_clip("clip_vit_b32", pretrained=False).model for _ in range(2))
    assert not torch.equal(first.visual.head.weight, second.visual.head.weight)
    words = open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert not torch.equal(first.encode_text(words), second.encode_text(words))


def test_without_weights_anywhere_the_ways_to_supply_them_are_told(small_clip):
    wanted = "no weights of clip_vit_b32.openai (timm/vit_base_patch32_clip_224.openai/open_clip_"
    with pytest.raises(FileNotFoundError, match=re.escape(wanted)) as caught:
        zoo.create_clip("clip_vit_b32")
    assert str(small_clip.weights / "clip_vit_b32.openai") in str(caught.value)
    with pytest.raises(RuntimeError, match=re.escape(wanted)):
        open_clip.create_model("clip_vit_b32", pretrained="openai")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"visual.positional_embedding": torch.zeros(145, 64)}, "trained with 145 tokens, this"),
        ({"visual.positional_embedding": None}, "no image tower: 'visual.positional_embedding' is"),
        ({"text_projection": None}, 'no text tower of ViT-B-32: Missing key(s) in state_dict: "t'),
        ({"visual.ln_post.bias": None}, 'Missing key(s) in state_dict: "norm.bias"'),
        ({"ln_final.bias": torch.zeros(65)}, "no text tower of ViT-B-32: size mismatch for ln_fi"),
        (
            {"extra": torch.zeros(1)},
            'no text tower of ViT-B-32: Unexpected key(s) in state_dict: "',
        ),
    ],
    ids=["size", "no image", "no text", "holed", "width", "more"],
)
def test_a_file_of_another_model_is_refused(change: dict, match: str, small_clip, tmp_path: Path):
    state = {**small_clip.original().state_dict(), **change}
    file = tmp_path / "weights.pt"
    torch.save({k: v for k, v in state.items() if v is not None}, file)
    start = f"weights {str(file)!r} for clip_vit_b32.openai: "
    with pytest.raises(ValueError, match=re.escape(start) + ".*" + re.escape(match)):
        zoo.create_clip("clip_vit_b32", pretrained=file)


def test_the_embedded_size_takes_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="clip_vit_s14 has no weights but the embedded ones"):
        zoo.create_clip("clip_vit_s14", pretrained=tmp_path / "weights.pt")
