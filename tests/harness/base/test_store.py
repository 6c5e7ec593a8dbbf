"""Stores of the smallest shards: what goes in comes back, nothing else does, and no end of a run loses anything."""

import errno
import os
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import kill_when

from harness.base import store as module
from harness.base.store import (
    BrokenShardError,
    Shard,
    ShardKind,
    ShardProvenance,
    Store,
    from_lists,
    seal,
    shard_path,
    shard_paths,
    to_lists,
)
from zoo.core.errors import NoRoomError


@dataclass(frozen=True, kw_only=True)
class Powers(ShardProvenance):
    power: int
    base: str | None = None


def check(shard: Shard[Powers]) -> None:
    if (from_lists(shard.table, "powers")[:, 0] != 1).any():
        raise BrokenShardError("no powers")


KIND = ShardKind(key="powers", what="powers", command="raise", provenance=Powers, check=check, raw=("raw",))
ORIGIN = Powers(power=3, versions={"torch": "2.6"})


def table(positions: range, power: int = 3) -> Any:
    values = np.array(positions, dtype=np.float32)[:, None] ** np.arange(power + 1)
    noise = np.random.default_rng(positions.start).random((len(positions), 8)).astype(np.float16)
    names = [f"ü-{position}" for position in positions]
    return pa.table({"name": names, "powers": to_lists(values.astype(np.float32)), "raw": to_lists(noise)})


def fill(folder: Path, total: int = 10, origin: Powers = ORIGIN, pause: float = 0.0) -> list[str]:
    """Fill a store whose shards have four; return what is said of broken ones."""
    said: list[str] = []
    store = Store(folder, KIND, size=4, total=total)
    with store.open(said.append):
        for index in store.missing(origin):
            store.write(index, table(store.positions(index), origin.power), origin, [["note", index]])
            time.sleep(pause)
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != module.LOCK}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert fill(tmp_path / "store") == []
    return tmp_path / "store"


