"""What datasets are shipped in: found, downloaded, checked and unpacked. None of it is trusted."""

import gzip
import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO

import requests
from filelock import FileLock

from harness.base.terminal import Progress

PACKED = (".tar.gz", ".tgz", ".tar", ".zip")
PART, LOCK, PARTIAL = ".part", ".lock", ".unpacking"
BLOCK = 2**20
CHUNK = 2**16  # of a download
TIMEOUT_S = 60
# Photographs hardly shrink, lists of names do; bombs are above 1000.
RATIO = 20
ALLOWANCE = 2**26
HEADER = 512  # bytes that a member counts at least, else a bomb may be of empty files
AGAIN = "delete it and get it again, by --download or by hand"
DAMAGE = (
    EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError,
    RuntimeError, OverflowError, UnicodeError, KeyError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file of the source: an archive, or a plain file that is used as it is.

    file: its name, see ``find``. holds: path that is there once it is unpacked, relative to the dataset's folder; of a
    plain file its own name. Several archives may hold the same: any of them will do. page: where a person gets it.
    url: None where there is a licence to agree to, or no lasting address. checksums: ``md5:...`` or ``sha256:...`` of
    the versions that are known. strip: folder in the archive whose content is taken, and nothing else of it. into:
    folder that it is unpacked in, relative to the dataset's. nested: its members are tars, each to be unpacked in a
    folder of its name. optional: the dataset is of use without it.
    """

    file: str
    holds: str
    page: str
    url: str | None = None
    checksums: tuple[str, ...] = ()
    strip: str = ""
    into: str = ""
    nested: bool = False
    optional: bool = False

    @property
    def packed(self) -> bool:
        """Whether it has to be unpacked."""
        return self.file.endswith(PACKED)

    def find(self, folder: Path) -> Path | None:
        """Look for it in the dataset's folder; beside that, too, if it holds a folder of its own.

        Others have names like images.tar.gz, which beside the folder may be of another dataset.
        """
        candidates = [folder / self.file, *([folder.parent / self.file] if self.strip else [])]
        return next((file for file in candidates if file.is_file()), None)


@dataclass(frozen=True)
class Provider:
    """Puts into a dataset's folder what is needed."""

    dataset: str
    folder: Path
    archives: Sequence[Archive]
    may_download: bool = False
    progress: Progress = field(default_factory=Progress)

    def provide(self) -> None:
        """Have everything that the archives hold; of processes that start together, one works.

        A FileNotFoundError says what is missing, where it was looked for and what to do.
        """
        files = {archive.file for archive in self.archives if archive.packed}
        paths = dict.fromkeys(archive.holds for archive in self.archives if archive.holds not in files)
        missing = [path for path in paths if not (self.folder / path).exists()]
        if any(a.find(self.folder) or (self.may_download and a.url) for path in missing for a in self._holding(path)):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / LOCK):
                missing = [path for path in missing if not self._have(path)]
        optional = {archive.holds for archive in self.archives if archive.optional}
        if required := [path for path in missing if path not in optional]:
            raise FileNotFoundError(self._describe(required))

    def _have(self, path: str) -> bool:
        """Have one path, out of any archive that holds it, which may be in another one."""
        holding = [archive for archive in self.archives if archive.holds == path]
        for archive in holding:
            if (self.folder / path).exists():
                return True
            if archive.find(self.folder) is not None or (archive.packed and self._have(archive.file)):
                self._unpack(archive)
        for archive in holding:
            if self.may_download and archive.url and not (self.folder / path).exists():
                with self.progress.bytes(f"downloading {archive.file}") as update:
                    download(archive, self.folder / archive.file, update)
                self._unpack(archive)
        return (self.folder / path).exists()

    def _unpack(self, archive: Archive) -> None:
        """Check an archive that is there, and unpack it."""
        file = archive.find(self.folder)
        assert file is not None
        with self.progress.bytes(f"checking and unpacking {file.name}", file.stat().st_size) as update:
            require_sum(archive, file, update)
            if archive.packed:
                unpack(archive, file, self.folder, update)

    def _describe(self, paths: Sequence[str]) -> str:
        """Say what is missing and how to mend it."""
        lines = [f"dataset {self.dataset!r} isn't complete in {str(self.folder)!r}:"]
        for path in paths:
            holding = self._holding(path)
            files = " or ".join(dict.fromkeys(repr(archive.file) for archive in holding))
            pages = " or ".join(dict.fromkeys(archive.page for archive in holding))
            how = "by --download, or by hand" if any(archive.url for archive in holding) else "by hand only"
            lines.append(f"  {path!r} is missing, which is in {files}; get that {how}, from {pages}")
        return "\n".join([*lines, f"Put files into {str(self.folder)!r} as they are; archives are unpacked there."])

    def _holding(self, path: str) -> list[Archive]:
        """Return the archives that hold a path, and those that hold these."""
        direct = [archive for archive in self.archives if archive.holds == path]
        return [a for d in direct for a in (d, *(self._holding(d.file) if d.packed else []))]


