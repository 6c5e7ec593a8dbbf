"""The folder of a store: what is whole stays, what is broken goes, nobody else's is touched."""

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.golden import folder as module
from harness.golden.store import (
    NoRoomError,
    Provenance,
    Shard,
    claimed,
    missing,
    read_shard,
    shard_path,
    shard_paths,
    survey,
    write_shard,
)

MakeShard = Callable[..., Shard]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_whole_store_is_left_alone(store: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.iterdir()}
    present, removed = survey(store)
    assert [entry.count for entry in present.values()] == [4, 4, 2]
    assert removed == []
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.iterdir()}
    assert after == before


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"x" * 99])
def test_a_broken_shard_is_removed_and_told(damage: Callable[[bytes], bytes], store: Path):
    path = shard_path(store, 1)
    path.write_bytes(damage(path.read_bytes()))
    present, [line] = survey(store)
    assert list(present) == [0, 2]
    assert re.fullmatch(r"part-00001\.parquet is broken \(.+\): removed, to be made again", line)
    assert sorted(shard_paths(store)) == [0, 2]


def test_a_shard_under_another_name_is_broken(store: Path):
    shard_path(store, 0).replace(shard_path(store, 1))
    present, [line] = survey(store)
    assert list(present) == [2]
    assert "part-00001.parquet is broken (starts at image 0, not at 4)" in line


def test_half_written_files_are_cleared_away(store: Path):
    (store / ".part-00003.parquet.host-7.partial").write_bytes(b"PAR1")
    survey(store)
    assert len(list(store.iterdir())) == 3


def test_somebody_elses_parquet_is_refused_and_kept(tmp_path: Path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-00000.parquet")
    before = (tmp_path / "part-00000.parquet").read_bytes()
    with pytest.raises(ValueError, match="not of golden rankings; use another folder"):
        survey(tmp_path)
    assert (tmp_path / "part-00000.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("total", "expected"),
    [(1, []), (8, []), (10, []), (11, [2]), (12, [2]), (13, [2, 3]), (17, [2, 3, 4])],
)
def test_only_what_a_larger_limit_adds_is_missing(
    total: int, expected: list[int], store: Path, provenance: Provenance
):
    present, _ = survey(store)
    assert missing(store, present, provenance, 4, total) == expected


def test_holes_are_filled(store: Path, provenance: Provenance):
    shard_path(store, 1).unlink()
    present, _ = survey(store)
    assert missing(store, present, provenance, 4, 10) == [1]


def test_other_settings_are_refused_by_name_with_both_values(store: Path, provenance: Provenance):
    present, _ = survey(store)
    wanted = replace(provenance, stride=2, weights="fedc")
    with pytest.raises(ValueError, match="made with other settings") as error:
        missing(store, present, wanted, 4, 10)
    for text in (
        f"{str(store)!r} holds rankings made with other settings: ",
        "weights='0123456789abcdef' there, 'fedc' wanted; stride=1 there, 2 wanted. ",
        "Use another --out, or delete that folder",
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="shard size 4 there, 8 wanted"):
        missing(store, present, provenance, 8, 10)


def test_other_versions_are_no_other_settings(store: Path, provenance: Provenance):
    present, _ = survey(store)
    wanted = replace(provenance, versions={"torch": "3.0"})
    assert missing(store, present, wanted, 4, 10) == []


def test_two_runs_can_not_write_to_one_folder(tmp_path: Path):
    pytest.importorskip("fcntl")
    with claimed(tmp_path / "new"):
        with pytest.raises(ValueError, match=r"another run is writing to .*new"):
            claimed(tmp_path / "new").__enter__()
        assert list((tmp_path / "new").iterdir()) == []
    with claimed(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only"),
    ],
)
def test_no_room_is_told_with_the_way_on(
    code: int, why: str, store: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NoRoomError, match=why) as error:
        write_shard(store, 3, make_shard(3), "python -m harness rank --again")
    assert f"can't write {str(shard_path(store, 3))!r}" in str(error.value)
    assert re.search(r"; [\d,]+ bytes needed, [\d,]+ free\. ", str(error.value))
    assert str(error.value).endswith("go on with: python -m harness rank --again")
    assert sorted(shard_paths(store)) == [0, 1, 2]
    assert len(list(store.iterdir())) == 3


def test_other_errors_of_the_disk_stay_what_they_are(
    store: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "write_whole", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        write_shard(store, 3, make_shard(3), "")
    assert not isinstance(error.value, NoRoomError)


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from harness.golden.store import read_shard, shard_path, write_shard
folder, index = Path(sys.argv[1]), 0
shard = read_shard(shard_path(folder, 0), 0)
while True:
    index += 1
    write_shard(folder, index, replace(shard, first=index * shard.size), "")
"""


def test_whenever_a_writer_is_killed_every_shard_is_whole(store: Path):
    """SIGKILL a process that does nothing but write shards, at eight different moments."""
    for index in (1, 2):
        shard_path(store, index).unlink()
    for attempt in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(store)])
        while len(shard_paths(store)) < 2 and writer.poll() is None:
            time.sleep(0.001)
        time.sleep(0.0007 * attempt)
        writer.kill()
        assert writer.wait() == -9
        found = shard_paths(store)
        assert len(found) > 1
        for index, path in found.items():
            assert read_shard(path, index).image_ids
        others = [path.name for path in store.iterdir() if path not in found.values()]
        assert all(re.fullmatch(r"\.part-\d+\.parquet\..+\.partial", name) for name in others)
        survey(store)
        assert set(store.iterdir()) == set(found.values())
        for index in [*found][1:]:
            found[index].unlink()
