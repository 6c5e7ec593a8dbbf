"""Show images beside the importance of their patches by several rankings, and what is kept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from harness.golden.maps import (
    class_text,
    golden_maps,
    method_maps,
    most_important,
    patch_grid,
    reduced,
    undo_preprocess,
)
from harness.models.towers import Tower, load_tower
from harness.records.conditions import GOLDEN
from harness.report.patches import PatchRow, PatchSheet, draw
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner
from zoo.core.tokens import tokens_of
from zoo.ranking.golden import SCORES, GoldenConfig

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
TEMPLATES = ("a photo of a {}.",)  # for classes that come without a dataset
NO_CLASSES = 'its classes are not known (--dataset NAME or --classes "a,b,c" names them)'
NO_LABEL = "its true class is not known (--label CLASS names it)"

PREDICTOR, ATTENTION = "patchrank", "clsattn"
ALIASES = {"predictor": PREDICTOR, GOLDEN: "preservation"}
NAMES = {score: f"golden {score}" for score in SCORES} | {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


@dataclass(frozen=True)
class Subject:
    """One RGB image with what is known about it; the label is a position in its classes."""

    name: str
    image: Image.Image
    label: int | None = None
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = TEMPLATES


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
    files = [place for place in places if _is_file(place)]
    names, templates = _classes(dataset, classes)
    if not files and (names or labels):
        raise ValueError(
            f"--dataset, --classes and --label are for image files, and there is none among {', '.join(places)}: "
            "these have classes and labels of their own"
        )
    positions = iter(_labels(labels, names, len(files)))
    return [
        Subject(Path(place).name, _image(place), next(positions), names, templates)
        if _is_file(place)
        else _from_dataset(place)
        for place in places
    ]


def _is_file(place: str) -> bool:
    return Path(place).exists() or not PLACE.fullmatch(place)


def _classes(dataset: str | None, classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if dataset is None:
        if len(set(classes)) < len(classes) or not all(classes):
            raise ValueError(f"--classes {','.join(classes)!r}: expected names, each once")
        return tuple(classes), TEMPLATES
    if classes:
        raise ValueError("--dataset and --classes both name classes: give one of them")
    source = get_dataset(dataset)
    return source.classes, source.templates


def _labels(labels: Sequence[str], classes: tuple[str, ...], files: int) -> list[int | None]:
    if not labels:
        return [None] * files
    if not classes:
        raise ValueError(
            f"--label {labels[0]!r}: a label needs the classes that it is one of; name them with "
            '--dataset NAME or --classes "a,b,c"'
        )
    for label in labels:
        if label not in classes:
            raise ValueError(f"--label {label!r}: {expected(label, classes)}")
    if len(labels) not in (1, files):
        raise ValueError(f"--label: {len(labels)} labels for {files} files; give one, or one each")
    return [classes.index(label) for label in (labels if len(labels) > 1 else [*labels] * files)]


def _image(place: str) -> Image.Image:
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(
            f"image {place!r} does not exist; expected an image file, or dataset:split:index such as fashion:val:3"
        )
    return read_image(path, way=LEAVE_OUT)


def _from_dataset(place: str) -> Subject:
    match = PLACE.fullmatch(place)
    assert match is not None
    dataset, index = get_dataset(match["dataset"]), match["index"]
    try:
        split = dataset.split(match["split"])  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    if not len(split):
        raise ValueError(f"image {place!r}: {dataset.name} {match['split']} has no images")
    if not index.isdecimal() or int(index) >= len(split):
        raise ValueError(
            f"image {place!r}: index {index!r}: {dataset.name} {match['split']} has images 0 to {len(split) - 1}"
        )
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
        for keep in self.keeps:
            if not 0 < keep < 1:
                raise ValueError(f"--keeps {keep:g}: expected fractions in (0, 1), such as 0.6")
        if not self.keeps or len(set(self.keeps)) < len(self.keeps):
            raise ValueError(f"--keeps {self.keeps}: expected at least one rate, each once")
        known = [*ALIASES, *SCORES, *sorted(METHODS)]
        for flag, given, names in (
            ("by", [self.by] if self.by is not None else [], known),
            ("methods", self.methods, sorted(METHODS)),
            ("left", self.left, sorted((*METHODS, GOLDEN))),
        ):
            for name in given:
                if name not in names:
                    raise ValueError(f"--{flag} {name!r}: {expected(name, names)}")
        if self.left and (self.methods or self.by):
            raise ValueError(
                "--left shows what methods leave, and no rankings: expected no --methods and no --by with it"
            )
        if not 0.25 <= self.scale <= 8:
            raise ValueError(f"--scale {self.scale:g}: expected a number in [0.25, 8]")
        object.__setattr__(self, "by", ALIASES.get(self.by or "", self.by))


Columns = Mapping[str, Mapping[int, NDArray[Any]]]  # by column and position of the image


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images and the dense tower that looks at them."""

    tower: Tower
    subjects: Sequence[Subject]
    images: Tensor  # (B, C, H, W), preprocessed
    views: NDArray[np.floating]  # (B, H, W, 3), the same in [0, 1]
    config: ShowConfig

    def sheet(
        self, columns: Mapping[str, str], importance: Columns, tokens: Columns, notes: Sequence[str]
    ) -> PatchSheet:
        """Put what is known of the patches into a sheet; see `PatchRow`."""
        rows = [
            PatchRow(
                name=subject.name,
                label="" if subject.label is None else subject.classes[subject.label],
                view=self.views[i],
                importance={name: own[i] for name, own in importance.items() if i in own},
                tokens={name: own[i] for name, own in tokens.items() if i in own},
            )
            for i, subject in enumerate(self.subjects)
        ]
        return PatchSheet(rows=rows, grid=patch_grid(self.tower.vit, self.images), columns=columns, notes=notes)


