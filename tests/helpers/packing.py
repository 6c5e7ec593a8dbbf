"""Pictures of noise, and archives packed by hand."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Member = tuple[str, bytes] | tarfile.TarInfo


def noise(key: str) -> np.ndarray:
    """Noise that belongs to a key, of a size that belongs to it, too."""
    drawn = np.random.default_rng(list(key.encode()))
    return drawn.integers(0, 256, (*drawn.integers(9, 20, 2), 3), dtype=np.uint8)


def encoded(key: str, kind: str = "png") -> bytes:
    Image.fromarray(noise(key)).save(file := io.BytesIO(), kind, lossless=True)
    return file.getvalue()


def write_images(folder: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(path)).save(folder / path)
    return folder


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tarred(members: Iterable[Member], mode: str = "w") -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = header(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def zipped(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def contents(folder: Path) -> Mapping[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
