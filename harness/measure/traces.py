"""What rows of `compare` did to single images: rankings, kept patches, answers; on disk.

A row's traces are one Parquet file that says what it is and proves that it is whole.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from harness.console.terminal import Progress
from harness.datasets.base import Split
from harness.datasets.few_shot import batches
from harness.golden.maps import unprocessed
from harness.golden.store import (
    MAGIC,
    BrokenShardError,
    Rankings,
    encode_table,
    flat,
    lists,
    reading,
)
from harness.measure.plan import TRACED
from harness.measure.rows import Outcome
from harness.records.conditions import DENSE
from harness.records.record import Record, parsed
from zoo.files import write_whole

TRACES = "traces"  # folder beside a run's records, and the kind of its files
VERSION = 1  # of their columns
UNRANKED = -1  # importance of the patches of an image without a ranking
GONE = STAYED = -1  # of ``token`` and of ``left``
RANKING = "golden ranking"  # method of the golden ranking itself, which is a row, too


def words_of(text: str) -> str:
    """Return a text as a part of a file's name; datasets of the user's have any names."""
    return re.sub(r"[^\w.,-]+", "-", text)[:120]


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return 12 hex digits that tell facts from others."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a row's traces rest on: fields of its ``Record``, which has the same values.

    Of the golden ranking itself, ``method`` is ``RANKING``, ``keep`` 1 and ``method_config`` what
    it was made with.
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
        own = ("model", "method", "keep", "method_config")
        return {name: value for name, value in asdict(self).items() if name not in own}

    @property
    def name(self) -> str:
        """Return the file's name, another for other facts."""
        if self.method == RANKING:
            return self.ranking_name
        words = f"{self.dataset}-{self.split}-{self.model}"
        return f"{words_of(words)}-{digest_of(asdict(self))}.parquet"

    @property
    def ranking_name(self) -> str:
        """Return the name of the golden ranking's file; there is one for the same conditions."""
        words = f"{self.dataset}-{self.split}-{RANKING}"
        return f"{words_of(words)}-{digest_of(self.conditions)}.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class RowTraces:
    """What one row did to n images of N patches.

    Attributes:
        facts: which row, and under which conditions.
        grid: (rows, columns) of the patch grid; N = rows * columns.
        image_ids: n ids, as the dataset gives them.
        labels: n names of the true class.
        predicted: n names of the class that the row answers; None for the golden ranking.
        importance: (n, N) int16, the place of each patch in the row's ranking, **higher = keep**,
            equal where patches tie; ``UNRANKED`` throughout an image without a ranking.
        left: (n, N) int16, block at which a patch's own token was dropped or merged into another;
            ``STAYED`` where it is there at the end.
        token: (n, N) int16, grid position of the token that a patch is in at the end: its own, or
            the one that it was merged into; ``GONE`` where it was dropped.
    """

    facts: Facts
    grid: tuple[int, int]
    image_ids: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str | None, ...]
    importance: NDArray[np.int16]
    left: NDArray[np.int16]
    token: NDArray[np.int16]

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
    def kept(self) -> NDArray[np.bool_]:
        """(n, N) which patches' own tokens are there at the end."""
        return np.asarray(self.left == STAYED)

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Per image: was the answer right; None for the golden ranking."""
        pairs = zip(self.predicted, self.labels, strict=True)
        return tuple(None if said is None else said == true for said, true in pairs)

    def take(self, image_ids: Sequence[str]) -> Self:
        """Return the traces of these images alone, in this order.

        Raises:
            KeyError: an image isn't among them.
        """
        place = {name: i for i, name in enumerate(self.image_ids)}
        at = [place[name] for name in image_ids]
        return replace(
            self,
            image_ids=tuple(image_ids),
            labels=tuple(self.labels[i] for i in at),
            predicted=tuple(self.predicted[i] for i in at),
            importance=self.importance[at],
            left=self.left[at],
            token=self.token[at],
        )

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
            "left": lists(self.left, width),
            "token": lists(self.token, width),
        }
        return seal(pa.table(content), TRACES, VERSION, facts=asdict(self.facts), grid=self.grid)

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a file back and check all of it.

        Raises:
            BrokenShardError: something in it isn't as ``encode`` wrote it.
            ValueError: a file of somebody else's, or of a newer version.
        """
        table, told = unseal(content, TRACES, VERSION)
        left = flat(table, "left")
        none = [UNRANKED] * left.shape[1]
        ranks = [none if row is None else row for row in table["importance"].to_pylist()]
        return cls(
            facts=parsed(Facts, told["facts"], "facts"),
            grid=(told["grid"][0], told["grid"][1]),
            image_ids=tuple(table["image_id"].to_pylist()),
            labels=tuple(table["label"].to_pylist()),
            predicted=tuple(table["predicted"].to_pylist()),
            importance=np.array(ranks, dtype=np.int16),
            left=left,
            token=flat(table, "token"),
        )


