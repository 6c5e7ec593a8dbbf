"""Weights of a tower: reading them from a file, finding them here or on the hub."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from shlex import quote
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import PretrainedCfg
from torch import Tensor

from zoo.core.errors import add_remedy, is_out_of_memory
from zoo.core.files import cache_folder
from zoo.loading.sizes import SIZES

# Whatever timm, open_clip and torch raise over a file that isn't what it should be.
_UNUSABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, SafetensorError, UnpicklingError)
FOLDER, HUB = "local-dir:", "hf-hub:"  # before the place of a saved model in its name
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")  # of the user's own files
SAVED = "local-dir:FOLDER, saved by timm's save_for_hf"

_WRAPPERS = ("state_dict", "model")  # keys of the state dict in training checkpoints
_PREFIXES = ("module.", "_orig_mod.")  # put before each name by wrappers of modules
_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # which OpenAI's weights carry as buffers
_LEARNED = re.compile(r"(weight|bias|gamma|proj|embed|embedding|token|scale)$")  # how the names of parameters end
_UNSEEN = "token_embedding.weight"  # has NaN for word pieces that our small text tower never saw
_KNOWN = "expected safetensors or a state dict written by torch.save"
_FOREIGN = {  # what files are that begin so
    b"version https://git-lfs": "is a git-lfs pointer, not the weights: run 'git lfs pull' in its repository",
    **dict.fromkeys((b"<!doctype", b"<html", b"<?xml"), "is a web page, not weights; get them again"),
}
_CONVERT = (
    "is a TorchScript archive, such as OpenAI's; nothing in it was run. Where you trust it, convert it: "
    'python -c "import sys, torch; from safetensors.torch import save_model; '
    "save_model(torch.jit.load(sys.argv[1], 'cpu'), sys.argv[2])\" {path} {new}"
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict of CLIP's weights by name, on the CPU, in the precision stored; nothing in a file is executed.

    It is safetensors, or a state dict or training checkpoint written by ``torch.save``, whatever its suffix.

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
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
            file.seek(0)
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises whatever a damaged file leads it to
                if is_out_of_memory(error):
                    raise
                raise _unloadable(path, str(error)) from error
    if start[8:9] != b"{":
        begin = start.lstrip().lower()
        known = (text for first, text in _FOREIGN.items() if begin.startswith(first))
        raise ValueError(next(known, f"holds no weights (it starts with {start[:12]!r}): {_KNOWN}"))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"is cut short or damaged ({error}); get it again") from error


def _unloadable(path: Path, reason: str) -> ValueError:
    if "TorchScript" in reason:
        return ValueError(_CONVERT.format(path=quote(str(path)), new=quote(str(path.with_suffix(".safetensors")))))
    if match := re.search(r"GLOBAL ([\w.]+)", reason):
        return ValueError(
            f"names {match[1]!r}, which holds no weights and could run code; nothing of it was run. Where you "
            "trust the file, save its state dict as safetensors"
        )
    return ValueError(f"can't be read ({reason.partition(chr(10))[0]}); get it again: {_KNOWN}")


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
        # Buffers, such as masks and tables of positions, may be whole numbers.
        if value.is_complex() or (not value.is_floating_point() and _LEARNED.search(name)):
            raise ValueError(f"has {name!r} of {value.dtype}; weights are floating-point numbers")
        if value.is_floating_point() and not name.endswith(_UNSEEN) and not value.isfinite().all():
            raise ValueError(f"has values in {name!r} that are NaN or infinite; get the weights again")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return {name: value.detach() for name, value in content.items() if name not in _SETTINGS}


class MissingWeightsError(FileNotFoundError):
    """A model's weights are neither here nor on the hub; the message stands by itself."""


class UnusableWeightsError(ValueError):
    """A model's weights don't fit it or can't be read; the message stands by itself."""


