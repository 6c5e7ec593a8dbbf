"""Show images beside the importance of their patches by several rankings, and what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from harness.golden.gather import Gathering
from harness.golden.maps import patch_grid, unprocessed
from harness.golden.pictures import Picture
from harness.golden.sheet import Box, Row, Sheet, draw
from harness.progress import Progress
from harness.towers import load_tower
from zoo.golden import SCORES, GoldenConfig
from zoo.reducer import METHODS, Pruner, expected

PREDICTOR, ATTENTION = "patchrank", "clsattn"
ALIASES = {"predictor": PREDICTOR, "golden": "preservation"}
NAMES = {score: f"golden {score}" for score in SCORES}
NAMES |= {PREDICTOR: "predictor", ATTENTION: "CLS attention"}


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
    pictures: Sequence[Picture],
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
    _write(out, drawn.png)
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


def _gaps(gathering: Gathering, pictures: Sequence[Picture]) -> list[str]:
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


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
