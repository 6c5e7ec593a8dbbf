"""Golden scores of converted towers: those of a slow loop inside open_clip's own transformer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor
from zoo.open_clip import from_open_clip

from zoo.golden import SCORES, GoldenConfig, golden_importance

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
B16 = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": (32, 32)}


def slow_importance(
    model: Any, images: Tensor, config: GoldenConfig, text: Tensor, scale: float, labels: Tensor
) -> Tensor:
    """Remove one window after the other inside open_clip's own transformer."""
    visual = model.visual
    rows, columns = visual.grid_size
    window = config.window

    def features(x: Tensor) -> Tensor:
        for block in visual.transformer.resblocks[config.block :]:
            x = block(x)
        return F.normalize(visual._pool(x)[0] @ visual.proj, dim=-1)

    result = torch.zeros(len(images), rows * columns)
    for row in range(len(images)):
        x = visual._embeds(images[row : row + 1])
        for block in visual.transformer.resblocks[: config.block]:
            x = block(x)
        whole = features(x)
        covered = torch.zeros(rows * columns)
        for top in range(rows - window + 1):
            for left in range(columns - window + 1):
                gone = {
                    (top + i) * columns + left + j for i in range(window) for j in range(window)
                }
                kept = [0, *(1 + p for p in range(rows * columns) if p not in gone)]
                pruned = features(x[:, kept])
                posterior = (scale * pruned @ text.T).softmax(dim=-1)[0]
                score = {
                    "preservation": (whole * pruned).sum(),
                    "label": posterior[labels[row]],
                    "confidence": posterior.max(),
                }[config.score]
                for patch in gone:
                    result[row, patch] += score
                    covered[patch] += 1
        result[row] /= covered
    return -result


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("vision", "quick"),
    [
        (B16, False),
        (B16, True),
        ({**B16, "image_size": (24, 40)}, False),
        ({**B16, "pool_type": "avg"}, False),
    ],
)
@torch.no_grad()
def test_golden_scores_are_those_of_open_clips_own_transformer(
    vision: dict, quick: bool, score: str, block: int
):
    torch.manual_seed(2)
    model = CLIP(24, dict(vision), dict(TEXT), quick_gelu=quick).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    images = torch.randn(2, 3, *vision["image_size"])
    text = model.encode_text(torch.randint(1, 64, (4, 8)), normalize=True)
    scale, labels = model.logit_scale.exp().item(), torch.tensor([1, 3])
    config = GoldenConfig(score=score, block=block, window=2, stride=1)
    wanted = slow_importance(model, images, config, text, scale, labels)
    tower = from_open_clip(model)
    found = golden_importance(tower, images, config, text=text, scale=scale, labels=labels)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert wanted.std(dim=1).min() > 1e-4
