"""Pictures to embed, in an order that stays: below a folder, in tars, in Parquet, or of `datasets`.

Nothing is decoded here. Of a million pictures the process holds names and places, and no more.
"""

import abc
import glob
import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import accumulate, chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.base.terminal import Progress
from harness.datasets.archives import members_of
from harness.datasets.base import cached_json, keep_json
from harness.datasets.huggingface import Place, unlabelled
from harness.datasets.images import EXTENSIONS, folder_images
from harness.datasets.webdataset import LARGEST
from zoo.core.files import digest
from zoo.core.messages import expected

HFDS = "hfds:"
TAR, PARQUET = ".tar", ".parquet"
WHOLE = -1  # size of a picture that is a file of its own
KEPT = 1_000  # pictures of a tar from which on its list is worth keeping
MANY = 16  # tars from which on processes are worth their start
ROWS = 16  # of a Parquet file that are read at once
BUFFER = 1 << 20  # bytes of a column that are read ahead; else a whole group of rows would be
EXPECTED = "a folder of pictures, tars, Parquet files, or hfds:PATH"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class PictureFile(NamedTuple):
    """A picture that isn't read yet.

    path: what it is called. content: its bytes, or file, offset and size: where they are. wrong: why
    it can't be read, if that is known already.
    """

    path: str
    content: bytes = b""
    file: str = ""
    offset: int = 0
    size: int = WHOLE
    wrong: str = ""

    def read(self) -> bytes:
        """Return the bytes of its file.

        Raises:
            ValueError: they are too many or too few, or known to be unreadable.
            OSError: the file can't be read.
        """
        if self.wrong:
            raise ValueError(self.wrong)
        if not self.file:
            return self.content
        with Path(self.file).open("rb") as file:
            size = os.fstat(file.fileno()).st_size if self.size == WHOLE else self.size
            if size > LARGEST:
                raise ValueError(f"it has {size:,} bytes; expected {LARGEST:,} at most")
            file.seek(self.offset)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"{self.file!r} ends within it")
        return content


class PictureSource(abc.ABC):
    """Pictures with positions from 0.

    words: what was asked for, with absolute paths. revision: 12 hex digits over what tells these
    pictures from others without reading them.
    """

    words: tuple[str, ...]
    revision: str

    @abc.abstractmethod
    def __len__(self) -> int:
        """Count the pictures."""

    @abc.abstractmethod
    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions."""


class FolderSource(PictureSource):
    """The pictures below a folder, in the order of their names; paths are relative to it."""

    def __init__(self, folder: Path) -> None:
        """List them; raise what ``folder_images`` does."""
        try:
            images = folder_images(folder, flag="")
        except ValueError as error:
            inside = [kind for kind in (TAR, PARQUET) if any(folder.glob(f"*{kind}"))]
            hint = "".join(f"; for its {kind[1:]} files give '{folder / f'*{kind}'}'" for kind in inside)
            raise ValueError(f"{error}{hint}") from error
        self.words, self.revision = (str(folder.absolute()),), images.revision
        self._paths = pa.array([os.fsencode(path) for path in images.paths])  # names needn't be UTF-8

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._paths)

    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions."""
        for position in positions:
            path = os.fsdecode(self._paths[position].as_py())
            yield PictureFile(printable(path), file=os.path.join(self.words[0], path))  # noqa: PTH118  (as it is)


class _Index(NamedTuple):
    """The pictures of a tar: names, offsets and sizes, and what is wrong, by position."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    wrong: dict[str, str]  # JSON has no other keys


def _index(tar: Path) -> _Index:
    """List the pictures of a tar; a large list is kept in the user's cache."""
    facts = tar.stat()
    file, kept = cached_json("tars", "pictures", str(tar.resolve()), facts.st_size, facts.st_mtime_ns)
    with suppress(TypeError):  # nothing is kept, or something else
        return _Index(**kept)
    index = _Index([], [], [], {})
    with tar.open("rb") as opened:
        try:
            for member in members_of(opened, f"tar {str(tar)!r}"):
                if not member.isreg() or PurePosixPath(member.name).suffix.lower() not in EXTENSIONS:
                    continue
                if member.issparse() or member.offset_data + member.size > facts.st_size:
                    index.wrong[str(len(index.names))] = f"tar {str(tar)!r} ends within it"
                index.names.append(printable(member.name))
                index.offsets.append(member.offset_data)
                index.sizes.append(member.size)
        except ValueError as error:
            index.wrong[str(len(index.names))] = str(error)
            index.names.append("")
            index.offsets.append(0)
            index.sizes.append(0)
    if len(index.names) >= KEPT:
        keep_json(file, index._asdict())
    return index


