"""Show images beside the importance of their patches by several rankings, and what is kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.console.terminal import Progress
from harness.datasets import KINDS, get_dataset
from harness.datasets.images import LEAVE_OUT, read_image
from harness.golden.maps import (
    class_text,
    golden_maps,
    method_maps,
    most_important,
    patch_grid,
    reduced,
    unprocessed,
)
from harness.models.towers import Tower, load_tower
from harness.report.sheet import Box, Row, Sheet, draw
from zoo.files import write_whole
from zoo.golden import SCORES, GoldenConfig
from zoo.reducer import METHODS, Pruner, expected

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
TEMPLATES = ("a photo of a {}.",)  # for classes that come without a dataset
NO_CLASSES = 'its classes are not known (--dataset NAME or --classes "a,b,c" names them)'
NO_LABEL = "its true class is not known (--label CLASS names it)"

PREDICTOR, ATTENTION = "patchrank", "clsattn"
ALIASES = {"predictor": PREDICTOR, "golden": "preservation"}
NAMES = {score: f"golden {score}" for score in SCORES}
NAMES |= {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One image with what is known about it.

    Attributes:
        name: what a figure calls it; no path.
        image: RGB.
        label: position in ``classes``, None where unknown.
        classes: class names, empty where unknown.
        templates: prompts with one ``{}``.
    """

    name: str
    image: Image.Image
    label: int | None = None
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = TEMPLATES


