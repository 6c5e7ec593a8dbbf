"""Records: lines round trip, bad ones are refused, and a metric is declared once."""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from harness.records.record import (
    SCHEMA_VERSION,
    Latency,
    Record,
    names_of,
    pack_correct,
    read_records,
    utc_now,
    write_records,
)

CORRECT = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)
FROZEN = Path(__file__).parent / "schema"
[KNOWN] = read_records(FROZEN / "v6.jsonl")
ANSWERS = {"correct_bits": pack_correct(CORRECT), "top1": 0.5, "top1_low": 0.24, "top1_high": 0.76}
ANSWERS |= {"latency": ()}
DENSE = dataclasses.replace(
    KNOWN,
    **(dict.fromkeys(names_of(Record, "measurement")) | ANSWERS),
    git_commit=None,
    model="clip_vit_s14",
    method="dense",
    keep=1.0,
    method_config={},
    shots=16,
    tuning="t",
    prompt_tokens=8,
    image_count=10,
)
FULL = dataclasses.replace(
    DENSE,
    git_commit="0123abc",
    model="clip_vit_s14_patchrank60",
    method="patchrank",
    keep=0.6,
    method_config={"reduce_at": [3], "name": "ü", "fuse": False, "rate": None},
    diff_to_dense=-0.01,
    diff_low=-0.03,
    diff_high=0.0,
    gflops=2.1,
    uncounted_operators=("aten::linalg_inv",),
    activations=9_000_000,
    params=22_000_000,
    tokens_per_block=(197, 197, 197, 119),
    final_tokens=118,
    latency=(
        Latency(batch=1, median_ms=30.5, q1_ms=30.0, q3_ms=31.0, images_per_s=32.8),
        Latency(
            batch=32,
            median_ms=700.0,
            q1_ms=690.0,
            q3_ms=720.0,
            ratio_to_dense=0.7,
            ratio_low=0.68,
            ratio_high=0.72,
            images_per_s=45.7,
        ),
    ),
    tau=0.3,
    tau_low=0.28,
    tau_high=0.32,
    match_at_k=0.7,
    match_k=118,
    match_chance=0.602,
    golden_images=200,
    weighted_tau=0.4,
    weighted_tau_low=0.35,
    weighted_tau_high=0.42,
    border_overlap=0.6,
    border_low=0.58,
    border_high=0.63,
    border_chance=0.511,
    tau_undefined=3,
)


