"""Show images beside the importance of their patches by several rankings, and what is kept."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from harness.base.hints import describe_error
from harness.base.terminal import Progress
from harness.datasets import KINDS, get_dataset
from harness.datasets.images import LEAVE_OUT, read_image
from harness.golden.maps import class_text, golden_maps, method_maps, most_important, patch_grid, reduced, unprocessed
from harness.models.towers import Tower, load_tower
from harness.records.conditions import GOLDEN
from harness.report.drawing import OPTIONS, saved
from zoo.core.files import write_whole
from zoo.core.messages import expected
from zoo.core.reducer import METHODS, Pruner
from zoo.core.tokens import Trace, tokens_of
from zoo.ranking.golden import SCORES, GoldenConfig

Colours = NDArray[np.floating]  # (height, width, 3) in [0, 1]
Size = tuple[int, int]  # height and width, in pixels or in patches

COLOURS = "viridis"  # perceptually uniform, and in order for every colour vision
DETAIL = 0.5  # contrast of the image's detail over the colours
# Colour of dropped patches, and how much of the image is left in it: a contrast of 3 to white and to
# black, and a tint that no grey image has, so they are told from kept patches; patterns make moiré.
DIM, LEFT = (0.40, 0.44, 0.62), 0.12
BORDER = 0.8  # grey of the lines between patches

# Pixels at scale 1.
WIDTH, PANEL_LEAST, PANEL_MOST = 2000, 150, 480
MARGIN, GAP, STRIP, HEAD, BAR, LINE = 20, 10, 84, 76, 84, 27
TITLE_SIZE, NAME_SIZE, NOTE_SIZE = 24, 21, 19
DPI = 72  # a pixel is a point, so that an SVG has the same pixels
IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a sheet, as the model sees it, and by column what is known of its N patches.

    Attributes:
        importance: (N,) float, higher = keep. A column that nothing has stays empty.
        kept: (N,) bool.
        tokens: (N,) position of the token that a patch is in, below 0 where dropped.
        captions: line below the panel.
    """

    name: str
    label: str  # of its class, empty where unknown
    view: Colours
    importance: Mapping[str, NDArray[np.floating]]
    kept: Mapping[str, NDArray[np.bool_]]
    tokens: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Images beside the importance of their patches and the patches that are kept."""

    rows: Sequence[Row]  # images of one size
    grid: Size  # N patches in all
    columns: Mapping[str, str]  # their titles, in order; the image itself comes before them
    notes: Sequence[str] = ()  # lines below


class Box(NamedTuple):
    """Where a panel is in the picture: pixels from left and top, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class Drawn(NamedTuple):
    """A picture, and where its panels are, by row and column; the image's column is ``image``."""

    png: bytes
    boxes: dict[tuple[int, str], Box]
    svg: bytes = b""  # of a vector drawing


class _Canvas:
    """A figure measured in pixels from its upper left corner."""

    def __init__(self, width: int, height: int, scale: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height, self.scale = width, height, scale
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def paste(self, panel: Colours, box: Box) -> None:
        """Put pixels where they are to be, one for one."""
        pixels = np.rint(panel * 255).astype(np.uint8)
        self.figure.figimage(pixels, xo=box.left, yo=self.height - box.bottom, origin="upper")

    def write(self, text: str, x: float, y: float, size: float, **how: Any) -> None:
        points = size * self.scale * 72 / DPI
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=points, **how)


def draw(sheet: Sheet, scale: float = 1.0, *, vector: bool = False) -> Drawn:
    """Draw a sheet, at scale 1 about 2000 pixels wide; ``vector`` for an SVG too."""
    import matplotlib as mpl

    # An SVG's images stay as many as the panels.
    options = OPTIONS | {"image.composite_image": False}
    with mpl.rc_context(options), warnings.catch_warnings():
        # A file's name may be in a script that the font lacks; boxes do for it.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        canvas, boxes = _draw(sheet, scale)
        # Its width and height come first, in points, which a page would show a third larger.
        svg = saved(canvas.figure, "svg", dpi=DPI).replace(b'pt"', b'px"', 2) if vector else b""
        return Drawn(saved(canvas.figure, "png", dpi=DPI), boxes, svg)


