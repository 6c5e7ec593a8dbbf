"""Processes really killed and disks really full: nothing is lost but the work in hand."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base import workers as module
from harness.base.store import shard_path, shard_paths
from harness.base.terminal import Progress
from harness.cli import main
from harness.datasets.base import Split
from harness.datasets.few_shot import turns
from harness.golden.rank import Job, Source, rank
from zoo.ranking.golden import GoldenConfig

# At most two blocks, 1 or 2 KiB by the kind of shell; the smallest shard has more.
SMALL_FILES = ("sh", "-c", 'ulimit -f 2 && exec "$@"', "sh")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(small: Any) -> Iterator[Start]:
    """Start the job as a process of its own."""
    processes = []

    def run(out: Path, *flags: str, before: tuple[str, ...] = (), **environment: str) -> Any:
        command = [*before, sys.executable, "-m", "harness", *small.command, "--output", str(out)]
        where = {"cwd": small.folder, "env": {**os.environ, "OMP_NUM_THREADS": "1", **environment}}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, *flags], **where, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def one_error(process: subprocess.Popen[str]) -> str:
    """Return the only error line of a process that ends with code 2 and no results."""
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, ""), errors
    assert "Traceback" not in errors
    [line] = re.findall(r"^patchrank: error: .+$", errors, re.MULTILINE)
    return line


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return as soon as there are ``count`` shards."""
    limit = time.monotonic() + 300
    while not out.is_dir() or len(shard_paths(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_stopped_and_damaged_the_same_command_brings_the_same_store(small: Any, tmp_path, start: Start, capsys):
    """SIGKILL, then SIGINT, then three kinds of damage; each time the command goes on."""
    out = tmp_path / "store"
    process = start(out)
    wait_for(out, 3, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed, whole = shard_paths(out), small.shards(small.whole)
    assert 3 <= len(killed) < 25
    assert all(path.read_bytes() == whole[path.name] for path in killed.values())
    times = {path: path.stat().st_mtime_ns for path in killed.values()}

    process = start(out)
    wait_for(out, len(killed) + 3, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert errors.endswith("stopped; what is done is kept, the same command goes on from there\n")
    assert f"golden rankings of pictures all: {2 * len(killed)} of 60 images are there" in errors
    stopped = shard_paths(out)
    assert set(small.shards(out)) == {path.name for path in stopped.values()}
    assert len(killed) + 3 <= len(stopped) < 30

    first, second, third, *_ = stopped.values()
    first.write_bytes(first.read_bytes()[:-20])
    flipped = bytearray(second.read_bytes())
    flipped[200] ^= 1
    second.write_bytes(flipped)
    third.write_bytes(whole["part-00029.parquet"])
    (out / ".part-00029.parquet.elsewhere-1.partial").write_bytes(b"PAR1 and no more")
    assert main([*small.command, "--output", str(out)]) == 0
    errors = capsys.readouterr().err
    line = r"^(part-\d+\.parquet) is broken \(.+\): removed, to be made again$"
    assert re.findall(line, errors, re.M) == [first.name, second.name, third.name]
    assert small.shards(out) == whole
    for path, when in times.items():
        assert (path.stat().st_mtime_ns == when) == (path not in (first, second, third))


def mount(folder: Path, options: str) -> None:
    """Mount a small disk, or change it; skip where there is no right to."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("no right to mount a small disk")


def test_a_full_disk_ends_in_one_clear_error_and_more_room_goes_on(small, tmp_path, capsys, request):
    mount(tmp_path, "size=64k")
    request.addfinalizer(partial(subprocess.run, ["umount", str(tmp_path)], check=True))
    out = tmp_path / "store"
    assert main([*small.command, "--output", str(out)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert re.search(r"store/part-000\d\d\.parquet': the disk is full; [\d,]+ bytes needed", errors)
    done = small.shards(out)
    assert 3 <= len(done) < 30
    assert done.items() <= small.shards(small.whole).items()
    mount(tmp_path, "size=1m,remount")
    assert main([*small.command, "--output", str(out)]) == 0
    assert f"{2 * len(done)} of 60 images are there" in capsys.readouterr().err
    assert small.shards(out) == small.shards(small.whole)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ("--workers 2 --device cuda:1", "--device 'cuda:1' with --workers: say cuda; each worker"),
        ("--workers 3 --device cuda", "--workers 3 on a machine with 2 GPUs: each worker takes"),
    ],
)
def test_workers_that_can_not_be_had(flags: str, match: str, small: Any, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main([*small.command, *flags.split()]) == 2
    assert match in capsys.readouterr().err


def test_without_ray_the_error_names_the_extra(small: Any, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    out = tmp_path / "store"
    assert main([*small.command, "--output", str(out), "--workers", "2"]) == 2
    assert "--workers 2 needs Ray: pip install 'clip-patchrank[ray]'" in capsys.readouterr().err
    assert not out.exists()
    assert main([*small.command, "--output", str(out), "--limit", "2"]) == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a real Ray on this machine; return its address."""
    ray = pytest.importorskip("ray")
    settings = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as of the reference
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(num_cpus=3, **settings)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


def workers_of(parent: int) -> list[int]:
    """Return the ids of the processes below ``parent`` that run Ray's actors."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(folder.name)] = int(status[1])
        if title.startswith(b"ray::MapWorker"):
            actors.append(int(folder.name))

    def below(process: int) -> bool:
        return process == parent or (process in parents and below(parents[process]))

    return [actor for actor in actors if below(actor)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds workers in /proc")
def test_a_worker_is_killed_then_the_driver_and_the_store_is_as_by_one_process(
    small: Any, tmp_path, start: Start, cluster: str, capsys
):
    """The first driver starts a Ray of its own, the second goes on in the one that runs here."""
    out = tmp_path / "store"
    process = start(out, "--workers", "2")
    wait_for(out, 3, process)
    worker = workers_of(process.pid)[0]
    os.kill(worker, signal.SIGKILL)
    killed = len(shard_paths(out))
    wait_for(out, killed + 8, process)  # more than the other worker has in hand
    workers = workers_of(process.pid)
    assert workers
    assert worker not in workers
    process.kill()
    process.wait()
    limit = time.monotonic() + 300
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < limit, "workers outlive their driver"
        time.sleep(0.05)
    whole = small.shards(small.whole)
    done = {name: content for name, content in small.shards(out).items() if name in whole}
    assert killed < 20
    assert len(done) < 30
    assert done.items() <= whole.items()

    assert main([*small.command, "--output", str(out), "--workers", "2"]) == 0
    output, errors = capsys.readouterr()
    assert output == f"wrote {out}: 60 of 60 images\n"
    there = int(re.findall(r"all: (\d+) of 60 images are there", errors)[0])
    assert 2 * len(done) <= there < 60
    assert small.shards(out) == whole


@pytest.mark.slow
def test_where_no_file_may_grow_there_is_one_message_and_whole_shards_stay(small, tmp_path, start):
    """What a full disk does; needs no rights to bring about."""
    out = tmp_path / "store"
    shutil.copytree(small.whole, out)
    for index in (2, 11):
        shard_path(out, index).unlink()
    before = small.shards(out)
    line = one_error(start(out, before=SMALL_FILES))
    assert "/store/part-00002.parquet': files this large are not allowed; " in line
    assert re.search(r"; [\d,]+ bytes needed, [\d,]+ free\. Finished shards are kept; ", line)
    assert " go on with: patchrank rank --model local-dir:" in line
    assert small.shards(out) == before


@pytest.mark.slow
def test_workers_say_in_one_message_why_they_can_not_go_on(small, tmp_path, start, cluster):
    """The driver finds the cluster by RAY_ADDRESS."""
    pictures = tmp_path / "pictures"
    shutil.copytree(small.folder / "pictures", pictures)
    (pictures / "7.png").write_bytes(b"no image")
    out = tmp_path / "store"
    flags = ("--images", str(pictures), "--workers", "2")
    assert "7.png' can't be read" in one_error(start(out, *flags, RAY_ADDRESS=cluster))
    assert len(small.shards(out)) < 30


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_shard_that_always_kills_its_worker_ends_the_run(small: Any, tmp_path):
    """Ray alone would start workers for it without end."""
    source = Source.folder(Path(small.command[4]))
    draw, deadly = source.images._render, int(turns(source.images.labels)[9])

    def render(index: int, variant: int) -> Any:
        if index == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(index, variant)

    images = Split(source.images.labels, source.images._name, render)
    what = {"model": small.command[2], "source": replace(source, images=images), "limit": 12}
    how = {"config": GoldenConfig(block=0), "shard_size": 2, "batch": 8, "workers": 2}
    job = Job(**what, **how, out=tmp_path / "store")
    with pytest.raises(ValueError, match=r"shard 4, part-00004\.parquet, ended 3 workers"):
        rank(job, Progress())
    done = {name: (small.whole / name).read_bytes() for name in small.shards(tmp_path / "store")}
    assert small.shards(tmp_path / "store") == done
    assert "part-00004.parquet" not in done


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_rank_by_several_scores_in_one_go(small: Any, tmp_path, monkeypatch):
    """Each score has the store that one process writes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = "rank --model clip_vit_s14 --dataset emoji --split val --limit 6 --score preservation label confidence"
    command = f"{images} --window 7 --stride 7 --shard-size 2 --batch 8 --dtype float32".split()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*command, "--output", str(tmp_path / "one")]) == 0
    finally:
        torch.set_num_threads(threads)
    assert main([*command, "--output", str(tmp_path / "many"), "--workers", "2"]) == 0
    for score in ("preservation", "label", "confidence"):
        alone, together = (small.shards(tmp_path / whose / score) for whose in ("one", "many"))
        assert len(alone) == 3
        assert together == alone
