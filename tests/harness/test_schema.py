"""Lines of earlier versions say what they said, and not a word more."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from harness.schema import SCHEMA_VERSION

from harness.records import Record, pack_correct, read_records, write_records

RECORD = Record(
    created="2026-01-02T03:04:05+00:00",
    version="0.1.0",
    model="clip_vit_s14_patchrank60",
    method="patchrank",
    keep=0.6,
    method_config={"reduce_at": [3]},
    tag="saliency",
    weights_sha256="ab" * 32,
    dataset="fashion",
    dataset_revision="12ab34cd",
    split="test",
    shots=16,
    tuning="vt",
    prompt_tokens=8,
    seed=0,
    image_count=2,
    correct_bits=pack_correct(np.array([True, False])),
    top1=0.5,
    top1_low=0.24,
    top1_high=0.76,
    margin=0.05,
    cosine_to_dense=0.9,
    cosine_low=0.8,
    cosine_high=0.95,
    tau=0.3,
    tau_low=0.28,
    tau_high=0.32,
    match_at_k=0.7,
    match_low=0.6,
    match_high=0.8,
    weighted_tau=0.4,
    weighted_tau_low=0.35,
    weighted_tau_high=0.42,
    border_overlap=0.6,
    border_low=0.58,
    border_high=0.63,
    border_chance=0.511,
    tau_undefined=3,
    device="cpu",
    device_name="a processor",
    dtype="float32",
    threads=2,
    torch="2.13.0",
    timm="1.0.31",
)


NEW_IN_2 = (
    "weighted_tau", "weighted_tau_low", "weighted_tau_high", "border_overlap", "border_low",
    "border_high", "border_chance", "tau_undefined",
)  # fmt: skip
NEW_IN_3 = ("cosine_to_dense", "cosine_low", "cosine_high")
NEW_IN_4 = ("match_low", "match_high")
NEW_IN_5 = ("tuning", "prompt_tokens")
NEW_IN_6 = ("images_sha256", "image_size", "activations", "uncounted_operators")
NEW_IN_7 = ("margin",)


@pytest.mark.parametrize(
    ("version", "new"),
    [
        (1, (*NEW_IN_2, *NEW_IN_3, *NEW_IN_4, *NEW_IN_5, *NEW_IN_6, *NEW_IN_7)),
        (2, (*NEW_IN_3, *NEW_IN_4, *NEW_IN_5, *NEW_IN_6, *NEW_IN_7)),
        (3, (*NEW_IN_4, *NEW_IN_5, *NEW_IN_6, *NEW_IN_7)),
        (4, (*NEW_IN_5, *NEW_IN_6, *NEW_IN_7)),
    ],
)
def test_a_line_of_an_earlier_version_is_read_as_far_as_it_goes(
    version: int, new: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    values = asdict(RECORD) | {"schema_version": version}
    for name in new:
        del values[name]
    path.write_text(json.dumps(values) + "\n")
    [record] = read_records(path)
    assert record == replace(RECORD, **(dict.fromkeys(new) | {"tuning": "probe"}))
    write_records(path, [record])
    assert json.loads(path.read_text().splitlines()[1])["schema_version"] == SCHEMA_VERSION
    assert read_records(path) == [record, record]
    del values["tau"]  # which the first version had
    path.write_text(json.dumps(values) + "\n")
    with pytest.raises(ValueError, match="line 1: missing field 'tau'"):
        read_records(path)


@pytest.mark.parametrize(("shots", "tuning"), [(0, None), (1, "probe"), (16, "probe")])
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_shots_of_an_earlier_version_meant_a_linear_probe(
    shots: int, tuning: str | None, version: int, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    values = asdict(RECORD) | {"schema_version": version, "shots": shots}
    for name in (*NEW_IN_5, *NEW_IN_6, *NEW_IN_7):
        del values[name]
    path.write_text(json.dumps(values) + "\n")
    [record] = read_records(path)
    assert (record.shots, record.tuning, record.prompt_tokens) == (shots, tuning, None)
