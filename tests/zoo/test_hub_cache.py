"""pretrained=True through a Hugging Face cache that is fabricated here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.weights import blocks_fingerprint

REPO = "timm/vit_base_patch32_clip_224.openai"
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
VISION = {"layers": 4, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 64}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
METHODS = ("clsattn", "evit", "random", "tome")
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


def half(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.half().contiguous() for k, v in model.state_dict().items()}


def timms(original: CLIP) -> dict[str, Tensor]:
    """Return the tower in timm's own names."""
    source = {"state_dict": dict(original.state_dict())}
    theirs = timm.create_model(
        "vit_base_patch32_clip_quickgelu_224.openai",
        pretrained=True,
        pretrained_cfg_overlay=source,
        **SMALL,
    )
    return half(theirs)


LAYOUTS: dict[str, tuple[str, Callable[[CLIP, Path], Any]]] = {
    "timm": ("model.safetensors", lambda model, path: save_file(timms(model), path)),
    "open_clip": ("model.safetensors", lambda model, path: save_file(half(model), path)),
    "pickled": ("pytorch_model.bin", lambda model, path: torch.save(timms(model), path)),
}


@pytest.fixture(params=LAYOUTS)
def cached(request: pytest.FixtureRequest, fill: Fill, original: CLIP) -> str:
    name, write = LAYOUTS[request.param]
    fill(REPO, name, lambda path: write(original, path))
    return request.param


@torch.no_grad()
def test_the_dense_tower_gives_open_clips_features(cached: str, original: CLIP, images: Tensor):
    model = timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)


@pytest.mark.parametrize("cached", ["timm"], indirect=True)
@pytest.mark.parametrize("method_", METHODS)
@torch.no_grad()
def test_reduced_names_load_the_same_weights(
    cached: str, method_: str, original: CLIP, images: Tensor
):
    name = f"clip_vit_b32_{method_}60.openai"
    at = {} if method_ == "tome" else {"reduce_at": [1]}
    whole = timm.create_model(name, pretrained=True, keep=1.0, **at, **SMALL).eval()
    assert torch.allclose(whole(images), original.encode_image(images), atol=1e-4)
    short = timm.create_model(name, pretrained=True, **at, **SMALL).eval()
    assert short.trace(images).final_tokens == round(0.6 * 64)
    assert not torch.allclose(short(images), whole(images), atol=1e-3)


def predictor_of(model: zoo.ReducedViT, weights: str, path: Path) -> Path:
    prefix = "reducer.predictor."
    tensors = {k: v for k, v in model.state_dict().items() if k.startswith(prefix)}
    facts = {
        **{"model": "clip_vit_b32", "tag": "openai", "block": 1, "weights": weights},
        "options": {"arch": "mlp", "width": 16},
    }
    plain = {k.removeprefix(prefix): v.contiguous() for k, v in tensors.items()}
    save_file(plain, path, metadata={"predictor": json.dumps(facts)})
    return path


@pytest.mark.parametrize("cached", ["open_clip"], indirect=True)
@torch.no_grad()
def test_patchrank_wants_a_predictor_for_these_weights(cached: str, images: Tensor, tmp_path: Path):
    name, at = "clip_vit_b32_patchrank60.openai", {"reduce_at": [1], **SMALL}
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b32\.openai at block"):
        timm.create_model(name, pretrained=True, **at)
    source = timm.create_model(name, arch="mlp", width=16, **at).eval()
    dense = timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)
    weights = blocks_fingerprint(dense.state_dict())
    path = predictor_of(source, weights, tmp_path / "p.safetensors")
    model = timm.create_model(name, pretrained=True, predictor=str(path), **at).eval()
    assert model.trace(images).final_tokens == round(0.6 * 64)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, dense.blocks[3].mlp.fc1.weight)
    assert all(
        torch.equal(v, source.reducer.state_dict()[k])
        for k, v in model.reducer.state_dict().items()
    )
    other = predictor_of(source, "0" * 16, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"with weights 0{16}, these are [0-9a-f]{16}; fit one"):
        timm.create_model(name, pretrained=True, predictor=str(other), **at)


@pytest.mark.parametrize("method_", ["evit", "patchrank"])
@torch.no_grad()
def test_a_saved_pruned_model_comes_back_from_the_cache_and_from_a_folder(
    method_: str, tiny: Callable[..., nn.Module], fill: Fill, images: Tensor, tmp_path: Path
):
    model = tiny(f"clip_vit_b16_{method_}50.openai", reduce_at=[1])
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    for file in (tmp_path / "saved").iterdir():
        fill(
            "someone/pruned", file.name, lambda path, file=file: path.write_bytes(file.read_bytes())
        )
    for name in (
        "hf-hub:someone/pruned",
        "hf_hub:someone/pruned@main",
        f"local-dir:{tmp_path}/saved",
    ):
        again = timm.create_model(name, pretrained=True).eval()
        assert repr(again) == repr(model)
        assert torch.equal(again(images), model(images))
    fill("someone/empty", "config.json", (tmp_path / "saved" / "config.json").replace)
    wanted = r"no weights of hf-hub:someone/empty: .* \(wanted: someone/empty/model.safetensors\)"
    with pytest.raises(FileNotFoundError, match=wanted):
        timm.create_model("hf-hub:someone/empty", pretrained=True)


@pytest.mark.slow
def test_the_whole_tower_by_the_environment_alone(fill: Fill, hub: Path, tmp_path: Path):
    """ViT-B/32 in half precision, open_clip's names, in a process that knows only the cache."""
    with torch.device("meta"):
        shapes = CLIP(512, {**VISION, "layers": 12, "width": 768, "head_width": 64}, TEXT)
    sizes = {k: v.shape for k, v in shapes.state_dict().items()}
    sizes["visual.conv1.weight"] = (768, 3, 32, 32)
    sizes["visual.positional_embedding"] = (50, 768)
    state = {k: 0.02 * torch.randn(shape, dtype=torch.float16) for k, shape in sizes.items()}
    fill(REPO, "model.safetensors", lambda path: save_file(state, path))
    code = (
        "import timm, torch, zoo\n"
        "for name, left in (('', 49), ('_evit60', 29), ('_tome60', 29)):\n"
        "    model = timm.create_model(f'clip_vit_b32{name}.openai', pretrained=True).eval()\n"
        "    trace = model.trace(torch.zeros(1, 3, 224, 224))\n"
        "    assert trace.final_tokens == left, trace.final_tokens\n"
        "    print(model.blocks[11].mlp.fc2.weight[5, 6].item())\n"
    )
    asked = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weight = state["visual.transformer.resblocks.11.mlp.c_proj.weight"][5, 6].item()
    assert [float(line) for line in done.stdout.split()] == [weight] * 3
