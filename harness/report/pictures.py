"""The painter of patches, and galleries of a run's traces: which patches are kept."""

import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from harness.datasets import split_words
from harness.records.averages import REFERENCE, protocol, tower_of
from harness.records.record import DENSE, GOLDEN, RANDOM, Record
from harness.records.traces import RANKING, TRACES, Facts, RowTraces, Thumbnails, leaving_out, order, read_traces
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
IMAGES = 4  # of a gallery
SCALE = 0.62  # of a gallery, of a sheet's 2000 pixels


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


def draw(sheet: PatchSheet, form: str = "png", scale: float = 1.0) -> bytes:
    """Draw a sheet as "png" or "jpg" bytes, about 2000 pixels wide at scale 1."""
    import matplotlib as mpl

    with mpl.rc_context(OPTIONS | {"font.size": 15, "axes.titlesize": 16}), warnings.catch_warnings():
        # A file's name may be in a script that the font lacks; boxes do for it.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        return encode(_figure(sheet, scale), form, round(DPI * scale), bbox_inches="tight")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedGroup:
    """Rows of one dataset, tower and tuning, on the same images.

    The dense row comes first, then the golden ranking, then methods by name, keep rates falling.
    """

    rows: Sequence[RowTraces]
    thumbnails: Thumbnails  # of some of the images

    @property
    def facts(self) -> Any:
        """What all rows have in common, by the first one's, which name what records do."""
        return self.rows[0].facts

    @property
    def lowest(self) -> list[RowTraces]:
        """The golden ranking, if there is one, and each method's row of the lowest keep rate, without controls."""
        reduced = [row for row in self.rows if row.facts.keep < 1 and row.facts.method not in (GOLDEN, RANDOM)]
        least = {row.facts.method: row.facts.keep for row in reduced}  # rates fall
        return [row for row in self.rows if row.golden or row.facts.keep == least.get(row.facts.method)]


def group_traces(
    runs: Sequence[Path | str], records: Sequence[Record] | None = None, left_out: Callable[[str], object] | None = None
) -> list[TracedGroup]:
    """Share the traces of runs out to groups; runs without traces have none.

    A run is a folder of records, or its file; of a row that several have the last counts. Groups are of the rows of
    ``records``, in their order, with the golden rankings beside them; None for all, by name. ``left_out``:
    `leaving_out`.

    Raises:
        ValueError: a file is torn, somebody else's, or of a newer version.
        OSError: one can't be opened.
    """
    newest: dict[str, tuple[RowTraces, Path]] = {}
    for folder in dict.fromkeys(run.parent if run.is_file() else run for run in map(Path, runs)):
        if (folder / TRACES).is_dir():
            newest |= {row.facts.name: (row, folder) for row in read_traces(folder, records, left_out)}
    shares: dict[str, list[tuple[RowTraces, Path]]] = {}
    for record in records or ():
        shares.setdefault(digest(Facts.of(record).conditions), [])
    for row, folder in newest.values():
        shares.setdefault(digest(row.facts.conditions), []).append((row, folder))
    groups = []
    for share in filter(None, shares.values()):
        rows = sorted((row for row, _ in share), key=order)
        # Images that a row lacks are left out of all.
        shared = set.intersection(*(set(row.image_ids) for row in rows))
        ids = [name for name in rows[0].image_ids if name in shared]
        jpeg: dict[str, bytes] = {}
        for folder in dict.fromkeys(folder for _, folder in share):
            with leaving_out(left_out):
                jpeg |= Thumbnails.read(folder, rows[0].facts).jpeg
        groups.append(TracedGroup(rows=[row.take(ids) for row in rows], thumbnails=Thumbnails(jpeg=jpeg)))
    return [group for group in groups if group.rows[0].image_ids]


def label(row: RowTraces, rows: Sequence[RowTraces]) -> str:
    """Name a row, telling from the others its keep rate and, if need be, a hash of its settings."""
    if row.golden:
        return RANKING
    words, place = row.facts.method, (row.facts.method, row.facts.keep)
    if len({other.facts.keep for other in rows if not other.golden}) > 1:
        words += f" {100 * row.facts.keep:.3g} %"
    same = [other for other in rows if (other.facts.method, other.facts.keep) == place]
    return words if len(same) == 1 else f"{words} {digest(row.facts.method_config, length=4)}"


@dataclass(frozen=True, kw_only=True)
class TracePicture:
    """One drawn picture of traces."""

    name: str  # of its file
    title: str
    alt: str  # for those who can't see it: what it shows, in one or two sentences
    jpeg: bytes


def galleries(traced: Sequence[TracedGroup]) -> list[TracePicture]:
    """Draw the first images of each dataset, tower and tuning at the lowest keep rates, images without labels first.

    Runs without small copies of the images have no gallery.
    """
    ordered = sorted(traced, key=lambda group: group.rows[0].labels[0] is not None)
    known = [(group, [i for i in group.rows[0].image_ids if i in group.thumbnails.jpeg][:IMAGES]) for group in ordered]
    return [_gallery(group, ids) for group, ids in known if ids and not all(row.golden for row in group.lowest)]


def _gallery(group: TracedGroup, ids: Sequence[str]) -> TracePicture:
    # The method that learns the golden ranking beside it.
    place = sorted(group.lowest, key=lambda row: (not row.golden, row.facts.method != REFERENCE))
    named = {label(row, place): row.take(ids) for row in place}
    dense = [(IMAGE, row.take(ids)) for row in group.rows if row.facts.method == DENSE]
    answers = {key: row for key, row in (*dense, *named.items()) if None not in row.predicted}
    first, facts = next(iter(named.values())), group.facts
    sheet = PatchSheet(
        rows=[
            PatchRow(
                name=name,
                label=first.labels[i] or "",
                view=group.thumbnails.view(name),
                importance={key: row.importance[i] for key, row in named.items() if row.golden and row.ranked[i]},
                tokens={key: row.token[i] for key, row in named.items() if not row.golden},
                captions={k: f"{'✓' if row.correct[i] else '✗'} {row.predicted[i]}" for k, row in answers.items()},
            )
            for i, name in enumerate(ids)
        ],
        grid=first.grid,
        columns={
            key: key.replace(" ", "\n", 1) if row.golden else f"{key}\n{_token_count(row)} tokens"
            for key, row in named.items()
        },
    )
    right = ", ".join(f"{DENSE if k == IMAGE else k} {sum(map(bool, row.correct))}" for k, row in answers.items())
    how = protocol(facts) if facts.shots else "by text" if answers else "without labels"
    slug = re.sub(r"[^A-Za-z0-9]+", "_", f"{facts.dataset}_{facts.split}_{tower_of(facts)}")
    return TracePicture(
        name=f"gallery_{slug}_{digest(facts.conditions, length=6)}",
        title=f"{facts.dataset} {split_words(facts.dataset, facts.split)}, {how}, {tower_of(facts)}",
        alt=f"{len(ids)} images ({', '.join(map(str, first.labels if answers else ids))}) and what is kept of them by "
        f"{', '.join(named)}{f'; right answers: {right}' if right else ''}.",
        jpeg=draw(sheet, "jpg", SCALE),
    )


def _token_count(row: RowTraces) -> str:
    """Say how many tokens are left of the patches, the least and the most of all images."""
    tokens = sorted({len(set(each) - {-1}) for each in row.token.tolist()})
    return " to ".join(map(str, tokens[:1] + tokens[1:][-1:]))