def test_what_goes_in_comes_back(folder: Path):
    shards = list(KIND.shards(folder))
    assert [(one.first, one.covers, one.size) for one in shards] == [(0, 4, 4), (4, 4, 4), (8, 2, 4)]
    for shard in shards:
        assert shard.table.equals(table(range(shard.first, shard.first + shard.covers)))
        assert (shard.provenance, shard.provenance.versions) == (ORIGIN, {"torch": "2.6"})
        assert KIND.encode(shard) == shard_path(folder, shard.first // 4).read_bytes()
    assert [facts["notes"] for facts in KIND.facts(folder)] == [one.notes for one in shards]
    shard_path(folder, 1).unlink()  # workers finish shards in any order
    assert [shard.first for shard in KIND.shards(folder)] == [0, 8]


def test_every_changed_byte_is_noticed_or_means_nothing(folder: Path):
    content = shard_path(folder, 0).read_bytes()
    wanted, noticed = KIND.decode(content), 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        try:
            found = KIND.decode(bytes(changed))
        except BrokenShardError:
            noticed += 1
        else:
            assert found.table.equals(wanted.table)
            assert (found.provenance, found.first, found.covers, found.size) == (ORIGIN, 0, 4, 4)
    assert noticed > 0.5 * len(content)
    for length in range(len(content)):
        with pytest.raises(BrokenShardError):
            KIND.decode(content[:length])


@pytest.mark.parametrize(("changes", "match"), [
    ({"first": 2}, "covers 4 from 2, of 4 per shard"),
    ({"table": pa.table({"powers": to_lists(np.zeros((4, 2), np.float32))})}, "no powers"),
    ({"table": pa.table({"other": [1]})}, "unreadable"),
], ids=str)  # fmt: skip
def test_wrong_content_is_broken_even_with_its_checksum(changes: dict[str, Any], match: str, folder: Path):
    shard = KIND.read(shard_path(folder, 0), 0)
    with pytest.raises(BrokenShardError, match=match):
        KIND.decode(KIND.encode(replace(shard, **changes)))


def flip(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_broken_shards_and_half_written_files_go_and_are_made_again(folder: Path):
    whole = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / ".part-00003.parquet.host-7.partial").write_bytes(b"PAR1")
    assert fill(folder) == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    for damage in (lambda c: c[: len(c) // 2], flip, lambda c: b"", lambda c: whole["part-00000.parquet"]):
        shard_path(folder, 1).write_bytes(damage(whole["part-00001.parquet"]))
        [line] = fill(folder)
        assert re.fullmatch(r"part-00001\.parquet is broken \(.+\): to be made again", line)
        assert contents(folder) == whole
    assert "starts at 0, not at 4" in line
    shard_path(folder, 1).write_bytes(whole["part-00001.parquet"][:-9])
    with pytest.raises(ValueError, match=r"part-00001\.parquet' is broken: cut off.* `raise` command that made it"):
        list(KIND.shards(folder))


def test_a_lack_of_memory_breaks_no_shard_and_a_broken_one_behind_the_end_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shard_path(folder, 9).write_bytes(b"PAR1")
    with pytest.raises(
        ValueError, match=r"part-00009\.parquet' is broken: .* behind the last of 10 items.*: delete it"
    ):
        fill(folder)
    shard_path(folder, 9).unlink()
    whole = contents(folder)
    monkeypatch.setattr(pq, "ParquetFile", Mock(side_effect=pa.ArrowMemoryError("malloc of size 128 failed")))
    with pytest.raises(MemoryError, match=r"too little memory to read .*part-00000\.parquet' \(malloc"):
        fill(folder)
    assert contents(folder) == whole


def test_somebody_elses_files_are_refused_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Broken shards are removed; other people's data must not be, nor what another version wrote."""
    path, sink = shard_path(folder, 0), pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    contents_of = {
        "a Parquet file, but not of powers; use another folder": seal(pa.table({"a": [1]}), "others", {}),
        "powers of version 1; this package reads 2": path.read_bytes(),
        "a Parquet file, but not of powers": sink.getvalue().to_pybytes(),
    }
    for match, content in contents_of.items():
        path.write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", 2 if "version" in match else 1)
            with pytest.raises(ValueError, match=match) as error:
                fill(folder)
        assert not isinstance(error.value, BrokenShardError)
        assert path.read_bytes() == content


def test_only_what_a_larger_total_adds_is_missing_and_other_settings_are_refused(folder: Path):
    for total, wanted in ((8, []), (10, []), (11, [2]), (13, [2, 3])):
        store = Store(folder, KIND, size=4, total=total)
        with store.open(Mock()):
            assert store.missing(replace(ORIGIN, versions={"torch": "3.0"})) == wanted  # which is no other setting
    before = contents(folder)
    store = Store(folder, KIND, size=8, total=10)
    with store.open(Mock()), pytest.raises(ValueError, match="made with other settings") as error:
        store.missing(Powers(power=2, base="e"))
    assert "power=3 there, 2 wanted; base=None there, 'e' wanted; shard size 4 there, 8 wanted" in str(error.value)
    assert contents(folder) == before
    shard = KIND.read(shard_path(folder, 1), 1)
    shard_path(folder, 1).write_bytes(KIND.encode(replace(shard, provenance=replace(ORIGIN, base="e"))))
    with pytest.raises(ValueError, match=r"were made differently: part-00001\.parquet has base='e' there, None"):
        list(KIND.shards(folder))


def test_shards_that_may_hold_the_same_are_refused(folder: Path):
    whole = shard_path(folder, 1).read_bytes()
    (folder / "part-000001.parquet").write_bytes(whole)
    with pytest.raises(ValueError, match=r"shard 1 twice, part-000001\.parquet and part-00001\.parquet: remove one"):
        list(KIND.shards(folder))
    (folder / "part-000001.parquet").unlink()
    other = replace(KIND.decode(whole), first=6, covers=2, size=2)
    shard_path(folder, 3).write_bytes(KIND.encode(other))
    with pytest.raises(ValueError, match=r"part-00003\.parquet has shard size 2 there, 4 wanted"):
        list(KIND.shards(folder))


def test_a_pipe_is_no_shard(folder: Path):
    shard_path(folder, 0).unlink()
    os.mkfifo(shard_path(folder, 0))
    with pytest.raises(ValueError, match=r"part-00000\.parquet' is a pipe; expected a regular file"):
        fill(folder)


def test_no_room_is_told_with_the_way_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, "no room")))
    with pytest.raises(NoRoomError, match="disk is full") as error:
        fill(folder, total=13)
    assert f"can't write {str(shard_path(folder, 2))!r}" in str(error.value)
    assert len(contents(folder)) == 3
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error") as other:
        fill(folder, total=13)
    assert not isinstance(other.value, NoRoomError)


def test_killed_at_any_moment_the_same_run_brings_the_same_bytes(tmp_path: Path):
    fill(tmp_path / "whole", 100)
    whole, folder = contents(tmp_path / "whole"), tmp_path / "store"
    code = f"import sys; sys.path[:] = {[str(Path(__file__).parent), *sys.path]!r}\nfrom pathlib import Path\n"
    code += "from test_store import fill; fill(Path(sys.argv[1]), 100, pause=0.2)"
    command = [sys.executable, "-c", code, str(folder)]
    kill_when(lambda _: folder.is_dir() and len(shard_paths(folder)) >= 3, command, limit_s=120)
    done = {path.name: path.read_bytes() for path in shard_paths(folder).values()}
    assert 3 <= len(done) < 25
    assert done.items() <= whole.items()
    others = contents(folder).keys() - done.keys()
    assert all(re.fullmatch(r"\.part-\d+\.parquet\..+\.partial", name) for name in others)
    fill(folder, 100)
    assert contents(folder) == whole
