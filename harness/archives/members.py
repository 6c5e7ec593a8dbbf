"""Go through tar and zip files that nobody vouches for; what isn't a plain file or folder goes.

What an archive is, its first bytes say, not its name: the tar.gz of ImageNetV2 is a plain tar.
"""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path, PurePosixPath, PureWindowsPath
from posixpath import normpath
from typing import IO, cast

BLOCK = 2**20
NESTED = ".tar"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry of an archive.

    Attributes:
        path: relative, without "..".
        content: of a file, to be read before the next member is asked for; None of others.
        link: path in the archive that it points to, None if it is no link.
    """

    path: PurePosixPath
    content: IO[bytes] | None = None
    link: PurePosixPath | None = None


class Watched:
    """A file that tells how much of it was read, and keeps the end of that."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        """Read, and say how far in the file that is."""
        data = self._file.read(size)
        self.tail = (self.tail + data)[-tarfile.BLOCKSIZE :]
        self._on_bytes(self._file.tell())
        return data

    def seek(self, *place: int) -> int:
        """Go to a place."""
        return self._file.seek(*place)

    def tell(self) -> int:
        """Tell the place."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Tell that it can be sought in."""
        return True


def members(
    file: Path, what: str, on_bytes: Callable[[int], None], *, nested: bool = False
) -> Iterator[Member]:
    """Yield the members of a tar, a gzipped tar or a zip.

    Args:
        file: the archive.
        what: names it in messages.
        on_bytes: told how far in the file one is.
        nested: members that are tars are gone through, too, as folders of their name.

    Raises:
        ValueError: a member leaves the folder, is encrypted or a device; or a tar has no end.
        EOFError, OSError, zlib.error, tarfile.TarError, zipfile.BadZipFile: it is damaged.
    """
    with file.open("rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        watched = Watched(raw, on_bytes)
        if start == b"PK":
            yield from _zipped(watched, what)
        elif start == b"\x1f\x8b":
            with GzipFile(fileobj=cast(IO[bytes], watched)) as content:
                yield from _tarred(Watched(cast(IO[bytes], content)), what, nested)
        else:
            yield from _tarred(watched, what, nested)


def inside(name: str, what: str) -> PurePosixPath:
    """Return a member's path, if it stays in the folder."""
    path = PurePosixPath(name)
    leaves = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
    if leaves or "\\" in name or "\0" in name:
        raise ValueError(f"{what} holds {name!r}, which leaves the folder; it isn't unpacked")
    return path


def _tarred(stream: Watched, what: str, nested: bool) -> Iterator[Member]:
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as tar:
        for info in tar:
            path = inside(info.name, what)
            if info.isfile():
                content = cast(IO[bytes], tar.extractfile(info))
                if nested and path.suffix == NESTED:
                    inner = f"{what}, in it {info.name!r},"
                    for member in _tarred(Watched(content), inner, nested=False):
                        yield Member(
                            path=path.with_suffix("") / member.path, content=member.content
                        )
                else:
                    yield Member(path=path, content=content)
            elif info.issym() or info.islnk():
                yield Member(path=path, link=_end(info, path, what))
            elif info.isdir():
                yield Member(path=path)
            else:
                raise ValueError(f"{what} holds {info.name!r}, a device; it isn't unpacked")
    while stream.read(BLOCK):  # checks a gzip's sum, and finds the end
        pass
    if stream.tail.strip(b"\0"):
        raise tarfile.ReadError("it ends without an end marker")


def _end(info: tarfile.TarInfo, path: PurePosixPath, what: str) -> PurePosixPath:
    """Return what a link points to: symbolic ones start where they are, hard ones at the top."""
    told = info.linkname if info.islnk() else f"{path.parent}/{info.linkname}"
    end = PurePosixPath(info.linkname if info.linkname.startswith("/") else normpath(told))
    if end.is_absolute() or ".." in end.parts:
        raise ValueError(
            f"{what} holds {info.name!r}, a link to {info.linkname!r} out of the folder; it isn't "
            "unpacked"
        )
    return end


def _zipped(raw: Watched, what: str) -> Iterator[Member]:
    with zipfile.ZipFile(cast(IO[bytes], raw)) as archive:
        for info in archive.infolist():
            path = inside(info.orig_filename, what)
            if info.flag_bits & 1:
                raise ValueError(f"{what} holds {info.filename!r}, encrypted; it isn't unpacked")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise ValueError(
                    f"{what} holds {info.filename!r}, a link or device; it isn't unpacked"
                )
            if info.is_dir():
                yield Member(path=path)
            else:
                with archive.open(info) as content:
                    yield Member(path=path, content=content)
