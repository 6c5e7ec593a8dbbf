"""Learned tokens: tuning, context in the text tower, visual tokens in the image tower."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from lively import Build, lively
from open_clip.model import CustomTextCLIP
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.core.digests import blocks_fingerprint
from zoo.core.learned import CosineHead, VisualPrompts
from zoo.core.recipes import COUPLINGS, TuneConfig
from zoo.learning.tuning import CoupledPrompts, Labelled, PromptedText, PromptLearner, augment, encode, text_parts, tune
from zoo.loading.clip import Clip, ClipParts, CompactText, OpenClipText, tokenizer
from zoo.loading.learned_files import PromptFile, save_prompts

LENGTH = 14
CLASSES = ("cat", "dog", "house")
TEMPLATES = ("a photo of a {}.", "{}.")
TOKENIZE = tokenizer(LENGTH)
QUICK = {"count": 3, "rounds": 3, "steps": 4, "batch": 4, "precision": "float32"}


@pytest.fixture
def parts(tiny: Build) -> ClipParts:
    vit = tiny("clip_vit_b16_patchrank60.openai", arch="mlp", width=8)
    known = TOKENIZE([t.format(name) for t in TEMPLATES for name in CLASSES]).unique().tolist()
    geometry = {"context_length": LENGTH, "width": 24, "heads": 2, "layers": 2, "output_dim": 7}
    text = lively(CompactText(known, **geometry))
    return ClipParts(Clip(vit, text, 3.0).eval(), None, TOKENIZE)


def data(seed: int = 0, each: int = 4) -> Labelled:
    """Draw images whose brightest channel tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(each)
    images = torch.randn(len(labels), 3, 64, 64, generator=generator)
    return Labelled(images + 3 * F.one_hot(labels, 3)[:, :, None, None], labels)


def run(parts: ClipParts, **options: Any) -> PromptLearner:
    kept = {"on_round": options.pop("on_round")} if "on_round" in options else {}
    config = TuneConfig(**{**QUICK, **options})
    return tune(parts.model.visual, parts, CLASSES, TEMPLATES, data(), data(1), config, **kept)


STILL = {"rounds": 1, "steps": 1, "learning_rate": 1e-9, "visual_rate": 1e-9}


@pytest.mark.parametrize(("tokens", "coupling"), [("t", "none"), ("v", "none"), *(("vt", each) for each in COUPLINGS)])
def test_nothing_else_moves_and_what_is_learned_does(parts: ClipParts, tokens: str, coupling: str):
    parts.model.text.tower.ln_final.weight.requires_grad_(False)
    before = deepcopy(parts.model.state_dict())
    trainable = {name: p.requires_grad for name, p in parts.model.named_parameters()}
    first = run(parts, tokens=tokens, coupling=coupling, **STILL).tensors(3.0)
    last = run(parts, tokens=tokens, coupling=coupling).tensors(3.0)
    after = parts.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: p.requires_grad for name, p in parts.model.named_parameters()} == trainable
    assert all(p.grad is None for p in parts.model.parameters())
    assert parts.model.visual.prompts is None
    assert ("context" in last, "visual" in last) == ("t" in tokens, "v" in tokens)
    for name in {"context", "visual"} & last.keys():
        assert (last[name] - first[name]).abs().max() > 1e-4
    assert torch.allclose(last["classifier"].norm(dim=1), torch.ones(3))


def test_features_serve_as_well_as_images(parts: ClipParts):
    config = TuneConfig(**QUICK, tokens="t")
    vit = parts.model.visual
    known = [Labelled(encode(vit, d.images, config), d.labels) for d in (data(), data(1))]
    quick = tune(vit, parts, CLASSES, TEMPLATES, *known, config)
    assert torch.equal(quick.classifier(), run(parts, tokens="t").classifier())


def test_visual_tokens_begin_as_the_mean_patch(parts: ClipParts):
    vit, images = parts.model.visual, data().images
    patch = vit.mean_patch(images)
    whole = vit._pos_embed(vit.patch_embed(images))[:, 1:]
    assert torch.allclose(patch, whole.mean(dim=(0, 1)), atol=1e-5)
    coupled = PromptLearner(vit, parts, CLASSES, TEMPLATES, TuneConfig(**QUICK), patch)
    assert torch.equal(coupled.visual(), patch.expand(3, -1))
    free = TuneConfig(**QUICK, coupling="none")
    apart = PromptLearner(vit, parts, CLASSES, TEMPLATES, free, patch).visual()
    assert F.cosine_similarity(apart, coupled.visual(), dim=-1).min() > 0.95
    assert not torch.equal(apart[0], apart[1])


