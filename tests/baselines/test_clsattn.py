"""CLS attention against a softmax that is written out."""

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

import zoo


def attention_of_cls(block: Block, x: Tensor, prefix: int = 1) -> Tensor:
    """Return the class token's row of the materialised softmax, mean over heads, (B, n)."""
    q, k, _ = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    heads, width = block.attn.num_heads, block.attn.head_dim
    total = torch.zeros(x.shape[0], x.shape[1])
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        total += ((q[..., part] @ k[..., part].mT) * width**-0.5).softmax(dim=-1)[:, 0]
    return total[:, prefix:] / heads


def entering(tower: VisionTransformer, images: Tensor, block: int) -> Tensor:
    x = tower._pos_embed(tower.patch_embed(images))
    return tower.blocks[:block](tower.norm_pre(x))


@pytest.mark.parametrize(("source", "point", "judge"), [("input", 3, 3), ("previous", 3, 2), ("input", 0, 0)])
def test_importance_is_softmax(source: str, point: int, judge: int, tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="clsattn", keep=0.4, source=source, reduce_at=point)
    [went] = model.trace(images).reductions
    wanted = attention_of_cls(tower.blocks[judge], entering(tower, images, judge))
    assert torch.allclose(went.importance, wanted, atol=1e-6)
    for image in range(3):
        best = wanted[image].argsort(descending=True)[: round(0.4 * 64)].tolist()
        assert went.after[image].tolist() == sorted(best)


@pytest.mark.parametrize("source", ["input", "previous"])
def test_the_rest_runs_on_what_is_left(source: str, tower: VisionTransformer, images: Tensor):
    """Slowly: dense blocks, pick tokens by hand, dense blocks."""
    model = zoo.reduce(tower, method="clsattn", keep=0.5, reduce_at=[2, 4], source=source)
    x, judged = entering(tower, images, 1), None
    for index in range(1, 6):
        if index in (2, 4):
            left = 45 if index == 2 else 32
            seen = attention_of_cls(tower.blocks[index], x) if source == "input" else judged
            best = seen.topk(left, dim=1).indices.sort(dim=1).values
            rows = [torch.cat((row[:1], row[1:][keep])) for row, keep in zip(x, best, strict=True)]
            x = torch.stack(rows)
        judged = attention_of_cls(tower.blocks[index], x)
        x = tower.blocks[index](x)
    assert torch.allclose(model(images), tower.forward_head(tower.norm(x)), atol=1e-4)
