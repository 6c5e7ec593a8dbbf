"""open_clip's models by architecture and weights: both towers as open_clip itself has them."""

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from zoo.open_clip import load_open_clip

from zoo.clip import class_features
from zoo.weights import fingerprint

VISION = {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a small open_clip model, and its architecture known to open_clip as ``tiny``."""
    configs = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "tiny", CONFIG)
    monkeypatch.setitem(configs, "tiny-quickgelu", {**CONFIG, "quick_gelu": True})
    model = CLIP(**CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def checkpoint(model: nn.Module, kind: str, folder: Path) -> Path:
    state = model.state_dict()
    if kind == "safetensors":
        save_file(state, folder / "w.safetensors")
        return folder / "w.safetensors"
    if kind == "training":
        state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(state, folder / "w.pt")
    return folder / "w.pt"


@pytest.mark.parametrize("kind", ["safetensors", "plain", "training"])
@torch.no_grad()
def test_an_open_clip_file_gives_both_towers(
    kind: str, theirs: Any, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
):
    file = checkpoint(theirs, kind, tmp_path)
    (model, preprocess, tokenizer), name = load_open_clip(f"tiny/{file}")
    assert name == f"tiny/{file.name}"
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert not model.training
    tokens = tokenizer(["a cat", "a dog"])
    assert torch.equal(model.encode_text(tokens), theirs.encode_text(tokens))
    assert torch.equal(model.logit_scale, theirs.logit_scale)
    classes = class_features(model, tokenizer, ["cat", "dog", "house"], ["a photo of a {}."])
    assert torch.allclose(classes.norm(dim=1), torch.ones(3))
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    wanted = open_clip.create_model_from_pretrained("tiny", str(file))[1](image)
    assert torch.equal(preprocess(image), wanted)
    monkeypatch.chdir(tmp_path)
    again, _ = load_open_clip(f"tiny/{file.name}")
    assert fingerprint(again.model.visual) == fingerprint(model.visual)


@torch.no_grad()
def test_a_tag_brings_its_activation_and_preprocessing(
    theirs: Any, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
):
    """Loaded with plain GELU, QuickGELU's weights would give other features and no error."""
    file = str(checkpoint(theirs, "safetensors", tmp_path))
    quick = {"file": file, "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (1.0, 1.0, 1.0)}
    tags = {"openai": quick, "laion2b_s1": {"file": file}}
    for arch in ("tiny", "tiny-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, tags)
    other = CLIP(**CONFIG, quick_gelu=True).eval()
    other.load_state_dict(theirs.state_dict())
    for arch in ("tiny", "tiny-quickgelu"):
        (model, preprocess, tokenizer), _ = load_open_clip(f"{arch}/openai")
        assert torch.allclose(model.encode_image(images), other.encode_image(images), atol=1e-5)
        tokens = tokenizer(["a cat"])
        assert torch.allclose(model.encode_text(tokens), other.encode_text(tokens), atol=1e-5)
        white = preprocess(Image.new("RGB", (40, 40), "white"))
        assert torch.allclose(white[:, 0, 0], torch.tensor([0.5, 0.6, 0.7]))
    (model, *_), name = load_open_clip("tiny/LAION2B-s1")
    assert name == "tiny/laion2b_s1"
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    with pytest.raises(ValueError, match=r"'laion2b_s1' were trained without; use tiny/laion2b_s1"):
        load_open_clip("tiny-quickgelu/laion2b_s1")
    with pytest.raises(ValueError, match=r"weights 'opnai' of .*: did you mean 'openai'"):
        load_open_clip("tiny/opnai")


@torch.no_grad()
def test_a_folder_that_open_clip_wrote(theirs: Any, tmp_path: Path, images: Tensor):
    told = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    (model, preprocess, _), name = load_open_clip(f"local-dir:{tmp_path}")
    assert name == f"local-dir:{tmp_path.name}"
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert preprocess(Image.new("RGB", (40, 40)))[0, 0, 0] == pytest.approx(-0.5)


def test_what_open_clip_has_and_we_cannot_convert(
    theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = {**CONFIG, "vision_cfg": {**VISION, "attentional_pool": True}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "pooled", config)
    file = checkpoint(CLIP(**config), "safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"model 'pooled/.*': attentional_pool: this tower"):
        load_open_clip(f"pooled/{file}")


class Evil:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def unpickle(file: Path) -> Any:
    return pickle.loads(file.read_bytes())


def test_pickles_are_not_executed(theirs: Any, tmp_path: Path):
    mark = tmp_path / "mark"
    torch.save({"state_dict": Evil(mark)}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil(mark), protocol=2))
    for file, run in (("new.pt", partial(torch.load, weights_only=False)), ("old.pt", unpickle)):
        with pytest.raises(
            ValueError,
            match=r"the weights of tiny/.* can't be used: .* is never|and could run code",
        ):
            load_open_clip(f"tiny/{tmp_path}/{file}")
        assert not mark.exists()
        run(tmp_path / file)
        assert mark.exists()
        mark.unlink()


@pytest.mark.filterwarnings("ignore:.*jit.*:Warning")
@torch.no_grad()
def test_openais_archives_are_read_without_running_them(
    theirs: Any, tmp_path: Path, openai_archive: Callable[..., Path]
):
    file = openai_archive(theirs.state_dict(), tmp_path / "jit.pt")
    images = torch.randn(2, 3, 32, 32)
    (clip, _, _), _ = load_open_clip(f"tiny/{file}")
    (again, _, _), _ = load_open_clip(f"tiny/{checkpoint(theirs, 'safetensors', tmp_path)}")
    assert torch.equal(clip.encode_image(images), again.encode_image(images))


def test_weights_that_do_not_fit_or_are_cut_short(theirs: Any, tmp_path: Path):
    file = checkpoint(theirs, "safetensors", tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"the weights of tiny/.* can't be used: .* is cut short"):
        load_open_clip(f"tiny/{file}")
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"the weights of tiny/.* can't be used: "):
        load_open_clip(f"tiny/{file}")


def test_folders_that_hold_no_model(theirs: Any, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no open_clip_config.json there; open_clip's"):
        load_open_clip(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(ValueError, match=r"the weights of .* can't be used: Required pretrained"):
        load_open_clip(f"local-dir:{tmp_path}")
