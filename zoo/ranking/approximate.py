"""Golden rankings without running every window: ``follow:N`` recomputes the class token and N patch tokens.

docs/approximations.md says how well they agree with exact rankings.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.host import Host
from zoo.core.tokens import Tokens
from zoo.ranking.suffix import Suffix, sequences
from zoo.ranking.windows import Merges, members, sizes_of

FOLLOWED = "follow:0"  # the only approximation that a greedy search or merging can take


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Count multiply-adds of a tower's last ``blocks`` blocks, the very last one for CLS alone.

    ``dim`` is the width D of the tokens, ``hidden`` that of the MLP's hidden layer.
    """

    grid: tuple[int, int]
    blocks: int
    prefix: int = 1
    dim: int = 384
    hidden: int = 1536
    heads: int = 6

    @classmethod
    def of(cls, model: Host, start: int) -> "Effort":
        """Describe a tower from block ``start`` on, with a hidden layer that makes its linear layers as costly."""
        dim, block = model.embed_dim, model.block(0)
        layers = [m for m in block.module.modules() if isinstance(m, nn.Linear)]
        linear = sum(layer.in_features * layer.out_features for layer in layers)
        return cls(
            grid=model.grid,
            blocks=model.depth - start,
            prefix=model.prefix_count,
            dim=dim,
            hidden=(linear - 4 * dim**2) // (2 * dim),
            heads=block.heads,
        )

    @property
    def patches(self) -> int:
        """Number N of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number of tokens of a whole image."""
        return self.prefix + self.patches

    @property
    def linear(self) -> int:
        """Multiply-adds of a block's linear layers for one token."""
        return 4 * self.dim**2 + 2 * self.dim * self.hidden

    @property
    def whole(self) -> int:
        """Multiply-adds of one pass of a whole image: 1 in the unit of ``GoldenEngine.passes``."""
        # ``attend_cls`` forms no keys and values: each head's query meets the tokens themselves.
        last = self.linear + 2 * self.heads * self.dim * self.tokens
        return self.inner(self.tokens, self.tokens) + last

    def inner(self, tokens: int, visible: int) -> int:
        """Count all blocks but the last for ``tokens`` tokens, each attending to ``visible``."""
        return (self.blocks - 1) * tokens * (self.linear + 2 * self.dim * visible)

    def last(self, tokens: int, visible: int) -> int:
        """Count the last block: keys and values of ``tokens`` tokens, the rest for CLS alone."""
        return 2 * self.dim**2 * (tokens - 1) + self.linear + 2 * self.dim * visible


