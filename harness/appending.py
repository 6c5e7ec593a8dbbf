"""Files of lines that several processes append to, and what a stopped one may leave in them.

A line counts once its end is written. What appends holds a lock on the file meanwhile and takes
back what it can't finish, so that lines of two processes neither mix nor get lost; what reads holds
a shared one. Only a killed process or a power cut can leave a torn last line. Whoever appends next
drops it.
Where there are no locks (Windows, some network folders) lines are appended in one write and nothing
is taken back or dropped, as it might be another's.
"""

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")


def append(path: Path, lines: bytes) -> None:
    """Add lines at the end of a file, all or none; it is made if it isn't there.

    Raises:
        OSError: they can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file, _locked(file, exclusive=True) as alone:
        if alone:
            _mend(file)
        size = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            if alone:
                os.ftruncate(file.fileno(), size)
            raise


def require_appendable(path: Path) -> None:
    """Refuse a file of ``--output`` that lines couldn't be added to, before they are measured.

    Its folder is made if it isn't there.

    Raises:
        NotADirectoryError: its folder is a file.
        OSError: file or folder can't be written to.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"--output {str(folder)!r} is a file, or lies in one; expected a folder"
        ) from error
    except OSError as error:
        raise OSError(
            f"--output {str(folder)!r} can't be written to ({error.strerror}); name another folder"
        ) from error


def read_lines(path: Path) -> tuple[list[bytes], bool]:
    """Return a file's lines, and whether the last is torn.

    Raises:
        FileNotFoundError: no such file.
    """
    with path.open("rb", buffering=0) as file, _locked(file, exclusive=False):
        *lines, last = file.readall().split(b"\n")
    return ([*lines, last], _is_torn(last)) if last else (lines, False)


def parsed_lines(path: Path, parse: Callable[[bytes], T]) -> list[T]:
    """Read each line by a function that raises ValueError for what isn't right, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names the file, the line and what the function said; or the last line is torn.
    """
    found = []
    lines, torn = read_lines(path)
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse(line))
        except ValueError as error:
            if torn and number == len(lines):
                code = f"from harness.appending import mend; mend({str(path)!r})"
                raise ValueError(
                    f"{path}, line {number}: torn, as what wrote it was stopped midway; the same "
                    f"command drops it and goes on, or drop it with: python -c {shlex.quote(code)}"
                ) from error
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found


def to_go_on_from(path: Path, say: Callable[[str], object], *, fresh: bool) -> bool:
    """Tell whether an earlier run left lines to go on from; a torn last one is dropped first.

    Args:
        path: their file.
        say: told if a line was dropped.
        fresh: whether all is to be measured again, so that there are none.
    """
    if fresh or not path.is_file():
        return False
    if mend(path):
        say(f"{path}: the last line was torn, as what wrote it was stopped; dropped")
    return True


def mend(path: str | Path) -> bool:
    """Drop the torn last line of a file, as the next that appends would; say if there was one.

    Raises:
        FileNotFoundError: no such file.
        OSError: there is one, and the file can't be written to.
    """
    path = Path(path)
    if not read_lines(path)[1]:
        return False
    with path.open("rb+", buffering=0) as file, _locked(file, exclusive=True) as alone:
        return alone and _mend(file)


def _is_torn(line: bytes) -> bool:
    """Say if a line without an end is a part of a JSON object, which ends with its bracket."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


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


@contextlib.contextmanager
def _locked(file: FileIO, *, exclusive: bool) -> Iterator[bool]:
    """Wait for a lock, which ends with the file's being closed; yield whether there is one."""
    held = False
    if fcntl is not None:
        # A file system without locks raises.
        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            held = True
    yield held
