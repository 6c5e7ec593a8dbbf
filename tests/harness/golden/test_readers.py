"""Stores open without this package, as docs/rankings.md says: its examples run as they stand."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.golden.store import Rankings

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "rankings.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.M | re.S)
CHECKS = {
    "harness": "assert len(rankings.image_ids) == 10",
    "pandas": """
assert importance.dtype == np.float16 and importance.shape == score.shape == (10, 6)
assert table["label"].isna().sum() == 2
""",
    "polars": """
assert table.schema["importance"] == pl.Array(pl.Float16, 6)
assert table["label"].null_count() == 2 and first.height == 10
""",
    "datasets": """
assert table["label"][:4] == [0, 1, None, 3] and len(table) == 10
assert row["importance"].shape == (6,)
""",
}
DUMP = "\nprint('ranking:', {ranking})\n"
RANKING = {
    "harness": "rankings.ranking.tolist()",
    "pandas": "np.stack(table['ranking']).tolist()",
    "polars": "table['ranking'].to_list()",
    "datasets": "table['ranking'][:]",
}


def test_every_reader_has_its_example():
    assert len(EXAMPLES) == len(CHECKS)


@pytest.mark.parametrize("reader", CHECKS)
def test_the_example_reads_the_store(reader: str, store: Path, tmp_path: Path):
    """In a process of its own: these libraries are large, and one has a cache."""
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed")
    whole = Rankings.read(store)
    store.rename(tmp_path / "rankings")
    (tmp_path / "rankings" / ".part-00003.parquet.host-1.partial").write_bytes(b"PAR1")
    code = EXAMPLES[[*CHECKS].index(reader)] + CHECKS[reader] + DUMP.format(ranking=RANKING[reader])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"ranking: {whole.ranking.tolist()}"