def _draw(sheet: Sheet, scale: float) -> tuple[_Canvas, dict[tuple[int, str], Box]]:
    columns = [IMAGE, *sheet.columns]
    size = _panel_size(sheet, len(columns), scale)
    margin, gap, strip, head = (round(scale * n) for n in (MARGIN, GAP, STRIP, HEAD))
    left, top = margin + strip, margin + head
    width = left + len(columns) * (size[1] + gap) - gap + margin
    caption = round(scale * LINE) if any(row.captions for row in sheet.rows) else 0
    below = top + len(sheet.rows) * (size[0] + caption + gap) - gap
    bar = round(scale * BAR) if any(row.importance for row in sheet.rows) else 0
    room = width - 2 * margin
    notes = [line for note in sheet.notes for line in wrapped(note, scale * NOTE_SIZE, room)]
    height = below + bar + margin + round(scale * LINE * len(notes)) + margin

    def box(row: int, column: int) -> Box:
        x, y = left + column * (size[1] + gap), top + row * (size[0] + caption + gap)
        return Box(x, y, x + size[1], y + size[0])

    canvas, boxes = _Canvas(width, height, scale), {}
    for j, column in enumerate(columns):
        title = sheet.columns.get(column, IMAGE)
        x = box(0, j).left + size[1] / 2
        canvas.write(title, x, top - gap, TITLE_SIZE, ha="center", va="bottom")
        for i, row in enumerate(sheet.rows):
            boxes[i, column] = box(i, j)
            _fill(canvas, box(i, j), row, column, sheet.grid)
            if column in row.captions:
                text = short(row.captions[column], scale * NOTE_SIZE, size[1])
                canvas.write(text, x, box(i, j).bottom + gap / 4, NOTE_SIZE, ha="center", va="top")
    for i, row in enumerate(sheet.rows):
        label = wrapped(row.label, scale * NAME_SIZE, size[0])[:2]
        lines = [short(line, scale * NAME_SIZE, size[0]) for line in (row.name, *label)]
        where = {"rotation": 90, "ha": "right", "va": "center", "multialignment": "center"}
        middle = box(i, 0).top + size[0] / 2
        canvas.write("\n".join(lines), left - gap, middle, NAME_SIZE, **where)
    if bar:
        _draw_bar(canvas, box(len(sheet.rows) - 1, 1), min(3, len(sheet.columns)), caption)
    for i, line in enumerate(notes):
        y = below + bar + margin + scale * LINE * i
        canvas.write(line, margin, y, NOTE_SIZE, va="top")
    return canvas, boxes


def _panel_size(sheet: Sheet, columns: int, scale: float) -> Size:
    """Return height and width of a panel: whole pixels per patch."""
    room = (WIDTH - 2 * MARGIN - STRIP - columns * GAP) / columns
    width = scale * min(max(room, PANEL_LEAST), PANEL_MOST)
    return fit(sheet.rows[0].view.shape[:2], sheet.grid, width)


def _fill(canvas: _Canvas, box: Box, row: Row, column: str, grid: Size) -> None:
    """Draw a panel, or a dash where there is nothing to draw."""
    if column == IMAGE:
        canvas.paste(image_panel(row.view, box.size), box)
    elif column in row.importance:
        canvas.paste(heat_panel(row.view, row.importance[column], grid, box.size), box)
    elif column in row.kept:
        canvas.paste(kept_panel(row.view, row.kept[column], grid, box.size), box)
    elif column in row.tokens:
        canvas.paste(merged_panel(row.view, row.tokens[column], grid, box.size), box)
    else:
        canvas.paste(np.full((*box.size, 3), 0.95), box)
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        canvas.write("–", x, y, TITLE_SIZE, ha="center", va="center")


def _draw_bar(canvas: _Canvas, first: Box, panels: int, caption: int) -> None:
    """Draw the colour bar below the first panels, wide enough for its words."""
    gap = round(canvas.scale * GAP)
    width, height = panels * (first.size[1] + gap) - gap, round(canvas.scale * 18)
    top = first.bottom + caption + round(canvas.scale * MARGIN)
    bar = Box(first.left, top, first.left + width, top + height)
    canvas.paste(np.broadcast_to(_colours(np.linspace(0, 1, width)), (height, width, 3)), bar)
    y = bar.bottom + gap / 2
    for text, x, side in (
        ("least important", bar.left, "left"),
        ("rank within the image", (bar.left + bar.right) / 2, "center"),
        ("most important", bar.right, "right"),
    ):
        canvas.write(text, x, y, NOTE_SIZE, ha=side, va="top")


