"""`datasets check`: whether a dataset is whole: counts, and every image decoded."""

from collections import defaultdict

import numpy as np

from harness.base.table import Shown, Table, count_of
from harness.base.terminal import Progress
from harness.datasets import kind_of
from harness.datasets.base import SPLITS, Dataset, SplitName
from harness.datasets.images import Decoded, decode_all, shorten
from harness.datasets.public import RootedDataset
from harness.datasets.text_features import text_classifier
from zoo.loading.clip import create_clip

SHOWN = 5  # names in a line
LISTED = 40  # classes of the table, and unreadable images
TOWER = "clip_vit_s14"


def check_dataset(dataset: Dataset, progress: Progress, *, fast: bool = False) -> Shown:
    """Check a dataset; ``fast`` decodes no image, and finds neither damaged images nor copies."""
    classes = dataset.classes
    counts = {  # images of each class; all in one where there are no labels
        name: np.bincount(dataset.labels(name) + (not dataset.labelled), minlength=max(len(classes), 1))
        for name in SPLITS
    }
    there = {name: count for name, count in counts.items() if count.any()}
    problems = dataset.problems() if isinstance(dataset, RootedDataset) else dataset.differences()
    notes = [f"{name} has no images" for name in SPLITS if name not in there]
    oddities = [  # of a source they are noted; in a folder of one's own they can be mended
        f"{name} has no image of {lacking.size} classes: {shorten([classes[label] for label in lacking], SHOWN)}"
        for name, count in there.items()
        if (lacking := np.flatnonzero(count == 0)).size
    ]
    unreadable: list[str] = []
    if not fast:
        decoded = decode_all(dataset, progress, known=False)
        unreadable = [image.wrong for name in SPLITS for image in decoded[name] if image.wrong]
        if unreadable:
            problems.append(f"{count_of(len(unreadable), 'unreadable image')}; --skip-bad leaves them out")
        oddities += _find_copies(dataset, decoded)
    (notes if kind_of(dataset.name) is None else problems).extend(oddities)
    if "test" not in there:
        notes.append("measure on another split than test, with --split")
    if dataset.labelled:
        _, unknown = text_classifier(create_clip(TOWER), dataset.with_templates(("{}",)).without_unknown())
        if unknown:
            notes.append(
                f"{len(unknown)} of {len(classes)} classes have words that the text tower of {TOWER} never "
                f"saw; without shots, measure the others by --skip-unknown-classes: {shorten(unknown, SHOWN)}"
            )
    total = sum(int(count.sum()) for count in counts.values())
    outcome = f"problems: {len(problems)}" if problems else "no problem found"
    lines = [
        *(f"note: {line}" for line in notes),
        *(f"problem: {line}" for line in problems),
        *(f"  {line}" for line in unreadable[:LISTED]),
        f"{dataset.name}, revision {dataset.revision}: {total:,} images {'listed' if fast else 'read'}, {outcome}",
    ]
    names = classes if len(classes) <= LISTED else ()
    rows = [[name, *(f"{count[at]:,}" for count in there.values())] for at, name in enumerate(names)]
    rows.append(["(all)", *(f"{count.sum():,}" for count in there.values())])
    table = Table.of(f"{dataset.name}: {len(classes) or 'no'} classes", ["class", *there], rows, words=("class",))
    data = {
        **{"name": dataset.name, "revision": dataset.revision, "classes": list(classes)},
        "counts": {name: count.tolist() for name, count in counts.items()},
        **{"problems": problems, "notes": notes, "unreadable": unreadable},
    }
    return Shown(parts=(table, *lines), data=data, code=1 if problems else 0)


def _find_copies(dataset: Dataset, decoded: dict[SplitName, list[Decoded]]) -> list[str]:
    """Return a line about images with equal pixels in two splits, and about those in two classes."""
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
