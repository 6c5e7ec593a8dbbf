"""Files of traces read back as they were written, or not at all."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.golden.store import BrokenShardError
from harness.traces import Facts, RowTraces, read_traces
from harness.traces.folder import read_row
from harness.traces.sealed import seal

FACTS = Facts(
    version="0.1.0",
    model="clip_vit_b16_evit60",
    method="evit",
    keep=0.6,
    method_config={"keep": 0.6, "reduce_at": [3, 6, 9]},
    tag="openai",
    weights_sha256="ab" * 32,
    dataset="folder-my cats/and dogs",
    dataset_revision="0123456789ab",
    split="test",
    shots=0,
    tuning=None,
    prompt_tokens=None,
    seed=0,
    image_count=250,
    device="cpu",
    device_name="a processor",
    dtype="float32",
    threads=2,
    torch="2.13",
    timm="1.0.31",
)


def some(images: int = 5, side: int = 4, **changes: object) -> RowTraces:
    drawn = np.random.default_rng(0)
    shape = (images, side**2)
    row = RowTraces(
        facts=FACTS,
        grid=(side, side),
        image_ids=tuple(f"image/{i}" for i in range(images)),
        labels=("cat",) * images,
        predicted=("cat", "dog", *["cat"] * (images - 2)),
        importance=np.argsort(drawn.random(shape), axis=1).astype(np.int16),
        left=drawn.integers(-1, 12, shape).astype(np.int16),
        token=drawn.integers(-1, side**2, shape).astype(np.int16),
    )
    return replace(row, **changes)


def put(run: Path, row: RowTraces, content: bytes | None = None) -> Path:
    path = run / "traces" / row.facts.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(row.encode() if content is None else content)
    return path


def test_what_is_written_is_read(tmp_path: Path):
    row = some()
    row.importance[2] = -1
    put(tmp_path, row)
    [found] = read_traces(str(tmp_path))
    assert found.facts == row.facts
    assert (found.grid, found.image_ids, found.labels) == (row.grid, row.image_ids, row.labels)
    assert found.correct == (True, False, True, True, True)
    for name in ("importance", "left", "token"):
        assert np.array_equal(getattr(found, name), getattr(row, name))
        assert getattr(found, name).dtype == np.int16
    assert found.ranked.tolist() == [True, True, False, True, True]
    assert found.encode() == row.encode()


def test_pandas_and_polars_read_a_folder_as_one_table(tmp_path: Path):
    row = some()
    row.importance[2] = -1
    dense = replace(FACTS, model="clip_vit_b16", method="dense", keep=1.0, method_config={})
    nothing = np.full_like(row.importance, -1)
    for each in (row, some(facts=dense, importance=nothing)):
        put(tmp_path, each)
    table = pd.read_parquet(tmp_path / "traces")
    assert len(table) == 10
    assert set(table["method"]) == {"dense", "evit"}
    evit = table[table["method"] == "evit"].reset_index(drop=True)
    assert evit["importance"][2] is None
    assert np.stack(evit["left"]).tolist() == row.left.tolist()
    assert evit["correct"].tolist() == [True, False, True, True, True]
    found = pl.read_parquet(tmp_path / "traces" / "*.parquet").filter(pl.col("method") == "evit")
    assert found["importance"].to_list()[1] == row.importance[1].tolist()
    assert found["importance"].null_count() == 1
    assert set(found["grid_rows"]) == {4}


def test_a_file_of_64_images_of_196_patches_stays_small():
    assert len(some(64, 14).encode()) < 64_000


def test_a_name_has_no_blanks_and_another_for_other_facts():
    assert re.fullmatch(r"folder-my-cats-and-dogs-test-\w+-[0-9a-f]{12}\.parquet", FACTS.name)
    changes = {"keep": 0.5, "weights_sha256": "cd" * 32, "method_config": {}, "dtype": "bfloat16"}
    names = {replace(FACTS, **{name: value}).name for name, value in changes.items()}
    assert len(names | {FACTS.name}) == 5
    assert len(replace(FACTS, dataset="x" * 400).name) < 255


def test_taking_images_keeps_their_order():
    row = some().take(["image/3", "image/1"])
    assert row.correct == (True, False)
    assert np.array_equal(row.left, some().left[[3, 1]])
    with pytest.raises(KeyError, match="image/9"):
        some().take(["image/9"])


@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_torn_file_is_told_with_what_makes_it_again(length: int, tmp_path: Path):
    path = put(tmp_path, some(), some().encode()[:length])
    with pytest.raises(ValueError, match=r"is broken \(cut off.*with --fresh"):
        read_traces(tmp_path)
    with pytest.raises(ValueError, match=re.escape(path.name)):
        read_row(path)


def test_changed_bytes_are_never_taken_for_traces():
    content = some().encode()
    drawn = np.random.default_rng(1).integers(4, len(content) - 4, 60)
    for place in drawn.tolist():
        changed = bytearray(content)
        changed[place] ^= 0x55
        try:
            found = RowTraces.decode(bytes(changed))
        except ValueError:
            continue
        assert found.encode() == content  # a byte that says nothing, such as of a statistic


def test_changed_content_under_the_old_checksum_is_refused():
    table = pq.read_table(pa.BufferReader(some().encode()))
    other = table.set_column(table.column_names.index("label"), "label", pa.array(["dog"] * 5))
    sink = pa.BufferOutputStream()
    pq.write_table(other, sink)
    with pytest.raises(BrokenShardError, match="content and checksum differ"):
        RowTraces.decode(sink.getvalue().to_pybytes())


def test_a_newer_version_is_refused(tmp_path: Path):
    put(tmp_path, some(), seal(pa.table({"image_id": ["a"]}), "traces", 2, facts={}))
    with pytest.raises(ValueError, match="traces of version 2; this package reads 1, update it"):
        read_traces(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path: Path):
    put(tmp_path, some(), seal(pa.table({"image_id": ["a"]}), "thumbnails", 1))
    with pytest.raises(ValueError, match="a Parquet file, but not of traces"):
        read_traces(tmp_path)


def test_a_renamed_file_is_refused(tmp_path: Path):
    path = put(tmp_path, some())
    path.rename(path.with_name("other.parquet"))
    with pytest.raises(ValueError, match=r"other.parquet' holds traces of another row"):
        read_traces(tmp_path)


def test_unknown_facts_are_refused():
    row = some()
    table = pq.read_table(pa.BufferReader(row.encode()))
    told = json.loads(table.schema.metadata[b"traces"])
    facts = told["facts"] | {"colour": "blue"}
    with pytest.raises(ValueError, match="unknown field 'colour'"):
        RowTraces.decode(seal(table, "traces", 1, facts=facts, grid=[4, 4]))
