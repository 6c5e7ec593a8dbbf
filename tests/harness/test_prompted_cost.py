"""Learned tokens are counted: multiply-adds by the closed form, parameters, tokens per block."""

import pytest
import timm
import torch
from torch.nn import functional as F

import zoo
from harness.cost import gflops
from zoo.prompts import save_prompts
from zoo.weights import blocks_fingerprint

WIDTH, DEPTH, MLP, FEATURES, CLASSES, LEARNED = 384, 9, 1536, 256, 10, 16


def block(tokens: int) -> float:
    attention = tokens * WIDTH * 3 * WIDTH + 2 * tokens**2 * WIDTH + tokens * WIDTH**2
    return attention + 2 * tokens * WIDTH * MLP + 2 * 5 * tokens * WIDTH


def closed_form(learned: int, kept: int, before: int) -> float:
    """Count a tower of 196 patches that prunes before a block; LayerNorm is 5 per element."""
    whole, rest = 1 + learned + 196, 1 + learned + kept
    embed = 196 * 3 * 14**2 * WIDTH
    blocks = before * block(whole) + (DEPTH - before) * block(rest)
    return (embed + blocks + 5 * rest * WIDTH + WIDTH * FEATURES) / 1e9


@pytest.mark.parametrize(("name", "kept"), [("clip_vit_s14", 196), ("clip_vit_s14_random60", 118)])
def test_multiply_adds_equal_the_closed_form(name: str, kept: int, tmp_path):
    tower = timm.create_model(name, pretrained=True).eval()
    tensors = {
        "visual": torch.randn(1, LEARNED, WIDTH),
        "classifier": F.normalize(torch.randn(CLASSES, FEATURES), dim=-1),
        "logit_scale": torch.tensor(3.0),
    }
    facts = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "width": WIDTH, "dataset": "toy"}
    facts |= {"weights": blocks_fingerprint(tower.state_dict()), "recipe": {}, "provenance": {}}
    classes = tuple(map(str, range(CLASSES)))
    file = save_prompts(tmp_path / "p.safetensors", tensors, classes=classes, **facts)
    tuned = zoo.add_prompts(tower, file)
    plain, cost = gflops(tower, 196), gflops(tuned, 196)
    assert plain.gflops == pytest.approx(closed_form(0, kept, 3), rel=1e-6)
    expected = closed_form(LEARNED, kept, 3) + FEATURES * CLASSES / 1e9
    assert cost.gflops == pytest.approx(expected, rel=1e-6)
    assert cost.unsupported == ()
    assert cost.params == plain.params + LEARNED * WIDTH + CLASSES * FEATURES
    with torch.no_grad():
        trace = tuned.trace(torch.zeros(1, 3, 196, 196))
    assert trace.tokens_per_block == (213,) * 3 + (1 + LEARNED + kept,) * 6