def _colours(values: NDArray[np.floating]) -> Colours:
    from matplotlib import colormaps

    return np.asarray(colormaps[COLOURS](values)[..., :3])


def fit(image: Size, grid: Size, width: float) -> Size:
    """Return the size of a panel of about that width, with as many pixels for every patch."""
    across = max(1, round(width / grid[1]))
    down = max(1, round(across * grid[1] * image[0] / image[1] / grid[0]))
    return down * grid[0], across * grid[1]


def ranks(importance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each patch within the image, (N,) in [0, 1], 1 the most important.

    Ties share the mean of their ranks.
    """
    return np.asarray((rankdata(importance) - 1) / max(1, len(importance) - 1))


def image_panel(view: Colours, size: Size) -> Colours:
    """Show an image."""
    pixels = Image.fromarray(np.rint(view * 255).astype(np.uint8))
    return np.asarray(pixels.resize(size[::-1], Image.Resampling.LANCZOS)) / 255


def heat_panel(view: Colours, importance: NDArray[np.floating], grid: Size, size: Size) -> Colours:
    """Colour each patch by its rank, with the image's detail over it.

    The detail is what differs from the patch's mean, so that a patch has the colour bar's colour
    on average, be the image light or dark.
    """
    grey = image_panel(view, size) @ np.array([0.299, 0.587, 0.114])
    tiles = _tiles(grey, grid)
    detail = (tiles - tiles.mean(axis=(1, 3), keepdims=True)).reshape(size)
    blend = _spread(_colours(ranks(importance).reshape(grid)), size) + DETAIL * detail[..., None]
    return np.asarray(blend.clip(0.0, 1.0))


def kept_panel(view: Colours, kept: NDArray[np.bool_], grid: Size, size: Size) -> Colours:
    """Show the kept patches as they are and the others dimmed, with lines between."""
    stays, image = _spread(kept.reshape(grid)[..., None], size), image_panel(view, size)
    panel = np.where(stays, image, dimmed(image))
    panel[np.arange(1, grid[0]) * (size[0] // grid[0])] = BORDER
    panel[:, np.arange(1, grid[1]) * (size[1] // grid[1])] = BORDER
    return panel


def merged_panel(view: Colours, token: NDArray[np.integer], grid: Size, size: Size) -> Colours:
    """Show which patches share a token: in their mean colour, with lines around them.

    Patches that have a token to themselves are as they are, dropped ones dimmed. ``token`` is
    (N,), the position of the token that each patch is in, below 0 where it was dropped.
    """
    image, own = image_panel(view, size), np.arange(len(token))
    apart = np.where(token < 0, -1 - own, token)  # what is dropped is in no token together
    means = _tiles(image, grid).mean(axis=(1, 3)).reshape(-1, 3)
    _, group, count = np.unique(apart, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(group, channel) for channel in means.T], axis=1) / count[:, None]
    shared = (count[group] > 1).reshape(grid)[..., None]
    panel = np.where(_spread(shared, size), _spread(mean[group].reshape(*grid, 3), size), image)
    dropped = _spread((token < 0).reshape(grid)[..., None], size)
    panel = np.where(dropped, dimmed(image), panel)
    pixels = _spread(apart.reshape(grid)[..., None], size)[..., 0]
    panel[1:][pixels[1:] != pixels[:-1]] = BORDER
    panel[:, 1:][pixels[:, 1:] != pixels[:, :-1]] = BORDER
    return panel


def dimmed(image: Colours) -> Colours:
    """Return what dropped patches are drawn as: nearly one colour."""
    return np.asarray((1 - LEFT) * np.array(DIM) + LEFT * image)


def _tiles(pixels: NDArray[np.floating], grid: Size) -> NDArray[np.floating]:
    """Split pixels into patches: (rows, height, columns, width, ...)."""
    (height, width), (rows, columns) = pixels.shape[:2], grid
    return pixels.reshape(rows, height // rows, columns, width // columns, *pixels.shape[2:])


def _spread(cells: NDArray[np.generic], size: Size) -> NDArray[np.generic]:
    """Blow values of patches (rows, columns, channels) up to pixels."""
    rows = cells.repeat(size[0] // cells.shape[0], axis=0)
    return rows.repeat(size[1] // cells.shape[1], axis=1)


def width_of(text: str, size: float) -> float:
    """Return the width in pixels of a line in a font of ``size`` pixels, as Agg will draw it."""
    from matplotlib.backends.backend_agg import get_hinting_flag
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    font.set_size(size, 72)  # a point is a pixel
    flags: Any = get_hinting_flag()  # type: ignore[no-untyped-call]
    font.set_text(text, 0, flags=flags)
    return float(font.get_width_height()[0]) / 64  # FreeType counts in 64ths


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break a text at blanks into lines no wider than ``width``; a longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def short(name: str, size: float, width: float) -> str:
    """Cut the middle out of a name that is too wide; what tells files apart is at its ends."""
    shorter, length = name, len(name)
    while length > 2 and width_of(shorter, size) > width:
        length -= 1
        shorter = f"{name[: (length + 1) // 2]}…{name[len(name) - length // 2 :]}"
    return shorter


PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
TEMPLATES = ("a photo of a {}.",)  # for classes that come without a dataset
NO_CLASSES = 'its classes are not known (--dataset NAME or --classes "a,b,c" names them)'
NO_LABEL = "its true class is not known (--label CLASS names it)"

PREDICTOR, ATTENTION = "patchrank", "clsattn"
ALIASES = {"predictor": PREDICTOR, GOLDEN: "preservation"}
NAMES = {score: f"golden {score}" for score in SCORES}
NAMES |= {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


@dataclass(frozen=True)
class Subject:
    """One RGB image with what is known about it; the label is a position in its classes."""

    name: str
    image: Image.Image
    label: int | None = None
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = TEMPLATES


def find_pictures(
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
            "--dataset, --classes and --label are for image files, and there is none among "
            f"{', '.join(places)}: these have classes and labels of their own"
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
    name = f"{dataset.name}:{match['split']}:{index}"
    label = example.label if dataset.labelled else None
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
                raise ValueError(f"--keep {keep:g}: expected fractions in (0, 1), such as 0.6")
        if not self.keeps or len(set(self.keeps)) < len(self.keeps):
            raise ValueError(f"--keep {self.keeps}: expected at least one rate, each once")
        known = [*ALIASES, *SCORES, *sorted(METHODS)]
        if self.by is not None and self.by not in known:
            raise ValueError(f"--by {self.by!r}: {expected(self.by, known)}")
        for flag, methods, names in (("methods", self.methods, METHODS), ("left", self.left, (*METHODS, GOLDEN))):
            for method in methods:
                if method not in names:
                    raise ValueError(f"--{flag} {method!r}: {expected(method, sorted(names))}")
        if self.left and (self.methods or self.by):
            raise ValueError(
                "--left shows what methods leave, and no rankings: expected no --methods and no --by with it"
            )
        if not 0.25 <= self.scale <= 8:
            raise ValueError(f"--scale {self.scale:g}: expected a number in [0.25, 8]")
        object.__setattr__(self, "by", ALIASES.get(self.by or "", self.by))

    @property
    def required(self) -> tuple[str, ...]:
        """Methods that the user named: without them there is no figure."""
        return (*self.methods, *([self.by] if self.by in METHODS else []))


@dataclass(kw_only=True)
class Maps:
    """What is known of the patches of some images, by ranking and position of the image.

    Attributes:
        images: (B, C, H, W), the pictures, preprocessed.
        config: methods that rank at one block do so at that of golden scores.
        importance: ranking -> position -> (N,) float, higher = keep.
        kept: (ranking, keep rate) -> position -> (N,) bool.
        gaps: (ranking, position) -> why there is nothing.
    """

    tower: Tower
    pictures: Sequence[Subject]
    images: Tensor
    config: ShowConfig
    importance: dict[str, dict[int, NDArray[np.floating]]] = field(default_factory=dict)
    kept: dict[tuple[str, float], dict[int, NDArray[np.bool_]]] = field(default_factory=dict)
    gaps: dict[tuple[str, int], str] = field(default_factory=dict)

    def add_method(self, method: str) -> None:
        """Run a registered method at each keep rate; its importance is that at the first one.

        Raises:
            FileNotFoundError: it has no predictor for this tower, and is required.
            ValueError: it can't rank at this block, and is required.
        """
        try:
            for keep in self.config.keeps:
                vit = reduced(self.tower, method, keep=keep, block=self.config.golden.block)
                importance, kept = method_maps(vit, self.images)
                self.importance.setdefault(method, dict(enumerate(importance.numpy())))
                self.kept[method, keep] = dict(enumerate(kept.numpy()))
        except (FileNotFoundError, ValueError) as error:
            if method in self.config.required:
                raise
            reason = describe_error(error)
            self.gaps |= {(method, i): reason for i in range(len(self.images))}

    def add_golden(self, progress: Progress) -> None:
        """Make golden rankings, by each score that an image has text and label for."""
        texts: dict[tuple[str, ...], tuple[Tensor, float] | str] = {}
        with progress.task("golden rankings", len(self.pictures)) as update:
            for i, picture in enumerate(self.pictures):
                key = (*picture.templates, *picture.classes)
                if key not in texts:
                    texts[key] = self._text(picture)
                self._add_golden(i, picture, texts[key])
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

    def _add_golden(self, i: int, picture: Subject, text: tuple[Tensor, float] | str) -> None:
        reasons = {"label": text, "confidence": text} if isinstance(text, str) else {}
        if picture.label is None:
            reasons.setdefault("label", NO_LABEL)
        self.gaps |= {(score, i): reason for score, reason in reasons.items()}
        features, scale = (None, 1.0) if isinstance(text, str) else text
        maps = golden_maps(
            self.tower.vit,
            self.images[i : i + 1],
            [score for score in SCORES if score not in reasons],
            self.config.golden,
            text=features,
            scale=scale,
            labels=torch.tensor([picture.label or 0], device=self.images.device),
        )
        for score, importance in maps.items():
            self.importance.setdefault(score, {})[i] = importance[0].cpu().numpy()
            for keep in self.config.keeps:
                kept = most_important(importance, keep)[0].cpu().numpy()
                self.kept.setdefault((score, keep), {})[i] = kept


class Figure(NamedTuple):
    """A PNG on disk: its columns are ``image``, rankings and ``kept PERCENT``, left to right."""

    path: Path
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    boxes: dict[tuple[int, str], Box]


def show(
    model: str, pictures: Sequence[Subject], config: ShowConfig, out: Path, *, progress: Progress, device: str = "cpu"
) -> Figure:
    """Draw images beside what a dense tower (see ``towers.load_tower``) makes of them, as a PNG.

    Raises:
        ValueError: a name or setting that doesn't fit, or nothing to decide what is kept.
        FileNotFoundError: weights are missing, or the predictor of a required method.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"--out {str(out)!r}: expected a file's name that ends in .png")
    tower = load_tower(model)
    tower.vit.to(device)
    images = torch.stack([tower.preprocess(picture.image) for picture in pictures])
    views = unprocessed(tower.preprocess, images).permute(0, 2, 3, 1).numpy()
    if config.left:
        return _written(_left(tower, pictures, images.to(device), views, config), config, out)
    maps = Maps(tower=tower, pictures=pictures, images=images.to(device), config=config)
    for method in dict.fromkeys((PREDICTOR, ATTENTION, *config.required)):
        maps.add_method(method)
    maps.add_golden(progress)
    by = config.by or (PREDICTOR if PREDICTOR in maps.importance else ALIASES[GOLDEN])
    if by not in maps.importance:
        raise ValueError(f"--by {by!r} can't be had: {maps.gaps[by, 0]}")
    columns = _titles(maps, by)
    sheet = Sheet(
        rows=[
            Row(
                name=picture.name,
                label="" if picture.label is None else picture.classes[picture.label],
                view=views[i],
                importance={c: m[i] for c, m in maps.importance.items() if i in m},
                kept={_kept(keep): maps.kept[by, keep][i] for keep in config.keeps if i in maps.kept[by, keep]},
            )
            for i, picture in enumerate(pictures)
        ],
        grid=patch_grid(tower.vit, images),
        columns=columns,
        notes=(_conditions(tower.name, config.golden), *_gaps(maps)),
    )
    return _written(sheet, config, out)


