"""A file that is named like a picture and holds something else starts no program, whoever reads it."""

import io
from contextlib import suppress
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from packing import tarred
from PIL import EpsImagePlugin, Image

from harness.apps.vectors.decode import prepare
from harness.apps.vectors.embed import read_vectors
from harness.apps.vectors.search import query_vector
from harness.apps.vectors.source import open_source
from harness.datasets import get_dataset

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 9 9 rectfill\nshowpage\n"
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plant a Ghostscript that leaves a mark, and see PIL start it."""
    mark, program = tmp_path / "mark", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho > {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with suppress(OSError):
        Image.open(io.BytesIO(EPS)).load()
    mark.unlink()
    return mark


@pytest.fixture
def disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An EPS called x.jpg in a class folder, in a tar, and in Parquet."""
    for folder in ("files/cat", "tars/test", "rows/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "files" / "cat" / "x.jpg").write_bytes(EPS)
    (tmp_path / "tars" / "test" / "0.tar").write_bytes(tarred([("x.jpg", EPS), ("x.cls", b"0")]))
    (tmp_path / "tars" / "classnames.txt").write_text("cat")
    rows = {"image": [{"bytes": EPS, "path": "x.jpg"}], "label": [0]}
    table = datasets.Dataset.from_dict(rows, features=FEATURES).data.table
    pq.write_table(table, tmp_path / "rows" / "data" / "test-00000-of-00001.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.parametrize("read", [
    "folder:files", "wds:tars", "hfds:rows", "embed:files", "embed:tars/test/0.tar", "embed:rows/data/*.parquet",
    "search:files/cat/x.jpg",
])  # fmt: skip
def test_an_eps_named_jpg_is_in_no_known_format(read: str, mark: Path, disguised: Path, whole: Path):
    kind, _, place = read.partition(":")
    if kind == "embed":
        [picture] = open_source([str(disguised / place)]).pictures(range(1))
        why = prepare([picture], pytest.fail).items[0].wrong
    elif kind == "search":
        with pytest.raises(ValueError, match="query") as refusal:
            query_vector(str(disguised / place), next(read_vectors(whole)).provenance)
        why = str(refusal.value)
    else:
        split = get_dataset(f"{kind}:{disguised / place}").split("test")
        with pytest.raises(ValueError, match="image") as refusal:
            split[0]
        why = str(refusal.value)
    assert "can't be read (in no known format)" in why
    assert not mark.exists()
