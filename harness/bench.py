"""One dense tower on the bench: its rows measured on one dataset after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.datasets.base import Dataset
from harness.evaluate import linear_probe, margin, predicted
from harness.few_shot import draw_train
from harness.match import matched_rows
from harness.measure import costs
from harness.plan import DTYPES, PROBE, Plan, Tuning
from harness.progress import Progress
from harness.recording import blank, filled
from harness.records import Record, fitting
from harness.towers import load_clip
from harness.traces import Answered, Tracer
from harness.tuning import Tuned
from harness.variants import DENSE, GOLDEN, Variant, rows_of, variants
from harness.view import View, importance
from zoo.clip import ClipParts
from zoo.tune_config import TuneConfig
from zoo.weights import fingerprint

Costs = dict[str, dict[str, Any]]  # fields of records, by the row's key


@dataclass
class Bench:
    """One dense tower with its rows, and what was measured on them regardless of data."""

    plan: Plan
    tag: str
    parts: ClipParts
    weights: str
    rows: list[Variant]
    progress: Progress
    costs: Costs = field(default_factory=dict)
    prompted_costs: Costs = field(default_factory=dict)  # with the plan's learned visual tokens
    view: View | None = None  # of the dataset that was measured last
    tracer: Tracer | None = None  # what stores traces of the first seed's rows

    @classmethod
    def build(cls, plan: Plan, name: str, progress: Progress) -> "Bench":
        """Load the tower ``name`` and make the rows."""
        parts, arch, tag = load_clip(name)
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
        return cls(plan, tag, parts, weights, rows, progress)

    def measure(self, dataset: Dataset, shots: int, known: Sequence[Record]) -> list[Record]:
        """Return the records of all rows on a dataset, seed by seed.

        Args:
            dataset: where.
            shots: labelled training images per class.
            known: records of earlier runs; a seed for which all rows are among them isn't measured.
        """
        found = []
        for tuning in self.plan.tunings(shots):
            rows = [row for row in self.rows if row.method != GOLDEN or not tuning.visual]
            prompts = self._tuned(dataset, tuning) if tuning.prompted else {}
            found += self.judged(dataset, tuning, rows, prompts, known)
        return found

    def judged(
        self,
        dataset: Dataset,
        tuning: Tuning,
        rows: Sequence[Variant],
        prompts: Mapping[str, Tuned],
        known: Sequence[Record] = (),
    ) -> list[Record]:
        """Return the records of rows on a dataset, measuring only if one is missing.

        Args:
            dataset: where.
            tuning: what classifies the images.
            rows: some of the bench's.
            prompts: what was learned for them, by key, if tokens were; golden rows, which have
                none of their own, take the dense row's.
            known: records of earlier runs.
        """
        view = self._view(dataset)
        split = view.split(tuning)
        rows = [self._prompted(row, prompts) for row in view.ranked(rows, split)]
        truth = {row.key: importance(row, split.image_ids) for row in rows}
        told: dict[str, Any] = {"plan": self.plan, "tag": self.tag, "weights": self.weights}
        blanks = [blank(row, dataset, tuning, split.image_ids, **told) for row in rows]
        ranked = any(known is not None for known in truth.values())
        found = [fitting(record, known, self.plan.batches, ranked=ranked) for record in blanks]
        tracer = self.tracer if tuning.seed == self.plan.seed else None
        chosen = view.traced(tuning, tracer.images if tracer is not None else 0)
        if all(record is not None for record in found):
            again = [record for record in found if record is not None]
            if tracer is not None:
                tracer.miss(again, len(chosen))
            return again
        results = view.outcomes(rows, split, f"{self.rows[0].model} on {dataset.name}")
        classifiers = self._classifiers(view, tuning, prompts)
        answers, traces = {}, []
        for row, record in zip(rows, blanks, strict=True):
            result = results[row.key]
            said = predicted(result.features, classifiers[self._judge(row)])
            answers[row.key] = (result, said == split.labels)
            traces.append(Answered.of(record, result, said, chosen))
        if tracer is not None and len(chosen):
            tracer.write(
                traces,
                split.subset(chosen),
                dataset.classes,
                grid=self.rows[0].vit.patch_embed.grid_size,
                golden=rows[0].rankings,
                preprocess=self.parts.preprocess,
            )
        spent = self._spent(rows)
        dense = answers.get(self.rows[0].key)
        records = [
            filled(record, answers[row.key], dense, spent[row.key], truth[row.key])
            for row, record in zip(rows, blanks, strict=True)
        ]
        if tuning.kind == PROBE:  # its weights have no length that a cosine could go by
            return records
        margins = [
            margin(results[row.key].features, classifiers[self._judge(row)], split.labels)
            for row in rows
        ]
        return [replace(one, margin=m) for one, m in zip(records, margins, strict=True)]

    def _judge(self, row: Variant) -> str:
        """Return the key of the row whose classifier judges a row.

        The oracle has no ranking of training images here; it is judged as the dense row is.
        """
        return self.rows[0].key if row.method == GOLDEN else row.key

    def _view(self, dataset: Dataset) -> View:
        if self.view is None or self.view.dataset is not dataset:
            told = (self.plan, self.parts, self.rows[0].model, self.tag, self.weights)
            self.view = View(dataset, *told, self.progress)
        return self.view

    def _tuned(self, dataset: Dataset, tuning: Tuning) -> dict[str, Tuned]:
        """Learn tokens for each row that can be run."""
        assert tuning.kind is not None
        assert tuning.prompt_tokens is not None
        config = TuneConfig(tokens=tuning.kind, count=tuning.prompt_tokens, seed=tuning.seed)
        rows = [row for row in self.rows if row.method != GOLDEN]
        return self._view(dataset).tuner.tuned(rows, tuning.shots, tuning.seed, config)

    def _prompted(self, row: Variant, prompts: Mapping[str, Tuned]) -> Variant:
        """Return a row as its prompts make it."""
        if not prompts:
            return row
        own = prompts[self.rows[0].key if row.method == GOLDEN else row.key]
        config = row.config | {"prompts": own.digest}
        if row.method == GOLDEN or own.vit.prompts is None:
            return replace(row, config=config)
        return replace(row, config=config, vit=own.vit)

    def _classifiers(
        self, view: View, tuning: Tuning, prompts: Mapping[str, Tuned]
    ) -> dict[str, Tensor]:
        """Return each row's classifier: the text's, tuned or not, or a linear probe."""
        if prompts:
            return {key: own.classifier.cpu() for key, own in prompts.items()}
        if tuning.kind != PROBE:
            return dict.fromkeys((row.key for row in self.rows), view.text)
        dataset = view.dataset
        train = draw_train(dataset, tuning.shots, tuning.seed)
        rows = [row for row in self.rows if row.method != GOLDEN]
        features = view.outcomes(rows, train, f"{tuning.shots} shots of {dataset.name}")
        answer = torch.from_numpy(train.labels)
        return {
            name: linear_probe(f.features, answer, len(dataset.classes))
            for name, f in features.items()
        }

    def _spent(self, rows: Sequence[Variant]) -> Costs:
        """Measure what rows cost, once; learned visual tokens cost the same whatever they are."""
        prompted = any(row.prompted for row in rows)
        spent = self.prompted_costs if prompted else self.costs
        if not spent:
            told = (self.plan.batches, self.plan.rounds, self.progress)
            spent |= costs(rows if prompted else self.rows, *told)
        return spent
