"""Archives of datasets: downloaded, checked, unpacked and indexed. None of them is trusted."""

import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import requests
from rich.filesize import decimal

from harness.base.lines import hold_lock
from harness.base.terminal import Progress
from zoo.core.files import require_file

PART, PARTIAL = ".part", ".unpacking"
BLOCK = 2**20
CHUNK = 2**16  # of a download
TIMEOUT_S = 60
# Photographs hardly shrink, lists of names do; bombs are above 1000.
RATIO = 20
ALLOWANCE = 2**26
RECORD = 512  # bytes of a tar's header, and the least that any member counts
MOST = 2**62  # bytes of a member: Arrow's numbers hold no more
AGAIN = "delete it and get it again, by --download or by hand"
DAMAGE = (
    EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError,
    RuntimeError, OverflowError, UnicodeError, KeyError,
)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """A file of the source: an archive, or a plain file."""

    file: str
    url: str = ""  # empty if there is a licence to agree to, or no lasting address
    sums: tuple[str, ...] = ()  # md5:... or sha256:... of the known versions, all of one kind
    holds: str = ""  # path in the dataset's folder once the file is unpacked; it may be another archive
    strip: str = ""  # folder in the archive whose content is taken, and nothing else
    loose: bool = False  # whether that content lies in no folder of its own, and becomes the folder ``holds``
    page: str = ""  # for a person to get the file

    @property
    def packed(self) -> bool:
        """Whether it has to be unpacked."""
        return self.file.endswith((".tar.gz", ".tgz", ".tar", ".zip"))


def provide(name: str, folder: Path, archives: Sequence[Archive], *, download: bool, progress: Progress) -> None:
    """Unpack a dataset's archives into its folder; of processes that start together, one works.

    A FileNotFoundError says which files are missing and how to get them.
    """

    def missing(archive: Archive) -> bool:
        inner = [other for other in archives if other.file == archive.holds != other.holds]
        return not (folder / archive.holds).exists() and all(map(missing, inner))

    if any((folder / archive.file).exists() or (download and archive.url) for archive in archives if missing(archive)):
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / ".lock"):
            for archive in filter(missing, archives):
                file = folder / archive.file
                if download and archive.url and not file.exists():
                    with progress.task(f"downloading {archive.file}", 0, unit=decimal) as update:
                        fetch(archive, file, update)
                if archive.packed and file.exists():
                    with progress.task(f"checking and unpacking {archive.file}", 0):
                        unpack(archive, file, folder)
    lines = [
        f"  {archive.holds!r} is missing; get {archive.file!r} "
        f"{'by --download, or by hand' if archive.url else 'by hand only'}, from {archive.page}"
        for archive in filter(missing, archives)
    ]
    if lines:
        there = f"Put files into {str(folder)!r} as they are; archives are unpacked there."
        raise FileNotFoundError("\n".join([f"dataset {name!r} isn't complete in {str(folder)!r}:", *lines, there]))


def fetch(archive: Archive, to: Path, update: Callable[..., object]) -> None:
    """Download a file, whole and with a known sum, or not at all.

    ``update`` receives the number of bytes so far, and in total (0 if unknown).
    """
    part = to.with_name(to.name + PART)
    headers = {"User-Agent": "clip-patchrank", "Accept-Encoding": "identity"}
    try:
        with requests.get(archive.url, stream=True, timeout=TIMEOUT_S, headers=headers) as answer:
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise ValueError(
                    f"{archive.url} answered with a web page instead of {archive.file!r}; open {archive.page} in a "
                    f"browser and put the file at {str(to)!r}"
                )
            total = int(answer.headers.get("Content-Length") or 0)
            with part.open("wb") as file:
                for block in answer.iter_content(CHUNK):
                    file.write(block)
                    update(file.tell(), total)
        require_sum(archive, part)
        part.replace(to)
    except requests.RequestException as error:
        raise OSError(
            f"the download of {archive.file!r} from {archive.url} failed: {error}; try again, or get it from "
            f"{archive.page} and put it at {str(to)!r}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def require_sum(archive: Archive, file: Path) -> None:
    """Refuse a file, by a ValueError, that has none of the source's sums."""
    if not archive.sums:
        return
    kind = archive.sums[0].partition(":")[0]
    with file.open("rb") as content:
        whole = hashlib.file_digest(content, lambda: hashlib.new(kind, usedforsecurity=False))
    if (checksum := f"{kind}:{whole.hexdigest()}") not in archive.sums:
        raise ValueError(f"archive {str(file)!r} has {checksum}, expected {' or '.join(archive.sums)}; {AGAIN}")


def unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Unpack a file into the dataset's folder, so that ``holds`` is there whole or not at all.

    Members stay inside, see ``tarfile.data_filter``; all together may have ``RATIO`` times the archive's bytes. Present
    files stay. A ValueError refuses all else.
    """
    require_file(file)
    require_sum(archive, file)
    what, partial = f"archive {str(file)!r}", folder / f".{file.name}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    try:
        _extract(file, partial)
        source = partial / archive.strip
        if not (source if archive.loose else source / archive.holds).exists():
            raise ValueError(f"{what} doesn't hold {archive.holds!r}, so it isn't the one of {archive.page}")
        if archive.loose:
            (folder / archive.holds).parent.mkdir(parents=True, exist_ok=True)
            source.rename(folder / archive.holds)
            return
        last = PurePosixPath(archive.holds).parts[0]
        for entry in sorted(source.iterdir(), key=lambda path: path.name == last):
            if not (folder / entry.name).exists():
                entry.rename(folder / entry.name)
    except tarfile.FilterError as error:
        raise ValueError(f"{what}: {error}; it isn't unpacked") from error
    except DAMAGE as error:
        size = file.stat().st_size
        raise ValueError(f"{what} is truncated, damaged or encrypted: {size:,} bytes, {error}; {AGAIN}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(file: Path, goal: Path) -> None:
    """Write the members of a zip, or of a tar in any compression, into a new folder."""
    left = RATIO * file.stat().st_size + ALLOWANCE
    goal.mkdir(parents=True)

    def count(name: str, size: int) -> None:
        nonlocal left
        left -= RECORD + size
        if size < 0 or left < 0:  # by a size below 0 tarfile goes backwards for ever
            raise ValueError(f"archive {file.name!r} unpacks to by far more than its bytes, at {name[:60]!r}")

    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                count(info.filename, info.file_size)
            opened.extractall(goal)
        return
    with tarfile.open(file) as tar:

        def accept(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
            count(member.name, member.size)
            return tarfile.data_filter(member, into)

        tar.extractall(goal, filter=accept)
        while tar.fileobj is not None and tar.fileobj.read(BLOCK):
            pass  # a gzip's sum stands at its end


def members_of(file: BinaryIO, what: str) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a plain tar; a ValueError at its end tells that it isn't whole."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if not 0 <= member.size < MOST:  # tarfile would go backwards for ever
                    raise OverflowError(f"{member.size:,} bytes in {member.name!r}")
                tar.members.clear()  # type: ignore[attr-defined]  # else all headers stay in memory
                yield member
            end = tar.offset
    except (*DAMAGE, OSError, ValueError) as error:
        raise ValueError(f"{what} is truncated or no plain tar ({error}); make it again, uncompressed") from error
    # tarfile takes a damaged header for the end; the mark of a tar's end are blocks of zeros.
    if os.pread(file.fileno(), RECORD, end) != bytes(RECORD):
        end = min(end, os.fstat(file.fileno()).st_size)
        raise ValueError(f"{what} is truncated or damaged after byte {end:,}; get or make it again")
