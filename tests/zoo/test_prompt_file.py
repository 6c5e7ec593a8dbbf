"""Files of prompts: what comes back, which tower and classes they serve, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

import zoo
from zoo.prompt_file import PromptFile, save_prompts, tune_command
from zoo.prompts import PromptShape
from zoo.weights import blocks_fingerprint

CLASSES = ("cat", "dog", "house")
FACTS: dict[str, Any] = {
    "model": "clip_vit_s14",
    "tag": "imgfocus_lit",
    "weights": "0" * 16,
    "width": 384,
    "classes": CLASSES,
    "dataset": "toy",
    "recipe": {"tokens": "vt", "count": 2},
    "provenance": {"shots": 4},
}


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        "classifier": F.normalize(torch.randn(3, 256, generator=generator), dim=-1),
        "logit_scale": torch.tensor(3.0),
        "visual": torch.randn(2, 5, 384, generator=generator),
        "context": torch.randn(1, 2, 5, 192, generator=generator),
    }
    return found | changes


@pytest.fixture
def file(tmp_path: Path) -> PromptFile:
    return save_prompts(tmp_path / "prompts.safetensors", tensors(), **FACTS)


@pytest.fixture(scope="module")
def weights() -> str:
    dense = timm.create_model("clip_vit_s14", pretrained=True)
    return blocks_fingerprint(dense.state_dict())


def test_what_is_written_is_read(file: PromptFile):
    assert file == PromptFile.read(file.path)
    assert {name: getattr(file, name) for name in FACTS} == FACTS
    assert file.shape == PromptShape(tokens=5, depth=2, classes=3, features=256)
    for name, tensor in tensors().items():
        assert torch.equal(file.load()[name], tensor)
    state = file.tensors(classify=True)
    assert state.keys() == {"prompts.tokens", "head.classes.weight"}
    expected = tensors()["classifier"] * torch.tensor(3.0).exp()
    assert torch.allclose(state["head.classes.weight"], expected)
    assert file.tensors(classify=False).keys() == {"prompts.tokens"}


def test_text_alone_has_no_visual_tokens(tmp_path: Path):
    told = {k: v for k, v in tensors().items() if k != "visual"}
    file = save_prompts(tmp_path / "t.safetensors", told, **FACTS)
    assert file.shape.tokens == 0
    assert file.tensors(classify=True).keys() == {"head.classes.weight"}


def test_nothing_is_pickled(file: PromptFile):
    with safe_open(file.path, framework="pt") as opened:
        assert json.loads(opened.metadata()["prompts"])["dataset"] == "toy"


@pytest.mark.parametrize(
    "name", ["clip_vit_s14", "clip_vit_s14_patchrank60", "clip_vit_s14_tome60"]
)
@torch.no_grad()
def test_timm_creates_a_tuned_model(name: str, weights: str, tmp_path: Path):
    path = tmp_path / "prompts.safetensors"
    file = save_prompts(path, tensors(), **{**FACTS, "weights": weights})
    model = timm.create_model(name, prompts=path).eval()
    assert isinstance(model, zoo.ReducedViT)
    images = torch.randn(2, 3, 196, 196)
    plain = timm.create_model(name, pretrained=True).eval()
    expected = zoo.add_prompts(plain, file)
    assert torch.equal(model(images), expected(images))
    assert model(images).shape == (2, 3)
    assert torch.equal(model.prompts(), tensors()["visual"])
    assert "prompts.safetensors" not in json.dumps(model._model_args)
    features = timm.create_model(name, prompts=str(path), num_classes=0).eval()
    assert features(images).shape == (2, 384)
    with pytest.raises(ValueError, match=r"num_classes=7: the prompts .* are for 3; leave it out"):
        timm.create_model(name, prompts=path, num_classes=7)


def test_refuses_other_towers(file: PromptFile, weights: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"tuned on clip_vit_s14.imgfocus_lit with weights 0{16}"):
        timm.create_model("clip_vit_s14", prompts=file.path)
    wider = save_prompts(tmp_path / "wide.safetensors", tensors(), **{**FACTS, "width": 768})
    with pytest.raises(ValueError, match=r"whose tokens have width 768, not 384; tune some"):
        timm.create_model("clip_vit_s14", prompts=wider.path)
    with pytest.raises(ValueError, match="a tuned model classifies"):
        zoo.create_clip("clip_vit_s14", prompts=file.path)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (CLASSES[:2], "are for 3 classes of toy, not for 2"),
        (("cat", "house", "dog"), "their class 1 is 'dog', not 'house'"),
    ],
)
def test_refuses_other_classes(file: PromptFile, classes: tuple[str, ...], words: str):
    file.require_classes(CLASSES)
    with pytest.raises(ValueError, match=words):
        file.require_classes(classes)


def test_refuses_what_holds_no_prompts(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no prompts at"):
        PromptFile.read(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="holds no prompts"):
        PromptFile.read(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="lacks the 'prompts' metadata"):
        PromptFile.read(tmp_path / "other.safetensors")


def test_the_command_that_mends_is_one(file: PromptFile):
    from harness.cli.parser import build_parser

    words = tune_command(file).split()[3:]
    args = build_parser().parse_args(words)
    assert (args.command, args.tokens, args.num_tokens) == ("fit prompts", "vt", 2)
    assert args.dataset == "toy"