def follow(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window, recomputing only CLS and ``count`` patch tokens.

    When a window goes, the class token no longer attends to it, and the tokens that it attends to
    no longer did. The first is exact here at the cost of one token per window instead of a
    sequence. Of the second, only the patch tokens that carry most of the window are recomputed. All
    others stay as in the whole image, whose keys and values are computed once; with all patch
    tokens outside the window recomputed it is exact. All of it is float32, whatever the suffix's precision.

    Returns:
        Unit features of the whole images (B, D), and of those without each window of ``cells`` (W, r * r), (B, W, D).
    """
    targets, features = [], []
    for part in start.split(max(1, suffix.batch // 4)):
        images, length, _ = part.x.shape
        target, pairs, every = run_whole(suffix, part, cells, choose=count > 0)
        targets.append(target)
        per = max(1, suffix.batch * length // (2 * images * (part.prefix + count)))
        chunks = zip(cells.split(per), every[..., :count].split(per, dim=1), strict=True)
        parts = [_without(suffix, part, pairs, *chunk) for chunk in chunks]
        features.append(torch.cat(parts, dim=1))
    return torch.cat(targets), torch.cat(features)


def follow_merges(suffix: Suffix, start: Tokens, merges: Merges) -> tuple[Tensor, Tensor]:
    """Compute features with each of some merges, recomputing only CLS and the merged token.

    All others stay as in the whole image, but for the two tokens that became one, which nobody sees.
    Results are those of ``follow``; ``merges`` are of single patch tokens.
    """
    sizes = F.pad(sizes_of(start).log(), (start.prefix, 0))
    targets, features = [], []
    for rows in torch.arange(len(start.x), device=start.x.device).split(max(1, suffix.batch // 4)):
        part, bias = start.images(rows), sizes[rows]
        target, pairs, _ = run_whole(suffix, part, merges.gone, choose=False, bias=bias)
        into, count = merges.into[rows], start.patch_count
        gone = merges.gone.expand(len(rows), -1, -1)
        own = torch.arange(start.prefix, device=into.device).expand(len(rows), count, -1)
        hidden = torch.cat((own, gone + start.prefix, into + start.prefix), dim=2)
        old = bias.unsqueeze(1).expand(-1, count, -1).scatter(2, hidden, -torch.inf)
        prefix = part.x[:, None, : start.prefix].expand(-1, count, -1, -1)
        y = torch.cat((prefix, merges.merged[rows]), dim=2).flatten(0, 1)
        idx = part.patch_idx.gather(1, into.squeeze(2)).reshape(-1, 1)
        place = None if merges.place is None else merges.place[rows].reshape(-1, 1, 2)
        short = part._replace(x=y, patch_idx=idx, patch_count=1, place=place, size=None, mass=None)
        new = F.pad(merges.size[rows].log(), (start.prefix, 0))
        targets.append(target)
        features.append(_recomputed(suffix, pairs, short, old, new))
    return torch.cat(targets), torch.cat(features)


def run_whole(
    suffix: Suffix, start: Tokens, cells: Tensor, *, choose: bool, bias: Tensor | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Run whole images and, if ``choose``, find out who carries which window.

    ``bias`` (B, T) is added to the logits of all tokens' keys.

    A patch token carries a window to the class token by attending to it in one block and being
    attended to in a later one. What it carries is estimated by the product of both attentions, mean
    over heads, summed over all such pairs of blocks.

    Returns:
        Unit features (B, D); per block the keys and values (B, H, T, d) of all tokens; and patches
        (B, W, N), those that carry most of a window first and those inside it last.
    """
    tokens, prefix = start, start.prefix
    inside = members(cells, start.patch_count).to(start.x.dtype)
    pairs = []
    # Per window and patch, over the blocks so far: attention of the patch to the window, and the
    # product of that with the class token's attention to the patch.
    reach = carried = start.x.new_zeros(len(start.x), len(inside), inside.shape[1])
    mask = None if bias is None else bias[:, None, None]
    for index, block in enumerate(suffix.blocks):
        last = index == len(suffix.blocks) - 1
        attended = block.attend(tokens, mask)
        pairs.append((attended.key, attended.value))
        if choose:
            # In the last block only the class token's row is needed.
            queries = attended.query[:, :, : 1 if last else None] * attended.scale
            weights = (queries @ attended.key.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)
            carried = carried + reach * weights[:, :1, prefix:]
            if not last:
                reach = reach + inside @ weights[:, prefix:, prefix:].transpose(1, 2)
        x = block.add_attention(tokens.x, attended.out)
        tokens = tokens._replace(x=block.add_mlp(x[:, :1] if last else x))
    carried = carried.masked_fill(inside.bool(), -1)
    carriers = carried.argsort(dim=-1, descending=True, stable=True)
    return unit_features(suffix, tokens), pairs, carriers


def _without(
    suffix: Suffix, start: Tokens, pairs: list[tuple[Tensor, Tensor]], cells: Tensor, carriers: Tensor
) -> Tensor:
    """Compute features of B images without each of w windows, (B, w, D).

    For every window the prefix tokens and ``carriers`` (B, w, n) are recomputed.
    """
    images, kinds, _ = carriers.shape
    device, prefix = carriers.device, start.prefix
    own = torch.arange(prefix, device=device).expand(images, kinds, -1)
    new_idx = torch.cat((own, carriers + prefix), dim=2)
    # All windows of all images are one batch of short sequences, as long as what is recomputed.
    short = sequences(start, torch.arange(images, device=device).repeat_interleave(kinds), carriers.flatten(0, 1))
    # Of the whole image's tokens, hide the window's, which is removed, and those recomputed, whose
    # new keys and values stand beside the old ones.
    hidden = torch.zeros(images, kinds, start.x.shape[1], dtype=torch.bool, device=device)
    hidden = hidden.scatter(2, new_idx, True)
    hidden = hidden.scatter(2, (cells + prefix).expand(images, -1, -1), True)
    bias = torch.zeros_like(hidden, dtype=start.x.dtype).masked_fill(hidden, -torch.inf)
    return _recomputed(suffix, pairs, short, bias)


def _recomputed(
    suffix: Suffix, pairs: list[tuple[Tensor, Tensor]], short: Tokens, bias: Tensor, own_bias: Tensor | None = None
) -> Tensor:
    """Compute features from few tokens of B * w sequences, the class token first, beside ``pairs``.

    ``bias`` (B, w, T) is added to the logits of the whole image's keys, ``own_bias`` (B, w, t) to their own.
    """
    images, kinds = bias.shape[:2]
    bias = bias[:, None, :, None]  # for all heads and queries of a window
    own = 0.0 if own_bias is None else own_bias[:, None, :, None]
    for index, block in enumerate(suffix.blocks):
        y = short.x
        normed = block.norm(y)
        # Each of the three is (B, H, w, tokens of the window, d).
        query, key, value = (
            part.unflatten(0, (images, kinds)).transpose(1, 2) for part in block.queries_keys_values(normed, short)
        )
        if index == len(suffix.blocks) - 1:  # only the class token leaves it
            query, y, normed = query[:, :, :, :1], y[:, :1], normed[:, :1]
        query = query * block.scale
        shape = query.shape[2:4]
        # The old tokens' keys are one per image, so all windows' queries meet them in one product.
        old_logits = query.flatten(2, 3) @ pairs[index][0].transpose(-2, -1)
        new_logits = query @ key.transpose(-2, -1) + own
        logits = torch.cat((old_logits.unflatten(2, shape) + bias, new_logits), dim=-1)
        old, new = logits.softmax(dim=-1).split((bias.shape[-1], key.shape[3]), dim=-1)
        out = (old.flatten(2, 3) @ pairs[index][1]).unflatten(2, shape) + new @ value
        out = out.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(2)
        short = short._replace(x=block.add_mlp(block.add_attention(y, block.project(out, normed))))
    return unit_features(suffix, short).reshape(images, kinds, -1)


def unit_features(suffix: Suffix, tokens: Tokens) -> Tensor:
    """Turn the class tokens that left the last block, (S, 1, D), into unit features."""
    return F.normalize(suffix.model.finish(tokens).float(), dim=-1)


def follow_effort(effort: Effort, count: int, windows: int, merged: int = 0) -> int:
    """Count multiply-adds per image with ``merged`` tokens, the pass of the whole image left out."""
    moved = effort.prefix + count + merged
    choice = windows * effort.patches**2 * (effort.blocks - 1) if count else 0
    if count:  # fused attention doesn't return the weights that choose the carriers
        choice += effort.tokens * (effort.tokens * (effort.blocks - 1) + 1) * effort.dim
    visible = effort.tokens + moved
    return windows * (effort.inner(moved, visible) + effort.last(moved, visible)) + choice


def parse(spec: str) -> int:
    """Return the number of patch tokens that a spec such as ``follow:4`` recomputes per window.

    Raises:
        ValueError: anything else.
    """
    if not (found := re.fullmatch(r"follow:([0-9]+)", spec)):
        raise ValueError(
            f"approximate={spec!r}: expected follow:N with an integer N from 0 (patch tokens per window that feel "
            "its removal)"
        )
    return int(found[1])


def check(spec: str, model: Host, block: int, window: int) -> None:
    """Raise ValueError for more tokens than a window leaves, or a tower whose features ``follow`` can't compute."""
    most = model.grid[0] * model.grid[1] - window**2
    if parse(spec) > most:
        raise ValueError(f"approximate={spec!r}: expected a number from 0 to {most} here")
    if not model.pools_first:
        raise ValueError(
            f"approximate={spec!r} needs features that come from the class token, which this tower pools with others "
            "or lacks; expected none"
        )
    if model.block(block).pairs_places:
        raise ValueError(f"approximate={spec!r} knows no bias for pairs of places, which this tower has; expected none")


def passes(spec: str | None, effort: Effort, windows: int, *, merge: bool = False) -> float:
    """Return what the windows of an image cost, 1 being a pass of a whole image from the block on.

    As in ``GoldenEngine.passes`` a window removed, or merged with ``merge``, counts as 1, and the
    whole image's own pass is left out. ``effort`` is the tower's from the reduction point on.
    """
    if spec is None:
        return windows
    return follow_effort(effort, parse(spec), windows, int(merge)) / effort.whole
