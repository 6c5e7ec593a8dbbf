"""Galleries: images beside what each method keeps of them, and what it answers."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.conditions import DENSE, GOLDEN
from harness.golden.sheet import IMAGE, Row, Sheet, draw
from harness.picture import Picture
from harness.records import Record
from harness.report_pictures.agreement import taus
from harness.report_pictures.groups import Group, groups, keeps, label
from harness.traces import RowTraces

IMAGES = 6
SCALE = 0.62  # of a sheet's 2000 pixels
LIMIT = 1_000_000  # bytes of a picture; above, it gets coarser
QUALITIES = (85, 70, 50, 30)  # of the panels in an SVG
RANDOM = "random"
RIGHT, WRONG = "✓", "✗"
ABOUT = (
    "What is left of {count} {split} images at the lowest keep rate, {keeps}. {rule} Patches whose "
    "token was dropped are hatched in grey. {merging}Below each panel is the class that the model "
    "answers, {right} right or {wrong} wrong, below the image what the dense one does; on the left "
    "the image's id and true class. {golden}Images are as the tower sees them."
)
MERGING = (
    "Where a method merges ({names}), patches that share a token are drawn in their mean colour "
    "without a line between them; they needn't touch, and nothing is dropped. "
)
RANKED = "The golden ranking is drawn as the rank of each patch, whatever is kept. "
FIRST = "They are the first {count} of the {images} traced ones, which take turns by class."
APART = (
    "They are those of the {images} traced ones on which rankings disagree most: the mean Kendall "
    "τ-b over all pairs of {rows} is least, {low:.2f} to {high:.2f} here against {every:.2f} on "
    "average."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Images of a gallery.

    Attributes:
        name: short, for the file.
        title: what they are.
        rule: how they were chosen, a sentence.
        image_ids: which.
    """

    name: str
    title: str
    rule: str
    image_ids: Sequence[str]


def galleries(*runs: Path | str, records: Sequence[Record] | None = None) -> list[Picture]:
    """Draw galleries of each dataset, tower and tuning at the lowest keep rate.

    One is of the first images, another of those on which rankings disagree most. Runs without
    small copies of the images have none.

    Args:
        runs: folders of records, or the files of records in them.
        records: rows that are wanted; None for all.

    Raises:
        ValueError: a file of traces is torn, somebody else's, or of a newer version.
    """
    return galleries_of(groups(runs, records))


def galleries_of(traced: Sequence[Group]) -> list[Picture]:
    """Do what `galleries` does, of groups that were read already."""
    found = []
    for group in traced:
        if group.levels and any(name in group.thumbnails for name in group.image_ids):
            found += [_picture(group, choice) for choice in choices(group)]
    return found


def choices(group: Group) -> list[Choice]:
    """Return the images that are shown, and why these."""
    shown = [name for name in group.image_ids if name in group.thumbnails]
    first = shown[:IMAGES]
    told = {"count": len(first), "images": len(shown)}
    found = [Choice(name="first", title="first images", rule=FIRST.format(**told), image_ids=first)]
    rows, agreed = disagreement(group)
    place = {name: i for i, name in enumerate(group.image_ids)}
    ranked = [name for name in shown if not np.isnan(agreed[place[name]])]
    if len(rows) > 1 and len(ranked) > IMAGES:
        ranked.sort(key=lambda name: agreed[place[name]])
        least = ranked[:IMAGES]
        values = [agreed[place[name]] for name in least]
        names = ", ".join(label(row, rows) for row in rows)
        rule = APART.format(
            images=len(shown),
            rows=names,
            low=min(values),
            high=max(values),
            every=float(np.mean([agreed[place[name]] for name in ranked])),
        )
        title = "where rankings disagree most"
        found.append(Choice(name="disagreeing", title=title, rule=rule, image_ids=least))
    return found


def disagreement(group: Group) -> tuple[list[RowTraces], NDArray[np.float64]]:
    """Return the rows whose rankings count, and per image their mean tau-b over all pairs.

    Random pruning agrees with nothing, so it is left out. NaN for an image where a pair has none.
    """
    level = [row for row in group.levels[-1] if row.facts.method not in (RANDOM, GOLDEN)]
    rows = [row for row in (*group.golden, *level) if row.ranked.any()]
    every = [taus(one, other) for i, one in enumerate(rows) for other in rows[:i]]
    if not every:
        return rows, np.full(len(group.image_ids), np.nan)
    return rows, np.mean(every, axis=0)


