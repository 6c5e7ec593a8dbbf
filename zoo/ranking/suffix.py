"""The rest of a tower, from one block on, run on many shortened sequences in equal batches.

Its blocks are lean where they are timm's plain ones.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.host import Host
from zoo.core.precision import PRECISIONS
from zoo.core.tokens import Tokens, every_position
from zoo.towers.lean import LeanBlock, is_lean

LARGEST_BATCH = {"cpu": 32, "cuda": 1024}  # beyond it nothing gets faster, on a CPU slower
SHARE_OF_FREE = 0.25


class Suffix:
    """A tower from a block on, for sequences that lost patch tokens.

    In ``bfloat16`` or ``float16`` the tokens go through the blocks in that precision. The residual stream, the class
    token's projection and MLP, and the last block where only the class token leaves it stay float32: rounding there
    would not average out, and costs little to avoid.

    ``model`` is dense and in float32, ``index`` the first block to run, ``batch`` the sequences per forward pass, None
    for what the free memory allows. ``compiled`` uses torch.compile.
    """

    def __init__(
        self,
        model: Host,
        index: int,
        batch: int | None = None,
        *,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        """Prepare the blocks; later changes of the model's weights may go unnoticed."""
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
        self._compiled = torch.compile(self._through, dynamic=False) if compiled else None

    @torch.inference_mode()
    def features(self, start: Tokens, images: Tensor, keep_idx: Tensor) -> Tensor:
        """Compute unit features (S, D) of sequences of which only some patch tokens are left.

        Of the images in ``start``, which enter the first block, sequence s is number ``images[s]``,
        with its patch tokens at ``keep_idx[s]`` (k,) left; k may be 0, of which a tower that pools patch tokens makes
        zeros.
        """
        if keep_idx.shape[1] == 0 and not self.model.pools_first:
            one = self.features(start, images[:1], every_position(start.x[:1], start.patch_count))
            return torch.zeros_like(one).expand(len(images), -1)
        parts = []
        # Whole sequences are few, and another length would be compiled for them alone.
        fixed = self._compiled if keep_idx.shape[1] < start.patch_count else None
        for part in torch.arange(len(images), device=images.device).split(self.batch):
            # A last batch that is too short for what was compiled repeats its last sequence.
            missing = self.batch - len(part) if fixed else 0
            full = torch.cat((part, part[-1:].expand(missing)))
            features = (fixed or self._through)(sequences(start, images[full], keep_idx[full]))
            parts.append(F.normalize(features[: len(part)].float(), dim=-1))
        return torch.cat(parts)

    def _through(self, tokens: Tokens) -> Tensor:
        """Run token sequences, whose ``x`` is used up, through blocks, norm and head."""
        if self._lean is None:
            for block in self.whole:
                tokens = tokens._replace(x=block.whole(tokens))
        else:
            for lean in self._lean:
                lean.run(tokens.x)
        return self.output(tokens)

    def output(self, tokens: Tokens) -> Tensor:
        """Return what the tower makes of tokens that entered the last block, or left it where all of them are read."""
        if self.model.pools_first:
            tokens = tokens._replace(x=self.blocks[-1].first(tokens))
        return self.model.finish(tokens)


def sequences(start: Tokens, images: Tensor, keep_idx: Tensor) -> Tokens:
    """Return sequences of the prefix tokens of ``images`` (S,) and their patch tokens at ``keep_idx`` (S, k).

    Sizes are gone: each token stands for itself.
    """
    prefix = torch.arange(start.prefix, device=images.device).expand(len(images), -1)
    idx = torch.cat((prefix, keep_idx + start.prefix), dim=1)
    return start._replace(
        x=start.x[images.unsqueeze(1), idx],
        patch_idx=start.patch_idx[images.unsqueeze(1), keep_idx],
        patch_count=keep_idx.shape[1],
        place=None if start.place is None else start.place[images.unsqueeze(1), keep_idx],
        size=None,
        mass=None,
        importance=None,
        history=(),
    )


def fitting_batch(dim: int, tokens: int, device: torch.device) -> int:
    """Return how many sequences of ``tokens`` x ``dim`` fit into a share of the free memory."""
    # Residual stream twice, queries, keys, values, and the MLP's hidden layer before and after
    # its activation: about 14 D numbers per token, counted as float32.
    each = 14 * 4 * dim * tokens
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    most = LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"])
    return max(1, min(most, int(SHARE_OF_FREE * free) // each))
