"""Settings of `embed`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.workers import ShardJob
from zoo.core.settings import check_fields

if TYPE_CHECKING:
    from harness.apps.vectors.source import PictureSource, TextSource
    from zoo.deploy.setup import Setup

IMAGES, TEXTS = "images", "texts"  # what is embedded
STORAGES = ("float32", "float16", "int8", "binary")  # of embeddings
MOST_DECODERS = 16  # processes that decode, unless more are asked for


@dataclass(frozen=True, kw_only=True)
class EmbedJob(ShardJob):
    """The pictures or texts to embed, the model, and how vectors are stored."""

    setup: "Setup"
    source: "PictureSource | TextSource"
    out: Path
    random_weights: bool = False
    shard_size: int = 4096  # pictures per file
    batch: int = 64  # pictures per pass
    storage: str = "float16"  # of ``STORAGES``
    decoders: int | None = None  # processes that decode; 0: threads in the model's own; None: see `processes`

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, storage=STORAGES, decoders="[0, inf)")

    @property
    def kind(self) -> str:
        """``images`` or ``texts``."""
        from harness.apps.vectors.source import TextSource

        return TEXTS if isinstance(self.source, TextSource) else IMAGES

    @property
    def processes(self) -> int:
        """How many processes decode for each model; 0 takes threads of the model's own, in turn with it.

        By default none on a CPU, where a process would hold up the model's threads, which wait for each other. Several
        workers on a CPU have one for four cores, and another device has one for each core.
        """
        from harness.records.times import cores

        if self.decoders is not None:
            return self.decoders
        if self.device.startswith("cpu") and self.workers is None:
            return 0
        share = cores() // 4 if self.device.startswith("cpu") else cores()
        return max(1, min(MOST_DECODERS, share) // (self.workers or 1))
