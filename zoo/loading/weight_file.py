"""Read weights from a file as tensors, without importing or calling anything that the file names.

``safetensors`` and ``torch.load(weights_only=True)`` read state dicts. torch has no such way to
read TorchScript archives, the format in which OpenAI published CLIP: these hold a pickle of the
module tree, a record for each storage, and source code. Here an allow-list unpickler builds the
tree from stubs, and the source code only serves to look up two lists for each class: the names of
its parameters and of its buffers.
"""

import errno
import io
import math
import pickle
import pickletools
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("state_dict", "model")  # keys of the state dict in training checkpoints
_PREFIXES = ("module.", "_orig_mod.")  # put before each name by wrappers of modules
# OpenAI's archives carry three settings of the model as buffers.
_SETTINGS = ("input_resolution", "context_length", "vocab_size")

_LEARNED = re.compile(r"(weight|bias|gamma|proj|embed|embedding|token|scale)$")  # how the names of parameters end
_UNSEEN = "token_embedding.weight"  # has NaN for word pieces that our small text tower never saw
_CHUNK = 2**20  # bytes at a time
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's before torch 1.6
_LFS = b"version https://git-lfs"
_KNOWN = "expected safetensors, a state dict written by torch.save, or a TorchScript archive such as OpenAI's"
_AGAIN = "get the file again"

_SCRIPT_MARK = "constants.pkl"  # by which torch, too, tells TorchScript archives from state dicts
_CODE = "code/"
_MAX_SOURCE_BYTES = 16 * 2**20
_MAX_PICKLE_BYTES = 64 * 2**20
_MAX_MODULES = 100_000
_MAX_DEPTH = 100
_MAX_NUMBER = 2**48  # of elements, a stride or an offset
_DTYPES = ("bool", "double", "float", "half", "int", "long", "short")
_STORAGES = {f"torch.{name.capitalize()}Storage": getattr(torch, name) for name in _DTYPES}
_STORAGES |= {"torch.ByteStorage": torch.uint8, "torch.CharStorage": torch.int8}
_STORAGES["torch.BFloat16Storage"] = torch.bfloat16
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_ALLOWED = {*_STORAGES, _TENSOR, _PARAMETER, "collections.OrderedDict", "torch.device"}
_LISTS = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist")
_CALLS = (*_LISTS, "build_tensor_from_id", "restore_type_tag")
_ALLOWED |= {f"torch.jit._pickle.{name}" for name in _CALLS}
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  .*\n?)*)", re.M)
_NAME_LISTS = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.M)

