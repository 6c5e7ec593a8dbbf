"""What is said of weights that can't be had, and files that stand for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.weights import MissingWeightsError, UnusableWeightsError

REPO = "timm/vit_base_patch32_clip_224.openai"
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
VISION = {"layers": 4, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 64}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
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


@pytest.mark.parametrize("name", ["clip_vit_b32.openai", "clip_vit_b32_evit60.openai"])
def test_offline_with_nothing_cached(name: str, hub: Path):
    with pytest.raises(FileNotFoundError) as caught:
        timm.create_model(name, pretrained=True, **SMALL)
    said = str(caught.value)
    assert type(caught.value) is MissingWeightsError
    assert len(said.splitlines()) == 1
    assert said.startswith(f"no weights of {name}: not in the Hugging Face cache (wanted: ")
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
        assert way in said


def test_without_a_tag_the_default_is_named(hub: Path):
    with pytest.raises(
        FileNotFoundError, match=r"no weights of clip_vit_b16\.openai: .*patch16_cl"
    ):
        timm.create_model("clip_vit_b16", pretrained=True)


def test_another_file_name_of_the_hub_is_the_one_wanted(hub: Path):
    overlay = {"hf_hub_filename": "open_clip_model.safetensors"}
    with pytest.raises(FileNotFoundError, match=rf"wanted: {REPO}/open_clip_model\.safetensors"):
        timm.create_model("clip_vit_b32", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)


def test_no_network_is_told_like_being_offline(hub: Path, monkeypatch: pytest.MonkeyPatch):
    """Ask a port on which nobody listens; the client tries again, here without waiting."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
        constants.ENDPOINT, "http://127.0.0.1:9"
    )
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    match = r"no weights of clip_vit_b32\.openai: .*can't be reached \(.*refused\); run once"
    with pytest.raises(FileNotFoundError, match=match):
        timm.create_model("clip_vit_b32", pretrained=True, **SMALL)


def test_cached_weights_that_are_damaged_or_of_another_model(fill: Fill, original: CLIP):
    folder = fill(REPO, "model.safetensors", lambda path: save_file({"x": torch.ones(1)}, path))
    with pytest.raises(
        UnusableWeightsError, match=r"weights of clip_vit_b32\.openai can't be used"
    ):
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
def test_a_file_in_any_form_stands_for_the_hubs(
    form: str,
    original: CLIP,
    images: Tensor,
    hub: Path,
    tmp_path: Path,
    openai_archive: Callable[..., Path],
):
    path = tmp_path / "ViT-B-32.pt"
    if form == "OpenAI":
        openai_archive(half(original), path)
    else:
        state = {f"module.{k}": v for k, v in half(original).items()}
        torch.save({"epoch": 1, "state_dict": state}, path)
    told = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}, **SMALL}
    model = timm.create_model("clip_vit_b32.openai", **told).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)
    assert model.pretrained_cfg["file"] == str(path)
    assert "state_dict" not in model.pretrained_cfg
    given = {"state_dict": zoo.read_weights(path)}
    again = timm.create_model("clip_vit_b32.openai", **told | {"pretrained_cfg_overlay": given})
    assert torch.equal(again.eval()(images), model(images))
    assert "state_dict" not in again.pretrained_cfg


@torch.no_grad()
def test_a_file_in_the_users_cache_needs_no_argument(
    original: CLIP, images: Tensor, hub: Path, tmp_path: Path
):
    """In open_clip's form, and in timm's, which has no other side than the image's."""
    folder = tmp_path / "own" / "clip-patchrank" / "weights"
    folder.mkdir(parents=True)
    torch.save(half(original), folder / "clip_vit_b32.openai.pt")
    name = "clip_vit_b32_tome60.openai"
    model = timm.create_model(name, pretrained=True, keep=1.0, **SMALL).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)
    state = model.state_dict()
    (folder / "clip_vit_b32.openai.pt").unlink()
    save_file(state, folder / "clip_vit_b32.openai.safetensors")
    again = timm.create_model("clip_vit_b32", pretrained=True, **SMALL).eval()
    assert torch.equal(again(images), model(images))


def test_files_that_are_no_weights_or_of_another_tower(original: CLIP, hub: Path, tmp_path: Path):
    def load(path: Path) -> nn.Module:
        overlay = {"file": str(path)}
        return timm.create_model(
            "clip_vit_b32_evit60", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL
        )

    with pytest.raises(FileNotFoundError, match=r"weights file '.*absent\.pt': no such file"):
        load(tmp_path / "absent.pt")
    (tmp_path / "page.pt").write_text("<!doctype html>")
    with pytest.raises(ValueError, match=r"weights file '.*page\.pt' is a web page, not weights"):
        load(tmp_path / "page.pt")
    save_file({"text.weight": torch.ones(1)}, tmp_path / "other.pt")
    match = r"the weights of clip_vit_b32_evit60\.openai can't be used: .*Missing key"
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "other.pt")
