"""Scripts that aren't in the wheel: builders of what ships, and writers of documentation; here how sources are read."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path


def run(command: Sequence[str], folder: Path) -> bytes:
    """Run a package client in a folder and return what it prints; a FileNotFoundError says that it failed."""
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"").decode(errors="replace").strip()[-500:] or str(error)
        raise FileNotFoundError(
            f"`{' '.join(command)}` failed: {detail}; run it where it works and give its folder as --source"
        ) from error


def read_package(package: Path, prefixes: tuple[str, ...], sha256: str | None = None) -> dict[str, bytes]:
    """Read the files of a package, a .whl, .deb or .tgz, whose paths begin so: {path: content}.

    Raises:
        FileNotFoundError: there is no such package.
        ValueError: its sha256 is another than the known one.
    """
    if not package.is_file():
        raise FileNotFoundError(f"{package.name!r} is not in {str(package.parent)!r}")
    content = package.read_bytes()
    if sha256 is not None:
        require_sha256(content, sha256, package.name)
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


def require_sha256(content: bytes, sha256: str, name: str) -> None:
    """Refuse content whose sha256 is another, by a ValueError."""
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{name!r} has sha256 {digest}, expected {sha256}")