# What TorchScript's pickler writes (torch/csrc/jit/serialization/pickler.cpp).
_TUPLE_OPCODES = frozenset(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_OPCODES = _TUPLE_OPCODES | {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "NONE", "NEWTRUE",
    "NEWFALSE", "BINUNICODE", "BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET",
}  # fmt: skip
_MAX_TUPLE = 10_000  # members of a tuple, with those of the tuples in it


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from any format of CLIP's weights; the content decides, not the suffix.

    The formats are safetensors; a state dict or a training checkpoint with one (``state_dict``,
    names that start with ``module.``) written by ``torch.save``; and TorchScript archives, such as
    OpenAI's. Nothing in a file is executed.

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
        with _open_archive(path) as archive:
            if _SCRIPT_MARK in archive.records:
                return _read_script(archive)
            archive.verify()
        return _torch_load(path)
    if start.startswith(_OLD_TORCH):
        return _torch_load(path)
    if start[8:9] != b"{":
        raise ValueError(_foreign(start))
    if int.from_bytes(start[:8], "little") + 8 > path.stat().st_size:
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


@dataclass(frozen=True, kw_only=True)
class _Archive:
    """The records of a zip file that torch wrote, by their names below its one folder."""

    zip: ZipFile
    records: dict[str, ZipInfo]

    def read(self, name: str) -> bytes:
        """Return a record's content, verified by its checksum."""
        if name not in self.records:
            raise ValueError(f"lacks its record {name!r}: cut short or damaged; get it again")
        return self.zip.read(self.records[name])

    def verify(self) -> None:
        """Compare every record with its checksum, which torch doesn't do; one of 0 was left out on saving."""
        for info in self.records.values():
            if info.CRC:
                with self.zip.open(info) as record:
                    while record.read(_CHUNK):
                        pass


@contextmanager
def _open_archive(path: Path) -> Iterator[_Archive]:
    """Open a zip file of torch's; nothing of it is ever written to disk."""
    # Whatever zipfile raises over a damaged file.
    damaged = (BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, zlib.error)
    try:
        with ZipFile(path) as opened:
            yield _Archive(zip=opened, records=_records(opened.infolist(), path.stat().st_size))
    except (*damaged, OSError) as error:
        # Places in the file that can't be make the system refuse to go there.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"is cut short or damaged ({error}); get it again") from error


def _records(entries: list[ZipInfo], size: int) -> dict[str, ZipInfo]:
    """Check an archive's table of contents before anything is read.

    torch compresses source code only. Other compressed records, and records that sum up to more
    than the file, can only serve to fill the memory.
    """
    folders = {info.filename.partition("/")[:2] for info in entries}
    if len(folders) != 1 or not all(slash for _, slash in folders):
        raise ValueError("is a zip file, but none that torch wrote: it has no single folder")
    records: dict[str, ZipInfo] = {}
    total = 0
    for info in entries:
        name = info.filename.partition("/")[2]
        parts = info.filename.split("/")
        if info.orig_filename != info.filename or "\\" in name or {"", ".", ".."} & set(parts):
            raise ValueError(f"has a record named {info.orig_filename!r}, as torch names none")
        if name in records:
            raise ValueError(f"has two records named {name!r}, as torch writes none")
        stored = info.compress_type == ZIP_STORED and info.compress_size == info.file_size
        if not stored and not (name.startswith(_CODE) and info.file_size <= _MAX_SOURCE_BYTES):
            raise ValueError(
                f"has a compressed record {name!r} of {info.file_size} bytes; torch compresses no "
                "weights, so this could be there to fill the memory"
            )
        total += info.file_size if stored else 0
        records[name] = info
    if total > size:
        raise ValueError(f"has records of {total} bytes in a file of {size}: they overlap, to fill the memory")
    return records


class _Stub:
    """An inert stand-in for anything that a pickle names and calls."""

    __slots__ = ("args", "name")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args = name, args

    def __call__(self, *args: Any) -> "_Stub":
        return _Stub(self.name, args)

    def __setstate__(self, _state: Any) -> None:
        """Refuse a state; without this, the unpickler would set attributes."""
        raise ValueError("a state for what is no module")


class _Module:
    """A module of an archive, with the name of its class and its attributes."""

    name = ""
    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _RefusedError(ValueError):
    """A pickle that holds something other than modules and tensors."""


class _StubUnpickler(pickle.Unpickler):
    """Build what a TorchScript pickle describes from stubs; see ``_check_opcodes`` for its bounds.

    A pickle can only call or change these stubs and plain values: names are resolved here and
    nowhere else, and each file has classes of its own.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._modules: dict[str, type[_Module]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return a stub for an allowed name, a class of its own for a TorchScript module."""
        full = f"{module}.{name}"
        if module.partition(".")[0] == "__torch__":
            if len(self._modules) > _MAX_MODULES:
                raise _RefusedError("has more classes than any model")
            return self._modules.setdefault(full, type("Module", (_Module,), {"name": full}))
        if full not in _ALLOWED:
            raise _RefusedError(
                f"names {full!r}, which holds no weights and could run code; nothing of it was "
                "run. Don't load this file elsewhere either: ask its author for safetensors"
            )
        return _Stub(full)

    def persistent_load(self, pid: Any) -> _Stub:
        """Return a stub for a storage."""
        return _Stub("storage", pid if isinstance(pid, tuple) else ())


def _check_opcodes(content: bytes) -> None:
    """Refuse what would make Python's unpickler fill the memory, crash, or compute for ever.

    Its memo is an array as long as the largest index. And hashing a tuple visits all its members:
    2**depth of them where each tuple holds the previous one twice. So this computes the size of
    each value on the stack, counting shared tuples anew each time.
    """
    if len(content) > _MAX_PICKLE_BYTES:
        raise _RefusedError(f"has a pickle of {len(content)} bytes, too large for a module tree")
    stack: list[int] = []  # sizes; 0 is a mark
    memo: dict[int, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise _RefusedError(f"has a pickle with {opcode.name}, which torch doesn't write")
        if opcode.name == "PROTO" and argument > 2:
            raise _RefusedError(f"has a pickle of protocol {argument}, where torch writes 2")
        if opcode.name.endswith("BINPUT"):
            if argument > len(content):
                raise ValueError(f"a memo of index {argument}")
            memo[argument] = stack[-1]
        elif opcode.name.endswith("BINGET"):
            stack.append(memo[argument])
        else:
            _follow(opcode, stack)


def _follow(opcode: pickletools.OpcodeInfo, stack: list[int]) -> None:
    """Do to the sizes on the stack what an instruction does to the values."""
    operands, size = list(opcode.stack_before), 1
    if pickletools.markobject in operands:
        while member := stack.pop():
            size += member
        del operands[operands.index(pickletools.markobject) :]
    for _ in operands:
        size += stack.pop()
    if opcode.name in _TUPLE_OPCODES and size > _MAX_TUPLE:
        raise _RefusedError("has a pickle of tuples within tuples, as torch writes none")
    size = size if opcode.name in _TUPLE_OPCODES else 1
    stack += [0 if value is pickletools.markobject else size for value in opcode.stack_after]


def _read_script(archive: _Archive) -> dict[str, Tensor]:
    """Return what ``torch.jit.load(path).state_dict()`` would, on the CPU."""
    if archive.records.get("byteorder") and archive.read("byteorder") != b"little":
        raise ValueError("was written on a big-endian machine; save it anew on another")
    content = archive.read("data.pkl")
    try:
        _check_opcodes(content)
        root = _StubUnpickler(content).load()
    except _RefusedError:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged pickle leads it to
        raise ValueError(f"has a damaged pickle ({error}); {_AGAIN}") from error
    if not isinstance(root, _Module):
        raise ValueError("holds no module")
    return _ScriptReader(archive).state_dict(root)


class _ScriptReader:
    """The tensors of one TorchScript archive; each storage is read once, so ties stay."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self.storages: dict[str, Tensor] = {}
        self.declared: dict[str, frozenset[str] | None] = {}

    def state_dict(self, root: _Module) -> dict[str, Tensor]:
        """Return the tensors, named by their path from the root."""
        tensors: dict[str, Tensor | None] = {}
        stack, count = [("", root, 0)], 0
        while stack:
            prefix, module, depth = stack.pop()
            count += 1
            if depth > _MAX_DEPTH or count > _MAX_MODULES:
                raise ValueError("has modules within modules without end")
            names = self.names_of(module.name)
            attributes = module.attributes if isinstance(module.attributes, dict) else {}
            for attribute, value in attributes.items():
                path = f"{prefix}{attribute}"
                if isinstance(value, _Module):
                    stack.append((f"{path}.", value, depth + 1))
                elif isinstance(value, _Stub) and (names is None or attribute in names):
                    tensors[path] = self.tensor(value, path)
        return {path: tensor for path, tensor in tensors.items() if tensor is not None}

    def names_of(self, class_name: str) -> frozenset[str] | None:
        """Return a class's parameters and buffers, None if its source has no lists of them."""
        if class_name not in self.declared:
            module, _, title = class_name.rpartition(".")
            record = f"{_CODE}{module.replace('.', '/')}.py"
            known = record in self.archive.records
            source = self.archive.read(record).decode(errors="replace") if known else ""
            bodies = [body for name, body in _CLASS.findall(source) if name == title]
            lists = [line for body in bodies for line in _NAME_LISTS.findall(body)]
            names = frozenset(re.findall(r'"([^"]*)"', " ".join(lists)))
            self.declared[class_name] = names if lists else None
        return self.declared[class_name]

    def tensor(self, stub: _Stub, name: str) -> Tensor | None:
        """Return a view of a storage, None for a stub of something else than a tensor."""
        if stub.name == _PARAMETER and stub.args and isinstance(stub.args[0], _Stub):
            stub = stub.args[0]
        if stub.name != _TENSOR:
            return None
        match stub.args:
            case (_Stub(name="storage", args=facts), int(offset), tuple(size), tuple(stride), *_):
                storage = self.storage(facts, name)
            case _:
                raise ValueError(f"has a damaged tensor {name!r}; {_AGAIN}")
        numbers = (offset, *size, *stride)
        plain = all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in numbers)
        if not plain or len(size) != len(stride):
            raise ValueError(f"has a damaged tensor {name!r}; {_AGAIN}")
        count = math.prod(size)
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if count and (end > len(storage) or count > len(storage)):
            raise ValueError(
                f"has a tensor {name!r} of size {size} and stride {stride} that reaches beyond its "
                f"storage of {len(storage)}; {_AGAIN}"
            )
        return storage.as_strided(size, stride, offset if count else 0)

    def storage(self, facts: tuple[Any, ...], name: str) -> Tensor:
        """Read a storage as a flat tensor."""
        match facts:
            case ("storage", _Stub(name=kind), str(key), str(), int(count)) if kind in _STORAGES:
                dtype = _STORAGES[kind]
            case _:
                raise ValueError(f"has a tensor {name!r} of a kind that weights don't have")
        if key not in self.storages:
            raw = bytearray(self.archive.read(f"data/{key}"))
            flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
            self.storages[key] = flat
        flat = self.storages[key]
        if not 0 <= count * dtype.itemsize <= len(flat):
            raise ValueError(f"has {len(flat)} bytes where tensor {name!r} says {count} x {dtype.itemsize}; {_AGAIN}")
        return flat[: count * dtype.itemsize].view(dtype)
