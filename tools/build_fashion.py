"""Build the shipped Fashion-MNIST subset: original 28 x 28 pixels and where they came from.

The files hold raw bytes (IDX, no compression), so a rebuild is byte-equal with any library.
"""

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.shipping import build_command, read_known, run

PACKAGE = "dataset-fashion-mnist"
PACKAGE_DIR = "usr/share/datasets/fashion-mnist"
_PINNED = {
    "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
SHA256 = {f"{name}-ubyte.gz": digest for name, digest in _PINNED.items()}
# split -> (part of the source, items per class); a part's splits are cut one after the other.
# "final" was drawn last, so that the others stayed as they were; it has a file of its own.
PLAN = {"train": ("train", 120), "val": ("train", 60), "test": ("t10k", 180), "final": ("t10k", 50)}
CLASSES = 10
# Per class, the first test items of the source were looked at while the canvas was designed, so
# none of them is in the test split, nor in the final one.
SEEN_IN_DESIGN = 100

Bytes = NDArray[np.uint8]


def read_part(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Read a part ("train" or "t10k") of the source: items (n, 28, 28) and labels (n,)."""
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        name = f"{part}-{kind}-ubyte.gz"
        packed = read_known(folder / name, SHA256[name], f"apt-get download {PACKAGE}")
        arrays.append(np.frombuffer(gzip.decompress(packed), np.uint8, offset=header))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


def select(parts: dict[str, tuple[Bytes, Bytes]], seen_in_design: int = SEEN_IN_DESIGN) -> dict[str, list[int]]:
    """Choose source indices per split: the first free items of each class, no two equal.

    A split's list goes through the classes in turn (0, 1, ... 9, 0, ...).
    """
    pixels: set[bytes] = set()
    queues: dict[str, list[list[int]]] = {}
    for part, (_, labels) in parts.items():
        skip = seen_in_design if part == "t10k" else 0
        queues[part] = [np.flatnonzero(labels == label)[skip:].tolist() for label in range(CLASSES)]
    chosen: dict[str, list[int]] = {}
    for split, (part, per_class) in PLAN.items():
        chosen[split] = []
        for position in range(per_class * CLASSES):
            queue = queues[part][position % CLASSES]
            index = queue.pop(0)
            while parts[part][0][index].tobytes() in pixels:
                index = queue.pop(0)
            pixels.add(parts[part][0][index].tobytes())
            chosen[split].append(index)
    return chosen


def build(folder: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from a folder with the four IDX files."""
    parts = {part: read_part(folder, part) for part in ("train", "t10k")}
    chosen = select(parts)
    items = {split: parts[PLAN[split][0]][0][indices] for split, indices in chosen.items()}
    final = items.pop("final")
    splits = {name: {"part": PLAN[name][0], "source_index": i} for name, i in chosen.items()}
    index = {"schema": 1, "package": PACKAGE, "sha256": SHA256, "splits": splits}
    return {
        "fashion-items.idx3": encode(np.concatenate([*items.values()])),
        "fashion-final.idx3": encode(final),
        "fashion-index.json": (json.dumps(index, separators=(",", ":")) + "\n").encode(),
    }


def encode(items: Bytes) -> bytes:
    """Return items (n, 28, 28) as an IDX file."""
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in items.shape)
    return header + items.tobytes()


def fetch(folder: Path) -> Path:
    """Download the Debian package into `folder` and return its path."""
    run(["apt-get", "download", PACKAGE], folder)
    return next(folder.glob(f"{PACKAGE}*.deb"))


def unpack(source: Path, into: Path) -> Path:
    """Return a folder with the IDX files: `source` itself, or the inside of a .deb."""
    if source.is_dir():
        return source
    if source.suffix != ".deb":
        raise ValueError(f"--source must be a .deb or a folder of IDX files, got {str(source)!r}")
    run(["dpkg-deb", "-x", str(source.resolve()), str(into)], into.parent)
    return into / PACKAGE_DIR


def build_from(source: Path | None, scratch: Path) -> dict[str, bytes]:
    """Make the shipped files from a .deb or a folder of IDX files, by default what apt gets."""
    return build(unpack(source or fetch(scratch), scratch / "deb"))


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare the shipped files, see ``build_command``."""
    source = ".deb or folder of IDX files; default: apt"
    return build_command("build_fashion", build_from, source=source, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
