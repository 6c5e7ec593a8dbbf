"""Parquet files that say what they are and prove that they are whole."""

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.golden.store import MAGIC, BrokenShardError, encode_table, reading


def seal(table: Any, kind: str, version: int, **told: Any) -> bytes:
    """Return a table as a Parquet file; the same table gives the same bytes with one pyarrow.

    Args:
        table: a pyarrow table.
        kind: what the file is, the key of its metadata.
        version: of its columns and metadata.
        told: JSON values that go into the metadata.
    """
    told = json.loads(json.dumps(told))  # as it will be read
    facts = told | {"version": version, "sha256": _digest(table, told)}
    metadata = {kind.encode(): json.dumps(facts, sort_keys=True).encode()}
    return encode_table(table.replace_schema_metadata(metadata))


def unseal(content: bytes, kind: str, version: int) -> tuple[Any, dict[str, Any]]:
    """Read a file back and check all of it.

    Returns:
        The table, and what was told.

    Raises:
        BrokenShardError: something in it isn't as ``seal`` wrote it.
        ValueError: a file of another kind, or of a version that this package doesn't know.
    """
    if content[:4] != MAGIC or content[-4:] != MAGIC:
        raise BrokenShardError("cut off, or no Parquet file")
    with reading():
        file = pq.ParquetFile(pa.BufferReader(content))
        metadata = file.metadata.metadata or {}
    if kind.encode() not in metadata:
        raise ValueError(f"a Parquet file, but not of {kind}")
    with reading():
        told = json.loads(metadata[kind.encode()])
        found, digest = told.pop("version"), told.pop("sha256")
    if found != version:
        raise ValueError(f"{kind} of version {found!r}; this package reads {version}, update it")
    with reading():
        table = file.read(use_threads=False)
        if _digest(table, told) != digest:
            raise BrokenShardError("content and checksum differ")
    return table, told


def _digest(table: Any, told: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in table.column_names:
        digest.update(repr((name, table[name].to_pylist())).encode())
    return digest.hexdigest()