def find_pictures(
    places: Sequence[str],
    *,
    dataset: str | None = None,
    classes: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> list[Subject]:
    """Load the images.

    Args:
        places: paths of files, or ``dataset:split:index``, where the dataset may be
            ``PREFIX:PATH``. A file of that name goes first.
        dataset: whose classes the files may show.
        classes: class names instead of a dataset's.
        labels: class names of the files, one for all or one each.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, a place that no dataset has, an unknown class, or
            classes and labels that don't fit each other or the files.
    """
    files = [place for place in places if _is_file(place)]
    names, templates = _classes(dataset, classes)
    if not files and (names or labels):
        raise ValueError(
            "--dataset, --classes and --label are for image files, and there is none among "
            f"{', '.join(places)}: these have classes and labels of their own"
        )
    told = iter(_labels(labels, names, len(files)))
    return [
        _from_file(place, next(told), names, templates) if _is_file(place) else _from_dataset(place)
        for place in places
    ]


def _is_file(place: str) -> bool:
    """Tell files from places in datasets."""
    return Path(place).exists() or not PLACE.fullmatch(place)


def _classes(
    dataset: str | None, classes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return class names and prompt templates, no names if none are given."""
    if dataset is None:
        doubled = sorted({name for name in classes if list(classes).count(name) > 1})
        if doubled or not all(classes):
            raise ValueError(f"--classes {','.join(classes)!r}: expected names, each once")
        return tuple(classes), TEMPLATES
    if classes:
        raise ValueError("--dataset and --classes both name classes: give one of them")
    found = get_dataset(dataset)
    return found.classes, found.templates


def _labels(labels: Sequence[str], classes: tuple[str, ...], files: int) -> list[int | None]:
    """Return the label of each file."""
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
    found = [classes.index(label) for label in labels]
    return [*(found * files if len(found) == 1 else found)]


def _from_file(
    place: str, label: int | None, classes: tuple[str, ...], templates: tuple[str, ...]
) -> Subject:
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(
            f"image {place!r} does not exist; expected an image file, or dataset:split:index such "
            "as fashion:val:3"
        )
    image = read_image(path, way=LEAVE_OUT)
    return Subject(name=path.name, image=image, label=label, classes=classes, templates=templates)


def _from_dataset(place: str) -> Subject:
    match = PLACE.fullmatch(place)
    assert match is not None
    dataset = get_dataset(match["dataset"])
    try:
        split = dataset.split(match["split"])  # type: ignore[arg-type]  # checked there
    except ValueError as error:
        raise ValueError(f"image {place!r}: {error}") from error
    last = len(split) - 1
    if last < 0:
        raise ValueError(f"image {place!r}: {dataset.name} {match['split']} has no images")
    if not match["index"].isdecimal() or int(match["index"]) > last:
        raise ValueError(
            f"image {place!r}: index {match['index']!r}: {dataset.name} {match['split']} has "
            f"images 0 to {last}"
        )
    example = split[int(match["index"])]
    return Subject(
        name=f"{dataset.name}:{match['split']}:{match['index']}",
        image=example.image,
        label=example.label,
        classes=dataset.classes,
        templates=dataset.templates,
    )


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """What is shown beside an image.

    Attributes:
        keeps: keep rates, in (0, 1); a column of kept patches for each.
        by: ranking that decides what is kept: a golden score, a registered method, ``golden``
            (preservation) or ``predictor``; None for the predictor if there is one, else golden.
        methods: registered methods that get a column, beside predictor and CLS attention.
        golden: block and windows; its score is not looked at.
        scale: size of the figure, 1 for about 2000 pixels of width.
    """

    keeps: tuple[float, ...] = (0.6,)
    by: str | None = None
    methods: tuple[str, ...] = ()
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Validate, and put the names of rankings in place of their aliases."""
        for keep in self.keeps:
            if not 0 < keep < 1:
                raise ValueError(f"--keep {keep:g}: expected fractions in (0, 1), such as 0.6")
        if not self.keeps or len(set(self.keeps)) < len(self.keeps):
            raise ValueError(f"--keep {self.keeps}: expected at least one rate, each once")
        known = [*ALIASES, *SCORES, *sorted(METHODS)]
        if self.by is not None and self.by not in known:
            raise ValueError(f"--by {self.by!r}: {expected(self.by, known)}")
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"--methods {method!r}: {expected(method, sorted(METHODS))}")
        if not 0.25 <= self.scale <= 8:
            raise ValueError(f"--scale {self.scale:g}: expected a number in [0.25, 8]")
        object.__setattr__(self, "by", ALIASES.get(self.by or "", self.by))

    @property
    def asked(self) -> tuple[str, ...]:
        """Return the methods that were asked for by name: without them there is no figure."""
        return (*self.methods, *([self.by] if self.by in METHODS else []))


@dataclass(kw_only=True)
class Gathering:
    """What is known of the patches of some images, by ranking and position of the image.

    Attributes:
        tower: the dense tower.
        pictures: the images and what is known about them.
        images: (B, C, H, W), the same images, preprocessed.
        keeps: keep rates, at least one.
        config: block and windows of golden scores; methods that rank at one block do so there.
        importance: ranking -> position -> (N,) float, higher = keep.
        kept: (ranking, keep rate) -> position -> (N,) bool.
        gaps: (ranking, position) -> why there is nothing.
    """

    tower: Tower
    pictures: Sequence[Subject]
    images: Tensor
    keeps: Sequence[float]
    config: GoldenConfig
    importance: dict[str, dict[int, NDArray[np.floating]]] = field(default_factory=dict)
    kept: dict[tuple[str, float], dict[int, NDArray[np.bool_]]] = field(default_factory=dict)
    gaps: dict[tuple[str, int], str] = field(default_factory=dict)

    def add_method(self, method: str, *, must: bool) -> None:
        """Run a registered method at each keep rate; its importance is that at the first one.

        Raises:
            FileNotFoundError: it has no predictor for this tower, and ``must``.
            ValueError: it can't do what is asked, and ``must``.
        """
        try:
            for keep in self.keeps:
                vit = reduced(self.tower, method, keep=keep, block=self.config.block)
                importance, kept = method_maps(vit, self.images)
                self.importance.setdefault(method, dict(enumerate(importance.numpy())))
                self.kept[method, keep] = dict(enumerate(kept.numpy()))
        except (FileNotFoundError, ValueError) as error:
            if must:
                raise
            # What the message offers beyond a command are arguments of functions.
            reason = str(error).partition("; or pass")[0]
            self.gaps |= {(method, i): reason for i in range(len(self.images))}

    def add_golden(self, progress: Progress) -> None:
        """Make golden rankings, by each score that an image has text and label for."""
        known: dict[tuple[str, ...], tuple[Tensor, float] | str] = {}
        with progress.task("golden rankings", len(self.pictures)) as update:
            for i, picture in enumerate(self.pictures):
                key = (*picture.templates, *picture.classes)
                if key not in known:
                    known[key] = self._text(picture)
                text = known[key]
                missing = {"label": text, "confidence": text} if isinstance(text, str) else {}
                if picture.label is None:
                    missing.setdefault("label", NO_LABEL)
                self.gaps |= {(score, i): reason for score, reason in missing.items()}
                features, scale = (None, 1.0) if isinstance(text, str) else text
                maps = golden_maps(
                    self.tower.vit,
                    self.images[i : i + 1],
                    [score for score in SCORES if score not in missing],
                    self.config,
                    text=features,
                    scale=scale,
                    labels=torch.tensor([picture.label or 0], device=self.images.device),
                )
                for score, importance in maps.items():
                    self._add(score, i, importance)
                update(i + 1)

    def _text(self, picture: Subject) -> tuple[Tensor, float] | str:
        """Return the features of an image's classes and the scale, or why there are none."""
        if self.tower.clip is not None and not picture.classes:
            return NO_CLASSES
        try:
            features, scale = class_text(self.tower, picture.classes, picture.templates)
        except ValueError as error:
            return str(error)
        return features.to(self.images.device), scale

    def _add(self, score: str, i: int, importance: Tensor) -> None:
        """Note a golden importance, (1, N), of image ``i`` and what it keeps."""
        self.importance.setdefault(score, {})[i] = importance[0].cpu().numpy()
        for keep in self.keeps:
            kept = most_important(importance, keep)[0].cpu().numpy()
            self.kept.setdefault((score, keep), {})[i] = kept


class Figure(NamedTuple):
    """A figure on disk.

    Attributes:
        path: the PNG.
        columns: what its columns are, left to right: ``image``, rankings, ``kept PERCENT``.
        notes: the lines below it, among them why something is left out.
        boxes: where the panels are, by row and column.
    """

    path: Path
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    boxes: dict[tuple[int, str], Box]


def show(
    model: str,
    pictures: Sequence[Subject],
    config: ShowConfig,
    out: Path,
    *,
    progress: Progress,
    device: str = "cpu",
) -> Figure:
    """Draw the figure.

    Args:
        model: name of a dense tower, see ``towers.load_tower``.
        pictures: the images, at least one.
        config: what is shown beside them.
        out: where the PNG goes; replaced only when the figure is whole.
        progress: where to show how far things are.
        device: torch device.

    Raises:
        ValueError: a name or setting that doesn't fit, or nothing to decide what is kept.
        FileNotFoundError: weights are missing, or the predictor if it was asked for.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"--out {str(out)!r}: expected a file's name that ends in .png")
    tower = load_tower(model)
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(picture.image) for picture in pictures])
    views = unprocessed(tower.preprocess, images).permute(0, 2, 3, 1).numpy()
    gathering = Gathering(
        tower=tower,
        pictures=pictures,
        images=images.to(device),
        keeps=config.keeps,
        config=config.golden,
    )
    for method in dict.fromkeys((PREDICTOR, ATTENTION, *config.asked)):
        gathering.add_method(method, must=method in config.asked)
    gathering.add_golden(progress)
    by = config.by or (PREDICTOR if PREDICTOR in gathering.importance else ALIASES["golden"])
    if by not in gathering.importance:
        raise ValueError(f"--by {by!r} can't be had: {gathering.gaps[by, 0]}")
    columns = _titles(gathering, config, by)
    sheet = Sheet(
        rows=[
            Row(
                name=picture.name,
                label="" if picture.label is None else picture.classes[picture.label],
                view=views[i],
                importance={c: m[i] for c, m in gathering.importance.items() if i in m},
                kept={
                    _kept(keep): gathering.kept[by, keep][i]
                    for keep in config.keeps
                    if i in gathering.kept[by, keep]
                },
            )
            for i, picture in enumerate(pictures)
        ],
        grid=patch_grid(tower.vit, images),
        columns=columns,
        notes=(_conditions(tower.name, config.golden), *_gaps(gathering, pictures)),
    )
    drawn = draw(sheet, config.scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, drawn.png)
    return Figure(out, ("image", *columns), tuple(sheet.notes), drawn.boxes)


def _kept(keep: float) -> str:
    return f"kept {100 * keep:g}"


def _titles(gathering: Gathering, config: ShowConfig, by: str) -> dict[str, str]:
    """Return the columns with their titles, golden scores first."""
    there = gathering.importance
    titles = {}
    for name in (*(s for s in SCORES if s in there), *(n for n in there if n not in SCORES)):
        title = NAMES.get(name, name).replace(" ", "\n")
        if name in METHODS and not issubclass(METHODS[name], Pruner):
            title += f"\nat keep {100 * config.keeps[0]:g} %"  # ranks otherwise at another
        titles[name] = title
    name = NAMES.get(by, by)
    return titles | {_kept(keep): f"{100 * keep:g} % kept\nby {name}" for keep in config.keeps}


def _conditions(model: str, golden: GoldenConfig) -> str:
    """Say what the figure rests on."""
    return (
        f"{model}. Golden scores: windows of {golden.window} × {golden.window} patches, stride "
        f"{golden.stride}, removed before block {golden.block}. Colours show the rank of a patch "
        "within its image and ranking; they don't compare images."
    )


def _gaps(gathering: Gathering, pictures: Sequence[Subject]) -> list[str]:
    """Say what is left out and why, each reason once."""
    found: dict[str, dict[str, list[int]]] = {}
    for (column, i), reason in gathering.gaps.items():
        found.setdefault(reason, {}).setdefault(column, []).append(i)
    notes = []
    for reason, columns in found.items():
        names = " and ".join(NAMES.get(column, column) for column in columns)
        rows = sorted({i for places in columns.values() for i in places})
        of = (
            "" if len(rows) == len(pictures) else f" of {', '.join(pictures[i].name for i in rows)}"
        )
        notes.append(f"Left out: {names}{of}: {reason}.")
    return notes
