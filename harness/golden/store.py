"""Golden rankings on disk: one Parquet file, its provenance in the file's metadata."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.datasets.base import DATA_DIR, Split, SplitName
from zoo.weights import cache_folder

_KEY = b"golden"
_COMMAND = (
    "python -m harness rank --model {model} --dataset {dataset} --split {split} --score {score} "
    "--block {block} --window {window} --stride {stride}"
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a set of rankings was made from, and how.

    Attributes:
        model: dense timm name of the tower, with its weight tag.
        weights: fingerprint of the tower's weights, see ``zoo.weights.fingerprint``.
        dataset: name of the dataset.
        revision: revision of the dataset.
        split: train, val or test.
        score: preservation, label or confidence.
        block: reduction point, 0-based.
        window: side of the window in patches.
        stride: step of the window in patches.
        dtype: of the computation.
    """

    model: str
    weights: str
    dataset: str
    revision: str
    split: SplitName
    score: str
    block: int
    window: int
    stride: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """Golden importance of the patches of some images.

    Attributes:
        image_ids: n ids, as the dataset gives them.
        importance: (n, N) float16, higher = keep.
        provenance: where it comes from.
    """

    image_ids: tuple[str, ...]
    importance: NDArray[np.float16]
    provenance: Provenance

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        width = self.importance.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(self.importance.reshape(-1)), width)
        table = pa.table({"image_id": list(self.image_ids), "importance": column})
        facts = json.dumps(asdict(self.provenance), sort_keys=True).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        pq.write_table(
            table.replace_schema_metadata({_KEY: facts}),
            partial,
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            use_byte_stream_split=["importance.list.element"],
        )
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of rankings.
        """
        if not path.is_file():
            raise FileNotFoundError(f"rankings {str(path)!r} do not exist")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{str(path)!r} is not a Parquet file: {error}") from error
        facts = (table.schema.metadata or {}).get(_KEY)
        if facts is None:
            raise ValueError(f"{str(path)!r} holds no golden rankings: no provenance inside")
        ids = table["image_id"].to_pylist()
        flat = table["importance"].combine_chunks().flatten().to_numpy()
        return cls(
            image_ids=tuple(ids),
            importance=flat.reshape(len(ids), -1),
            provenance=Provenance(**json.loads(facts)),
        )

    def require(self, **expected: Any) -> None:
        """Refuse rankings made from something else.

        Args:
            expected: fields of ``Provenance`` with the values that are wanted.

        Raises:
            ValueError: a value differs; names both and the command that makes fitting rankings.
        """
        for field, value in expected.items():
            found = getattr(self.provenance, field)
            if found != value:
                facts = asdict(self.provenance) | expected
                raise ValueError(
                    f"these rankings were made with {field}={found!r}, wanted {value!r}; make them "
                    f"with: {_COMMAND.format(**facts)}"
                )

    def of(self, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the importance of these images, (len(image_ids), N) float32, NaN where unknown."""
        row = {image_id: i for i, image_id in enumerate(self.image_ids)}
        result = np.full((len(image_ids), self.importance.shape[1]), np.nan, dtype=np.float32)
        for i, image_id in enumerate(image_ids):
            if image_id in row:
                result[i] = self.importance[row[image_id]]
        return result


def ranked(split: Split, rankings: Rankings) -> NDArray[np.int64]:
    """Return the positions in ``split`` of the images that have a ranking, (k,) ascending."""
    known = set(rankings.image_ids)
    return np.array([i for i in range(len(split)) if split[i].image_id in known], dtype=np.int64)


def find_rankings(model: str, dataset: str, split: str) -> Rankings | None:
    """Find the golden rankings of a split: the shipped ones or, of more images, the user's own.

    Args:
        model: dense timm name with its weight tag.
        dataset: name of the dataset.
        split: train, val or test.

    Returns:
        The rankings, None if there are none.
    """
    name = f"golden-{model}-{dataset}-{split}.parquet"
    paths = [folder / name for folder in (DATA_DIR, cache_folder() / "rankings")]
    found = [Rankings.read(path) for path in paths if path.is_file()]
    # Of equally many the first, so the shipped ones.
    return max(found, key=lambda rankings: len(rankings.image_ids), default=None)
