"""The painter of patches, and galleries beside records: which patches are kept."""

import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from harness.datasets import split_words
from harness.records.averages import protocol, tower_of
from harness.records.record import Record, conditions
from harness.report.charts import OPTIONS, encode
from zoo.core.files import digest

Colours = NDArray[np.floating]  # (height, width, 3) in [0, 1]
Size = tuple[int, int]  # height and width, in pixels or in patches

IMAGE = "image"  # column of the image itself
COLOURS = "viridis"  # perceptually uniform, and in order for every colour vision
DETAIL = 0.5  # contrast of the image's detail over the colours
# Colour of dropped patches, and how much of the image is left in it: a contrast of 3 to white and to
# black, and a tint that no grey image has, so they are told from kept patches; patterns make moiré.
DIM, LEFT = (0.40, 0.44, 0.62), 0.12
BORDER = 0.8  # grey of the lines between patches
DPI = 100  # pixels per inch at scale 1
WIDTH, PANEL = 20.0, (1.5, 4.8)  # inches of a sheet, and of a panel: least and most
LETTER = 0.115  # inches of a letter of text


@dataclass(frozen=True, kw_only=True)
class PatchRow:
    """One image of a sheet, as the model sees it, and by column what is known of its N patches.

    Attributes:
        importance: (N,) float, higher = keep. A column that nothing has is a dash.
        tokens: (N,) position of the token that a patch is in, its own where it is kept, below 0 where dropped.
        captions: line below the panel.
    """

    name: str
    label: str  # of its class, empty where unknown
    view: Colours
    importance: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    tokens: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PatchSheet:
    """Images in rows, what is known of their patches in columns."""

    rows: Sequence[PatchRow]  # images of one size
    grid: Size  # N patches in all
    columns: Mapping[str, str]  # their titles, in order; the image itself comes before them
    notes: Sequence[str] = ()  # lines below


def draw(sheet: PatchSheet, form: str = "png", scale: float = 1.0, **how: Any) -> bytes:
    """Draw a sheet as "png" or "jpg" bytes, about 2000 pixels wide at scale 1; ``how`` as `encode` takes it."""
    import matplotlib as mpl

    with mpl.rc_context(OPTIONS | {"font.size": 15, "axes.titlesize": 16}), warnings.catch_warnings():
        # A file's name may be in a script that the font lacks; boxes do for it.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        return encode(_figure(sheet, scale), form, round(DPI * scale), bbox_inches="tight", **how)


def _figure(sheet: PatchSheet, scale: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    columns = [IMAGE, *sheet.columns]
    across = min(max((WIDTH - 1) / len(columns) - 0.1, PANEL[0]), PANEL[1])
    size = fit(sheet.rows[0].view.shape[:2], sheet.grid, DPI * scale * across)
    down = across * size[0] / size[1]
    coloured = any(row.importance for row in sheet.rows)
    width = len(columns) * (across + 0.1) + 1
    notes = [line for note in sheet.notes for line in textwrap.wrap(note, int(width / LETTER))]
    height = len(sheet.rows) * (down + 0.4) + 1.2 + coloured + 0.3 * len(notes)
    figure = Figure(figsize=(width, height), layout="compressed", facecolor="white")
    axes = figure.subplots(len(sheet.rows), len(columns), squeeze=False)
    for j, column in enumerate(columns):
        axes[0, j].set_title(sheet.columns.get(column, IMAGE))
        for i, row in enumerate(sheet.rows):
            pixels = panel(row, column, sheet.grid, size)
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].spines[:].set_visible(False)
            axes[i, j].imshow(np.full((*size, 3), 0.95) if pixels is None else pixels)
            if pixels is None:
                axes[i, j].text(0.5, 0.5, "–", transform=axes[i, j].transAxes, ha="center", va="center")
            axes[i, j].set_xlabel(shorten(row.captions.get(column, ""), int(across / LETTER)), fontsize=13)
    for row, (first, *_) in zip(sheet.rows, axes, strict=True):
        letters = int(down / LETTER)
        lines = [row.name, *textwrap.wrap(row.label, letters)[:2]]
        first.set_ylabel("\n".join(shorten(line, letters) for line in lines))
    if coloured:
        bar = figure.colorbar(
            ScalarMappable(cmap=COLOURS), ax=axes, location="bottom",
            ticks=[0, 0.5, 1], fraction=0.05, aspect=80, shrink=0.6, pad=0.01,
        )  # fmt: skip
        bar.ax.set_xticklabels(["least important", "rank within the image", "most important"], fontsize=13)
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
    if notes:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=13)
    return figure


def panel(row: PatchRow, column: str, grid: Size, size: Size) -> Colours | None:
    """Return the pixels of a column; None where the row has nothing in it."""
    if column == IMAGE:
        return image_panel(row.view, size)
    if column in row.importance:
        return heat_panel(row.view, row.importance[column], grid, size)
    return token_panel(row.view, row.tokens[column], grid, size) if column in row.tokens else None


def fit(image: Size, grid: Size, width: float) -> Size:
    """Return the size of a panel of about that width, with as many pixels for every patch."""
    across = max(1, round(width / grid[1]))
    down = max(1, round(across * grid[1] * image[0] / image[1] / grid[0]))
    return down * grid[0], across * grid[1]


