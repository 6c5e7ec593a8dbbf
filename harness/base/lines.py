"""Files of JSON lines: several processes append to one, and a torn last line is told and dropped; and their lock."""

import contextlib
import glob
import gzip
import json
import os
import shlex
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from zoo.core.files import DEVICE, PARTIAL, PIPE, kind_of, no_room, require_file

T = TypeVar("T")


@contextlib.contextmanager
def hold_lock(path: Path, busy: str | None = None) -> Iterator[bool]:
    """Keep other processes out while the body runs; yield False where the file system has no locks.

    The file ``path`` is there as long as a process holds the lock. Wait for it, unless it says what to tell at once
    that it is ``busy``, in a ValueError.
    """
    lock = FileLock(path, timeout=-1 if busy is None else 0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(busy) from None
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # Windows keeps what is open
            path.unlink()
        lock.release()


def _lock(path: Path) -> contextlib.AbstractContextManager[bool]:
    return hold_lock(_lock_path(path))


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def append_lines(path: Path, lines: bytes) -> None:
    """Add lines at the end of a file, all or none; it is made if it isn't there.

    Raises:
        ValueError: a file that is read packed, see `read_lines`, or no file at all.
        OSError: they can't be written.
    """
    require_file(path)
    if path.suffix == ".gz":
        raise ValueError(f"{path}: lines are appended to plain files only; unpack it with gzip -d")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file, _lock(path) as alone:
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
def claim_file(path: Path | None) -> Iterator[None]:
    """Keep other runs from writing a file while the body runs; what killed runs left beside it goes.

    Nothing is done where ``path`` is None, or a pipe or device.

    Raises:
        ValueError: another run writes it.
        OSError: it can't be written; nobody has to wait for the end to learn that.
    """
    if path is None or kind_of(path) in (PIPE, DEVICE):
        yield
        return
    require_appendable(path)
    path = Path(os.path.realpath(path))
    busy = f"another run is writing to {str(path)!r}: wait for its end, or use another --output"
    with hold_lock(_lock_path(path), busy) as alone:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}") if alone else ():
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        yield


def read_lines(path: Path) -> tuple[list[bytes], bool]:
    """Return a file's lines, unpacked where its name ends in ``.gz``, and whether the last is torn.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file, no gzip file, or not the whole of one.
    """
    require_file(path)
    lines, torn = _split(path)
    if torn and _lock_path(path).exists():  # unless somebody is writing it
        with _lock(path):
            return _split(path)
    return lines, torn


def _split(path: Path) -> tuple[list[bytes], bool]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error}); unpack what there is with gzip -dc") from error
    *lines, last = content.split(b"\n")
    return ([*lines, last], _is_torn(last)) if last else (lines, False)


def parse_lines(path: Path, parse: Callable[[bytes], T]) -> list[T]:
    """Read each line by a function that raises ValueError for what isn't right, in file order; blank ones are none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names the file, the line and what the function said; or the last line is torn.
    """
    values = []
    lines, torn = read_lines(path)
    for number, line in enumerate(lines, start=1):
        try:
            values += [parse(line)] if line.strip() else []
        except ValueError as error:
            what = str(error)
            if torn and number == len(lines):
                code = f"from harness.base.lines import mend; mend({str(path)!r})"
                what = (
                    "torn, as what wrote it was stopped midway; the same command drops it and goes "
                    f"on, or drop it with: python -c {shlex.quote(code)}"
                )
            raise ValueError(f"{path}, line {number}: {what}") from error
    return values


def can_resume(path: Path, say: Callable[[str], object], *, fresh: bool) -> bool:
    """Tell whether an earlier run left lines to go on from, which none are if all is ``fresh``.

    A torn last line is dropped first, and ``say`` called with words that say so.
    """
    if fresh or not path.is_file():
        return False
    if mend(path):
        say(f"{path}: the last line was torn, as what wrote it was stopped; dropped")
    return True


def mend(path: str | Path) -> bool:
    """Drop the torn last line of a file, as the next that appends would; say if there was one."""
    with Path(path).open("rb+", buffering=0) as file, _lock(Path(path)) as alone:
        return alone and _mend(file)


def _mend(file: FileIO) -> bool:
    """End the last line of a locked file, or drop it if it is torn; say if it was dropped."""
    file.seek(0)
    content = file.readall()
    start = content.rfind(b"\n") + 1
    if start == len(content):
        return False
    if _is_torn(content[start:]):
        os.ftruncate(file.fileno(), start)
        return True
    file.seek(0, os.SEEK_END)
    file.write(b"\n")  # an editor left it out
    return False


def _is_torn(line: bytes) -> bool:
    """Say if a line without an end is a part of a JSON object, which ends with its bracket."""
    try:
        json.loads(line)
    except ValueError:
        return True
    except RecursionError:
        pass  # whole, and nested too deeply
    return False