def _picture(group: Group, choice: Choice) -> Picture:
    level = group.levels[-1]
    ids = choice.image_ids
    rows = [row.take(ids) for row in (*group.golden, *level)]
    dense = [row.take(ids) for row in group.rows if row.facts.method == DENSE]
    merging = [label(row, rows) for row in rows if _merges(row)]
    columns = {label(row, rows): _head(row, rows) for row in rows}
    sheet = Sheet(
        rows=[_row(group, rows, dense, i) for i in range(len(ids))],
        grid=rows[0].grid,
        columns=columns,
        notes=(),
    )
    drawn = draw(sheet, SCALE, vector=True)
    about = ABOUT.format(
        count=len(ids),
        split=group.facts.split,
        keeps=keeps(level),
        rule=choice.rule,
        merging=MERGING.format(names=", ".join(merging)) if merging else "",
        right=RIGHT,
        wrong=WRONG,
        golden=RANKED if group.golden else "",
    )
    return Picture(
        name=f"gallery_{choice.name}_{group.slug}",
        title=f"Kept patches, {choice.title}: {group.title}",
        about=about,
        alt=_alt(rows, dense),
        svg=lighter(drawn.svg),
        png=fewer_colours(drawn.png),
    )


def _row(group: Group, rows: Sequence[RowTraces], dense: Sequence[RowTraces], i: int) -> Row:
    name = rows[0].image_ids[i]
    named = {label(row, rows): row for row in rows}
    answers = {key: _answer(row, i) for key, row in named.items() if not row.golden}
    return Row(
        name=name,
        label=rows[0].labels[i],
        view=group.thumbnails.view(name),
        importance={
            k: row.importance[i] for k, row in named.items() if row.golden and row.ranked[i]
        },
        kept={k: row.kept[i] for k, row in named.items() if not row.golden and not _merges(row)},
        tokens={k: row.token[i] for k, row in named.items() if _merges(row)},
        captions=answers | ({IMAGE: _answer(dense[0], i)} if dense else {}),
    )


def _merges(row: RowTraces) -> bool:
    """Tell whether a patch is in a token that isn't its own."""
    own = np.arange(row.token.shape[1])
    return bool(((row.token >= 0) & (row.token != own)).any())


def _answer(row: RowTraces, i: int) -> str:
    return f"{RIGHT if row.correct[i] else WRONG} {row.predicted[i]}"


def _head(row: RowTraces, rows: Sequence[RowTraces]) -> str:
    """Name a column, with the tokens that are left of all."""
    if row.golden:
        return label(row, rows).replace(" ", "\n", 1)
    tokens = sorted({len(set(each) - {-1}) for each in row.token.tolist()})
    return f"{label(row, rows)}\n{' to '.join(map(str, tokens[:1] + tokens[1:][-1:]))} tokens"


def _alt(rows: Sequence[RowTraces], dense: Sequence[RowTraces]) -> str:
    """Say which images these are and how many of them each row gets right."""
    told = [
        f"{'dense' if row in dense else label(row, rows)} {sum(map(bool, row.correct))}"
        for row in (*dense, *rows)
        if not row.golden
    ]
    count = len(rows[0].image_ids)
    return (
        f"{count} images ({', '.join(rows[0].labels)}) with their kept patches by method; right "
        f"answers of {count}: {', '.join(told)}."
    )


def lighter(svg: bytes) -> bytes:
    """Return a drawing with JPEGs in it instead of PNGs, in which photos take much room."""
    for quality in QUALITIES:

        def again(match: re.Match[bytes], quality: int = quality) -> bytes:
            content = base64.b64decode(re.sub(rb"\s", b"", match[1]))
            with Image.open(io.BytesIO(content)) as image:
                made = _bytes(image.convert("RGB"), "JPEG", quality=quality, subsampling=0)
            return b"data:image/jpeg;base64," + base64.b64encode(made)

        found = re.sub(rb"data:image/png;base64,([A-Za-z0-9+/=\s]+)", again, svg)
        if len(found) <= LIMIT:
            break
    return found


def fewer_colours(png: bytes) -> bytes:
    """Return a bitmap of at most 256 colours if it takes too much room."""
    if len(png) <= LIMIT:
        return png
    with Image.open(io.BytesIO(png)) as image:
        return _bytes(image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT), "PNG")


def _bytes(image: Image.Image, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, optimize=True, **how)
    return buffer.getvalue()
