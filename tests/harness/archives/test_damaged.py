"""Archives that are cut off, changed or none at all: named, with their size and what to do."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from harness.datasets.archives import Archive, unpack

NOISE = os.urandom(70_000)
KINDS = ("x.tar", "x.tgz", "x.zip")


def packed(file: Path) -> Path:
    """Make an archive of three files."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in "abc":
                archive.writestr(f"top/{name}", NOISE)
    else:
        with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as tar:
            for name in "abc":
                info = tarfile.TarInfo(f"top/{name}")
                info.size = len(NOISE)
                tar.addfile(info, io.BytesIO(NOISE))
    return file


def refused(file: Path, match: str) -> None:
    goal = file.parent / "goal"
    with pytest.raises(ValueError, match=match):
        unpack(Archive(file=file.name, holds="top", page="https://x"), file, goal)
    assert not any(goal.iterdir())


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_ones(kind: str, share: float, tmp_path: Path):
    file = packed(tmp_path / kind)
    size = int(file.stat().st_size * share)
    os.truncate(file, size)
    refused(
        file, rf"{kind}' is truncated or damaged: {size:,} bytes, .*get it again, by --download"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_byte_too_few(kind: str, tmp_path: Path):
    file = packed(tmp_path / kind)
    size = file.stat().st_size
    if kind == "x.tar":  # after the last member come blocks of zeros, which are no loss
        with tarfile.open(file) as tar:
            last = tar.getmembers()[-1]
        size = last.offset_data + last.size
    os.truncate(file, size - 1)
    refused(file, rf"{kind}' is truncated or damaged")


def test_a_tar_that_ends_between_two_members_is_truncated(tmp_path: Path):
    file = packed(tmp_path / "x.tar")
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    os.truncate(file, last.offset)
    refused(file, "is truncated or damaged: .*ends without an end marker")


@pytest.mark.parametrize("junk", [b"", b"<html>no such file</html>", b"PK\3\4", b"\x1f\x8b\x08"])
def test_what_is_no_archive(junk: bytes, tmp_path: Path):
    file = tmp_path / "x.tgz"
    file.write_bytes(junk)
    refused(file, f"x.tgz' is truncated or damaged: {len(junk)} bytes")


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip"])
def test_a_flipped_bit_is_seen(kind: str, tmp_path: Path):
    file = packed(tmp_path / kind)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    refused(file, f"{kind}' is truncated or damaged")
