"""Learned visual tokens of an image tower, and the head that classifies by text features."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.tokens import Tokens


class PromptShape(NamedTuple):
    """What a tuned model is built from, as JSON values.

    Attributes:
        tokens: learned visual tokens in the sequence, 0 where only the text was tuned.
        depth: blocks that get visual tokens of their own at their input, from block 0 on.
        classes: what its head tells apart.
        features: width of the joint space of images and text.
    """

    tokens: int
    depth: int
    classes: int
    features: int


def for_head(
    prompts: dict[str, int] | None, vit_args: dict[str, Any]
) -> tuple[PromptShape | None, bool]:
    """Read a tuned model's shape, and give ``vit_args`` the width that its projection has.

    Returns:
        The shape, None for a model that isn't tuned; and whether the tuned classes are asked for.
    """
    if prompts is None:
        return None, False
    shape = PromptShape(**prompts)
    classify = vit_args.get("num_classes") == shape.classes
    if classify:
        vit_args["num_classes"] = shape.features
    return shape, classify


class Prompts(nn.Module):
    """Learned prefix tokens: they are never reduced, and every block sees them.

    Attributes:
        count: how many are in the sequence.
        depth: blocks with tokens of their own; the other blocks see what the last of these made of
            its tokens.
    """

    def __init__(self, depth: int, count: int) -> None:
        """Remember how many there are."""
        super().__init__()
        self.depth, self.count = depth, count

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the tokens of every depth, (depth, count, D)."""


class VisualPrompts(Prompts):
    """Learned prefix tokens by themselves."""

    def __init__(self, depth: int, count: int, dim: int, *, device: Any, dtype: Any) -> None:
        """Begin with zeros, to be filled."""
        super().__init__(depth, count)
        self.tokens = nn.Parameter(torch.zeros(depth, count, dim, device=device, dtype=dtype))

    def forward(self) -> Tensor:
        """Return the tokens of every depth, (depth, count, D)."""
        return self.tokens


class CoupledPrompts(Prompts):
    """Visual tokens that follow the text's learned tokens, P_v = M P_t + p.

    Attributes:
        context: (1, depth, count, D_t), shared with the text side.
        projection: M, one for all depths; zeros at first.
        begin: p, (depth, 1, D), fixed: what the tokens are at first. The paper has none; see
            ``zoo.prompt_learner.PromptLearner`` for why there is one.
    """

    begin: Tensor

    def __init__(self, context: nn.Parameter, begin: Tensor) -> None:
        """Couple ``context`` to tokens that begin as ``begin`` (depth, D), all of a depth alike."""
        super().__init__(context.shape[1], context.shape[2])
        self.context = context
        self.register_buffer("begin", begin[:, None], persistent=False)
        self.projection = nn.Linear(context.shape[3], begin.shape[1], bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self) -> Tensor:
        """Return the tokens of every depth, (depth, count, D)."""
        tokens: Tensor = self.projection(self.context[0]) + self.begin
        return tokens


def insert(x: Tensor, prefix: int, prompts: Tensor) -> Tensor:
    """Put learned tokens behind the other prefix tokens, position embeddings being added already.

    Args:
        x: (B, prefix + n, D).
        prefix: number of prefix tokens in ``x``.
        prompts: (count, D).

    Returns:
        (B, prefix + count + n, D).
    """
    every = prompts.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat((x[:, :prefix], every, x[:, prefix:]), dim=1)


def renew(tokens: Tokens, prompts: Tensor) -> Tokens:
    """Replace the last prefix tokens, which the block before left, by ``prompts`` (count, D)."""
    start = tokens.prefix - prompts.shape[0]
    rest = torch.cat((tokens.x[:, :start], tokens.x[:, tokens.prefix :]), dim=1)
    return tokens._replace(x=insert(rest, start, prompts))


class CosineHead(nn.Module):
    """Classify as CLIP does: by the scaled cosine of image and text features.

    Attributes:
        projection: from pooled tokens to the joint space, the dense tower's head.
        classes: linear, its weights (classes, D) being unit text features times the logit scale.
    """

    def __init__(
        self, projection: nn.Module, features: int, classes: int, *, device: Any, dtype: Any
    ) -> None:
        """Take over the projection; the classes' weights are to be filled."""
        super().__init__()
        self.projection = projection
        self.classes = nn.Linear(features, classes, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled tokens (B, D) to logits (B, classes)."""
        logits: Tensor = self.classes(F.normalize(self.projection(x), dim=-1))
        return logits
