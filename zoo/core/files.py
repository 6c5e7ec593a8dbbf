"""Files that are written whole or not at all, what their metadata says, and digests of contents and weights."""

import contextlib
import difflib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import socket
import stat
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

EMBEDDED = Path(__file__).parent.parent / "embedded"
PARTIAL = ".partial"
E = TypeVar("E", bound=BaseException)
T = TypeVar("T")
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files this large are not allowed",
    errno.EROFS: "the disk is read-only",
}
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory")
PIPE, DEVICE = "a pipe", "a device"  # such as /dev/stdout
_KINDS = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: PIPE, stat.S_IFBLK: "a disk"}
_KINDS |= {stat.S_IFSOCK: "a socket"}


class Wanted(NamedTuple):
    """What would mend an error: something of a ``kind``, such as a predictor, with facts as its file's metadata has."""

    kind: str
    facts: Mapping[str, Any]


def wanting(error: E, kind: str, /, **facts: Any) -> E:
    """Return an error with what would mend it as its attribute ``wanted``, for whoever knows how that is made."""
    error.__dict__["wanted"] = Wanted(kind, facts)
    return error


class NoRoomError(OSError):
    """A file can't be written for lack of room."""


def no_room(path: Path, size: int, error: BaseException) -> NoRoomError | None:
    """Return what says how much room there is where ``size`` bytes can't be written; None of another error."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return None
    free = shutil.disk_usage(path.parent).free
    return NoRoomError(f"can't write {str(path)!r}: {_NO_ROOM[error.errno]}; {size:,} bytes needed, {free:,} free")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory didn't suffice, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def odd_kind(mode: int) -> str | None:
    """Say what it is that isn't read from its start to its end, such as a pipe; None of a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), DEVICE)


def kind_of(path: Path) -> str | None:
    """Say what a path leads to as `odd_kind` does; None of a regular file or of nothing."""
    try:
        return odd_kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_file(path: Path) -> None:
    """Refuse, by a ValueError, a pipe, which may never end, and what else is no file; nothing there passes."""
    if kind := kind_of(path):
        raise ValueError(f"{str(path)!r} is {kind}; expected a regular file")


def cache_folder() -> Path:
    """Return this user's cache folder (XDG rules)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "clip-patchrank"


def cache_file(room: str, name: str) -> Path:
    """Return the place in a room of this user's cache for a file that can be made again; its folder is made.

    Raises:
        OSError: it can't be written to.
    """
    path = cache_folder() / room / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        message = f"the cache {str(path.parent)!r} can't be written to ({error.strerror}); put it elsewhere by the"
        raise OSError(f"{message} environment variable XDG_CACHE_HOME") from error


def partial_of(path: Path) -> Path:
    """Return the name beside ``path`` under which this process makes it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")


