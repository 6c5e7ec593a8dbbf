"""Writing the traces of a run beside its records while it measures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from harness.datasets.base import Split
from harness.golden.store import Rankings
from harness.measure.evaluate import Outcome
from harness.measure.plan import TRACED
from harness.progress import Progress
from harness.records import Record
from harness.traces.folder import TRACES, read_row
from harness.traces.row import RANKING, STAYED, UNRANKED, Facts, RowTraces
from harness.traces.thumbnails import keep_thumbnails
from zoo.files import write_whole


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
