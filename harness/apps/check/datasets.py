"""`datasets check`: whether a dataset is whole: counts, and every image decoded."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from harness.base.table import Shown, json_values
from harness.base.terminal import Progress
from harness.datasets import kind_of
from harness.datasets.base import SPLITS, Dataset, SplitName
from harness.datasets.images import Decoded, decode_all, how_many, shorten
from harness.datasets.public import RootedDataset
from harness.models.towers import text_classifier
from zoo.loading.clip import create_clip

SHOWN = 5  # names in a line
ROWS = 40  # classes that a table shows; of more, those that stand out
LISTED = 20  # unreadable images
TOWER = "clip_vit_s14"

Counts = dict[SplitName, NDArray[np.int64]]  # by split, (classes,)


@dataclass(frozen=True)
class CheckedDataset:
    """What a check found.

    counts: images of each class, (classes,) by split, or (1,) without classes. bad: unreadable ones
    likewise; None where no image was decoded. problems: what should be mended, one a line. notes:
    what is good to know, likewise. unreadable: why each image can't be read.
    """

    name: str
    revision: str
    classes: tuple[str, ...]
    counts: Counts
    bad: Counts | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]


def check_dataset(dataset: Dataset, progress: Progress, *, fast: bool = False) -> CheckedDataset:
    """Check a dataset; ``fast`` decodes no image, and so finds neither damaged ones nor copies."""
    counts = {name: _count_images(dataset, dataset.labels(name)) for name in SPLITS}
    uneven, notes = _find_uneven(dataset, counts)
    problems: list[str] = []
    # What a source has uneven or twice is a fact; in a folder of one's own it can be mended.
    facts = notes if kind_of(dataset.name) is None else problems
    facts += uneven
    if isinstance(dataset, RootedDataset):
        problems += dataset.problems()
    else:
        problems += dataset.differences()
    bad: Counts | None = None
    unreadable: tuple[str, ...] = ()
    if not fast:
        decoded = decode_all(dataset, progress, known=False)
        unreadable = tuple(decoded.bad.values())
        bad = {}
        for name in SPLITS:
            lost = np.array([not digest for digest in decoded.digests[name]], dtype=np.bool_)
            bad[name] = _count_images(dataset, dataset.labels(name)[lost])
        if unreadable:
            count = how_many(len(unreadable), "unreadable")
            problems.append(f"{count}; --skip-bad leaves them out")
        facts += _find_copies(dataset, decoded)
    left_out: tuple[str, ...] = ()
    if dataset.labelled:
        _, left_out = text_classifier(create_clip(TOWER), dataset.with_templates(("{}",)).without_unknown())
    if left_out:
        notes.append(
            f"{len(left_out)} of {len(dataset.classes)} classes have words that the text tower of {TOWER} never "
            f"saw; without shots, measure the others by --skip-unknown-classes: {shorten(left_out, SHOWN)}"
        )
    names = (dataset.name, dataset.revision, dataset.classes)
    return CheckedDataset(*names, counts, bad, tuple(problems), tuple(notes), unreadable)


def _count_images(dataset: Dataset, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count images by class, (classes,); all in one where there are no labels."""
    return np.bincount(labels if dataset.labelled else labels + 1, minlength=max(len(dataset.classes), 1))


def _find_uneven(dataset: Dataset, counts: Counts) -> tuple[list[str], list[str]]:
    """Tell classes that a split lacks; and splits without images."""
    uneven, notes = [], []
    for name in SPLITS:
        lacking = np.flatnonzero(counts[name] == 0)
        if not counts[name].any():
            notes.append(f"{name} has no images")
        elif lacking.size:
            names = shorten([dataset.classes[label] for label in lacking], SHOWN)
            uneven.append(f"{name} has no image of {lacking.size} classes: {names}")
    if not counts["test"].any():
        notes.append("measure on another split than test, with --split")
    return uneven, notes


def _find_copies(dataset: Dataset, decoded: Decoded) -> list[str]:
    """Tell images with equal pixels that are in two splits, or in two classes of one."""
    places: dict[str, list[tuple[SplitName, int, str]]] = defaultdict(list)
    for name in SPLITS:
        split = dataset.split(name)
        images = zip(decoded.digests[name], split.labels.tolist(), split.image_ids, strict=True)
        for digest, label, image_id in images:
            if digest:
                places[digest].append((name, label, image_id))
    groups = [group for group in places.values() if len(group) > 1]
    apart = [group for group in groups if len({name for name, _, _ in group}) > 1]
    torn = [group for group in groups if len({label for _, label, _ in group}) > 1]
    lines = []
    for what, some in (("two splits", apart), ("two classes", torn)):
        if some:
            ids = shorten([image_id for _, _, image_id in some[0]], SHOWN)
            lines.append(f"images that are in {what}, pixel for pixel: {len(some)}, such as {ids}")
    return lines


def show_check(checked: CheckedDataset) -> Shown:
    """Lay out what a check found."""
    lines = [f"note: {line}" for line in checked.notes]
    lines += [f"problem: {line}" for line in checked.problems]
    lines += [f"  {line}" for line in checked.unreadable[:LISTED]]
    if (more := len(checked.unreadable) - LISTED) > 0:
        lines.append(f"  and {more} more")
    total = sum(int(counts.sum()) for counts in checked.counts.values())
    read = f"{total:,} images {'listed' if checked.bad is None else 'read'}"
    outcome = f"problems: {len(checked.problems)}" if checked.problems else "no problem found"
    lines.append(f"{checked.name}, revision {checked.revision}: {read}, {outcome}")
    code = 1 if checked.problems else 0
    return Shown(parts=(class_table(checked), *lines), data=json_values(checked), code=code)


def class_table(checked: CheckedDataset) -> Table:
    """Lay out the images of each class; of many classes those that lack some."""
    table = Table("class", title=f"{checked.name}: {len(checked.classes) or 'no'} classes")
    splits = [name for name in SPLITS if checked.counts[name].any()]
    numbers: dict[str, NDArray[np.int64]] = {name: checked.counts[name] for name in splits}
    odd = (np.stack([*numbers.values()]) == 0).any(axis=0)
    if checked.bad is not None:
        numbers["unreadable"] = np.sum([checked.bad[name] for name in splits], axis=0)
        odd |= numbers["unreadable"] > 0
    for heading in numbers:
        table.add_column(heading, justify="right")

    def row(name: str, of: Callable[[NDArray[np.int64]], Any]) -> None:
        table.add_row(name, *(f"{int(of(counts)):,}" for counts in numbers.values()))

    labels = np.arange(len(checked.classes))
    short = len(labels) <= ROWS
    for label in labels if short else labels[odd][:ROWS]:
        row(checked.classes[label], itemgetter(label))
    if not short:
        if (more := int(odd.sum()) - ROWS) > 0:
            table.add_row(f"... and {more} more like these")
        for word, of in (("fewest", np.min), ("median", np.median), ("most", np.max)):
            row(f"({word})", of)
    row("(all)", np.sum)
    return table
