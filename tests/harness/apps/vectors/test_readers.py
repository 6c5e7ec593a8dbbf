"""The lines of docs/embed.md open the folder in what people read Parquet with, and search in others agrees."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.apps.vectors.embed import read_vectors
from harness.apps.vectors.search import nearest

PAGE = Path(__file__).parents[4] / "docs" / "embed.md"
# What the page leaves to its reader: ids, paths and vectors, and the hits of the first vector.
REST = {
    "pandas": "ids, paths, hits = frame['id'], frame['path'], []",
    "faiss": "[hits] = ids\nids, paths = table['id'], table['path'].to_pylist()",
}
SAVE = "np.savez('out.npz', ids=np.array(ids), paths=np.array(list(paths)), vectors=np.stack(vectors), hits=hits)"


@pytest.mark.parametrize("reader", REST)
def test_a_reader_sees_all_of_it(reader: str, whole: Path, tmp_path: Path):
    """In a process of its own: what readers do at import is nobody's business here."""
    pytest.importorskip(reader)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    [block] = [block for block in blocks if f"import {reader}\n" in block or f"import {reader} as" in block]
    (tmp_path / "vectors").symlink_to(whole)
    code = f"import numpy as np\n{block}\n{REST[reader]}\n{SAVE}"
    facts = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {**os.environ, "HF_HOME": str(tmp_path)}}
    done = subprocess.run([sys.executable, "-c", code], check=False, **facts)
    assert done.returncode == 0, done.stderr
    out, shards = np.load(tmp_path / "out.npz"), list(read_vectors(whole))
    order = np.argsort(out["ids"])
    assert out["ids"][order].tolist() == [position for shard in shards for position in shard.ids]
    assert out["paths"][order].tolist() == [name for shard in shards for name in shard.names]
    vectors = np.concatenate([shard.codes.codes for shard in shards])
    assert np.array_equal(out["vectors"][order].astype(np.float16), vectors)
    if out["hits"].size:
        hits = nearest(whole, vectors[0].astype(np.float32), 5).hits
        assert set(out["hits"].tolist()) == {hit.id for hit in hits}
        assert out["hits"][0] == hits[0].id