@dataclass(kw_only=True)
class Maps:
    """What is known of the patches of a scene.

    Attributes:
        importance: ranking -> position -> (N,) float, higher = keep.
        kept: (ranking, keep rate) -> position -> (N,) bool.
        gaps: reason -> rankings and positions that have nothing.
    """

    scene: Scene
    importance: dict[str, dict[int, NDArray[np.floating]]] = field(default_factory=dict)
    kept: dict[tuple[str, float], dict[int, NDArray[np.bool_]]] = field(default_factory=dict)
    gaps: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def add_method(self, method: str) -> None:
        """Run a registered method at each keep rate; its importance is that at the first one.

        Raises:
            FileNotFoundError: it has no predictor for this tower, and the user named it.
            ValueError: it can't rank at this block, and the user named it.
        """
        scene, config = self.scene, self.scene.config
        try:
            for keep in config.keeps:
                vit = reduced(scene.tower, method, keep=keep, block=config.golden.block)
                importance, kept = method_maps(vit, scene.images)
                self.importance.setdefault(method, dict(enumerate(importance.numpy())))
                self.kept[method, keep] = dict(enumerate(kept.numpy()))
        except (FileNotFoundError, ValueError) as error:
            if method in (*config.methods, config.by):
                raise
            reason = describe_error(error)
            self.gaps.setdefault(reason, []).extend((method, i) for i in range(len(scene.images)))

    def add_golden(self, progress: Progress) -> None:
        """Make golden rankings, by each score that an image has text and label for."""
        texts: dict[tuple[str, ...], tuple[Tensor, float] | str] = {}
        with progress.task("golden rankings", len(self.scene.subjects)) as update:
            for i, subject in enumerate(self.scene.subjects):
                key = (*subject.templates, *subject.classes)
                if key not in texts:
                    texts[key] = self._text(subject)
                self._add_golden(i, subject, texts[key])
                update(i + 1)

    def _text(self, subject: Subject) -> tuple[Tensor, float] | str:
        """Return the features of an image's classes and the scale, or why there are none."""
        if self.scene.tower.clip is not None and not subject.classes:
            return NO_CLASSES
        try:
            features, scale = class_text(self.scene.tower, subject.classes, subject.templates)
        except ValueError as error:
            return str(error)
        return features.to(self.scene.images.device), scale

    def _add_golden(self, i: int, subject: Subject, text: tuple[Tensor, float] | str) -> None:
        reasons = {"label": text, "confidence": text} if isinstance(text, str) else {}
        if subject.label is None:
            reasons.setdefault("label", NO_LABEL)
        for score, reason in reasons.items():
            self.gaps.setdefault(reason, []).append((score, i))
        features, scale = (None, 1.0) if isinstance(text, str) else text
        image, config = self.scene.images[i : i + 1], self.scene.config
        labels = torch.tensor([subject.label or 0], device=image.device)
        scores = [score for score in SCORES if score not in reasons]
        facts: dict[str, Any] = {"text": features, "scale": scale, "labels": labels}
        for score, importance in golden_maps(self.scene.tower.vit, image, scores, config.golden, **facts).items():
            self.importance.setdefault(score, {})[i] = importance[0].cpu().numpy()
            for keep in config.keeps:
                self.kept.setdefault((score, keep), {})[i] = most_important(importance, keep)[0].cpu().numpy()

    def describe_gaps(self) -> list[str]:
        """Say what is left out and why, each reason once."""
        subjects, notes = self.scene.subjects, []
        for reason, gaps in self.gaps.items():
            names = " and ".join(dict.fromkeys(NAMES.get(column, column) for column, _ in gaps))
            rows = sorted({i for _, i in gaps})
            where = "" if len(rows) == len(subjects) else f" of {', '.join(subjects[i].name for i in rows)}"
            notes.append(f"Left out: {names}{where}: {reason}.")
        return notes


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
    scene = Scene(tower=tower, subjects=subjects, images=images.to(device), views=views, config=config)
    sheet = _leavings(scene) if config.left else _rankings(scene, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, draw(sheet, scale=config.scale))
    return sheet


