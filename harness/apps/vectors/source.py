"""Pictures to embed, in an order that stays: below a folder, in tars, or in Parquet; and texts, a line each.

Nothing is decoded here. Of a million pictures the process holds names and places, and no more. What looks like a
picture and can't be one has its place, too, with the reason.

A revision tells pictures from others without reading them: by names, sizes and times of files, of what is in tars, and
of Parquet files. A file that was overwritten at equal size and given its old time goes unnoticed.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from tarfile import TarInfo
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.base.terminal import Progress
from harness.datasets.archives import members_of
from harness.datasets.images import KNOWN, find_images, is_named_like_image, name_fault, shorten
from harness.datasets.webdataset import LARGEST
from zoo.core.digests import digest
from zoo.core.files import require_file

TAR, PARQUET = ".tar", ".parquet"
WHOLE = -1  # size of a picture that is a file of its own
ROWS = 16  # of a Parquet file that are read at once
BUFFER = 1 << 20  # bytes of a column that are read ahead; else a whole group of rows would be
EXPECTED = "a folder of pictures, tars, or Parquet files"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class PictureFile(NamedTuple):
    """A picture that isn't read yet: its bytes, or where they are."""

    path: str  # what it is called
    content: bytes = b""
    file: str = ""
    offset: int = 0
    size: int = WHOLE
    wrong: str | None = None  # why it can't be read, if that is known already

    def read(self) -> bytes:
        """Return its bytes; raise ValueError or OSError if they can't be read, or are too many or too few."""
        if self.wrong:
            raise ValueError(self.wrong)
        size = self.size if self.file else len(self.content)
        if size == WHOLE:
            size = Path(self.file).stat().st_size
        if size > LARGEST:
            raise ValueError(f"it has {size:,} bytes; expected {LARGEST:,} at most")
        if not self.file:
            return self.content
        with Path(self.file).open("rb") as file:
            file.seek(self.offset)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"{self.file!r} ends within it")
        return content

    def digest(self) -> str:
        """Return 16 hex digits over its bytes, "" if they can't be read."""
        try:
            return digest(self.read())
        except (ValueError, OSError):
            return ""


@dataclass(frozen=True, kw_only=True)
class ListedSource:
    """Pictures that are files, or lie in tars."""

    words: tuple[str, ...]  # what was asked for, with absolute paths
    revision: str  # 12 hex digits
    table: pa.Table  # of each picture what `PictureFile` says of it, content aside
    column: ClassVar[None] = None

    def __len__(self) -> int:
        return len(self.table)

    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions, from 0."""
        for batch in self.table.slice(positions.start, len(positions)).to_batches(max_chunksize=ROWS):
            for row in batch.to_pylist():
                yield PictureFile(**row | {"file": os.fsdecode(row["file"])})


def _tabulate(pictures: Sequence[PictureFile]) -> pa.Table:
    types = {"path": pa.large_string(), "offset": pa.int64(), "size": pa.int64(), "wrong": pa.large_string()}
    columns = {name: pa.array([getattr(picture, name) for picture in pictures], kind) for name, kind in types.items()}
    files = pa.array([os.fsencode(picture.file) for picture in pictures], pa.large_binary())
    return pa.table(columns | {"file": files.dictionary_encode()})


def _list_folder(folder: Path) -> ListedSource:
    """List the pictures below a folder, in the order of their names; paths are relative to it."""
    if not (images := find_images(folder)):
        inside = [kind for kind in (TAR, PARQUET) if any(folder.glob(f"*{kind}"))]
        hint = "".join(f"; for its {kind[1:]} files give '{folder / f'*{kind}'}'" for kind in inside)
        raise ValueError(f"{str(folder)!r}: no images below this folder; {KNOWN}{hint}")
    pictures = []
    for image in images:
        name, wrong = image.path.relative_to(folder).as_posix(), image.wrong and escape_bytes(image.wrong)
        pictures.append(PictureFile(escape_bytes(name), file=str(image.path.absolute()), wrong=wrong))
    lines = "".join(f"{picture.path}\0{image[1:]}\n" for picture, image in zip(pictures, images, strict=True))
    return ListedSource(words=(str(folder.absolute()),), revision=_revision(lines), table=_tabulate(pictures))


def _list_tars(tars: Sequence[Path], progress: Progress) -> ListedSource:
    """List the pictures in tars, in the tars' order; a path is the tar's name and the member's."""
    words, names = _name_files(tars)
    lines, tables = "", []
    with progress.task("reading tars", len(tars)) as update:
        for number, (tar, name) in enumerate(zip(tars, names, strict=True), start=1):
            pictures, times = _list_members(tar.absolute(), name)
            entries = zip(pictures, times, strict=True)
            members = [(entry.path, entry.offset, entry.size, entry.wrong, time) for entry, time in entries]
            tables.append(_tabulate(pictures))
            lines += f"{name}\0{_size_and_time(tar)}\0{digest(members)}\n"
            update(number)
    source = ListedSource(words=words, revision=_revision(lines), table=pa.concat_tables(tables))
    if not len(source):
        raise ValueError(f"{shorten(words)}: no pictures inside; {KNOWN}")
    return source