def _written(sheet: Sheet, config: ShowConfig, out: Path) -> Figure:
    drawing = draw(sheet, config.scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, drawing.png)
    return Figure(out, (IMAGE, *sheet.columns), tuple(sheet.notes), drawing.boxes)


def _tokens(trace: Trace) -> NDArray[np.integer]:
    """Return in which token each patch is at the end; its own where nothing was reduced."""
    patches = trace.grid[0] * trace.grid[1]
    own = torch.arange(patches).expand(len(trace.output), -1)
    return (tokens_of(trace.reductions, patches) if trace.reductions else own).cpu().numpy()


def _preservation(tower: Tower, images: Tensor, config: GoldenConfig) -> Tensor:
    """Return the golden importance of each image's patches by preservation, (B, N)."""
    score = ALIASES[GOLDEN]
    return torch.cat([golden_maps(tower.vit, image[None], [score], config)[score] for image in images])


@torch.inference_mode()
def _left(tower: Tower, pictures: Sequence[Subject], images: Tensor, views: Colours, config: ShowConfig) -> Sheet:
    """Return a sheet of the patch tokens that each method leaves, keep rate by keep rate."""
    grid = patch_grid(tower.vit, images)
    columns: dict[str, str] = {}
    tokens: dict[str, NDArray[np.integer]] = {}
    merges = []
    golden = _preservation(tower, images, config.golden) if GOLDEN in config.left else None
    for keep, method in product(config.keeps, config.left):
        column = f"{method} {100 * keep:g}"
        if method == GOLDEN:
            assert golden is not None
            kept = most_important(golden, keep).numpy()
            tokens[column], count = np.where(kept, np.arange(kept.shape[1]), -1), int(kept[0].sum())
        else:
            trace = reduced(tower, method, keep=keep, block=config.golden.block).trace(images)
            tokens[column], count = _tokens(trace), trace.final_tokens
            merges += [method] if any(step.into is not None for step in trace.reductions) else []
        columns[column] = f"{column} %\n{count} of {grid[0] * grid[1]} tokens"
    about = f"{tower.name}. Dropped patches are grey."
    if golden is not None:
        about += f" golden: {config.golden.described()}."
    if merges:
        names = ", ".join(dict.fromkeys(merges))
        about += f" {names}: patches that share a token have their mean colour, and no line between neighbours."
    rows = [
        Row(
            name=picture.name,
            label="" if picture.label is None else picture.classes[picture.label],
            view=views[i],
            importance={},
            kept={},
            tokens={column: every[i] for column, every in tokens.items()},
        )
        for i, picture in enumerate(pictures)
    ]
    return Sheet(rows=rows, grid=grid, columns=columns, notes=(about,))


