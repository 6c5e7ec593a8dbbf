"""Image files: found below folders, listed with labels, read without trust, and decoded all at once."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from harness.base.table import count_of
from harness.base.terminal import Progress
from harness.datasets.base import SPLITS, Dataset, Rendered, Split, SplitName, cached_json, keep_json, require_folder
from zoo.core.digests import digest
from zoo.core.files import special_kind
from zoo.loading.pictures import EXTENSIONS, FORMATS, upright_rgb

_UNREAD = (
    "3fr ai apng arw bpg cr2 cr3 crw cur dcr dds dib dng emf eps erf exr fff hdr heic heics heif heifs hif icns ico "
    "iiq j2c j2k jpe jpf jps jpx jxl jxr kdc mef mos mpo mrw nef nrw orf pcx pef psb psd qoi raf raw rw2 rwl sgi "
    "sr2 srf srw svg svgz tga wdp wmf x3f xbm xcf xpm"
)
UNREAD = frozenset(f".{name}" for name in _UNREAD.split())  # extensions of formats that aren't read
_NAMED = EXTENSIONS | UNREAD
KNOWN = f"known extensions are {', '.join(sorted(EXTENSIONS))}; hidden files and folders don't count"
LEAVE_OUT = "leave it out (of a dataset: --skip-bad)"
SHOWN = 3  # images or classes in a line
MISSING = -1  # bytes of a file that isn't there
CHUNK = 128  # images that threads share out
DECODER = 8  # bytes that a decoder may need for a pixel, beside the image


def open_image(content: bytes) -> Image.Image:
    """Open the bytes of an image file in one of ``FORMATS``, without decoding; raise PIL's errors."""
    image = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    # Between one and two times the limit PIL only warns.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    return image


def count_pixels(content: bytes) -> int:
    """Return how many pixels an image file says it has; 0 for one that ``decode_image`` refuses unread."""
    try:
        with open_image(content) as image:
            return image.width * image.height
    except Exception:  # decoders raise whatever they stumble over
        return 0


def decode_image(content: bytes, where: str = "", *, behind: str | None = None) -> Image.Image:
    """Decode the bytes of an image file as RGB, turned as its EXIF says; ValueError if that can't be.

    Errors say ``where`` the image is and how to leave it out; without ``where`` the caller names it. Transparent pixels
    get the colour ``behind`` them, or, as towers see them, their colour without alpha.
    """
    name, mend = (f"image {where}", f", or {LEAVE_OUT}") if where else ("it", "")
    pixels = 0
    try:
        with open_image(content) as image:
            pixels = image.width * image.height
            image.load()
            return upright_rgb(image, behind)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to be trusted ({error}); make it smaller{mend}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        bytearray(DECODER * pixels)  # a MemoryError, if a decoder had too little memory and called the image broken
        why = "in no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} can't be read ({why}); replace it{mend}") from error


class FoundFile(NamedTuple):
    """A file that is named like an image: path, bytes, time of the last change, and the reason if it isn't read."""

    path: Path
    size: int = 0
    mtime_ns: int = 0
    wrong: str | None = None


def find_images(folder: Path) -> list[FoundFile]:
    """Find the files named like images below a folder, in an order that is the same on every machine.

    Hidden files and folders don't count. Links are followed, and a folder that is reached twice, as in a loop of links,
    counts once.
    """

    def refuse(error: OSError) -> None:
        raise error  # os.walk would swallow it, as of a folder without permission

    files: list[FoundFile] = []
    visited: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(root).stat()
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        files += [_look_at(Path(root, name)) for name in names if is_named_like_image(name)]
    return sorted(files, key=lambda file: file.path.relative_to(folder).parts)


def _look_at(file: Path) -> FoundFile:
    try:
        status = file.stat()
    except OSError as error:
        link = f"it is a link to {str(file.readlink())!r}, which" if file.is_symlink() else "it"
        return FoundFile(file, wrong=f"{link} can't be read: {error.strerror}")
    kind = special_kind(status.st_mode)
    fault = name_fault(file.name) or (f"it is {kind}; expected a regular file" if kind else None)
    return FoundFile(file, status.st_size, status.st_mtime_ns, fault)


