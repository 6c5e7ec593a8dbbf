"""Read tars in the layout that CLIP_benchmark reads and exports.

PATH/{test,train}/0.tar, 1.tar, ... beside PATH/classnames.txt; optional are nshards.txt in the
folders of tars and PATH/zeroshot_classification_templates.txt, with ``{c}`` for the class. Tars
come from elsewhere, so nothing in them is trusted.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from harness.datasets.base import SPLITS, Dataset, Rendered, Split, SplitName
from harness.datasets.captions import require_template, slug, text_lines
from harness.datasets.images import decode_image
from harness.datasets.webdataset import Sample, index_of, read_sample

CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",),
}  # fmt: skip


class TarDataset(Dataset):
    """The images in a folder of tars; an image is read where it lies.

    Args:
        folder: with the folders of tars.

    Raises:
        FileNotFoundError: no such folder, no tars, or one or the class names are missing.
        ValueError: a tar that is truncated or damaged, a label without a class, or another kind of
            dataset.
    """

    license = "see the dataset's own"
    source = "tars in CLIP_benchmark's layout"
    files = ()
    build_command = "none: it is made from a folder of tars"
    templates: tuple[str, ...] = ("a photo of a {}.",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.what = f"folder of tars {str(self.folder)!r}"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.what} does not exist")
        word = slug(self.folder.resolve().name, self.what)
        self.name, self.title = f"wds-{word}", f"Tars of the folder {self.folder.resolve().name}"
        self._classes = _class_names(self.folder, self.what)
        if (file := self.folder / TEMPLATES).is_file():
            self.templates = _templates(file)
        self.shards = {split: _shards(self.folder, split) for split in SPLITS}
        if not any(self.shards.values()):
            raise FileNotFoundError(
                f"{self.what} has no tars; expected test/0.tar, test/1.tar, ... and likewise train"
            )
        self._samples: dict[SplitName, list[Sample]] = {}
        for split, shards in self.shards.items():
            self._samples[split] = index_of(shards)
            self._check(split)
        if not any(self._samples.values()):
            raise ValueError(f"{self.what}: its tars hold no images")

    def _check(self, split: SplitName) -> None:
        """Refuse labels without a class, and keys that are there twice."""
        keys: set[str] = set()
        for sample in self._samples[split]:
            where = f"tar {str(self.shards[split][sample.shard])!r}: {sample.key!r}"
            if sample.label >= len(self._classes):
                raise ValueError(
                    f"{where} has the label {sample.label}; {CLASSES} has {len(self._classes)} "
                    "lines, for labels from 0"
                )
            if sample.key in keys:
                raise ValueError(f"{where} is in {split} twice")
            keys.add(sample.key)

    @property
    def classes(self) -> tuple[str, ...]:
        """Lines of classnames.txt."""
        return self._classes

    def _revision(self) -> str:
        """12 hex digits over class names and where which samples lie."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256("\0".join(self._classes).encode())
        for split, samples in self._samples.items():
            for sample in samples:
                digest.update(f"{split}\0{chr(0).join(map(str, sample))}\n".encode())
        return digest.hexdigest()[:12]

    @property
    def asked_as(self) -> str:
        """``wds:`` and the path of the folder."""
        return f"wds:{self.folder}"

    def _split(self, name: SplitName) -> Split:
        samples, shards = self._samples[name], self.shards[name]
        labels = np.array([sample.label for sample in samples], dtype=np.int64)

        def image_id(index: int) -> str:
            return f"{self.name}/{name}/{samples[index].key}"

        def render(index: int, _variant: int) -> Rendered:
            sample = samples[index]
            shard = shards[sample.shard]
            where = f"{sample.key}.{sample.extension} of tar {str(shard)!r}"
            return decode_image(read_sample(shard, sample), where), None

        return Split(labels, image_id, render)


def _class_names(folder: Path, what: str) -> tuple[str, ...]:
    kind = folder / "dataset_type.txt"
    if kind.is_file() and (told := text_lines(kind)) != ["classification"]:
        raise ValueError(
            f"{what}: {kind.name} says {' '.join(told)!r}; only classification with one label an "
            "image can be measured"
        )
    if not (folder / CLASSES).is_file():
        raise FileNotFoundError(
            f"{what}: {CLASSES} is missing; write the class of each label into it, one a line"
        )
    names = text_lines(folder / CLASSES)
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if (first := places.setdefault(name, place)) != place:
            raise ValueError(f"{what}: {CLASSES}: lines {first + 1} and {place + 1} are {name!r}")
    return tuple(names)


def _templates(file: Path) -> tuple[str, ...]:
    found = tuple(line.replace("{c}", "{}") for line in text_lines(file))
    for number, template in enumerate(found, start=1):
        try:
            require_template(template)
        except ValueError as error:
            raise ValueError(f"{str(file)!r}, line {number}: {error}; here it is {{c}}") from error
    return tuple(dict.fromkeys(found))


def _shards(folder: Path, split: SplitName) -> list[Path]:
    """List the tars of a split, in order of their numbers."""
    there = [folder / name for name in FOLDERS[split] if (folder / name).is_dir()]
    if len(there) > 1:
        raise ValueError(
            f"folder of tars {str(folder)!r}: {there[0].name} and {there[1].name} would both be "
            f"the {split} split; leave one"
        )
    if not there:
        return []
    told = there[0] / "nshards.txt"
    if told.is_file():
        [count, *more] = text_lines(told)
        if more or not count.isascii() or not count.isdigit() or len(count) > 7:
            raise ValueError(f"{str(told)!r}: expected the number of tars, got {count!r}")
        shards = [there[0] / f"{number}.tar" for number in range(int(count))]
        for shard in shards:
            if not shard.is_file():
                raise FileNotFoundError(
                    f"tar {str(shard)!r} is missing; {told.name} beside it says {count}"
                )
        return shards
    found = sorted(path for path in there[0].glob("*.tar") if path.is_file())
    return sorted(found, key=lambda path: int(path.stem) if path.stem.isdecimal() else -1)
