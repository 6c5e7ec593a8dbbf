"""Ray's actors, which are really killed, make the bytes that one process makes; what they can't do is told once."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from harness.base import workers as module
from harness.base.store import ShardKind, ShardProvenance, Store, shard_paths
from harness.base.workers import ShardJob, make_shards, require_same

KIND = ShardKind(key="numbers", what="numbers", command="count", provenance=ShardProvenance, check=id)
JOB = ShardJob(shard_size=2, workers=2)
TOTAL = 20


def make(store: Store[ShardProvenance], harm: Callable[[int], object], indices: Sequence[int]) -> Iterator[int]:
    for index in indices:
        harm(index)
        yield from store.positions(index)
        store.write(index, pa.table({"number": list(store.positions(index))}), ShardProvenance())
        time.sleep(0.05)


def kill(index: int) -> None:
    if index == 4:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(index: int) -> None:
    if index == 4:
        raise ValueError(f"{index} can't be counted")


def run(folder: Path, job: ShardJob, harm: Callable[[int], object] = abs) -> Iterator[int]:
    store = Store(folder, KIND, size=2, total=TOTAL)
    with store.open(print):
        own = partial(make, store, harm)
        yield from make_shards(job, store.missing(ShardProvenance()), own, start=lambda: own, release=lambda: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in shard_paths(folder).values()}


@pytest.fixture(autouse=True)
def _known(request: pytest.FixtureRequest) -> None:
    """Let workers know this module."""
    if "cluster" in request.fixturenames:
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])


def actors() -> set[int]:
    """Return the ids of the processes that run Ray's actors."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds workers in /proc")
def test_a_killed_worker_changes_no_byte(tmp_path: Path):
    alone = list(run(tmp_path / "alone", ShardJob(shard_size=2)))
    assert alone == list(range(TOTAL))
    killed, before, folder, seen = list[int](), actors(), tmp_path / "store", []
    for number in run(folder, JOB):
        seen.append(number)
        if not killed and len(shard_paths(folder)) >= 3:
            killed.append(next(iter(actors() - before)))
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert sorted(seen) == alone
    assert contents(folder) == contents(tmp_path / "alone")
    limit = time.monotonic() + 60
    while actors() - before:
        assert time.monotonic() < limit, "workers outlive their run"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_ends_workers_ends_the_run_with_one_message(tmp_path: Path):
    """Ray alone would start workers for a deadly shard without end."""
    for harm, match in ((kill, "as after 3 that one shard ended"), (refuse, "^4 can't be counted$")):
        folder = tmp_path / harm.__name__
        with pytest.raises(ValueError, match=match):
            list(run(folder, JOB, harm))
        assert "part-00004.parquet" not in contents(folder)
        list(run(folder, ShardJob(shard_size=2)))  # goes on without
        assert len(shard_paths(folder)) == TOTAL // 2


@pytest.mark.parametrize(("facts", "match"), [
    ({"device": "cuda:1"}, "--device 'cuda:1' with --workers: say cuda; each of them"),
    ({"workers": 3, "device": "cuda"}, "--workers 3 on a machine with 2 GPUs: each of them takes"),
    ({"workers": 0}, "workers=0: expected an integer in .1, inf"),
    ({}, r"--workers 2 needs Ray: pip install 'clip-patchrank\[ray\]'"),
])  # fmt: skip
def test_workers_that_can_not_be_had(facts: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_spec", lambda name: facts or None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=match):
        ShardJob(**{"shard_size": 2, "workers": 2, **facts})


def test_a_worker_with_another_tower_is_refused():
    require_same([])
    with pytest.raises(ValueError, match="a worker has another tower or other images: weights='a' there"):
        require_same(["weights='a' there, 'b' wanted"])