@contextmanager
def loading(name: str, otherwise: str, source: str = "", *, arguments: bool = False) -> Iterator[None]:
    """Say in one line why the weights of ``name`` can't be loaded.

    ``source`` is where they are on the hub; ``otherwise`` is a way that needs no hub. Errors of ``arguments`` and
    devices speak for themselves where there may be some.
    """
    try:
        yield
    except (MissingWeightsError, UnusableWeightsError):
        raise
    except _UNUSABLE as error:
        damaged = isinstance(error, RuntimeError) and re.search("state_dict|checkpoint", str(error))
        speaks = isinstance(error, (RuntimeError, ValueError, TypeError)) and not isinstance(error, OSError)
        if is_out_of_memory(error) or (arguments and speaks and not damaged):
            raise
        links: list[BaseException] = [error]
        while link := links[-1].__cause__ or links[-1].__context__:
            links.append(link)
        if not any(isinstance(link, OSError) for link in links):
            raise UnusableWeightsError(f"the weights of {name} can't be used: {_one_line(error)}") from error
        # By name, as huggingface_hub may be missing.
        answers = [link for link in links if "HfHubHTTPError" in (kind.__name__ for kind in type(link).__mro__)]
        hub = "the hub doesn't give it" if answers else "the hub can't be reached"
        wanted = f" (wanted: {source})" if source else ""
        raise MissingWeightsError(
            f"no weights of {name}: not in the Hugging Face cache{wanted}, and {hub} "
            f"({_one_line((answers or links[-1:])[0])}); run once where it can, or copy the cache, or {otherwise}"
        ) from error


@contextmanager
def without_code(name: str) -> Iterator[None]:
    """Load a model of the name by transformers, which neither runs Python of the model's folder nor asks whether to.

    Where a library such as open_clip passes on no ``trust_remote_code``, transformers asks on standard input.

    Raises:
        UnusableWeightsError: the model can't be loaded without such Python.
    """
    if find_spec("transformers") is None:
        yield
        return
    dynamic: Any = import_module("transformers.dynamic_module_utils")
    seconds, dynamic.TIME_OUT_REMOTE_CODE = dynamic.TIME_OUT_REMOTE_CODE, 0  # for an answer; 0 is a no
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UnusableWeightsError(
            f"model {name!r} needs Python code that comes with it, and such code is never run: use a model of classes "
            "that transformers itself has, without auto_map in its JSON files"
        ) from error
    finally:
        dynamic.TIME_OUT_REMOTE_CODE = seconds


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 600) or type(error).__name__


def timm_source(cfg: PretrainedCfg) -> str:
    """Return the file on the hub from which timm would take weights, "" for others."""
    there = cfg.hf_hub_id and not cfg.file and not cfg.state_dict
    return f"{cfg.hf_hub_id}/{cfg.hf_hub_filename or 'model.safetensors'}" if there else ""


def own_weights(size: str, tag: str) -> Path | None:
    """Find the file that the user laid into their cache for these weights, if there is one."""
    stem = cache_folder() / "weights" / f"clip_vit_{size}.{tag}"
    files = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def own_path(name: str) -> str:
    """Say where the user may lay a file of the weights ``name``, which has a tag."""
    return f"{cache_folder() / 'weights' / name}{{{','.join(SUFFIXES)}}}"


def find_clip(size: str, tag: str) -> Path:
    """Find the file with both towers of a size of open_clip: the user's own, else the hub's."""
    if (file_of_user := own_weights(size, tag)) is not None:
        return file_of_user
    from huggingface_hub import try_to_load_from_cache
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    spec, name = SIZES[size], f"clip_vit_{size}.{tag}"
    cfg = get_pretrained_cfg(spec.open_clip, spec.tags[tag].open_clip)
    repo = cfg["hf_hub"].rstrip("/")
    for file in OPEN_CLIP_FILES:
        if isinstance(cached := try_to_load_from_cache(repo, file), str):
            return Path(cached)
    otherwise = f"put a file of these weights at {own_path(name)}, or pass {SAVED}"
    try:
        with loading(name, otherwise, f"{repo}/{OPEN_CLIP_FILES[0]}"):
            return Path(download_pretrained(cfg))
    except FileNotFoundError as error:
        raise add_remedy(error, "weights") from error.__cause__


def first_mismatch(error: BaseException) -> str:
    """Return the first thing that torch says of weights that don't fit a module."""
    return next(iter(str(error).splitlines()[1:]), str(error)).strip()


def image_side(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's part of both towers' weights."""
    return {name: value for name, value in weights.items() if name.startswith("visual.")}
