"""Image files: found below folders, listed with labels, and read without trust."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harness.datasets.base import Rendered, Split
from zoo.core.files import digest

_NAMES = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())
KNOWN = f"known extensions are {', '.join(sorted(EXTENSIONS))}"
UNLABELLED = -1
LEAVE_OUT = "leave it out"
SKIP_BAD = f"{LEAVE_OUT}, as --skip-bad does"  # where there is that flag, with datasets
SHOWN = 3  # images or classes in a line
MISSING = -1  # bytes of a file that isn't there


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """The images below a folder.

    name: the folder's own. paths: relative to it. revision: 12 hex digits over their names and sizes.
    split: the images in the order of their names, label -1. An example's ``image_id`` is the hash
    of its file's bytes, so it stays when files move, and copies share it; asking for it reads the
    file but doesn't decode it.
    """

    name: str
    paths: tuple[PurePosixPath, ...]
    revision: str
    split: Split


def folder_images(path: Path | str, *, flag: str = "--images ", way: str = LEAVE_OUT) -> FolderImages:
    """List the images below a folder; each is opened when it is asked for.

    An image is what PIL can read among files of a known extension. It becomes RGB; transparency is
    dropped and the EXIF orientation left alone, as open_clip and torchvision do. ``flag`` is how the
    folder was asked for, ``way`` out of a damaged image, for messages.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
        ValueError: no image is below it; or, later on, an image is damaged or oversized.
    """
    folder = Path(path)
    where = f"{flag}{str(path)!r}"
    if not folder.exists():
        raise FileNotFoundError(f"{where}: there is no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{where}: not a folder; give the one it lies in")
    files = image_files(folder)
    if not files:
        raise ValueError(f"{where}: no images below this folder; {KNOWN}")
    paths = tuple(PurePosixPath(file.relative_to(folder).as_posix()) for file in files)
    facts = [f"{path}\0{file.stat().st_size}\0" for path, file in zip(paths, files, strict=True)]

    def render(index: int, _variant: int) -> Rendered:
        return read_image(files[index], way=way), None

    labels = np.full(len(files), UNLABELLED, dtype=np.int64)
    return FolderImages(
        name=folder.resolve().name or "images",
        paths=paths,
        revision=digest("".join(facts).encode(errors="surrogateescape"), length=12),
        split=Split(labels, lambda index: digest(files[index]), render),
    )


def image_files(folder: Path) -> list[Path]:
    """Find the image files below a folder, in an order that is the same on every machine.

    Links are followed, and a folder that is reached twice, as in a loop of links, counts once.
    Names that start with a dot are not looked at.
    """

    def refuse(error: OSError) -> None:
        raise error  # os.walk would swallow it, as of a folder without permission

    files: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        facts = Path(root).stat()
        if (facts.st_dev, facts.st_ino) in visited:
            folders.clear()
            continue
        visited.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in names if not name.startswith("."))
        files += [path for path in paths if path.suffix.lower() in EXTENSIONS and path.is_file()]
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def require_inside(root: Path, paths: Iterable[PurePosixPath], what: str) -> None:
    """Refuse, by a ValueError, images that a symbolic link takes out of the root, which may be a link itself."""
    real = os.path.realpath(root)

    @cache  # many images share a folder, and to resolve it takes long
    def outside(path: PurePosixPath) -> bool:
        return not Path(os.path.realpath(root / path)).is_relative_to(real)

    for path in paths:
        if outside(path.parent) or ((root / path).is_symlink() and outside(path)):
            raise ValueError(
                f"{what}: image '{path}' is a link out of the folder of images {str(root)!r}; put the image there"
            )


def file_digests(files: Sequence[Path]) -> list[str]:
    """Return 16 hex digits of the sha256 over each file's bytes, on several threads."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(digest, files))


def how_many(count: int, what: str = "") -> str:
    """Say how many images there are, such as "1 image" or "2 missing images"."""
    return f"{count:,} {what} image".replace("  ", " ") + ("s" if count != 1 else "")


def read_image(file: Path, *, way: str = SKIP_BAD) -> Image.Image:
    """Read an image file as RGB, see ``decode_image``."""
    return decode_image(file.read_bytes(), repr(str(file)), way=way)


def decode_image(content: bytes, where: str, *, way: str = SKIP_BAD) -> Image.Image:
    """Decode the bytes of an image file as RGB; ``way`` out of it is for messages.

    Raises:
        ValueError: they can't be decoded, or have more pixels than PIL trusts.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Between one and two times the limit PIL only warns.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image {where} is too large to be trusted ({error}); make it smaller, or {way}") from error
    except Exception as error:  # decoders raise whatever they stumble over
        why = "in no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"image {where} can't be read ({why}); replace it, or {way}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decode an image to 8-bit RGB; 16-bit greys are scaled, where PIL's own conversion clips them at 255."""
    if image.mode == "F":
        raise ValueError("mode F: the range of floating-point pixels is unknown")
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # else PIL warns of palettes with transparency
    return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images below a folder.

    paths: relative to ``root``, with "/". labels: (n,) int64. prefix: what ids start with, before
    "/" and the path. known_sizes: bytes of each file where they are known already. names: in ids,
    where they aren't the paths.
    """

    root: Path
    paths: Sequence[str]
    labels: NDArray[np.int64]
    prefix: str
    known_sizes: NDArray[np.int64] | None = None
    names: Sequence[str] | None = None

    def subset(self, indices: NDArray[np.int64]) -> "ImageList":
        """Keep the images at some positions, in that order."""
        assert self.names is None
        sizes = None if self.known_sizes is None else self.known_sizes[indices]
        paths = [self.paths[index] for index in indices]
        return replace(self, paths=paths, labels=self.labels[indices], known_sizes=sizes)

    def split(self) -> Split:
        """Make the split; images are opened when they are asked for."""
        names = self.names or self.paths

        def render(index: int, _variant: int) -> Rendered:
            path = self.root / self.paths[index]
            if not path.is_file():
                raise FileNotFoundError(f"image {str(path)!r} is missing; `datasets check` lists all that are")
            return read_image(path), None

        return Split(self.labels, lambda index: f"{self.prefix}/{names[index]}", render)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each file, (n,) int64; -1 of those that are missing."""
        if self.known_sizes is not None:
            return self.known_sizes
        return np.array([_size(self.root / path) for path in self.paths], dtype=np.int64)

    def add_to(self, digest: Any) -> None:
        """Add names and sizes to a hash."""
        for name, size in zip(self.names or self.paths, self.sizes.tolist(), strict=True):
            digest.update(f"{name}\0{size}\0".encode())

    def differences(self) -> Iterator[str]:
        """List what images are missing or empty."""
        for size, what in ((MISSING, "missing"), (0, "empty")):
            if (where := np.flatnonzero(self.sizes == size)).size:
                names = shorten([self.paths[index] for index in where[: SHOWN + 1]])
                yield f"{how_many(where.size, what)} in {str(self.root)!r}: {names}"


def shorten(names: Sequence[str], most: int = SHOWN) -> str:
    """List the first few."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