def test_the_papers_parameter_counts():
    config = open_clip.get_model_config("ViT-B-16")
    text = TextTransformer(**{**config["text_cfg"], "layers": 1}, output_dim=config["embed_dim"])
    vit = zoo.ReducedViT(embed_dim=768, depth=1, num_heads=12, num_classes=512)
    parts = ClipParts(Clip(vit, text, 4.6), None, open_clip.get_tokenizer("ViT-B-16"))
    for tokens, count in (("t", 8_192), ("vt", 401_408), ("v", 12_288)):
        patch = None if tokens == "t" else torch.zeros(768)
        learner = PromptLearner(vit, parts, ["cat"], ["{}"], TuneConfig(tokens=tokens, count=16), patch)
        assert sum(parameter.numel() for parameter in learner.parameters()) == count


def test_refusals(parts: ClipParts):
    vit = parts.model.visual
    tuned = type(vit).adopt(vit)
    tuned.prompts = run(parts).visual
    broken = Labelled(data(1).images * torch.nan, data(1).labels)
    for tower, train, val, match in (
        (vit, data(each=0), data(), "nothing to tune"),
        (tuned, data(), data(1), "tuned already"),
        (vit, data(), broken, "validation loss is NaN in epoch 0"),
    ):
        with pytest.raises(ValueError, match=match):
            tune(tower, parts, CLASSES, TEMPLATES, train, val, TuneConfig(**QUICK))
    for options, match in (
        ({"tokens": "tv"}, "tokens='tv'"),
        ({"class_specific": True}, "use coupling='none'"),
        ({"tokens": "v", "class_specific": True}, "tokens='v' has none"),
    ):
        with pytest.raises(ValueError, match=match):
            TuneConfig(**options)


def test_augmentation_mirrors_and_shifts():
    image = torch.arange(32.0).expand(2, 3, 32, 32).clone()
    drawn = augment(image.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0))
    rising = drawn[:, 0, 0, 20] > drawn[:, 0, 0, 10]
    assert 0 < int(rising.sum()) < 40
    shifts = {round(float(row[0, 0, 16])) for row in drawn[rising]}
    assert shifts == set(range(14, 19))


@pytest.mark.parametrize("tokens", ["t", "v"])
def test_it_learns(parts: ClipParts, tokens: str):
    losses: list[tuple[float, float]] = []
    options = {"learning_rate": 0.05, "visual_rate": 0.02, "augment": False, "rounds": 4}
    options |= {"on_round": lambda _, *both: losses.append(both), "patience": 8}
    run(parts, tokens=tokens, steps=10, batch=12, **options)
    assert losses[-1][0] < losses[0][0] - 0.02
    assert min(val for _, val in losses) < losses[0][1]


NAMES = ("cat", "two dogs", "mixed-up house")
WORDS = "a photo of a"
TEXT = {"context_length": LENGTH, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3}
VISION = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}


def compact() -> nn.Module:
    every = TOKENIZE([f"{WORDS} {name}." for name in NAMES]).unique().tolist()
    geometry = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    return CompactText(every, **geometry, output_dim=10)


@pytest.fixture(params=[None, CustomTextCLIP])
def text(request: pytest.FixtureRequest) -> nn.Module:
    kind = request.param
    return lively(compact() if kind is None else OpenClipText(kind(10, VISION, TEXT)))


def prompted(text: nn.Module, **options: Any) -> PromptedText:
    config = TuneConfig(**{"coupling": "none", **options})
    return PromptedText(text, TOKENIZE, NAMES, config, torch.Generator().manual_seed(0))


@torch.no_grad()
def test_words_as_context_equal_the_encoded_text(text: nn.Module):
    expected = F.normalize(text(TOKENIZE([f"{WORDS} {name}." for name in NAMES])), dim=-1)
    learner = prompted(text)
    assert (learner() - expected).abs().max() > 1e-2
    learner.context[0] = text_parts(text).embed(TOKENIZE([WORDS]))[0, 1:5]
    assert torch.allclose(learner(), expected, atol=1e-5)


@torch.no_grad()
def test_by_hand_with_a_context_per_class(text: nn.Module):
    learner = prompted(text, class_specific=True)
    tower = text_parts(text).tower
    for index, name in enumerate(NAMES):
        words = text_parts(text).embed(TOKENIZE([f"{name}."]))[0]
        end = int(TOKENIZE([f"{name}."]).argmax())
        x = torch.cat((words[:1], learner.context[index], words[1 : end + 1]))
        x = (x + tower.positional_embedding[: len(x)])[None]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        for block in tower.transformer.resblocks:
            x = block(x, attn_mask=mask)
        feature = tower.ln_final(x[0, -1]) @ tower.text_projection
        assert torch.allclose(learner()[index], F.normalize(feature, dim=0), atol=1e-5)


