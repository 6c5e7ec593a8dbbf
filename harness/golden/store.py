"""Golden rankings on disk: a store of Parquet shards as ``rank`` makes it, or one small file."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.base.store import BrokenShardError, Shard, ShardKind, ShardProvenance, from_lists, shard_paths, to_lists
from harness.datasets import kind_of
from harness.datasets.base import DATA_DIR, Dataset, Split, SplitName
from harness.datasets.images import folder_images
from zoo.core.files import cache_folder, write_whole
from zoo.core.recipes import GoldenConfig

FOLDER_SPLIT = "all"  # the split of a folder of images, which has no others
UNKNOWN = -1  # label of an image without one
_SMALL = ("image_id", "importance")  # columns of the small file
_COLUMNS = ("importance", "labels", "least", "ranking")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to rank: a dataset's split, or a folder, which has no dataset and the split ``all``."""

    name: str
    revision: str
    split: str
    images: Split
    dataset: Dataset | None
    notes: tuple[str, ...] = ()  # on files of a folder that were left out

    @classmethod
    def of(cls, dataset: Dataset, split: SplitName) -> "Source":
        """Return a split of a dataset."""
        images = dataset.split(split)
        return cls(name=dataset.name, revision=dataset.revision, split=split, images=images, dataset=dataset)

    def ranked_revision(self, score: str) -> str:
        """Return the revision of which rankings by a score are; scores by classes depend on prompts, too."""
        return self.revision if self.dataset is None or score == "preservation" else self.dataset.condition

    @classmethod
    def folder(cls, path: Path) -> "Source":
        """Return all images below a folder."""
        folder = folder_images(path)
        names = {"name": folder.name, "revision": folder.revision, "split": FOLDER_SPLIT}
        return cls(**names, images=folder.split, dataset=None, notes=folder.notes)