def is_named_like_image(path: str) -> bool:
    """Tell whether a path isn't hidden and has the extension of an image, of a format that is read or isn't."""
    hidden = any(part.startswith(".") and part != ".." for part in PurePosixPath(path).parts)
    return PurePosixPath(path).suffix.lower() in _NAMED and not hidden


def name_fault(path: str) -> str | None:
    """Say why an image of that name isn't read; None if its format is read."""
    suffix = PurePosixPath(path).suffix.lower()
    return f"{suffix} files aren't read; convert it, for instance to .png" if suffix in UNREAD else None


def tell_unread(files: Iterable[FoundFile], root: Path, where: str) -> tuple[str, ...]:
    """Tell in a sentence which files named like images aren't read; an empty tuple if all are."""
    unread = [f"{str(file.path.relative_to(root))!r} ({file.wrong})" for file in files if file.wrong]
    more = ", ..." if len(unread) > SHOWN else ""
    note = f"{where}: left out: {count_of(len(unread), 'image')}: {', '.join(unread[:SHOWN])}{more}"
    return (note,) if unread else ()


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images below a folder, opened on demand."""

    root: Path
    paths: Sequence[str]  # relative to the root, with "/"
    labels: NDArray[np.int64]  # (n,)
    prefix: str = ""  # of ids, before "/" and the path
    by_content: bool = False  # whether ids are hashes of files' bytes: they stay when files move, and copies share one
    notes: tuple[str, ...] = ()  # on files that aren't read

    @classmethod
    def of(cls, root: Path, images: Iterable[tuple[str, int]], prefix: str) -> "ImageList":
        """List images by path and label."""
        paths, labels = zip(*images, strict=True) if (images := list(images)) else ((), ())
        return cls(root=root, paths=paths, labels=np.array(labels, dtype=np.int64), prefix=prefix)

    def subset(self, chosen: NDArray[np.bool_]) -> "ImageList":
        """Keep the images that are chosen, (n,)."""
        return replace(self, paths=list(compress(self.paths, chosen)), labels=self.labels[chosen])

    @property
    def split(self) -> Split:
        """The images as a split, in the order of the list."""
        return Split(self.labels, self._image_id, self._render)

    def _image_id(self, index: int) -> str:
        if self.by_content:
            return digest(self.root / self.paths[index])
        return f"{self.prefix}/{self.paths[index]}"

    def _render(self, index: int, _variant: int) -> Rendered:
        path = self.root / self.paths[index]
        if not path.is_file():
            raise FileNotFoundError(f"image {str(path)!r} is missing; `datasets check` lists all that are")
        if not (self.by_content or path.resolve().is_relative_to(self.root.resolve())):
            raise ValueError(f"image {str(path)!r} is a link out of {str(self.root)!r}; put it there")
        return decode_image(path.read_bytes(), repr(str(path))), None

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each file, (n,), -1 of missing files."""
        return np.array([_file_size(f"{self.root}/{path}") for path in self.paths], dtype=np.int64)

    @cached_property
    def digests(self) -> NDArray[np.str_]:
        """16 hex digits of the sha256 over each file's bytes, (n,)."""
        with ThreadPoolExecutor() as threads:
            return np.array(list(threads.map(digest, (self.root / path for path in self.paths))))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name or "images"

    @property
    def facts(self) -> bytes:
        """Names and sizes, for a hash."""
        pairs = zip(self.paths, self.sizes.tolist(), strict=True)
        return "".join(f"{name}\0{size}\0" for name, size in pairs).encode(errors="surrogateescape")

    @property
    def revision(self) -> str:
        """12 hex digits over names and sizes; no file is read."""
        return digest(self.facts, length=12)

    def differences(self) -> Iterator[str]:
        """List missing and empty images."""
        for size, what in ((MISSING, "missing image"), (0, "empty image")):
            if (where := np.flatnonzero(self.sizes == size)).size:
                names = shorten([self.paths[index] for index in where[: SHOWN + 1]])
                yield f"{count_of(where.size, what)} in {str(self.root)!r}: {names}"


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  (of a million files: without a Path for each)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING


