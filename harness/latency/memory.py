"""The most memory that one call takes, beyond what was there before it."""

import gc
import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.latency.stopwatch import Call

MIB = 2**20
_FULL = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory didn't suffice, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)


def random_images(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Return random images, the same on every device; None if memory doesn't suffice for them.

    Args:
        shape: (B, C, H, W).
        device: where to.
        dtype: their precision.
    """
    try:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def weights_mib(model: nn.Module) -> float:
    """Return what parameters and buffers take."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


def peak_mib(call: Call, images: Tensor) -> float | None:
    """Return the most that one call holds at a time, weights and images not counted.

    On CUDA the caching allocator's peak; on a CPU the peak of what torch's allocator gives out,
    so that scratch memory of MKL and oneDNN isn't in it. None on other devices.
    """
    if images.is_cuda:
        return _cuda_peak(call, images)
    return _cpu_peak(call, images) if images.device.type == "cpu" else None


def _cuda_peak(call: Call, images: Tensor) -> float:
    device = images.device
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(images)
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _cpu_peak(call: Call, images: Tensor) -> float:
    # Else the profiler tells the terminal when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        call(images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    moves = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    held = most = 0
    for _, count in moves:
        held += count
        most = max(most, held)
    return most / MIB
