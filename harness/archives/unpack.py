"""Unpack archives: nothing outside the folder, nothing half done, nothing out of proportion."""

import contextlib
import os
import shutil
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from tarfile import TarError

from harness.archives.members import BLOCK, Member, members
from harness.datasets.archives import Archive

PARTIAL = ".unpacking"
# Photographs hardly shrink, lists of names do; bombs are above 1000.
RATIO = 20
ALLOWANCE = 2**26
HEADER = 512  # bytes that a member counts at least


def unpack(
    archive: Archive, file: Path, folder: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Unpack a file into the dataset's folder; ``holds`` is there whole or not at all.

    Links to files become copies. What is there already stays as it is.

    Args:
        archive: what the file is.
        file: where it lies.
        folder: of the dataset.
        on_bytes: told how far in the file one is.

    Raises:
        ValueError: it is damaged, encrypted, unpacks to absurdly much, doesn't hold what it
            should, or holds something that leaves the folder: a path, a link, a device.
        OSError: not enough room.
    """
    what = f"archive {str(file)!r}"
    folder.mkdir(parents=True, exist_ok=True)
    start = f".{file.name}.{socket.gethostname()}-"
    _clear(folder, start)
    require_room(folder, file.stat().st_size, what)
    partial = folder / f"{start}{os.getpid()}{PARTIAL}"
    try:
        partial.mkdir()
        with _damage_named(file, what):
            _write(archive, file, partial, what, on_bytes)
        if not (partial / archive.holds).exists():
            raise ValueError(
                f"{what} doesn't hold {archive.holds!r}, so it isn't the one of {archive.page}"
            )
        _merge(partial, folder, PurePosixPath(archive.holds).parts)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_room(folder: Path, size: int, what: str) -> None:
    """Refuse to start what won't fit.

    Raises:
        OSError: fewer than ``size`` bytes are free in the folder.
    """
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(
            f"{what} needs {size:,} bytes, and {str(folder)!r} has {free:,} free; make room or "
            "choose another --root"
        )


def _clear(folder: Path, start: str) -> None:
    """Remove what killed runs of this machine left."""
    for left in folder.glob(f".*{PARTIAL}"):
        process = left.name.removeprefix(start).removesuffix(PARTIAL)
        if left.name.startswith(start) and process.isdecimal() and not _runs(int(process)):
            shutil.rmtree(left)


def _runs(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it does, and is somebody else's
        pass
    return True


@contextlib.contextmanager
def _damage_named(file: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, TarError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(_damage(file, what, error)) from error
    except OSError as error:
        if error.errno is not None:  # the machine's, such as a full disk
            raise
        raise ValueError(_damage(file, what, error)) from error


def _damage(file: Path, what: str, error: Exception) -> str:
    return (
        f"{what} is truncated or damaged: {file.stat().st_size:,} bytes, {error}; delete it and "
        "get it again, by --download or by hand"
    )


def _write(
    archive: Archive, file: Path, partial: Path, what: str, on_bytes: Callable[[int], None]
) -> None:
    """Write files and folders, then copies for links."""
    most = RATIO * file.stat().st_size + ALLOWANCE
    written, links = 0, list[tuple[Path, Member]]()
    for member in members(file, what, on_bytes, nested=archive.nested):
        written += HEADER  # else a bomb may be of empty files
        if (path := _goal(member.path, archive, partial)) is None:
            continue
        if member.link is not None:
            links.append((path, member))
        elif member.content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as to:
                while written <= most and (data := member.content.read(BLOCK)):
                    written += len(data)
                    to.write(data)
        if written > most:
            raise ValueError(
                f"{what} unpacks to more than {most:,} bytes, by far more than its "
                f"{file.stat().st_size:,}, at {str(member.path)!r}; it isn't unpacked"
            )
    for path, member in links:
        assert member.link is not None
        end = _goal(member.link, archive, partial)
        if end is None or not end.is_file():
            raise ValueError(
                f"{what} holds {str(member.path)!r}, a link to {str(member.link)!r}, which is no "
                "file of it"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(end, path)


def _goal(path: PurePosixPath, archive: Archive, partial: Path) -> Path | None:
    """Return where a member is written; None for those that aren't wanted."""
    if not path.is_relative_to(archive.strip):
        return None
    inner = path.relative_to(archive.strip)
    return partial / archive.into / inner if inner.parts else None


def _merge(source: Path, goal: Path, last: tuple[str, ...]) -> None:
    """Move what is below a folder to where it isn't yet, ``last`` at the end."""
    first = last[0] if last else ""
    for entry in sorted(source.iterdir(), key=lambda path: (path.name == first, path.name)):
        place = goal / entry.name
        if not place.exists():
            try:
                entry.rename(place)
            except OSError:
                if not place.exists():  # else another process was quicker, where there are no locks
                    raise
        elif place.is_dir() and entry.is_dir():
            _merge(entry, place, last[1:] if entry.name == first else ())
