"""What a ranking of images can be told. Imports no torch itself, as the command line reads the fields for help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.workers import ShardJob
from zoo.core.recipes import GoldenConfig
from zoo.core.settings import check_fields

if TYPE_CHECKING:
    from harness.golden.store import Source


@dataclass(frozen=True, kw_only=True)
class RankJob(ShardJob):
    """A run of ``rank``."""

    model: str  # dense tower, see `zoo.loading.towers.load_tower`
    source: "Source"
    config: GoldenConfig = field(default_factory=GoldenConfig)
    limit: int | None = None  # images; a smaller limit takes the first of a larger one's
    variants: int = 1  # times that each image is drawn anew; the second follow all the first
    out: Path | None = None  # the store; None for the user's cache, where `compare` looks
    shard_size: int = 64  # images per shard
    batch: int | None = None  # sequences per pass; None: the store's, else by the free memory
    precision: str = "float32"  # or auto: that of the store, else the fastest of the device

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, limit="[1, inf)", variants="[1, inf)")
        if not len(self.source.images):
            raise ValueError(f"{self.source.name!r} has no {self.source.split} images to rank; name another --split")
