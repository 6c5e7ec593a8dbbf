"""Golden rankings read back, from stores and small files: whole, or refused with the reason."""

import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.golden.store import Provenance, Rankings, Shard, shard_path

Make = Callable[..., Rankings]


def test_a_store_is_its_shards_in_order(store: Path, make_shard: Callable[..., Shard]):
    read = Rankings.read(store)
    shards = [make_shard(index, count) for index, count in enumerate((4, 4, 2))]
    assert read.image_ids == tuple(f"fashion/ü-{i}" for i in range(10))
    for name in ("importance", "labels", "least", "ranking"):
        joined = np.concatenate([getattr(shard, name) for shard in shards])
        assert np.array_equal(getattr(read, name), joined), name
    assert read.labels.tolist() == [0, 1, -1, 3, 4, 5, -1, 7, 8, 9]


def test_an_unfinished_store_gives_what_is_there(store: Path):
    """Holes too: processes that share the work finish shards in any order."""
    shard_path(store, 1).unlink()
    (store / ".part-00001.parquet.host-1.partial").write_bytes(b"PAR1")
    read = Rankings.read(store)
    assert read.image_ids == tuple(f"fashion/ü-{i}" for i in (0, 1, 2, 3, 8, 9))


def test_a_single_shard_can_be_read(store: Path):
    assert Rankings.read(shard_path(store, 1)).image_ids[0] == "fashion/ü-4"


def test_a_broken_store_is_refused(store: Path):
    path = shard_path(store, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is broken: cut off.* `rank` command that made") as error:
        Rankings.read(store)
    assert str(error.value).startswith(repr(str(path)))


def test_shards_of_different_origin_are_refused(
    store: Path, make_shard: Callable[..., Shard], provenance: Provenance
):
    other = make_shard(1, provenance=replace(provenance, stride=2, approximate="sketch:16"))
    shard_path(store, 1).write_bytes(other.encode())
    with pytest.raises(ValueError, match="were made differently: part-00001") as error:
        Rankings.read(store)
    assert "stride=2 there, 1 wanted; approximate='sketch:16' there, None" in str(error.value)


def test_shards_of_other_versions_belong_together(
    store: Path, make_shard: Callable[..., Shard], provenance: Provenance
):
    other = make_shard(1, provenance=replace(provenance, versions={"torch": "3.0"}))
    shard_path(store, 1).write_bytes(other.encode())
    assert len(Rankings.read(store).image_ids) == 10


def test_a_folder_without_shards_is_no_store(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no golden rankings: no part-00000"):
        Rankings.read(tmp_path)


def test_a_store_shrinks_to_a_small_file(store: Path, tmp_path: Path):
    """The small file ships: ids, importance and provenance, the ranking made from importance."""
    whole = Rankings.read(store)
    whole.write(tmp_path / "small.parquet")
    small = Rankings.read(tmp_path / "small.parquet")
    assert small.image_ids == whole.image_ids
    assert np.array_equal(small.importance, whole.importance)
    assert np.array_equal(small.ranking, whole.ranking)
    assert small.provenance == whole.provenance
    assert (small.labels == -1).all()
    assert np.isnan(small.least).all()


@pytest.mark.parametrize("count", [1, 3])
def test_round_trip_of_a_small_file(
    count: int, tmp_path: Path, rankings: Make, provenance: Provenance
):
    written = rankings(count)
    path = tmp_path / "new" / "r.parquet"
    written.write(path)
    read = Rankings.read(path)
    assert read.image_ids == written.image_ids
    assert read.importance.dtype == np.float16
    assert np.array_equal(read.importance, written.importance)
    assert read.provenance == provenance
    assert [p.name for p in path.parent.iterdir()] == ["r.parquet"]


def test_the_same_rankings_give_the_same_bytes(tmp_path: Path, rankings: Make):
    for name in "ab":
        rankings().write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_strangers_can_read_the_file(tmp_path: Path, rankings: Make):
    """Plain columns and JSON provenance: no need for this package."""
    rankings().write(tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.column_names == ["image_id", "importance"]
    assert table["importance"][1].as_py() == pytest.approx(rankings().importance[1].tolist())
    facts = pq.read_schema(tmp_path / "r.parquet").metadata[b"golden"]
    assert b'"weights": "0123456789abcdef"' in facts


def test_images_in_any_order_and_unknown_ones(rankings: Make):
    known = rankings()
    found = known.of([known.image_ids[2], "nobody", known.image_ids[0], known.image_ids[2]])
    assert found.dtype == np.float32
    assert np.array_equal(found[[0, 2, 3]], known.importance[[2, 0, 2]].astype(np.float32))
    assert np.isnan(found[1]).all()
    assert known.of([]).shape == (0, 6)


def test_the_ranking_of_a_small_file_follows_its_importance(rankings: Make):
    made = rankings()
    for importance, ranking in zip(made.importance, made.ranking, strict=True):
        assert (np.diff(importance[ranking].astype(np.float32)) <= 0).all()


def test_what_fits_is_let_through(rankings: Make, provenance: Provenance):
    rankings().require(**asdict(provenance))


@pytest.mark.parametrize("field", [f.name for f in fields(Provenance) if f.compare])
def test_another_provenance_is_refused_with_the_command(
    field: str, rankings: Make, provenance: Provenance
):
    wanted: Any = 7 if field in ("block", "window", "stride", "greedy") else "val"
    with pytest.raises(ValueError, match="these rankings were made with") as error:
        rankings().require(**{"model": provenance.model, field: wanted})
    found = asdict(provenance)[field]
    assert f"made with {field}={found!r}, wanted {wanted!r}; make them with: " in str(error.value)
    told = asdict(provenance) | {field: wanted}
    options = ["model", "dataset", "split", "score", "block", "window", "stride"]
    command = " ".join(f"--{option} {told[option]}" for option in options)
    command += {"greedy": " --greedy 7", "approximate": " --approx val"}.get(field, "")
    assert str(error.value).endswith(f"python -m harness rank {command}")


def test_files_that_hold_no_rankings(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=re.escape("none.parquet' do not exist")):
        Rankings.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("importance")
    with pytest.raises(ValueError, match=re.escape("text.parquet' is not a Parquet file: ")):
        Rankings.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="holds no golden rankings: no provenance inside"):
        Rankings.read(tmp_path / "other.parquet")