def test_context_longer_than_the_table_shares_its_last_free_place(text: nn.Module):
    length = prompted(text).words.shape[1]
    learner = prompted(text, count=32)
    room = LENGTH - length
    places = learner.positions.tolist()
    assert places[: room + 1] == list(range(room + 1))
    assert set(places[room : 1 + 32]) == {room}
    assert places[1 + 32 :] == list(range(room + 1, LENGTH))
    assert learner().isfinite().all()


def test_refuses_what_it_cannot_prompt(text: nn.Module):
    for tower, tokenize, classes, options, match in (
        (text, TOKENIZE, ["cat " * 13], {}, "longer than the text tower's 14 tokens"),
        (text, len, NAMES, {}, "expected open_clip's SimpleTokenizer"),
        (compact(), TOKENIZE, ["cat", "zebra"], {}, "never saw 'zebra'"),
    ):
        with pytest.raises(ValueError, match=match):
            PromptedText(tower, tokenize, classes, TuneConfig(**options), torch.Generator())
    with pytest.raises(ValueError, match=r"TextTransformer: learned context needs .*tokens only"):
        text_parts(TextTransformer(**TEXT, output_dim=10, pool_type="last"))


COUNT = 5
FACTS: dict[str, Any] = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "weights": "0" * 16, "width": 384}
FACTS |= {"classes": CLASSES, "dataset": "toy", "recipe": {"tokens": "vt", "count": 2}, "provenance": {"shots": 4}}


def with_tokens(model: Any) -> zoo.ReducedViT:
    """Return the model with lively learned tokens, sharing everything else."""
    other = type(model).adopt(model)
    prompts = VisualPrompts(COUNT, model.embed_dim, device=None, dtype=None)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        prompts.tokens.copy_(torch.randn(prompts.tokens.shape, generator=generator))
    other.prompts = prompts
    return other.eval()


def by_hand(model: Any, images: Tensor) -> Tensor:
    prompts = model.prompts()
    x = model._pos_embed(model.patch_embed(images))
    x = torch.stack([torch.stack([row[0], *prompts, *row[1:]]) for row in x])
    x = model.norm_pre(x)
    x = model.blocks(x)
    return model.head(model.norm(x)[:, 0])


@torch.no_grad()
def test_equals_the_tower_by_hand(tiny: Build, images: Tensor):
    model = with_tokens(tiny("clip_vit_b16.openai"))
    assert torch.allclose(model(images), by_hand(model, images), atol=1e-5)
    tokens = model.forward_features(images)
    assert torch.allclose(model.pool(tokens, "avg"), tokens[:, 1 + COUNT :].mean(dim=1), atol=1e-6)


@torch.no_grad()
def test_no_method_touches_learned_tokens(half: zoo.ReducedViT, images: Tensor):
    model = with_tokens(half)
    plain, tuned = half.trace(images), model.trace(images)
    assert tuned.final_tokens == plain.final_tokens
    assert tuned.tokens_per_block == tuple(n + COUNT for n in plain.tokens_per_block)
    assert all((r.before < 64).all() for r in tuned.reductions)
    assert (tuned.output - plain.output).abs().max() > 1e-3
    model.prompts = None
    assert torch.equal(model(images), plain.output)


def test_coupled_tokens_are_a_linear_image_of_the_text():
    context = nn.Parameter(torch.randn(1, 4, 7))
    coupled = CoupledPrompts(context, torch.randn(48))
    assert torch.equal(coupled(), coupled.begin.expand(4, 48))
    torch.nn.init.normal_(coupled.projection.weight)
    expected = torch.einsum("td,cd->tc", context[0], coupled.projection.weight)
    assert torch.allclose(coupled() - coupled.begin, expected, atol=1e-5)
    printed = CoupledPrompts(context, torch.zeros(48), torch.Generator().manual_seed(1))
    assert torch.allclose(printed(), context[0] @ printed.projection.weight.T, atol=1e-6)
    assert 0.9 * 7**-0.5 < printed.projection.weight.abs().max() <= 7**-0.5


