"""Put rebuilt files into the package, or say whether they equal what ships."""

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"


def read_known(path: Path, sha256: str, command: str) -> bytes:
    """Read a source file that must be the known one.

    Raises:
        FileNotFoundError: it is missing; the message holds the command that gets it.
        ValueError: its sha256 is another.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name!r} is not in {str(path.parent)!r}; `{command}` gets it"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(f"{path.name!r} has sha256 {digest}, expected {sha256}; `{command}`")
    return content


def run(command: Sequence[str], folder: Path) -> None:
    """Run a package client in `folder`.

    Raises:
        FileNotFoundError: the client is not installed, or it failed.
    """
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
        partial = target.with_name(name + ".partial")
        partial.write_bytes(content)
        partial.replace(target)
        print(f"{name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 1 if differing else 0
