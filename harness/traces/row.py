"""The traces of one row on some images, as one Parquet file that proves itself."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.golden.shards import flat, lists
from harness.records import Record, parsed
from harness.traces.sealed import seal, unseal

KIND, VERSION = "traces", 1
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
        same = {name: getattr(self.facts, name) for name in _COLUMNS}
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
        return seal(pa.table(content), KIND, VERSION, facts=asdict(self.facts), grid=self.grid)

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a file back and check all of it.

        Raises:
            BrokenShardError: something in it isn't as ``encode`` wrote it.
            ValueError: a file of somebody else's, or of a newer version.
        """
        table, told = unseal(content, KIND, VERSION)
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
_COLUMNS = ("dataset", "split", "model", "method", "keep", "shots", "seed")