def write_whole(path: Path, content: bytes | Path) -> None:
    """Write a file whole or not at all, whenever the machine stops; where a link leads, and with the mode that it had.

    ``content`` may be a file, which is moved. Pipes and devices are written to.

    Raises:
        NoRoomError: there is no room.
        OSError: it can't be written, or is no file, such as a disk.
    """
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    kind = kind_of(path)
    if kind not in (PIPE, DEVICE, None):
        raise OSError(f"can't write {str(path)!r}: it is {kind}; expected a file, a pipe or a device")
    path = path if kind is not None else Path(os.path.realpath(path))
    partial = partial_of(path)
    try:
        if kind is not None:
            path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
            return
        if isinstance(content, Path):
            shutil.move(content, partial)
        else:
            partial.write_bytes(content)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if path.is_file():
            shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if (told := no_room(path, size, error)) is not None:
            raise told from error
        raise
    if os.name == "posix":
        # So that the new name survives a power cut too; some network folders refuse.
        with contextlib.suppress(OSError):
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_learned(path: Path, kind: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write what was learned as safetensors, with ``facts`` and a hash of all as its metadata ``kind``."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = json.dumps(facts | {"hash": _hash(facts, plain)}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(plain, {kind: content}))


def read_learned(path: Path, kind: str, what: type[T], *, format: int | None = None) -> T:
    """Read the metadata ``kind`` of a file of ours as the dataclass ``what``, whose ``path`` becomes the file's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind or ``format``, or a field is missing, unknown or of another type.
    """
    facts = read_facts(path, kind)
    if format is not None and (have := facts.get("format")) != format:
        raise wanting(ValueError(f"{kind} {str(path)!r} has format {have!r}, this version reads {format}"), kind)
    facts.pop("hash", None)
    try:
        return from_json(what, facts, kind, path=path)
    except ValueError as error:
        raise wanting(ValueError(f"{str(path)!r} holds no {kind}: {error}"), kind) from error


def load_learned(path: Path, kind: str, *, gaps: Collection[str] = ()) -> dict[str, Tensor]:
    """Load the tensors of a file that ``write_learned`` wrote; of ``gaps`` whole rows, but not all, may be NaN.

    Raises:
        ValueError: facts or tensors aren't those that were written, or a value isn't finite.
    """
    facts = read_facts(path, kind)
    written = facts.pop("hash", None)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        if _hash(facts, tensors) != written:
            raise ValueError("is damaged: its content is not what was written")
        for name, value in tensors.items():
            finite = value.isfinite()
            if name in gaps and finite.any():
                finite = finite | value.isnan().all(dim=-1, keepdim=True)
            if not finite.all():
                raise ValueError(f"has values that aren't finite in {name!r}")
    except (SafetensorError, ValueError) as error:
        reason = f"is damaged ({error})" if isinstance(error, SafetensorError) else error
        raise wanting(ValueError(f"{kind} {str(path)!r} {reason}"), kind, **facts) from error
    return tensors


def _hash(facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    parts: list[Any] = [facts]
    for name, value in sorted(tensors.items()):
        parts.append(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        parts.append(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest(*parts, length=64)


def read_facts(path: Path, kind: str) -> dict[str, Any]:
    """Read the metadata ``kind``, such as ``predictor``, of a safetensors file of ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of that kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {str(path)!r}: the file does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(kind)
        if text is None:
            raise ValueError(f"it lacks the {kind!r} metadata")
        facts = strict_json(text)
        if not isinstance(facts, dict):
            raise ValueError(f"its {kind!r} metadata is a {type(facts).__name__}")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no {kind}: {error}") from error
    return facts


def strict_json(text: str | bytes) -> Any:
    """Read JSON of anybody's file; raise ValueError for numbers that aren't finite and names that come twice."""
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {twice!r} is there twice")
    return values


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:40]}... has {len(text)} digits")
    return int(text)


_hints = functools.cache(get_type_hints)  # records ask for theirs a thousand times


def from_json(kind: Any, value: Any, what: str, *, complete: bool = False, **own: Any) -> Any:
    """Return a value of ``json.loads`` as the annotated type ``kind``; messages call it ``what``.

    Types are Any, JSON's, lists, tuples and mappings of such, dataclasses, named tuples and unions. ``own`` are fields
    of a dataclass that the value may not name. Fields with a default may be missing unless it must be ``complete``.

    Raises:
        ValueError: names the field that is unknown, missing or of another type.
    """
    for option in get_args(kind) if isinstance(kind, UnionType) else (kind,):
        origin, args = get_origin(option) or option, get_args(option)
        if is_dataclass(option) or hasattr(option, "_fields"):
            if isinstance(value, list) and hasattr(option, "_fields") and len(value) <= len(option._fields):
                value = dict(zip(option._fields, value, strict=False))  # as json writes named tuples
            if isinstance(value, dict):
                return _from_object(option, value, complete, own)
        elif origin in (tuple, list, Sequence) and isinstance(value, list):
            if len(args) < 2 or args[1] is Ellipsis or len(args) == len(value):
                items = [from_json(args[0], item, what, complete=complete) for item in value]
                return items if origin is list else tuple(items)
        elif origin in (dict, Mapping) and isinstance(value, dict):
            inner = args[1] if args else Any
            return {name: from_json(inner, item, name, complete=complete) for name, item in value.items()}
        elif option is float and type(value) in {int, float}:
            return float(value)
        elif option is Any or type(value) is option:
            return value
    raise ValueError(f"{what} must be {getattr(kind, '__name__', kind)}, got {value!r}")


def _from_object(kind: Any, values: dict[str, Any], complete: bool, own: dict[str, Any]) -> Any:
    kinds = {name: hint for name, hint in _hints(kind).items() if name not in own}
    for name in values.keys() - kinds.keys():
        near = "".join(difflib.get_close_matches(name, kinds, n=1)) or "none that is close"
        raise ValueError(f"unknown field {name!r}, did you mean: {near}")
    optional = set(getattr(kind, "_field_defaults", ()))
    if is_dataclass(kind):
        optional = {one.name for one in fields(kind) if (one.default, one.default_factory) != (MISSING, MISSING)}
    if missing := [name for name in kinds if name not in values and (complete or name not in optional)]:
        raise ValueError(f"missing field {missing[0]!r}")
    made = {name: from_json(kinds[name], value, name, complete=complete) for name, value in values.items()}
    return kind(**own, **made)


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
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