class ListedDataset(Dataset):
    """A dataset whose splits are lists of image files."""

    _lists: Mapping[SplitName, ImageList]

    @property
    def image_lists(self) -> Mapping[SplitName, ImageList]:
        """The images of train, val and test."""
        return self._lists

    def _split(self, name: SplitName) -> Split:
        return self.image_lists[name].split

    def differences(self) -> list[str]:
        """List missing and empty images; none is opened."""
        return [line for split in SPLITS for line in self.image_lists[split].differences()]


def folder_images(path: Path | str, *, flag: str = "--images ") -> ImageList:
    """List the images below a folder in the order of their names, without labels (-1); ids are hashes of files.

    Messages call the folder by the ``flag`` that names it.
    """
    folder, where = Path(path), f"{flag}{str(path)!r}"
    require_folder(folder, where, "the folder it lies in")
    files = find_images(folder)
    notes = tell_unread(files, folder, where)
    paths = [file.path.relative_to(folder).as_posix() for file in files if not file.wrong]
    if not paths:
        raise ValueError("; ".join([f"{where}: no images below this folder", KNOWN, *notes]))
    labels = np.full(len(paths), -1, dtype=np.int64)
    return ImageList(root=folder, paths=paths, labels=labels, by_content=True, notes=notes)


def measure_detail(image: Image.Image, size: tuple[int, int]) -> float:
    """Return the mean step, of 255, between neighbouring grey pixels of an image's middle at a (width, height).

    The value depends on the size, so that images are compared at the size of a model's input.
    """
    pixels = np.asarray(ImageOps.fit(image.convert("L"), size, Image.Resampling.BICUBIC)).astype(np.int64)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()) / 2


def shorten(names: Sequence[str], most: int = SHOWN) -> str:
    """List the first few names."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


class Decoded(NamedTuple):
    """The outcome of decoding an image."""

    image_id: str
    pixels: str  # 16 hex digits over the pixels, "" if they can't be read
    wrong: str  # reason, if they can't be read


def decode_all(dataset: Dataset, progress: Progress, *, known: bool = True) -> dict[SplitName, list[Decoded]]:
    """Decode every image of a dataset, in the order of its splits.

    With ``known`` only images are tried that no earlier pass could read, by the user's cache.
    """
    splits = {name: dataset.split(name) for name in SPLITS}
    identity = [dataset.name, dataset.revision, dataset.asked_as, str(getattr(dataset, "root", None))]
    path, kept = cached_json("decoded", "pixels, or why not", *identity)
    places = [(split, index) for split in splits.values() for index in range(len(split))]
    results = kept if known and kept else [("", "")] * len(places)
    unread = [at for at, (pixels, _) in enumerate(results) if not pixels]
    with progress.task(f"reading {dataset.name}", len(unread)) as update, ThreadPoolExecutor() as threads:
        for start in range(0, len(unread), CHUNK):
            chunk = unread[start : start + CHUNK]
            for at, result in zip(chunk, threads.map(lambda at: _decode(*places[at]), chunk), strict=True):
                results[at] = result
            update(start + len(chunk))
    keep_json(path, results)
    left = iter(results)
    return {name: [Decoded(image_id, *next(left)) for image_id in split.image_ids] for name, split in splits.items()}


def _decode(split: Split, index: int) -> tuple[str, str]:
    try:
        image = split[index].image
    except (ValueError, OSError) as error:
        return "", str(error)
    return blake2b(image.tobytes() + str(image.size).encode(), digest_size=8).hexdigest(), ""


def find_bad_images(dataset: Dataset, progress: Progress) -> frozenset[str]:
    """Return the ids of the images that can't be read, and tell how many."""
    images = [image for decoded in decode_all(dataset, progress).values() for image in decoded]
    bad = [image for image in images if image.wrong]
    if bad and len(bad) == len(images):
        raise ValueError(f"none of the {len(bad)} images of {dataset.name} can be read")
    if bad:
        root = getattr(dataset, "root", None)
        asked = f"{dataset.asked_as} --root {root}" if root else dataset.asked_as
        progress.say(
            f"{dataset.name}: left out, as they can't be read: {count_of(len(bad), 'image')}; `patchrank datasets "
            f"check --dataset {asked} --json` lists all" + "".join(f"\n  {image.wrong}" for image in bad[:SHOWN])
        )
    return frozenset(image.image_id for image in bad)
