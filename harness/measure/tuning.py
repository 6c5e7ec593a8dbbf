"""What is learned from labelled images: prompts, made once for each draw and recipe and kept, and linear probes."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.terminal import Progress
from harness.datasets.base import Dataset, Example, Split
from harness.datasets.few_shot import OURS, FewShot, batches, draw, undo_preprocess
from harness.datasets.text_features import text_classifier
from harness.measure.rows import OutcomeCache, Variant, patch_features, require_rows, rows_of, run_blocks
from harness.records.metrics import predicted
from harness.records.record import DENSE, Tuning
from zoo.core.files import cache_file, digest, fingerprint, from_json
from zoo.core.host import Host
from zoo.core.recipes import TuneConfig
from zoo.core.settings import precision_on
from zoo.learning.tuning import Labelled, tune
from zoo.loading.adopt import add_prompts, require_promptable
from zoo.loading.learned_files import PromptFile
from zoo.loading.towers import Tower, load_tower, split_method
from zoo.towers.vit import TimmHost

IMAGES = 100  # of train that probes of foreground are fitted to, and of val that choose strength and threshold
STRENGTHS = tuple(10.0**power for power in range(-6, 1))  # of ridge regression of -1 and 1 on unit features
THRESHOLDS = tuple(tenth / 10 for tenth in range(-6, 3))
Patches = Iterable[tuple[str, Tensor, Tensor]]  # a row's key, unit features (B, N, D) and foreground (B, N) bool
T = TypeVar("T")


def tuning_of(file: PromptFile) -> Tuning:
    """Return what prompts in a file were learned from; ValueError if it isn't a number of shots, as records say it."""
    learned, recipe = file.provenance, file.recipe
    facts = {"shots": learned.get("shots"), "seed": learned.get("draw"), "kind": recipe.get("tokens")}
    try:
        tuning: Tuning = from_json(Tuning, facts | {"prompt_tokens": recipe.get("count")}, "tuning")
    except ValueError as error:
        raise ValueError(f"prompts {str(file.path)!r} don't say what they were learned from: {error}") from error
    return tuning


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A model with the prompts that were tuned on it."""

    vit: TimmHost  # maps images to the joint space, with learned visual tokens if there are any
    classifier: Tensor  # (classes, D) unit text features
    file: PromptFile

    @classmethod
    def of(cls, vit: Host, file: PromptFile) -> "Tuned":
        """Give a model the prompts of a file; ValueError if they were tuned on another tower."""
        return cls(vit=add_prompts(vit, file, classify=False), classifier=file.load()["classifier"], file=file)

    @property
    def digest(self) -> str:
        """16 hex digits that tell these prompts from others."""
        return digest(self.file.path)


def read_if_valid(
    path: Path, read: Callable[[Path], T], load: Callable[[T], object], words: str, progress: Progress
) -> T | None:
    """Return what was learned in an earlier run, if its file is there; None, with ``words``, if it can't be loaded."""
    if not path.is_file():
        return None
    try:
        file = read(path)
        load(file)
    except ValueError as error:
        reason = str(error).partition(";")[0]  # what follows mends it by hand
        progress.say(f"{words}: {reason}")
        return None
    return file


