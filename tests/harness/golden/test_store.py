"""Golden rankings on disk: what goes in comes out, and what doesn't fit is refused."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.golden import store as module
from harness.golden.store import Provenance, Rankings, find_rankings

PROVENANCE = Provenance(
    model="clip_vit_s14.imgfocus_lit",
    weights="0123456789abcdef",
    dataset="fashion",
    revision="feedbeef0000",
    split="test",
    score="preservation",
    block=3,
    window=2,
    stride=1,
    dtype="float32",
)


def rankings(count: int = 3, **facts: Any) -> Rankings:
    generator = np.random.default_rng(0)
    return Rankings(
        image_ids=tuple(f"fashion/ü-{i}" for i in range(count)),
        importance=generator.random((count, 6)).astype(np.float16),
        provenance=replace(PROVENANCE, **facts),
    )


@pytest.mark.parametrize("count", [1, 3])
def test_round_trip(count: int, tmp_path: Path):
    written = rankings(count)
    path = tmp_path / "new" / "r.parquet"
    written.write(path)
    read = Rankings.read(path)
    assert read.image_ids == written.image_ids
    assert read.importance.dtype == np.float16
    assert np.array_equal(read.importance, written.importance)
    assert read.provenance == PROVENANCE
    assert [p.name for p in path.parent.iterdir()] == ["r.parquet"]


def test_the_same_rankings_give_the_same_bytes(tmp_path: Path):
    for name in "ab":
        rankings().write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_strangers_can_read_the_file(tmp_path: Path):
    """Plain columns and JSON provenance: no need for this package."""
    rankings().write(tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.column_names == ["image_id", "importance"]
    assert table["importance"][1].as_py() == pytest.approx(rankings().importance[1].tolist())
    facts = pq.read_schema(tmp_path / "r.parquet").metadata[b"golden"]
    assert b'"weights": "0123456789abcdef"' in facts


def test_images_in_any_order_and_unknown_ones():
    known = rankings()
    found = known.of([known.image_ids[2], "nobody", known.image_ids[0], known.image_ids[2]])
    assert found.dtype == np.float32
    assert np.array_equal(found[[0, 2, 3]], known.importance[[2, 0, 2]].astype(np.float32))
    assert np.isnan(found[1]).all()
    assert known.of([]).shape == (0, 6)


def test_what_fits_is_let_through():
    rankings().require(**asdict(PROVENANCE))


@pytest.mark.parametrize("field", [*asdict(PROVENANCE)])
def test_another_provenance_is_refused_with_the_command(field: str):
    wanted: Any = 7 if field in ("block", "window", "stride") else "val"
    with pytest.raises(ValueError, match="these rankings were made with") as error:
        rankings().require(**{"model": PROVENANCE.model, field: wanted})
    found = asdict(PROVENANCE)[field]
    assert f"made with {field}={found!r}, wanted {wanted!r}; make them with: " in str(error.value)
    told = asdict(PROVENANCE) | {field: wanted}
    options = ("model", "dataset", "split", "score", "block", "window", "stride")
    command = " ".join(f"--{option} {told[option]}" for option in options)
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


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point data folder and user's cache at empty folders; return the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DATA_DIR", tmp_path / "data")
    return tmp_path / "data"


NAME = "golden-clip_vit_s14.imgfocus_lit-fashion-test.parquet"


def test_rankings_are_found(shipped: Path, tmp_path: Path):
    ask = (PROVENANCE.model, "fashion", "test")
    assert find_rankings(*ask) is None
    rankings(2).write(tmp_path / "cache" / "clip-patchrank" / "rankings" / NAME)
    assert len(find_rankings(*ask).image_ids) == 2
    assert find_rankings(PROVENANCE.model, "fashion", "val") is None
    assert find_rankings("clip_vit_b16.openai", "fashion", "test") is None


def test_the_shipped_ones_come_first_unless_they_know_fewer(shipped: Path, tmp_path: Path):
    rankings(3).write(shipped / NAME)
    rankings(2).write(tmp_path / "cache" / "clip-patchrank" / "rankings" / NAME)
    assert len(find_rankings(PROVENANCE.model, "fashion", "test").image_ids) == 3


def test_more_images_of_the_users_own_win_over_the_shipped_ones(shipped: Path, tmp_path: Path):
    """Shipped rankings may cover a part of the split; ``rank --full`` then makes the rest count."""
    rankings(2).write(shipped / NAME)
    rankings(3).write(tmp_path / "cache" / "clip-patchrank" / "rankings" / NAME)
    assert len(find_rankings(PROVENANCE.model, "fashion", "test").image_ids) == 3
