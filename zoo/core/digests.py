"""Digests of contents and of weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def digest(*parts: Any, length: int = 16) -> str:
    """Return hex digits of the sha256 over parts, in order: bytes, the content of paths, other values as JSON."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part
        whole.update(content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode())
    return whole.hexdigest()[:length]


def fingerprint(model: nn.Module) -> str:
    """Return ``weights_digest`` of a tower, without its reducer: the same in every lossless precision."""
    return weights_digest({k: v for k, v in model.state_dict().items() if not k.startswith("reducer.")})


def blocks_fingerprint(tower: Mapping[str, Tensor], prefix: str = "blocks.") -> str:
    """Return ``weights_digest`` of a state dict's blocks: the same for every image size, head and ``prefix``."""
    return weights_digest({f"blocks.{k.removeprefix(prefix)}": v for k, v in tower.items() if k.startswith(prefix)})


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the sha256 over named weights, as float32."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]
