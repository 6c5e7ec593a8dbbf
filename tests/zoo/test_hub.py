"""What is said of weights that can't be had, and files that stand for them."""

import http.server
import re
import socket
import threading
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
import zoo.loading.open_clip
import zoo.loading.weights
from zoo.loading.weights import MissingWeightsError, UnusableWeightsError

REPO = "timm/vit_base_patch32_clip_224.openai"
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
Build = Callable[..., nn.Module]
Fill = Callable[[str, str, Callable[[Path], Any]], Path]


def test_offline_with_nothing_cached(hub: Path):
    with pytest.raises(MissingWeightsError, match=r"^no weights of clip_vit_b32_evit60\.openai: .*HF_HUB_OFFLINE"):
        timm.create_model("clip_vit_b32_evit60", pretrained=True, **SMALL)


@pytest.fixture
def online(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the hub be at an address, whatever is asked of its client; a second request of it fails the test."""

    def at(address: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)

    def tries_again(*args: object, **more: object) -> None:
        raise AssertionError("the client is asked")

    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", tries_again)
    monkeypatch.setattr("zoo.loading.weights.PROBE_S", 0.5)
    return at


LOADERS: dict[str, Callable[[], object]] = {
    "clip_vit_b32.openai": lambda: timm.create_model("clip_vit_b32", pretrained=True, **SMALL),
    "clip_vit_b32.laion2b": lambda: zoo.create_clip("clip_vit_b32.laion2b"),
    "ViT-B-32/openai": lambda: zoo.loading.open_clip.load_open_clip("ViT-B-32/openai"),
    "hf-hub:nobody/nothing": lambda: zoo.loading.open_clip.load_open_clip("hf-hub:nobody/nothing"),
}


@pytest.mark.parametrize(("name", "silent"), [*((name, False) for name in LOADERS), ("clip_vit_b32.openai", True)])
def test_without_a_network_one_short_question_is_asked(
    name: str, silent: bool, online: Callable[[str], None], caplog: pytest.LogCaptureFixture
):
    """At a port on which nobody listens, and at one that never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        online(f"http://127.0.0.1:{server.getsockname()[1]}")
        why = "(no answer within 0.5 s|timed out)" if silent else ".*refused"
        with pytest.raises(MissingWeightsError, match=rf"^no weights of {re.escape(name)}: .* \({why}\)"):
            LOADERS[name]()
    assert not caplog.records


def test_of_cached_weights_nothing_is_asked(online: Callable[[str], None], fill: Fill, monkeypatch):
    online("http://127.0.0.1:9")
    monkeypatch.setattr("zoo.loading.weights.get_session", None)
    fill(REPO, "open_clip_model.safetensors", lambda path: save_file({"x": torch.ones(1)}, path))
    assert zoo.loading.weights.find_clip("b32", "openai").name == "open_clip_model.safetensors"
    with zoo.loading.weights.loading("any", "", f"{REPO}@main", ["open_clip_model.safetensors"]):
        pass
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with zoo.loading.weights.loading("any", "", "nobody/nothing", ["any"]):  # the client refuses by itself
        pass


def test_a_hub_that_answers_is_asked_for_the_file(online: Callable[[str], None]):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request).start()
        online(f"http://127.0.0.1:{server.server_port}/nothing")
        with pytest.raises(MissingWeightsError, match="the client is asked"):
            zoo.loading.weights.find_clip("b32", "openai")


def test_a_missing_predictor_is_told_before_weights_are_fetched(online: Callable[[str], None]):
    online("http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b32\.openai at block 3"):
        zoo.create_clip("clip_vit_b32_patchrank60")
    with pytest.raises(FileNotFoundError, match=r"at block 3") as caught:
        zoo.create_clip("clip_vit_b32_patchrank60", reduce_at=[3, 5], width=9)
    assert caught.value.wanted.facts["options"]["width"] == 9
    with pytest.raises(FileNotFoundError, match=r"no weights of clip_vit_b32\.openai"):
        zoo.create_clip("clip_vit_b32_evit60")


def test_cached_weights_that_are_damaged_or_of_another_model(fill: Fill):
    folder = fill(REPO, "model.safetensors", lambda path: save_file({"x": torch.ones(1)}, path))
    with pytest.raises(UnusableWeightsError, match=r"of clip_vit_b32\.openai can't be used"):
        timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)
    (blob,) = (folder / "blobs").iterdir()
    blob.write_bytes(b"<html>")
    with pytest.raises(UnusableWeightsError, match=r"can't be used: Error while deserializing"):
        timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_weights_in_timms_names_give_open_clips_features(name: str, fill: Fill, images: Tensor):
    vision = {"layers": 4, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 64}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
    original = CLIP(512, vision, text, quick_gelu=True).eval()
    for parameter in original.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    original = original.half().float()  # weights as exact as half precision is
    source = {"pretrained_cfg_overlay": {"state_dict": dict(original.state_dict())}, **SMALL}
    timms = timm.create_model("vit_base_patch32_clip_quickgelu_224.openai", pretrained=True, **source)
    state = {k: v.half().contiguous() for k, v in timms.state_dict().items()}
    save = save_file if name.endswith("safetensors") else torch.save
    fill(REPO, name, lambda path: save(state, path))
    model = timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)


@torch.no_grad()
def test_a_saved_model_in_the_cache(tiny: Build, fill: Fill, images: Tensor, tmp_path: Path):
    model = tiny("clip_vit_b16_patchrank50.openai", reduce_at=[1])
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    for file in (tmp_path / "saved").iterdir():
        content = file.read_bytes()
        fill("someone/pruned", file.name, lambda path, content=content: path.write_bytes(content))
    again = timm.create_model("hf_hub:someone/pruned@main", pretrained=True).eval()
    torch.testing.assert_close(again(images), model(images))
    fill("someone/empty", "config.json", (tmp_path / "saved" / "config.json").replace)
    with pytest.raises(FileNotFoundError, match="no weights of hf-hub:someone/empty"):
        timm.create_model("hf-hub:someone/empty", pretrained=True)


@torch.no_grad()
def test_other_heads_and_sizes():
    def make(name: str = "clip_vit_s14", **options: Any) -> nn.Module:
        return timm.create_model(name, pretrained=True, **options).eval()

    dense, picture = make(), torch.randn(1, 3, 196, 196)
    pooled = dense.forward_head(dense.forward_features(picture), pre_logits=True)
    torch.testing.assert_close(make(num_classes=0)(picture), pooled)
    assert make(num_classes=3)(picture).shape == (1, 3)
    assert all(m.shape == (1, 384, 14, 14) for m in make(features_only=True)(picture))
    assert make("clip_vit_s14_random50", img_size=224).trace(torch.randn(1, 3, 224, 224)).final_tokens == 128
