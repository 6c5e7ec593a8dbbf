"""Traces of a run: what rows did to single images, for its folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from harness.base.store import BrokenShardError
from harness.base.terminal import Progress
from harness.datasets.base import Split
from harness.datasets.few_shot import batches
from harness.golden.store import Rankings
from harness.measure.plan import TRACED
from harness.measure.rows import Outcome
from harness.models.towers import undo_preprocess
from harness.records.record import Record
from harness.records.traces import RANKING, STAYED, TRACES, UNRANKED, Facts, RowTraces, Thumbnails, read_row
from zoo.core.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """Writes the traces of a run into its folder."""

    run: Path
    progress: Progress
    images: int = TRACED  # of a dataset; 0 for none
    thumbnails: bool = True  # store small copies of them too
    # Rows on one split, and the tower's preprocessing: records are written first, should the disk be full.
    waiting: list[tuple[list[RowTraces], Split, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Validate."""
        if self.images < 0:
            raise ValueError(f"--traces {self.images}: expected a number of images, 0 for none")

    def flush(self) -> None:
        """Store what waits, each row whole or not at all, in place of earlier traces."""
        folder = self.run / TRACES
        while self.waiting:
            rows, split, preprocess = self.waiting.pop(0)
            folder.mkdir(parents=True, exist_ok=True)
            for row in rows:
                write_whole(folder / row.facts.name, row.encode())
            if self.thumbnails:
                with self.progress.task(f"thumbnails of {rows[0].facts.dataset}", len(split)) as update:
                    self._keep_thumbnails(rows[0].facts, split, preprocess, update)

    def _keep_thumbnails(self, facts: Facts, split: Split, preprocess: Any, update: Callable[[int], None]) -> None:
        """Store small copies of a split's images; those that have one are not drawn again."""
        try:
            thumbnails = Thumbnails.read(self.run, facts)
        except ValueError as error:
            if not isinstance(error.__cause__, BrokenShardError):
                raise
            thumbnails = Thumbnails(jpeg={})
        absent = [i for i, name in enumerate(split.image_ids) if name not in thumbnails.jpeg]
        if not absent:
            return
        count = 0
        for examples, images in batches(split.subset(absent), preprocess):
            views = undo_preprocess(preprocess, images).permute(0, 2, 3, 1).numpy()
            for example, view in zip(examples, views, strict=True):
                thumbnails.add(example.image_id, view)
            count += len(examples)
            update(count)
        thumbnails.write(self.run, facts)

    def miss(self, records: Sequence[Record], images: int) -> None:
        """Say if rows whose records are used again have no traces, or of fewer images."""

        def lacks(record: Record) -> bool:
            try:
                return len(read_row(self.run / TRACES / Facts.of(record).name)) < images
            except (FileNotFoundError, ValueError):
                return True

        if without := list(filter(lacks, records)):
            self.progress.say(
                f"{without[0].dataset}: {len(without)} of {len(records)} rows have no traces of "
                f"{images} images, as their records are used again ({without[0].model} is the "
                "first); the same command with --fresh makes them"
            )


def trace_row(
    record: Record,
    outcome: Outcome,
    predicted: NDArray[np.int64] | None,
    split: Split,
    classes: Sequence[str],
    grid: tuple[int, int],
) -> RowTraces:
    """Return what a row did to the n images of ``split``: ``outcome`` and, with labels, classes ``predicted``."""
    shape = (len(split), grid[0] * grid[1])
    importance, left = (np.full(shape, value, dtype=np.int16) for value in (UNRANKED, STAYED))
    token = np.tile(np.arange(shape[1], dtype=np.int16), (shape[0], 1))
    if outcome.scores is not None and outcome.left is not None and outcome.token is not None:
        importance = _ordinals(outcome.scores)
        left, token = outcome.left.astype(np.int16), outcome.token.astype(np.int16)
    return RowTraces(
        facts=Facts.of(record),
        grid=grid,
        image_ids=split.image_ids,
        labels=tuple(classes[label] if classes else None for label in split.labels),
        predicted=(None,) * len(split) if predicted is None else tuple(classes[answer] for answer in predicted),
        importance=importance,
        left=left,
        token=token,
    )


def trace_golden(like: RowTraces, rankings: Rankings) -> RowTraces:
    """Return the golden ranking as a row beside the dense one, ``like``."""
    provenance = asdict(rankings.provenance)
    del provenance["versions"]
    facts = replace(like.facts, method=RANKING, keep=1.0, method_config=provenance)
    importance = _ordinals(rankings.of(like.image_ids))
    return replace(like, facts=facts, predicted=(None,) * len(like), importance=importance)


def _ordinals(scores: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return scores as whole numbers in the same order, equal where they tie."""
    known = ~np.isnan(scores).any(axis=1)
    ordinals = np.full(scores.shape, UNRANKED, dtype=np.int16)
    ordinals[known] = rankdata(scores[known], method="dense", axis=1) - 1
    return ordinals