def _indexed(tars: Sequence[Path]) -> Iterator[_Index]:
    """List the pictures of tars, many of them on all cores."""
    if len(tars) < MANY:
        yield from map(_index, tars)
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_index, tars)


class TarSource(PictureSource):
    """The pictures in tars, in the tars' order; a path is the tar's name and the member's.

    All members with the ending of a picture count, whatever their key. Of a damaged tar the
    pictures before the damage count, and one more that says what is wrong.
    """

    def __init__(self, tars: Sequence[Path], progress: Progress) -> None:
        """Read the headers of all members."""
        self.words = tuple(str(tar.absolute()) for tar in tars)
        self._names = _names_of(tars)
        self._wrong: dict[int, str] = {}
        facts, total = [], 0
        members: list[Any] = []
        places: list[NDArray[np.int64]] = []
        with progress.task("reading tars", len(tars)) as update:
            for number, index in enumerate(_indexed(tars)):
                self._wrong |= {total + int(place): why for place, why in index.wrong.items()}
                total += len(index.names)
                members.append(pa.array(index.names, pa.string()))
                place = np.array([index.offsets, index.sizes], dtype=np.int64).T
                places.append(np.insert(place, 0, number, axis=1))
                facts.append(f"{self._names[number]}\0{tars[number].stat().st_size}\0{len(index.names)}\n")
                update(number + 1)
        if not total:
            raise ValueError(
                f"{words_of(self.words)}: no pictures inside; known endings are {', '.join(sorted(EXTENSIONS))}"
            )
        self.revision = _revision(facts)
        self._members, self._places = pa.chunked_array(members, pa.string()).combine_chunks(), np.concatenate(places)

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._places)

    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions."""
        for position in positions:
            number, offset, size = self._places[position].tolist()
            path = f"{self._names[number]}/{self._members[position]}".rstrip("/")
            where = {"file": self.words[number], "offset": offset, "size": size}
            yield PictureFile(path, **where, wrong=self._wrong.get(position, ""))


class _Stream(NamedTuple):
    """Pictures of a Parquet source from a position on, opened already."""

    position: int
    pictures: Iterator[PictureFile]


class ParquetSource(PictureSource):
    """The pictures of a column of Parquet files: bytes, or a struct with a field ``bytes``.

    A path is the file's name and the row. Rows are read one after another, a few at a time.
    """

    def __init__(self, files: Sequence[Path], column: str | None) -> None:
        """Read what the files say of themselves."""
        self.words = tuple(str(file.absolute()) for file in files)
        self._names = _names_of(files)
        facts, self._counts, self._column = list[str](), list[int](), column
        for name, file in zip(self._names, files, strict=True):
            try:
                with pq.ParquetFile(file) as opened:
                    schema, rows = opened.schema_arrow, opened.metadata.num_rows
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{str(file)!r} is no whole Parquet file: {error}") from error
            self._column = _image_column(schema, self._column, str(file))
            self._counts.append(rows)
            facts.append(f"{name}\0{file.stat().st_size}\0{rows}\n")
        self._firsts = [0, *accumulate(self._counts)]
        if not len(self):
            raise ValueError(f"{words_of(self.words)}: no rows inside")
        self.revision = _revision([*facts, str(self._column)])
        self._stream: _Stream | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return self._firsts[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the files that are open."""
        return {**vars(self), "_stream": None}

    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions; those that follow the last ones come at once."""
        stream = self._stream
        if stream is None or stream.position != positions.start:
            stream = _Stream(positions.start, self._from(positions.start))
        self._stream = None
        yield from islice(stream.pictures, len(positions))
        self._stream = _Stream(positions.stop, stream.pictures)

    def _from(self, position: int) -> Iterator[PictureFile]:
        """Yield all pictures from a position on."""
        for number, (first, count) in enumerate(zip(self._firsts, self._counts, strict=False)):
            if position < first + count:
                yield from self._rows(number, max(0, position - first))

    def _rows(self, number: int, start: int) -> Iterator[PictureFile]:
        """Yield the pictures of a file from a row on; groups of rows before it aren't read."""
        with pq.ParquetFile(self.words[number], pre_buffer=False, buffer_size=BUFFER) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(sizes))
            groups = [group for group, end in enumerate(ends) if end > start]
            row = ends[groups[0]] - sizes[groups[0]]
            options = {"columns": [self._column], "row_groups": groups, "use_threads": False}
            try:
                for batch in file.iter_batches(ROWS, **options):
                    for value in batch.column(0):
                        if row >= start:
                            yield _picture(f"{self._names[number]}/{row}", value.as_py())
                        row += 1
            except (pa.ArrowException, OSError) as error:
                # What follows of the file has its rows, each with what is wrong.
                for lost in range(max(row, start), ends[-1]):
                    wrong = f"{self.words[number]!r} can't be read from row {row} on: {error}"
                    yield PictureFile(f"{self._names[number]}/{lost}", wrong=wrong)