@dataclass
class Tuner:
    """Tune models of one tower, which has a text tower, on labelled images of one dataset."""

    tower: Tower
    dataset: Dataset
    _: KW_ONLY
    weights: str  # the fingerprint of the image tower's
    progress: Progress
    draws: str = OURS  # of the labelled images, see ``draw``

    def __post_init__(self) -> None:
        self.parts = self.tower.require_clip()
        require_promptable(self.tower.vit)
        self._outcomes = OutcomeCache(self.parts.preprocess, self.progress)
        self._pixels: dict[str, Tensor] = {}
        self._say_once = functools.cache(self.progress.say)  # not for each seed and row

    @functools.cached_property
    def text(self) -> tuple[Tensor, tuple[str, ...]]:
        """The text classifier, and the classes that it leaves out."""
        return text_classifier(self.parts, self.dataset)

    def few(self, shots: int, seed: int) -> FewShot:
        """Draw the labelled images of a seed; raise what ``draw`` does."""
        return draw(self.dataset, shots, seed, self.draws)

    def tune(self, rows: Sequence[Variant], shots: int, seed: int, config: TuneConfig) -> dict[str, Tuned]:
        """Tune each row on ``shots`` labelled images per class, or take what was tuned before, by the row's key.

        Golden rows can't be tuned. ``seed`` draws the images; the recipe has its own. Raises what ``draw`` and
        ``zoo.tune`` do, and ValueError for a class that can't be named.
        """
        if self.text[1]:
            what = "tokens are learned for every class; --skip-unknown-classes leaves some out"
            raise ValueError(f"{self.dataset.name}: {what}, use a model with a full vocabulary")
        like = next(rows[0].vit.block_modules.parameters())
        config = replace(config, dtype=precision_on(like.device, config.dtype))
        self.parts.model.text.to(like.device)
        few = self.few(shots, seed)
        paths = {row.key: self.path(row, few, shots, seed, config) for row in rows}
        files = {key: self.read_cached(path) for key, path in paths.items()}
        if missing := [row for row in rows if files[row.key] is None]:
            if config.tokens == "t":
                for split in few:  # common blocks once
                    self._outcomes.find(missing, split, self.dataset.name)
            what = config.describe()
            self._say_once(f"{self.dataset.name}, {shots} shots: {what}")
            for row in missing:
                self._tune(row, few, shots, seed, config, paths[row.key])
        return {row.key: Tuned.of(row.vit, files[row.key] or PromptFile.read(paths[row.key])) for row in rows}

    def read_cached(self, path: Path) -> PromptFile | None:
        """Return the prompts of an earlier run; None, with a note, of a file that can't be loaded any more."""
        words = "prompts of an earlier run are tuned anew"
        return read_if_valid(path, PromptFile.read, PromptFile.load, words, self.progress)

    def judge(self, row: Variant, tuned: Tuned, split: Split) -> tuple[float, float]:
        """Return a row's top-1 on labelled images, as it is, by text, and tuned."""
        text, _ = self.text
        pairs = ((row, text), (replace(row, vit=tuned.vit), tuned.classifier))
        features = [self._outcomes.find([own], split, self.dataset.name)[row.key].features for own, _ in pairs]
        found = [predicted(f, by) == split.labels for f, (_, by) in zip(features, pairs, strict=True)]
        return float(found[0].mean()), float(found[1].mean())

    def path(self, row: Variant, few: FewShot, shots: int, seed: int, config: TuneConfig) -> Path:
        """Return where prompts are kept: by all that decides them."""
        like = next(row.vit.block_modules.parameters())
        conditions = [
            *(self.tower.arch, self.tower.tag, self.weights, row.model, row.config, str(like.dtype)),
            *(self.dataset.name, self.dataset.condition, shots, seed, asdict(config)),
            *(few.train.image_ids, few.val.image_ids, like.device.type, torch.__version__),
        ]
        return cache_file("prompts", f"{digest(conditions, length=20)}.safetensors")

    def _tune(self, row: Variant, few: FewShot, shots: int, seed: int, config: TuneConfig, path: Path) -> None:
        """Tune one row and write the result; go on where a stopped run was."""
        checkpoint = path.with_suffix(".pt")
        what = f"{config.tokens} for {row.key}, {self.dataset.name}, {shots} shots, draw {seed}"
        train, val = (self._labelled(row, split, config) for split in few)
        model = (row.vit, self.parts, self.dataset.classes, self.dataset.templates)
        with self.progress.task(f"{what}, steps", config.total_steps) as update:
            learner = tune(*model, train, val, config, checkpoint=checkpoint, on_step=update)
        provenance = {"tuned_on": row.model, "method": row.config, "shots": shots, "draw": seed, "draws": self.draws}
        provenance["dataset_revision"] = self.dataset.condition
        facts = {"model": self.tower.arch, "tag": self.tower.tag, "dataset": self.dataset.name}
        learner.save(path, row.vit, self.parts.model.logit_scale.item(), provenance, **facts)
        checkpoint.unlink(missing_ok=True)

    def _labelled(self, row: Variant, split: Split, config: TuneConfig) -> Labelled:
        """Return a split as features of a row, or as images where these must be run anew."""
        labels = torch.from_numpy(split.labels)
        if config.tokens == "t":
            return Labelled(self._outcomes.of(row.key, split.image_ids).features, labels)
        for index, name in enumerate(split.image_ids):
            if name not in self._pixels:
                image: Tensor = self.parts.preprocess(split[index].image)
                self._pixels[name] = image.bfloat16() if config.dtype == "bfloat16" else image
        return Labelled(torch.stack([self._pixels[name] for name in split.image_ids]), labels)


