"""Scripts that aren't in the wheel: builders of what ships, and here what they share; writers of documentation.

A builder is run as ``python -m tools.build_X [--source PATH] [--check]``; sources are packages of public registries.
"""

import argparse
import hashlib
import io
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zoo.core.files import write_whole

DATA_DIR = Path(__file__).parents[1] / "harness" / "embedded" / "data"


def build_command(
    build: Callable[[Path], Mapping[str, bytes]],
    fetch: Callable[[Path], Path],
    *,
    source: str,
    output: Path = DATA_DIR,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a builder as a command: write the shipped files, or compare them (1 if any differs).

    ``build`` makes {file name: content} from ``--source`` or from what ``fetch`` gets into a folder.
    Exits with 2 when a source is missing or another one.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, help=f"{source}; without, its client gets it")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            files = build(args.source or fetch(Path(scratch)))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return write_or_check(files, args.output, check=args.check)


def run(command: Sequence[str], folder: Path) -> bytes:
    """Run a package client in a folder and return what it prints; a FileNotFoundError says that it failed."""
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"").decode(errors="replace").strip()[-500:] or str(error)
        raise FileNotFoundError(
            f"`{' '.join(command)}` failed: {detail}; run it where it works and give the result as --source"
        ) from error


def read_known(path: Path, sha256: str, command: str) -> bytes:
    """Read a source file that must be the known one.

    Raises:
        FileNotFoundError: it is missing; the message holds the command that gets it.
        ValueError: its sha256 is another.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name!r} is not in {str(path.parent)!r}; `{command}` gets it")
    content = path.read_bytes()
    require_sha256(content, sha256, path.name, command)
    return content


def require_sha256(content: bytes, sha256: str, name: str, command: str) -> None:
    """Refuse content whose sha256 is another, by a ValueError."""
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{name!r} has sha256 {digest}, expected {sha256}; `{command}` gets it")


def read_members(package: Path, content: bytes, prefixes: tuple[str, ...]) -> dict[str, bytes]:
    """Read the files of a package, a .whl, .deb or .tgz, whose paths begin so: {path: content}."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if name.startswith(prefixes)}
    if package.suffix == ".deb":
        content = run(["dpkg-deb", "--fsys-tarfile", str(package.resolve())], package.parent)
    members = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name.startswith(prefixes) and (file := tar.extractfile(member)) is not None:
                members[name] = file.read()
    return members


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
