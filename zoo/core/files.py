"""Files that are written whole or not at all, the kinds of file, and this user's cache."""

import contextlib
import glob
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from zoo.core.errors import no_room

EMBEDDED = Path(__file__).parent.parent / "embedded"
PARTIAL = ".partial"
PIPE, DEVICE = "a pipe", "a device"  # such as /dev/stdout
_KINDS = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: PIPE, stat.S_IFBLK: "a disk"}
_KINDS |= {stat.S_IFSOCK: "a socket"}


def special_kind(mode: int) -> str | None:
    """Name a special file (pipe, device, socket, folder) by its ``st_mode``; None for a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), DEVICE)


def kind_of(path: Path) -> str | None:
    """Name the special file that a path leads to; None for a regular file or nothing."""
    try:
        return special_kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_file(path: Path) -> None:
    """Refuse a special file, such as a pipe that may never end, by ValueError; a path with nothing passes."""
    if kind := kind_of(path):
        raise ValueError(f"{str(path)!r} is {kind}; expected a regular file")


def cache_folder() -> Path:
    """Return this user's cache folder (XDG rules)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "clip-patchrank"


def cache_file(room: str, name: str) -> Path:
    """Return the place in a room of this user's cache for a file that can be made again, and make its folder.

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


def _remove_left(path: Path) -> None:
    """Remove partial files that killed processes of this machine left; Windows can't tell which processes ended."""
    start = glob.escape(partial_of(path).name.rpartition("-")[0])
    for left in path.parent.glob(f"{start}-*{PARTIAL}") if os.name == "posix" else ():
        number = left.name.removesuffix(PARTIAL).rpartition("-")[2]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, OSError, OverflowError):
            pass  # none of ours, or another user's


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
        _remove_left(path)
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
