"""Windows of patches, and the rest of a tower, from one block on, run without them.

Whole sequences go through blocks that are fused where they are timm's plain ones.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.host import Host
from zoo.core.settings import torch_dtype
from zoo.core.tokens import Tokens, every_position
from zoo.towers.fused import FusedBlock, is_fusible

SHARE_OF_FREE = 0.25  # of the memory, for one batch


def windows(grid: tuple[int, int], window: int, stride: int) -> Tensor:
    """List the square windows of a patch grid, (W, r * r) int64 patch positions; the last touch the border."""
    if window > min(grid):
        raise ValueError(f"window={window!r}: larger than the {grid[0]} x {grid[1]} patch grid")
    starts = [sorted({*range(0, side - window + 1, stride), side - window}) for side in grid]
    inside = (torch.arange(window)[:, None] * grid[1] + torch.arange(window)).flatten()
    corners = torch.tensor([row * grid[1] + column for row in starts[0] for column in starts[1]])
    return corners[:, None] + inside


def members(cells: Tensor, count: int) -> Tensor:
    """Return a mask (W, count) bool of the patches inside windows (W, r * r)."""
    inside = torch.zeros(len(cells), count, dtype=torch.bool, device=cells.device)
    return inside.scatter(1, cells, True)


def outside(inside: Tensor) -> Tensor:
    """List the patches that sets (S, N) bool of one size leave, (S, k) int64 ascending."""
    return (~inside).nonzero()[:, 1].reshape(len(inside), -1)


def mean_over_windows(scores: Tensor, cells: Tensor, count: int) -> Tensor:
    """Average window scores (B, W) over the windows that cover each patch, (B, count).

    The paper divides by the window's area, which would give patches at the border, covered by fewer windows, less.
    """
    cover = members(cells, count).to(scores.dtype)
    return scores @ cover / cover.sum(dim=0)


class Suffix:
    """A dense float32 tower from block ``index`` on, for sequences that lost patch tokens.

    In ``bfloat16`` or ``float16`` the tokens go through the blocks in that precision. The residual stream, the class
    token's projection and MLP, and the last block where only the class token leaves it stay float32: rounding there
    would not average out. ``batch`` is the sequences per forward pass, None for what the free memory allows.
    """

    def __init__(self, model: Host, index: int, batch: int | None = None, *, precision: str = "float32") -> None:
        self.model = model
        self.blocks = [model.block(number) for number in range(index, model.depth)]
        # Where more than the class token leaves the tower, the last block is run for all.
        self.whole = self.blocks[:-1] if model.pools_first else self.blocks
        fused = [FusedBlock(b.module, torch_dtype(precision), cls=True) for b in self.whole if is_fusible(b.module)]
        self._fused = fused if len(fused) == len(self.whole) else None
        if self._fused is None and precision != "float32":
            kind = type(self.whole[0].module).__name__
            raise ValueError(f"precision={precision!r}: expected 'float32' for this tower, whose blocks are {kind}")
        like = next(model.parameters())
        self.device = like.device
        rows, columns = model.grid
        self.batch = batch or _fitting_batch(model.embed_dim, model.prefix_count + rows * columns, self.device)

    @torch.inference_mode()
    def features(self, start: Tokens, images: Tensor, keep_idx: Tensor) -> Tensor:
        """Compute unit features (S, D) of ``images`` (S,) of ``start`` with patch tokens ``keep_idx`` (S, k) alone."""
        every = torch.arange(len(images), device=images.device).split(self.batch)
        return torch.cat([self._through(sequences(start, images[part], keep_idx[part])) for part in every])

    def _through(self, tokens: Tokens) -> Tensor:
        """Run token sequences, whose ``x`` is used up, to unit features."""
        if self._fused is None:
            for block in self.whole:
                tokens = tokens._replace(x=block.whole(tokens))
        else:
            for fused in self._fused:
                fused.run(tokens.x)
        if self.model.pools_first:
            tokens = tokens._replace(x=self.blocks[-1].first(tokens))
        return self.finish(tokens)

    def finish(self, tokens: Tokens) -> Tensor:
        """Turn tokens that left the last block, at least the class token, into unit features."""
        return F.normalize(self.model.finish(tokens).float(), dim=-1)


def sequences(start: Tokens, images: Tensor, keep_idx: Tensor) -> Tokens:
    """Return sequences of the prefix tokens of ``images`` (S,) and their patch tokens at ``keep_idx`` (S, k)."""
    prefix = every_position(keep_idx, start.prefix)
    idx = torch.cat((prefix, keep_idx + start.prefix), dim=1)
    return start._replace(
        x=start.x[images.unsqueeze(1), idx],
        patch_idx=start.patch_idx[images.unsqueeze(1), keep_idx],
        importance=None,
        history=(),
    )


def _fitting_batch(dim: int, tokens: int, device: torch.device) -> int:
    # Residual stream twice, queries, keys, values, hidden layer twice: about 14 D numbers of float32 per token.
    each = 14 * 4 * dim * tokens
    if device.type == "cuda":
        most, free = 1024, torch.cuda.mem_get_info(device)[0]
    else:
        most, free = 32, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")  # more is slower
    return max(1, min(most, int(SHARE_OF_FREE * free) // each))


def follow(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window, recomputing only CLS and the ``count`` patch tokens that carry most of it.

    All others stay as in the whole image, whose keys and values are computed once; with all patch tokens outside the
    window recomputed it is exact. All of it is float32, whatever the suffix's precision.

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


def run_whole(
    suffix: Suffix, start: Tokens, cells: Tensor, *, choose: bool
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Run whole images and, if ``choose``, find out who carries which window.

    A patch token carries a window to the class token by attending to it in one block and being attended to in a later
    one, estimated by the product of both attentions, mean over heads, summed over all such pairs of blocks.

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
    for index, block in enumerate(suffix.blocks):
        last = index == len(suffix.blocks) - 1
        attended = block.attend(tokens)
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
    return suffix.finish(tokens), pairs, carriers


def _without(
    suffix: Suffix, start: Tokens, pairs: list[tuple[Tensor, Tensor]], cells: Tensor, carriers: Tensor
) -> Tensor:
    """Compute features (B, w, D) without each of w windows, the prefix and ``carriers`` (B, w, n) recomputed."""
    images, kinds, _ = carriers.shape
    device, prefix = carriers.device, start.prefix
    prefix_idx = torch.arange(prefix, device=device).expand(images, kinds, -1)
    new_idx = torch.cat((prefix_idx, carriers + prefix), dim=2)
    # All windows of all images are one batch of short sequences, as long as what is recomputed.
    short = sequences(start, torch.arange(images, device=device).repeat_interleave(kinds), carriers.flatten(0, 1))
    # Of the whole image's tokens, hide the window's, which is removed, and those recomputed, whose
    # new keys and values stand beside the old ones.
    hidden = torch.zeros(images, kinds, start.x.shape[1], dtype=torch.bool, device=device)
    hidden = hidden.scatter(2, new_idx, True)
    hidden = hidden.scatter(2, (cells + prefix).expand(images, -1, -1), True)
    bias = torch.zeros_like(hidden, dtype=start.x.dtype).masked_fill(hidden, -torch.inf)
    return _recompute(suffix, pairs, short, bias)


def _recompute(suffix: Suffix, pairs: list[tuple[Tensor, Tensor]], short: Tokens, bias: Tensor) -> Tensor:
    """Compute features from few tokens of B * w sequences, the class token first, beside ``pairs``.

    ``bias`` (B, w, T) is added to the logits of the whole image's keys.
    """
    images, kinds = bias.shape[:2]
    bias = bias[:, None, :, None]  # for all heads and queries of a window
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
        new_logits = query @ key.transpose(-2, -1)
        logits = torch.cat((old_logits.unflatten(2, shape) + bias, new_logits), dim=-1)
        old, new = logits.softmax(dim=-1).split((bias.shape[-1], key.shape[3]), dim=-1)
        out = (old.flatten(2, 3) @ pairs[index][1]).unflatten(2, shape) + new @ value
        out = out.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(2)
        short = short._replace(x=block.add_mlp(block.add_attention(y, block.project(out, normed))))
    return suffix.finish(short).reshape(images, kinds, -1)
