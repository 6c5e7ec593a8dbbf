"""Which rows of two runs meet, and which files are runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.changes import changes
from harness.records import Record, pack_correct, read_records, read_run, write_records

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "records.jsonl"
[ROW] = [
    row
    for row in read_records(RESULTS)
    if (row.dataset, row.model) == ("fashion", "clip_vit_s14_patchrank60")
]


def record(**changed: Any) -> Record:
    facts: dict[str, Any] = {"shots": 16, "tuning": "vt", "prompt_tokens": 8}
    return replace(ROW, **{**facts, **changed})


def few() -> dict[str, Any]:
    told = {"correct_bits": pack_correct(np.array([True, False])), "image_count": 2}
    return told | {"top1": 0.5, "top1_low": 0.0, "top1_high": 1.0}


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "emoji"},
        {"split": "val"},
        {"tag": "openai"},
        {"model": "clip_vit_b16_patchrank60"},
        {"method": "evit"},
        {"keep": 0.61},
        {"shots": 8},
        {"tuning": "v"},
        {"tuning": "probe", "prompt_tokens": None},
        {"prompt_tokens": 4},
        {"seed": 1},
    ],
)
def test_another_row_is_no_partner(changed: dict[str, Any]):
    a, b = record(), record(**changed)
    found = changes([a], [b])
    assert (found.pairs, found.only_a, found.only_b) == ((), (a,), (b,))


def test_of_records_of_the_same_conditions_the_last_counts():
    old, new = record(), record(created="2026-02-02T02:02:02+00:00", git_commit="f" * 7)
    found = changes([old, new], [old])
    assert [(pair.a, pair.b) for pair in found.pairs] == [(new, old)]
    assert found.replaced == (1, 0)


def test_a_row_under_several_conditions_meets_the_most_alike_and_none_twice():
    full, half = record(), record(dtype="bfloat16")
    short = record(**few(), dtype="bfloat16")
    found = changes([short, full, half], [half, full])
    assert [(pair.a, pair.b) for pair in found.pairs] == [(full, full), (half, half)]
    assert found.only_a == (short,)
    # The same images weigh more than the same precision.
    assert changes([short, full], [half]).pairs[0].a == full


def test_rows_are_grouped_by_dataset_tower_and_tuning_and_conditions_counted():
    rows = [
        record(),
        record(dataset="emoji"),
        record(method="evit", model="clip_vit_s14_evit60"),
        record(seed=1),
        record(shots=0, tuning=None, prompt_tokens=None),
    ]
    newer = [replace(row, torch="2.14.0") for row in rows[:-1]] + [replace(rows[-1], threads=8)]
    found = changes(rows, newer)
    groups = [[pair.a for pair in group] for group in found.groups()]
    assert groups == [[rows[0], rows[2], rows[3]], [rows[1]], [rows[4]]]
    assert [(one.name, one.b, count) for one, count in found.conditions()] == [
        ("torch", "2.14.0", 4),
        ("threads", 8, 1),
    ]


def test_a_run_is_a_file_or_the_folder_of_one(tmp_path: Path):
    write_records(tmp_path / "records.jsonl", [record(), record(seed=1)])
    assert read_run(tmp_path) == read_run(tmp_path / "records.jsonl")
    assert [row.seed for row in read_run(tmp_path)] == [0, 1]


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone': there is no such file or folder; expec"):
        read_run(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"it holds no records\.jsonl; expected a file of"):
        read_run(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(ValueError, match=r"records\.jsonl holds no records"):
        read_run(tmp_path)
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 1: schema_version is None"):
        read_run(tmp_path)