def tensors(width: int = 384, features: int = 256, **changes: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    every = {
        "classifier": F.normalize(torch.randn(3, features, generator=generator), dim=-1),
        "logit_scale": torch.tensor(4.0),
        "visual": torch.randn(COUNT, width, generator=generator),
        "context": torch.randn(1, COUNT, 192, generator=generator),
    }
    return every | changes


def save(folder: Path, tower: nn.Module | None = None, **changes: Any) -> PromptFile:
    """Write prompts of clip_vit_s14, or of a tower whose tokens are 48 wide and have 7 features."""
    facts, content = {**FACTS, **changes}, tensors()
    if tower is not None:
        facts |= {"weights": blocks_fingerprint(tower.state_dict()), "width": tower.embed_dim}
        content = tensors(tower.embed_dim, tower.num_classes)
    return save_prompts(folder / "prompts.safetensors", content, **facts)


@pytest.mark.parametrize("method", [None, "patchrank"])
@torch.no_grad()
def test_class_logits(tiny: Build, images: Tensor, tmp_path: Path, method: str | None):
    options = {} if method is None else {"keep": 0.5}
    tower = zoo.reduce(tiny("clip_vit_b16.openai"), method=method, **options)
    file = save(tmp_path, tower)
    assert file == PromptFile.read(file.path)
    tuned = zoo.add_prompts(tower, file)
    features = zoo.add_prompts(tower, file.path, classify=False)
    unit = F.normalize(features(images), dim=-1)
    scale = torch.tensor(4.0).exp()
    assert torch.allclose(tuned(images), scale * unit @ file.load()["classifier"].T, atol=1e-3)
    assert (tuned.num_classes, tuned.pretrained_cfg["label_names"]) == (3, list(CLASSES))
    assert (tower.prompts, tower(images).shape) == (None, (3, 7))
    assert tuned.blocks[0] is tower.blocks[0]
    again = zoo.add_prompts(tuned, file)
    torch.testing.assert_close(again(images), tuned(images))


@pytest.mark.parametrize("method", ["patchrank", "evit"])
@torch.no_grad()
def test_saved_and_loaded(tiny: Build, images: Tensor, method: str, tmp_path: Path):
    tower = zoo.reduce(tiny("clip_vit_b16.openai"), method=method, keep=0.5, reduce_at=(1, 3))
    model, folder = zoo.add_prompts(tower, save(tmp_path, tower)), tmp_path / "saved"
    save_for_hf(model, folder, safe_serialization=True)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(again(images), model(images))
    assert isinstance(again.head, CosineHead)
    features = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(features(images), model.forward_head(model.forward_features(images), True))


@torch.no_grad()
def test_timm_creates_a_tuned_model(tmp_path: Path):
    name = "clip_vit_s14_patchrank60"
    plain = timm.create_model(name, pretrained=True).eval()
    file = save(tmp_path, weights=blocks_fingerprint(plain.state_dict()))
    assert all(torch.equal(file.load()[part], tensor) for part, tensor in tensors().items())
    model, images = timm.create_model(name, prompts=file.path).eval(), torch.randn(2, 3, 196, 196)
    torch.testing.assert_close(model(images), zoo.add_prompts(plain, file)(images))
    assert torch.equal(model.prompts(), tensors()["visual"])
    assert "prompts.safetensors" not in json.dumps(model._model_args)
    with pytest.raises(ValueError, match=r"num_classes=7: .* has 3; leave it out"):
        timm.create_model(name, prompts=file.path, num_classes=7)


@pytest.mark.parametrize(("use", "match"), [
    (lambda file: timm.create_model("clip_vit_s14", prompts=file.path), "imgfocus_lit with weights='0{16}'"),
    (lambda file: zoo.create_clip("clip_vit_s14", prompts=file.path), "a tuned model classifies"),
    (lambda file: file.require_classes(CLASSES[:2]), "are for 3 classes of toy, not for 2"),
    (lambda file: file.require_classes(("cat", "house", "dog")), "their class 1 is 'dog', not 'house'"),
    (lambda file: PromptFile.read(file.path.with_name("none")), "no prompts at"),
    (lambda file: PromptFile.read(file.path.with_name("other")), "lacks the 'prompts' metadata"),
    (lambda file: timm.create_model("clip_vit_s14", prompts=file.path.with_name("wide")), "width=768, this model"),
])  # fmt: skip
def test_refuses_other_towers_classes_and_files(use: Callable[[PromptFile], Any], match: str, tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    save_prompts(tmp_path / "wide", tensors(768), **{**FACTS, "width": 768})
    file = save(tmp_path)
    file.require_classes(CLASSES)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        use(file)