@dataclass(frozen=True, kw_only=True)
class Provenance(ShardProvenance):
    """What a set of rankings was made from, and how. Two are equal whatever their versions."""

    model: str  # of the dense tower, with its weight tag
    weights: str  # `zoo.core.digests.fingerprint` of the tower
    dataset: str  # its name, or that of the folder of images
    revision: str  # of the dataset or folder
    split: str  # train, val or test; `FOLDER_SPLIT` for a folder
    score: str  # preservation, label or confidence
    block: int  # reduction point, 0-based
    window: int  # side in patches
    stride: int  # in patches
    dtype: str  # of the computation
    action: str = "remove"  # the only one there is, which some of the files that ship name
    batch: int | None = None  # sequences per pass decide the last bits; None in the files that ship
    greedy: int | None = None  # patches removed per round; None = one-shot
    approximate: str | None = None  # how the score was approximated; None = exact

    def __post_init__(self) -> None:
        if self.action != "remove":
            raise ValueError(f"action={self.action!r}: expected 'remove'; rank again")

    def describe(self) -> str:
        """Return the settings in words."""
        return GoldenConfig(**self._config).describe()

    @property
    def _config(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(GoldenConfig)}

    def command(self) -> str:
        """Return the command that makes such rankings."""
        prefix = kind_of(self.dataset)
        name = self.dataset if prefix is None else f"{prefix}:PATH"
        source = f"--dataset {name} --split {self.split}"
        if self.split == FOLDER_SPLIT:
            source = "--images FOLDER"
        settings = self._config
        settings["approx"] = settings.pop("approximate")
        flags = [f"--{name} {value}" for name, value in settings.items() if value is not None]
        return f"patchrank rank --model {self.model} {source} {' '.join(flags)}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Rankings:
    """Golden rankings of n images of N patches."""

    image_ids: tuple[str, ...]  # as the dataset gives them
    importance: NDArray[np.float16]  # (n, N), higher = keep, distance to the image's least
    provenance: Provenance
    labels: NDArray[np.int32]  # (n,), ``UNKNOWN`` where there is none
    least: NDArray[np.float32]  # (n,) least importance of the image: the golden score is -(importance + least)
    ranking: NDArray[np.int16]  # (n, N) patch positions, most important first, by the exact importance

    @classmethod
    def small(cls, image_ids: Sequence[str], importance: NDArray[np.float16], provenance: Provenance) -> Self:
        """Make rankings that know no more than the small file: labels and least are unknown, the ranking by float16."""
        return cls(
            image_ids=tuple(image_ids),
            importance=importance,
            provenance=provenance,
            labels=np.full(len(image_ids), UNKNOWN, np.int32),
            least=np.full(len(image_ids), np.nan, np.float32),
            ranking=np.argsort(-importance.astype(np.float32), axis=1, kind="stable").astype(np.int16),
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def from_importance(
        cls, importance: NDArray[np.float32], labels: NDArray[Any], image_ids: Sequence[str], provenance: Provenance
    ) -> Self:
        """Make rankings from exact importance, (n, N); ValueError if float16 can't hold it."""
        if not np.isfinite(importance).all():
            raise ValueError(
                "the importance of a patch isn't finite: the tower overflowed; use --precision bfloat16 or float32"
            )
        # The distance to the image's least: cosines crowd below 1, where float16 is coarse.
        with np.errstate(over="ignore"):
            half = (importance - importance.min(axis=1, keepdims=True)).astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(f"importance spreads over {np.ptp(importance):g}, above float16's 65504")
        return cls(
            image_ids=tuple(image_ids),
            importance=half,
            provenance=provenance,
            labels=np.asarray(labels, dtype=np.int32),
            least=importance.min(axis=1),
            ranking=np.argsort(-importance, axis=1, kind="stable").astype(np.int16),
        )

    @classmethod
    def from_shard(cls, shard: Shard[Provenance]) -> Self:
        """Take the rankings of a shard, or of the small file."""
        table = shard.table
        ids, importance = tuple(table["image_id"].to_pylist()), from_lists(table, "importance")
        if len(table.column_names) == len(_SMALL):
            return cls.small(ids, importance, shard.provenance)
        columns = {"labels": table["label"].fill_null(UNKNOWN).to_numpy(), "least": table["least"].to_numpy()}
        columns |= {"importance": importance, "ranking": from_lists(table, "ranking")}
        return cls(image_ids=ids, provenance=shard.provenance, **columns)

    def table(self) -> Any:
        """Return the table of a shard."""
        return pa.table(
            {
                "image_id": pa.array(self.image_ids, pa.string()),
                "label": pa.array(self.labels, pa.int32(), mask=self.labels == UNKNOWN),
                "importance": to_lists(self.importance),
                "least": pa.array(self.least, pa.float32()),
                "ranking": to_lists(self.ranking),
            }
        )

    def write(self, path: Path) -> None:
        """Write ids and importance as one small file, the form in which rankings ship."""
        path.parent.mkdir(parents=True, exist_ok=True)
        table, count = self.table().select(_SMALL), len(self)
        shard = Shard(table=table, provenance=self.provenance, first=0, covers=count, size=count)
        write_whole(path, RANKINGS.encode(shard))

    @classmethod
    def read(cls, path: Path) -> "Rankings":
        """Read a store, finished or not, or a small file; ValueError if it is broken or no such thing."""
        if path.is_dir():
            parts = [cls.from_shard(shard) for shard in RANKINGS.shards(path)]
            columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS}
            ids = tuple(name for part in parts for name in part.image_ids)
            return cls(image_ids=ids, provenance=parts[0].provenance, **columns)
        if not path.is_file():
            raise FileNotFoundError(f"rankings {str(path)!r} do not exist")
        try:
            return cls.from_shard(RANKINGS.decode(path.read_bytes()))
        except ValueError as error:
            raise ValueError(f"{str(path)!r} holds no golden rankings: {error}") from error

    def require(self, **expected: Any) -> None:
        """Raise ValueError, with the command that mends it, if a field of ``Provenance`` has another value."""
        for name, value in expected.items():
            stored = getattr(self.provenance, name)
            if stored != value:
                raise ValueError(
                    f"these rankings were made with {name}={stored!r}, wanted {value!r}; make them "
                    f"with: {replace(self.provenance, **expected).command()}"
                )

    def of(self, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the importance of these images, (len(image_ids), N) float32, NaN where unknown."""
        rows = self._rows(image_ids)
        return np.where(rows[:, None] < 0, np.nan, self.importance[rows]).astype(np.float32)

    def _rows(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the places of these images, -1 where unknown."""
        return np.array([self._places.get(image_id, -1) for image_id in image_ids], dtype=np.int64)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {image_id: i for i, image_id in enumerate(self.image_ids)}

    def take(self, image_ids: Sequence[str]) -> "Rankings":
        """Return the rankings of these images alone, in this order; ValueError if one has none."""
        rows = self._rows(image_ids)
        if lacking := [image_id for image_id, row in zip(image_ids, rows, strict=True) if row < 0]:
            raise ValueError(f"{len(lacking)} images have no ranking, such as {lacking[0]!r}")
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return Rankings(image_ids=tuple(image_ids), provenance=self.provenance, **columns)


def _check(shard: Shard[Provenance]) -> None:
    rankings, small = Rankings.from_shard(shard), len(shard.table.column_names) == len(_SMALL)
    if len(rankings) != shard.covers or not np.isfinite(rankings.importance).all():
        raise BrokenShardError("importance is not finite, or not of every image")
    if not small and not np.isfinite(rankings.least).all():
        raise BrokenShardError("importance is not finite")
    if (np.sort(rankings.ranking, axis=1) != np.arange(rankings.ranking.shape[1])).any():
        raise BrokenShardError("a ranking doesn't hold every patch once")


RANKINGS = ShardKind(key="golden", what="golden rankings", command="rank", provenance=Provenance, check=_check)


def store_name(model: str, dataset: str, split: str, score: str = "preservation") -> str:
    """Return what the rankings of a split are called, without folder or ending."""
    role = "golden" if score == "preservation" else f"golden_{score}"
    # Names of towers and folders may hold slashes, colons or spaces.
    return re.sub(r"[^\w.,-]+", "-", f"{role}-{model}-{dataset}-{split}")


def shipped_rankings(model: str, dataset: str, split: str, block: int) -> Path | None:
    """Return the file that ships with a dense tower's rankings by preservation before ``block``, if there is one."""
    path = DATA_DIR / f"{store_name(model, dataset, split)}.parquet"
    if path.is_file() and Rankings.read(path).provenance.block == block:
        return path
    return None


def cache_store(model: str, dataset: str, split: str, config: GoldenConfig) -> Path:
    """Return where in the user's cache ``rank`` keeps rankings, one store per settings."""
    name = store_name(model, dataset, split, config.score)
    settings = f"b{config.block}w{config.window}s{config.stride}"
    settings += f"g{config.greedy}" if config.greedy is not None else ""
    settings += "-" + config.approximate.replace(":", "") if config.approximate is not None else ""
    return cache_folder() / "rankings" / f"{name}-{settings}"


def find_rankings(model: str, dataset: str, split: str) -> Rankings | None:
    """Find a dense tower's rankings by preservation, at the usual reduction point; the user's own if of more images."""
    name = store_name(model, dataset, split)
    paths = [DATA_DIR / f"{name}.parquet", *sorted((cache_folder() / "rankings").glob(f"{name}-b*"))]
    # The first shard of a store may still be in work.
    paths = [path for path in paths if (shard_paths(path) if path.is_dir() else path.is_file())]
    usual = [rankings for rankings in map(Rankings.read, paths) if rankings.provenance.block == GoldenConfig.block]
    return max(usual, key=len, default=None)  # of equally many the first, so the shipped ones
