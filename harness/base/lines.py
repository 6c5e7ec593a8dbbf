"""Files of JSON lines, to which several processes may append and whose torn last line is dropped; locks of files."""

import contextlib
import glob
import gzip
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from zoo.core.errors import no_room
from zoo.core.files import DEVICE, PARTIAL, PIPE, kind_of, require_file

T = TypeVar("T")


@contextlib.contextmanager
def hold_lock(
    path: Path,
    output: Path | None = None,
    flag: str = "--output",
    on_wait: Callable[[], object] | None = None,
) -> Iterator[bool]:
    """Keep other processes out while the body runs; yield False if the file system has no locks.

    Wait for the lock. If another run writes to the ``output`` that a flag names, call ``on_wait`` before waiting;
    without ``on_wait`` raise a ValueError at once.
    """
    lock = FileLock(path, timeout=-1 if output is None else 0)
    try:
        lock.acquire()
    except Timeout:
        if on_wait is None:
            busy = f"another run is writing to {str(output)!r}: wait for its end, or use another {flag}"
            raise ValueError(busy) from None
        on_wait()
        lock.acquire(timeout=-1)
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # Windows keeps what is open
            path.unlink()
        lock.release()


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def append_lines(path: Path, lines: bytes) -> None:
    """Add lines at the end of a file, all or none; make the file if there is none."""
    require_file(path)
    if path.suffix == ".gz":
        raise ValueError(f"{path}: lines are appended to plain files only; unpack it with gzip -d")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file, hold_lock(_lock_path(path)) as alone:
        if alone:
            _mend(file)
        size = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException as error:
            if alone:
                os.ftruncate(file.fileno(), size)
            if (full := no_room(path, len(lines), error)) is not None:
                raise full from error
            raise


def require_appendable(path: Path, flag: str = "--output") -> None:
    """Refuse, by an OSError or ValueError, a file that couldn't be written once all is measured; make its folder."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_file(path)
        with path.open("ab") if path.exists() else contextlib.nullcontext():
            pass
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{flag} {str(folder)!r} is a file, or lies in one; expected a folder") from error
    except OSError as error:
        raise OSError(f"{flag} {str(folder)!r} can't be written to ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def lock_file(path: Path | None, flag: str = "--output", on_wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Keep other runs from writing a file while the body runs; remove partial files that killed runs left beside it.

    Do nothing if ``path`` is None, or a pipe or device. If another run writes the file, call ``on_wait`` and wait;
    without ``on_wait`` raise a ValueError. Raise an OSError if the file can't be written.
    """
    if path is None or kind_of(path) in (PIPE, DEVICE):
        yield
        return
    require_appendable(path, flag)
    path = Path(os.path.realpath(path))
    with hold_lock(_lock_path(path), path, flag, on_wait) as alone:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}") if alone else ():
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        yield


def parse_lines(path: Path, parse: Callable[[bytes], T]) -> list[T]:
    """Read each line that isn't blank by a function that raises ValueError for wrong lines; in file order.

    A file is unpacked if its name ends in ``.gz``. A torn last line is left out with a warning.
    """
    require_file(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error}); unpack what there is with gzip -dc") from error
    *lines, last = content.split(b"\n")
    if last and _is_torn(last):
        warnings.warn(f"{path}: the last line is torn, as what wrote it was stopped; it is left out", stacklevel=2)
    else:
        lines.append(last)
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values += [parse(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return values


def _mend(file: FileIO) -> None:
    """End the last line of a locked file, or drop it if it is torn."""
    file.seek(0)
    content = file.readall()
    start = content.rfind(b"\n") + 1
    if start < len(content) and _is_torn(content[start:]):
        os.ftruncate(file.fileno(), start)
    elif start < len(content):
        file.write(b"\n")  # an editor left it out


def _is_torn(line: bytes) -> bool:
    """Say if a line without an end is a part of a JSON object, which ends with its bracket."""
    try:
        json.loads(line)
    except ValueError:
        return True
    except RecursionError:
        pass  # nested too deeply to tell, so it is kept and refused
    return False
