"""Build the shipped Fashion-MNIST subset: original 28 x 28 pixels, of the items that the shipped index lists.

The index has the first free items of each class in turn, no two equal: train and val of the source's training part,
test and final of its test part without the first 100 of a class, which were looked at while the canvas was designed.
The files hold raw bytes (IDX, no compression), so a rebuild is byte-equal with any library.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools import DATA_DIR, build_command, read_members, require_sha256, run

INDEX = json.loads((DATA_DIR / "fashion-index.json").read_bytes())
FOLDER = "usr/share/datasets/fashion-mnist/"
Bytes = NDArray[np.uint8]


def fetch(scratch: Path) -> Path:
    """Download the Debian package into a folder and return its path."""
    run(["apt-get", "download", INDEX["package"]], scratch)
    return next(scratch.glob(f"{INDEX['package']}*.deb"))


def read_parts(package: Path) -> dict[str, tuple[Bytes, Bytes]]:
    """Read the source's parts "train" and "t10k" from its .deb: items (n, 28, 28) and labels (n,)."""
    command = f"apt-get download {INDEX['package']}"
    if package.suffix != ".deb":
        raise ValueError(f"--source must be a .deb, got {str(package)!r}; `{command}` gets it")
    members = read_members(package, b"", (FOLDER,))
    arrays = {}
    for name, sha256 in INDEX["sha256"].items():
        require_sha256(members.get(FOLDER + name, b""), sha256, name, command)
        header = 16 if "images" in name else 8
        arrays[name] = np.frombuffer(gzip.decompress(members[FOLDER + name]), np.uint8, offset=header)
    return {
        part: (arrays[f"{part}-images-idx3-ubyte.gz"].reshape(-1, 28, 28), arrays[f"{part}-labels-idx1-ubyte.gz"])
        for part in ("train", "t10k")
    }


def build(package: Path) -> dict[str, bytes]:
    """Make the files of items, {file name: content}, from the Debian package."""
    parts = read_parts(package)
    items = {name: parts[one["part"]][0][one["source_index"]] for name, one in INDEX["splits"].items()}
    final = items.pop("final")
    return {"fashion-items.idx3": encode(np.concatenate([*items.values()])), "fashion-final.idx3": encode(final)}


def encode(items: Bytes) -> bytes:
    """Return items (n, 28, 28) as an IDX file."""
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in items.shape)
    return header + items.tobytes()


if __name__ == "__main__":
    sys.exit(build_command(build, fetch, source="the .deb"))
