"""What torch.fx and TorchScript need: a tower as one straight line of calls, and checks in it.

Both look at code before any image is there. Whatever depends on an image's shape alone is known
from the tower already, so the recording has no branches; it holds for one input size and for the
mode, training or not, in which it was made.
"""

import torch.fx
from torch import Tensor, nn


class _Recorder(torch.fx.Tracer):
    """Record our own code call by call, and timm's and torch's modules as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether ``m`` is one call in the recording."""
        theirs = type(m).__module__.startswith("timm.")
        return theirs or super().is_leaf_module(m, module_qualified_name)


def straight_line(model: nn.Module) -> torch.fx.GraphModule:
    """Record ``model`` as a module that shares its weights and names."""
    graph = _Recorder().trace(model)
    recorded = torch.fx.GraphModule(model, graph, type(model).__name__)
    recorded.graph.eliminate_dead_code()  # the history of reductions, which nobody asks for
    recorded.recompile()
    return recorded


def refuse_mask(x: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return ``x`` (B, T, D) as it is.

    Raises:
        ValueError: there is a mask, of tokens that reduction moves.
    """
    if mask is not None or is_causal:
        raise ValueError("attn_mask and is_causal need all tokens in place; use a dense model")
    return x


def require_patches(patches: Tensor, count: int, refusal: str) -> Tensor:
    """Return ``patches`` (B, n, D) as they are.

    Args:
        patches: what is checked.
        count: wanted n.
        refusal: what to say, with GOT for the n there is.

    Raises:
        ValueError: n isn't ``count``.
    """
    if patches.shape[1] != count:
        raise ValueError(refusal.replace("GOT", str(patches.shape[1])))
    return patches


torch.fx.wrap("refuse_mask")
torch.fx.wrap("require_patches")