# Of the facts those that tell rows apart in a table of all files.
_ROW_COLUMNS = ("dataset", "split", "model", "method", "keep", "shots", "seed")


def seal(table: Any, kind: str, version: int, **told: Any) -> bytes:
    """Return a table as a Parquet file; the same table gives the same bytes with one pyarrow.

    Args:
        table: a pyarrow table.
        kind: what the file is, the key of its metadata.
        version: of its columns and metadata.
        told: JSON values that go into the metadata.
    """
    told = json.loads(json.dumps(told))  # as it will be read
    facts = told | {"version": version, "sha256": _digest(table, told)}
    metadata = {kind.encode(): json.dumps(facts, sort_keys=True).encode()}
    return encode_table(table.replace_schema_metadata(metadata))


def unseal(content: bytes, kind: str, version: int) -> tuple[Any, dict[str, Any]]:
    """Read a file back and check all of it.

    Returns:
        The table, and what was told.

    Raises:
        BrokenShardError: something in it isn't as ``seal`` wrote it.
        ValueError: a file of another kind, or of a version that this package doesn't know.
    """
    if content[:4] != MAGIC or content[-4:] != MAGIC:
        raise BrokenShardError("cut off, or no Parquet file")
    with reading():
        file = pq.ParquetFile(pa.BufferReader(content))
        metadata = file.metadata.metadata or {}
    if kind.encode() not in metadata:
        raise ValueError(f"a Parquet file, but not of {kind}")
    with reading():
        told = json.loads(metadata[kind.encode()])
        found, digest = told.pop("version"), told.pop("sha256")
    if found != version:
        raise ValueError(f"{kind} of version {found!r}; this package reads {version}, update it")
    with reading():
        table = file.read(use_threads=False)
        if _digest(table, told) != digest:
            raise BrokenShardError("content and checksum differ")
    return table, told


