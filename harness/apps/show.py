"""Show images beside the importance of their patches by several rankings, and what is kept."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.hints import describe_error
from harness.base.terminal import Progress
from harness.datasets import KINDS, get_dataset
from harness.datasets.images import LEAVE_OUT, read_image
from harness.measure.rows import make_row
from harness.models.towers import Tower, load_tower, no_text, undo_preprocess
from harness.records.record import GOLDEN
from harness.report.pictures import PatchRow, PatchSheet, draw
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner, final_count
from zoo.core.tokens import tokens_of, top
from zoo.loading.clip import class_features
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine, golden_importance
from zoo.towers.vit import ReducedViT

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
NO_CLASSES = 'its classes are not known (--dataset NAME or --classes "a,b,c" names them)'
NO_LABEL = "its true class is not known (--label CLASS names it)"
PREDICTOR, ATTENTION, PRESERVATION = "patchrank", "clsattn", "preservation"
ALIASES = {"predictor": PREDICTOR, GOLDEN: PRESERVATION}
NAMES = {score: f"golden {score}" for score in SCORES} | {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


@dataclass(frozen=True)
class Subject:
    """One RGB image with what is known about it; the label is a position in its classes."""

    name: str
    image: Image.Image
    label: int | None = None
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)  # for classes that come without a dataset


def find_subjects(
    places: Sequence[str], *, dataset: str | None = None, classes: Sequence[str] = (), labels: Sequence[str] = ()
) -> list[Subject]:
    """Load images from paths of files, or ``dataset:split:index``; a file of that name goes first.

    Files have the classes of ``dataset``, or ``classes``; ``labels`` are one for all or one each.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, a place that no dataset has, an unknown class, or
            classes and labels that don't fit each other or the files.
    """
    files = [place for place in places if Path(place).exists() or not PLACE.fullmatch(place)]
    source = None if dataset is None else get_dataset(dataset)
    known = tuple(classes) if source is None else source.classes
    if not files and (known or labels):
        raise ValueError(
            f"--dataset, --classes and --label are for image files, and there is none among {', '.join(places)}: "
            "these have classes and labels of their own"
        )
    if classes and source is not None:
        raise ValueError("--dataset and --classes both name classes: give one of them")
    if len(set(classes)) < len(classes) or not all(classes):
        raise ValueError(f"--classes {','.join(classes)!r}: expected names, each once")
    for label in labels:
        if label not in known:
            mend = expected(label, known) if known else 'name its classes with --dataset NAME or --classes "a,b,c"'
            raise ValueError(f"--label {label!r}: {mend}")
    if len(labels) not in (0, 1, len(files)):
        raise ValueError(f"--label: {len(labels)} labels for {len(files)} files; give one, or one each")
    positions = iter([known.index(label) for label in labels] * (len(files) if len(labels) == 1 else 1))
    about = {} if source is None else {"templates": source.templates}
    return [
        Subject(Path(place).name, _read_file(place), next(positions, None), known, **about)
        if place in files
        else _from_dataset(place)
        for place in places
    ]


def _read_file(place: str) -> Image.Image:
    if not Path(place).is_file():
        raise FileNotFoundError(
            f"image {place!r} does not exist; expected an image file, or dataset:split:index such as fashion:val:3"
        )
    return read_image(Path(place), way=LEAVE_OUT)


def _from_dataset(place: str) -> Subject:
    match = PLACE.fullmatch(place)
    assert match is not None
    dataset, index = get_dataset(match["dataset"]), match["index"]
    try:
        split = dataset.split(match["split"])  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    if not index.isdecimal() or int(index) >= len(split):
        there = f"images 0 to {len(split) - 1}" if len(split) else "no images"
        raise ValueError(f"image {place!r}: index {index!r}: {dataset.name} {match['split']} has {there}")
    example = split[int(index)]
    label = example.label if dataset.labelled else None
    name = f"{dataset.name}:{match['split']}:{index}"
    return Subject(name, example.image, label, dataset.classes, dataset.templates)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Configure what is shown beside an image.

    Attributes:
        keeps: keep rates, in (0, 1); a column of kept patches for each.
        by: ranking that decides what is kept: a golden score, a registered method, ``golden``
            (preservation) or ``predictor``; None for the predictor if there is one, else golden.
        methods: registered methods that get a column, beside predictor and CLS attention.
        left: registered methods or ``golden`` (preservation); if any, these columns alone, each with
            what the method leaves, those of one keep rate side by side.
        golden: block and windows; its score is not looked at.
        scale: size of the figure, 1 for about 2000 pixels of width.
    """

    keeps: tuple[float, ...] = (0.6,)
    by: str | None = None
    methods: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Validate, and put the names of rankings in place of their aliases."""
        if not self.keeps or len(set(self.keeps)) < len(self.keeps) or not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError(f"--keeps {self.keeps}: expected fractions in (0, 1), such as 0.6, each once")
        methods = sorted(METHODS)
        for flag, names, known in (
            ("by", (self.by,), (None, *ALIASES, *SCORES, *methods)),
            ("methods", self.methods, methods),
            ("left", self.left, [*methods, GOLDEN]),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"--{flag} {name!r}: {expected(str(name), filter(None, known))}")
        if self.left and (self.methods or self.by):
            raise ValueError(f"--left {self.left[0]!r} shows no rankings: expected no --methods and no --by with it")
        if not 0.25 <= self.scale <= 8:
            raise ValueError(f"--scale {self.scale:g}: expected a number in [0.25, 8]")
        object.__setattr__(self, "by", ALIASES.get(self.by or "", self.by))


Arrays = dict[str, dict[int, NDArray[Any]]]  # (N,) of each patch, by column and position of the image


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
    tower = load_tower(model)
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(subject.image) for subject in subjects])
    views = undo_preprocess(tower.preprocess, images).permute(0, 2, 3, 1).numpy()
    scene = Scene(tower=tower, subjects=subjects, images=images.to(device), config=config)
    columns, importance, tokens, notes = _leavings(scene) if config.left else _rankings(scene, progress)
    rows = [
        PatchRow(
            name=subject.name,
            label="" if subject.label is None else subject.classes[subject.label],
            view=views[i],
            importance={name: own[i] for name, own in importance.items() if i in own},
            tokens={name: own[i] for name, own in tokens.items() if i in own},
        )
        for i, subject in enumerate(subjects)
    ]
    grid = tower.vit.patch_embed.dynamic_feat_size(images.shape[-2:])
    sheet = PatchSheet(rows=rows, grid=(int(grid[0]), int(grid[1])), columns=columns, notes=notes)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, draw(sheet, scale=config.scale))
    return sheet


def class_text(tower: Tower, classes: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, float]:
    """Encode class names, (classes, D) unit features, and return the factor on cosines in the posterior, too.

    Raises:
        ValueError: no text tower, or a class that it has no words for.
    """
    if tower.clip is None:
        raise no_text(tower)
    model, _, tokenizer = tower.clip
    return class_features(model, tokenizer, classes, templates), float(model.logit_scale.detach().exp())


def reduced(tower: Tower, method: str, *, keep: float, block: int) -> ReducedViT:
    """Give a dense tower a method; one that ranks at a block's input prunes at ``block``, others at their own points.

    Raises what `rows.make_row` does.
    """
    point = {"reduce_at": (block,)} if issubclass(METHODS[method], Pruner) else {}
    return make_row(tower.vit, tower.arch, tower.tag, method, {"keep": keep, **point}).vit


@torch.inference_mode()
def method_maps(vit: ReducedViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a reduced tower on (B, C, H, W) images.

    Returns:
        (B, N) float importance: when a patch went, then how it was ranked at that time; and
        (B, N) bool, the patches that have a token at the end. With nothing to reduce all tie.
    """
    trace = vit.trace(images)
    cells = trace.grid[0] * trace.grid[1]
    if trace.scores is None:
        everything = torch.ones(len(images), cells, dtype=torch.bool)
        return everything.float(), everything
    after = trace.reductions[-1].after
    # One cell more than the grid has takes a fused token, which has no place in it.
    places = after.where(after >= 0, cells)
    kept = torch.zeros(len(images), cells + 1, dtype=torch.bool, device=images.device)
    return trace.scores.float().cpu(), kept.scatter(1, places, True)[:, :cells].cpu()


