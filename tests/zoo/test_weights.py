"""Files of weights, others refused; two towers in one joint space: whose weights they have, and the embedded ones."""

import copy
import math
import pickle
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from lively import Build
from open_clip.transformer import TextTransformer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoo
from zoo.core.digests import fingerprint
from zoo.core.files import EMBEDDED
from zoo.loading.clip import Clip, CompactText, class_features, create_clip, tokenizer
from zoo.loading.sizes import SIZES
from zoo.loading.weights import find_clip, read_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*:Warning")


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {"visual.proj": torch.randn(4, 3).half(), "ln.weight": torch.randn(400)}


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVED: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": save_file,
    "torch.save": torch.save,
    "before torch 1.6": old_format,
    "parameters": lambda s, p: torch.save({k: nn.Parameter(v) for k, v in s.items()}, p),
    "training checkpoint": lambda s, p: torch.save({"state_dict": {f"module.{k}": v for k, v in s.items()}}, p),
    "timm's": lambda s, p: torch.save({"model": s, "arch": "vit"}, p),
    "compiled": lambda s, p: torch.save({f"module._orig_mod.{k}": v for k, v in s.items()}, p),
    "OpenAI's settings": lambda s, p: torch.save({**s, "vocab_size": torch.tensor(49408)}, p),
}


@pytest.mark.parametrize("how", SAVED)
def test_the_content_decides_not_the_suffix(how: str, state: dict, tmp_path: Path):
    SAVED[how](state, tmp_path / "w.pt")
    for suffix in ("pt", "safetensors", "x"):
        path = (tmp_path / "w.pt").rename(tmp_path / f"w.{suffix}")
        weights = read_weights(str(path))
        torch.testing.assert_close(weights, state, rtol=0, atol=0)
        assert all(type(value) is Tensor and not value.requires_grad for value in weights.values())
        path.rename(tmp_path / "w.pt")