class HfSource(PictureSource):
    """The pictures of what the Hugging Face `datasets` library opens; a path is the split and the row."""

    def __init__(self, word: str, *, download: bool = False) -> None:
        """Open it; raise what ``unlabelled`` does."""
        place = Place.parse(word)
        sharp = ",".join(f"{key}={value}" for key, value in place.choice.items())
        self.words = (f"{HFDS}{place.folder or place.name}" + (f"#{sharp}" if sharp else ""),)
        self._splits = unlabelled(place, download=download)
        whole = hashlib.sha256()
        for name, rows in self._splits.items():
            whole.update(f"{name}\0".encode())
            rows.add_to(whole)
        self.revision = whole.hexdigest()[:12]
        counts = [len(rows.labels) for rows in self._splits.values()]
        self._firsts = [0, *accumulate(counts)]
        if not len(self):
            raise ValueError(f"{place.what}: no rows inside")

    def __len__(self) -> int:
        """Count the rows."""
        return self._firsts[-1]

    def __reduce__(self) -> Any:
        """Open it anew where it arrives: its tables hold all images."""
        return _reopened, (self.words, self.revision)

    def pictures(self, positions: range) -> Iterator[PictureFile]:
        """Yield the pictures at consecutive positions."""
        names = list(self._splits)
        for position in positions:
            number = int(np.searchsorted(self._firsts, position, side="right")) - 1
            row = position - self._firsts[number]
            path = f"{names[number]}/{row}".removeprefix("/")
            try:
                yield PictureFile(path, content=self._splits[names[number]].read(row))
            except (ValueError, OSError, pa.ArrowException) as error:
                yield PictureFile(path, wrong=str(error))


def _reopened(words: Sequence[str], revision: str) -> PictureSource:
    """Open a source in another process.

    Raises:
        ValueError: it isn't the same there.
    """
    source = open_source(words)
    if source.revision != revision:
        raise ValueError(f"{words_of(words)}: a worker has other pictures; every machine needs the same files")
    return source


class TextSource:
    """The lines of a text file in UTF-8; ``words`` and ``revision`` are as of ``PictureSource``."""

    def __init__(self, file: Path) -> None:
        """Read it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is empty, or not text.
        """
        if not file.is_file():
            raise FileNotFoundError(f"--texts {str(file)!r}: there is no such file")
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
        """Count the lines."""
        return len(self._lines)

    def texts(self, positions: range) -> list[str]:
        """Return consecutive lines."""
        lines: list[str] = self._lines[positions.start : positions.stop].to_pylist()
        return lines


