"""Two towers in one joint space: the compact text tower, fabricated towers, the embedded ones last."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from lively import Build
from open_clip.transformer import TextTransformer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import zoo
from zoo.loading import clip
from zoo.loading.clip import Clip, CompactText, class_features, create_clip, tokenizer
from zoo.loading.sizes import EMBEDDED

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


@pytest.fixture(scope="module")
def embedded() -> clip.ClipParts:
    return create_clip("clip_vit_s14")


@torch.no_grad()
def test_the_embedded_towers_are_those_of_the_file(embedded: clip.ClipParts):
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
    white = embedded.preprocess(Image.new("RGB", (400, 300), "white"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((1 - mean) / std)[:, None, None].expand(3, 196, 196)
    assert torch.allclose(white, expected, atol=1e-5)


@pytest.mark.usefixtures("hub")
@torch.no_grad()
def test_the_packaged_predictor_is_found_with_nothing_in_the_users_cache(embedded: clip.ClipParts):
    model = timm.create_model("clip_vit_s14_patchrank60", pretrained=True).eval()
    x = F.interpolate(torch.rand(2, 3, 7, 7), size=(196, 196))
    trace = model.trace(x)
    assert trace.final_tokens == 118
    again = create_clip("clip_vit_s14_patchrank60.imgfocus_lit").model.visual
    torch.testing.assert_close(again.trace(x).scores, trace.scores)
    fewer = create_clip("clip_vit_s14_random50", keep=0.25).model.visual  # arguments reach timm
    assert fewer.trace(x).final_tokens == 49
    torch.testing.assert_close(zoo.reduce(model, method=None)(x), embedded.model.visual(x))
