"""TorchScript archives, such as OpenAI's CLIP weights, read as tensors without running them.

An archive holds a pickle of the module tree, a record for each storage, and source code. The
pickle is parsed as data (``zoo.weight_file``); of the source code only the two lists are read
that say which attributes of a class are parameters and buffers. torch.jit has no part in it.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.weight_file import CODE, Call, Instance, Name, Outside, WeightArchive, open_archive, parse

MARK = "constants.pkl"  # by which torch, too, tells these archives from state dicts
_STORAGES = {
    "torch BFloat16Storage": torch.bfloat16,
    "torch BoolStorage": torch.bool,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch ShortStorage": torch.int16,
}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_INERT = {"collections OrderedDict", "torch device"} | {
    f"torch.jit._pickle {name}"
    for name in (
        *("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist"),
        *("build_tensor_from_id", "restore_type_tag"),
    )
}
_SCRIPTED = "__torch__"
_MOST_MODULES = 100_000
_DEEPEST = 100
_LARGEST = 2**48
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  .*\n?)*)", re.M)
_LISTED = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.M)


def read_jit_archive(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive, in the precision stored.

    Args:
        path: the archive.

    Returns:
        What ``torch.jit.load(path).state_dict()`` would, on the CPU.

    Raises:
        ValueError: not such an archive, a damaged one, or one with more than modules and tensors
            in it; the message goes behind the file's name.
    """
    with open_archive(path) as archive:
        if archive.records.get("byteorder") and archive.read("byteorder") != b"little":
            raise ValueError("was written on a big-endian machine; save it anew on another")
        root = parse(archive.read("data.pkl"), _allowed)
        if not isinstance(root, Instance):
            raise ValueError("holds no module")
        return _Reader(archive).state_dict(root)


def _allowed(name: str) -> bool:
    module = name.partition(" ")[0].partition(".")[0]
    return module == _SCRIPTED or name in {*_STORAGES, *_INERT, _TENSOR, _PARAMETER}


class _Reader:
    """The tensors of one archive; each storage is read once, so tied tensors stay tied."""

    def __init__(self, archive: WeightArchive) -> None:
        self.archive = archive
        self.storages: dict[str, Tensor] = {}
        self.declared: dict[str, frozenset[str] | None] = {}

    def state_dict(self, root: Instance) -> dict[str, Tensor]:
        """Name the tensors by their way from the root."""
        tensors: dict[str, Tensor] = {}
        for prefix, module in _modules(root):
            names = self.of_class(module.of)
            for attribute, value in module.state.items():
                if isinstance(value, Call) and (names is None or attribute in names):
                    tensor = self.tensor(value, f"{prefix}{attribute}")
                    if tensor is not None:
                        tensors[f"{prefix}{attribute}"] = tensor
        return tensors

    def of_class(self, name: Name) -> frozenset[str] | None:
        """Return the parameters' and buffers' names of a class, None if its source has no lists."""
        if name.text not in self.declared:
            self.declared[name.text] = self._of_class(name)
        return self.declared[name.text]

    def _of_class(self, name: Name) -> frozenset[str] | None:
        module, _, title = name.text.partition(" ")
        record = f"{CODE}{module.replace('.', '/')}.py"
        if record not in self.archive.records:
            return None
        source = self.archive.read(record).decode(errors="replace")
        for found, body in _CLASS.findall(source):
            lists = _LISTED.findall(body)
            if found == title and lists:
                return frozenset(re.findall(r'"([^"]*)"', " ".join(lists)))
        return None

    def tensor(self, call: Call, name: str) -> Tensor | None:
        """Make a tensor, whose values stay in its storage; None if it is something else.

        Raises:
            ValueError: it reaches beyond its storage.
        """
        if call.of.text == _PARAMETER and call.args and isinstance(call.args[0], Call):
            call = call.args[0]
        if call.of.text != _TENSOR:
            return None
        match call.args:
            case (Outside(facts), int(offset), tuple(size), tuple(stride), *_):
                storage = self.storage(facts, name)
            case _:
                raise ValueError(f"has a damaged tensor {name!r}; get the file again")
        numbers = (offset, *size, *stride)
        plain = all(type(number) is int and 0 <= number <= _LARGEST for number in numbers)
        if not plain or len(size) != len(stride):
            raise ValueError(f"has a damaged tensor {name!r}; get the file again")
        count = math.prod(size)
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if count and (end > len(storage) or count > len(storage)):
            raise ValueError(
                f"has a tensor {name!r} of size {size} and stride {stride} that reaches beyond its "
                f"storage of {len(storage)}; get the file again"
            )
        return storage.as_strided(size, stride, offset if count else 0)

    def storage(self, facts: tuple[Any, ...], name: str) -> Tensor:
        """Read a storage as a flat tensor.

        Raises:
            ValueError: its record is too short, or it has a type that weights don't have.
        """
        match facts:
            case ("storage", Name(kind), str(key), str(), int(count)) if kind in _STORAGES:
                dtype = _STORAGES[kind]
            case _:
                raise ValueError(f"has a tensor {name!r} of a kind that weights don't have")
        if key not in self.storages:
            raw = bytearray(self.archive.read(f"data/{key}"))
            flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
            self.storages[key] = flat
        flat = self.storages[key]
        if not 0 <= count * dtype.itemsize <= len(flat):
            raise ValueError(
                f"has {len(flat)} bytes where tensor {name!r} says {count} x {dtype.itemsize}; get "
                "the file again"
            )
        return flat[: count * dtype.itemsize].view(dtype)


def _modules(root: Instance) -> Iterator[tuple[str, Instance]]:
    """Go through a tree of modules, each with the prefix of its tensors.

    Raises:
        ValueError: the tree has no end.
    """
    waiting = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_MODULES:
            raise ValueError("has modules within modules without end")
        if not isinstance(module.state, dict):
            continue
        yield prefix, module
        for name, value in module.state.items():
            if isinstance(value, Instance):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
