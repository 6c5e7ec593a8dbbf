"""Golden rankings on disk: what a shard and the small file hold, and which rankings are found."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.base.store import BrokenShardError, Shard, Store, shard_path
from harness.datasets import get_dataset
from harness.golden import store as module
from harness.golden.store import RANKINGS, Provenance, Rankings, Source
from zoo.core.recipes import GoldenConfig

COLUMNS = ("labels", "importance", "least", "ranking")
MODEL = "clip_vit_s14.imgfocus_lit"
TOWER = {"model": MODEL, "weights": "0123456789abcdef"}
SOURCE = {"dataset": "fashion", "revision": "feedbeef0000", "split": "test"}
WAY: dict[str, Any] = {**asdict(GoldenConfig()), "dtype": "float32", "batch": 8}
PROVENANCE = Provenance(**TOWER, **SOURCE, **WAY, versions={"torch": "2.6"})


def exact(index: int = 0, count: int = 4) -> Rankings:
    """Return random rankings of four images of a store; every third has no label."""
    importance = np.random.default_rng(index).normal(size=(count, 6)).astype(np.float32)
    labels = np.where(np.arange(count) % 3 == 2, -1, np.arange(count) + 4 * index)
    ids = [f"fashion/ü-{4 * index + i}" for i in range(count)]
    return Rankings.from_importance(importance, labels, ids, PROVENANCE)


def small(count: int = 3, **facts: Any) -> Rankings:
    """Return rankings of six patches that know no more than the small file."""
    ids = tuple(f"fashion/ü-{i}" for i in range(count))
    importance = np.random.default_rng(0).random((count, 6)).astype(np.float16)
    return Rankings.small(ids, importance, replace(PROVENANCE, **facts))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = Store(tmp_path / "store", RANKINGS, size=4, total=10)
    with made.open(print):
        for index, count in enumerate((4, 4, 2)):
            made.write(index, exact(index, count).table(), PROVENANCE)
    return made.folder


def test_rankings_go_by_images_and_by_prompts_where_these_matter():
    dataset = get_dataset("fashion").with_templates(["a {}"])
    found = [Source.of(dataset, "val").ranked_revision(score) for score in ("preservation", "label", "confidence")]
    assert found == [dataset.revision, dataset.condition, dataset.condition]
    assert dataset.revision != dataset.condition


def test_columns_and_metadata_are_plain(store):
    """What a reader without this package finds, and what comes back."""
    file = pq.ParquetFile(shard_path(store, 1))
    assert file.read()["label"].to_pylist() == [4, 5, None, 7]
    facts = json.loads(file.metadata.metadata[b"golden"])
    assert (facts["provenance"]["weights"], facts["provenance"]["batch"]) == ("0123456789abcdef", 8)
    assert (facts["first"], facts["covers"], facts["size"]) == (4, 4, 4)


def test_float16_keeps_the_order():
    """Cosines crowd below 1, where float16 can't tell 0.9999 from 1; their differences it can."""
    generator = np.random.default_rng(0)
    importance = (-1 + 1e-3 * generator.random((5, 196))).astype(np.float32)
    half = Rankings.from_importance(importance, np.zeros(5), "abcde", PROVENANCE).importance
    assert half.dtype == np.float16
    assert half.min() == 0.0
    for before, after in zip(importance, half, strict=True):
        ordered = after[np.argsort(before, kind="stable")]
        assert (np.diff(ordered) >= 0).all()
        assert len(set(after)) > 180  # of 196
    assert len(set(importance.astype(np.float16)[0])) < 5


def test_exact_importance_ranks_and_what_float16_can_not_hold_is_refused():
    def made(*importance: float) -> Rankings:
        return Rankings.from_importance(np.array([importance], dtype=np.float32), np.zeros(1), ["a"], PROVENANCE)

    found = made(1, 2, 2 + 1e-5, 1, 0.5)
    assert found.least.tolist() == [0.5]  # the score is -(importance + least)
    assert found.importance[0].tolist() == [0.5, 1.5, 1.5, 0.5, 0]
    assert found.ranking.tolist() == [[2, 1, 0, 3, 4]]  # of ties the lower position
    for value, match in ((np.nan, "isn.t finite"), (np.inf, "--precision bfloat16 or"), (1e6, "above float16")):
        with pytest.raises(ValueError, match=match):
            made(0.0, value)


