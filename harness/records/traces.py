"""Traces: what rows of `compare` did to single images, a sealed Parquet file each, with small copies of the images."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from harness.base.store import BrokenShardError, from_lists, seal, to_lists, unseal
from harness.datasets.images import decode_image
from harness.records.record import DENSE, Record
from zoo.core.files import digest, from_json, write_whole

TRACES = "traces"  # folder beside a run's records, and the kind of its files
THUMBNAILS = "thumbnails"  # likewise
UNRANKED = -1  # importance of the patches of an image without a ranking
GONE = STAYED = -1  # of ``token`` and of ``left``
RANKING = "golden ranking"  # method of the golden ranking itself, which is a row, too
SIDE = 224  # pixels of a thumbnail's longer side, at most
QUALITY = 85
_ROW_COLUMNS = ("dataset", "split", "model", "method", "keep", "shots", "seed")  # tell rows of several files apart
_OWN = ("model", "method", "keep", "method_config")  # no conditions
_SHARED = ("dataset", "dataset_revision", "split", "tag", "weights_sha256")  # thumbnails are one file for these


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a row's traces rest on: fields of its ``Record``, which has the same values.

    Of the golden ranking itself, ``method`` is ``RANKING``, ``keep`` 1 and ``method_config`` what it was made with.
    """

    version: str
    model: str
    method: str
    keep: float
    method_config: dict[str, Any]
    tag: str
    weights_sha256: str
    dataset: str
    dataset_revision: str
    split: str
    shots: int
    tuning: str | None
    prompt_tokens: int | None
    seed: int
    image_count: int
    device: str
    device_name: str
    dtype: str
    threads: int
    torch: str
    timm: str

    @classmethod
    def of(cls, record: Record) -> Self:
        """Take them from a record, with measurements or without."""
        return cls(**{entry.name: getattr(record, entry.name) for entry in fields(cls)})

    @property
    def conditions(self) -> dict[str, Any]:
        """What all rows that stand side by side have in common."""
        return {name: value for name, value in asdict(self).items() if name not in _OWN}

    @property
    def name(self) -> str:
        """Name of the row's file, another for other facts."""
        return self.ranking_name if self.method == RANKING else self.file_name(asdict(self), f"-{self.model}")

    @property
    def ranking_name(self) -> str:
        """Name of the golden ranking's file; there is one for the same conditions."""
        return self.file_name(self.conditions, f"-{RANKING}")

    def file_name(self, values: Mapping[str, Any], of: str = "") -> str:
        """Return a file's name that tells ``values`` from others; datasets of the user's have any names."""
        plain = re.sub(r"[^\w.,-]+", "-", f"{self.dataset}-{self.split}{of}")
        return f"{plain[:120]}-{digest(values, length=12)}.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class RowTraces:
    """What one row did to n images of N patches, on a grid of (rows, columns)."""

    facts: Facts
    grid: tuple[int, int]
    image_ids: tuple[str, ...]  # n, as the dataset gives them
    labels: tuple[str | None, ...]  # n names of the true class; None without labels
    predicted: tuple[str | None, ...]  # n names of the class that the row answers; None for the golden ranking, too
    # (n, N) the place of each patch in the row's ranking, **higher = keep**, equal where patches tie; ``UNRANKED``
    # throughout an image without a ranking.
    importance: NDArray[np.int16]
    # (n, N) block at which a patch's own token was dropped or merged; ``STAYED`` if it is there.
    left: NDArray[np.int16]
    token: NDArray[np.int16]  # (n, N) grid position of the token that a patch is in at the end; ``GONE`` if dropped

    def __len__(self) -> int:
        """Count the images."""
        return len(self.image_ids)

    @property
    def golden(self) -> bool:
        """Whether this is the golden ranking itself, which answers nothing."""
        return self.facts.method == RANKING

    @property
    def ranked(self) -> NDArray[np.bool_]:
        """(n,) which images have a ranking."""
        return np.asarray(self.importance[:, 0] != UNRANKED)

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Per image: was the answer right; None where there is none."""
        pairs = zip(self.predicted, self.labels, strict=True)
        return tuple(None if answer is None else answer == label for answer, label in pairs)

    def take(self, image_ids: Sequence[str]) -> Self:
        """Return the traces of these images alone, in this order."""
        place = {name: i for i, name in enumerate(self.image_ids)}
        at = [place[name] for name in image_ids]
        own: dict[str, Any] = {name: getattr(self, name)[at] for name in ("importance", "left", "token")}
        for name in ("image_ids", "labels", "predicted"):
            own[name] = tuple(getattr(self, name)[i] for i in at)
        return replace(self, **own)

    def encode(self) -> bytes:
        """Return the file."""
        count, width = self.importance.shape
        same = {name: getattr(self.facts, name) for name in _ROW_COLUMNS}
        same |= {"grid_rows": self.grid[0], "grid_columns": self.grid[1]}
        ranks = [list(row) if row[0] != UNRANKED else None for row in self.importance]
        content: dict[str, Any] = {
            **{name: [value] * count for name, value in same.items()},
            "image_id": pa.array(self.image_ids, pa.string()),
            "label": pa.array(self.labels, pa.string()),
            "predicted": pa.array(self.predicted, pa.string()),
            "correct": pa.array(self.correct, pa.bool_()),
            "importance": pa.array(ranks, pa.list_(pa.int16(), width)),
            "left": to_lists(self.left),
            "token": to_lists(self.token),
        }
        return seal(pa.table(content), TRACES, {"facts": asdict(self.facts), "grid": self.grid})

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a file back and check all of it; raises as `unseal`."""
        table, metadata = unseal(content, TRACES)
        left = from_lists(table, "left")
        none = [UNRANKED] * left.shape[1]
        ranks = [none if row is None else row for row in table["importance"].to_pylist()]
        return cls(
            facts=from_json(Facts, metadata["facts"], "facts"),
            grid=(metadata["grid"][0], metadata["grid"][1]),
            image_ids=tuple(table["image_id"].to_pylist()),
            labels=tuple(table["label"].to_pylist()),
            predicted=tuple(table["predicted"].to_pylist()),
            importance=np.array(ranks, dtype=np.int16),
            left=left,
            token=from_lists(table, "token"),
        )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put a file's path into errors, and of a broken one the way out."""
    try:
        yield
    except BrokenShardError as error:
        mend = "delete it, or make it again by the same `compare` command with --fresh"
        raise ValueError(f"{str(path)!r} is broken ({error}): {mend}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


@contextlib.contextmanager
def leaving_out(left_out: Callable[[str], object] | None) -> Iterator[None]:
    """Call ``left_out`` with why a file can't be read, and go on; None to raise."""
    try:
        yield
    except (ValueError, OSError) as error:
        if left_out is None:
            raise
        left_out(str(error))


def read_traces(
    run: Path | str, records: Sequence[Record] | None = None, left_out: Callable[[str], object] | None = None
) -> list[RowTraces]:
    """Read the traces of a run, the dense row of each dataset and tower first.

    ``records`` are the rows to read, with the golden rankings beside them; None for all. ``left_out``: `leaving_out`.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: a file is torn, somebody else's, or of a newer version.
        OSError: one can't be opened.
    """
    folder = Path(run) / TRACES
    if not folder.is_dir():
        raise FileNotFoundError(f"run {str(run)!r} has no folder {TRACES!r}; `compare --fresh --output {run}` makes it")
    paths = sorted(folder.glob("*.parquet"))
    if records is not None:
        names = {name for own in map(Facts.of, records) for name in (own.name, own.ranking_name)}
        paths = [path for path in paths if path.name in names]
    rows = []
    for path in paths:
        with leaving_out(left_out):
            rows.append(read_row(path))
    return sorted(rows, key=order)


def read_row(path: Path) -> RowTraces:
    """Read one file; ValueError if it is torn, somebody else's, of a newer version, or was renamed."""
    with _naming(path):
        traces = RowTraces.decode(path.read_bytes())
    if traces.facts.name != path.name:
        raise ValueError(f"{str(path)!r} holds traces of another row: its name was changed")
    return traces


def order(traces: RowTraces) -> tuple[Any, ...]:
    """Return what rows are sorted by: what they share, dense and golden first, keep falling."""
    facts = traces.facts
    place = (facts.dataset, facts.split, facts.tag, facts.weights_sha256)
    how = (facts.shots, facts.tuning or "", facts.prompt_tokens or 0, facts.seed)
    return (*place, *how, facts.method != DENSE, not traces.golden, facts.method, -facts.keep)


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnails:
    """Images as a tower sees them, so that its patch grid lies on them: JPEGs by image id."""

    jpeg: dict[str, bytes]

    @classmethod
    def read(cls, run: Path | str, facts: Facts) -> Self:
        """Read the small images of a row's dataset and tower, none if they were left out; ValueError as `read_row`."""
        path = thumbnails_path(Path(run), facts)
        if not path.is_file():
            return cls(jpeg={})
        with _naming(path):
            table, _ = unseal(path.read_bytes(), THUMBNAILS)
        return cls(jpeg=dict(zip(table["image_id"].to_pylist(), table["jpeg"].to_pylist(), strict=True)))

    def write(self, run: Path, facts: Facts) -> None:
        """Write the file whole or not at all."""
        path = thumbnails_path(run, facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image_id": list(self.jpeg), "jpeg": list(self.jpeg.values())})
        write_whole(path, seal(table, THUMBNAILS, {"dataset": facts.dataset, "split": facts.split}))

    def add(self, image_id: str, view: NDArray[np.floating]) -> None:
        """Add an image, (H, W, 3) in [0, 1]."""
        small = Image.fromarray(np.rint(view * 255).astype(np.uint8))
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
        self.jpeg[image_id] = buffer.getvalue()

    def view(self, image_id: str) -> NDArray[np.floating]:
        """Return an image's pixels, (H, W, 3) in [0, 1]."""
        image = decode_image(self.jpeg[image_id], repr(image_id), way=f"delete the folder {THUMBNAILS}")
        return np.asarray(image, dtype=np.float32) / 255


def thumbnails_path(run: Path, facts: Facts) -> Path:
    """Return where those of a row belong."""
    return run / THUMBNAILS / facts.file_name({name: getattr(facts, name) for name in _SHARED})
