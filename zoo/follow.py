"""Golden scores of all windows in a few passes: follow each removal into the tokens that carry it.

When a window of patches goes, the class token notices in two ways: it no longer attends to them,
and the tokens that it attends to no longer did. To follow the first exactly takes one token per
window instead of a sequence; of the second, the part that some chosen patch tokens carry takes
those. All others stay as in the whole image, whose keys and values are computed once.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.attention import attend
from zoo.effort import Effort
from zoo.suffix import Suffix
from zoo.tokens import Tokens
from zoo.windows import members


class Whole(NamedTuple):
    """What a whole image leaves behind on its way through the blocks.

    Attributes:
        keys: per block, (B, H, T, d) keys of all tokens.
        values: per block, (B, H, T, d) values of all tokens.
        features: (B, D) unit features.
        carriers: (B, W, N) int64 patches, those that carry most of a window to CLS first and those
            inside the window last; None if nobody asked.
    """

    keys: list[Tensor]
    values: list[Tensor]
    features: Tensor
    carriers: Tensor | None


def follow(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window, recomputing only CLS and ``count`` patch tokens.

    With all patch tokens outside the window it is exact.

    Args:
        suffix: the tower from a block on, in float32 here whatever its precision.
        start: the tokens of B images that enter the block.
        cells: (W, r * r) windows.
        count: patch tokens per window that feel the removal, 0 to N - r * r.

    Returns:
        (B, D) unit features of the whole images, and (B, W, D) of those without each window.
    """
    targets, features = [], []
    for part in start.x.split(max(1, suffix.batch // 4)):
        whole = run_whole(suffix, part, start.prefix, cells, choose=count > 0)
        targets.append(whole.features)
        per = max(1, suffix.batch * part.shape[1] // (2 * len(part) * (start.prefix + count)))
        found = []
        for chunk in torch.arange(len(cells), device=cells.device).split(per):
            if whole.carriers is None:
                felt = cells.new_empty(len(part), len(chunk), 0)
            else:
                felt = whole.carriers[:, chunk, :count]
            found.append(_without(suffix, part, start.prefix, whole, cells[chunk], felt))
        features.append(torch.cat(found, dim=1))
    return torch.cat(targets), torch.cat(features)


def run_whole(suffix: Suffix, x: Tensor, prefix: int, cells: Tensor, *, choose: bool) -> Whole:
    """Run whole images and note keys, values and, if ``choose``, who carries which window.

    A patch token carries a window to the class token by attending to it in one block and being
    attended to in a later one. What it carries is estimated by the product of both attentions, mean
    over heads, summed over all such pairs of blocks.

    Args:
        suffix: the tower from a block on.
        x: (B, T, D) tokens that enter it.
        prefix: number of prefix tokens.
        cells: (W, r * r) windows.
        choose: whether the carriers are wanted.
    """
    blocks: Any = suffix.model.blocks[suffix.block :]
    inside = members(cells, x.shape[1] - prefix).to(x.dtype)
    keys, values = [], []
    heard = carried = x.new_zeros(len(x), len(inside), inside.shape[1])
    for index, block in enumerate(blocks):
        last = index == len(blocks) - 1
        normed = block.norm1(x)
        attended = attend(block.attn, normed)
        keys.append(attended.key)
        values.append(attended.value)
        if choose:
            queries = attended.query[:, :, : 1 if last else None] * attended.scale
            weights = (queries @ attended.key.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)
            carried = carried + heard * weights[:, :1, prefix:]
            if not last:
                heard = heard + inside @ weights[:, prefix:, prefix:].transpose(1, 2)
        x = x + block.ls1(attended.out)
        if last:
            x = x[:, :1]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    carriers = None
    if choose:
        carried = carried.masked_fill(inside.bool(), -1)
        carriers = carried.argsort(dim=-1, descending=True, stable=True)
    return Whole(keys, values, unit_features(suffix, x), carriers)


def _without(
    suffix: Suffix, x: Tensor, prefix: int, whole: Whole, cells: Tensor, felt: Tensor
) -> Tensor:
    """Compute features of B images without each of w windows, (B, w, D).

    Args:
        suffix: the tower from a block on.
        x: (B, T, D) tokens that enter it.
        prefix: number of prefix tokens; they feel every removal.
        whole: what the whole images left behind.
        cells: (w, r * r) windows.
        felt: (B, w, n) int64 patches that feel the removal.
    """
    images, kinds, _ = felt.shape
    own = torch.arange(prefix, device=x.device).expand(images, kinds, -1)
    moved = torch.cat((own, felt + prefix), dim=2)
    y = x[torch.arange(images, device=x.device)[:, None, None], moved].flatten(0, 1)
    # Neither what went nor what is recomputed is seen as it was in the whole image.
    gone = torch.zeros(images, kinds, x.shape[1], dtype=torch.bool, device=x.device)
    gone = gone.scatter(2, moved, True).scatter(2, (cells + prefix).expand(images, -1, -1), True)
    bias = torch.zeros_like(gone, dtype=x.dtype).masked_fill(gone, -torch.inf)[:, None, :, None]
    blocks: Any = suffix.model.blocks[suffix.block :]
    for index, block in enumerate(blocks):
        attn, normed = block.attn, block.norm1(y)
        qkv = attn.qkv(normed).unflatten(2, (3, attn.num_heads, attn.head_dim))
        # Each of the three is (B, H, w, tokens of the window, d).
        parts = qkv.unflatten(0, (images, kinds)).permute(3, 0, 4, 1, 2, 5)
        query, key, value = attn.q_norm(parts[0]), attn.k_norm(parts[1]), parts[2]
        if index == len(blocks) - 1:
            query, y, normed = query[:, :, :, :1], y[:, :1], normed[:, :1]
        query = query * attn.scale
        shape = query.shape[2:4]
        still = query.flatten(2, 3) @ whole.keys[index].transpose(-2, -1)
        among = query @ key.transpose(-2, -1)
        weights = torch.cat((still.unflatten(2, shape) + bias, among), dim=-1).softmax(dim=-1)
        seen, kept = weights[..., : x.shape[1]], weights[..., x.shape[1] :]
        out = (seen.flatten(2, 3) @ whole.values[index]).unflatten(2, shape) + kept @ value
        out = attn.norm(out.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(2))
        if attn.gate is not None:
            out = out * attn.gate(normed).sigmoid()
        y = y + block.ls1(attn.proj(out))
        y = y + block.ls2(block.mlp(block.norm2(y)))
    return unit_features(suffix, y).reshape(images, kinds, -1)


def unit_features(suffix: Suffix, x: Tensor) -> Tensor:
    """Turn the class tokens that left the last block, (S, 1, D), into unit features."""
    output: Tensor = suffix.model.forward_head(suffix.model.norm(x))
    return F.normalize(output.float(), dim=-1)


def follow_effort(effort: Effort, count: int, windows: int) -> int:
    """Count multiply-adds per image, the pass of the whole image left out."""
    moved = effort.prefix + count
    choice = windows * effort.patches**2 * (effort.blocks - 1) if count else 0
    if count:  # attention weights are needed that fused attention doesn't show
        choice += effort.tokens * (effort.tokens * (effort.blocks - 1) + 1) * effort.dim
    seen = effort.tokens + moved
    return windows * (effort.inner(moved, seen) + effort.last(moved, seen)) + choice
