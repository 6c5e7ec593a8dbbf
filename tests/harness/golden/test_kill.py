"""Processes that are really killed, disks that are really full: nothing is lost but work in hand.

The job is the fixture ``small``: 30 shards; the undisturbed run is the reference, byte for byte.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.golden.store import shard_paths

pytestmark = pytest.mark.slow


def start(small: Any, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *small.command, "--out", str(out)],
        cwd=small.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return as soon as there are ``count`` shards."""
    limit = time.monotonic() + 120
    while not out.is_dir() or len(shard_paths(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_killed_stopped_and_damaged_the_same_command_brings_the_same_store(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """SIGKILL, then SIGINT, then three kinds of damage; each time the command goes on."""
    out = tmp_path / "store"
    process = start(small, out)
    wait_for(out, 3, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = shard_paths(out)
    assert 3 <= len(killed) < 25
    assert all(
        path.read_bytes() == (small.whole / path.name).read_bytes() for path in killed.values()
    )
    times = {path: path.stat().st_mtime_ns for path in killed.values()}

    process = start(small, out)
    wait_for(out, len(killed) + 3, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert errors.endswith("stopped; what is done is kept, the same command goes on from there\n")
    assert f"golden rankings of pictures all: {2 * len(killed)} of 60 images are there" in errors
    assert all(path.name.startswith("part-") for path in out.iterdir())
    stopped = shard_paths(out)
    assert len(killed) + 3 <= len(stopped) < 30

    first, second, third, *_ = stopped.values()
    first.write_bytes(first.read_bytes()[:-20])
    flipped = bytearray(second.read_bytes())
    flipped[200] ^= 1
    second.write_bytes(flipped)
    third.write_bytes((small.whole / "part-00029.parquet").read_bytes())
    (out / ".part-00029.parquet.elsewhere-1.partial").write_bytes(b"PAR1 and no more")
    assert main([*small.command, "--out", str(out)]) == 0
    errors = capsys.readouterr().err
    told = re.findall(
        r"^(part-\d+\.parquet) is broken \(.+\): removed, to be made again$", errors, re.M
    )
    assert told == [first.name, second.name, third.name]
    assert small.shards(out) == small.shards(small.whole)
    for path, when in times.items():
        assert (path.stat().st_mtime_ns == when) == (path not in (first, second, third))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Mount a disk of a given size at ``tmp_path / "disk"``; or grow it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str, *more: str) -> None:
        options = ",".join((f"size={size}", *more))
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")

    if shutil.which("mount") is None:
        pytest.skip("no mount command here")
    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_a_full_disk_ends_in_one_clear_error_and_more_room_goes_on(
    small: Any, tmp_path: Path, disk: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    disk("64k")
    out = tmp_path / "disk" / "store"
    assert main([*small.command, "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert re.search(r"store/part-000\d\d\.parquet': the disk is full; [\d,]+ bytes needed", errors)
    found = small.shards(out)
    assert 3 <= len(found) < 30
    assert found.items() <= small.shards(small.whole).items()
    disk("1m", "remount")
    assert main([*small.command, "--out", str(out)]) == 0
    assert f"{2 * len(found)} of 60 images are there" in capsys.readouterr().err
    assert small.shards(out) == small.shards(small.whole)