def _list_members(tar: Path, name: str) -> tuple[list[PictureFile], list[float]]:
    """List a tar's members with the ending of a picture, and when they were changed.

    A hard link has the content of its file. Of a damaged tar the pictures before the damage count, and one more that
    says what is wrong.
    """
    file, size = str(tar), tar.stat().st_size
    pictures, times, known = list[PictureFile](), list[float](), dict[str, PictureFile]()
    with tar.open("rb") as opened:
        try:
            for member in members_of(opened, f"tar {file!r}"):
                path = f"{name}/{escape_bytes(member.name)}"
                fault = _member_fault(member, file, size)
                picture = PictureFile(path, b"", file, member.offset_data, member.size, fault)
                if member.isreg():
                    known[member.name] = picture
                elif member.islnk():
                    picture = known.get(member.linkname, picture)
                if not member.isdir() and is_named_like_image(member.name):
                    pictures.append(picture._replace(path=path, wrong=name_fault(member.name) or picture.wrong))
                    times.append(member.mtime)
        except ValueError as error:
            pictures.append(PictureFile(name, file=file, wrong=str(error)))
            times.append(0)
    return pictures, times


def _member_fault(member: TarInfo, tar: str, size: int) -> str | None:
    """Say why a member of a tar of ``size`` bytes can't be read by itself."""
    if member.islnk() or member.issym():
        return escape_bytes(f"it is a link to {member.linkname!r}, which isn't a file before it in the tar")
    if member.issparse():
        return "it is stored with holes; pack it again without --sparse"
    if not member.isreg():
        return "it is a pipe or a device; expected a file"
    return f"tar {tar!r} ends within it" if member.offset_data + member.size > size else None


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """The pictures of a column of Parquet files, bytes or structs with ``bytes``; a path is a file's name and a row."""

    words: tuple[str, ...]  # as of `ListedSource`
    revision: str
    files: tuple[str, ...]  # what these are called
    firsts: tuple[int, ...]  # position of each file's first row, and the number of all rows
    column: str

    @classmethod
    def open(cls, files: Sequence[Path], column: str | None) -> "ParquetSource":
        """Read the schemas and numbers of rows of the files."""
        words, names = _name_files(files)
        lines, counts = "", list[int]()
        for name, file in zip(names, files, strict=True):
            try:
                with pq.ParquetFile(file) as opened:
                    schema, rows = opened.schema_arrow, opened.metadata.num_rows
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{str(file)!r} is no whole Parquet file: {error}") from error
            column = _image_column(schema, column, str(file))
            counts.append(rows)
            lines += f"{name}\0{_size_and_time(file)}\0{rows}\n"
        if not any(counts):
            raise ValueError(f"{shorten(words)}: no rows inside")
        firsts = tuple(accumulate(counts, initial=0))
        return cls(words=words, revision=_revision(f"{lines}{column}"), files=names, firsts=firsts, column=str(column))

    def __len__(self) -> int:
        return self.firsts[-1]

    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions, from 0, read a few at a time."""
        for number, (first, end) in enumerate(pairwise(self.firsts)):
            rows = range(max(positions.start, first) - first, min(positions.stop, end) - first)
            if rows:
                yield from self._rows(number, rows)

    def _rows(self, number: int, rows: range) -> Iterator[PictureFile]:
        """Yield the pictures of some rows of a file; groups of rows beside them aren't read."""
        with pq.ParquetFile(self.words[number], pre_buffer=False, buffer_size=BUFFER) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            spans = list(pairwise(accumulate(sizes, initial=0)))
            groups = [at for at, (first, end) in enumerate(spans) if first < rows.stop and end > rows.start]
            row = spans[groups[0]][0]
            options = {"columns": [self.column], "row_groups": groups, "use_threads": False}
            try:
                for batch in file.iter_batches(ROWS, **options):
                    for value in batch.column(0):
                        if row in rows:
                            yield _picture(f"{self.files[number]}/{row}", value.as_py())
                        row += 1
                    if row >= rows.stop:
                        return
            except (pa.ArrowException, OSError) as error:
                # What follows of the file has its rows, each with what is wrong.
                for lost in range(max(row, rows.start), rows.stop):
                    wrong = f"{self.words[number]!r} can't be read from row {row} on: {error}"
                    yield PictureFile(f"{self.files[number]}/{lost}", wrong=wrong)