def _own_tokens(kept: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return the token of each patch, its own where it is kept, below 0 elsewhere; (..., N) both."""
    return np.where(kept, np.arange(kept.shape[-1]), -1)


def _rankings(scene: Scene, progress: Progress) -> PatchSheet:
    """Return a sheet of the importance by each ranking, and of what one of them keeps."""
    maps, config, golden = Maps(scene=scene), scene.config, scene.config.golden
    named = [config.by] if config.by in METHODS else []
    for method in dict.fromkeys((PREDICTOR, ATTENTION, *config.methods, *named)):
        maps.add_method(method)
    maps.add_golden(progress)
    by = config.by or (PREDICTOR if PREDICTOR in maps.importance else ALIASES[GOLDEN])
    if by not in maps.importance:
        [reason] = [reason for reason, gaps in maps.gaps.items() if (by, 0) in gaps]
        raise ValueError(f"--by {by!r} can't be had: {reason}")
    columns = {}
    for name in sorted(maps.importance, key=lambda name: (*SCORES, name).index(name)):
        columns[name] = NAMES.get(name, name).replace(" ", "\n")
        if name in METHODS and not issubclass(METHODS[name], Pruner):
            columns[name] += f"\nat keep {100 * config.keeps[0]:g} %"  # ranks otherwise at another
    tokens = {}
    for keep in config.keeps:
        tokens[f"kept {100 * keep:g}"] = {i: _own_tokens(kept) for i, kept in maps.kept[by, keep].items()}
        columns[f"kept {100 * keep:g}"] = f"{100 * keep:g} % kept\nby {NAMES.get(by, by)}"
    about = (
        f"{scene.tower.name}. Golden scores: windows of {golden.window} × {golden.window} patches, stride "
        f"{golden.stride}, removed before block {golden.block}. Colours show the rank of a patch "
        "within its image and ranking; they don't compare images."
    )
    return scene.sheet(columns, maps.importance, tokens, (about, *maps.describe_gaps()))


@torch.inference_mode()
def _leavings(scene: Scene) -> PatchSheet:
    """Return a sheet of the patch tokens that each method leaves, keep rate by keep rate."""
    tower, images, config, score = scene.tower, scene.images, scene.config, ALIASES[GOLDEN]
    columns: dict[str, str] = {}
    tokens: dict[str, dict[int, NDArray[np.integer]]] = {}
    about, merging, golden = f"{tower.name}. Dropped patches are grey.", dict[str, None](), None
    if GOLDEN in config.left:
        golden = torch.cat([golden_maps(tower.vit, image[None], [score], config.golden)[score] for image in images])
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
    return scene.sheet(columns, {}, tokens, (about,))