def _digest(table: Any, told: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in table.column_names:
        digest.update(repr((name, table[name].to_pylist())).encode())
    return digest.hexdigest()


def read_traces(
    run: Path | str,
    records: Sequence[Record] | None = None,
    left_out: Callable[[str], object] | None = None,
) -> list[RowTraces]:
    """Read the traces of a run, the dense row of each dataset and tower first.

    Args:
        run: the folder of its records.
        records: rows whose traces are wanted, with the golden rankings beside them; None for all.
        left_out: told of each file that can't be read, which is then left out; None to raise.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: a file is torn, somebody else's, or of a newer version.
        OSError: one can't be opened.
    """
    folder = Path(run) / TRACES
    if not folder.is_dir():
        raise FileNotFoundError(
            f"run {str(run)!r} has no folder {TRACES!r}; `compare --fresh --output {run}` makes it"
        )
    paths = sorted(folder.glob("*.parquet"))
    if records is not None:
        facts = [Facts.of(record) for record in records]
        wanted = {one.name for one in facts} | {one.ranking_name for one in facts}
        paths = [path for path in paths if path.name in wanted]
    found = []
    for path in paths:
        try:
            found.append(read_row(path))
        except (ValueError, OSError) as error:
            if left_out is None:
                raise
            left_out(str(error))
    return sorted(found, key=order)


def lacking(run: Path | str, records: Sequence[Record]) -> list[Record]:
    """Return the records of a run whose rows have no traces, whole or torn."""
    folder = Path(run) / TRACES
    return [record for record in records if not (folder / Facts.of(record).name).is_file()]


def read_row(path: Path) -> RowTraces:
    """Read one file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is torn, somebody else's, of a newer version, or was renamed.
    """
    try:
        traces = RowTraces.decode(path.read_bytes())
    except BrokenShardError as error:
        raise ValueError(
            f"{str(path)!r} is broken ({error}): delete it, or make it again by the same "
            "`compare` command with --fresh"
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    if traces.facts.name != path.name:
        raise ValueError(f"{str(path)!r} holds traces of another row: its name was changed")
    return traces


def order(traces: RowTraces) -> tuple[Any, ...]:
    """Return what rows are sorted by: what they share, dense and golden first, keep falling."""
    facts = traces.facts
    place = (facts.dataset, facts.split, facts.tag, facts.weights_sha256)
    how = (facts.shots, facts.tuning or "", facts.prompt_tokens or 0, facts.seed)
    return (*place, *how, facts.method != DENSE, not traces.golden, facts.method, -facts.keep)


THUMBNAILS = "thumbnails"  # folder beside a run's records, and the kind of its files
SIDE = 224  # pixels of the longer side, at most
QUALITY = 85
# Of a row's facts those that its small images go by: all rows of a tower share them.
_SHARED = ("dataset", "dataset_revision", "split", "tag", "weights_sha256")


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnails:
    """Images as a tower sees them, cropped and resized, so that its patch grid lies on them.

    Attributes:
        jpeg: image id -> the file's bytes.
    """

    jpeg: dict[str, bytes]

    def __contains__(self, image_id: str) -> bool:
        """Tell whether there is one of an image."""
        return image_id in self.jpeg

    def view(self, image_id: str) -> NDArray[np.floating]:
        """Return an image's pixels, (H, W, 3) in [0, 1].

        Raises:
            KeyError: there is none.
        """
        with Image.open(io.BytesIO(self.jpeg[image_id])) as image:
            return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def thumbnails_path(run: Path, facts: Facts) -> Path:
    """Return where those of a row belong."""
    digest = digest_of({name: getattr(facts, name) for name in _SHARED})
    return run / THUMBNAILS / f"{words_of(f'{facts.dataset}-{facts.split}')}-{digest}.parquet"


def read_thumbnails(run: Path | str, facts: Facts) -> Thumbnails:
    """Read the small images of a row's dataset and tower; none if they were left out.

    Args:
        run: the run's folder.
        facts: of one of the rows.

    Raises:
        ValueError: the file is torn, somebody else's, or of a newer version.
    """
    path = thumbnails_path(Path(run), facts)
    try:
        return Thumbnails(jpeg=_read_jpegs(path))
    except BrokenShardError as error:
        raise ValueError(
            f"{str(path)!r} is broken ({error}): delete it, or make it again by the same "
            "`compare` command with --fresh"
        ) from error


def keep_thumbnails(
    run: Path, facts: Facts, split: Split, preprocess: Any, on_batch: Callable[[int], None]
) -> None:
    """Store small copies of a split's images beside those that are there.

    Args:
        run: the run's folder.
        facts: of one of the rows.
        split: the images; only those without a copy are drawn.
        preprocess: from PIL image to (C, H, W).
        on_batch: called with the number of images done.

    Raises:
        ValueError: what is there can't be read.
    """
    path = thumbnails_path(run, facts)
    try:
        known = _read_jpegs(path)
    except BrokenShardError:
        known = {}
    lacking = [i for i, name in enumerate(split.image_ids) if name not in known]
    done = 0
    for examples, images in batches(split.subset(lacking), preprocess):
        views = unprocessed(preprocess, images).permute(0, 2, 3, 1).numpy()
        known |= {e.image_id: _jpeg(view) for e, view in zip(examples, views, strict=True)}
        done += len(examples)
        on_batch(done)
    if lacking:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image_id": list(known), "jpeg": list(known.values())})
        write_whole(
            path, seal(table, THUMBNAILS, VERSION, dataset=facts.dataset, split=facts.split)
        )


def _read_jpegs(path: Path) -> dict[str, bytes]:
    if not path.is_file():
        return {}
    try:
        table, _ = unseal(path.read_bytes(), THUMBNAILS, VERSION)
    except BrokenShardError:
        raise
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    names: list[str] = table["image_id"].to_pylist()
    return dict(zip(names, table["jpeg"].to_pylist(), strict=True))


def _jpeg(view: NDArray[np.floating]) -> bytes:
    small = Image.fromarray(np.rint(view * 255).astype(np.uint8))
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a row did to the images that are traced, n in all.

    Attributes:
        record: the row's, measured or not.
        outcome: on these images.
        predicted: n positions of classes.
    """

    record: Record
    outcome: Outcome
    predicted: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        record: Record,
        outcome: Outcome,
        predicted: NDArray[np.int64],
        chosen: NDArray[np.int64],
    ) -> Self:
        """Take what a row did to some of its images, those at the positions ``chosen``."""
        return cls(record=record, outcome=outcome.part(chosen), predicted=predicted[chosen])


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """Writes the traces of a run.

    Attributes:
        run: its folder.
        progress: where to say what is missing.
        images: how many are traced, of a dataset; 0 for none.
        thumbnails: store small copies of them too.
    """

    run: Path
    progress: Progress
    images: int = TRACED
    thumbnails: bool = True

    def __post_init__(self) -> None:
        """Validate."""
        if self.images < 0:
            raise ValueError(f"--traces {self.images}: expected a number of images, 0 for none")

    def write(
        self,
        rows: Sequence[Answered],
        split: Split,
        classes: Sequence[str],
        *,
        grid: tuple[int, int],
        golden: Rankings | None,
        preprocess: Any,
    ) -> None:
        """Store what rows did, each whole or not at all; what was stored of them is replaced.

        Args:
            rows: of one tower on one dataset, at least one.
            split: the images that are traced.
            classes: names of the dataset's classes.
            grid: rows and columns of the patch grid.
            golden: rankings that some of the images have.
            preprocess: the tower's, from PIL image to (C, H, W).
        """
        folder = self.run / TRACES
        folder.mkdir(parents=True, exist_ok=True)
        ids, labels = split.image_ids, tuple(classes[label] for label in split.labels)
        same: dict[str, Any] = {"grid": grid, "image_ids": ids, "labels": labels}
        found = [
            RowTraces(
                facts=Facts.of(row.record),
                predicted=tuple(classes[answer] for answer in row.predicted),
                **_patchwise(row.outcome, len(ids), grid[0] * grid[1]),
                **same,
            )
            for row in rows
        ]
        if golden is not None:
            found.append(_golden(found[0], golden))
        for traces in found:
            write_whole(folder / traces.facts.name, traces.encode())
        if self.thumbnails:
            label = f"thumbnails of {rows[0].record.dataset}"
            with self.progress.task(label, len(split)) as update:
                keep_thumbnails(self.run, found[0].facts, split, preprocess, update)

    def miss(self, records: Sequence[Record], images: int) -> None:
        """Say if rows whose records are used again have no traces, or of too few images.

        Args:
            records: the rows'.
            images: how many would be traced.
        """
        without = [record for record in records if self._traced(record) < images]
        if without:
            self.progress.say(
                f"{without[0].dataset}: {len(without)} of {len(records)} rows have no traces of "
                f"{images} images, as their records are used again ({without[0].model} is the "
                "first); the same command with --fresh makes them"
            )

    def _traced(self, record: Record) -> int:
        try:
            return len(read_row(self.run / TRACES / Facts.of(record).name))
        except (FileNotFoundError, ValueError):
            return 0


def _patchwise(outcome: Outcome, count: int, cells: int) -> dict[str, Any]:
    """Return what a row did to each patch; nothing where it reduces nothing."""
    if outcome.scores is None or outcome.left is None or outcome.token is None:
        return {
            "importance": np.full((count, cells), UNRANKED, dtype=np.int16),
            "left": np.full((count, cells), STAYED, dtype=np.int16),
            "token": np.tile(np.arange(cells, dtype=np.int16), (count, 1)),
        }
    return {
        "importance": _places(outcome.scores),
        "left": outcome.left.astype(np.int16),
        "token": outcome.token.astype(np.int16),
    }


def _places(scores: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return scores as whole numbers in the same order, equal where they tie."""
    known = ~np.isnan(scores).any(axis=1)
    places = np.full(scores.shape, UNRANKED, dtype=np.int16)
    places[known] = rankdata(scores[known], method="dense", axis=1) - 1
    return places


def _golden(like: RowTraces, rankings: Rankings) -> RowTraces:
    """Return the golden ranking as a row beside the dense one, ``like``."""
    provenance = asdict(rankings.provenance)
    del provenance["versions"]
    told: dict[str, Any] = {"method": RANKING, "keep": 1.0, "method_config": provenance}
    return replace(
        like,
        facts=replace(like.facts, **told),
        predicted=(None,) * len(like),
        importance=_places(rankings.of(like.image_ids)),
    )
