"""Folders of classes, listed once: what a million files are called is kept in the user's cache."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.datasets.images import EXTENSIONS
from zoo.files import write_whole
from zoo.weights import cache_folder

CACHED_FROM = 20_000  # files; fewer are listed in no time
VERSION = 1


class ClassFolder(NamedTuple):
    """What a folder holds.

    Attributes:
        changed: when a name was last added or removed, in ns.
        names: of its image files, sorted.
        sizes: of these, in bytes.
    """

    changed: int
    names: list[str]
    sizes: list[int]


def class_folders(folder: Path, *, fresh: bool = False) -> Mapping[str, ClassFolder]:
    """List the images in each folder of a folder, by the inner folder's name, sorted.

    Files that aren't images by their extension, and names with a dot in front, don't count. A
    listing that is kept is used as long as no folder says that a name was added or removed; a file
    that was overwritten in place goes unnoticed unless ``fresh``.

    Args:
        folder: holds the class folders.
        fresh: list anew, whatever is kept.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
    """
    with os.scandir(folder) as entries:
        inner = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    kept = {} if fresh else _kept(folder)
    found, changed = {}, set(kept) != set(inner)
    for name in inner:
        path = folder / name
        at = path.stat().st_mtime_ns
        if name in kept and kept[name].changed == at:
            found[name] = kept[name]
        else:
            found[name], changed = _listed(path, at), True
    if changed and sum(len(listed.names) for listed in found.values()) >= CACHED_FROM:
        _keep(folder, found)
    return found


def _listed(path: Path, changed: int) -> ClassFolder:
    with os.scandir(path) as entries:
        files = sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122  (a million)
            and not entry.name.startswith(".")
            and entry.is_file()
        )
    return ClassFolder(changed, [name for name, _ in files], [size for _, size in files])


def _cache_file(folder: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return cache_folder() / "folders" / f"{key}.json"


def _kept(folder: Path) -> dict[str, ClassFolder]:
    """Return what was kept; nothing if there is none or it can't be understood."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        told = json.loads(_cache_file(folder).read_bytes())
        if told["version"] == VERSION:
            return {name: ClassFolder(*values) for name, values in told["folders"].items()}
    return {}


def _keep(folder: Path, found: Mapping[str, ClassFolder]) -> None:
    """Keep a listing; a cache that can't be written costs time and nothing else."""
    with suppress(OSError, RuntimeError):
        file = _cache_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"version": VERSION, "folders": found}).encode())
