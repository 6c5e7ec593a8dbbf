"""The compact text tower against open_clip's whole one, and unknown words."""

import re

import pytest
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

from zoo.loading.clip import CompactText, tokenizer

GEOMETRY = {"context_length": 12, "width": 24, "heads": 2, "layers": 2, "output_dim": 10}
SEEN = ["a photo of a cat.", "an icon of two dogs, a photo", "mixed-up cats"]
START, END = 49406, 49407


@pytest.fixture
def tokens() -> Tensor:
    return tokenizer(12)(SEEN)


@pytest.fixture
def compact(tokens: Tensor) -> CompactText:
    torch.manual_seed(1)
    return CompactText(tokens.unique().tolist(), **GEOMETRY).eval()


def whole(compact: CompactText) -> TextTransformer:
    """Copy the compact tower into open_clip's, each row to the place of its token."""
    full = TextTransformer(vocab_size=49408, **GEOMETRY).eval()
    state = compact.tower.state_dict()
    table = torch.randn(49408, 24)  # rows that must not be read
    for row, token in enumerate(compact.token_ids.tolist()):
        table[token] = state["token_embedding.weight"][row]
    full.load_state_dict({**state, "token_embedding.weight": table})
    return full


@torch.no_grad()
def test_equals_open_clips_tower_with_the_same_rows(compact: CompactText, tokens: Tensor):
    full = whole(compact)
    known = ["cats of a cat", "a", "", "two photo cats, of cats"]
    for texts in (SEEN, known, ["a photo of " * 9]):  # the last is cut, but keeps its end
        ids = tokenizer(12)(texts)
        assert torch.allclose(compact(ids), full(ids), atol=1e-6)
    assert compact(tokens).shape == (3, 10)
    assert compact.tower.token_embedding.weight.shape == (len(compact.token_ids), 24)
    assert "token_ids" not in compact.state_dict()
    assert (compact(tokens)[0] - compact(tokens)[1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("a zebra", "never saw 'zebra'; use other words, or a model with a full vocabulary"),
        ("a zebra of the river", "never saw 'river', 'the', 'zebra'; use"),
        ("cat cat cow", "never saw 'cow';"),
        ("cat!", "never saw '!';"),
    ],
)
def test_unseen_words_are_named(words: str, match: str, compact: CompactText):
    with pytest.raises(ValueError, match=re.escape(match)):
        compact(tokenizer(12)([words, "a photo of a cat."]))
