"""Context before class names against open_clip's own encoding of the same words, and refusals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lively import lively
from open_clip.model import CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn

from zoo.learning.tuning import PromptedText, TuneConfig, text_parts
from zoo.loading.clip import CompactText, OpenClipText, tokenizer

LENGTH = 14
CLASSES = ("cat", "two dogs", "mixed-up house")
WORDS = "a photo of a"
TEXT = {"context_length": LENGTH, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3}
VISION = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
TOKENIZE = tokenizer(LENGTH)


def compact() -> nn.Module:
    every = TOKENIZE([f"{WORDS} {name}." for name in CLASSES]).unique().tolist()
    geometry = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    return CompactText(every, **geometry, output_dim=10)


@pytest.fixture(params=[None, CustomTextCLIP])
def text(request: pytest.FixtureRequest) -> nn.Module:
    kind = request.param
    return lively(compact() if kind is None else OpenClipText(kind(10, VISION, TEXT)))


def prompted(text: nn.Module, **options: Any) -> PromptedText:
    config = TuneConfig(**{"coupling": "none", **options})
    return PromptedText(text, TOKENIZE, CLASSES, config, torch.Generator().manual_seed(0))


@torch.no_grad()
def test_words_as_context_equal_the_encoded_text(text: nn.Module):
    expected = F.normalize(text(TOKENIZE([f"{WORDS} {name}." for name in CLASSES])), dim=-1)
    assert torch.allclose(prompted(text, init=WORDS)(), expected, atol=1e-5)
    assert (prompted(text)() - expected).abs().max() > 1e-2


@torch.no_grad()
def test_by_hand_with_a_context_per_class_and_block(text: nn.Module):
    learner = prompted(text, class_specific=True, depth=3)
    tower = text_parts(text).tower
    for index, name in enumerate(CLASSES):
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


def test_gradients_reach_every_context_token_and_only_these(text: nn.Module):
    learner = prompted(text, depth=2)
    learner()[:, 0].sum().backward()
    assert (learner.context.grad.abs().amax(dim=-1) > 0).all()
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    spared = prompted(text, depth=2, checkpointing=True)
    spared()[:, 0].sum().backward()
    assert torch.allclose(learner.context.grad, spared.context.grad, atol=1e-7)


def test_refuses_what_it_cannot_prompt(text: nn.Module):
    for tower, tokenize, classes, options, match in (
        (text, TOKENIZE, CLASSES, {"depth": 4}, "depth=4: the text tower has 3 blocks"),
        (text, TOKENIZE, CLASSES, {"count": 3, "init": WORDS}, "'a photo of a' is 4 tokens, more than 3"),
        (text, TOKENIZE, ["cat " * 13], {}, "longer than the text tower's 14 tokens"),
        (text, len, CLASSES, {}, "expected open_clip's SimpleTokenizer"),
        (compact(), TOKENIZE, ["cat", "zebra"], {}, "never saw 'zebra'"),
    ):
        with pytest.raises(ValueError, match=match):
            PromptedText(tower, tokenize, classes, TuneConfig(**options), torch.Generator())
    with pytest.raises(ValueError, match=r"TextTransformer: learned context needs .*tokens only"):
        text_parts(TextTransformer(**TEXT, output_dim=10, pool_type="last"))
