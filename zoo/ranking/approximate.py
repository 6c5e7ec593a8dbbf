"""Approximate golden rankings, as ``GoldenConfig.approximate`` names them, and their costs.

docs/approximations.md says how well each agrees with exact rankings.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.host import Host
from zoo.core.messages import expected
from zoo.core.tokens import Tokens
from zoo.ranking.suffix import Suffix, sequences
from zoo.ranking.windows import Merges, members, sizes_of


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

    def inner(self, tokens: int, visible: int, products: int = 2) -> int:
        """Count all blocks but the last for ``tokens`` tokens, each attending to ``visible``.

        Attention takes 2 matrix ``products`` forwards, and 5 backwards where its weights are
        computed anew, as fused attention does.
        """
        return (self.blocks - 1) * tokens * (self.linear + products * self.dim * visible)

    def last(self, tokens: int, visible: int, products: int = 2) -> int:
        """Count the last block: keys and values of ``tokens`` tokens, the rest for CLS alone."""
        return 2 * self.dim**2 * (tokens - 1) + self.linear + products * self.dim * visible


def follow(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window, recomputing only CLS and ``count`` patch tokens.

    When a window goes, the class token no longer attends to it, and the tokens that it attends to
    no longer did. The first is exact here at the cost of one token per window instead of a
    sequence. Of the second, only the patch tokens that carry most of the window are recomputed. All
    others stay as in the whole image, whose keys and values are computed once; with all patch
    tokens outside the window recomputed it is exact.

    Arguments and results are those of ``Kind.run``.
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
    Results are those of ``Kind.run``; ``merges`` are of single patch tokens.
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


WIDER = 8  # dimensions added to the heads; fused attention likes multiples of 8


def jacobian(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window to first order, along ``count`` directions.

    A gate on the attention to each patch token, 1 in the whole image and 0 where it is removed,
    makes the features a smooth function. Its derivative by all gates along one direction of
    features takes one backward pass, and a window's is the sum over its patches. Features vary
    along few directions when windows go, so few passes suffice. The directions are, image by image,
    the principal ones of how the features move when only the class token is recomputed (``follow``
    with no other token).

    Arguments and results are those of ``Kind.run``.
    """
    targets, features = [], []
    for part in start.split(max(1, suffix.batch // 16)):
        target, moved = follow(suffix, part, cells, 0)
        shift = moved - target.unsqueeze(1)
        shift = shift - (shift @ target.unsqueeze(2)) * target.unsqueeze(1)
        basis = torch.linalg.svd(shift, full_matrices=False).Vh[:, :count]
        slopes = gate_slopes(suffix, part, basis)
        # Removal takes the gates from 1 to 0, hence the sign.
        change = -slopes[:, :, cells].sum(dim=-1).transpose(1, 2) @ basis
        targets.append(target)
        features.append(F.normalize(target.unsqueeze(1) + change, dim=-1))
    return torch.cat(targets), torch.cat(features)


def gate_slopes(suffix: Suffix, start: Tokens, directions: Tensor) -> Tensor:
    """Differentiate unit features along ``directions`` (B, K, D) by all gates at 1, (B, K, N)."""
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode take no part in gradients; copies do.
        x, directions = start.x.clone(), directions.clone()
        # The logarithm of the gates: added to the logits, and of the same derivative at 1.
        gates = x.new_zeros(len(x), start.patch_count, requires_grad=True)
        features = gated(suffix, start._replace(x=x), F.pad(gates, (start.prefix, 0)))
        slopes = [
            torch.autograd.grad((features * direction).sum(), gates, retain_graph=True)[0]
            for direction in directions.unbind(1)
        ]
    return torch.stack(slopes, dim=1)


def gated(suffix: Suffix, start: Tokens, gates: Tensor) -> Tensor:
    """Compute unit features (B, D) with ``gates`` (B, T) added to the logits of all attention.

    The gates travel as one more dimension of the keys, as attention with a mask that wants a
    gradient is not fused.
    """
    tokens = start
    for index, block in enumerate(suffix.blocks):
        x = tokens.x
        normed = block.norm(x)
        query, key, value = block.queries_keys_values(normed, tokens)
        if index == len(suffix.blocks) - 1:
            query, x, normed = query[:, :, :1], x[:, :1], normed[:, :1]
        one = torch.full_like(query[..., :1], 1 / block.scale)
        gate = gates[:, None, :, None].expand(-1, block.heads, -1, 1)
        out = F.scaled_dot_product_attention(
            F.pad(torch.cat((query, one), dim=-1), (0, WIDER - 1)),
            F.pad(torch.cat((key, gate), dim=-1), (0, WIDER - 1)),
            F.pad(value, (0, WIDER)),
            scale=block.scale,
        )[..., : value.shape[-1]]
        out = block.project(out.transpose(1, 2).flatten(2), normed)
        tokens = tokens._replace(x=block.add_mlp(block.add_attention(x, out)))
    return unit_features(suffix, tokens)


Run = Callable[[Suffix, Tokens, Tensor, int], tuple[Tensor, Tensor]]


class Kind(NamedTuple):
    """A way to be cheaper, with one number that says how much.

    Attributes:
        number: what the number is.
        low: least number.
        run: from suffix (in float32 whatever its precision), tokens at the block, windows
            (W, r * r) and the number to unit features of whole images (B, D) and of those without
            each window (B, W, D); None where windows are removed for real, from a tower that
            ends early.
    """

    number: str
    low: int
    run: Run | None


SHALLOW = "shallow"
FOLLOWED = "follow:0"  # the approximation that a greedy search or merging can take
KINDS = {
    "follow": Kind("patch tokens per window that feel its removal", 0, follow),
    "jacobian": Kind("directions of features, each a backward pass", 1, jacobian),
    SHALLOW: Kind("the last block that is run, 0-based", 0, None),
}


def parse(spec: str) -> tuple[str, int]:
    """Split a spec such as ``follow:4`` into its kind and number.

    Raises:
        ValueError: no such kind, or no number in its range.
    """
    kind, _, number = spec.partition(":")
    if kind not in KINDS:
        known = ", ".join(f"{name}:N" for name in KINDS)
        raise ValueError(f"approximate={spec!r}: {expected(kind, KINDS)}, as in {known}")
    low = KINDS[kind].low
    if not re.fullmatch(r"[0-9]+", number) or int(number) < low:
        raise ValueError(f"approximate={spec!r}: expected {kind}:N with an integer N from {low} ({KINDS[kind].number})")
    return kind, int(number)


def fitting(spec: str, effort: Effort, block: int, window: int, windows: int) -> tuple[int, int]:
    """Return the least and the greatest number that a spec of this kind can have on a tower.

    ``effort`` is the tower's from reduction point ``block`` on; ``windows`` of side ``window``.
    """
    highest = {"follow": effort.patches - window**2, "jacobian": windows, SHALLOW: block + effort.blocks - 1}
    kind, _ = parse(spec)
    return block if kind == SHALLOW else KINDS[kind].low, highest[kind]


def check(spec: str, model: Host, block: int, window: int, windows: int) -> None:
    """Raise ValueError for a number that doesn't fit, or features of more than the class token."""
    kind, number = parse(spec)
    low, high = fitting(spec, Effort.of(model, block), block, window, windows)
    if not low <= number <= high:
        raise ValueError(f"approximate={spec!r}: expected a number from {low} to {high} here ({KINDS[kind].number})")
    if KINDS[kind].run is None:
        return
    if not model.pools_first:
        raise ValueError(
            f"approximate={spec!r} needs features that come from the class token, which this tower pools with others "
            f"or lacks; expected none, or {SHALLOW}:N"
        )
    if model.block(block).pairs_places:
        raise ValueError(
            f"approximate={spec!r} knows no bias for pairs of places, which this tower has; "
            f"expected none, or {SHALLOW}:N"
        )


def last_block(model: Host, spec: str | None) -> int:
    """Return the block with which the tower ends whose features are compared: an early one for ``shallow``."""
    if spec is None or parse(spec)[0] != SHALLOW:
        return model.depth - 1
    return parse(spec)[1]


def quick_features(spec: str | None, suffix: Suffix, start: Tokens, cells: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what ``Kind.run`` does, None where windows are removed for real."""
    if spec is None:
        return None
    kind, number = parse(spec)
    run = KINDS[kind].run
    return None if run is None else run(suffix, start, cells, number)


def approximate_passes(spec: str | None, effort: Effort, block: int, windows: int, *, merge: bool = False) -> float:
    """Return what the windows of an image cost, 1 being a pass of a whole image from the block on.

    As in ``GoldenEngine.passes`` a window removed, or merged with ``merge``, counts as 1, and the
    whole image's own pass is left out. ``effort`` is the tower's from reduction point ``block`` on.
    """
    if spec is None:
        return windows
    kind, number = parse(spec)
    if kind == "follow":
        return follow_effort(effort, number, windows, int(merge)) / effort.whole
    if kind == "jacobian":
        passed = effort.tokens, effort.tokens
        forward, backward = (effort.inner(*passed, n) + effort.last(*passed, n) for n in (2, 5))
        slopes = forward + number * backward
        return (follow_effort(effort, 0, windows) + slopes) / effort.whole
    return windows * replace(effort, blocks=number - block + 1).whole / effort.whole
