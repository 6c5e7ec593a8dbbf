"""Zip archives as torch writes them, looked through before anything of them is used."""

import errno
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

CODE = "code/"
_LONGEST_SOURCE = 16 * 2**20
# Whatever zipfile raises over a damaged file.
_DAMAGED = (BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, zlib.error)


@dataclass(frozen=True, kw_only=True)
class WeightArchive:
    """The records of an archive, by their names below its one folder.

    Attributes:
        archive: the open zip file.
        records: what it says about each record.
    """

    archive: ZipFile
    records: dict[str, ZipInfo]

    def read(self, name: str) -> bytes:
        """Return a record's content, which its checksum vouches for.

        Raises:
            ValueError: there is no such record.
        """
        if name not in self.records:
            raise ValueError(f"lacks its record {name!r}: cut short or damaged; get it again")
        return self.archive.read(self.records[name])


@contextmanager
def open_archive(path: Path) -> Iterator[WeightArchive]:
    """Open a zip file of torch's; nothing of it is ever written to disk.

    torch stores tensors as they are. A record that is compressed, or records that sum up to more
    than the file, can only be there to fill the memory; source code alone may be compressed.

    Raises:
        ValueError: not such a file; the message goes behind the file's name.
    """
    try:
        with ZipFile(path) as archive:
            records = _looked_through(archive.infolist(), path.stat().st_size)
            yield WeightArchive(archive=archive, records=records)
    except (*_DAMAGED, OSError) as error:
        # Places in the file that can't be make the system refuse to go there.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"is cut short or damaged ({error}); get it again") from error


def _looked_through(listed: list[ZipInfo], size: int) -> dict[str, ZipInfo]:
    folders = {info.filename.partition("/")[:2] for info in listed}
    if len(folders) != 1 or not all(slash for _, slash in folders):
        raise ValueError("is a zip file, but none that torch wrote: it has no single folder")
    records: dict[str, ZipInfo] = {}
    total = 0
    for info in listed:
        name = info.filename.partition("/")[2]
        parts = info.filename.split("/")
        if info.orig_filename != info.filename or "\\" in name or {"", ".", ".."} & set(parts):
            raise ValueError(f"has a record named {info.orig_filename!r}, as torch names none")
        if name in records:
            raise ValueError(f"has two records named {name!r}, as torch writes none")
        stored = info.compress_type == ZIP_STORED and info.compress_size == info.file_size
        if not stored and not (name.startswith(CODE) and info.file_size <= _LONGEST_SOURCE):
            raise ValueError(
                f"has a compressed record {name!r} of {info.file_size} bytes; torch compresses no "
                "weights, so this could be there to fill the memory"
            )
        total += info.file_size if stored else 0
        records[name] = info
    if total > size:
        raise ValueError(
            f"has records of {total} bytes in a file of {size}: they overlap, to fill the memory"
        )
    return records
