"""What datasets are shipped in: found, downloaded, checked and unpacked. None of it is trusted."""

import gzip
import hashlib
import lzma
import shutil
import stat
import tarfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath, PureWindowsPath
from posixpath import normpath
from typing import IO, Any, cast

import pooch
import requests
from filelock import FileLock

from harness.base.terminal import Progress

PACKED = (".tar.gz", ".tgz", ".tar", ".zip")
PART, LOCK, PARTIAL = ".part", ".lock", ".unpacking"
BLOCK = 2**20
CHUNK = 2**16  # of a download
TIMEOUT_S = 60
LOCAL = ("127.0.0.1", "localhost")
# Photographs hardly shrink, lists of names do; bombs are above 1000.
RATIO = 20
ALLOWANCE = 2**26
HEADER = 512  # bytes that a member counts at least
TEXT = 2**16  # bytes of a long name and the like that a member may have
NAME, NAMED = 4096, 60  # characters of a path at most, and of one in a message
TEXTS = 2**24  # of all members together, beyond their headers
_REFUSED = "; it isn't unpacked"
DAMAGE = (
    EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError,
    OverflowError, RecursionError, UnicodeError, OSError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file of the source: an archive, or a plain file that is used as it is.

    file: its name, see ``find``. holds: path that is there once it is unpacked, relative to the
    dataset's folder; of a plain file its own name. Several archives may hold the same: any of them
    will do. page: where a person gets it. url: None where there is a licence to agree to, or no
    lasting address. checksums: ``md5:...`` or ``sha256:...`` of the versions that are known.
    strip: folder in the archive whose content is taken, and nothing else of it. into: folder that
    it is unpacked in, relative to the dataset's. nested: its members are tars, each to be unpacked
    in a folder of its name. optional: the dataset is of use without it.
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
        places = [folder / self.file, *([folder.parent / self.file] if self.strip else [])]
        return next((place for place in places if place.is_file()), None)


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
        packed = {archive.file for archive in self.archives if archive.packed}
        paths = dict.fromkeys(a.holds for a in self.archives if a.holds not in packed)
        missing = [path for path in paths if not (self.folder / path).exists()]
        sources = [archive for path in missing for archive in self._holding(path)]
        if any(a.find(self.folder) or (self.may_download and a.url) for a in sources):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / LOCK):
                missing = [path for path in missing if not self._have(path)]
        optional = {archive.holds for archive in self.archives if archive.optional}
        if required := [path for path in missing if path not in optional]:
            raise FileNotFoundError(self._missing(required))

    def _have(self, path: str) -> bool:
        """Have one path, out of any archive that holds it."""
        if (self.folder / path).exists():
            return True
        holding = [archive for archive in self.archives if archive.holds == path]
        if any(self._take(archive) for archive in holding):
            return True
        online = next((archive for archive in holding if archive.url is not None), None)
        if online is None or not self.may_download:
            return False
        with self.progress.bytes(f"downloading {online.file}") as update:
            download(online, self.folder / online.file, update)
        return self._take(online)

    def _take(self, archive: Archive) -> bool:
        """Check and unpack an archive, if it is there or in another one that is."""
        inside = any(other.holds == archive.file for other in self.archives)
        if archive.packed and inside and archive.find(self.folder) is None:
            self._have(archive.file)
        if (file := archive.find(self.folder)) is None:
            return False
        size = file.stat().st_size
        with self.progress.bytes(f"checking {file.name}", size) as update:
            require_sum(archive, file, update)
        if archive.packed:
            with self.progress.bytes(f"unpacking {file.name}", size) as update:
                unpack(archive, file, self.folder, update)
        return (self.folder / archive.holds).exists()

    def _missing(self, paths: Sequence[str]) -> str:
        """Say what is missing and how to mend it."""
        lines = [f"dataset {self.dataset!r} isn't complete in {str(self.folder)!r}:"]
        for path in paths:
            holding = self._holding(path)
            files = " or ".join(dict.fromkeys(repr(archive.file) for archive in holding))
            pages = " or ".join(dict.fromkeys(archive.page for archive in holding))
            by_hand = all(archive.url is None for archive in holding)
            how = "by hand only" if by_hand else "by --download, or by hand"
            out_of = "" if files == repr(path) else f", which is in {files}"
            lines.append(f"  {path!r} is missing{out_of}; get that {how}, from {pages}")
        put = f"Put files into {str(self.folder)!r} as they are; archives are unpacked there."
        return "\n".join([*lines, put])

    def _holding(self, path: str) -> list[Archive]:
        """Return the archives that hold a path, and those that hold these."""
        direct = [archive for archive in self.archives if archive.holds == path]
        return [a for d in direct for a in (d, *(self._holding(d.file) if d.packed else []))]


