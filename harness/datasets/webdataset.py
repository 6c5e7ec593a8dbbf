"""Read tars in the layout that CLIP_benchmark reads and exports.

PATH/{train,val,test}/0.tar, 1.tar, ... beside PATH/classnames.txt; optional are nshards.txt in the folders of tars and
PATH/zeroshot_classification_templates.txt, with ``{c}`` for the class. A sample is KEY.png (jpg, jpeg, webp) and
KEY.cls, a number. Where PATH/dataset_type.txt says retrieval there are no classes, and a sample is the image and
KEY.txt, a caption a line. Images are read at random where they lie, which the package `webdataset` can't do. Tars come
from elsewhere, so nothing is extracted, and other members are never read.
"""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.datasets.archives import members_of
from harness.datasets.base import (
    SPLITS,
    OwnDataset,
    Rendered,
    Split,
    SplitName,
    lines_of,
    match_splits,
    require_template,
    require_unique,
)
from harness.datasets.images import decode_image
from zoo.core.digests import digest
from zoo.core.files import require_file

CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
IMAGES = ("jpeg", "jpg", "png", "webp")
LABEL, CAPTIONS = "cls", "txt"
TYPE, RETRIEVAL = "dataset_type.txt", "retrieval"
LARGEST = 256 << 20  # bytes of a file


class TarSample(NamedTuple):
    """One image: its tar by number, where its bytes are, its label (-1 beside captions), key and extension."""

    shard: int
    offset: int
    size: int
    label: int
    key: str
    extension: str
    captions: tuple[str, ...] = ()


class TarDataset(OwnDataset):
    """The images in a folder of tars; an image is read where it lies."""

    prefix, what = "wds", "a folder of tars as CLIP_benchmark has them"
    expected = "folder with test/0.tar, and classnames.txt or captions"

    def __init__(self, place: Path) -> None:
        folder, where = self.take_folder(place, "folder of tars", "Tars of the folder")
        kind = " ".join(lines_of(folder / TYPE)) if (folder / TYPE).exists() else "classification"
        if kind not in ("classification", RETRIEVAL):
            raise ValueError(f"{where}: {TYPE} says {kind!r}; expected classification, or {RETRIEVAL}")
        self.captioned = kind == RETRIEVAL
        if self.captioned:
            self.templates = ()
        else:
            self._read_classes(folder, where)
        places = match_splits(sorted(path.name for path in folder.iterdir() if path.is_dir()), where)
        self.shards = {split: _shards(folder / places[split]) if split in places else [] for split in SPLITS}
        self._samples = {split: self._index(split) for split in SPLITS}
        if not any(self._samples.values()):
            raise ValueError(f"{where} has no tars with images; expected test/0.tar, test/1.tar, ..., and likewise")

    def _read_classes(self, folder: Path, where: str) -> None:
        if not (file := folder / CLASSES).exists():
            remedy = f"write a class a line into it or, for captions, {RETRIEVAL!r} into {TYPE}"
            raise FileNotFoundError(f"{where}: {CLASSES} is missing; {remedy}")
        self.classes = tuple(lines_of(file))
        numbers = [f"line {number}" for number, _ in enumerate(self.classes, start=1)]
        require_unique(self.classes, numbers, f"{where}: {CLASSES}")
        if (file := folder / TEMPLATES).exists():
            templates = tuple(dict.fromkeys(line.replace("{c}", "{}") for line in lines_of(file)))
            for template in templates:
                require_template(template, f"{str(file)!r}, with {{c}} for {{}}: ")
            self.reworded, self.templates = templates != self.templates, templates

    def _index(self, split: SplitName) -> list[TarSample]:
        """List the samples of a split; refuse labels without a class, and keys that are there twice."""
        samples: dict[str, TarSample] = {}
        for number, shard in enumerate(self.shards[split]):
            for sample in _samples(number, shard, CAPTIONS if self.captioned else LABEL):
                where = f"tar {str(shard)!r}: {sample.key!r}"
                if sample.label >= len(self.classes):
                    raise ValueError(f"{where} has the label {sample.label}; {CLASSES} has {len(self.classes)} lines")
                if sample.key in samples:
                    raise ValueError(f"{where} is in {split} twice")
                samples[sample.key] = sample
        return list(samples.values())

    def _revision(self) -> str:
        """12 hex digits over class names and the place of each sample."""
        lines = [
            f"{split}\0{chr(0).join(map(str, (*sample[:-1], *sample.captions)))}\n"
            for split, samples in self._samples.items()
            for sample in samples
        ]
        return digest("\0".join(self.classes).encode(), "".join(lines).encode(), length=12)

    def captions_of(self, image_id: str) -> tuple[str, ...]:
        """Return the captions of an image."""
        return self._captions.get(image_id, ())

    @cached_property
    def _captions(self) -> dict[str, tuple[str, ...]]:
        samples = ((split, sample) for split in SPLITS for sample in self._samples[split])
        return {f"{self.name}/{split}/{sample.key}": sample.captions for split, sample in samples}

    def _split(self, name: SplitName) -> Split:
        samples, shards = self._samples[name], self.shards[name]

        def render(index: int, _variant: int) -> Rendered:
            sample = samples[index]
            with shards[sample.shard].open("rb") as file:
                content = os.pread(file.fileno(), sample.size, sample.offset)
            where = f"{sample.key}.{sample.extension} of tar {str(shards[sample.shard])!r}"
            return decode_image(content, where), None

        labels = np.array([sample.label for sample in samples], dtype=np.int64)
        return Split(labels, lambda index: f"{self.name}/{name}/{samples[index].key}", render)


