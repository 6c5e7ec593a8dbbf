"""A record is used again only where it answers what is asked now."""

import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from harness.console.terminal import Progress
from harness.records.record import (
    Latency,
    Record,
    earlier,
    fitting,
    names_of,
    pack_correct,
    read_records,
    write_records,
)

[KNOWN] = read_records(Path(__file__).parent / "schema" / "v6.jsonl")
MEASURED = names_of(Record, "measurement")


def record(**changes: Any) -> Record:
    facts: dict[str, Any] = dict.fromkeys(MEASURED) | {
        "model": "clip_vit_s14_random60",
        "method": "random",
        "method_config": {"keep": 0.6, "reduce_at": [3]},
        "shots": 8,
        "tuning": "vt",
        "prompt_tokens": 16,
        "image_count": 4,
        "correct_bits": pack_correct(np.array([True, False, True, True])),
        "top1": 0.75,
        "top1_low": 0.3,
        "top1_high": 0.95,
        "cosine_to_dense": 0.9,
        "cosine_low": 0.8,
        "cosine_high": 0.95,
        "gflops": 3.5,
        "latency": (timed(1), timed(32)),
    }
    return replace(KNOWN, **facts | changes)


def timed(batch: int) -> Latency:
    return Latency(batch=batch, median_ms=2.0, q1_ms=1.0, q3_ms=3.0, images_per_s=9.0)


BLANK = {
    "created": "2026-02-02T02:02:02+00:00",
    "correct_bits": pack_correct(np.zeros(4, dtype=np.bool_)),
    "top1": 0.0,
    "top1_low": 0.0,
    "top1_high": 0.0,
    "gflops": None,
    "latency": (),
}


def test_a_record_of_the_same_conditions_is_used_again(tmp_path: Path):
    write_records(tmp_path / "r.jsonl", [record(seed=1), record(git_commit="old"), record()])
    known = read_records(tmp_path / "r.jsonl")
    assert fitting(record(**BLANK), known, [1, 32]) is known[2]  # the newest
    assert fitting(record(**BLANK), known, [1]) is known[2]
    assert fitting(record(**BLANK), known[:2], []) is known[1]
    assert fitting(record(**BLANK), [], []) is None


OTHER = {
    "version": "0.2.0",
    "model": "clip_vit_s14_random50",
    "method": "evit",
    "keep": 0.5,
    "method_config": {"keep": 0.6, "reduce_at": [4]},
    "tag": "other",
    "weights_sha256": "cd",
    "dataset": "emoji",
    "dataset_revision": "34cd",
    "split": "val",
    "shots": 16,
    "tuning": "v",
    "prompt_tokens": 4,
    "seed": 1,
    "device": "cuda:0",
    "device_name": "another processor",
    "dtype": "bfloat16",
    "threads": 3,
    "torch": "2.14.0",
    "timm": "1.0.32",
    "images_sha256": "cd" * 32,
    "image_size": (224, 224),
}


@pytest.mark.parametrize("field", OTHER)
def test_another_condition_is_measured_anew(field: str):
    assert fitting(record(**BLANK), [record()], [1]) is not None
    assert fitting(record(**{**BLANK, field: OTHER[field]}), [record()], [1]) is None


def test_another_number_of_images_is_measured_anew():
    eight = {"image_count": 8, "correct_bits": pack_correct(np.zeros(8, dtype=np.bool_))}
    assert fitting(record(**{**BLANK, **eight}), [record()], []) is None


def test_every_field_is_either_a_condition_or_measured():
    free = {"created", "git_commit", "schema_version", "image_count"}
    assert {f.name for f in fields(Record)} == set(MEASURED) | free | OTHER.keys()


@pytest.mark.parametrize(("batches", "found"), [([1, 32], True), ([1, 8], False), ([], True)])
def test_latency_at_a_new_batch_size_is_measured(batches: list[int], found: bool):
    assert (fitting(record(**BLANK), [record()], batches) is not None) == found


def test_agreement_is_measured_where_golden_rankings_turned_up():
    known, blank = record(), record(**BLANK)
    assert fitting(blank, [known], [], ranked=True) is None
    weighted = {"weighted_tau": 0.5, "weighted_tau_low": 0.4, "weighted_tau_high": 0.6}
    agreed = replace(known, **weighted)
    assert fitting(blank, [agreed, known], [], ranked=True) is agreed
    dense = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0}
    whole = record(**dense)  # nothing was dropped, so there is no ranking to agree
    assert fitting(record(**{**BLANK, **dense}), [whole], [], ranked=True) is whole


def test_a_golden_row_has_no_latency_to_wait_for():
    golden = {"model": "clip_vit_s14_golden60", "method": "golden"}
    known = replace(record(**golden), latency=(), gflops=None)
    assert fitting(record(**{**BLANK, **golden}), [known], [1, 32]) is known


def test_closeness_to_dense_is_measured_where_it_was_not():
    nothing: dict[str, Any] = dict.fromkeys(("cosine_to_dense", "cosine_low", "cosine_high"))
    by_text: dict[str, Any] = {"shots": 0, "tuning": None, "prompt_tokens": None}
    assert fitting(record(**{**BLANK, **by_text}), [record(**nothing, **by_text)], []) is None
    alone = record(**nothing)  # tuned, and maybe judged without a dense row beside it
    assert fitting(record(**BLANK), [alone], []) is alone
    dense = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0, **nothing}
    whole = record(**dense)
    assert fitting(record(**{**BLANK, **dense}), [whole], []) is whole


def test_a_command_that_was_killed_goes_on_from_its_last_whole_line(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(), record(seed=1)])
    path.write_bytes(path.read_bytes()[:-5])
    console = Console(file=io.StringIO(), width=1000)
    assert earlier(path, Progress(console), fresh=False) == [record()]
    assert f"{path}: the last line was torn" in console.file.getvalue()
    assert earlier(path, Progress(console), fresh=False) == [record()]
    assert console.file.getvalue().count("torn") == 1


def test_nothing_is_known_where_all_is_measured_afresh_or_nothing_was(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    assert earlier(path, Progress(None), fresh=False) == []
    write_records(path, [record()])
    assert earlier(path, Progress(None), fresh=True) == []


def test_going_on_refuses_a_bad_line_that_is_not_the_last(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_text("{}\n{")
    with pytest.raises(ValueError, match="line 1: schema_version is None"):
        earlier(path, Progress(None), fresh=False)
