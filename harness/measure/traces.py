"""Writes what the rows of a run did to single images, see `harness.records.traces`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from harness.base.store import BrokenShardError
from harness.base.terminal import Progress
from harness.datasets.base import Split
from harness.datasets.few_shot import batches
from harness.golden.maps import undo_preprocess
from harness.golden.store import Rankings
from harness.measure.plan import TRACED
from harness.measure.rows import Outcome
from harness.records.record import Record
from harness.records.traces import RANKING, STAYED, TRACES, UNRANKED, Facts, RowTraces, Thumbnails, read_row
from zoo.core.files import write_whole


class Answered(NamedTuple):
    """What a row did to the n images that are traced: its outcome and n positions of classes."""

    record: Record
    outcome: Outcome
    predicted: NDArray[np.int64]

    @classmethod
    def of(cls, record: Record, outcome: Outcome, predicted: NDArray[np.int64], traced: Any) -> Self:
        """Take what a row did to some of its images, those at the positions ``traced``."""
        return cls(record, outcome.part(traced), predicted[traced])


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """Writes the traces of a run into its folder."""

    run: Path
    progress: Progress
    images: int = TRACED  # of a dataset; 0 for none
    thumbnails: bool = True  # store small copies of them too
    waiting: list[Callable[[], None]] = field(default_factory=list)  # what `flush` is to store

    def __post_init__(self) -> None:
        """Validate."""
        if self.images < 0:
            raise ValueError(f"--traces {self.images}: expected a number of images, 0 for none")

    def later(self, *args: Any, **how: Any) -> None:
        """Store what ``write`` takes when `flush` is called: records come first, should the disk be full."""
        self.waiting.append(partial(self.write, *args, **how))

    def flush(self) -> None:
        """Store what waits."""
        while self.waiting:
            self.waiting.pop(0)()

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
        """Store what rows of one tower did, each whole or not at all, in place of earlier traces.

        ``split`` are the images, ``classes`` names of the dataset's, ``grid`` rows and columns of
        the patch grid, ``golden`` rankings that some images have; ``preprocess`` is the tower's.
        """
        folder = self.run / TRACES
        folder.mkdir(parents=True, exist_ok=True)
        ids, labels = split.image_ids, tuple(classes[label] for label in split.labels)
        traced = [
            RowTraces(
                facts=Facts.of(row.record),
                grid=grid,
                image_ids=ids,
                labels=labels,
                predicted=tuple(classes[answer] for answer in row.predicted),
                **_patchwise(row.outcome, len(ids), grid[0] * grid[1]),
            )
            for row in rows
        ]
        if golden is not None:
            traced.append(_golden(traced[0], golden))
        for traces in traced:
            write_whole(folder / traces.facts.name, traces.encode())
        if self.thumbnails:
            label = f"thumbnails of {rows[0].record.dataset}"
            with self.progress.task(label, len(split)) as update:
                self._keep_thumbnails(traced[0].facts, split, preprocess, update)

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
        unranked, stayed = (np.full((count, cells), v, dtype=np.int16) for v in (UNRANKED, STAYED))
        own = np.tile(np.arange(cells, dtype=np.int16), (count, 1))
        return {"importance": unranked, "left": stayed, "token": own}
    left, token = outcome.left.astype(np.int16), outcome.token.astype(np.int16)
    return {"importance": _places(outcome.scores), "left": left, "token": token}


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
    facts = replace(like.facts, method=RANKING, keep=1.0, method_config=provenance)
    importance = _places(rankings.of(like.image_ids))
    return replace(like, facts=facts, predicted=(None,) * len(like), importance=importance)
