"""The ways to run a model: as it is, compiled, as a CUDA graph, in another memory format."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from harness.latency.stopwatch import Call
from zoo.reducer import expected

EAGER, COMPILE, REDUCE_OVERHEAD = "eager", "compile", "reduce-overhead"
CUDA_GRAPHS, CHANNELS_LAST = "cuda-graphs", "channels-last"
WAYS = {
    EAGER: "as it is",
    COMPILE: "torch.compile",
    REDUCE_OVERHEAD: "torch.compile with mode='reduce-overhead', which replays CUDA graphs",
    CUDA_GRAPHS: "the eager model's launches captured once and replayed",
    CHANNELS_LAST: "eager, images and convolution weights in channels_last",
}
ON_CUDA = (REDUCE_OVERHEAD, CUDA_GRAPHS)
COMPILED = (COMPILE, REDUCE_OVERHEAD)


def check_ways(ways: Sequence[str], device: torch.device) -> None:
    """Refuse what can't be run on the device.

    Raises:
        ValueError: an unknown way, one for CUDA elsewhere, or no compiler.
    """
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"--ways {way!r}: {expected(way, WAYS)}")
        if way in ON_CUDA and device.type != "cuda":
            more = "; there it would be what compile is" if way == REDUCE_OVERHEAD else ""
            raise ValueError(
                f"--ways {way} on --device {str(device)!r}: CUDA graphs need a CUDA device{more}; "
                "leave it out, or add --device cuda"
            )
        if way in COMPILED:
            _require_compiler(device)


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ValueError("--ways compile on a CUDA device needs triton: pip install triton")
        return
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise ValueError(
            f"--ways compile on a CPU needs a C++ compiler, and {name!r} isn't there: install it "
            "(Debian: apt install g++), or name another one by the variable CXX"
        )


@contextmanager
def memory_format(models: Sequence[nn.Module], way: str) -> Iterator[torch.memory_format]:
    """Bring weights into the way's memory format while the body runs; yield it for the images.

    Args:
        models: they may share weights, as the format changes in place.
        way: of ``WAYS``.
    """
    if way != CHANNELS_LAST:
        yield torch.contiguous_format
        return
    try:
        yield _into(models, torch.channels_last)
    finally:
        _into(models, torch.contiguous_format)


def _into(models: Sequence[nn.Module], form: torch.memory_format) -> torch.memory_format:
    for model in models:
        module: Any = model
        module.to(memory_format=form)
    return form


def prepared(model: nn.Module, way: str, images: Tensor) -> Call:
    """Return a model as the way runs it; compiling and capturing may wait for the first call.

    Args:
        model: in evaluation mode, on the images' device.
        way: of ``WAYS``.
        images: (B, C, H, W) like those of each call.
    """
    if way == CUDA_GRAPHS:
        return _captured(model, images)
    if way in COMPILED:
        mode = REDUCE_OVERHEAD if way == REDUCE_OVERHEAD else None
        compiled: Call = torch.compile(_own_code(model), dynamic=False, fullgraph=True, mode=mode)
        if way == COMPILE:
            return compiled

        def replayed(batch: Tensor) -> object:
            # The features of the call before need not live on.
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(batch)

        return replayed
    return model


def _own_code(model: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function that calls the model, with a code object of its own.

    Dynamo keeps what it compiled by code object: models of one class would share one list, each
    call would look through it, and the ninth model would be refused.
    """

    def forward(images: Tensor) -> Any:
        return model(images)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{id(model)}")
    return forward


def _captured(model: nn.Module, images: Tensor) -> Call:
    """Capture one call; what is returned copies images to the graph's and replays it."""
    inside = images.clone()
    graph = torch.cuda.CUDAGraph()
    # The images' device needn't be the current one, on which streams would be made.
    with torch.cuda.device(images.device), torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # so that libraries have set up what can't be captured
                model(inside)
        torch.cuda.current_stream().wait_stream(stream)
        # On the same stream: libraries keep handles and workspaces for each.
        with torch.cuda.graph(graph, stream=stream):
            features = model(inside)

    def replay(batch: Tensor) -> Tensor:
        inside.copy_(batch)
        graph.replay()
        result: Tensor = features
        return result

    return replay


def skipped_graphs() -> int:
    """Return how often the compiler has left out the CUDA graphs that it was asked for."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def deviations(found: Tensor, eager: Tensor) -> Tensor:
    """Return (B,) by how much features differ from the eager model's, in lengths of the latter."""
    ours, theirs = found.detach().double(), eager.detach().double()
    result: Tensor = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return result.cpu()