@pytest.mark.parametrize(("changes", "match"), [
    ({"ranking": np.zeros((4, 6), np.int16)}, "doesn't hold every patch once"),
    ({"importance": np.full((4, 6), np.inf, np.float16)}, "not finite"),
    ({"least": np.full(4, np.nan, np.float32)}, "not finite"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_wrong_content_is_broken_even_with_its_checksum(changes, match):
    wrong = replace(exact(), **changes)
    shard = Shard(table=wrong.table(), provenance=wrong.provenance, first=0, covers=4, size=4)
    with pytest.raises(BrokenShardError, match=match):
        RANKINGS.decode(RANKINGS.encode(shard))


def test_a_store_finished_or_not_is_its_shards_in_order(store):
    read, parts = Rankings.read(store), [exact(index, count) for index, count in enumerate((4, 4, 2))]
    assert read.image_ids == tuple(f"fashion/ü-{i}" for i in range(10))
    for name in COLUMNS:
        wanted = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(read, name), wanted), name
        assert getattr(read, name).dtype == wanted.dtype
    assert read.labels.tolist() == [0, 1, -1, 3, 4, 5, -1, 7, 8, 9]
    path = shard_path(store, 1)
    path.replace(path.with_name(f".{path.name}.host-1.partial"))
    assert Rankings.read(store).image_ids == read.image_ids[:4] + read.image_ids[8:]


def test_a_store_shrinks_to_a_small_file(store, tmp_path):
    """The small file ships: ids, importance and provenance, the ranking made from importance."""
    whole, path = Rankings.read(store), tmp_path / "new" / "small.parquet"
    whole.write(path)
    found = Rankings.read(path)
    assert (found.image_ids, found.provenance) == (whole.image_ids, whole.provenance)
    assert found.importance.dtype == np.float16
    assert np.array_equal(found.importance, whole.importance)
    assert np.array_equal(found.ranking, whole.ranking)
    assert (found.labels == -1).all()
    assert np.isnan(found.least).all()
    whole.write(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_another_provenance_is_refused_with_the_command():
    small().require(**asdict(PROVENANCE))
    match = f"made with split='test', wanted 'val'; make them with: patchrank rank --model {MODEL} --dataset fashion"
    with pytest.raises(ValueError, match=re.escape(match)) as error:
        small().require(model=PROVENANCE.model, split="val")
    assert "--split val" in str(error.value)
    with pytest.raises(ValueError, match="action='merge': expected 'remove'; rank again"):
        small(action="merge")


def test_files_that_hold_no_rankings(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("none.parquet' do not exist")):
        Rankings.read(tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match="holds no golden rankings: no part-00000"):
        Rankings.read(tmp_path)
    (tmp_path / "text.parquet").write_text("importance")
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "other.parquet")
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=f"{name}.parquet' holds no golden rankings: "):
            Rankings.read(tmp_path / f"{name}.parquet")


def count() -> int:
    rankings = module.find_rankings(MODEL, "fashion", "test")
    return 0 if rankings is None else len(rankings)


def test_rankings_are_found_by_model_split_and_block_and_who_knows_more_images_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DATA_DIR", tmp_path / "data")
    shipped = tmp_path / "data" / f"golden-{MODEL}-fashion-test.parquet"
    made = module.cache_store(MODEL, "fashion", "test", GoldenConfig())
    own = made.with_name(f"golden-{MODEL}-fashion-test-b3.parquet")
    assert count() == 0
    small(5, block=0).write(own)
    assert count() == 0
    small(2).write(own)
    assert count() == 2
    for ships in (1, 3):  # shipped rankings may cover a part of the split
        small(ships).write(shipped)
        assert count() == max(ships, 2)
    assert module.find_rankings(MODEL, "fashion", "val") is None
    assert module.find_rankings("clip_vit_b16.openai", "fashion", "test") is None
