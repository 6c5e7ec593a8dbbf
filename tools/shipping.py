"""Put rebuilt files into the package, or say whether they equal what ships."""

import argparse
import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zoo.core.files import write_whole

DATA_DIR = Path(__file__).parents[1] / "harness" / "embedded" / "data"


def build_command(
    name: str,
    build: Callable[[Path | None, Path], Mapping[str, bytes]],
    *,
    source: str,
    output: Path = DATA_DIR,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a builder as a command: write the shipped files, or compare them (1 if any differs).

    ``build`` makes {file name: content} from ``--source``, if that is given, and a folder for what
    it downloads. Exits with 2 when a source is missing or another one.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tools.{name}")
    parser.add_argument("--source", type=Path, help=source)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            files = build(args.source, Path(scratch))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return write_or_check(files, args.output, check=args.check)


def read_known(path: Path, sha256: str, command: str) -> bytes:
    """Read a source file that must be the known one.

    Raises:
        FileNotFoundError: it is missing; the message holds the command that gets it.
        ValueError: its sha256 is another.
    """
    if not path.is_file():
        place = str(path.parent)
        raise FileNotFoundError(f"{path.name!r} is not in {place!r}; `{command}` gets it")
    content = path.read_bytes()
    require_sha256(content, sha256, repr(path.name), command)
    return content


def require_sha256(content: bytes, sha256: str, name: str, command: str) -> None:
    """Refuse content whose sha256 is another, by a ValueError."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(f"{name} has sha256 {digest}, expected {sha256}; `{command}` gets it")


def run(command: Sequence[str], folder: Path) -> None:
    """Run a package client in `folder`; a FileNotFoundError says that it is missing or failed."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise FileNotFoundError(
            f"`{' '.join(command)}` failed: {detail.strip()[-500:]}; "
            "run it where it works and give the result as --source"
        ) from error


def write_or_check(files: Mapping[str, bytes], folder: Path, *, check: bool) -> int:
    """Write files (each whole or not at all), or compare: 1 if any differs, else 0."""
    differing = 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = folder / name
        if check:
            same = target.is_file() and target.read_bytes() == content
            differing += not same
            print(f"{name}: {'equal' if same else 'DIFFERS'}")
            continue
        write_whole(target, content)
        print(f"{name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 1 if differing else 0