def load_tuner(name: str, dataset: Dataset, *, draws: str, device: str, progress: Progress) -> tuple[Variant, Tuner]:
    """Load a model with its text tower as a row, and what tunes it on a dataset."""
    dense, method, keep = split_method(name)
    pair = (method or DENSE, keep)
    require_rows(dense, [pair])
    tower = load_tower(dense)
    parts = tower.require_clip()
    (row,) = rows_of(tower, [pair])
    weights, parts.model.visual = fingerprint(row.vit), row.vit
    parts.model.to(device)
    return row, Tuner(tower, dataset, weights=weights, draws=draws, progress=progress)


def linear_probe(features: Tensor, labels: Tensor, classes: int, decay: float = 1e-3) -> Tensor:
    """Fit a logistic regression without bias, (classes, D), on unit features (n, D); ``decay`` penalises weights."""
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(features @ weights.T, labels)
        loss = loss + decay * weights.square().sum() / classes
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def true_foreground(examples: Sequence[Example], preprocess: Any, vit: Host) -> Tensor:
    """Return which patches are at least half foreground by the images' masks, as a tower sees them, (B, N) bool."""
    masks = [Image.fromarray(mask).convert("RGB") for example in examples if (mask := example.mask) is not None]
    assert len(masks) == len(examples)
    seen = undo_preprocess(preprocess, torch.stack([preprocess(mask) for mask in masks]))
    return (F.adaptive_avg_pool2d(seen[:, 0], vit.grid).flatten(1) >= 0.5).to(next(vit.parameters()).device)


def patches_of(rows: Sequence[Variant], split: Split, preprocess: Any, update: Callable[[int], None]) -> Patches:
    """Yield each row's features of all patches, a batch of a split after the other; ``update`` takes images done."""
    like, done = next(rows[0].vit.parameters()), 0
    for examples, images in batches(split, preprocess):
        truth = true_foreground(examples, preprocess, rows[0].vit)
        for row, tokens in run_blocks(rows, images.to(like)):
            yield row.key, patch_features(row.vit, tokens), truth
        update(done := done + len(examples))


def iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over the union of sets of patches, (B, N, C) and (B, N) bool, (B, C); 1 of empty ones."""
    both, either = (sets.sum(dim=1) for sets in (predicted & truth.unsqueeze(2), predicted | truth.unsqueeze(2)))
    return torch.where(either > 0, both / either, 1.0)


def with_ones(features: Tensor) -> Tensor:
    """Return features (B, N, D) with a one behind each, for a bias, (B, N, D + 1)."""
    return F.pad(features, (0, 1), value=1.0)


def judge_foreground(
    probes: Mapping[str, Tensor], dense: str, key: str, features: Tensor, truth: Tensor
) -> NDArray[np.float32]:
    """Return the IoU of each image, (B, 2): by the ``dense`` row's probe, and by the one fitted to the row's own."""
    weights = torch.stack((probes[dense], probes[key]), dim=1)
    return iou(with_ones(features) @ weights > 0, truth).cpu().numpy()


def fit_probes(train: Patches, val: Patches) -> dict[str, Tensor]:
    """Fit a probe of foreground to each row's ``train`` patches by ridge regression, in closed form.

    Strength and threshold are those of the highest mean IoU on ``val``. Weights (D + 1,) are by the row's key, the
    bias last.
    """
    grams, moments = dict[str, Any](), dict[str, Any]()
    for key, features, truth in train:
        x, y = with_ones(features).flatten(0, 1), 2.0 * truth.flatten() - 1
        grams[key] = grams.get(key, 0) + (x.T @ x).double()
        moments[key] = moments.get(key, 0) + (x.T @ y).double()
    candidates = {key: _solve(gram, moments[key]).float() for key, gram in grams.items()}
    sums = {key: torch.zeros(own.shape[1], device=own.device) for key, own in candidates.items()}
    for key, features, truth in val:
        sums[key] = sums[key] + iou(with_ones(features) @ candidates[key] > 0, truth).sum(dim=0)
    return {key: own[:, sums[key].argmax()] for key, own in candidates.items()}


def _solve(gram: Tensor, moment: Tensor) -> Tensor:
    """Return weights of each strength and threshold, (D + 1, C); the bias isn't penalised."""
    count, penalty = gram[-1, -1], torch.ones_like(moment)
    penalty[-1] = 0
    solved = [torch.linalg.solve(gram / count + strength * penalty.diag(), moment / count) for strength in STRENGTHS]
    every = torch.stack(solved, dim=1).repeat_interleave(len(THRESHOLDS), dim=1)
    every[-1] -= torch.tensor(THRESHOLDS, dtype=every.dtype, device=every.device).repeat(len(STRENGTHS))
    return every