@pytest.mark.parametrize(("content", "why"), [
    (b"", r"starts with b''"),
    (b"<!DOCTYPE html><html>", r"is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid s", r"git lfs pull"),
    (pickle.dumps({"a": 1}), r"can't be read .*safetensors"),
    (b"\x08\x07\x12\x07pytorch", r"holds no weights .*safetensors"),
    (b"\x10\x00\x00\x00\x00\x00\x00\x00{", r"cut short"),
    (b"PK\x03\x04", r"can't be read .*get it again"),
    ({}, r"no state dict but dict"),
    ({"a": torch.ones(1).to_sparse()}, r"'a' is Tensor"),
    ({"state_dict": {"a": {"b": torch.ones(1)}}}, r"'a' is dict"),
    ({"a.weight": torch.ones(2, dtype=torch.int8)}, r"'a.weight' of torch.int8"),
    ({"a.weight": torch.tensor([1.0, torch.nan])}, r"'a.weight' that are NaN or infinite"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")  # of torch 2.15
def test_files_that_hold_no_weights(content: Any, why: str, tmp_path: Path):
    if isinstance(content, bytes):
        (tmp_path / "w.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"^weights file '.*w\.pt' .*{why}"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match=r"weights file '.*': no such file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("save", [torch.save, old_format])
def test_nothing_in_a_file_is_run(save: Callable[..., None], tmp_path: Path, evil: Any):
    path = tmp_path / "w.pt"
    save({"state_dict": evil}, path)
    with pytest.raises(ValueError, match=r"names '.*', .*; nothing of it was run"):
        read_weights(path)
    assert not evil.mark.exists()
    torch.load(path, weights_only=False)
    assert evil.mark.exists()
    save(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"):
        read_weights(path)


def test_an_archive_with_code_is_refused_with_the_line_that_converts_it(state: dict, tmp_path: Path):
    path = tmp_path / "ViT's.pt"
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.register_buffer("input_resolution", torch.tensor(224))
    torch.jit.save(torch.jit.script(model), path)
    with pytest.raises(ValueError, match=r"TorchScript.*nothing in it was run") as caught:
        read_weights(path)
    command = shlex.split(str(caught.value).partition("convert it: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    weights = read_weights(path.with_suffix(".safetensors"))
    expected = {k: v for k, v in model.state_dict().items() if k != "input_resolution"}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("save", [torch.save, old_format, save_file])
def test_files_cut_short_or_changed_give_tensors_or_an_error(save: Callable[..., None], state: dict, tmp_path: Path):
    path = tmp_path / "w.pt"
    save({name: tensor[:4] for name, tensor in state.items()}, path)
    whole = path.read_bytes()
    for count in (4, len(whole) // 3):
        path.write_bytes(whole[:-count])
        with pytest.raises(ValueError, match=r"w\.pt' .*; get it again"):
            read_weights(path)
    draw = random.Random(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            content[draw.randrange(len(content))] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(content)
        try:
            weights = read_weights(path)
        except ValueError as error:
            assert str(error).startswith(f"weights file {str(path)!r} ")  # noqa: PT017
            refused += 1
        else:
            assert all(type(tensor) is Tensor for tensor in weights.values())
    assert 5 < refused < 100


@torch.no_grad()
def test_a_file_of_a_custom_text_model_serves_as_well(small_clip, tmp_path: Path):
    state, towers = small_clip.original().half().state_dict(), ("visual.", "logit_scale")
    file, images = tmp_path / "weights.pt", torch.randn(1, 3, 224, 224)
    torch.save({k if k.startswith(towers) else f"text.{k}": v for k, v in state.items()}, file)
    words = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat.", "a zebra crossing"])
    for tag in ("laion2b", "openai"):
        model = zoo.create_clip(f"clip_vit_b32.{tag}", pretrained=file).model
        for quick in (True, False):
            theirs, same = small_clip.original(quick=quick).half().float(), quick == SIZES["b32"].tags[tag].quick_gelu
            for encode, data in (("encode_image", images), ("encode_text", words)):
                features = getattr(model, encode)(data)
                assert torch.allclose(features, getattr(theirs, encode)(data), atol=1e-5 if same else 1e-4) == same
    with pytest.raises(ValueError, match="clip_vit_s14 has no weights but the embedded ones"):
        zoo.create_clip("clip_vit_s14", pretrained=file)
    for change, match in (
        ({"visual.positional_embedding": torch.zeros(145, 64)}, "trained with 145 tokens, this"),
        ({"text.text_projection": None}, r"no text tower of ViT-B-32: Missing key\(s\) in state_dict: \"t"),
        ({"visual.ln_post.bias": None}, r"Missing key\(s\) in state_dict: \"norm.bias\""),
    ):
        changed = torch.load(file, weights_only=True) | change
        torch.save({name: value for name, value in changed.items() if value is not None}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=rf"other\.pt' for clip_vit_b32\.openai: .*{match}"):
            zoo.create_clip("clip_vit_b32", pretrained=tmp_path / "other.pt")


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


def test_the_fingerprint_is_that_of_the_towers_weights_alone(tiny: Build):
    """One in every lossless precision, whatever reduces, another for each weight and place."""
    tower = tiny("clip_vit_b16", depth=2).half().float()
    digits = fingerprint(tower)
    assert fingerprint(copy.deepcopy(tower).half()) == digits
    assert fingerprint(copy.deepcopy(tower).double()) == digits
    assert fingerprint(copy.deepcopy(tower).bfloat16()) != digits
    assert fingerprint(zoo.reduce(tower, method="patchrank", keep=0.5, reduce_at=1)) == digits
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


GEOMETRY = {"context_length": 12, "width": 16, "heads": 2, "layers": 1, "output_dim": 7}
TEMPLATES = ("a photo of a {}.", "an icon of a {}", "{}")
CLASSES = ("cat", "dog", "photo of a dog")


@pytest.fixture
def text() -> CompactText:
    torch.manual_seed(2)
    known = tokenizer(12)([t.format(c) for t in TEMPLATES for c in CLASSES]).unique()
    return CompactText(known.tolist(), **GEOMETRY).eval()


@pytest.fixture
def model(tiny: Build, text: CompactText) -> Clip:
    return Clip(tiny("clip_vit_b16"), text, math.log(50.0)).eval()


@torch.no_grad()
def test_compact_text_equals_open_clips_tower_with_the_same_rows(text: CompactText):
    full = TextTransformer(vocab_size=49408, **GEOMETRY).eval()
    state, table = text.tower.state_dict(), torch.randn(49408, 16)  # rows that must not be read
    table[text.token_ids] = state["token_embedding.weight"]
    full.load_state_dict({**state, "token_embedding.weight": table})
    for texts in (["a photo of a cat.", "an icon of a dog"], ["a", ""], ["a photo of " * 9]):  # the last is cut
        ids = tokenizer(12)(texts)
        assert torch.allclose(text(ids), full(ids), atol=1e-6)
    assert text.tower.token_embedding.weight.shape == (len(text.token_ids), 16)
    assert "token_ids" not in text.state_dict()


@torch.no_grad()
def test_one_call_gives_unit_features_and_the_scale(model: Clip, images: Tensor):
    image, words, scale = model(images, tokens := tokenizer(12)(list(CLASSES)))
    assert torch.equal(image, F.normalize(model.visual(images), dim=-1))
    assert torch.equal(words, F.normalize(model.text(tokens), dim=-1))
    assert scale.item() == pytest.approx(50.0)


@torch.no_grad()
def test_a_class_is_the_mean_over_unit_prompts(model: Clip):
    features = class_features(model, tokenizer(12), CLASSES, TEMPLATES)
    for name, feature in zip(CLASSES, features, strict=True):
        total = torch.zeros(7)
        for template in TEMPLATES:
            prompt = model.text(tokenizer(12)([template.format(name)]))[0]
            total += prompt / prompt.norm()
        assert torch.allclose(feature, total / total.norm(), atol=1e-6)
    with pytest.raises(ValueError, match=r"never saw '!', '!\.', 'horse';"):
        class_features(model, tokenizer(12), ("cat", "horse!"), TEMPLATES)


@torch.no_grad()
def test_the_embedded_towers_are_those_of_the_file():
    embedded = create_clip("clip_vit_s14")
    visual = embedded.model.visual
    stored = load_file(EMBEDDED / "clip_vit_s14.text.safetensors")
    image = load_file(EMBEDDED / "clip_vit_s14.safetensors")
    image |= {"head.weight": stored["visual_projection"], "head.bias": stored["visual_bias"]}
    state = visual.state_dict()
    assert state.keys() == image.keys()
    assert all(torch.equal(state[name], image[name].float()) for name in state)
    x = torch.randn(1, 3, 196, 196)
    token = visual.forward_features(x)[:, 0]
    slow = token @ stored["visual_projection"].float().T + stored["visual_bias"].float()
    assert torch.allclose(embedded.model.encode_image(x), slow, atol=1e-4)
    text = embedded.model.text
    assert text.token_ids.tolist() == stored["token_ids"].tolist()
    assert all(torch.equal(v, stored[f"text.{k}"].float()) for k, v in text.state_dict().items())
    assert embedded.model.logit_scale.item() == stored["logit_scale"].item()
    larger = timm.create_model("clip_vit_s14_random50", pretrained=True, img_size=224).eval()
    assert larger.trace(torch.randn(1, 3, 224, 224)).final_tokens == 128
    white = embedded.preprocess(Image.new("RGB", (400, 300), "white"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((1 - mean) / std)[:, None, None].expand(3, 196, 196)
    assert torch.allclose(white, expected, atol=1e-5)