def download(archive: Archive, to: Path, on_bytes: Callable[[int, int], None] = lambda *_: None) -> None:
    """Get a file of a source; it is there whole, with the sum it should have, or not at all.

    What came before a stop stays beside it as NAME.part and is gone on with. ``on_bytes`` receives
    how many bytes are there, and of how many (0 where nobody says).

    Raises:
        ValueError: it has another sum, or a web page came in its place.
        OSError: the server can't be reached, says no, or stops too early; or there is no room.
    """
    assert archive.url is not None
    _require_safe(archive.url)
    part = to.with_name(to.name + PART)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        _append(archive, archive.url, part, on_bytes)
        require_sum(archive, part)
    except requests.RequestException as error:
        answer = error.response
        why = str(error) if answer is None else f"it answered {answer.status_code} {answer.reason}"
        size = part.stat().st_size
        kept = f"; {size:,} bytes are kept" if size else ""
        raise OSError(
            f"the download of {archive.file!r} from {archive.url} failed: {why}{kept}; the same "
            f"command goes on, or get it from {archive.page} and put it at {str(to)!r}"
        ) from error
    except ValueError:
        part.unlink(missing_ok=True)
        raise
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()
    part.replace(to)


class _Bar:
    """Pass on what pooch says about its progress."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int, int], None]) -> None:
        self.file, self.on_bytes = file, on_bytes
        self.start = self.total = 0

    def update(self, _size: int) -> None:
        """Say how large the file is by now, and will be."""
        self.on_bytes(self.file.tell(), self.start + self.total if self.total else 0)

    def reset(self) -> None:
        """Do nothing; the size is the file's."""

    close = reset


def _append(archive: Archive, url: str, part: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Append to the part what it lacks."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "clip-patchrank", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with part.open("ab") as file:
        bar = _Bar(file, on_bytes)

        def judge(answer: requests.Response, **_: Any) -> None:
            """Judge an answer before anything of it is written."""
            if answer.is_redirect:
                _require_safe(urllib.parse.urljoin(answer.url, answer.headers["Location"]))
            elif answer.ok:
                if answer.headers.get("Content-Type", "").startswith("text/html"):
                    raise ValueError(
                        f"{url} answered with a web page instead of {archive.file!r}; open "
                        f"{archive.page} in a browser and put the file at "
                        f"{str(part.with_name(archive.file))!r}"
                    )
                if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
                    file.truncate(0)  # the server doesn't go on, or has another file by now
                bar.start = file.seek(0, 2)
                size = int(answer.headers.get("Content-Length") or 0)
                require_room(part.parent, size, f"the download of {archive.file!r}")

        http = {"timeout": TIMEOUT_S, "headers": headers, "hooks": {"response": judge}}
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, **http)
        try:
            get(url, file, None)
        except requests.HTTPError as error:
            answer = cast(requests.Response, error.response)
            if not have or answer.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            if answer.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return  # all of it came before a stop
            file.truncate(0)
            _append(archive, url, part, on_bytes)


def _require_safe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise ValueError(f"address {url!r} isn't https, so anybody on the way could change it")


