"""`datasets check`: whether a dataset is whole: counts, and every image decoded."""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.table import Cell, Shown, Table
from harness.base.terminal import Progress
from harness.datasets import kind_of
from harness.datasets.base import SPLITS, Dataset, SplitName
from harness.datasets.images import Decoded, decode_all, how_many, shorten
from harness.datasets.public import RootedDataset
from harness.models.towers import text_classifier
from zoo.loading.clip import create_clip

SHOWN = 5  # names in a line
ROWS = 40  # classes that a table shows
LISTED = 20  # unreadable images
TOWER = "clip_vit_s14"


def check_dataset(dataset: Dataset, progress: Progress, *, fast: bool = False) -> Shown:
    """Check a dataset; ``fast`` decodes no image, and so finds neither damaged ones nor copies."""
    counts = {name: _count_images(dataset, dataset.labels(name)) for name in SPLITS}
    problems = dataset.problems() if isinstance(dataset, RootedDataset) else dataset.differences()
    notes = [f"{name} has no images" for name in SPLITS if not counts[name].any()]
    facts = _find_uneven(dataset, counts)
    unreadable: list[Decoded] = []
    bad: NDArray[np.int64] | None = None
    if not fast:
        decoded = decode_all(dataset, progress, known=False)
        unreadable = [image for name in SPLITS for image in decoded[name] if image.wrong]
        lost = {name: [not image.pixels for image in decoded[name]] for name in SPLITS}
        bad = np.sum([_count_images(dataset, dataset.labels(name)[lost[name]]) for name in SPLITS], axis=0)
        if unreadable:
            problems.append(f"{how_many(len(unreadable), 'unreadable')}; --skip-bad leaves them out")
        facts += _find_copies(dataset, decoded)
    # What a source has uneven or twice is a fact; in a folder of one's own it can be mended.
    (notes if kind_of(dataset.name) is None else problems).extend(facts)
    if not counts["test"].any():
        notes.append("measure on another split than test, with --split")
    if dataset.labelled:
        _, unknown = text_classifier(create_clip(TOWER), dataset.with_templates(("{}",)).without_unknown())
        if unknown:
            notes.append(
                f"{len(unknown)} of {len(dataset.classes)} classes have words that the text tower of {TOWER} never "
                f"saw; without shots, measure the others by --skip-unknown-classes: {shorten(unknown, SHOWN)}"
            )
    more = len(unreadable) - LISTED
    total = sum(int(own.sum()) for own in counts.values())
    outcome = f"problems: {len(problems)}" if problems else "no problem found"
    lines = [
        *(f"note: {line}" for line in notes),
        *(f"problem: {line}" for line in problems),
        *(f"  {image.wrong}" for image in unreadable[:LISTED]),
        *([f"  and {more} more"] if more > 0 else []),
        f"{dataset.name}, revision {dataset.revision}: {total:,} images {'listed' if fast else 'read'}, {outcome}",
    ]
    data: dict[str, Any] = {
        **{"name": dataset.name, "revision": dataset.revision, "classes": list(dataset.classes)},
        "counts": {name: own.tolist() for name, own in counts.items()},
        "bad": None if bad is None else bad.tolist(),
        **{"problems": problems, "notes": notes, "unreadable": [image.wrong for image in unreadable]},
    }
    return Shown(parts=(class_table(dataset, counts, bad), *lines), data=data, code=1 if problems else 0)


def _count_images(dataset: Dataset, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count images by class, (classes,); all in one where there are no labels."""
    return np.bincount(labels if dataset.labelled else labels + 1, minlength=max(len(dataset.classes), 1))


def _find_uneven(dataset: Dataset, counts: dict[SplitName, NDArray[np.int64]]) -> list[str]:
    """Tell classes that a split with images lacks."""
    found = []
    for name in SPLITS:
        lacking = np.flatnonzero(counts[name] == 0)
        if lacking.size and counts[name].any():
            names = shorten([dataset.classes[label] for label in lacking], SHOWN)
            found.append(f"{name} has no image of {lacking.size} classes: {names}")
    return found


def _find_copies(dataset: Dataset, decoded: dict[SplitName, list[Decoded]]) -> list[str]:
    """Tell images with equal pixels that are in two splits, or in two classes of one."""
    places: dict[str, list[tuple[SplitName, int, str]]] = defaultdict(list)
    for name in SPLITS:
        for image, label in zip(decoded[name], dataset.labels(name).tolist(), strict=True):
            if image.pixels:
                places[image.pixels].append((name, label, image.image_id))
    lines = []
    for what, at in (("two splits", 0), ("two classes", 1)):
        copies = [group for group in places.values() if len({place[at] for place in group}) > 1]
        if copies:
            ids = shorten([image_id for _, _, image_id in copies[0]], SHOWN)
            lines.append(f"images that are in {what}, pixel for pixel: {len(copies)}, such as {ids}")
    return lines


def class_table(dataset: Dataset, counts: dict[SplitName, NDArray[np.int64]], bad: NDArray[np.int64] | None) -> Table:
    """Lay out images by class, unless these are many, and in all."""
    columns: dict[str, NDArray[np.int64]] = {name: own for name, own in counts.items() if own.any()}
    columns |= {} if bad is None else {"unreadable": bad}
    names = dataset.classes if len(dataset.classes) <= ROWS else ()
    rows = [[name, *(own[at] for own in columns.values())] for at, name in enumerate(names)]
    rows.append(["(all)", *(own.sum() for own in columns.values())])
    title = f"{dataset.name}: {len(dataset.classes) or 'no'} classes"
    cells = [[Cell(name), *(Cell(f"{int(number):,}", int(number)) for number in own)] for name, *own in rows]
    return Table.of(title, ["class", *columns], cells, words=("class",))
