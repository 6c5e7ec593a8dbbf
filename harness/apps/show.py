"""Show images beside the importance of their patches by several rankings, and what is kept."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.hints import describe_error
from harness.base.terminal import Progress
from harness.datasets import KINDS, get_dataset
from harness.datasets.base import Dataset
from harness.datasets.images import decode_image
from harness.measure.plan import Plan
from harness.measure.rows import Outcome, Variant, make_row, run
from harness.models.towers import Tower, load_tower, undo_preprocess, without_folders
from harness.records.record import GOLDEN
from harness.report.pictures import PatchSheet, draw, read_comment
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner, final_count
from zoo.core.tokens import top
from zoo.loading.clip import class_features
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
NO_CLASSES = "its class is not known (images of a dataset have one, such as folder:DIR:val:0)"
PREDICTOR, ATTENTION, PRESERVATION = "patchrank", "clsattn", "preservation"
FEW, GALLERY_SCALE = 4, 0.62  # images of a gallery, and its size as a share of a sheet's 2000 pixels
NAMES = {score: f"golden\n{score}" for score in SCORES} | {PREDICTOR: "predictor", ATTENTION: "CLS\nattention"}
Rankings = dict[str, dict[int, NDArray[Any]]]  # (N,) importance by name and image


class Subject(NamedTuple):
    """One RGB image with what is known about it."""

    name: str
    image: Image.Image
    label: str = ""  # its class, empty where unknown
    classes: tuple[str, ...] = ()  # of its dataset
    templates: tuple[str, ...] = ()


def find_subject(place: str) -> Subject:
    """Load an image from the path of a file, or ``dataset:split:index``; a file of that name goes first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, or a place that no dataset has.
    """
    match = None if Path(place).exists() else PLACE.fullmatch(place)
    if match is None:
        if not Path(place).is_file():
            raise FileNotFoundError(
                f"image {place!r} does not exist; expected an image file, or dataset:split:index such as fashion:val:3"
            )
        return Subject(Path(place).name, decode_image(Path(place).read_bytes(), repr(place)))
    dataset, index, split = get_dataset(match["dataset"]), match["index"], match["split"]
    try:
        count = len(dataset.split(split))  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    if not index.isdecimal() or int(index) >= count:
        there = f"images 0 to {count - 1}" if count else "no images"
        raise ValueError(f"image {place!r}: index {index!r}: {dataset.name} {split} has {there}")
    return make_subject(dataset, split, int(index))


def make_subject(dataset: Dataset, split: Any, index: int) -> Subject:
    """Take an image of a dataset, with its class if it has one."""
    example, name = dataset.split(split)[index], f"{dataset.name}:{split}:{index}"
    if not dataset.labelled:
        return Subject(name, example.image)
    return Subject(name, example.image, dataset.classes[example.label], dataset.classes, dataset.templates)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Configure what is shown beside an image.

    Attributes:
        keeps: keep rates, in (0, 1); a column for each of what the predictor keeps, or else the golden ranking.
        left: registered methods or ``golden`` (preservation); if any, these columns alone, each with
            what the method leaves, those of one keep rate side by side.
        golden: block and windows; its score is not looked at.
        scale: size of the figure, 1 for about 2000 pixels of width.
    """

    keeps: tuple[float, ...] = (0.6,)
    left: tuple[str, ...] = ()
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.keeps or len(set(self.keeps)) < len(self.keeps) or not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError(f"--keeps {self.keeps}: expected fractions in (0, 1), such as 0.6, each once")
        for name in self.left:
            if name not in (known := [*sorted(METHODS), GOLDEN]):
                raise ValueError(f"--left {name!r}: {expected(name, known)}")
        if not 0.25 <= self.scale <= 8:
            raise ValueError(f"--scale {self.scale:g}: expected a number in [0.25, 8]")


