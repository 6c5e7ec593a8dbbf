"""Build the shipped Fashion-MNIST subset: original 28 x 28 pixels and where they came from.

The files hold raw bytes (IDX, no compression), so a rebuild is byte-equal with any library.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools import build_command, read_members, require_sha256, run

PACKAGE = "dataset-fashion-mnist"
FOLDER = "usr/share/datasets/fashion-mnist/"
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
# split -> (part of the source, items per class); a part's splits are cut one after the other.
# "final" was drawn last, so that the others stayed as they were; it has a file of its own.
PLAN = {"train": ("train", 120), "val": ("train", 60), "test": ("t10k", 180), "final": ("t10k", 50)}
CLASSES = 10
# Per class, the first test items of the source were looked at while the canvas was designed, so
# none of them is in the test split, nor in the final one.
SEEN_IN_DESIGN = 100

Bytes = NDArray[np.uint8]


def fetch(scratch: Path) -> Path:
    """Download the Debian package into a folder and return its path."""
    run(["apt-get", "download", PACKAGE], scratch)
    return next(scratch.glob(f"{PACKAGE}*.deb"))


def read_parts(package: Path) -> dict[str, tuple[Bytes, Bytes]]:
    """Read the source's parts "train" and "t10k" from its .deb: items (n, 28, 28) and labels (n,)."""
    command = f"apt-get download {PACKAGE}"
    if package.suffix != ".deb":
        raise ValueError(f"--source must be a .deb, got {str(package)!r}; `{command}` gets it")
    members = read_members(package, b"", (FOLDER,))
    arrays = {}
    for name, sha256 in SHA256.items():
        require_sha256(members.get(FOLDER + name, b""), sha256, name, command)
        header = 16 if "images" in name else 8
        arrays[name] = np.frombuffer(gzip.decompress(members[FOLDER + name]), np.uint8, offset=header)
    return {
        part: (arrays[f"{part}-images-idx3-ubyte.gz"].reshape(-1, 28, 28), arrays[f"{part}-labels-idx1-ubyte.gz"])
        for part in ("train", "t10k")
    }


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


def build(package: Path) -> dict[str, bytes]:
    """Make the shipped files, {file name: content}, from the Debian package."""
    parts = read_parts(package)
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


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="the .deb"))