PictureSource = ListedSource | ParquetSource


class TextSource:
    """The lines of a text file in UTF-8; other attributes are as of `ListedSource`."""

    column: ClassVar[None] = None

    def __init__(self, file: Path) -> None:
        """Read the file; raise FileNotFoundError, or ValueError if it is empty or not text."""
        if not file.exists():
            raise FileNotFoundError(f"--texts {str(file)!r}: there is no such file")
        require_file(file)
        content = file.read_bytes()
        try:
            lines = content.decode("utf-8-sig").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"--texts {str(file)!r} is not text in UTF-8: {error}") from error
        if not content.strip():
            raise ValueError(f"--texts {str(file)!r} is empty; expected a text a line")
        self.words, self.revision = (str(file.absolute()),), digest(content, length=12)
        self._lines = pa.array([line.strip() for line in lines], pa.large_string())

    def __len__(self) -> int:
        return len(self._lines)

    def texts(self, positions: range) -> list[str]:
        """Return consecutive lines."""
        return self._lines[positions.start : positions.stop].to_pylist()


def open_source(words: Sequence[str], *, column: str | None = None, progress: Progress | None = None) -> PictureSource:
    """Open the source of ``patchrank embed``: a folder, tars, or Parquet files, whose ``column`` has the images.

    Names of files may hold ranges, ``x-{000..010}.tar``, and what ``glob`` takes.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: several kinds at once, files of another kind, pipes, nothing inside.
    """
    files = list(dict.fromkeys(chain.from_iterable(map(_find_files, words))))
    kinds = {file: "" if file.is_dir() else file.suffix.lower() for file in files}
    for file, kind in kinds.items():
        if kind:
            require_file(file)
    every = set(kinds.values())
    if column is not None and every != {PARQUET}:
        raise ValueError(f"--image-column {column!r} with {shorten(words)}: only Parquet files have columns")
    if len(files) == 1 and files[0].is_dir():
        return _list_folder(files[0])
    if every == {TAR}:
        return _list_tars(files, progress or Progress())
    if every == {PARQUET}:
        return ParquetSource.open(files, column)
    strange = next((f"{str(file)!r}" for file, kind in kinds.items() if kind not in (TAR, PARQUET)), "")
    wrong = strange or f"{shorten(words)}: tars and Parquet files at once"
    raise ValueError(f"{wrong}: expected {EXPECTED}, one kind at a time")


def escape_bytes(text: str) -> str:
    """Return a name that UTF-8 can hold, with escapes for bytes that are none."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _find_files(word: str) -> list[Path]:
    """Return the files that a word stands for, in order."""
    if Path(word).exists():
        return [Path(word)]
    if match := _RANGE.search(word):
        first, last, width = int(match[1]), int(match[2]), len(match[1])
        if last < first:
            raise ValueError(f"{word!r}: the range {match[0]} is empty; expected it to rise, as in {{000..010}}")
        numbers = (f"{word[: match.start()]}{n:0{width}d}{word[match.end() :]}" for n in range(first, last + 1))
        return [file for name in numbers for file in _find_files(name)]
    names = sorted(glob.glob(word, recursive=True))  # noqa: PTH207  (the pattern may be absolute)
    if not names:
        raise FileNotFoundError(f"{word!r}: there is no such file or folder; expected {EXPECTED}")
    return [Path(name) for name in names]


def _name_files(files: Sequence[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the absolute paths and the shown names of files: their names, or the paths where two names are equal."""
    places, names = tuple(str(file.absolute()) for file in files), tuple(file.name for file in files)
    return places, names if len(set(names)) == len(names) else places


def _revision(lines: str) -> str:
    return digest(lines.encode(errors="surrogateescape"), length=12)


def _image_column(schema: pa.Schema, column: str | None, file: str) -> str:
    """Return the name of the column of images of a Parquet file: ``column``, or the only column of bytes."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if column in fitting or (column is None and len(fitting) == 1):
        return column or fitting[0]
    columns = "columns of bytes or structs with bytes"
    have = f"{len(fitting) or 'no'} {columns}" if column is None else f"no {column!r} among its {columns}"
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    mend = f"; say which with --image-column {fitting[0]}" if fitting else ""
    raise ValueError(f"{file!r} has {have}: {listed}{mend}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _picture(path: str, value: Any) -> PictureFile:
    """Return the picture of a row."""
    named = ""
    if isinstance(value, dict):
        named = f"; only its name is there, {value['path']!r}" if value.get("path") else ""
        value = value["bytes"]
    return PictureFile(path, content=value) if value else PictureFile(path, wrong=f"the row has no bytes{named}")
