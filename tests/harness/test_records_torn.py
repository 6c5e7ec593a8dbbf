"""What readers say of a file whose writer was stopped midway, or that isn't text."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records import read_records, write_records

DENSE, FULL = read_records(Path(__file__).parents[2] / "docs" / "results" / "records.jsonl")[:2]


def test_a_torn_last_line_is_named_with_the_command_that_drops_it(tmp_path: Path) -> None:
    path = tmp_path / "it's.jsonl"
    write_records(path, [DENSE, FULL])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"it's\.jsonl, line 2: torn, .* drop it with: ") as error:
        read_records(path)
    command = shlex.split(str(error.value).split("drop it with: ")[1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert read_records(path) == [DENSE]
    write_records(path, [FULL])
    assert path.read_bytes() == whole


def test_a_bad_line_before_a_torn_one_is_not_called_torn(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"schema_version": 99}\n{"sche')
    with pytest.raises(ValueError, match="line 1: schema_version is 99"):
        read_records(path)


def test_a_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [DENSE])
    path.write_bytes(path.read_bytes() + b'{"model": "\xff"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2: 'utf-8' codec can't decode"):
        read_records(path)
