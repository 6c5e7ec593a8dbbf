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
from harness.models.towers import Tower, load_tower, no_text, undo_preprocess, without_folders
from harness.records.record import GOLDEN
from harness.report.pictures import Arrays, PatchSheet, draw, read_comment
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner, final_count
from zoo.core.tokens import top
from zoo.loading.clip import class_features
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
NO_CLASSES = "its class is not known (images of a dataset have one, such as folder:DIR:val:0)"
PREDICTOR, ATTENTION, PRESERVATION = "patchrank", "clsattn", "preservation"
FEW, GALLERY_SCALE = 4, 0.62  # images of a gallery, and its size as a share of a sheet's 2000 pixels
NAMES = {score: f"golden {score}" for score in SCORES} | {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


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
    dataset, index = get_dataset(match["dataset"]), match["index"]
    try:
        split = dataset.split(match["split"])  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    if not index.isdecimal() or int(index) >= len(split):
        there = f"images 0 to {len(split) - 1}" if len(split) else "no images"
        raise ValueError(f"image {place!r}: index {index!r}: {dataset.name} {match['split']} has {there}")
    return make_subject(dataset, match["split"], int(index))


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


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images and the dense tower that looks at them."""

    tower: Tower
    subjects: Sequence[Subject]
    images: Tensor  # (B, C, H, W), preprocessed
    config: ShowConfig


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
    """Lay out images beside what a dense tower makes of them."""
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(subject.image) for subject in subjects])
    rows, columns = tower.vit.patch_embed.dynamic_feat_size(images.shape[-2:])
    sheet = PatchSheet(
        names=[subject.name for subject in subjects],
        labels=[subject.label for subject in subjects],
        views=undo_preprocess(tower.preprocess, images).permute(0, 2, 3, 1).numpy(),
        grid=(int(rows), int(columns)),
    )
    scene = Scene(tower=tower, subjects=subjects, images=images.to(device), config=config)
    if config.left:
        _add_leavings(scene, sheet)
    else:
        _add_rankings(scene, sheet, progress)
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


def _run_method(scene: Scene, method: str, keep: float) -> Outcome:
    row = make_reduced(scene.tower, method, keep, scene.config.golden.block)
    return run([row], scene.images)[row.key]


def _add_rankings(scene: Scene, sheet: PatchSheet, progress: Progress) -> None:
    """Add the importance by each ranking, golden ones first, and what one of them keeps."""
    config, golden = scene.config, scene.config.golden
    sheet.notes.append(
        f"{scene.tower.name}. Golden scores: windows of {golden.window} × {golden.window} patches, stride "
        f"{golden.stride}, removed before block {golden.block}. Colours show the rank of a patch "
        "within its image and ranking; they don't compare images."
    )
    by_method = _rank_by_methods(scene, sheet)
    sheet.importance = _rank_by_golden(scene, sheet, progress) | by_method
    for ranking in sheet.importance:
        sheet.columns[ranking] = NAMES[ranking].replace(" ", "\n")
    by = PREDICTOR if PREDICTOR in sheet.importance else PRESERVATION
    for keep in config.keeps:
        column = f"kept {100 * keep:g}"
        sheet.columns[column] = f"{100 * keep:g} % kept\nby {NAMES[by]}"
        if by == PREDICTOR:
            sheet.tokens[column] = dict(enumerate(tokens_at_end(_run_method(scene, by, keep), sheet.patches)))
        else:
            sheet.tokens[column] = {i: most_important(own, keep) for i, own in sheet.importance[by].items()}


def _rank_by_methods(scene: Scene, sheet: PatchSheet) -> Arrays:
    """Return the importance by predictor and CLS attention, where there are any; with nothing to reduce patches tie."""
    importance = Arrays()
    for method in (PREDICTOR, ATTENTION):
        try:
            scores = _run_method(scene, method, scene.config.keeps[0]).scores
        except (FileNotFoundError, ValueError) as error:
            sheet.notes.append(f"Left out: {NAMES[method]}: {describe_error(error)}.")
        else:
            tied = np.ones((len(sheet.names), sheet.patches))
            importance[method] = dict(enumerate(tied if scores is None else scores))
    return importance


def _rank_by_golden(scene: Scene, sheet: PatchSheet, progress: Progress) -> Arrays:
    """Return the golden importance of each image, by all scores where its dataset has classes with words for them."""

    @cache
    def read_text(classes: tuple[str, ...], templates: tuple[str, ...]) -> tuple[Tensor, float]:
        if scene.tower.clip is None:
            raise no_text(scene.tower)
        if not classes:
            raise ValueError(NO_CLASSES)
        model, _, tokenizer = scene.tower.clip
        features = class_features(model, tokenizer, classes, templates)
        return features.to(scene.images.device), float(model.logit_scale.detach().exp())

    importance: Arrays = {score: {} for score in SCORES}
    lacking: dict[str, list[str]] = {}
    with progress.task("golden rankings", len(scene.subjects)) as update:
        for i, subject in enumerate(scene.subjects):
            text, scale, label, scores = None, 1.0, 0, [PRESERVATION]
            try:
                text, scale = read_text(subject.classes, subject.templates)
                label, scores = subject.classes.index(subject.label), list(SCORES)
            except ValueError as error:
                lacking.setdefault(str(error), []).append(subject.name)
            # Each window is removed once for all scores.
            config, image = replace(scene.config.golden, score=scores[0]), scene.images[i : i + 1]
            engine = GoldenEngine(scene.tower.vit, config, text=text, scale=scale)
            labels = torch.tensor([label], device=image.device)
            for score, own in engine.importances(image, scores, labels).items():
                importance[score][i] = own[0].cpu().numpy()
            update(i + 1)
    for reason, names in lacking.items():
        where = "" if names == sheet.names else f" of {', '.join(names)}"
        sheet.notes.append(f"Left out: golden label and golden confidence{where}: {reason}.")
    return {score: own for score, own in importance.items() if own}


def _add_leavings(scene: Scene, sheet: PatchSheet) -> None:
    """Add the patch tokens that each method leaves, keep rate by keep rate."""
    tower, images, config, patches = scene.tower, scene.images, scene.config, sheet.patches
    about, golden, merging = f"{tower.name}. Dropped patches are grey.", np.empty((0, patches)), dict[str, None]()
    if GOLDEN in config.left:
        by = replace(config.golden, score=PRESERVATION)
        golden = torch.cat([golden_importance(tower.vit, image[None], by) for image in images]).cpu().numpy()
        about += f" golden: {config.golden.describe()}."
    for keep in config.keeps:
        for method in config.left:
            column = f"{method} {100 * keep:g}"
            if method == GOLDEN:
                own, count = np.stack([most_important(each, keep) for each in golden]), final_count(patches, keep)
            else:
                outcome = _run_method(scene, method, keep)
                own, count = tokens_at_end(outcome, patches), outcome.final_tokens
            if ((own >= 0) & (own != np.arange(patches))).any():
                merging[method] = None
            sheet.tokens[column] = dict(enumerate(own))
            sheet.columns[column] = f"{column} %\n{count} of {patches} tokens"
    if merging:
        names = ", ".join(merging)
        about += f" {names}: patches that share a token have their mean colour, and no line between neighbours."
    sheet.notes.append(about)
