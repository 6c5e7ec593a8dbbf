"""Class names behind learned context words, through a frozen text tower (CoOp, 2109.01134)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from zoo.text import CompactText, OpenClipText


class TextParts(NamedTuple):
    """The parts of a causal text tower that embeddings go through.

    Attributes:
        embed: from token ids (B, L) to embeddings (B, L, D).
        tower: holds position table, blocks, final norm and projection, named as in open_clip.
    """

    embed: Callable[[Tensor], Tensor]
    tower: Any

    @property
    def context_length(self) -> int:
        """Longest sequence, start and end included."""
        return len(self.tower.positional_embedding)

    @property
    def width(self) -> int:
        """Channels of a text token."""
        return int(self.tower.positional_embedding.shape[1])

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.tower.transformer.resblocks)


def text_parts(text: nn.Module) -> TextParts:
    """Take a text tower apart.

    Raises:
        ValueError: not open_clip's causal text transformer with a feature at the end of the text.
    """
    if isinstance(text, CompactText):
        table = text.tower.token_embedding
        return TextParts(lambda ids: table(text.rows(ids)), text.tower)
    inner: Any = text.model if isinstance(text, OpenClipText) else text
    inner = inner if isinstance(inner, CLIP) else getattr(inner, "text", inner)
    pool = getattr(inner, "text_pool_type", getattr(inner, "pool_type", None))
    plain = isinstance(inner, (CLIP, TextTransformer)) and inner.attn_mask is not None
    if not plain or pool != "argmax" or getattr(inner, "cls_emb", None) is not None:
        raise ValueError(
            f"text tower {type(inner).__name__}: learned context needs open_clip's causal "
            "TextTransformer whose feature is the end token's; tune visual tokens only (v)"
        )
    return TextParts(inner.token_embedding, inner)


class PromptedText(nn.Module):
    """Map class names behind learned tokens, as in "[context] ankle boot.", to features.

    The context takes positions 1 to its length, the name those behind it. Where a sequence would
    be longer than the tower's position table, as many of the last context tokens as needed share
    the last position that the longest name leaves: the tower's blocks take any length, and what a
    learned token's own position is worth, it can learn.

    Attributes:
        context: (1 or classes, depth, count, D) learned tokens.
        checkpointing: compute each block again for its gradients, for less memory.

    Args:
        text: the text tower.
        tokenize: its tokenizer, open_clip's byte-pair encoding.
        classes: names.
        count: context tokens.
        depth: blocks that get context of their own at their input, from the first on.
        class_specific: every class has a context of its own.
        init: words to begin with, next to the name; None for small random numbers.
        generator: draws them.

    Raises:
        ValueError: a tower or tokenizer that can't be prompted, a name with unknown words or too
            long, more words in ``init`` than tokens, or a depth that the tower hasn't.
    """

    words: Tensor
    positions: Tensor
    ends: Tensor

    def __init__(
        self,
        text: nn.Module,
        tokenize: Any,
        classes: Sequence[str],
        *,
        count: int,
        depth: int = 1,
        class_specific: bool = False,
        init: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Embed the names, which never change, and begin with a context."""
        super().__init__()
        self.checkpointing = False
        self.parts = text_parts(text)
        if not isinstance(tokenize, SimpleTokenizer):
            raise ValueError(
                f"tokenizer {type(tokenize).__name__}: expected open_clip's SimpleTokenizer"
            )
        if depth > self.parts.depth:
            raise ValueError(f"depth={depth}: the text tower has {self.parts.depth} blocks")
        rows = 1 if not class_specific else len(classes)
        context = 0.02 * torch.randn(rows, depth, count, self.parts.width, generator=generator)
        device = self.parts.tower.positional_embedding.device
        with torch.no_grad():
            if init is not None:
                begin = self._embedded(tokenize, [init], device)[0][0, 1:-1]
                if len(begin) > count:
                    raise ValueError(f"init={init!r} is {len(begin)} tokens, more than {count}")
                context[:, 0, count - len(begin) :] = begin.cpu()
            words, ends = self._embedded(tokenize, [f"{name}." for name in classes], device)
        self.context = nn.Parameter(context.to(device))
        length = words.shape[1]
        room = self.parts.context_length - length
        last = min(count, max(room, 1))
        places = [0, *(min(i, last) for i in range(1, count + 1))]
        places += [min(last, room) + i for i in range(1, length)]
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("ends", ends + count, persistent=False)
        self.register_buffer("positions", torch.tensor(places, device=device), persistent=False)

    def _embedded(self, tokenize: Any, texts: list[str], device: Any) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, L, D) up to the longest text's end, and the place of each end."""
        for text in texts:
            if len(tokenize.encode(text)) + 2 > self.parts.context_length:
                raise ValueError(
                    f"{text!r} is longer than the text tower's {self.parts.context_length} tokens"
                )
        ids = tokenize(texts).to(device)
        ends = ids.argmax(dim=1)
        ids = ids[:, : int(ends.max()) + 1]
        return self.parts.embed(ids).float(), ends

    def forward(self) -> Tensor:
        """Return the classes' features, (classes, D) of unit length."""
        tower, context = self.parts.tower, self.context
        size, count = len(self.words), context.shape[2]
        learned = context.expand(size, -1, -1, -1)
        x = torch.cat((self.words[:, :1], learned[:, 0], self.words[:, 1:]), dim=1)
        x = x + tower.positional_embedding[self.positions]
        mask = x.new_full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        stacked = tower.transformer.batch_first
        for index, block in enumerate(tower.transformer.resblocks):
            if 0 < index < context.shape[1]:
                x = torch.cat((x[:, :1], learned[:, index], x[:, 1 + count :]), dim=1)
            y = x if stacked else x.transpose(0, 1)
            run = partial(checkpoint, block) if self.checkpointing else block
            y = run(y, attn_mask=mask)
            x = y if stacked else y.transpose(0, 1)
        x = tower.ln_final(x[torch.arange(size, device=x.device), self.ends])
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return F.normalize(x.float(), dim=-1)
