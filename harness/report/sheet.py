"""A sheet: images beside the importance of their patches and the patches that are kept."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from harness.report.drawing import OPTIONS, saved

Colours = NDArray[np.floating]  # (height, width, 3) in [0, 1]
Size = tuple[int, int]  # height and width, in pixels or in patches

COLOURS = "viridis"  # perceptually uniform, and in order for every colour vision
DETAIL = 0.5  # contrast of the image's detail over the colours
# Greys of the stripes of dropped patches. Each has a contrast of 3 to white and to black, so they
# are told from kept patches of light and dark images, and the stripes from those of grey ones.
HATCH = (0.38, 0.56)
STRIPE = 5  # stripes to a patch's side, where they are wide enough to be seen
BORDER = 0.8  # grey of the lines between patches

# Pixels at scale 1.
WIDTH, PANEL_LEAST, PANEL_MOST = 2000, 150, 480
MARGIN, GAP, STRIP, HEAD, BAR, LINE = 20, 10, 84, 76, 84, 27
TITLE_SIZE, NAME_SIZE, NOTE_SIZE = 24, 21, 19
DPI = 72  # a pixel is a point, so that an SVG has the same pixels
IMAGE = "image"
APART: Any = {"image.composite_image": False}  # an SVG's images stay as many as the panels


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a sheet.

    Attributes:
        name: what it is called.
        label: name of its class, empty where unknown.
        view: (H, W, 3) float in [0, 1], the image as the model sees it.
        importance: column -> (N,) float, higher = keep. A column that is missing stays empty.
        kept: column -> (N,) bool.
        tokens: column -> (N,) position of the token that a patch is in, below 0 where dropped.
        captions: column -> line below the panel.
    """

    name: str
    label: str
    view: Colours
    importance: Mapping[str, NDArray[np.floating]]
    kept: Mapping[str, NDArray[np.bool_]]
    tokens: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What is drawn.

    Attributes:
        rows: the images, all of one size.
        grid: rows and columns of the patch grid, N in all.
        columns: column -> title, in order; the image itself comes first and isn't among them.
        notes: lines below.
    """

    rows: Sequence[Row]
    grid: tuple[int, int]
    columns: Mapping[str, str]
    notes: Sequence[str]


class Box(NamedTuple):
    """Where a panel is in the picture: pixels from left and top, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int


class Drawn(NamedTuple):
    """A picture, and where its panels are, by row and column; the image's column is ``image``."""

    png: bytes
    boxes: dict[tuple[int, str], Box]
    svg: bytes = b""  # if it was asked for


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
    """Draw a sheet: a row per image, a column per ranking.

    Args:
        sheet: what to draw.
        scale: size of everything; at 1 a sheet is about 2000 pixels wide.
        vector: draw it as SVG too, with the panels as images in it.
    """
    import matplotlib as mpl

    with mpl.rc_context(OPTIONS | APART), warnings.catch_warnings():
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
    told = round(scale * LINE) if any(row.captions for row in sheet.rows) else 0
    below = top + len(sheet.rows) * (size[0] + told + gap) - gap
    heat = {column for row in sheet.rows for column in row.importance}
    bar = round(scale * BAR) if heat else 0
    room = width - 2 * margin
    notes = [line for note in sheet.notes for line in wrapped(note, scale * NOTE_SIZE, room)]
    height = below + bar + margin + round(scale * LINE * len(notes)) + margin

    def box(row: int, column: int) -> Box:
        x, y = left + column * (size[1] + gap), top + row * (size[0] + told + gap)
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
        _draw_bar(canvas, box(len(sheet.rows) - 1, 1), min(3, len(sheet.columns)), told)
    for i, line in enumerate(notes):
        y = below + bar + margin + scale * LINE * i
        canvas.write(line, margin, y, NOTE_SIZE, va="top")
    return canvas, boxes


def _panel_size(sheet: Sheet, columns: int, scale: float) -> tuple[int, int]:
    """Return height and width of a panel: whole pixels per patch."""
    room = (WIDTH - 2 * MARGIN - STRIP - columns * GAP) / columns
    wanted = scale * min(max(room, PANEL_LEAST), PANEL_MOST)
    return fit(sheet.rows[0].view.shape[:2], sheet.grid, wanted)


