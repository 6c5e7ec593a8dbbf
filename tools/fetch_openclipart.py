"""Write a folder of drawings that no training of ours saw, from the Debian package openclipart-png.

They are in the public domain, and none ships. Each stands in the middle of a white square, so that
``--dataset images:FOLDER`` shows it whole. Links, copies and drawings of more than ``MOST_PIXELS``
are left out. Which are taken depends on their bytes alone.

Run ``python -m tools.fetch_openclipart --output FOLDER [--source DEB] [--count 400]``.
"""

import argparse
import hashlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tools.shipping import read_known, run
from zoo.core.files import write_whole

PACKAGE = "openclipart-png"
SHA256 = "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"  # of 1:0.18+dfsg-19
FOLDER = "usr/share/openclipart/png"
SIDE = 224  # of the square, in pixels
MOST_PIXELS = 16_000_000
COUNT = 400
_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # width and height follow, four bytes each


def drawings(folder: Path) -> dict[str, Path]:
    """List the drawings below a folder by the sha256 of their bytes, ascending."""
    named: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        if not path.is_symlink() and 0 < pixels(path) <= MOST_PIXELS:
            named.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return dict(sorted(named.items()))


def pixels(path: Path) -> int:
    """Return how many pixels a PNG file says it has; 0 if it is none. Nothing is decoded."""
    with path.open("rb") as file:
        head = file.read(len(_HEADER) + 8)
    sides = head[len(_HEADER) :]
    return int.from_bytes(sides[:4], "big") * int.from_bytes(sides[4:], "big") if head.startswith(_HEADER) else 0


def on_white(path: Path) -> bytes:
    """Return a drawing in the middle of a white square as PNG; a larger one is shrunk."""
    with Image.open(path) as image:
        drawing = image.convert("RGBA")
    drawing.thumbnail((SIDE, SIDE))
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    content = io.BytesIO()
    square.convert("RGB").save(content, "PNG")
    return content.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; exits with 2 when the package is missing or another one."""
    parser = argparse.ArgumentParser(prog="python -m tools.fetch_openclipart")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--source", type=Path, help=f"the {PACKAGE} .deb; default: apt gets it")
    parser.add_argument("--count", type=int, default=COUNT, help="drawings")
    args = parser.parse_args(argv)
    command = f"apt-get download {PACKAGE}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if args.source is None:
                run(command.split(), Path(scratch))
            source = args.source or next(Path(scratch).glob("*.deb"))
            read_known(source, SHA256, command)
            run(["dpkg-deb", "-x", str(source.resolve()), scratch], Path(scratch))
            chosen = list(drawings(Path(scratch) / FOLDER).items())[: args.count]
            args.output.mkdir(parents=True, exist_ok=True)
            for digest, path in chosen:
                write_whole(args.output / f"{digest[:16]}.png", on_white(path))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.output}: {len(chosen)} drawings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