def show(
    model: str, subjects: Sequence[Subject], config: ShowConfig, out: Path, *, progress: Progress, device: str = "cpu"
) -> PatchSheet:
    """Draw images beside what a dense tower (see ``towers.load_tower``) makes of them, as a PNG.

    Raises:
        ValueError: a name or setting that doesn't fit, or nothing to decide what is kept.
        FileNotFoundError: weights are missing, or the predictor of a required method.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"--output {str(out)!r}: expected a file's name that ends in .png")
    sheet = make_sheet(load_tower(model), subjects, config, progress=progress, device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, draw(sheet, scale=config.scale))
    return sheet


def draw_galleries(plan: Plan, datasets: Iterable[str], folder: Path, progress: Progress) -> None:
    """Draw what the methods of a comparison leave of a few images of each dataset, at its lowest keep rate.

    ``datasets`` have been read, and go by their own names. A picture that is there already stays.
    """
    methods, keep = tuple(name for name in plan.methods if name in METHODS), min(plan.keeps)
    config = ShowConfig(keeps=(keep,), left=methods, scale=GALLERY_SCALE)
    for model in plan.models if methods else ():
        load, name = cache(partial(load_tower, model)), without_folders(model)
        for dataset in map(get_dataset, datasets):
            slug = re.sub(r"[^A-Za-z0-9]+", "_", f"{dataset.name}_{name}")[:120]
            path, whole = folder / f"gallery_{slug}.jpg", len(dataset.split(plan.split))
            count = min(FEW, whole)
            alt = f"What is left of {count} images at keep {100 * keep:g} % by {', '.join(methods)}"
            comment = f"{dataset.name} {plan.split}, {name}\n{alt}"
            if path.is_file() and read_comment(path) == comment:
                continue
            subjects = [make_subject(dataset, plan.split, at * whole // count) for at in range(count)]
            sheet = make_sheet(load(), subjects, config, progress=progress, device=plan.device)
            jpeg = {"quality": 80, "comment": comment.encode()}
            write_whole(path, draw(sheet, config.scale, "jpg", pil_kwargs=jpeg))


def make_sheet(
    tower: Tower, subjects: Sequence[Subject], config: ShowConfig, *, progress: Progress, device: str
) -> PatchSheet:
    """Lay out images beside their rankings, golden ones first, and what is left of them."""
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(subject.image) for subject in subjects])
    rows, columns = tower.vit.patch_embed.dynamic_feat_size(images.shape[-2:])
    sheet = PatchSheet(
        names=[subject.name for subject in subjects],
        labels=[subject.label for subject in subjects],
        views=undo_preprocess(tower.preprocess, images).permute(0, 2, 3, 1).numpy(),
        grid=(int(rows), int(columns)),
        notes=[f"{tower.name}. Dropped patches are grey."],
    )
    images, golden = images.to(device), config.golden
    rankings, left = Rankings(), config.left
    if not left or GOLDEN in left:
        scores = [PRESERVATION] if left else list(SCORES)
        rankings = _rank_by_golden(tower, subjects, images, golden, scores, sheet.notes, progress)
        windows = f"windows of {golden.window} × {golden.window} patches, stride {golden.stride}"
        sheet.notes[0] += f" Golden rankings: {windows}, removed before block {golden.block}."
    if not left:
        rankings |= _rank_by_methods(tower, images, golden.block, sheet.notes)
        sheet.notes[0] += " Colours show the rank of a patch within its image and ranking; they don't compare images."
        for name, own in rankings.items():
            sheet.columns[name], sheet.panels[name] = NAMES[name], own
        left = (PREDICTOR if PREDICTOR in rankings else GOLDEN,)
    patches, merges = sheet.grid[0] * sheet.grid[1], False
    for keep in config.keeps:
        for method in left:
            if method == GOLDEN:
                tokens = np.stack([most_important(each, keep) for each in rankings[PRESERVATION].values()])
                count = final_count(patches, keep)
            else:
                outcome = _run_method(tower, images, method, keep, golden.block)
                tokens, count = tokens_at_end(outcome, patches), outcome.final_tokens
            merges |= bool(((tokens >= 0) & (tokens != np.arange(patches))).any())
            column = f"{method} {100 * keep:g}"
            sheet.columns[column] = f"{column} %\n{count} of {patches} tokens"
            sheet.panels[column] = dict(enumerate(tokens))
    if merges:
        sheet.notes[0] += " Patches that share a token have their mean colour and no line between them."
    return sheet


def make_reduced(tower: Tower, method: str, keep: float, block: int) -> Variant:
    """Give a dense tower a method; one that ranks at a block's input prunes at ``block``, others at their own points.

    Raises what `rows.make_row` does.
    """
    point = {"reduce_at": (block,)} if issubclass(METHODS[method], Pruner) else {}
    return make_row(tower.vit, tower.arch, tower.tag, method, {"keep": keep, **point})


def tokens_at_end(outcome: Outcome, patches: int) -> NDArray[np.integer]:
    """Return (n, N) the position of the token that each patch is in at the end, -1 if it was dropped."""
    whole = np.tile(np.arange(patches), (len(outcome.features), 1))
    return whole if outcome.token is None else outcome.token


def most_important(importance: NDArray[np.floating], keep: float) -> NDArray[np.integer]:
    """Return the patches (N,) that a keep rate leaves, each its own position, -1 elsewhere; of equals the first."""
    kept = top(torch.from_numpy(importance)[None], final_count(len(importance), keep))[0].numpy()
    tokens = np.full(len(importance), -1)
    tokens[kept] = kept
    return tokens


def _run_method(tower: Tower, images: Tensor, method: str, keep: float, block: int) -> Outcome:
    row = make_reduced(tower, method, keep, block)
    return run([row], images)[row.key]


def _rank_by_methods(tower: Tower, images: Tensor, block: int, notes: list[str]) -> Rankings:
    """Return the importance by predictor and CLS attention at a block, where there are any."""
    rankings = Rankings()
    for method in (PREDICTOR, ATTENTION):
        try:
            scores = _run_method(tower, images, method, 0.5, block).scores  # the same at any keep rate
        except (FileNotFoundError, ValueError) as error:
            notes.append(f"Left out: {' '.join(NAMES[method].split())}: {describe_error(error)}.")
        else:
            assert scores is not None
            rankings[method] = dict(enumerate(scores))
    return rankings


def _rank_by_golden(
    tower: Tower,
    subjects: Sequence[Subject],
    images: Tensor,
    config: GoldenConfig,
    scores: Sequence[str],
    notes: list[str],
    progress: Progress,
) -> Rankings:
    """Return the golden importance of each image, by scores of classes where its dataset has words for them."""

    @cache
    def read_text(classes: tuple[str, ...], templates: tuple[str, ...]) -> tuple[Tensor, float]:
        model, _, tokenizer = tower.require_clip()
        if not classes:
            raise ValueError(NO_CLASSES)
        features = class_features(model, tokenizer, classes, templates)
        return features.to(images.device), float(model.logit_scale.detach().exp())

    rankings: Rankings = {score: {} for score in scores}
    lacking: dict[str, list[str]] = {}
    with progress.task("golden rankings", len(subjects)) as update:
        for i, subject in enumerate(subjects):
            text, scale, label, own = None, 1.0, 0, [PRESERVATION]
            if len(scores) > 1:
                try:
                    text, scale = read_text(subject.classes, subject.templates)
                    label, own = subject.classes.index(subject.label), list(scores)
                except ValueError as error:
                    lacking.setdefault(str(error), []).append(subject.name)
            engine = GoldenEngine(tower.vit, replace(config, score=own[0]), text=text, scale=scale)
            labels = torch.tensor([label], device=images.device)
            # Each window is removed once for all scores.
            for score, importance in engine.importances(images[i : i + 1], own, labels).items():
                rankings[score][i] = importance[0].cpu().numpy()
            update(i + 1)
    for reason, names in lacking.items():
        where = "" if len(names) == len(subjects) else f" of {', '.join(names)}"
        notes.append(f"Left out: golden label and golden confidence{where}: {reason}.")
    return {score: own for score, own in rankings.items() if own}
