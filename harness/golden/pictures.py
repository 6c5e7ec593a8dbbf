"""The images that a figure is asked for: files, or places in a dataset's split."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness.datasets import KINDS, get_dataset
from harness.datasets.images import LEAVE_OUT, read_image
from zoo.reducer import expected

PLACE = re.compile(rf"(?P<dataset>(?:{'|'.join(KINDS)}):.+|[\w-]+):(?P<split>\w*):(?P<index>-?\w*)")
TEMPLATES = ("a photo of a {}.",)  # for classes that come without a dataset


@dataclass(frozen=True, kw_only=True)
class Picture:
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
) -> list[Picture]:
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
) -> Picture:
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(
            f"image {place!r} does not exist; expected an image file, or dataset:split:index such "
            "as fashion:val:3"
        )
    image = read_image(path, way=LEAVE_OUT)
    return Picture(name=path.name, image=image, label=label, classes=classes, templates=templates)


def _from_dataset(place: str) -> Picture:
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
    return Picture(
        name=f"{dataset.name}:{match['split']}:{match['index']}",
        image=example.image,
        label=example.label,
        classes=dataset.classes,
        templates=dataset.templates,
    )
