"""A shard gives back what went in, and never anything else."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.golden.store import BrokenShardError, Provenance, Shard, to_half
from zoo.files import write_whole

MakeShard = Callable[..., Shard]

FIELDS = ("labels", "importance", "least", "ranking")


def same(left: Shard, right: Shard) -> bool:
    facts = ("first", "size", "image_ids")
    return (
        all(getattr(left, name) == getattr(right, name) for name in facts)
        and left.provenance.json() == right.provenance.json()
        and all(np.array_equal(getattr(left, name), getattr(right, name)) for name in FIELDS)
    )


@pytest.mark.parametrize("count", [1, 3, 4])
def test_round_trip(count: int, make_shard: MakeShard):
    shard = make_shard(2, count)
    again = Shard.decode(shard.encode())
    assert same(again, shard)
    assert [getattr(again, name).dtype.name for name in FIELDS] == [
        "int32",
        "float16",
        "float32",
        "int16",
    ]


def test_the_same_rankings_give_the_same_bytes(make_shard: MakeShard):
    assert make_shard().encode() == make_shard().encode()


def test_columns_and_metadata_are_plain(make_shard: MakeShard, provenance: Provenance):
    """What a reader without this package finds."""
    shard = make_shard(1)
    file = pq.ParquetFile(pa.BufferReader(shard.encode()))
    table = file.read()
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert kinds == {
        "image_id": "string",
        "label": "int32",
        "importance": "fixed_size_list<element: halffloat>[6]",
        "least": "float",
        "ranking": "fixed_size_list<element: int16>[6]",
    }
    assert table["label"].to_pylist() == [4, 5, None, 7]
    facts = json.loads(file.metadata.metadata[b"golden"])
    assert facts["weights"] == "0123456789abcdef"
    assert facts["versions"] == {"torch": "2.6"}
    place = json.loads(file.metadata.metadata[b"shard"])
    assert {k: place[k] for k in ("first", "count", "size")} == {"first": 4, "count": 4, "size": 4}


def test_the_score_can_be_computed_from_the_columns(make_shard: MakeShard):
    """s = -(importance + least), to half precision of the spread."""
    exact = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    shard = Shard.decode(make_shard().encode())
    assert np.allclose(shard.importance + shard.least[:, None], exact, atol=2e-3)
    assert np.array_equal(shard.least, exact.min(axis=1))


def test_the_ranking_is_of_exact_importance_and_ties_go_to_the_lower_position(
    make_shard: MakeShard,
):
    importance = np.array([[1, 2, 2 + 1e-5, 1, 0]], dtype=np.float32)
    facts = vars(make_shard(count=1)).items()
    told = {k: v for k, v in facts if k in ("first", "size", "image_ids", "provenance")}
    shard = Shard.from_importance(importance, np.array([0]), **told)
    assert shard.importance[0, 1] == shard.importance[0, 2]
    assert shard.ranking.tolist() == [[2, 1, 0, 3, 4]]


def test_float16_keeps_the_order():
    """Cosines crowd below 1, where float16 can't tell 0.9999 from 1; their differences it can."""
    generator = np.random.default_rng(0)
    importance = (-1 + 1e-3 * generator.random((5, 196))).astype(np.float32)
    half = to_half(importance)
    assert half.dtype == np.float16
    assert half.min() == 0.0
    for before, after in zip(importance, half, strict=True):
        ordered = after[np.argsort(before, kind="stable")]
        assert (np.diff(ordered) >= 0).all()
        assert len(set(after)) > 180  # of 196
    assert len(set(importance.astype(np.float16)[0])) < 5


@pytest.mark.parametrize(
    ("value", "match"),
    [(np.nan, "no finite number"), (np.inf, "--dtype bfloat16 or float32"), (1e6, "above float16")],
)
def test_what_float16_can_not_hold_is_refused(value: float, match: str):
    importance = np.array([[0.0, value]], dtype=np.float32)
    with pytest.raises(ValueError, match=match):
        Shard.from_importance(importance, np.array([0]))


def test_no_changed_bit_goes_unnoticed(make_shard: MakeShard):
    """A flipped bit makes a shard broken, unless it is one that nobody reads."""
    shard = make_shard()
    content = shard.encode()
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[position] ^= 1 << generator.integers(8)
        try:
            assert same(Shard.decode(bytes(changed)), shard)
        except BrokenShardError:
            refused += 1
    assert refused > 150


def test_every_cut_is_noticed(make_shard: MakeShard):
    content = make_shard().encode()
    for length in range(len(content)):
        with pytest.raises(BrokenShardError):
            Shard.decode(content[:length])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ranking": np.zeros((4, 6), np.int16)}, "doesn't hold every patch once"),
        ({"importance": np.full((4, 6), np.inf, np.float16)}, "not finite"),
        ({"least": np.full(4, np.nan, np.float32)}, "not finite"),
        ({"size": 3}, "holds 4 images from 0, of 3 per shard"),
        ({"first": 2}, "holds 4 images from 2, of 4 per shard"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_content_is_broken_even_with_its_checksum(
    changes: dict[str, Any], match: str, make_shard: MakeShard
):
    content = replace(make_shard(), **changes).encode()
    with pytest.raises(BrokenShardError, match=match):
        Shard.decode(content)


def test_somebody_elses_parquet_is_not_called_broken():
    """Broken shards are removed; other people's data must not be."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image_id": ["a"]}), sink)
    with pytest.raises(ValueError, match="not of golden rankings") as error:
        Shard.decode(sink.getvalue().to_pybytes())
    assert not isinstance(error.value, BrokenShardError)


def test_provenance_of_a_later_version_is_refused_and_not_called_broken(
    make_shard: MakeShard, provenance: Provenance
):
    class Later:
        def json(self) -> str:
            return json.dumps(json.loads(provenance.json()) | {"mood": "good"})

    content = make_shard(provenance=Later()).encode()
    with pytest.raises(ValueError, match=re.escape("'mood': 'good'")) as error:
        Shard.decode(content)
    assert not isinstance(error.value, BrokenShardError)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "part-00000.parquet"
    write_whole(path, b"first")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"second")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"first"