def download(archive: Archive, to: Path, on_bytes: Callable[[int, int], None] = lambda *_: None) -> None:
    """Get a file of a source; it is there whole, with the sum it should have, or not at all.

    What came before a stop stays beside it as NAME.part and is gone on with, which pooch can't do.
    ``on_bytes`` receives how many bytes are there, and of how many (0 where nobody says).

    Raises:
        ValueError: it has another sum, or a web page came in its place.
        OSError: the server can't be reached, says no, or stops too early; or there is no room.
    """
    part = to.with_name(to.name + PART)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        _append(archive, part, on_bytes)
        require_sum(archive, part)
    except requests.RequestException as error:
        kept = f"; {part.stat().st_size:,} bytes are kept" if part.exists() else ""
        raise OSError(
            f"the download of {archive.file!r} from {archive.url} failed: {error}{kept}; the same command goes on, or "
            f"get it from {archive.page} and put it at {str(to)!r}"
        ) from error
    except ValueError:
        part.unlink(missing_ok=True)
        raise
    part.replace(to)


def _append(archive: Archive, part: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Append to the part what it lacks."""
    assert archive.url is not None
    headers = {"User-Agent": "clip-patchrank", "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={part.stat().st_size}-"} if part.exists() else {}
    with requests.get(archive.url, stream=True, timeout=TIMEOUT_S, headers=headers) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # nothing is lacking, or it is of another file: get it anew
            return _append(archive, part, on_bytes)
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise ValueError(
                f"{archive.url} answered with a web page instead of {archive.file!r}; open {archive.page} in a browser "
                f"and put the file at {str(part.with_name(archive.file))!r}"
            )
        size = int(answer.headers.get("Content-Length") or 0)
        require_room(part.parent, size, f"the download of {archive.file!r}")
        with part.open("ab" if answer.status_code == HTTPStatus.PARTIAL_CONTENT else "wb") as file:
            total = file.tell() + size if size else 0
            for block in answer.iter_content(CHUNK):
                file.write(block)
                on_bytes(file.tell(), total)
    return None


def require_sum(archive: Archive, file: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Refuse a file, by a ValueError, that has none of the source's sums."""
    kinds = sorted({checksum.partition(":")[0] for checksum in archive.checksums})
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with file.open("rb") as content:
        while kinds and (block := content.read(BLOCK)):
            for digest in digests.values():
                digest.update(block)
            on_bytes(content.tell())
    sums = [f"{kind}:{digest.hexdigest()}" for kind, digest in digests.items()]
    if kinds and not set(sums) & set(archive.checksums):
        raise ValueError(
            f"archive {str(file)!r} has {', '.join(sums)} at {file.stat().st_size:,} bytes; expected "
            f"{' or '.join(archive.checksums)}: it is damaged or another version; {AGAIN}"
        )


def require_room(folder: Path, size: int, what: str) -> None:
    """Refuse to start what won't fit, by an OSError."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(
            f"{what} needs {size:,} bytes, and {str(folder)!r} has {free:,} free; make room or choose another --root"
        )


def unpack(archive: Archive, file: Path, folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Unpack a file into the dataset's folder; ``holds`` is there whole or not at all.

    The filters of tarfile and zipfile keep members inside, see ``tarfile.data_filter``; all together may have
    ``RATIO`` times the archive's bytes. What is there already stays as it is. ``on_bytes`` receives how far in the
    file this is.

    Raises:
        ValueError: it is damaged, encrypted, unpacks to absurdly much, doesn't hold what it should, or holds
            something that leaves the folder: a path, a link, a device.
        OSError: not enough room.
    """
    what, size = f"archive {str(file)!r}", file.stat().st_size
    folder.mkdir(parents=True, exist_ok=True)
    require_room(folder, size, what)
    partial = folder / f".{file.name}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    source, goal = partial / archive.into, folder / archive.into
    source.mkdir(parents=True)
    try:
        with file.open("rb") as content:
            unpacking = _Unpacking(archive, content, RATIO * size + ALLOWANCE, on_bytes)
            if file.suffix == ".zip":
                unpacking.unzip(source)
            else:
                unpacking.untar(content, source, nested=archive.nested)
        if not (partial / archive.holds).exists():
            raise ValueError(f"{what} doesn't hold {archive.holds!r}, so it isn't the one of {archive.page}")
        if archive.holds == archive.into:
            goal.parent.mkdir(parents=True, exist_ok=True)
            source.rename(goal)
            return
        last = PurePosixPath(archive.holds).relative_to(archive.into).parts[0]
        for entry in sorted(source.iterdir(), key=lambda path: path.name == last):
            if not (goal / entry.name).exists():
                entry.rename(goal / entry.name)
    except tarfile.FilterError as error:
        raise ValueError(f"{what}: {error}; it isn't unpacked") from error
    except DAMAGE as error:
        raise ValueError(f"{what} is truncated, damaged or encrypted: {size:,} bytes, {error}; {AGAIN}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass
class _Unpacking:
    """One archive on its way to a folder, with the bytes that it may still unpack to."""

    archive: Archive
    file: IO[bytes]
    left: int
    on_bytes: Callable[[int], None]

    def admit(self, name: str, size: int) -> str | None:
        """Count a member before it is written; return its path in the folder that is taken, None if it isn't in it."""
        self.on_bytes(self.file.tell())
        self.left -= HEADER + size
        if self.left < 0:
            raise ValueError(f"archive {self.archive.file!r} unpacks to by far more than its bytes, at {name[:60]!r}")
        path = PurePosixPath(name)
        return str(path.relative_to(self.archive.strip)) if path.is_relative_to(self.archive.strip) else None

    def accept(self, member: tarfile.TarInfo, into: str) -> tarfile.TarInfo | None:
        """Be the filter of tarfile: its own one, for members of the folder that is taken."""
        if (path := self.admit(member.name, member.size)) is None:
            return None
        target = PurePosixPath(member.linkname)
        if member.islnk() and target.is_relative_to(self.archive.strip):
            member = member.replace(linkname=str(target.relative_to(self.archive.strip)), deep=False)
        return tarfile.data_filter(member.replace(name=path, deep=False), into)

    def untar(self, stream: IO[bytes], goal: Path, *, nested: bool) -> None:
        """Write the files of a tar, in whatever compression."""
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                inner = tar.extractfile(member) if nested and member.isfile() and member.name.endswith(".tar") else None
                if inner is not None:
                    self.untar(inner, goal / PurePosixPath(member.name).stem, nested=False)
                else:
                    tar.extract(member, goal, set_attrs=False, filter=self.accept)
            while tar.fileobj is not None and tar.fileobj.read(BLOCK):
                pass  # a gzip's sum stands at its end

    def unzip(self, goal: Path) -> None:
        """Write the files of a zip; what is a link there becomes a file."""
        with zipfile.ZipFile(self.file) as opened:
            for info in opened.infolist():
                path = self.admit(info.filename, info.file_size)
                if path is not None and not info.is_dir():
                    info.filename = path
                    opened.extract(info, goal)


def drive(number: str) -> str:
    """Return the address of a file on Google Drive, without the page that warns of large ones."""
    return f"https://drive.usercontent.google.com/download?id={number}&export=download&confirm=t"
