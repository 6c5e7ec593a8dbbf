"""Runtimes of torch in the process: eager, `zoo.optimize`, torch.compile, and the eager launches in a CUDA graph."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.core.settings import torch_dtype
from zoo.deploy.runtime import COMPILE, CUDA_GRAPHS, EAGER, OPTIMIZED, Prepared, Runtime, Target, register_runtime


def round_weights(model: nn.Module, precision: str) -> nn.Module:
    """Return the model itself if its weights are in the precision, and a rounded copy otherwise."""
    weight, dtype = next(model.parameters(), None), torch_dtype(precision)
    return model if weight is None or weight.dtype == dtype else copy.deepcopy(model).to(dtype).eval()


@register_runtime
class Eager(Runtime):
    """The model as it is, its weights rounded to the precision."""

    name = EAGER
    rounds_weights = True

    def make(self, model: nn.Module, target: Target) -> Prepared:
        return Prepared(call=round_weights(model, target.precision), dtype=torch_dtype(target.precision))


@register_runtime
class Optimized(Runtime):
    """What `zoo.optimize` makes of the model; not of every tower."""

    name = OPTIMIZED

    def make(self, model: nn.Module, target: Target) -> Prepared:
        from zoo.deploy.optimized import optimize

        return Prepared(call=optimize(model, dtype=target.precision))

    def is_refusal(self, error: Exception) -> bool:
        return isinstance(error, ValueError)


@register_runtime
class Compile(Runtime):
    """The model with rounded weights by torch.compile, in one graph for each size of a batch."""

    name = COMPILE
    rounds_weights = True

    def make(self, model: nn.Module, target: Target) -> Prepared:
        code = _own_code(round_weights(model, target.precision))
        call = torch.compile(code, dynamic=False, fullgraph=True)
        return Prepared(call=call, dtype=torch_dtype(target.precision), batch=len(target.example))

    def is_refusal(self, error: Exception) -> bool:
        return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


@register_runtime
class CudaGraphs(Runtime):
    """The eager launches of a model with rounded weights, captured once and replayed."""

    name = CUDA_GRAPHS
    devices = ("cuda",)
    rounds_weights = True

    def make(self, model: nn.Module, target: Target) -> Prepared:
        dtype = torch_dtype(target.precision)
        call = capture(round_weights(model, target.precision), target.example.to(dtype))
        return Prepared(call=call, dtype=dtype, batch=len(target.example))

    def is_refusal(self, error: Exception) -> bool:
        return "captur" in str(error)


def _own_code(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that calls the model, with a code object of its own.

    Dynamo keeps what it compiled by code object: models of one class would share one list, each call would look through
    it, and the ninth model would be refused.
    """

    def forward(images: Tensor) -> Tensor:
        return model(images)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{id(model)}")
    return forward


def capture(model: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[Tensor], Tensor]:
    """Capture a model's call; what is returned copies images to the graph's and replays it."""
    inside = images.clone()
    graph = torch.cuda.CUDAGraph()
    # The images' device needn't be the current one, on which streams would be made. Nothing can be copied to it, so
    # what libraries make without a device, such as timm the grid of DINOv3, is made there.
    with torch.cuda.device(images.device), torch.device(images.device), torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # so that libraries have set up what can't be captured
                model(inside)
        torch.cuda.current_stream().wait_stream(stream)
        # On the same stream: libraries keep handles and workspaces for each.
        with torch.cuda.graph(graph, stream=stream):
            features = model(inside)

    @torch.inference_mode()
    def replay(batch: Tensor) -> Tensor:
        inside.copy_(batch)
        graph.replay()
        return features

    return replay
