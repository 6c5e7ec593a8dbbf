"""One dense tower on the bench: its rows measured on one dataset after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.correctness import pack_correct
from harness.datasets.base import Dataset, Split
from harness.evaluate import (
    Outcome,
    correct,
    linear_probe,
    nameable,
    outcomes,
    subset,
    text_classifier,
)
from harness.few_shot import draw_train
from harness.golden.store import find_rankings
from harness.match import matched_rows
from harness.measure import agreement, costs, device_name, fidelity, git_commit
from harness.plan import DTYPES, Plan
from harness.progress import Progress
from harness.records import Record, utc_now
from harness.reuse import fitting
from harness.statistics import paired_difference, wilson_interval
from harness.variants import BLOCK, DENSE, GOLDEN, Variant, rows_of, variants
from zoo.clip import ClipParts, create_clip
from zoo.weights import fingerprint


@dataclass
class Bench:
    """One dense tower with its rows, and what was measured on them regardless of data."""

    plan: Plan
    tag: str
    parts: ClipParts
    weights: str
    rows: list[Variant]
    progress: Progress
    costs: dict[str, dict[str, Any]]

    @classmethod
    def build(cls, plan: Plan, arch: str, tag: str, progress: Progress) -> "Bench":
        """Load the tower and make the rows."""
        parts = create_clip(f"{arch}.{tag}")
        dense = parts.model.visual
        methods = [DENSE, *(m for m in plan.methods if m != DENSE)]
        if plan.match is None:
            rows = variants(dense, arch, tag, methods, plan.keeps)
        else:
            rows = rows_of(dense, arch, tag, matched_rows(dense, arch, tag, plan, progress))
        return cls.around(plan, parts, rows, tag, fingerprint(dense), progress)

    @classmethod
    def around(
        cls,
        plan: Plan,
        parts: ClipParts,
        rows: list[Variant],
        tag: str,
        weights: str,
        progress: Progress,
    ) -> "Bench":
        """Take rows that are made already, the dense one first, and bring them to their device.

        Args:
            plan: conditions of the measurement.
            parts: the tower with its text tower.
            rows: variants of the tower.
            tag: its weight tag.
            weights: fingerprint of its weights as they were loaded.
            progress: where to show how far things are.
        """
        for row in rows:
            row.vit.to(plan.device, DTYPES[plan.dtype])
        return cls(plan, tag, parts, weights, rows, progress, {})

    def measure(self, dataset: Dataset, shots: int, known: Sequence[Record]) -> list[Record]:
        """Return the records of all rows on a dataset, measuring only if one is missing."""
        classifier = self._text_classifier(dataset) if shots == 0 else None
        split = nameable(subset(dataset.split(self.plan.split), self.plan.limit), classifier)
        ids = split.image_ids
        rows = self._ranked(dataset, split)
        truth = {row.key: _importance(row, ids) for row in rows}
        blank = [self._blank(row, dataset, shots, len(split)) for row in rows]
        ranked = any(known is not None for known in truth.values())
        found = [fitting(record, known, self.plan.batches, ranked=ranked) for record in blank]
        if all(record is not None for record in found):
            return [record for record in found if record is not None]
        label = f"{self.rows[0].model} on {dataset.name}"
        results = self._outcomes(rows, split, label)
        classifiers = self._classifiers(dataset, shots, results, classifier)
        right = {
            key: correct(result.features, classifiers[key], split.labels)
            for key, result in results.items()
        }
        if not self.costs:
            self.costs = costs(self.rows, self.plan.batches, self.plan.rounds, self.progress)
        return [
            self._filled(row, record, results, right, truth[row.key])
            for row, record in zip(rows, blank, strict=True)
        ]

    def _ranked(self, dataset: Dataset, split: Split) -> list[Variant]:
        """Give rows without golden rankings those of these images, if there are any.

        Golden rows for which an image lacks a ranking are left out.
        """
        if all(row.rankings is not None for row in self.rows if row.method != DENSE):
            return self.rows
        model = f"{self.rows[0].model}.{self.tag}"
        rankings = find_rankings(model, dataset.images_of, self.plan.split, BLOCK)
        command = (
            f"python -m harness rank --model {model} --dataset {dataset.images_of} "
            f"--split {self.plan.split} --full"
        )
        if rankings is None:
            self.progress.say(f"no golden rankings of {dataset.name}; make them with: {command}")
            return [row for row in self.rows if row.method != GOLDEN]
        rankings.require(weights=self.weights, revision=dataset.revision)
        rows = [
            replace(row, rankings=rankings) if row.rankings is None else row for row in self.rows
        ]
        if set(split.image_ids) <= set(rankings.image_ids):
            return rows
        if any(row.method == GOLDEN for row in rows):
            self.progress.say(
                f"only some of these images of {dataset.name} have golden rankings, so there is no "
                f"golden row; make them with: {command}"
            )
        return [row for row in rows if row.method != GOLDEN]

    def _outcomes(self, rows: list[Variant], split: Split, label: str) -> dict[str, Outcome]:
        with self.progress.task(label, len(split)) as update:
            return outcomes(
                rows,
                split,
                self.parts.preprocess,
                device=torch.device(self.plan.device),
                dtype=DTYPES[self.plan.dtype],
                on_batch=update,
            )

    def _text_classifier(self, dataset: Dataset) -> Tensor:
        """Encode the classes; tell which of them can't be named."""
        classifier, left_out = text_classifier(self.parts, dataset)
        if left_out:
            some = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            self.progress.say(
                f"{dataset.name}: {len(left_out)} of {len(dataset.classes)} classes are left out "
                f"with their images; text training never saw their words: {some}"
            )
        return classifier

    def _classifiers(
        self, dataset: Dataset, shots: int, results: dict[str, Outcome], text: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each row's classifier: the text's, or a linear probe on its own features."""
        if text is not None:
            return dict.fromkeys(results, text)
        train = draw_train(dataset, shots, self.plan.seed)
        rows = [row for row in self.rows if row.method != GOLDEN]
        features = self._outcomes(rows, train, f"{shots} shots of {dataset.name}")
        answer = torch.from_numpy(train.labels)
        probes = {
            name: linear_probe(f.features, answer, len(dataset.classes))
            for name, f in features.items()
        }
        # The oracle has no ranking of training images here; it is judged by the dense probe.
        return {name: probes.get(name, probes[self.rows[0].key]) for name in results}

    def _filled(
        self,
        row: Variant,
        record: Record,
        results: dict[str, Outcome],
        right: dict[str, NDArray[np.bool_]],
        truth: NDArray[np.float32] | None,
    ) -> Record:
        """Complete a record with everything measured."""
        outcome, hits, dense = results[row.key], right[row.key], self.rows[0].key
        low, high = wilson_interval(int(hits.sum()), len(hits))
        facts: dict[str, Any] = {
            "created": utc_now(),
            "git_commit": git_commit(),
            "correct_bits": pack_correct(hits),
            "top1": float(hits.mean()),
            "top1_low": low,
            "top1_high": high,
            "final_tokens": outcome.final_tokens,
            **self.costs[row.key],
            **agreement(outcome, truth),
        }
        if row.method != DENSE:
            facts |= fidelity(outcome, results[dense])
            difference = paired_difference(hits, right[dense], seed=0)
            facts |= dict(zip(("diff_to_dense", "diff_low", "diff_high"), difference, strict=True))
        return replace(record, **facts)

    def _blank(self, row: Variant, dataset: Dataset, shots: int, count: int) -> Record:
        """Return a record with the conditions and no measurement."""
        nothing = np.zeros(count, dtype=np.bool_)
        config = row.config
        if row.method == GOLDEN and row.rankings is not None:
            facts = row.rankings.provenance
            told = ("score", "window", "stride", "dtype", "greedy", "approximate")
            known = {name: getattr(facts, name) for name in told}
            config = config | {name: value for name, value in known.items() if value is not None}
        return Record(
            created=utc_now(),
            version=version("clip-patchrank"),
            model=row.model,
            method=row.method,
            keep=row.keep,
            method_config=config,
            tag=self.tag,
            weights_sha256=self.weights,
            dataset=dataset.name,
            dataset_revision=dataset.revision,
            split=self.plan.split,
            shots=shots,
            seed=self.plan.seed,
            image_count=count,
            correct_bits=pack_correct(nothing),
            top1=0.0,
            top1_low=0.0,
            top1_high=0.0,
            device=self.plan.device,
            device_name=device_name(self.plan.device),
            dtype=self.plan.dtype,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            timm=version("timm"),
        )


def _importance(row: Variant, image_ids: Sequence[str]) -> NDArray[np.float32] | None:
    """Return the golden importance that a row is compared with, None if there is none."""
    return None if row.rankings is None else row.rankings.of(image_ids)
