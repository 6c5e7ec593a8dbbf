"""The rest of a tower, from one block on, run on many shortened sequences in equal batches."""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.attention import attend_cls
from zoo.lean import LeanBlock, Scratch
from zoo.tokens import Tokens
from zoo.vit import ReducedViT

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST_BATCH = {"cpu": 32, "cuda": 1024}  # beyond it nothing gets faster, on a CPU slower
SHARE_OF_FREE = 0.25


def best_precision(device: str | torch.device) -> str:
    """Return the precision that is fastest on a device: bfloat16 where its hardware has it."""
    kind = torch.device(device).type
    fast = kind == "cuda" and torch.cuda.is_bf16_supported()
    if kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


class Suffix:
    """A tower from a block on, for sequences that lost patch tokens.

    In ``bfloat16`` or ``float16`` the patch tokens go through the blocks in that precision. The
    residual stream, the class token's own path, and the last block where only the class token
    leaves it stay float32: rounding there would not average out, and costs little to avoid.

    Args:
        model: dense tower in float32.
        block: first block to run, 0-based.
        batch: sequences per forward pass, None for what the free memory allows.
        precision: name in ``PRECISIONS``.
        compiled: use torch.compile; batches then all have one size.
    """

    def __init__(
        self,
        model: ReducedViT,
        block: int,
        *,
        batch: int | None = None,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        """Prepare the blocks; later changes of the model's weights may go unnoticed."""
        self.model = model
        self.block = block
        self.precision = precision
        # Where more than the class token leaves the tower, the last block is run for all.
        self.token_pooled = model.global_pool == "token"
        blocks: Any = model.blocks
        full = len(blocks) - self.token_pooled
        scratch = None if compiled else Scratch()
        self._lean = [LeanBlock(b, PRECISIONS[precision], scratch) for b in blocks[block:full]]
        self.device = next(model.parameters()).device
        tokens = model.prefix_count + model.patch_embed.num_patches
        self.batch = batch or fitting_batch(model.embed_dim, tokens, self.device)
        self._compiled = torch.compile(self._through, dynamic=False) if compiled else None

    @torch.inference_mode()
    def features(self, start: Tokens, rows: Tensor, keep_idx: Tensor) -> Tensor:
        """Compute the features of sequences of which only some patch tokens are left.

        Args:
            start: the tokens of B images that enter the first block.
            rows: (S,) int64, the image of each sequence.
            keep_idx: (S, k) int64, positions of the patch tokens that are left; k may be 0.

        Returns:
            (S, D) float32, of unit length.
        """
        parts = []
        # Whole sequences are few, and another length would be compiled for them alone.
        fixed = self._compiled if keep_idx.shape[1] < start.patch_count else None
        run = fixed or self._through
        for part in torch.arange(len(rows), device=rows.device).split(self.batch):
            row, keep = rows[part], keep_idx[part]
            if fixed and len(part) < self.batch:
                row, keep = (_repeated(t, self.batch) for t in (row, keep))
            idx = torch.cat((_prefix_idx(start, len(row)), keep + start.prefix), dim=1)
            features = run(start.x[row.unsqueeze(1), idx])
            parts.append(F.normalize(features[: len(part)].float(), dim=-1))
        return torch.cat(parts)

    def _through(self, x: Tensor) -> Tensor:
        """Run token sequences (S, T, D), which are used up, through blocks, norm and head."""
        for block in self._lean:
            block.run(x)
        if self.token_pooled:
            x = attend_cls(self.model.blocks[-1], x)
        output: Tensor = self.model.forward_head(self.model.norm(x))
        return output


def _prefix_idx(start: Tokens, count: int) -> Tensor:
    return torch.arange(start.prefix, device=start.x.device).expand(count, -1)


def _repeated(rows: Tensor, count: int) -> Tensor:
    """Repeat the last row until there are ``count``."""
    return torch.cat((rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])))


def fitting_batch(dim: int, tokens: int, device: torch.device) -> int:
    """Return how many sequences fit into a share of the memory that is free now.

    Args:
        dim: width D of the tokens.
        tokens: tokens per sequence.
        device: where they will be.
    """
    # Residual stream twice, queries, keys, values, and the MLP's hidden layer before and after
    # its activation: about 14 D numbers per token, counted as float32.
    each = 14 * 4 * dim * tokens
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    most = LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"])
    return max(1, min(most, int(SHARE_OF_FREE * free) // each))
