"""What is learned from labelled images: prompts, made once for each draw and recipe and kept, and linear probes."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from harness.base.terminal import Progress
from harness.datasets.base import Dataset, Split
from harness.datasets.few_shot import OURS, FewShot, draw
from harness.datasets.text_features import text_classifier
from harness.learning.sources import checkpoint_of
from harness.measure.rows import OutputCache, Tuned, Variant, require_rows, rows_of
from harness.records.metrics import predicted
from harness.records.record import DENSE, Tuning
from zoo.core.digests import digest, fingerprint
from zoo.core.files import cache_file
from zoo.core.json_reader import from_json
from zoo.core.recipes import TuneConfig
from zoo.core.settings import precision_on
from zoo.learning.tuning import Labelled, tune
from zoo.loading.adopt import require_promptable
from zoo.loading.learned_files import PromptFile
from zoo.loading.towers import Tower, load_tower, split_method

T = TypeVar("T")


def tuning_of(file: PromptFile) -> Tuning:
    """Return what prompts in a file were learned from; ValueError if the file doesn't say the shots and the recipe."""
    learned, recipe = file.provenance, file.recipe
    fields = {"shots": learned.get("shots"), "seed": learned.get("draw")}
    fields |= {"kind": recipe.get("tokens"), "prompt_tokens": recipe.get("count")}
    try:
        return from_json(Tuning, fields, "tuning")
    except ValueError as error:
        raise ValueError(f"prompts {str(file.path)!r} don't say what they were learned from: {error}") from error


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
        self._outputs = OutputCache(self.parts.preprocess, self.progress)
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
            raise ValueError(
                f"{self.dataset.name}: tokens are learned for every class; --skip-unknown-classes leaves some out, use "
                "a model with a full vocabulary"
            )
        like = next(rows[0].vit.block_modules.parameters())
        config = replace(config, precision=precision_on(like.device, config.precision))
        self.parts.model.text.to(like.device)
        few = self.few(shots, seed)
        paths = {row.key: self.path(row, few, shots, seed, config) for row in rows}
        files = {key: self.read_cached(path) for key, path in paths.items()}
        if missing := [row for row in rows if files[row.key] is None]:
            if config.tokens == "t":
                for split in few:  # common blocks once
                    self._outputs.find(missing, split, self.dataset.name)
            self._say_once(f"{self.dataset.name}, {shots} shots: {config.describe()}")
            for row in missing:
                self._tune(row, few, shots, seed, config, paths[row.key])
        return {row.key: Tuned.of(row.vit, files[row.key] or PromptFile.read(paths[row.key])) for row in rows}

    def read_cached(self, path: Path) -> PromptFile | None:
        """Return the prompts of an earlier run; None, with a note, of a file that can't be loaded any more."""
        words = "prompts of an earlier run are tuned anew"
        return read_if_valid(path, PromptFile.read, PromptFile.load, words, self.progress)

    def judge(self, row: Variant, tuned: Tuned, split: Split) -> tuple[float, float]:
        """Return a row's top-1 on labelled images by the text classifier, and with its prompts."""
        shares = []
        for variant, classifier in ((row, self.text[0]), (replace(row, vit=tuned.vit), tuned.classifier)):
            features = self._outputs.find([variant], split, self.dataset.name)[row.key].features
            shares.append(float((predicted(features, classifier) == split.labels).mean()))
        return shares[0], shares[1]

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
        label = f"{config.tokens} for {row.key}, {self.dataset.name}, {shots} shots, draw {seed}, steps"
        train, val = (self._labelled(row, split, config) for split in few)
        model = (row.vit, self.parts, self.dataset.classes, self.dataset.templates)
        with checkpoint_of(path.stem) as checkpoint:
            with self.progress.task(label, config.total_steps) as update:
                learner = tune(*model, train, val, config, checkpoint=checkpoint, on_step=update)
            provenance = {"tuned_on": row.model, "method": row.config, "shots": shots, "draw": seed}
            provenance |= {"draws": self.draws, "dataset_revision": self.dataset.condition}
            names = {"model": self.tower.arch, "tag": self.tower.tag, "dataset": self.dataset.name}
            learner.save(path, row.vit, self.parts.model.logit_scale.item(), provenance, **names)

    def _labelled(self, row: Variant, split: Split, config: TuneConfig) -> Labelled:
        """Return a split as features of a row, or as images where these must be run anew."""
        labels = torch.from_numpy(split.labels)
        if config.tokens == "t":
            return Labelled(self._outputs.of(row.key, split.image_ids).features, labels)
        for index, name in enumerate(split.image_ids):
            if name not in self._pixels:
                image: Tensor = self.parts.preprocess(split[index].image)
                self._pixels[name] = image.bfloat16() if config.precision == "bfloat16" else image
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
