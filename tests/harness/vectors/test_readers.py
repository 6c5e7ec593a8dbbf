"""The folder opens in what people read Parquet with, bad pictures or not, and search in others agrees."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.vectors.search import nearest
from harness.vectors.store import errors_path, read_vectors

READERS = {
    "pandas": """
import pandas as pd
frame = pd.read_parquet(folder)
ids, paths, vectors = frame["id"], frame["path"], np.stack(frame["embedding"])
""",
    "polars": """
import polars as pl
frame = pl.read_parquet(folder)
assert frame.schema["embedding"] == pl.Array(pl.Float16, 48)
ids, paths, vectors = frame["id"], frame["path"], frame["embedding"].to_numpy()
""",
    "datasets": """
import datasets
table = datasets.load_dataset(folder, split="train", cache_dir=folder + "-cache").with_format("numpy")
ids, paths, vectors = table["id"][:], table["path"][:], np.stack(table["embedding"][:])
""",
    "faiss": """
import faiss, pyarrow.parquet as pq
table = pq.read_table(folder)
ids, paths = table["id"].to_numpy(), table["path"].to_pylist()
vectors = np.stack(table["embedding"].to_numpy())
index = faiss.IndexIDMap(faiss.IndexFlatIP(48))
index.add_with_ids(vectors.astype("float32"), ids)
_, [hits] = index.search(query[None], 5)
""",
    "lancedb": """
import lancedb, pyarrow.parquet as pq
table = lancedb.connect(folder + "-lance").create_table("pictures", pq.read_table(folder))
frame = table.to_arrow()
ids, paths, vectors = frame["id"], frame["path"].to_pylist(), np.stack(frame["embedding"].to_numpy())
search = table.search(query.astype("float16"), vector_column_name="embedding").distance_type("dot")
hits = [row["id"] for row in search.limit(5).to_list()]
""",
}
CODE = """
import sys
import numpy as np
folder, file = sys.argv[1:]
query, hits = np.load(file), []
{reader}
np.savez(file.replace("query", "out"), ids=ids, paths=np.array(list(paths)), vectors=vectors, hits=hits)
"""


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_sees_all_of_it(reader: str, whole: Path, tmp_path: Path):
    """In a process of its own: what readers do at import is nobody's business here."""
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} isn't installed")
    assert errors_path(whole).is_file()
    shards = list(read_vectors(whole))
    query = np.random.default_rng(0).normal(size=48).astype(np.float32)
    np.save(tmp_path / "query.npy", query)
    folder = tmp_path / "vectors"
    folder.symlink_to(whole)
    command = [sys.executable, "-c", CODE.format(reader=READERS[reader]), str(folder), str(tmp_path / "query.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npy.npz")
    order = np.argsort(out["ids"])
    assert out["ids"][order].tolist() == [position for shard in shards for position in shard.ids]
    assert out["paths"][order].tolist() == [name for shard in shards for name in shard.names]
    vectors = np.concatenate([shard.embeddings for shard in shards])
    assert np.array_equal(out["vectors"][order].astype(np.float16), vectors)
    if out["hits"].size:
        assert out["hits"].tolist() == [hit.id for hit in nearest(whole, query, 5).hits]
