"""Read weights from a file as tensors; nothing that the file names is imported or called."""

import re
from pathlib import Path
from shlex import quote
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("state_dict", "model")  # keys of the state dict in training checkpoints
_PREFIXES = ("module.", "_orig_mod.")  # put before each name by wrappers of modules
# OpenAI's weights carry three settings of the model as buffers.
_SETTINGS = ("input_resolution", "context_length", "vocab_size")

_LEARNED = re.compile(r"(weight|bias|gamma|proj|embed|embedding|token|scale)$")  # how the names of parameters end
_UNSEEN = "token_embedding.weight"  # has NaN for word pieces that our small text tower never saw
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's before torch 1.6
_LFS = b"version https://git-lfs"
_SCRIPT_MARK = "constants.pkl"  # by which torch, too, tells TorchScript archives from state dicts
_KNOWN = "expected safetensors or a state dict written by torch.save"
_CONVERT = (
    "is a TorchScript archive, such as OpenAI's; nothing in it was run. Where you trust it, convert it: "
    'python -c "import sys, torch; from safetensors.torch import save_model; '
    "save_model(torch.jit.load(sys.argv[1], 'cpu'), sys.argv[2])\" {path} {new}"
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict of CLIP's weights; the content decides about the format, not the suffix.

    The formats are safetensors, and a state dict or a training checkpoint with one (``state_dict``, names that start
    with ``module.``) written by ``torch.save``. Nothing in a file is executed.

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
        return _state_dict(_content(path))
    except ValueError as error:
        raise ValueError(f"weights file {str(path)!r} {error}") from error


def _content(path: Path) -> Any:
    """Read what was saved, in the format that the first bytes show."""
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(_ZIP):
        _refuse_script(path)
        return _torch_load(path)
    if start.startswith(_OLD_TORCH):
        return _torch_load(path)
    if start[8:9] != b"{":
        raise ValueError(_foreign(start))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"is cut short or damaged ({error}); get it again") from error


def _refuse_script(path: Path) -> None:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"is cut short or damaged ({error}); get it again") from error
    if any(name.rpartition("/")[2] == _SCRIPT_MARK for name in names):
        raise ValueError(_CONVERT.format(path=quote(str(path)), new=quote(str(path.with_suffix(".safetensors")))))


def _torch_load(path: Path) -> Any:
    try:
        # A file object, because torch judges paths by their suffix.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file leads it to
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"names {named[1]!r}, which holds no weights and could run code; nothing of it was run. Where you "
                "trust the file, save its state dict as safetensors"
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


def _state_dict(content: Any) -> dict[str, Tensor]:
    """Take the state dict out of what was saved around it."""
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"holds no state dict but {type(content).__name__}: {_KNOWN}")
    for name, value in content.items():
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not isinstance(name, str) or not plain or value.is_meta:
            raise ValueError(f"holds no state dict: {name!r} is {type(value).__name__}, not a tensor with values")
        _require_usable(name, value)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return {name: value.detach() for name, value in content.items() if name not in _SETTINGS}


def _require_usable(name: str, value: Tensor) -> None:
    """Refuse parameters that can't be; buffers, such as masks and tables of positions, may be whole numbers."""
    if value.is_complex() or (not value.is_floating_point() and _LEARNED.search(name)):
        raise ValueError(
            f"has {name!r} of {str(value.dtype).removeprefix('torch.')}; weights are floating-point numbers"
        )
    if value.is_floating_point() and not name.endswith(_UNSEEN) and not value.isfinite().all():
        raise ValueError(f"has values in {name!r} that are NaN or infinite, so the weights are spoilt; get them again")
