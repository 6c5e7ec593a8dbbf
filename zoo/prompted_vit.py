"""timm's VisionTransformer with room for learned visual tokens and tuned text features."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.prompts import CosineHead, Prompts, PromptShape, VisualPrompts, for_head

_FILES = ("predictor", "prompts")  # arguments that may name a file whose weights come along


class PromptedViT(VisionTransformer):
    """A timm VisionTransformer that may carry learned visual tokens.

    Attributes:
        prompts: gives the learned tokens (depth, count, D) when called, None where there are none.

    Args:
        prompts: fields of ``PromptShape`` of a tuned model, to be filled; see ``zoo.add_prompts``.
            Asked for another number of classes, the model gets timm's plain head instead.
        vit_args: arguments of timm's VisionTransformer.
    """

    def __init__(self, *, prompts: dict[str, int] | None = None, **vit_args: Any) -> None:
        """Build with random weights, learned tokens excepted, which are zeros."""
        shape, classify = for_head(prompts, vit_args)
        super().__init__(**vit_args)
        self.prompts: Prompts | None = None
        if shape is not None:
            new = {k: vit_args.get(k) for k in ("device", "dtype")}
            self.expect(shape, classify=classify, **new)

    def expect(self, shape: PromptShape, *, classify: bool, device: Any, dtype: Any) -> None:
        """Make room for learned visual tokens, and with ``classify`` for tuned text features."""
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prompts = None
        if shape.tokens:
            self.prompts = VisualPrompts(shape.depth, shape.tokens, self.embed_dim, **new)
        if classify:
            head: nn.Module = self.head
            projection = head.projection if isinstance(head, CosineHead) else head
            self.head = CosineHead(projection, shape.features, shape.classes, **new)  # type: ignore[assignment]
            self.num_classes = shape.classes

    @property
    def prefix_count(self) -> int:
        """Number of tokens that are never reduced: timm's prefix tokens and learned ones."""
        return int(self.num_prefix_tokens) + (0 if self.prompts is None else self.prompts.count)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool as timm does; learned tokens are never averaged in."""
        start = self.num_prefix_tokens
        first = self.attn_pool is None and (pool_type or self.global_pool) == "token"
        if self.prompts is not None and not first:
            x = torch.cat((x[:, :start], x[:, self.prefix_count :]), dim=1)
        pooled: Tensor = super().pool(x, pool_type)
        return pooled

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm saves of how this model was made: free of files, whose weights it holds."""
        known: dict[str, Any] = self.__dict__.get("_model_args", {})
        return known

    @_model_args.setter
    def _model_args(self, value: dict[str, Any]) -> None:
        held = {k: v for k, v in self._model_args.items() if k in _FILES}
        named = {k: v for k, v in value.items() if k not in _FILES or isinstance(v, dict)}
        self.__dict__["_model_args"] = held | named