def _kept(keep: float) -> str:
    return f"kept {100 * keep:g}"


def _titles(maps: Maps, by: str) -> dict[str, str]:
    """Return the columns with their titles, golden scores first."""
    keeps, titles = maps.config.keeps, {}
    others = [name for name in maps.importance if name not in SCORES]
    for name in (*(score for score in SCORES if score in maps.importance), *others):
        title = NAMES.get(name, name).replace(" ", "\n")
        if name in METHODS and not issubclass(METHODS[name], Pruner):
            title += f"\nat keep {100 * keeps[0]:g} %"  # ranks otherwise at another
        titles[name] = title
    name = NAMES.get(by, by)
    return titles | {_kept(keep): f"{100 * keep:g} % kept\nby {name}" for keep in keeps}


def _conditions(model: str, golden: GoldenConfig) -> str:
    return (
        f"{model}. Golden scores: windows of {golden.window} × {golden.window} patches, stride "
        f"{golden.stride}, removed before block {golden.block}. Colours show the rank of a patch "
        "within its image and ranking; they don't compare images."
    )


def _gaps(maps: Maps) -> list[str]:
    """Say what is left out and why, each reason once."""
    reasons: dict[str, list[tuple[str, int]]] = {}
    for gap, reason in maps.gaps.items():
        reasons.setdefault(reason, []).append(gap)
    notes = []
    for reason, gaps in reasons.items():
        names = " and ".join(dict.fromkeys(NAMES.get(column, column) for column, _ in gaps))
        rows = sorted({i for _, i in gaps})
        of = ", ".join(maps.pictures[i].name for i in rows)
        where = "" if len(rows) == len(maps.pictures) else f" of {of}"
        notes.append(f"Left out: {names}{where}: {reason}.")
    return notes
