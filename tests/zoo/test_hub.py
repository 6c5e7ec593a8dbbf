"""What is message of weights that can't be had, and files that stand for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.weights import MissingWeightsError, UnusableWeightsError

REPO = "timm/vit_base_patch32_clip_224.openai"
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
VISION = {"layers": 4, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 64}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
Build = Callable[..., nn.Module]
Fill = Callable[[str, str, Callable[[Path], Any]], Path]


@pytest.fixture(scope="module")
def original() -> CLIP:
    """A small open_clip model with QuickGELU, its weights as exact as half precision is."""
    torch.manual_seed(3)
    model = CLIP(512, VISION, TEXT, quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.half().float()


def half(model: CLIP) -> dict[str, Tensor]:
    return {k: v.half().contiguous() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", ["clip_vit_b32.openai", "clip_vit_b32_evit60"])
def test_offline_with_nothing_cached(name: str, hub: Path):
    with pytest.raises(FileNotFoundError) as caught:
        timm.create_model(name, pretrained=True, **SMALL)
    message = str(caught.value)
    assert type(caught.value) is MissingWeightsError
    assert len(message.splitlines()) == 1
    full = f"{name.removesuffix('.openai')}.openai"
    assert message.startswith(f"no weights of {full}: not in the Hugging Face cache (wanted: ")
    for way in (
        f"{REPO}/model.safetensors",
        "run once where it can",
        "copy the cache",
        "pretrained_cfg_overlay=dict(file=PATH)",
        "local-dir:FOLDER",
        "put a file of these weights at",
        "clip-patchrank/weights/clip_vit_b32.openai{.safetensors,.pt,.pth,.bin}",
        "HF_HUB_OFFLINE",
    ):
        assert way in message


def test_another_file_name_of_the_hub_is_the_one_wanted(hub: Path):
    overlay = {"hf_hub_filename": "open_clip_model.safetensors"}
    with pytest.raises(FileNotFoundError, match=rf"wanted: {REPO}/open_clip_model\.safetensors"):
        timm.create_model("clip_vit_b32", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)


def test_no_network_is_told_like_being_offline(hub: Path, monkeypatch: pytest.MonkeyPatch):
    """Ask a port on which nobody listens; the client tries again, here without waiting."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    match = r"no weights of clip_vit_b32\.openai: .*can't be reached \(.*refused\); run once"
    with pytest.raises(FileNotFoundError, match=match):
        timm.create_model("clip_vit_b32", pretrained=True, **SMALL)


def test_cached_weights_that_are_damaged_or_of_another_model(fill: Fill):
    folder = fill(REPO, "model.safetensors", lambda path: save_file({"x": torch.ones(1)}, path))
    with pytest.raises(UnusableWeightsError, match=r"of clip_vit_b32\.openai can't be used"):
        timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)
    (blob,) = (folder / "blobs").iterdir()
    blob.write_bytes(b"<html>")
    with pytest.raises(UnusableWeightsError, match=r"can't be used: Error while deserializing"):
        timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)


def test_errors_of_arguments_keep_their_own_words(hub: Path):
    with pytest.raises(ValueError, match=r"clip_vit_b32 has no argument 'kep'"):
        timm.create_model("clip_vit_b32", pretrained=True, kep=1)
    with pytest.raises(RuntimeError, match=r"device"):
        timm.create_model("clip_vit_b32", pretrained=True, device="nowhere", **SMALL)


@pytest.mark.filterwarnings("ignore:.*jit.*:Warning")
@pytest.mark.parametrize("form", ["open_clip", "OpenAI"])
@torch.no_grad()
def test_a_file_in_any_form(form: str, original: CLIP, images: Tensor, hub: Path, tmp_path: Path, openai_archive: Any):
    path = tmp_path / "ViT-B-32.pt"
    if form == "OpenAI":
        openai_archive(half(original), path)
    else:
        state = {f"module.{k}": v for k, v in half(original).items()}
        torch.save({"epoch": 1, "state_dict": state}, path)
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}, **SMALL}
    model = timm.create_model("clip_vit_b32.openai", **options).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)
    assert model.pretrained_cfg["file"] == str(path)
    assert "state_dict" not in model.pretrained_cfg
    options["pretrained_cfg_overlay"] = {"state_dict": zoo.read_weights(path)}
    again = timm.create_model("clip_vit_b32.openai", **options)
    assert torch.equal(again.eval()(images), model(images))
    assert "state_dict" not in again.pretrained_cfg