def _shards(place: Path) -> list[Path]:
    """List the tars of a split's folder, in order of their numbers."""
    tars = sorted(place.glob("*.tar"), key=lambda path: (int(path.stem) if path.stem.isdecimal() else -1, path))
    count_file = place / "nshards.txt"
    if count_file.exists() and (text := " ".join(lines_of(count_file))) != str(len(tars)):
        raise ValueError(f"{str(count_file)!r} says {text!r}, but {len(tars)} tars lie beside it; get the others")
    return tars


def _samples(number: int, shard: Path, wanted: str) -> Iterator[TarSample]:
    """Index a tar whose images have a file of the ``wanted`` extension beside them: LABEL or CAPTIONS."""
    what = f"tar {str(shard)!r}"
    parts: dict[str, dict[str, tuple[int, int]]] = {}  # by key and extension: offset and bytes
    require_file(shard)
    with shard.open("rb") as file:
        for member in members_of(file, what):
            parent, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            extension = extension.lower()
            if not member.isreg() or not stem or extension not in (*IMAGES, wanted):
                continue
            where, members = f"{what}: member {member.name!r}", parts.setdefault(f"{parent}{slash}{stem}", {})
            if member.size > LARGEST or member.issparse():
                raise ValueError(f"{where} has {member.size:,} bytes; expected {LARGEST:,} at most")
            if extension in members:
                raise ValueError(f"{where} is a second one of its kind and key")
            members[extension] = (member.offset_data, member.size)
        for key, members in parts.items():
            where, images = f"{what}: {key!r}", [extension for extension in members if extension != wanted]
            if not key.isprintable():
                raise ValueError(f"{where} can't be printed")
            if len(images) != 1:
                raise ValueError(f"{where} has {len(images)} images ({', '.join(IMAGES)}); expected one")
            if wanted not in members:
                raise ValueError(f"{where} has no {key}.{wanted}")
            offset, size = members[wanted]
            label, captions = _read_text(os.pread(file.fileno(), size, offset), wanted, f"{where}: {key}.{wanted}")
            yield TarSample(number, *members[images[0]], label, key, images[0], captions)


def _read_text(content: bytes, wanted: str, where: str) -> tuple[int, tuple[str, ...]]:
    """Return an image's label, or -1 and its captions."""
    try:
        lines = tuple(filter(None, map(str.strip, content.decode("utf-8-sig").splitlines())))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text in UTF-8: {error}") from error
    if wanted == LABEL:
        if not re.fullmatch(r"[0-9]{1,9}", text := " ".join(lines)):
            raise ValueError(f"{where}: expected the number of a class, got {text[:20]!r}")
        return int(text), ()
    if not lines:
        raise ValueError(f"{where} holds no caption; expected one a line")
    return -1, lines
