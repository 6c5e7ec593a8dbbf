"""Read tars in the layout that CLIP_benchmark reads and exports.

PATH/{test,train}/0.tar, 1.tar, ... beside PATH/classnames.txt; optional are nshards.txt in the
folders of tars and PATH/zeroshot_classification_templates.txt, with ``{c}`` for the class. A sample
is KEY.png (jpg, jpeg, webp) and KEY.cls, a number. Where PATH/dataset_type.txt says retrieval there are
no classes, and a sample is the image and KEY.txt, a caption a line. Images are read at random where they lie,
which the package `webdataset` can't do. Tars come from elsewhere, so nothing is extracted, and other members are
never read.
"""

import functools
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from harness.datasets.base import (
    SPLIT_NAMES,
    SPLITS,
    OwnDataset,
    Rendered,
    Split,
    SplitName,
    cached_json,
    keep_json,
    lines_of,
    require_folder,
    require_template,
    require_unique,
)
from harness.datasets.images import decode_image

CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
IMAGES = frozenset(("jpg", "jpeg", "png", "webp"))
LABEL, CAPTIONS = "cls", "txt"
TYPE, RETRIEVAL = "dataset_type.txt", "retrieval"
LARGEST = 256 << 20  # bytes of an image file
TEXTS = 1 << 16  # bytes of the label or captions of an image
KEPT = 10_000  # samples from which on an index is worth keeping
BLOCK = 512  # bytes of a tar's record


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
    source = "tars in CLIP_benchmark's layout"

    def __init__(self, place: Path) -> None:
        self.asked_path = folder = place.expanduser().absolute()
        where = f"folder of tars {str(folder)!r}"
        require_folder(folder, where, "the folder that holds test/0.tar")
        self.name_after(folder.resolve().name, where)
        self.title = f"Tars of the folder {folder.resolve().name}"
        self.captioned = _is_retrieval(folder, where)
        self.classes = () if self.captioned else _class_names(folder, where)
        if self.captioned:
            self.templates = ()
        elif (file := folder / TEMPLATES).is_file():
            self.templates = _templates(file)
            self.reworded = self.templates != type(self).templates
        self.shards = {split: _shards(folder, split) for split in SPLITS}
        self._samples = {split: index_of(shards, captions=self.captioned) for split, shards in self.shards.items()}
        for split in SPLITS:
            self._check(split)
        if not any(self._samples.values()):
            raise ValueError(f"{where} has no tars with images; expected test/0.tar, test/1.tar, ..., and likewise")

    def _check(self, split: SplitName) -> None:
        """Refuse labels without a class, and keys that are there twice."""
        keys: set[str] = set()
        for sample in self._samples[split]:
            where = f"tar {str(self.shards[split][sample.shard])!r}: {sample.key!r}"
            if sample.label >= len(self.classes):
                raise ValueError(
                    f"{where} has the label {sample.label}; {CLASSES} has {len(self.classes)} lines, for labels from 0"
                )
            if sample.key in keys:
                raise ValueError(f"{where} is in {split} twice")
            keys.add(sample.key)

    @functools.cache  # noqa: B019  (a dataset lives as long as the process)
    def _revision(self) -> str:
        """12 hex digits over class names and where which samples lie."""
        digest = sha256("\0".join(self.classes).encode())
        for split, samples in self._samples.items():
            for sample in samples:
                facts = (*sample[:-1], *sample.captions)
                digest.update(f"{split}\0{chr(0).join(map(str, facts))}\n".encode())
        return digest.hexdigest()[:12]

    def captions_of(self, image_id: str) -> tuple[str, ...]:
        """Return the captions of an image."""
        return self._captions.get(image_id, ())

    @functools.cached_property
    def _captions(self) -> dict[str, tuple[str, ...]]:
        samples = ((split, sample) for split in SPLITS for sample in self._samples[split])
        return {f"{self.name}/{split}/{sample.key}": sample.captions for split, sample in samples}

    def _split(self, name: SplitName) -> Split:
        samples, shards = self._samples[name], self.shards[name]
        labels = np.array([sample.label for sample in samples], dtype=np.int64)

        def render(index: int, _variant: int) -> Rendered:
            sample = samples[index]
            tar = f"tar {str(shards[sample.shard])!r}"
            with shards[sample.shard].open("rb") as file:
                content = os.pread(file.fileno(), sample.size, sample.offset)
            return decode_image(content, f"{sample.key}.{sample.extension} of {tar}"), None

        return Split(labels, lambda index: f"{self.name}/{name}/{samples[index].key}", render)


def _is_retrieval(folder: Path, what: str) -> bool:
    """Tell whether images have captions instead of classes; without a file that says so they have classes."""
    kind = folder / TYPE
    words = " ".join(lines_of(kind)) if kind.is_file() else "classification"
    if words not in ("classification", RETRIEVAL):
        raise ValueError(
            f"{what}: {TYPE} says {words!r}; expected classification with one label an image, or {RETRIEVAL}"
        )
    return words == RETRIEVAL


def _class_names(folder: Path, what: str) -> tuple[str, ...]:
    if not (folder / CLASSES).is_file():
        raise FileNotFoundError(
            f"{what}: {CLASSES} is missing; write the class of each label into it, one a line; where images have "
            f"captions, write {RETRIEVAL!r} into {TYPE}"
        )
    names = lines_of(folder / CLASSES)
    require_unique(names, [f"line {number}" for number, _ in enumerate(names, start=1)], f"{what}: {CLASSES}")
    return tuple(names)


