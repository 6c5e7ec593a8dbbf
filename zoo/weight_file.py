"""Weights from a file, as tensors and nothing else."""

import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# The state dict's place in what training scripts save, and what wrappers of modules put before
# each name.
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
# OpenAI's archives carry three settings of the model as buffers.
_SETTINGS = ("input_resolution", "context_length", "vocab_size")

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's before torch 1.6
_LFS = b"version https://git-lfs"
_KNOWN = (
    "expected safetensors, a state dict written by torch.save, or a TorchScript archive such as "
    "OpenAI's"
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from whatever CLIP's weights come in; the content decides, not the suffix.

    These are safetensors; what ``torch.save`` writes, as a state dict or as a training checkpoint
    with one in it (``state_dict``, names that start with ``module.``); and TorchScript archives,
    such as OpenAI's. Nothing in a file is executed.

    Args:
        path: the file.

    Returns:
        Tensors by name on the CPU, in the precision stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, holds more than weights, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {str(path)!r}: no such file")
    try:
        return _unwrapped(_content(path))
    except ValueError as error:
        raise ValueError(f"weights file {str(path)!r} {error}") from error


def _content(path: Path) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(_ZIP):
        with open_archive(path) as archive:
            scripted = MARK in archive.records
        return read_jit_archive(path) if scripted else _torch_load(path)
    if start.startswith(_OLD_TORCH):
        return _torch_load(path)
    if start[8:9] == b"{":
        return _safetensors(path, start, size)
    raise ValueError(_foreign(start))


def _safetensors(path: Path, start: bytes, size: int) -> dict[str, Tensor]:
    (header,) = struct.unpack("<Q", start[:8])
    if header + 8 > size:
        raise ValueError("is cut short: it ends within its header; get it again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"is cut short or damaged ({error}); get it again") from error


def _torch_load(path: Path) -> Any:
    try:
        # A file object, because torch judges paths by their suffix.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file leads it to
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"names {named[1]!r}, which holds no weights and could run code; nothing of it was "
                "run. Where you trust the file, save its state dict as safetensors"
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"can't be read ({reason}); get it again") from error


def _foreign(start: bytes) -> str:
    """Say what a file is that holds no weights."""
    text = start.lstrip().lower()
    if not start:
        return "is empty; get it again"
    if start.startswith(_LFS):
        return "is a git-lfs pointer, not the weights: run 'git lfs pull' in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: a page was saved in their place; get them again"
    if start.startswith(_PICKLE):
        return f"is a pickle, which can run code, and is never unpickled: {_KNOWN}"
    return f"holds no weights (it starts with {start[:12]!r}): {_KNOWN}"


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Take the state dict out of what was saved around it."""
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"holds no state dict but {type(content).__name__}: {_KNOWN}")
    for name, value in content.items():
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not isinstance(name, str) or not plain or value.is_meta:
            raise ValueError(
                f"holds no state dict: {name!r} is {type(value).__name__}, not a tensor with values"
            )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return {name: value.detach() for name, value in content.items() if name not in _SETTINGS}