def require_sum(archive: Archive, file: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Refuse a file, by a ValueError, that has none of the source's sums."""
    if not archive.checksums:
        return
    kinds = sorted({checksum.partition(":")[0] for checksum in archive.checksums})
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
            on_bytes(content.tell())
    sums = [f"{kind}:{digest.hexdigest()}" for kind, digest in digests.items()]
    if not set(sums) & set(archive.checksums):
        raise ValueError(
            f"archive {str(file)!r} has {', '.join(sums)} at {file.stat().st_size:,} bytes; "
            f"expected {' or '.join(archive.checksums)}: it is damaged or another version; delete "
            "it and get it again, by --download or by hand"
        )


def require_room(folder: Path, size: int, what: str) -> None:
    """Refuse to start what won't fit, by an OSError."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(
            f"{what} needs {size:,} bytes, and {str(folder)!r} has {free:,} free; make room or choose another --root"
        )


def unpack(archive: Archive, file: Path, folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Unpack a file into the dataset's folder; ``holds`` is there whole or not at all.

    What an archive is, its first bytes say, not its name: the tar.gz of ImageNetV2 is a plain tar.
    Links to files become copies. What is there already stays as it is. One process at a time may
    do so in a folder. ``on_bytes`` receives how far in the file this is.

    Raises:
        ValueError: it is damaged, encrypted, unpacks to absurdly much, doesn't hold what it
            should, or holds something that leaves the folder: a path, a link, a device.
        OSError: not enough room.
    """
    what = f"archive {str(file)!r}"
    folder.mkdir(parents=True, exist_ok=True)
    require_room(folder, file.stat().st_size, what)
    partial = folder / f".{file.name}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    whole, tree = partial / "whole", partial / "tree"
    try:
        whole.mkdir(parents=True)
        with file.open("rb") as content:
            _Unpacking(archive, content, file.stat().st_size, what, on_bytes).extract(whole)
        if (whole / archive.strip).is_dir():
            (tree / archive.into).parent.mkdir(parents=True, exist_ok=True)
            (whole / archive.strip).rename(tree / archive.into)
        if not (tree / archive.holds).exists():
            holds = f"doesn't hold {archive.holds!r}"
            raise ValueError(f"{what} {holds}, so it isn't the one of {archive.page}")
        _merge(tree, folder, PurePosixPath(archive.holds).parts)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's, such as a full disk
        raise ValueError(
            f"{what} is truncated or damaged: {file.stat().st_size:,} bytes, {error}; delete it "
            "and get it again, by --download or by hand"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Content:
    """The bytes of a tar, of which ``tarfile`` must not ask for many at once.

    It reads a header's text, such as a long name, in one piece, however long that says to be.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int) -> bytes:
        """Read some bytes."""
        if not 0 <= size <= TEXT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


@dataclass
class _Unpacking:
    """One archive on its way to a folder, with what it may still unpack to."""

    archive: Archive
    file: IO[bytes]
    size: int
    what: str
    on_bytes: Callable[[int], None]

    def __post_init__(self) -> None:
        """Compute what it may unpack to."""
        self.most = self.left = RATIO * self.size + ALLOWANCE
        self.texts = TEXTS

    def extract(self, goal: Path) -> None:
        """Write all files."""
        start = self.file.read(2)
        self.file.seek(0)
        if start == b"PK":
            self.unzip(goal)
        elif start == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=self.file) as content:
                self.untar(cast(IO[bytes], content), goal, nested=self.archive.nested)
        else:
            self.untar(self.file, goal, nested=self.archive.nested)

    def count(self, name: str, size: int) -> None:
        """Count a file before it is written, by the size that no reader goes beyond."""
        self.on_bytes(self.file.tell())
        self.left -= HEADER + size  # else a bomb may be of empty files
        if size < 0 or self.left < 0:
            raise ValueError(
                f"{self.what} unpacks to more than {self.most:,} bytes, by far more than its "
                f"{self.size:,}, at {name[:NAMED]!r}; it isn't unpacked"
            )

    def takes(self, name: str) -> bool:
        """Say whether a member is wanted; refuse a path that leaves the folder."""
        if len(name) > NAME:
            raise ValueError(f"{self.what} holds {name[:NAMED]!r}... of {len(name):,} characters, too long for a path")
        path = PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
        if leaves or "\\" in name or "\0" in name:
            raise ValueError(f"{self.what} holds {name!r}, which leaves the folder{_REFUSED}")
        return path.is_relative_to(self.archive.strip)

    def untar(self, stream: IO[bytes], goal: Path, *, nested: bool) -> None:
        """Write the files of a tar, then copies for its links."""
        content, links = _Content(stream), list[tarfile.TarInfo]()
        with tarfile.open(fileobj=cast(IO[bytes], content), mode="r:") as tar:
            end = 0  # of the member before
            while (info := tar.next()) is not None:
                cast(Any, tar).members.clear()  # else all names stay in memory
                self.texts -= info.offset_data - end - tarfile.BLOCKSIZE
                end = tar.offset
                if self.texts < 0:
                    raise tarfile.ReadError(f"headers with more than {TEXTS:,} bytes of names and the like")
                self.count(info.name, info.size)
                if not self.takes(info.name):
                    continue
                if nested and info.isfile() and info.name.endswith(".tar"):
                    inner = cast(IO[bytes], tar.extractfile(info))
                    self.untar(inner, goal / info.name.removesuffix(".tar"), nested=False)
                    continue
                try:
                    if info.islnk() or info.issym():
                        links.append(tarfile.data_filter(info, str(goal)))
                    else:
                        tar.extract(info, goal, set_attrs=False, filter="data")
                except tarfile.FilterError as error:
                    member = f"{self.what} holds {info.name!r}"
                    raise ValueError(f"{member}: {error}{_REFUSED}") from error
            # tarfile takes a damaged header for the end, whose mark are blocks of zeros.
            content.seek(tar.offset)
        mark = content.read(tarfile.BLOCKSIZE)
        if mark != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends without an end marker")
        while content.read(TEXT):  # checks a gzip's sum
            pass
        for link in links:
            self.copy(link, goal)

    def copy(self, link: tarfile.TarInfo, goal: Path) -> None:
        """Copy what a link points to: symbolic ones start where they are, hard ones at the top."""
        start = "." if link.islnk() else PurePosixPath(link.name).parent
        target = normpath(f"{start}/{link.linkname}")
        if not (goal / target).is_file():
            what = f"{self.what} holds {link.name!r}"
            raise ValueError(f"{what}, a link to {target!r}, which is no file of it")
        self.count(link.name, (goal / target).stat().st_size)
        (goal / link.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(goal / target, goal / link.name)

    def unzip(self, goal: Path) -> None:
        """Write the files of a zip."""
        with zipfile.ZipFile(self.file) as opened:
            for info in opened.infolist():
                self.count(info.filename, info.file_size)
                kind = stat.S_IFMT(info.external_attr >> 16)
                odd = "encrypted" if info.flag_bits & 1 else ""
                odd = odd or ("" if kind in {0, stat.S_IFREG, stat.S_IFDIR} else "a link or device")
                if odd:
                    raise ValueError(f"{self.what} holds {info.filename!r}, {odd}{_REFUSED}")
                if self.takes(info.orig_filename):
                    opened.extract(info, goal)


def _merge(source: Path, goal: Path, last: tuple[str, ...]) -> None:
    """Move what is below a folder to where it isn't yet, ``last`` at the end."""
    first = last[0] if last else ""
    for entry in sorted(source.iterdir(), key=lambda path: (path.name == first, path.name)):
        place = goal / entry.name
        if not place.exists():
            entry.rename(place)
        elif place.is_dir() and entry.is_dir():
            _merge(entry, place, last[1:] if entry.name == first else ())


def drive(number: str) -> str:
    """Return the address of a file on Google Drive, without the page that warns of large ones."""
    return f"https://drive.usercontent.google.com/download?id={number}&export=download&confirm=t"
