"""Towers for inference alone: the same outputs in less time and memory."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn, Self, overload

import torch
from torch import Tensor, nn

from zoo.core.host import Host, HostBlock, share_weights
from zoo.core.settings import PRECISIONS, expected, torch_dtype
from zoo.loading.adopt import image_tower, reduce
from zoo.towers.fused import FusedBlock, Product, is_fusible, special_layer
from zoo.towers.open_clip import ReducedOpenClip
from zoo.towers.vit import TimmHost


@overload
def optimize(model: Host, *, dtype: str | torch.dtype = "float32") -> "OptimizedHost": ...


@overload
def optimize(model: nn.Module, *, dtype: str | torch.dtype = "float32") -> Any: ...


def optimize(model: nn.Module, *, dtype: str | torch.dtype = "float32") -> Any:
    """Return a tower for inference alone that gives the model's outputs in less time and memory.

    It takes images of any floating dtype and gives float32 features. The model stays as it is; weights that nothing
    is folded into are shared with it. After a change of its weights, optimise it again.

    Args:
        model: a tower of timm or open_clip, dense or reduced, or a model that holds one, as for ``zoo.reduce``.
        dtype: of the blocks' matrix products: ``float32``, ``bfloat16`` or ``float16``, or torch's. In low precision
            the batch's size may move features, by up to 7 % seen with rankmerge at keep 0.3 (float32: 3e-6): compare
            features of one batch size.

    Raises:
        ValueError: an unknown dtype, one that the tower's blocks can't have, or a tower in which nothing can be saved.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype={dtype!r}: {expected(dtype, PRECISIONS)}")
    place = image_tower(model)
    if place is not None:
        whole = share_weights(model, type(model))
        whole._modules[place] = optimize(model.get_submodule(place), dtype=dtype)
        return whole
    if isinstance(model, OptimizedHost):
        raise ValueError(f"{type(model).__name__} is optimised already: expected the model that it was made of")
    host: Host = model if isinstance(model, Host) else reduce(model, method=None)
    _check(host, dtype)
    kind: Any = type(host)
    tower = share_weights(_frozen(host), _kind(kind))
    tower.take_apart(torch_dtype(dtype))
    return tower


def _check(host: Host, dtype: str) -> None:
    name, blocks = type(host).__name__, host.block_modules
    other = next((f"{type(b).__name__} of {type(b).__module__}" for b in blocks if not is_fusible(b)), None)
    known = isinstance(host, (TimmHost, ReducedOpenClip))
    if known and other is not None and dtype != "float32":
        raise ValueError(f"dtype={dtype!r}: expected 'float32' for this tower, whose blocks are {other}")
    if not known or (other is not None and not host.pools_first):
        raise ValueError(
            f"nothing to optimise in {name}: its blocks are {other}, and more than the class token leaves the last; "
            "expected plain blocks of timm's vision_transformer, or a tower that pools the class token alone"
        )
    special = next(filter(None, map(special_layer, blocks)), None) if other is None else None
    if special is not None:
        raise ValueError(
            f"optimised blocks need plain linear layers, this tower has {special}; merge adapters into the "
            "weights, or quantize the model instead of optimising it"
        )


def _frozen(host: Host) -> Host:
    """Return a copy in evaluation mode whose weights are float32, without gradients, shared where they were float32."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().float(), requires_grad=False) for p in host.parameters()}
    memo |= {id(b): b.detach().float() if b.is_floating_point() else b.detach() for b in host.buffers()}
    return copy.deepcopy(host, memo).eval()


def _refuse(what: str, instead: str, then: str = ", and optimise that") -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"an optimised model {what}; {instead} the model that it was made of{then}")

    return refuse


class OptimizedHost(Host):
    """A tower of fused blocks, for inference alone, with the given model's ``state_dict``; ``optimize`` makes it."""

    in_place = True
    _blocks: list[HostBlock]

    def take_apart(self, dtype: torch.dtype) -> None:
        """Prepare the blocks; the last one stays the tower's own where it is run for the class token alone."""
        self._blocks = [super(OptimizedHost, self).block(index) for index in range(self.depth)]
        for index, block in enumerate(self._blocks[: self.depth - self.pools_first]):
            if is_fusible(block.module):
                self._blocks[index] = FusedBlock(block.module, dtype, index, block.probe)
        self.__dict__["grad_checkpointing"] = False  # a property in open_clip's
        if dtype != torch.float32 and isinstance(self._blocks[0], FusedBlock):
            self._embed_low(dtype)

    def _embed_low(self, dtype: torch.dtype) -> None:
        """Embed patches by a product in ``dtype`` where that is what timm's convolution is."""
        embed: Any = self._modules.get("patch_embed")
        conv = getattr(embed, "proj", None)
        if type(conv) is nn.Conv2d and conv.stride == conv.kernel_size and conv.padding == (0, 0) and conv.groups == 1:
            product = embed._modules["proj"] = share_weights(conv, PatchProduct)
            product.low = Product(conv.weight.detach().flatten(1).to(dtype), conv.bias)

    # What reaches the tower from now on would not reach its blocks.
    adopt: Any = classmethod(_refuse("can't be changed", "change"))
    load_state_dict: Any = _refuse("takes no other weights", "load them into")
    _apply: Any = _refuse("can't be moved or cast", "move", ", and optimise that with dtype=")
    __reduce_ex__: Any = _refuse("can't be copied or pickled", "copy or save")

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode; raise ValueError if ``mode`` is true."""
        if mode:
            _refuse("can't be trained", "train")()
        return super().train(mode)

    def block(self, index: int) -> HostBlock:
        """Return block ``index``, taken apart."""
        return self._blocks[index]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the head's output, float32, for images (B, C, H, W) of any floating dtype."""
        if attn_mask is not None or is_causal:
            _refuse("takes no attn_mask and no is_causal", "use", "")()
        if x.requires_grad and torch.is_grad_enabled():
            _refuse("has no gradients", "use", ", or torch.no_grad()")()
        tokens, _ = self.advance(self.embed(x.float()), pooled=True)
        return self.finish(tokens)


class PatchProduct(nn.Conv2d):
    """A convolution of patches side by side as one matrix product in low precision; its weight's name stays."""

    low: Product

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to float32 patches (B, D, rows, columns)."""
        height, width = self.kernel_size
        grid = images.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, h, w)
        patches = grid.permute(0, 2, 3, 1, 4, 5).to(self.low.weight.dtype).flatten(3)
        return self.low(patches).permute(0, 3, 1, 2)


@cache
def _kind(host: type[Host]) -> type[OptimizedHost]:
    return type(f"Optimized{host.__name__.removeprefix('Reduced')}", (OptimizedHost, host), {})