def open_source(
    words: Sequence[str], *, column: str | None = None, download: bool = False, progress: Progress | None = None
) -> PictureSource:
    """Open what ``patchrank embed`` is given: a folder, tars, Parquet files, or ``hfds:PATH``.

    Names of files may hold ranges, ``x-{000..010}.tar``, and what ``glob`` takes. ``column`` is that
    of the images in Parquet.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: several kinds at once, files of another kind, nothing inside.
    """
    if len(words) == 1 and words[0].startswith(HFDS):
        return HfSource(words[0].removeprefix(HFDS), download=download)
    if len(words) == 1 and Path(words[0]).is_dir():
        return FolderSource(Path(words[0]))
    files = list(dict.fromkeys(chain.from_iterable(map(_files, words))))
    kinds = {file.suffix.lower() for file in files}
    if kinds == {TAR}:
        return TarSource(files, progress or Progress())
    if kinds == {PARQUET}:
        return ParquetSource(files, column)
    odd = next((str(file) for file in files if file.is_dir() or file.suffix.lower() not in (TAR, PARQUET)), None)
    what = f"{words_of(words)}: tars and Parquet files at once" if odd is None else repr(odd)
    raise ValueError(f"{what}: expected {EXPECTED}, one kind at a time")


def words_of(words: Sequence[str]) -> str:
    """Return what was asked for, quoted, in one line."""
    return ", ".join(map(repr, words[:3])) + (", ..." if len(words) > 3 else "")


def printable(text: str) -> str:
    """Return a name that UTF-8 can hold; bytes of it that are none become escapes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _files(word: str) -> list[Path]:
    """Return the files that a word stands for, in order."""
    if word.startswith(HFDS):
        raise ValueError(f"{word!r} beside others: give it alone; expected {EXPECTED}")
    if Path(word).exists():
        return [Path(word)]
    match = _RANGE.search(word)
    if match is None:
        names = sorted(glob.glob(word, recursive=True))  # noqa: PTH207  (the pattern may be absolute)
        if not names:
            raise FileNotFoundError(f"{word!r}: there is no such file or folder; expected {EXPECTED}")
        return [Path(name) for name in names]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ValueError(f"{word!r}: the range {match[0]} is empty; expected it to rise, as in {{000..010}}")
    width = len(match[1])
    numbers = (f"{word[: match.start()]}{n:0{width}d}{word[match.end() :]}" for n in range(first, last + 1))
    return [file for name in numbers for file in _files(name)]


def _names_of(files: Sequence[Path]) -> list[str]:
    """Return what files are called in paths: their names, or where two are the same their places."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file.absolute()) for file in files]


def _revision(facts: Sequence[str]) -> str:
    return digest("".join(facts).encode(errors="surrogateescape"), length=12)


def _image_column(schema: Any, column: str | None, file: str) -> str:
    """Return the column of images of a Parquet file: the one asked for, or the only one that can be."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if column is not None:
        if column not in fitting:
            raise ValueError(
                f"{file!r}: image column {column!r}: {expected(column, fitting or schema.names)}, "
                "of bytes or a struct with bytes"
            )
        return column
    if len(fitting) != 1:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        mend = f"say which with --image-column {fitting[0]}" if fitting else "expected one"
        raise ValueError(
            f"{file!r} has {len(fitting) or 'no'} columns of bytes or structs with bytes: {listed}; {mend}"
        )
    return str(fitting[0])


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _picture(path: str, value: Any) -> PictureFile:
    """Return the picture of a row."""
    named = ""
    if isinstance(value, dict):
        with suppress(KeyError):
            named = f"; only its name is there, {value['path']!r}" if value["path"] else ""
        value = value["bytes"]
    if not value:
        return PictureFile(path, wrong=f"the row has no bytes{named}")
    if len(value) > LARGEST:
        return PictureFile(path, wrong=f"it has {len(value):,} bytes; expected {LARGEST:,} at most")
    return PictureFile(path, content=value)