def ranks(importance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each patch within the image, (N,) in [0, 1], 1 the most important; ties share the mean."""
    return np.asarray((rankdata(importance) - 1) / max(1, len(importance) - 1))


def image_panel(view: Colours, size: Size) -> Colours:
    """Show an image."""
    pixels = Image.fromarray(np.rint(view * 255).astype(np.uint8))
    return np.asarray(pixels.resize(size[::-1], Image.Resampling.LANCZOS)) / 255


def heat_panel(view: Colours, importance: NDArray[np.floating], grid: Size, size: Size) -> Colours:
    """Colour each patch by its rank, with the image's detail over it.

    The detail is what differs from the patch's mean, so that a patch has the colour bar's colour on average, be the
    image light or dark.
    """
    from matplotlib import colormaps

    grey = image_panel(view, size) @ np.array([0.299, 0.587, 0.114])
    tiles = _tiles(grey, grid)
    detail = (tiles - tiles.mean(axis=(1, 3), keepdims=True)).reshape(size)
    colours = colormaps[COLOURS](ranks(importance).reshape(grid))[..., :3]
    return np.asarray((_spread(colours, size) + DETAIL * detail[..., None]).clip(0.0, 1.0))


def token_panel(view: Colours, token: NDArray[np.integer], grid: Size, size: Size) -> Colours:
    """Show kept patches as they are, dropped ones dimmed, and those that share a token in their mean colour.

    ``token`` is as in `PatchRow`. Lines are between patches that don't share a token.
    """
    image, own = image_panel(view, size), np.arange(len(token))
    apart = np.where(token < 0, -1 - own, token)  # what is dropped is in no token together
    means = _tiles(image, grid).mean(axis=(1, 3)).reshape(-1, 3)
    _, group, count = np.unique(apart, return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(group, channel) for channel in means.T], axis=1) / count[:, None]
    shared = (count[group] > 1).reshape(grid)[..., None]
    pixels = np.where(_spread(shared, size), _spread(mean[group].reshape(*grid, 3), size), image)
    pixels = np.where(_spread((token < 0).reshape(grid)[..., None], size), dim(image), pixels)
    cells = _spread(apart.reshape(grid)[..., None], size)[..., 0]
    pixels[1:][cells[1:] != cells[:-1]] = BORDER
    pixels[:, 1:][cells[:, 1:] != cells[:, :-1]] = BORDER
    return pixels


def dim(image: Colours) -> Colours:
    """Return what dropped patches are drawn as: nearly one colour."""
    return np.asarray((1 - LEFT) * np.array(DIM) + LEFT * image)


def shorten(name: str, letters: int) -> str:
    """Cut the middle out of a name that is too long; what tells files apart is at its ends."""
    keep = letters - 1
    return name if len(name) <= letters else f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"


def _tiles(pixels: NDArray[np.floating], grid: Size) -> NDArray[np.floating]:
    """Split pixels into patches: (rows, height, columns, width, ...)."""
    (height, width), (rows, columns) = pixels.shape[:2], grid
    return pixels.reshape(rows, height // rows, columns, width // columns, *pixels.shape[2:])


def _spread(cells: NDArray[np.generic], size: Size) -> NDArray[np.generic]:
    """Blow values of patches (rows, columns, channels) up to pixels."""
    rows = cells.repeat(size[0] // cells.shape[0], axis=0)
    return rows.repeat(size[1] // cells.shape[1], axis=1)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A picture that `compare` drew of what its rows keep of the first images of a dataset."""

    name: str  # of its file
    title: str
    alt: str  # for those who can't see it: what it shows, in one or two sentences
    jpeg: bytes  # with ``alt`` as its comment


def gallery_name(record: Record) -> str:
    """Return the name of the gallery that a record's row is in; rows of other conditions have another."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", f"{record.dataset}_{record.split}_{tower_of(record)}")[:120]
    return f"gallery_{slug}_{digest([record.version, *conditions(record)], length=6)}"


def read_galleries(runs: Sequence[Path], records: Sequence[Record]) -> list[Gallery]:
    """Read the galleries of records, those of images without labels first; of two runs the last one's counts.

    A run is a folder of records, or its file. Raises ValueError for a gallery that can't be read.
    """
    folders = [run if run.is_dir() else run.parent for run in runs]
    shown = {gallery_name(record): record for record in sorted(records, key=lambda record: record.labelled)}
    found = []
    for name, record in shown.items():
        for path in [path for folder in folders if (path := folder / f"{name}.jpg").is_file()][-1:]:
            try:
                jpeg = path.read_bytes()
                alt = Image.open(io.BytesIO(jpeg)).info["comment"].decode()
            except (OSError, KeyError) as error:
                what = f"{str(path)!r} is no gallery ({error})"
                raise ValueError(f"{what}; delete it, or draw it by `compare` with --fresh") from error
            how = protocol(record) if record.shots else "by text" if record.labelled else "without labels"
            where = f"{record.dataset} {split_words(record.dataset, record.split)}"
            found.append(Gallery(name=name, title=f"{where}, {how}, {tower_of(record)}", alt=alt, jpeg=jpeg))
    return found
