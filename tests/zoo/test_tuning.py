"""Tuning: what moves, how a stopped run goes on; context before class names against open_clip's own encoding."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from lively import Build, lively
from open_clip.model import CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn

import zoo
from zoo.learning import tuning
from zoo.learning.tuning import (
    COUPLINGS,
    RECIPES,
    Labelled,
    PromptedText,
    PromptLearner,
    TuneConfig,
    augment,
    encode,
    frozen,
    text_parts,
    tune,
)
from zoo.loading.clip import Clip, ClipParts, CompactText, OpenClipText, tokenizer

LENGTH = 14
CLASSES = ("cat", "dog", "house")
TEMPLATES = ("a photo of a {}.", "{}.")
TOKENIZE = tokenizer(LENGTH)
QUICK = {"count": 3, "rounds": 3, "steps": 4, "batch": 4, "dtype": "float32"}


@pytest.fixture
def parts(tiny: Build) -> ClipParts:
    """Join a pruned tiny tower with a text tower of three words."""
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
    kept = {k: options.pop(k) for k in ("on_round", "on_step", "checkpoint") if k in options}
    config = TuneConfig(**{**QUICK, **options})
    vit = parts.model.visual
    return tune(vit, parts, CLASSES, TEMPLATES, data(), data(1), config, **kept)


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


SHORT = {"epochs": 3, "batch": 5, "optimiser": "sgd", "warmup": 1, "patience": 0, "learning_rate": 0.05}


@pytest.mark.parametrize(("tokens", "changes"), [("t", {}), ("vt", SHORT)])
def test_a_stopped_run_goes_on_to_the_same_tokens(
    parts: ClipParts, tokens: str, changes: dict[str, Any], tmp_path: Path
):
    go = partial(run, parts, tokens=tokens, **changes)
    whole = go()

    def stop(done: int, *_: float) -> None:
        if done == 1:
            raise KeyboardInterrupt

    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        go(checkpoint=path, on_round=stop)
    rounds: list[int] = []
    steps: list[int] = []
    again = go(checkpoint=path, on_round=lambda r, *_: rounds.append(r), on_step=steps.append)
    assert rounds == [2]
    assert steps == list(range(2 * len(steps) + 1, 3 * len(steps) + 1))
    for name, tensor in whole.tensors(3.0).items():
        assert torch.equal(again.tensors(3.0)[name], tensor)
    with pytest.raises(ValueError, match="another recipe or of other"):
        go(checkpoint=path, seed=1)


def test_the_last_epoch_is_kept_where_nothing_is_validated(parts: ClipParts, tmp_path: Path):
    """Whatever its loss: validation images that would give NaN are never looked at."""
    unseen = Labelled(data(1).images * torch.nan, data(1).labels)
    config = TuneConfig(**{**QUICK, **SHORT, "learning_rate": 30.0})
    args = (parts.model.visual, parts, CLASSES, TEMPLATES, data(), unseen, config)
    learner = tune(*args, checkpoint=tmp_path / "state.pt")
    last = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in learner.state_dict().items())
    with pytest.raises(ValueError, match="a learned token is not finite after epoch 0; lower learning_rate"):
        run(parts, tokens="t", patience=0, learning_rate=1e38, optimiser="sgd")


def test_features_serve_as_well_as_images_and_checkpointing_changes_nothing(parts: ClipParts):
    config = TuneConfig(**QUICK, tokens="t")
    vit = parts.model.visual
    known = [Labelled(encode(vit, d.images, config), d.labels) for d in (data(), data(1))]
    quick = tune(vit, parts, CLASSES, TEMPLATES, *known, config)
    assert torch.equal(quick.classifier(), run(parts, tokens="t").classifier())
    plain, spared = run(parts), run(parts, checkpointing=True)
    assert torch.allclose(plain.visual(), spared.visual(), atol=1e-6)
    assert torch.allclose(plain.classifier(), spared.classifier(), atol=1e-6)
    assert not parts.model.visual.grad_checkpointing


def test_visual_tokens_begin_as_the_mean_patch(parts: ClipParts):
    vit, images = parts.model.visual, data().images
    config = TuneConfig(**QUICK, depth=2)
    patches = vit.mean_patches(images, 2)
    tokens, _ = vit.advance(vit.embed(images), 0, 1)
    assert torch.allclose(patches[1], tokens.patches.mean(dim=(0, 1)), atol=1e-5)
    coupled = PromptLearner(vit, parts, CLASSES, TEMPLATES, config, patches)
    assert torch.equal(coupled.visual(), patches[:, None].expand(-1, 3, -1))
    free = TuneConfig(**QUICK, depth=2, coupling="none")
    apart = PromptLearner(vit, parts, CLASSES, TEMPLATES, free, patches).visual()
    assert F.cosine_similarity(apart, coupled.visual(), dim=-1).min() > 0.95
    assert not torch.equal(apart[0, 0], apart[0, 1])


def test_the_steps_of_a_hundred_classes_and_16_shots():
    steps = {name: (one.round_steps(1600), one.total_steps(1600)) for name, one in RECIPES.items()}
    assert steps == {"embedded": (10, 100), "coop": (50, 10_000), "maple": (400, 2_000)}
    assert RECIPES["coop"].total_steps(592) == 200 * 18  # what fills no batch is left out
    assert RECIPES["coop"].total_steps(8) == 200  # few images are one batch


def test_rates_and_rows_of_epochs(parts: ClipParts, monkeypatch: pytest.MonkeyPatch):
    """Rates are a scheduler's, after the warm-up's; an epoch shows an image once at most, in a new order."""
    rates: list[float] = []
    whole = TuneConfig.rate
    monkeypatch.setattr(TuneConfig, "rate", lambda *args: rates.append(whole(*args)) or rates[-1])
    options = {"epochs": 6, "batch": 5, "learning_rate": 0.01, "warmup": 1, "warmup_rate": 1e-4, "patience": 0}
    run(parts, tokens="t", **options)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    wanted = [1e-4]
    for _ in range(5):
        wanted.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    assert rates == [pytest.approx(rate) for rate in wanted for _ in range(2)]
    rates.clear()
    run(parts, tokens="t", **options, schedule="constant")
    assert rates == [1e-4] * 2 + [0.01] * 10
    generator, config = torch.Generator(), TuneConfig(**options)
    shown = [torch.cat(list(tuning._batches(generator, 12, config))).tolist() for _ in range(6)]
    assert all(len(set(rows)) == 10 for rows in shown)
    assert len(set(map(tuple, shown))) == 6


def test_the_papers_parameter_counts():
    """B/16, 16 tokens: 8,192 for T, 401,408 for V+T."""
    config = open_clip.get_model_config("ViT-B-16")
    text = TextTransformer(**{**config["text_cfg"], "layers": 1}, output_dim=config["embed_dim"])
    vit = zoo.ReducedViT(embed_dim=768, depth=1, num_heads=12, num_classes=512)
    parts = ClipParts(Clip(vit, text, 4.6), None, open_clip.get_tokenizer("ViT-B-16"))
    for tokens, count in (("t", 8_192), ("vt", 401_408), ("v", 12_288)):
        patches = None if tokens == "t" else torch.zeros(1, 768)
        learner = PromptLearner(vit, parts, ["cat"], ["{}"], TuneConfig(tokens=tokens, count=16), patches)
        assert sum(parameter.numel() for parameter in learner.parameters()) == count


def test_refusals(parts: ClipParts):
    vit = parts.model.visual
    tuned = type(vit).adopt(vit)
    tuned.prompts = run(parts).visual
    broken = Labelled(data(1).images * torch.nan, data(1).labels)
    for tower, train, val, options, match in (
        (vit, data(each=0), data(), {}, "nothing to tune"),
        (tuned, data(), data(1), {}, "tuned already"),
        (vit, data(), data(1), {"tokens": "v", "depth": 7}, "depth=7: the image tower has 6 blocks"),
        (vit, data(), broken, {}, "validation loss is NaN in epoch 0"),
    ):
        with pytest.raises(ValueError, match=match):
            tune(tower, parts, CLASSES, TEMPLATES, train, val, TuneConfig(**QUICK, **options))
    for options, match in (
        ({"tokens": "tv"}, "tokens='tv'"),
        ({"class_specific": True}, "use coupling='none'"),
        ({"warmup": 5, "epochs": 5}, "warmup=5: expected fewer than the 5 epochs"),
        ({"tokens": "v", "init": "a"}, "tokens='v' has none"),
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


@pytest.mark.parametrize("method", [None, "evitfuse", "patchrank", "rankmerge"])
def test_gradients_reach_learned_tokens_through_every_method(parts: ClipParts, method: str | None):
    options = {} if method is None else {"keep": 0.5}
    vit = zoo.reduce(parts.model.visual, method=method, **options).eval()
    config = TuneConfig(**QUICK, depth=2)
    images = data().images
    learner = PromptLearner(vit, parts, CLASSES, TEMPLATES, config, vit.mean_patches(images, 2))
    nn.init.normal_(learner.visual.projection.weight)
    tower = type(vit).adopt(vit)
    tower.prompts = learner.visual
    with frozen(vit, parts.model.text):
        F.cross_entropy(tower(images) @ learner.classifier().T, data().labels).backward()
    assert (learner.text.context.grad.abs().amax(dim=-1) > 0).all()
    assert (learner.visual.projection.weight.grad.abs().amax(dim=1) > 0).all()
    assert all(p.grad is None for p in vit.parameters())


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
    assert torch.allclose(prompted(text, init=WORDS)(), expected, atol=1e-5)
    assert (prompted(text)() - expected).abs().max() > 1e-2


@torch.no_grad()
def test_by_hand_with_a_context_per_class_and_block(text: nn.Module):
    learner = prompted(text, class_specific=True, depth=3)
    tower = text_parts(text).tower
    for index, name in enumerate(NAMES):
        words = text_parts(text).embed(TOKENIZE([f"{name}."]))[0]
        end = int(TOKENIZE([f"{name}."]).argmax())
        x = torch.cat((words[:1], learner.context[index, 0], words[1 : end + 1]))
        x = (x + tower.positional_embedding[: len(x)])[None]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        for depth, block in enumerate(tower.transformer.resblocks):
            if depth:
                x = torch.cat((x[:, :1], learner.context[index : index + 1, depth], x[:, 5:]), 1)
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
        (text, TOKENIZE, NAMES, {"depth": 4}, "depth=4: the text tower has 3 blocks"),
        (text, TOKENIZE, NAMES, {"count": 3, "init": WORDS}, "'a photo of a' is 4 tokens, more than 3"),
        (text, TOKENIZE, ["cat " * 13], {}, "longer than the text tower's 14 tokens"),
        (text, len, NAMES, {}, "expected open_clip's SimpleTokenizer"),
        (compact(), TOKENIZE, ["cat", "zebra"], {}, "never saw 'zebra'"),
    ):
        with pytest.raises(ValueError, match=match):
            PromptedText(tower, tokenize, classes, TuneConfig(**options), torch.Generator())
    with pytest.raises(ValueError, match=r"TextTransformer: learned context needs .*tokens only"):
        text_parts(TextTransformer(**TEXT, output_dim=10, pool_type="last"))
