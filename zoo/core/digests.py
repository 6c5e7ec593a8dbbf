"""Digests that tell weights from one another."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits of the sha256 over a tower's weights, without a reducer's.

    The weights count as float32: a model has one fingerprint in every lossless precision.
    """
    return weights_digest({k: v for k, v in model.state_dict().items() if not k.startswith("reducer.")})


def blocks_fingerprint(tower: Mapping[str, Tensor], prefix: str = "blocks.") -> str:
    """Return 16 hex digits of the sha256 over the weights of a state dict's blocks, as float32.

    The blocks are what is named ``prefix``, see ``Host.blocks_prefix``; it doesn't count itself. Unlike
    ``fingerprint`` the result is the same for every image size and head that a tower is built with.
    """
    return weights_digest({f"blocks.{k.removeprefix(prefix)}": v for k, v in tower.items() if k.startswith(prefix)})


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the sha256 over named weights, as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
