"""The rest of a tower, from one block on, run on many shortened sequences, or on few tokens of each.

Whole sequences go through blocks that are lean where they are timm's plain ones.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.host import Host
from zoo.core.messages import PRECISIONS
from zoo.core.tokens import Tokens, every_position
from zoo.ranking.windows import Merges, members
from zoo.towers.lean import LeanBlock, is_lean

LARGEST_BATCH = {"cpu": 32, "cuda": 1024}  # beyond it nothing gets faster, on a CPU slower
SHARE_OF_FREE = 0.25


class Suffix:
    """A tower from a block on, for sequences that lost patch tokens.

    In ``bfloat16`` or ``float16`` the tokens go through the blocks in that precision. The residual stream, the class
    token's projection and MLP, and the last block where only the class token leaves it stay float32: rounding there
    would not average out, and costs little to avoid.

    ``model`` is dense and in float32, later changes of its weights may go unnoticed; ``index`` is the first block to
    run, ``batch`` the sequences per forward pass, None for what the free memory allows.
    """

    def __init__(self, model: Host, index: int, batch: int | None = None, *, precision: str = "float32") -> None:
        self.model = model
        self.blocks = [model.block(number) for number in range(index, model.depth)]
        # Where more than the class token leaves the tower, the last block is run for all.
        self.whole = self.blocks[:-1] if model.pools_first else self.blocks
        lean = [LeanBlock(b.module, PRECISIONS[precision], cls=True) for b in self.whole if is_lean(b.module)]
        self._lean = lean if len(lean) == len(self.whole) else None
        if self._lean is None and precision != "float32":
            kind = type(self.whole[0].module).__name__
            raise ValueError(f"precision={precision!r}: expected 'float32' for this tower, whose blocks are {kind}")
        like = next(model.parameters())
        self.device = like.device
        rows, columns = model.grid
        self.batch = batch or fitting_batch(model.embed_dim, model.prefix_count + rows * columns, self.device)

    @torch.inference_mode()
    def features(self, start: Tokens, images: Tensor, keep_idx: Tensor) -> Tensor:
        """Compute unit features (S, D) of sequences of which only some patch tokens are left.

        Of the images in ``start``, which enter the first block, sequence s is number ``images[s]``, with its patch
        tokens at ``keep_idx[s]`` (k,) left.
        """
        parts = []
        for part in torch.arange(len(images), device=images.device).split(self.batch):
            features = self._through(sequences(start, images[part], keep_idx[part]))
            parts.append(F.normalize(features.float(), dim=-1))
        return torch.cat(parts)

    def _through(self, tokens: Tokens) -> Tensor:
        """Run token sequences, whose ``x`` is used up, through blocks, norm and head."""
        if self._lean is None:
            for block in self.whole:
                tokens = tokens._replace(x=block.whole(tokens))
        else:
            for lean in self._lean:
                lean.run(tokens.x)
        if self.model.pools_first:
            tokens = tokens._replace(x=self.blocks[-1].first(tokens))
        return self.model.finish(tokens)


def sequences(start: Tokens, images: Tensor, keep_idx: Tensor) -> Tokens:
    """Return sequences of the prefix tokens of ``images`` (S,) and their patch tokens at ``keep_idx`` (S, k).

    Sizes are gone: each token stands for itself.
    """
    prefix = every_position(keep_idx, start.prefix)
    idx = torch.cat((prefix, keep_idx + start.prefix), dim=1)
    return start._replace(
        x=start.x[images.unsqueeze(1), idx],
        patch_idx=start.patch_idx[images.unsqueeze(1), keep_idx],
        place=None if start.place is None else start.place[images.unsqueeze(1), keep_idx],
        size=None,
        mass=None,
        importance=None,
        history=(),
    )


def fitting_batch(dim: int, tokens: int, device: torch.device) -> int:
    """Return how many sequences of ``tokens`` x ``dim`` fit into a share of the free memory."""
    # Residual stream twice, queries, keys, values, hidden layer twice: about 14 D numbers of float32 per token.
    each = 14 * 4 * dim * tokens
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    most = LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"])
    return max(1, min(most, int(SHARE_OF_FREE * free) // each))


def follow(suffix: Suffix, start: Tokens, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute features without each window, recomputing only CLS and ``count`` patch tokens.

    When a window goes, the class token no longer attends to it: that is exact here at the cost of one token per window.
    Nor do the tokens that the class token attends to: of them, only the patch tokens that carry most of the window are
    recomputed. All others stay as in the whole image, whose keys and values are computed once; with all patch tokens
    outside the window recomputed it is exact. All of it is float32, whatever the suffix's precision.

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
    """Compute features with each merge of single patch tokens, recomputing only CLS and the merged token.

    All others stay as in the whole image, but for the two that became one, which nobody sees. Returns as ``follow``.
    """
    sizes = F.pad(start.sizes().log(), (start.prefix, 0))
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
        short = part._replace(x=y, patch_idx=idx, place=place, size=None, mass=None)
        new = F.pad(merges.size[rows].log(), (start.prefix, 0))
        targets.append(target)
        features.append(_recompute(suffix, pairs, short, old, new))
    return torch.cat(targets), torch.cat(features)


def run_whole(
    suffix: Suffix, start: Tokens, cells: Tensor, *, choose: bool, bias: Tensor | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Run whole images and, if ``choose``, find out who carries which window.

    ``bias`` (B, T) is added to the logits of all tokens' keys. A patch token carries a window to the class token by
    attending to it in one block and being attended to in a later one, estimated by the product of both attentions,
    mean over heads, summed over all such pairs of blocks.

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
    """Compute features (B, w, D) without each of w windows, the prefix and ``carriers`` (B, w, n) recomputed."""
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
    return _recompute(suffix, pairs, short, bias)


def _recompute(
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