def most_important(importance: Tensor, keep: float) -> Tensor:
    """Return which patches a keep rate leaves, (B, N) bool; ties go to the lower position."""
    kept = top(importance, final_count(importance.shape[1], keep))
    return torch.zeros_like(importance, dtype=torch.bool).scatter(1, kept, True)


Drawing = tuple[dict[str, str], Arrays, Arrays, tuple[str, ...]]  # titles by column, importance, tokens, notes


def _own_tokens(kept: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return the token of each patch, its own where it is kept, below 0 elsewhere; (..., N) both."""
    return np.where(kept, np.arange(kept.shape[-1]), -1)


@dataclass(kw_only=True)
class Maps:
    """What is known of the patches of a scene's images, which go by position; (N,) of each."""

    importance: Arrays = field(default_factory=dict)  # by ranking, higher = keep
    kept: dict[tuple[str, float], dict[int, NDArray[Any]]] = field(default_factory=dict)  # by ranking and keep rate
    gaps: dict[str, dict[str, list[str]]] = field(
        default_factory=dict
    )  # images by reason and ranking, whose map is none

    def add_method(self, scene: Scene, method: str) -> None:
        """Run a registered method at each keep rate; its importance is that at the first one."""
        config = scene.config
        try:
            for keep in config.keeps:
                vit = reduced(scene.tower, method, keep=keep, block=config.golden.block)
                importance, kept = method_maps(vit, scene.images)
                self.importance.setdefault(method, dict(enumerate(importance.numpy())))
                self.kept[method, keep] = dict(enumerate(kept.numpy()))
        except (FileNotFoundError, ValueError) as error:
            if method in (*config.methods, config.by):
                raise
            self.gaps.setdefault(describe_error(error), {})[method] = [subject.name for subject in scene.subjects]

    def add_golden(self, scene: Scene, i: int, read_text: Callable[..., tuple[Tensor, float]]) -> None:
        """Rank an image by the scores that it has text and label for."""
        subject, image, config = scene.subjects[i], scene.images[i : i + 1], scene.config
        text, scale, reasons = None, 1.0, dict[str, str]()
        try:
            if scene.tower.clip is not None and not subject.classes:
                raise ValueError(NO_CLASSES)
            text, scale = read_text(subject.classes, subject.templates)
            text = text.to(image.device)
        except ValueError as error:
            reasons = dict.fromkeys(("label", "confidence"), str(error))
        if subject.label is None:
            reasons.setdefault("label", NO_LABEL)
        for score, reason in reasons.items():
            self.gaps.setdefault(reason, {}).setdefault(score, []).append(subject.name)
        labels = torch.tensor([subject.label or 0], device=image.device)
        scores = [score for score in SCORES if score not in reasons]
        # Each window is removed once for all scores.
        engine = GoldenEngine(scene.tower.vit, replace(config.golden, score=scores[0]), text=text, scale=scale)
        for score, importance in engine.importances(image, scores, labels).items():
            self.importance.setdefault(score, {})[i] = importance[0].cpu().numpy()
            for keep in config.keeps:
                self.kept.setdefault((score, keep), {})[i] = most_important(importance, keep)[0].cpu().numpy()

    def describe_gaps(self, names: Sequence[str]) -> list[str]:
        """Say what is left out and why, each reason once."""
        notes = []
        for reason, lacking in self.gaps.items():
            images = [name for name in names if any(name in own for own in lacking.values())]
            where = "" if images == list(names) else f" of {', '.join(images)}"
            rankings = " and ".join(NAMES.get(ranking, ranking) for ranking in lacking)
            notes.append(f"Left out: {rankings}{where}: {reason}.")
        return notes


def _rankings(scene: Scene, progress: Progress) -> Drawing:
    """Return the importance by each ranking, and what one of them keeps."""
    config, golden, names, maps = scene.config, scene.config.golden, [one.name for one in scene.subjects], Maps()
    named = [config.by] if config.by in METHODS else []
    for method in dict.fromkeys((PREDICTOR, ATTENTION, *config.methods, *named)):
        maps.add_method(scene, method)
    read_text = cache(partial(class_text, scene.tower))
    with progress.task("golden rankings", len(names)) as update:
        for i in range(len(names)):
            maps.add_golden(scene, i, read_text)
            update(i + 1)
    importance, kept = maps.importance, maps.kept
    by = config.by or (PREDICTOR if PREDICTOR in importance else PRESERVATION)
    if by not in importance:
        raise ValueError(
            f"--by {by!r} can't be had: {next(why for why, lacking in maps.gaps.items() if by in lacking)}"
        )
    columns = {}
    for ranking in sorted(importance, key=(*SCORES, *importance).index):
        columns[ranking] = NAMES.get(ranking, ranking).replace(" ", "\n")
        if ranking in METHODS and not issubclass(METHODS[ranking], Pruner):
            columns[ranking] += f"\nat keep {100 * config.keeps[0]:g} %"  # ranks otherwise at another
    percent = {keep: f"{100 * keep:g}" for keep in config.keeps}
    tokens = {f"kept {percent[k]}": {i: _own_tokens(own) for i, own in kept[by, k].items()} for k in config.keeps}
    columns |= {f"kept {own}": f"{own} % kept\nby {NAMES.get(by, by)}" for own in percent.values()}
    about = (
        f"{scene.tower.name}. Golden scores: windows of {golden.window} × {golden.window} patches, stride "
        f"{golden.stride}, removed before block {golden.block}. Colours show the rank of a patch "
        "within its image and ranking; they don't compare images."
    )
    return columns, importance, tokens, (about, *maps.describe_gaps(names))


@torch.inference_mode()
def _leavings(scene: Scene) -> Drawing:
    """Return the patch tokens that each method leaves, keep rate by keep rate."""
    tower, images, config = scene.tower, scene.images, scene.config
    columns, tokens, merging = dict[str, str](), Arrays(), dict[str, None]()
    about, golden = f"{tower.name}. Dropped patches are grey.", None
    if GOLDEN in config.left:
        by = replace(config.golden, score=PRESERVATION)
        golden = torch.cat([golden_importance(tower.vit, image[None], by) for image in images])
        about += f" golden: {config.golden.describe()}."
    for keep, method in product(config.keeps, config.left):
        column = f"{method} {100 * keep:g}"
        if method == GOLDEN:
            assert golden is not None
            kept = most_important(golden, keep).cpu().numpy()
            own, count, patches = _own_tokens(kept), int(kept[0].sum()), kept.shape[1]
        else:
            trace = reduced(tower, method, keep=keep, block=config.golden.block).trace(images)
            patches, count = trace.grid[0] * trace.grid[1], trace.final_tokens
            whole = torch.arange(patches).expand(len(images), -1)  # where nothing was reduced
            own = (tokens_of(trace.reductions, patches) if trace.reductions else whole).cpu().numpy()
            if any(step.into is not None for step in trace.reductions):
                merging[method] = None
        tokens[column] = dict(enumerate(own))
        columns[column] = f"{column} %\n{count} of {patches} tokens"
    if merging:
        names = ", ".join(merging)
        about += f" {names}: patches that share a token have their mean colour, and no line between neighbours."
    return columns, {}, tokens, (about,)