def test_files_that_are_no_weights_or_of_another_tower(hub: Path, tmp_path: Path):
    (tmp_path / "page.pt").write_text("<!doctype html>")
    save_file({"text.weight": torch.ones(1)}, tmp_path / "other.pt")
    for name, error, match in (
        ("absent", FileNotFoundError, r"weights file '.*absent\.pt': no such file"),
        ("page", ValueError, r"weights file '.*page\.pt' is a web page, not weights"),
        ("other", ValueError, r"of clip_vit_b32_evit60\.openai can't be used: .*Missing key"),
    ):
        overlay = {"file": f"{tmp_path}/{name}.pt"}
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay, **SMALL}
        with pytest.raises(error, match=match):
            timm.create_model("clip_vit_b32_evit60", **options)


def timms(original: CLIP) -> dict[str, Tensor]:
    """Return the tower in timm's own names."""
    source = {"pretrained_cfg_overlay": {"state_dict": dict(original.state_dict())}, **SMALL}
    name = "vit_base_patch32_clip_quickgelu_224.openai"
    return half(timm.create_model(name, pretrained=True, **source))


LAYOUTS: dict[str, tuple[str, Callable[[CLIP, Path], Any]]] = {
    "timm": ("model.safetensors", lambda model, path: save_file(timms(model), path)),
    "open_clip": ("model.safetensors", lambda model, path: save_file(half(model), path)),
    "pickled": ("pytorch_model.bin", lambda model, path: torch.save(timms(model), path)),
}


@pytest.mark.parametrize(("name", "write"), LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_every_layout_gives_open_clips_features(
    name: str, write: Callable[..., Any], fill: Fill, original: CLIP, images: Tensor
):
    fill(REPO, name, lambda path: write(original, path))
    model = timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)


@pytest.mark.parametrize("method_", ["evit", "patchrank"])
@torch.no_grad()
def test_a_saved_model_in_the_cache(method_: str, tiny: Build, fill: Fill, images: Tensor, tmp_path: Path):
    model = tiny(f"clip_vit_b16_{method_}50.openai", reduce_at=[1])
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    for file in (tmp_path / "saved").iterdir():
        content = file.read_bytes()
        fill("someone/pruned", file.name, lambda path, content=content: path.write_bytes(content))
    for name in ("hf-hub:someone/pruned", "hf_hub:someone/pruned@main"):
        again = timm.create_model(name, pretrained=True).eval()
        assert repr(again) == repr(model)
        assert torch.equal(again(images), model(images))
    fill("someone/empty", "config.json", (tmp_path / "saved" / "config.json").replace)
    match = r"no weights of hf-hub:someone/empty: .* \(wanted: someone/empty/model.safetensors\)"
    with pytest.raises(FileNotFoundError, match=match):
        timm.create_model("hf-hub:someone/empty", pretrained=True)


@torch.no_grad()
def test_other_heads_and_sizes():
    dense = timm.create_model("clip_vit_s14", pretrained=True).eval()
    picture = torch.randn(1, 3, 196, 196)
    pooled = dense.forward_head(dense.forward_features(picture), pre_logits=True)
    headless = timm.create_model("clip_vit_s14", pretrained=True, num_classes=0).eval()
    assert torch.equal(headless(picture), pooled)
    other = timm.create_model("clip_vit_s14", pretrained=True, num_classes=3).eval()
    assert other(picture).shape == (1, 3)
    maps = timm.create_model("clip_vit_s14", pretrained=True, features_only=True).eval()
    assert all(m.shape == (1, 384, 14, 14) for m in maps(picture))
    large = timm.create_model("clip_vit_s14_random50", pretrained=True, img_size=224).eval()
    assert large.trace(torch.randn(1, 3, 224, 224)).final_tokens == 128


@pytest.mark.parametrize("outputs", [0, 3, 256])
@torch.no_grad()
def test_saved_and_back(outputs: int, tmp_path: Path):
    model = timm.create_model("clip_vit_s14_evit60", pretrained=True).eval()
    if outputs != model.num_classes:
        model.reset_classifier(outputs)
        model.set_input_size(img_size=224)
    picture = torch.randn(1, 3, *model.patch_embed.img_size)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(picture), model(picture))