def _templates(file: Path) -> tuple[str, ...]:
    templates = tuple(line.replace("{c}", "{}") for line in lines_of(file))
    for number, template in enumerate(templates, start=1):
        try:
            require_template(template)
        except ValueError as error:
            raise ValueError(f"{str(file)!r}, line {number}: {error}; here it is {{c}}") from error
    return tuple(dict.fromkeys(templates))


def _shards(folder: Path, split: SplitName) -> list[Path]:
    """List the tars of a split, in order of their numbers."""
    folders = [folder / name for name, own in SPLIT_NAMES.items() if own == split and (folder / name).is_dir()]
    if len(folders) > 1:
        raise ValueError(
            f"folder of tars {str(folder)!r}: {folders[0].name} and {folders[1].name} would both be the {split} split; "
            "leave one"
        )
    if not folders:
        return []
    count_file = folders[0] / "nshards.txt"
    if count_file.is_file():
        count = " ".join(lines_of(count_file))
        if not count.isascii() or not count.isdigit() or len(count) > 7:
            raise ValueError(f"{str(count_file)!r}: expected the number of tars, got {count!r}")
        shards = [folders[0] / f"{number}.tar" for number in range(int(count))]
        if missing := [shard for shard in shards if not shard.is_file()]:
            raise FileNotFoundError(f"tar {str(missing[0])!r} is missing; {count_file.name} beside it says {count}")
        return shards
    tars = sorted(path for path in folders[0].glob("*.tar") if path.is_file())
    return sorted(tars, key=lambda path: int(path.stem) if path.stem.isdecimal() else -1)


def index_of(shards: Sequence[Path], *, captions: bool) -> list[TarSample]:
    """List the samples of some tars, with a label or captions, in order; a large index is kept in the user's cache."""
    facts = [(path, path.stat()) for path in shards]
    identity = [(str(path.resolve()), fact.st_size, fact.st_mtime_ns) for path, fact in facts]
    file, entries = cached_json("tars", identity, captions)
    with suppress(TypeError):  # nothing is kept, or something else; it is made anew
        return [TarSample(*entry)._replace(captions=tuple(entry[-1])) for entry in entries]
    samples = [sample for number, shard in enumerate(shards) for sample in _samples(number, shard, captions=captions)]
    if len(samples) >= KEPT:
        keep_json(file, samples)
    return samples


@dataclass
class _Fields:
    """The members of a key, as far as they matter; texts by extension."""

    image: tuple[int, int, str] | None = None  # offset, bytes, extension
    texts: dict[str, bytes] = field(default_factory=dict)


def _samples(number: int, shard: Path, *, captions: bool) -> list[TarSample]:
    """Index one tar."""
    what, wanted = f"tar {str(shard)!r}", CAPTIONS if captions else LABEL
    keys: dict[str, _Fields] = {}
    with shard.open("rb") as file:
        for member in members_of(file, what):
            parent, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            extension = extension.lower()
            if not member.isreg() or not stem or extension not in (*IMAGES, wanted):
                continue
            where = f"{what}: member {member.name!r}"
            most = LARGEST if extension in IMAGES else TEXTS
            if member.size > most or member.issparse():
                raise ValueError(f"{where} has {member.size:,} bytes; expected {most:,} at most")
            fields = keys.setdefault(f"{parent}{slash}{stem}", _Fields())
            if fields.image if extension in IMAGES else fields.texts:
                raise ValueError(f"{where} is a second one of its kind and key")
            if extension in IMAGES:
                fields.image = (member.offset_data, member.size, extension)
            else:
                fields.texts[extension] = os.pread(file.fileno(), member.size, member.offset_data)
    return [_sample(number, key, own, wanted, f"{what}: {key!r}") for key, own in keys.items()]


def members_of(file: BinaryIO, what: str) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar that is whole."""
    end, length = 0, os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else all headers stay in memory
                yield member
            end = tar.offset
    except (tarfile.TarError, OSError, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(
            f"{what} is truncated or no plain tar ({error}); get or make it again, uncompressed"
        ) from error
    # tarfile takes a damaged header for the end; the mark of a tar's end are blocks of zeros.
    if os.pread(file.fileno(), BLOCK, end) != bytes(BLOCK):
        raise ValueError(
            f"{what} is truncated or damaged after byte {min(end, length):,}: the mark of a tar's end is missing; get "
            "or make it again"
        )


def _sample(number: int, key: str, fields: _Fields, wanted: str, where: str) -> TarSample:
    """Return a whole sample, which has what is ``wanted`` beside its image: LABEL or CAPTIONS."""
    if not key.isprintable():
        raise ValueError(f"{where} can't be printed")
    if fields.image is None:
        raise ValueError(f"{where} has no image ({', '.join(sorted(IMAGES))})")
    if wanted not in fields.texts:
        raise ValueError(f"{where} has no {key}.{wanted}")
    offset, size, extension = fields.image
    try:
        lines = tuple(filter(None, map(str.strip, fields.texts[wanted].decode("utf-8-sig").splitlines())))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {key}.{wanted} is not text in UTF-8: {error}") from error
    if wanted == LABEL:
        [label, *more] = lines or ("",)
        if more or not label.isascii() or not label.isdigit() or len(label) > BLOCK:
            raise ValueError(f"{where}: {key}.{LABEL} is {' '.join(lines)[:20]!r}; expected the number of a class")
        return TarSample(number, offset, size, int(label), key, extension)
    if not lines:
        raise ValueError(f"{where}: {key}.{CAPTIONS} holds no caption; expected one a line")
    return TarSample(number, offset, size, -1, key, extension, lines)
