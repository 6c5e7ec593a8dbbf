"""Golden rankings on disk: a folder of shards as ``rank`` makes it, or one small file."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.datasets.base import DATA_DIR, Split
from harness.golden.folder import read_shard, shard_paths
from harness.golden.provenance import Provenance, rank_command
from harness.golden.shards import (
    PROVENANCE_KEY,
    SHARD_KEY,
    UNKNOWN,
    BrokenShardError,
    Shard,
    encode_table,
    flat,
)
from zoo.files import write_whole
from zoo.golden import GoldenConfig
from zoo.weights import cache_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class Rankings:
    """Golden rankings of some images.

    Attributes:
        image_ids: n ids, as the dataset gives them.
        importance: (n, N) float16, higher = keep, distance to the image's least.
        provenance: where it comes from.
        labels: (n,) int32, -1 where unknown.
        least: (n,) float32, importance of the image's least important patch: the golden score is
            minus (importance + least). NaN where unknown.
        ranking: (n, N) int16, patch positions, most important first. Of the exact importance in a
            store; the small file leaves it out, and it is made from the float16 values.
    """

    image_ids: tuple[str, ...]
    importance: NDArray[np.float16]
    provenance: Provenance
    labels: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    least: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    ranking: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))

    def __post_init__(self) -> None:
        """Fill in what the file left out."""
        count = len(self.image_ids)
        if not self.labels.size:
            object.__setattr__(self, "labels", np.full(count, UNKNOWN, np.int32))
        if not self.least.size:
            object.__setattr__(self, "least", np.full(count, np.nan, np.float32))
        if not self.ranking.size:
            ranking = np.argsort(-self.importance.astype(np.float32), axis=1, kind="stable")
            object.__setattr__(self, "ranking", ranking.astype(np.int16))

    def __len__(self) -> int:
        """Count the images."""
        return len(self.image_ids)

    def write(self, path: Path) -> None:
        """Write ids and importance as one small file, the form in which rankings ship."""
        values = pa.array(self.importance.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, self.importance.shape[1])
        table = pa.table({"image_id": list(self.image_ids), "importance": column})
        facts = {PROVENANCE_KEY: self.provenance.json().encode()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, encode_table(table.replace_schema_metadata(facts)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a store, finished or not, or a small file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: no rankings, a broken shard, or shards that were made differently.
        """
        if path.is_dir():
            return cls._joined(path)
        if not path.is_file():
            raise FileNotFoundError(f"rankings {str(path)!r} do not exist")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{str(path)!r} is not a Parquet file: {error}") from error
        facts = table.schema.metadata or {}
        if PROVENANCE_KEY not in facts:
            raise ValueError(f"{str(path)!r} holds no golden rankings: no provenance inside")
        if SHARD_KEY in facts:
            return cls._of([Shard.decode(path.read_bytes())])
        return cls(
            image_ids=tuple(table["image_id"].to_pylist()),
            importance=flat(table, "importance"),
            provenance=Provenance.parse(facts[PROVENANCE_KEY]),
        )

    @classmethod
    def _joined(cls, folder: Path) -> Self:
        shards: list[Shard] = []
        for index, path in shard_paths(folder).items():
            try:
                shards.append(read_shard(path, index))
            except BrokenShardError as error:
                raise ValueError(
                    f"{str(path)!r} is broken: {error}; the `rank` command that made the store "
                    "finds it and makes it again"
                ) from error
            other = shards[-1].provenance.differences(shards[0].provenance)
            if other:
                raise ValueError(
                    f"shards of {str(folder)!r} were made differently: {path.name} has "
                    f"{'; '.join(other)}; make them again in another folder with: "
                    f"{shards[0].provenance.command()}"
                )
        if not shards:
            raise ValueError(f"{str(folder)!r} holds no golden rankings: no part-00000.parquet")
        return cls._of(shards)

    @classmethod
    def _of(cls, shards: list[Shard]) -> Self:
        names = ("importance", "labels", "least", "ranking")
        return cls(
            image_ids=tuple(name for shard in shards for name in shard.image_ids),
            provenance=shards[0].provenance,
            **{name: np.concatenate([getattr(s, name) for s in shards]) for name in names},
        )

    def require(self, **expected: Any) -> None:
        """Refuse rankings made from something else.

        Args:
            expected: fields of ``Provenance`` with the values that are wanted.

        Raises:
            ValueError: a value differs; names both and the command that makes fitting rankings.
        """
        for name, value in expected.items():
            found = getattr(self.provenance, name)
            if found != value:
                facts = asdict(self.provenance) | expected
                raise ValueError(
                    f"these rankings were made with {name}={found!r}, wanted {value!r}; make them "
                    f"with: {rank_command(**facts)}"
                )

    def of(self, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the importance of these images, (len(image_ids), N) float32, NaN where unknown."""
        row = {image_id: i for i, image_id in enumerate(self.image_ids)}
        result = np.full((len(image_ids), self.importance.shape[1]), np.nan, dtype=np.float32)
        for i, image_id in enumerate(image_ids):
            if image_id in row:
                result[i] = self.importance[row[image_id]]
        return result

    def take(self, image_ids: Sequence[str]) -> "Rankings":
        """Return the rankings of these images alone, in this order.

        Raises:
            ValueError: an image has none.
        """
        row = {image_id: i for i, image_id in enumerate(self.image_ids)}
        if lacking := [image_id for image_id in image_ids if image_id not in row]:
            raise ValueError(f"{len(lacking)} images have no ranking, such as {lacking[0]!r}")
        rows = [row[image_id] for image_id in image_ids]
        names = ("importance", "labels", "least", "ranking")
        told = {name: getattr(self, name)[rows] for name in names}
        return replace(self, image_ids=tuple(image_ids), **told)


def ranked(split: Split, rankings: Rankings) -> NDArray[np.int64]:
    """Return the positions in ``split`` of the images that have a ranking, (k,) ascending."""
    known = set(rankings.image_ids)
    return np.array([i for i, name in enumerate(split.image_ids) if name in known], dtype=np.int64)


def store_name(model: str, dataset: str, split: str, score: str = "preservation") -> str:
    """Return what the rankings of a split are called, without folder or ending."""
    role = "golden" if score == "preservation" else f"golden_{score}"
    # Names of towers and folders may hold slashes, colons or spaces.
    return re.sub(r"[^\w.,-]+", "-", f"{role}-{model}-{dataset}-{split}")


def shipped_rankings(model: str, dataset: str, split: str, block: int) -> Path | None:
    """Return the file that ships with the rankings by preservation, None if there is none.

    Args:
        model: dense timm name with its weight tag.
        dataset: name of the dataset.
        split: train, val or test.
        block: reduction point that they are for, 0-based.
    """
    path = DATA_DIR / f"{store_name(model, dataset, split)}.parquet"
    if path.is_file() and Rankings.read(path).provenance.block == block:
        return path
    return None


def own_store(model: str, dataset: str, split: str, config: GoldenConfig) -> Path:
    """Return where in the user's cache ``rank`` keeps rankings, one store per settings."""
    name = store_name(model, dataset, split, config.score)
    way = f"b{config.block}w{config.window}s{config.stride}"
    way += f"g{config.greedy}" if config.greedy is not None else ""
    way += "-" + config.approximate.replace(":", "") if config.approximate is not None else ""
    return cache_folder() / "rankings" / f"{name}-{way}"


def find_rankings(
    model: str, dataset: str, split: str, block: int = GoldenConfig.block
) -> Rankings | None:
    """Find the golden rankings by preservation: shipped ones or, of more images, the user's own.

    Args:
        model: dense timm name with its weight tag.
        dataset: name of the dataset.
        split: train, val or test.
        block: reduction point that they are for, 0-based.

    Returns:
        The rankings, None if there are none.

    Raises:
        ValueError: the user's own are broken.
    """
    name = store_name(model, dataset, split)
    paths = [DATA_DIR / f"{name}.parquet", *sorted((cache_folder() / "rankings").glob(f"{name}-*"))]
    found = [Rankings.read(path) for path in paths if _holds_something(path)]
    fitting = [rankings for rankings in found if rankings.provenance.block == block]
    # Of equally many the first, so the shipped ones.
    return max(fitting, key=lambda rankings: len(rankings.image_ids), default=None)


def _holds_something(path: Path) -> bool:
    """Tell a store whose first shard is still in work from one that can be read."""
    return bool(shard_paths(path)) if path.is_dir() else path.is_file()