def _fill(canvas: _Canvas, box: Box, row: Row, column: str, grid: tuple[int, int]) -> None:
    """Draw a panel, or a dash where there is nothing to draw."""
    size = (box.bottom - box.top, box.right - box.left)
    if column == IMAGE:
        canvas.paste(image_panel(row.view, size), box)
    elif column in row.importance:
        canvas.paste(heat_panel(row.view, row.importance[column], grid, size), box)
    elif column in row.kept:
        canvas.paste(kept_panel(row.view, row.kept[column], grid, size), box)
    elif column in row.tokens:
        canvas.paste(merged_panel(row.view, row.tokens[column], grid, size), box)
    else:
        canvas.paste(np.full((*size, 3), 0.95), box)
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        canvas.write("–", x, y, TITLE_SIZE, ha="center", va="center")


def _draw_bar(canvas: _Canvas, first: Box, panels: int, told: int) -> None:
    """Draw the colour bar below the first panels, wide enough for its words."""
    from matplotlib import colormaps

    gap, side = round(canvas.scale * GAP), first.right - first.left
    width, height = panels * (side + gap) - gap, round(canvas.scale * 18)
    top = first.bottom + told + round(canvas.scale * MARGIN)
    colours = colormaps[COLOURS](np.linspace(0, 1, width))[:, :3]
    bar = Box(first.left, top, first.left + width, top + height)
    canvas.paste(np.broadcast_to(colours, (height, width, 3)), bar)
    y = bar.bottom + gap / 2
    for text, x, side_of in (
        ("least important", bar.left, "left"),
        ("rank within the image", (bar.left + bar.right) / 2, "center"),
        ("most important", bar.right, "right"),
    ):
        canvas.write(text, x, y, NOTE_SIZE, ha=side_of, va="top")


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
    from matplotlib import colormaps

    colours = colormaps[COLOURS](ranks(importance).reshape(grid))[..., :3]
    grey = image_panel(view, size) @ np.array([0.299, 0.587, 0.114])
    tiles = grey.reshape(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1])
    detail = (tiles - tiles.mean(axis=(1, 3), keepdims=True)).reshape(size)
    blended = _spread(colours, size) + DETAIL * detail[..., None]
    return np.asarray(blended.clip(0.0, 1.0))


def kept_panel(view: Colours, kept: NDArray[np.bool_], grid: Size, size: Size) -> Colours:
    """Show the kept patches as they are and the others hatched in grey, with lines between."""
    stays = _spread(kept.reshape(grid)[..., None], size)
    panel = np.where(stays, image_panel(view, size), hatch(grid, size))
    panel[np.arange(1, grid[0]) * (size[0] // grid[0])] = BORDER
    panel[:, np.arange(1, grid[1]) * (size[1] // grid[1])] = BORDER
    return panel


def merged_panel(view: Colours, token: NDArray[np.integer], grid: Size, size: Size) -> Colours:
    """Show which patches share a token: in their mean colour, with lines around them.

    Patches that have a token to themselves are as they are, dropped ones hatched.

    Args:
        view: the image.
        token: (N,) position of the token that each patch is in, below 0 where it was dropped.
        grid: rows and columns of patches.
        size: of the panel.
    """
    image, own = image_panel(view, size), np.arange(len(token))
    apart = np.where(token < 0, -1 - own, token)  # what is dropped is in no token together
    tiles = image.reshape(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1], 3)
    means = tiles.mean(axis=(1, 3)).reshape(-1, 3)
    _, group, count = np.unique(apart, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(group, channel) for channel in means.T], axis=1) / count[:, None]
    shared = (count[group] > 1).reshape(grid)[..., None]
    panel = np.where(_spread(shared, size), _spread(mean[group].reshape(*grid, 3), size), image)
    dropped = _spread((token < 0).reshape(grid)[..., None], size)
    panel = np.where(dropped, hatch(grid, size), panel)
    pixels = _spread(apart.reshape(grid)[..., None], size)[..., 0]
    panel[1:][pixels[1:] != pixels[:-1]] = BORDER
    panel[:, 1:][pixels[:, 1:] != pixels[:, :-1]] = BORDER
    return panel


def hatch(grid: Size, size: Size) -> Colours:
    """Return what dropped patches are filled with: diagonal stripes in two greys."""
    width = max(2, round(size[0] / grid[0] / STRIPE))
    down, across = np.indices(size)
    grey = np.array(HATCH)[(down + across) // width % 2]
    return np.stack([grey] * 3, axis=2)


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
    shorter, kept = name, len(name)
    while kept > 2 and width_of(shorter, size) > width:
        kept -= 1
        shorter = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
    return shorter
