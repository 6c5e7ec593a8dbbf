"""A dataset as the rows of a bench see it: what no tuning changes is found once."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets.base import Dataset, Split
from harness.evaluate import Outcome, nameable, named, outcomes, subset, text_classifier, turns
from harness.golden.store import Rankings, find_rankings
from harness.plan import DTYPES, PROBE, Plan, Tuning
from harness.progress import Progress
from harness.seen import Seen
from harness.tuning import Tuner
from harness.variants import BLOCK, DENSE, GOLDEN, Variant
from zoo.clip import ClipParts
from zoo.predictor import tower_name


class View:
    """One dataset under a plan.

    Args:
        dataset: the images and classes.
        plan: conditions of the measurement.
        parts: the tower with its text tower.
        model: the dense tower's name.
        tag: its weight tag.
        weights: fingerprint of its weights as they were loaded.
        progress: where to show how far things are.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        parts: ClipParts,
        model: str,
        tag: str,
        weights: str,
        progress: Progress,
    ) -> None:
        """Look at nothing yet."""
        self.dataset = dataset
        self._plan = plan
        self._parts = parts
        self._model = model
        self._tag = tag
        self._weights = weights
        self._progress = progress
        self._seen = Seen()
        self._said: set[str] = set()

    @cached_property
    def text(self) -> Tensor:
        """(classes, D) text classifier; NaN rows for classes that can't be named."""
        classifier, left_out = text_classifier(self._parts, self.dataset)
        if left_out:
            some = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            self._say(
                f"{self.dataset.name}: {len(left_out)} of {len(self.dataset.classes)} classes are "
                f"left out with their images; text training never saw their words: {some}"
            )
        return classifier

    @cached_property
    def tuner(self) -> Tuner:
        """What learns tokens; it keeps the labelled images' features."""
        told = {"model": self._model, "tag": self._tag, "weights": self._weights}
        return Tuner(self._parts, self.dataset, progress=self._progress, **told)

    def split(self, tuning: Tuning) -> Split:
        """Return the images that are judged: without a probe, only those of nameable classes.

        Raises:
            ValueError: there are none.
        """
        whole = subset(self.dataset.split(self._plan.split), self._plan.limit)
        judged = whole if tuning.kind == PROBE else nameable(whole, self.text)
        if not len(judged):
            named = (
                ", whose class or prompts the text tower knows the words of" if len(whole) else ""
            )
            raise ValueError(f"{self.dataset.name} has no {self._plan.split} images{named}")
        return judged

    def traced(self, tuning: Tuning, count: int) -> NDArray[np.int64]:
        """Return the positions among the judged images of ``count``, whose classes take turns.

        A smaller count has the first of a larger one, whatever the plan's limit.
        """
        if not count:
            return np.empty(0, dtype=np.int64)
        labels = self.dataset.labels(self._plan.split)
        order = turns(labels)[: self._plan.limit]
        if tuning.kind != PROBE:
            order = order[named(self.text)[labels[order]]]
        return np.searchsorted(np.sort(order), order[:count])

    @cached_property
    def _rankings(self) -> Rankings | None:
        images_of = self.dataset.images_of
        rankings = find_rankings(self._tower, images_of, self._plan.split, BLOCK)
        if rankings is None:
            self._say(f"no golden rankings of {self.dataset.name}; make them with: {self._command}")
        else:
            rankings.require(weights=self._weights, revision=self.dataset.revision)
        return rankings

    def ranked(self, rows: Sequence[Variant], split: Split) -> list[Variant]:
        """Give rows without golden rankings those of these images, if there are any.

        Golden rows for which an image lacks a ranking are left out.
        """
        if all(row.rankings is not None for row in rows if row.method != DENSE):
            return list(rows)
        rankings = self._rankings
        if rankings is None:
            return [row for row in rows if row.method != GOLDEN]
        rows = [replace(row, rankings=rankings) if row.rankings is None else row for row in rows]
        if set(split.image_ids) <= set(rankings.image_ids):
            return rows
        if any(row.method == GOLDEN for row in rows):
            self._say(
                f"only some of these images of {self.dataset.name} have golden rankings, so there "
                f"is no golden row; make them with: {self._command}"
            )
        return [row for row in rows if row.method != GOLDEN]

    def outcomes(self, rows: Sequence[Variant], split: Split, label: str) -> dict[str, Outcome]:
        """Return what rows say about images, by key; what they said before isn't asked again.

        Rows with learned visual tokens are others every time, so they run on all images.
        """
        if any(row.prompted for row in rows):
            return self._run(rows, split, label)
        ids, keys = split.image_ids, [row.key for row in rows]
        if new := self._seen.lacking(keys, ids):
            self._seen.add(self._run(rows, split.subset(new), label), [ids[i] for i in new])
        return {key: self._seen.of(key, ids) for key in keys}

    def _run(self, rows: Sequence[Variant], split: Split, label: str) -> dict[str, Outcome]:
        with self._progress.task(label, len(split)) as update:
            return outcomes(
                rows,
                split,
                self._parts.preprocess,
                device=torch.device(self._plan.device),
                dtype=DTYPES[self._plan.dtype],
                on_batch=update,
            )

    @property
    def _tower(self) -> str:
        return tower_name(self._model, self._tag)

    @property
    def _command(self) -> str:
        own = self.dataset.images_of == self.dataset.name
        dataset = self.dataset.asked_as if own else self.dataset.images_of
        flags = shlex.join((dataset, *self.dataset.asked_with))
        return (
            f"python -m harness rank --model {self._tower} --dataset {flags} "
            f"--split {self._plan.split} --full"
        )

    def _say(self, text: str) -> None:
        """Tell it once, however many tunings it holds for."""
        if text not in self._said:
            self._said.add(text)
            self._progress.say(text)


def importance(row: Variant, image_ids: Sequence[str]) -> NDArray[np.float32] | None:
    """Return the golden importance that a row is compared with, None if there is none."""
    return None if row.rankings is None else row.rankings.of(image_ids)