def test_records_round_trip_and_append(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    write_records(path, [DENSE, FULL])
    before = path.read_bytes()
    write_records(path, [FULL])
    assert read_records(path) == [DENSE, FULL, FULL]
    assert path.read_bytes().startswith(before)
    assert [entry.name for entry in path.parent.iterdir()] == ["records.jsonl"]


def test_a_line_starts_with_the_schema_and_says_null_for_unmeasured(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [DENSE])
    assert path.read_text().startswith('{"schema_version": 6, ')
    values = json.loads(path.read_text())
    assert list(values) == [field.name for field in dataclasses.fields(Record)]
    assert {values[name] for name in ("gflops", "tau", "diff_to_dense", "match_k")} == {None}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [({"x": float("nan")}, "not JSON compliant"), ({"x": np.float32(1)}, "float32")],
)
def test_nothing_is_written_when_a_record_is_no_json(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "records.jsonl"
    bad = dataclasses.replace(DENSE, method_config=config)
    with pytest.raises(ValueError, match=f"method_config of clip_vit_s14: .*{complaint}"):
        write_records(path, [FULL, bad])
    assert not list(tmp_path.iterdir())


def test_writing_refuses_what_reading_would(tmp_path: Path) -> None:
    wrong = dataclasses.replace(DENSE, threads="two")
    with pytest.raises(ValueError, match="threads must be int, got 'two'"):
        write_records(tmp_path / "records.jsonl", [wrong])


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.pop(name)


def given_value(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update(changes)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("gflops"), "missing field 'gflops'"),
        (given_value(gflop=1.0), "unknown field 'gflop', did you mean: gflops"),
        (given_value(zzz=1.0), "unknown field 'zzz', did you mean: none"),
        (without("weighted_tau"), "missing field 'weighted_tau'"),
        (given_value(schema_version=5), "schema_version is 5, this version reads 6"),
        (given_value(schema_version=True), "schema_version is True"),
        (without("schema_version"), "schema_version is None"),
        (given_value(shots=1.5), "shots must be int, got 1.5"),
        (given_value(shots=True), "shots must be int, got True"),
        (given_value(tau="0.3"), r"tau must be float \| None, got '0.3'"),
        (given_value(tokens_per_block=[1, "2"]), "tokens_per_block must be int, got '2'"),
        (given_value(latency=[{"batch": 1}]), "missing field 'median_ms'"),
        (given_value(method_config=[]), r"method_config must be dict, got \[\]"),
        (given_value(top1=0.6), "top1 is 0.6, but correct_bits says 0.5"),
        (given_value(top1_low=0.51), "need top1_low <= top1 <= top1_high"),
        (given_value(tau_low=None), "or all three None"),
        (given_value(tau_high=float("nan")), "need tau_low <= tau <= tau_high"),
        (given_value(weighted_tau=0.5), "need weighted_tau_low <= weighted_tau <= weighted"),
        (given_value(border_low=None), "need border_low <= border_overlap .* or all three None"),
        (given_value(correct_bits="b1"), "correct_bits of 1 bytes is not of 10 images"),
        (given_value(correct_bits="b181"), "is not of 10 images"),
        (without("tuning"), "missing field 'tuning'"),
        (given_value(tuning=None), "tuning must be None at 0 shots and only there, got None"),
        (given_value(shots=0), "tuning must be None at 0 shots and only there, got 't'"),
        (given_value(tuning="prob"), "tuning 'prob': did you mean 'probe'"),
        (given_value(tuning="probe"), "prompt_tokens of tuning 'probe' is 8"),
        (given_value(prompt_tokens=None), "prompt_tokens of tuning 't' is None"),
        (given_value(keep=60.0), r"keep must lie in \(0, 1\], got 60.0"),
        (given_value(images_sha256="ab"), "images_sha256 must be 64 hex digits, got 'ab'"),
        (given_value(uncounted_operators=[1]), "uncounted_operators must be str, got 1"),
        (given_value(image_size=196), r"image_size must be tuple\[int, ...\] \| None, got 196"),
        (given_value(created="2026-01-02T03:04:05"), "created must be UTC"),
    ],
)
def test_reading_names_file_line_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [DENSE])
    values = dataclasses.asdict(FULL)
    change(values)
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")
    with pytest.raises(ValueError, match=rf"records\.jsonl, line 2: .*{complaint}"):
        read_records(path)


@pytest.mark.parametrize("line", ["[]", "3", '{"schema_version": 1, "created": "20'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"records\.jsonl, line 1: "):
        read_records(path)


def test_the_clock_is_utc() -> None:
    assert dataclasses.replace(DENSE, created=utc_now()).created.endswith("+00:00")


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


def types_of(kind: Any) -> dict[str, str]:
    hints = get_type_hints(kind).items()
    return {name: hint.__name__ if isinstance(hint, type) else str(hint) for name, hint in hints}


def test_the_frozen_line_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    """Fields changed: raise SCHEMA_VERSION, and freeze a line and the fields of the new version."""
    text = (FROZEN / f"v{SCHEMA_VERSION}.jsonl").read_text()
    fields = json.loads((FROZEN / f"v{SCHEMA_VERSION}.json").read_text())
    assert {"record": types_of(Record), "latency": types_of(Latency)} == fields
    assert list(json.loads(text)) == list(fields["record"])
    write_records(tmp_path / "again.jsonl", [KNOWN])
    assert (tmp_path / "again.jsonl").read_text() == text
