"""Precisions by name, and the one that is fastest on a device."""

import torch

AUTO = "auto"  # the precision that is fastest on the device
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_precision(device: str | torch.device) -> str:
    """Return the precision that is fastest on a device: bfloat16 where its hardware has it."""
    kind = torch.device(device).type
    fast = kind == "cuda" and torch.cuda.is_bf16_supported()
    if kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def precision_on(device: str | torch.device, dtype: str) -> str:
    """Return ``dtype`` itself, or the precision that is fastest on the device where it is ``auto``."""
    return best_precision(device) if dtype == AUTO else dtype
