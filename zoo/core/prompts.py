"""Learned visual tokens of an image tower, and the head of text features."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptShape(NamedTuple):
    """What a tuned model is built from, as JSON values."""

    tokens: int  # learned visual tokens in the sequence, 0 where only the text was tuned
    classes: int  # of the head; 0: it stays the tower's
    features: int  # width of the joint space of images and text


def for_head(prompts: dict[str, int] | None, vit_args: dict[str, Any]) -> tuple[PromptShape | None, bool]:
    """Return a tuned model's shape, and whether the caller wants logits of its classes.

    In that case ``num_classes`` of ``vit_args`` becomes the width of the projection.
    """
    if prompts is None:
        return None, False
    shape = PromptShape(**prompts)
    classify = shape.classes > 0 and vit_args.get("num_classes") == shape.classes
    if classify:
        vit_args["num_classes"] = shape.features
    return shape, classify


class Prompts(nn.Module):
    """Learned prefix tokens, ``count`` in a sequence: never reduced, visible to every block."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the tokens, (count, D)."""


class VisualPrompts(Prompts):
    """Learned prefix tokens by themselves, zeros at first."""

    def __init__(self, count: int, dim: int, *, device: Any, dtype: Any) -> None:
        super().__init__(count)
        self.tokens = nn.Parameter(torch.zeros(count, dim, device=device, dtype=dtype))

    def forward(self) -> Tensor:
        """Return the tokens, (count, D)."""
        return self.tokens


class CoupledPrompts(Prompts):
    """Visual tokens as a linear map of the text's learned tokens, P_v = M P_t + p.

    ``projection`` is M, ``begin`` the fixed p (D). The paper (2409.14607, section 3.4)
    has no p and doesn't say how M begins; ``PromptLearner`` says what we do beside it and why.
    """

    begin: Tensor

    def __init__(self, context: nn.Parameter, begin: Tensor, start: torch.Generator | None = None) -> None:
        """Couple ``context`` (1, count, D_t) to the token ``begin`` (D).

        M begins as zero, or with ``start`` as the random weight of ``nn.Linear``, drawn from it.
        """
        super().__init__(context.shape[1])
        self.context = context
        self.register_buffer("begin", begin, persistent=False)
        self.projection = nn.Linear(context.shape[2], len(begin), bias=False)
        if start is None:
            nn.init.zeros_(self.projection.weight)
        else:
            bound = context.shape[2] ** -0.5
            nn.init.uniform_(self.projection.weight, -bound, bound, generator=start)

    def forward(self) -> Tensor:
        """Return the tokens, (count, D)."""
        return self.projection(self.context[0]) + self.begin


NOISE = 0.05  # of the first visual tokens, as a share of the mean patch's size


def near(patch: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` tokens (count, D) near a patch (D)."""
    noise = torch.randn(count, len(patch), generator=generator).to(patch.device)
    return patch + NOISE * patch.square().mean().sqrt() * noise


def insert(x: Tensor, prefix: int, prompts: Tensor) -> Tensor:
    """Put learned tokens (count, D) behind the prefix tokens of (B, prefix + n, D)."""
    every = prompts.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat((x[:, :prefix], every, x[:, prefix:]), dim=1)


class CosineHead(nn.Module):
    """Classify as CLIP does: by the scaled cosine of image and text features."""

    def __init__(self, projection: nn.Module, features: int, classes: int, *, device: Any, dtype: Any) -> None:
        super().__init__()
        self.projection = projection  # from pooled tokens to the joint space, the dense tower's head
        # Its weights (classes, D) are unit text features times the logit scale.
        self.classes = nn.Linear(features, classes, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled tokens (B, D) to logits (B, classes)."""
        return self.classes(F.normalize(self.projection(x), dim=-1))
