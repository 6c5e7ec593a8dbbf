"""Several processes under torchrun: one killed and all restarted, more at resume, one result."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.golden.folder import shard_paths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds ranks in /proc"),
]
# At most two blocks, 1 or 2 KiB by the kind of shell; the smallest shard has more.
SMALL_FILES = ("sh", "-c", 'ulimit -f 2 && exec "$@"', "sh")


def torchrun(
    small: Any, processes: int, *command: str, restarts: int = 0, before: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    told = ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [*before, sys.executable, "-m", "torch.distributed.run", *told, "-m", "harness", *command],
        cwd=small.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of(rank: int, parent: int) -> int:
    """Return the id of a torchrun's process of this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            names = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(status[1]) == parent and f"RANK={rank}".encode() in names:
            return int(folder.name)
    raise AssertionError(f"torchrun {parent} has no process of rank {rank}")


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 180
    while not out.is_dir() or len(shard_paths(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_one_of_two_is_killed_and_torchrun_restarts_both_then_three_go_on(
    small: Any, tmp_path: Path
):
    """A limit of 41 leaves a half shard, which the three processes of the second run replace."""
    out = tmp_path / "store"
    limited = ["--limit", "41", *(word for word in small.command[1:] if word != "--full")]
    process = torchrun(small, 2, "rank", *limited, "--out", str(out), restarts=1)
    wait_for(out, 3, process)
    os.kill(process_of(1, process.pid), signal.SIGKILL)
    killed = len(shard_paths(out))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert killed < 21
    assert output == f"wrote {out}: 41 of 60 images\n"
    assert "exitcode: -9" in errors
    begun = [int(n) for n in re.findall(r"all: (\d+) of 41 images are there", errors)]
    assert begun[0] == 0  # said by the first process alone, once per attempt
    assert len(begun) == 2
    assert begun[1] >= 2 * 3
    found, whole = small.shards(out), small.shards(small.whole)
    assert len(found) == 21
    assert [name for name in found if found[name] != whole[name]] == ["part-00020.parquet"]

    process = torchrun(small, 3, *small.command, "--out", str(out))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output == f"wrote {out}: 60 of 60 images\n"
    assert "golden rankings of pictures all: 40 of 60 images are there" in errors
    assert small.shards(out) == whole


def test_where_no_file_may_grow_all_end_with_one_message_and_whole_shards_stay(
    small: Any, tmp_path: Path
):
    """What a full disk does, for two processes at once; needs no rights to bring about."""
    out = tmp_path / "store"
    out.mkdir()
    for path in small.whole.iterdir():
        if path.name not in ("part-00002.parquet", "part-00011.parquet"):
            shutil.copy2(path, out)
    before = small.shards(out)
    process = torchrun(small, 2, *small.command, "--out", str(out), before=SMALL_FILES)
    output, errors = process.communicate()
    assert process.returncode == 1  # torchrun's own
    assert output == ""
    assert "2" in re.findall(r"exitcode +: (\d+)", errors)
    assert errors.count("error: ") == 1
    [line] = re.findall(r"^error: can't write .+$", errors, re.MULTILINE)
    assert re.search(r"/store/part-000(02|11)\.parquet': files this large are not allowed; ", line)
    assert re.search(r"; [\d,]+ bytes needed, [\d,]+ free\. Finished shards are kept; ", line)
    assert " go on with: python -m harness rank --model local-dir:" in line
    assert not re.search(r"^ +File .*/(harness|zoo)/", errors, re.MULTILINE)  # torchrun's may be
    assert small.shards(out) == before
