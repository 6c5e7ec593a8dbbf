"""The measuring loop: rows of a dense tower side by side on a dataset, as records."""

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import git_commit
from harness.base.terminal import Progress
from harness.datasets import get_dataset
from harness.datasets.base import FINAL, Dataset, Split, SplitName, cached_json, keep_json
from harness.datasets.few_shot import draw_train, subset
from harness.datasets.text_features import caption_features, nameable, named, text_classifier
from harness.golden.store import Rankings, find_rankings
from harness.measure.budgets import LEAST_PICTURES, BudgetRows, adaptive_row, deal, join_dealt, spread_keeps
from harness.measure.exports import ExportCache, runtime_rows
from harness.measure.fidelity import Pictures
from harness.measure.plan import costs, keep_near_rows, matched_rows
from harness.measure.rows import (
    Judge,
    OutputCache,
    RowOutput,
    Tuned,
    Variant,
    captions_of,
    feature_probe,
    recovered_rows,
    variants,
)
from harness.measure.settings import Plan
from harness.records.metrics import METRICS, Captions, MetricInput, cosine_distance, measure
from harness.records.record import (
    ADAPTIVE,
    DEALT,
    DENSE,
    GOLDEN,
    PROBE,
    Record,
    Tuning,
    device_name,
    fitting,
    images_digest,
    lacks_times,
    pack_groups,
    utc_now,
)
from zoo.core.adaptive import LEAST, Budgets
from zoo.core.digests import digest, fingerprint
from zoo.core.settings import torch_dtype
from zoo.deploy.runtime import RUNTIMES
from zoo.loading.towers import Tower, load_tower, without_text

Costs = dict[str, dict[str, Any]]  # fields of records, by the row's key
Prompts = Mapping[str, Tuned]  # what was learned for rows, by key
COST_FIELDS = ("gflops", "uncounted_operators", "params", "tokens_per_block", "latency")
BUDGETS_OF, BUDGET_IMAGES = "photos", 400  # whose images, and how many, budgets are fitted to where a dataset has few
PROVENANCE = ("score", "window", "stride", "dtype", "greedy", "approximate")  # of an oracle


@dataclass
class Bench:
    """One dense tower with its rows, the dense one first, on a dataset; what no tuning changes is computed once."""

    plan: Plan
    dataset: Dataset
    tower: Tower
    rows: list[Variant]  # brought to the plan's device and precision
    weights: str  # fingerprint of the tower's
    progress: Progress
    known: Sequence[Record] = ()  # of earlier runs, the newest last: what they have isn't measured again
    costs: Costs = field(default_factory=dict)  # measured once
    prompted_costs: Costs = field(default_factory=dict)  # the same with learned visual tokens
    folder: Path | None = None  # for outputs of a run that is stopped
    fit_probes: Callable[[], Judge | None] | None = None  # what judges foreground, asked when images are first run
    budgets: Mapping[str, BudgetRows] = field(default_factory=dict)  # of the methods that have adaptive rows

    def __post_init__(self) -> None:
        self.parts = self.tower.clip or without_text(self.tower)
        for row in self.rows:
            if row.method not in RUNTIMES:  # which is in its place
                row.vit.to(self.plan.device, torch_dtype(self.plan.precision))
        for row in self._budget_rows:
            row.vit.to(self.plan.device, torch_dtype(self.plan.precision))

    @classmethod
    def build(
        cls,
        plan: Plan,
        name: str,
        dataset: Dataset,
        progress: Progress,
        known: Sequence[Record] = (),
        folder: Path | None = None,
    ) -> "Bench":
        """Load the tower ``name`` and make the rows; ``known`` records spare a search for equal times."""
        tower = load_tower(name)
        weights = fingerprint(tower.vit)
        here = measured_here(plan, tower.tag, weights).items()
        known = [record for record in known if all(getattr(record, name) == value for name, value in here)]
        if plan.match == "keep":
            rows = variants(tower, [DENSE, *(m for m in plan.methods if m != DENSE)], plan.keeps)
        else:
            rows = matched_rows(tower, plan, progress, known)
        rows += recovered_rows(tower, plan.recoveries)
        budgets = dict[str, BudgetRows]()
        exports = ExportCache.for_runtimes(tower, plan.runtimes, progress.say)  # in float32, as the tower is now
        fixed = {method: [row.vit for row in rows if row.method == method] for method in plan.budgets}
        with progress.task("keep rates of budgets", len(fixed)) as update:
            for done, (method, vits) in enumerate(fixed.items(), start=1):
                budgets |= {method: BudgetRows(tower, method, spread_keeps(tower, method, vits))} if vits else {}
                update(done)
        bench = cls(plan, dataset, tower, rows, weights, progress, known, folder=folder, budgets=budgets)
        bench.rows[1:1] = runtime_rows(rows[0], plan.runtimes, exports, progress.say)
        return bench

    def judge(self, tuning: Tuning, rows: Sequence[Variant], prompts: Prompts) -> list[Record]:
        """Return the records of some rows, measuring only if one isn't known.

        ``prompts`` were learned for the rows, by key; golden rows take the dense row's.
        """
        dataset, split = self.dataset, self.split(tuning)
        rows = [self._with_prompts(row, prompts) for row in self.add_rankings(rows, split)]
        texts, pairs = captions_of(dataset, split.image_ids) if dataset.captioned else (None, None)
        images = {
            "image_count": len(split),
            "images_sha256": images_digest(split.image_ids),
            "image_groups": pack_groups([dataset.group_of(image_id) for image_id in split.image_ids]),
            "caption_count": None if texts is None else len(texts),
        }
        ranked = any(row.rankings is not None for row in rows)

        def find(rows: Sequence[Variant]) -> tuple[list[Record], list[Record]]:
            """Return the rows' records without measurement, and those that are known."""
            blanks = [self.blank(row, tuning, images) for row in (*rows, *(row for row, _ in adaptive))]
            old = (fitting(blank, self.known, self.plan.timed_batches, ranked=ranked) for blank in blanks)
            return blanks, [record for record in old if record is not None]

        adaptive = [] if tuning.shots else self.adaptive_rows(rows)
        blanks, present = find(rows)
        if self.plan.match == "time" and len(present) < len(blanks):
            rows = keep_near_rows(rows, self._costs(rows), self.plan, self.say_once)
            adaptive = self.adaptive_rows(rows)
            blanks, present = find(rows)
        if len(present) == len(blanks):
            return self._add_times([*rows, *(row for row, _ in adaptive)], present)
        captions = None
        if texts is not None and pairs is not None:  # refused before images are run
            with self.progress.task(f"captions of {dataset.name}", 1) as update:
                features = caption_features(self.parts, texts, dataset.name, self.plan.device)
                update(1)
            captions = Captions(features=features, pairs=pairs)
        every = [*rows, *(self._budget_rows if adaptive else ())]
        outputs = self.outputs.find(every, split, f"{self.rows[0].model} on {dataset.name}")
        classifiers = self.classifiers(tuning, prompts) if dataset.classes else {}
        # A probe's weights have no length that cosines or a temperature could go by.
        scale = None if tuning.kind == PROBE else self.parts.model.logit_scale.exp().item()
        costs, dense, records = dict(self._costs(rows)), None, []
        for row, fixed in adaptive:
            outputs[row.key], costs[row.key] = self._deal(row, costs[fixed.key], outputs, split)
        for row, blank in zip((*rows, *(row for row, _ in adaptive)), blanks, strict=True):
            output = outputs[row.key]
            per_image = {**output.per_image, "labels": split.labels}
            if row.rankings is not None:
                per_image["golden"] = row.rankings.of(split.image_ids)
            if blank.groups is not None:
                per_image["groups"] = blank.groups
            data = MetricInput(
                features=output.features,
                per_image=per_image,
                final_tokens=output.final_tokens,
                classifier=classifiers.get(self._classifier_key(row)),
                scale=scale,
                captions=captions,
                costs={name: value for name, value in costs[row.key].items() if name in METRICS},
                dense=None if row.method == DENSE else dense,
            )
            dense = data if row.key == self.rows[0].key else dense
            fields = {name: value for name, value in costs[row.key].items() if name not in METRICS}
            records.append(replace(blank, **fields, **measurements(data)))
        return records

    @property
    def _budget_rows(self) -> list[Variant]:
        """The rows of all budgets, which adaptive rows are dealt from."""
        return [row for each in self.budgets.values() for row in each.rows]

    def adaptive_rows(self, rows: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
        """Return adaptive rows, the controls among them, each with the fixed row of equal cost."""
        fixed = [row for row in rows if row.method in self.budgets and not row.stands_alone]
        if not fixed:
            return []
        images, name = self._images_to_fit
        fitted_to = f"{len(images)} images of {name}"
        return [(adaptive_row(row, how, self.budgets[row.method], fitted_to), row) for row in fixed for how in ADAPTIVE]

    @functools.cached_property
    def _images_to_fit(self) -> tuple[Split, str]:
        """The images that budgets are fitted to, and the name of their dataset."""
        for dataset in (self.dataset, get_dataset(BUDGETS_OF)):
            part: SplitName = "val" if self.plan.split == "train" else "train"
            split = subset(dataset.split(part), BUDGET_IMAGES)
            if len(split) >= LEAST_PICTURES:
                return split, f"{part} of {dataset.name}"
        raise AssertionError

    def _deal(
        self, row: Variant, fixed: Mapping[str, Any], outputs: Mapping[str, RowOutput], split: Split
    ) -> tuple[RowOutput, dict[str, Any]]:
        """Return what an adaptive row makes of images, and what they cost: on average as much as ``fixed`` does."""
        rows, dense = self.budgets[row.method], outputs[self.rows[0].key].features
        known = [outputs[each.key] for each in rows.rows]
        errors = np.stack([cosine_distance(each.features, dense) for each in known], axis=1)
        signals = Pictures(split, np.arange(len(split)), self.tower).signals(rows.signal_at)
        budgets = self._fitted(row.method)
        cost = max(fixed["gflops"] / rows.whole, budgets.costs[-1])  # a method may reach no less
        dealt = deal(budgets, row.config[DEALT], cost, signals, errors)
        each = np.array(budgets.costs)[dealt] * rows.whole
        shared = {name: fixed[name] for name in ("uncounted_operators", "params")}
        return join_dealt(known, dealt), {**shared, "gflops": each}

    @functools.cached_property
    def _fitted(self) -> Callable[[str], Budgets]:
        """Budgets of a method by the images that aren't judged, fitted once."""

        def fit(method: str) -> Budgets:
            images, _ = self._images_to_fit
            rows = self.budgets[method]
            conditions = (self.weights, self.plan.precision, self.plan.device, torch.__version__, git_commit())
            path, known = cached_json(
                "fits", "compare", *conditions, [row.config for row in rows.rows], images.image_ids
            )
            known = known or {}
            save = functools.partial(keep_json, path, known)
            signals, errors = rows.measure(rows.rows, images, known, save, self.progress)
            return rows.fit(np.maximum(signals, LEAST), errors)

        return functools.cache(fit)

    def _classifier_key(self, row: Variant) -> str:
        """Return the key of the row whose classifier judges a row; an oracle can learn none of its own."""
        return self.rows[0].key if row.method == GOLDEN else row.key

    def _with_prompts(self, row: Variant, prompts: Prompts) -> Variant:
        """Return a row as its prompts make it."""
        if not prompts:
            return row
        tuned = prompts[self._classifier_key(row)]
        vit = row.vit if row.method == GOLDEN or tuned.vit.prompts is None else tuned.vit
        return replace(row, config=row.config | {"prompts": tuned.digest}, vit=vit)

    def _add_times(self, rows: Sequence[Variant], records: list[Record]) -> list[Record]:
        """Return records with times where some lack them, as far as the machine is free enough to take them."""
        if not any(lacks_times(record, self.plan.timed_batches) for record in records):
            return records
        costs, completed = self._costs(rows), []
        for row, record in zip(rows, records, strict=True):
            times = {entry.batch: entry for entry in (*record.latency, *costs[row.key].get("latency", ()))}
            latency = tuple(times.values())  # of all rows, so that they share rounds
            changed = latency != record.latency
            completed.append(replace(record, latency=latency, created=utc_now()) if changed else record)
        return completed

    def _costs(self, rows: Sequence[Variant]) -> Costs:
        """Measure what rows cost, once; learned visual tokens cost the same whatever they are."""
        prompted = any(row.prompted and "prompts" in row.config for row in rows)
        known, every = (self.prompted_costs, rows) if prompted else (self.costs, self.rows)
        if not known:
            known |= self._known_costs(every) or costs(every, self.plan.timed_batches, self.plan.rounds, self.progress)
        return known

    def _known_costs(self, rows: Sequence[Variant]) -> Costs:
        """Return what rows cost by known records, of whatever dataset; nothing unless each row has one with times."""
        complete, in_rounds = Costs(), Costs()
        for record in self.known:  # a dense one begins those of its rounds
            if record.method == DENSE:
                in_rounds = {row.key: {} for row in rows if row.method == GOLDEN}
            alike = record.image_size == rows[0].vit.input_size
            if alike and "gflops" in record.metrics and not lacks_times(record, self.plan.timed_batches):
                cost = {name: record.mean(name) if name in METRICS else getattr(record, name) for name in COST_FIELDS}
                setting = (record.model, record.method_config)
                in_rounds |= {row.key: cost for row in rows if (row.model, row.config) == setting}
                complete = in_rounds if len(in_rounds) == len(rows) else complete
        return complete

    @functools.cached_property
    def outputs(self) -> OutputCache:
        """What the rows make of images; a run that is stopped keeps it in a folder for these conditions."""
        here, dataset = measured_here(self.plan, self.tower.tag, self.weights), self.dataset
        images = (self.plan.split, dataset.name, dataset.condition)
        conditions = digest(here, self.rows[0].model, *images, self.fit_probes is not None)
        folder = None if self.folder is None else self.folder / conditions
        return OutputCache(self.parts.preprocess, self.progress, folder, self.fit_probes or (lambda: None))

    @functools.cached_property
    def say_once(self) -> Callable[[str], None]:
        """Say a thing once, however many tunings it holds for."""
        return functools.cache(self.progress.say)

    @functools.cached_property
    def text(self) -> Tensor:
        """(classes, D) text classifier; NaN rows for classes that can't be named."""
        return text_classifier(self.parts, self.dataset)[0]

    def classifiers(self, tuning: Tuning, prompts: Prompts) -> dict[str, Tensor]:
        """Return each row's classifier, by key: the text's, tuned or not, or a linear probe."""
        if prompts:
            return {key: tuned.classifier.cpu() for key, tuned in prompts.items()}
        if tuning.kind != PROBE:
            return dict.fromkeys((row.key for row in self.rows), self.text)
        train = draw_train(self.dataset, tuning.shots, tuning.seed)
        outputs = self.outputs.find(self.real_rows, train, f"{tuning.shots} shots of {self.dataset.name}")
        labels, count = torch.from_numpy(train.labels), len(self.dataset.classes)
        return {key: linear_probe(output.features, labels, count) for key, output in outputs.items()}

    @property
    def real_rows(self) -> list[Variant]:
        """The rows without golden ones, which need the answer."""
        return [row for row in self.rows if row.method != GOLDEN]

    def split(self, tuning: Tuning) -> Split:
        """Return the images that are judged: without a probe, only those of nameable classes."""
        whole = subset(self.dataset.split(self.plan.split), self.plan.limit)
        judged = whole if tuning.kind == PROBE or not self.dataset.classes else nameable(whole, self.text)
        if not len(judged):
            why = ", whose class or prompts the text tower knows the words of" if len(whole) else ""
            raise ValueError(f"{self.dataset.name} has no {self.plan.split} images{why}")
        return judged

    def blank(self, row: Variant, tuning: Tuning, images: Mapping[str, Any]) -> Record:
        """Return a row's record with the conditions and no measurement."""
        dataset, config, classes = self.dataset, row.config, None
        if row.method == GOLDEN and row.rankings is not None:
            made = row.rankings.provenance
            config = config | {name: value for name in PROVENANCE if (value := getattr(made, name)) is not None}
        if dataset.labelled and tuning.kind != PROBE and not named(self.text).all():
            classes = (int(named(self.text).sum()), len(self.text))
        return Record(
            created=utc_now(),
            model=row.model,
            method=row.method,
            keep=row.keep,
            method_config=config,
            dataset=dataset.name,
            dataset_revision=dataset.condition,
            split=self.plan.split,
            shots=tuning.shots,
            tuning=tuning.kind,
            prompt_tokens=tuning.prompt_tokens,
            seed=tuning.seed,
            image_size=self.rows[0].vit.input_size,
            classes_judged=classes,
            **images,
            **measured_here(self.plan, self.tower.tag, self.weights),
        )

    @functools.cached_property
    def rankings(self) -> Rankings | None:
        """Golden rankings of the split; ValueError if they are of other weights or images."""
        rankings = find_rankings(self.tower.name, self.dataset.images_of, self.plan.split)
        if rankings is None and self.plan.split != FINAL:
            self.say_once(f"no golden rankings of {self.dataset.name}; make them with: {self._command}")
        elif rankings is not None:
            rankings.require(weights=self.weights, revision=self.dataset.revision)
        return rankings

    def add_rankings(self, rows: Sequence[Variant], split: Split) -> list[Variant]:
        """Give rows the golden rankings of these images; golden rows are left out where an image lacks one."""
        if all(row.rankings is not None for row in rows if row.method != DENSE):
            return list(rows)
        if (rankings := self.rankings) is not None:
            rows = [replace(row, rankings=rankings) if row.rankings is None else row for row in rows]
            if set(split.image_ids) <= set(rankings.image_ids):
                return list(rows)
            if any(row.method == GOLDEN for row in rows):
                self.say_once(
                    f"only some of these images of {self.dataset.name} have golden rankings, so there "
                    f"is no golden row; make them with: {self._command}"
                )
        return [row for row in rows if row.method != GOLDEN]

    @property
    def _command(self) -> str:
        dataset, name = self.dataset, self.dataset.images_of
        name = dataset.asked_as if name == dataset.name else name
        flags = shlex.join((name, *dataset.asked_with, "--split", self.plan.split))
        return f"patchrank rank --model {self.tower.name} --dataset {flags} --full"


def measured_here(plan: Plan, tag: str, weights: str) -> dict[str, Any]:
    """Return the fields of ``Record`` that say of which tower and on what machine it is."""
    return {
        "version": version("clip-patchrank"),
        "tag": tag,
        "weights_sha256": weights,
        "device": plan.device,
        "device_name": device_name(plan.device),
        "precision": plan.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": version("timm"),
    }


def measurements(data: MetricInput) -> dict[str, Any]:
    """Return the fields of ``Record`` that say what was measured."""
    fields: dict[str, Any] = {
        "created": utc_now(),
        "git_commit": git_commit(),
        "metrics": measure(data),
        "feature_probe": feature_probe(data.features),
    }
    if data.taus is not None:
        ranked = int((~np.isnan(data.per_image["golden"]).any(axis=1)).sum())
        counted = int((~np.isnan(data.taus)).sum())
        fields |= {"golden_images": counted, "tau_undefined": ranked - counted}
    return fields


def linear_probe(features: Tensor, labels: Tensor, classes: int, decay: float = 1e-3) -> Tensor:
    """Fit a logistic regression without bias, (classes, D), on unit features (n, D); ``decay`` penalises weights."""
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(features @ weights.T, labels) + decay * weights.square().sum() / classes
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()
