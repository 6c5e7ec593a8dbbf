"""Two runs in pairs: the same rows meet, what isn't alike is not compared, and what differs is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import ANOTHER, KNOWN, UNLABELLED, answers, per_image, replace, timed

from harness.base.table import Shown
from harness.cli.entry import main
from harness.records.record import Record, read_records, write_records
from harness.records.statistics import paired_difference, paired_mean
from harness.report.changes import Pair, compare_runs, find_changes

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "records.jsonl"

A = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)
B = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0], dtype=bool)


def record(correct: Any = A, **changed: Any) -> Record:
    """Return a row of 10 images."""
    facts: dict[str, Any] = {
        **{"method_config": {"reduce_at": [3], "predictor": "12ab"}, "weights_sha256": "ab" * 32},
        **{"dataset": "birds", "dataset_revision": "12ab34cd", "images_sha256": "ab" * 32},
        **{"shots": 16, "tuning": "vt", "prompt_tokens": 8, "threads": 2, "torch": "2.13.0"},
        **{"tau": 0.3, "tau_low": 0.2, "tau_high": 0.4, "golden_images": 10},
        **{"gflops": 2.5, "params": 22_000_000, "latency": (timed(1, 30.0), timed(32, 700.0))},
    }
    return replace(KNOWN, **facts | answers(correct) | changed)


def pair(a: Record, b: Record) -> Pair:
    return Pair(then=a, now=b)


def compared(a: list[Record], b: list[Record], folder: Path) -> Shown:
    """Compare two runs that are written to a folder."""
    for name, records in (("a", a), ("b", b)):
        (folder / name).unlink(missing_ok=True)
        write_records(folder / name, records)
    return compare_runs(folder / "a", folder / "b")


def test_the_difference_is_b_minus_a_paired_by_image(tmp_path: Path):
    there, back = (pair(*rows).change("top1") for rows in ((record(), record(B)), (record(B), record())))
    assert there == paired_difference(B, A)
    assert there.estimate == pytest.approx(0.1) == -back.estimate
    then, now = np.random.default_rng(0).uniform(0.01, 0.03, size=(2, 40))
    runs = [[record(np.ones(40), **per_image("cosine_distance", one))] for one in (then, now)]
    shown = compared(*runs, tmp_path)
    [one] = shown.data["moved"]
    values = [row.per_image("cosine_distance") for [row] in runs[::-1]]
    assert one["quantity"] == "cosine_distance"
    assert tuple(one["difference"].values()) == paired_mean(*values)
    assert shown.parts[-1].cells("B - A")[0].startswith("-" if values[0].mean() < values[1].mean() else "+")


def test_a_run_beside_itself_has_not_changed(tmp_path: Path):
    near = per_image("cosine_distance", np.linspace(0.01, 0.02, 10))
    rows = [record(), record(B, seed=1), record(dataset="photos", **UNLABELLED, margin=None, **near)]
    shown = compared(rows, rows, tmp_path)
    assert shown.parts[2:] == ("3 rows are in both runs",)
    assert shown.data["moved"] == shown.data["only_in_a"] == shown.data["only_in_b"] == []


@pytest.mark.parametrize(("other", "reason"), [
    (record(dataset_revision="99"), "dataset_revision '12ab34cd' and '99'"),
    (record([1, 0, 1, 1], images_sha256="cd" * 32), "image_count 10 and 4"),
    (record(images_sha256="cd" * 32), f"images_sha256 '{'ab' * 32}' and '{'cd' * 32}'"),
])  # fmt: skip
def test_answers_on_other_images_are_not_paired(other: Record, reason: str):
    found = pair(record(), other)
    assert found.other_images == reason
    assert found.change("top1") is found.change("tau") is None
    assert [one.quantity for one in find_changes(found)] == ["images"]


def test_conditions_settings_costs_and_rows_of_one_run_are_told(tmp_path: Path):
    evit = record(method="evit", model="clip_vit_s14_evit60")
    config = {"reduce_at": [3], "predictor": "34cd", "fuse": True}
    newer = [record(params=22_000_001, torch="2.14.0"), record(seed=1, torch="2.14.0", method_config=config)]
    *lines, table = compared([record(), record(), record(seed=1), evit], newer, tmp_path).parts
    how = "16 shots, learned visual and text tokens (8), seed 0"
    assert lines[2:] == [
        "2 rows are in both runs",
        "torch: 2.13.0 in A, 2.14.0 in B",
        f"only in A: clip_vit_s14_evit60.imgfocus_lit on birds test, {how}",
    ]
    assert [row[1:] for row in table.rows] == [
        ["params", "22000000", "22000001", "1"],
        ["predictor", "12ab", "34cd", "–"],
        ["fuse", "(absent)", "true", "–"],
    ]
    faster = record(torch="2.14.0", device="cuda:0")
    assert compared([record(), record(seed=1)], [faster, record(seed=1)], tmp_path).parts[3:] == (
        "torch: 2.13.0 in A, 2.14.0 in B (1 of 2 rows)",
        "device: cpu in A, cuda:0 in B (1 of 2 rows)",
        "latency isn't judged: another device (1 of 2 rows)",
    )


ROW = ("dataset", "split", "tag", "method", "model", "keep", "shots", "tuning", "prompt_tokens", "seed")


@pytest.mark.parametrize("name", ROW)
def test_another_row_is_no_partner_and_the_newest_of_a_row_is(name: str, tmp_path: Path):
    shown = compared([record()], [record(**{name: ANOTHER[name]})], tmp_path)
    assert (shown.data["rows"], len(shown.data["only_in_a"]), len(shown.data["only_in_b"])) == (0, 1, 1)
    told = compared([record(B), record(B, precision="bfloat16"), record()], [record()], tmp_path).data
    assert told["moved"] == []
    assert told["notes"] == ["left out of A: 1 older record of its rows, with other conditions or settings"]


def test_the_ends_are_the_furthest_that_both_intervals_allow():
    a, b = (record(latency=(timed(8, *told),)) for told in ((9.0, 0.8, 0.78, 0.86), (1.0, 0.6, 0.54, 0.72)))
    there, back = ([*find_changes(own)][-1] for own in (pair(a, b), pair(b, a)))
    assert there[:3] == ("time to dense, batch 8", 0.8, 0.6)
    assert there.by == pytest.approx((-0.2, 0.54 - 0.86, 0.72 - 0.78))
    assert back.by == pytest.approx((0.2, -there.by.high, -there.by.low))
    wide = record(latency=(timed(8, 9.0, 0.8, 0.7, 0.86),))
    assert all("time" not in one.quantity for one in find_changes(pair(wide, b)))  # the intervals meet


def test_two_runs_are_compared_and_nothing_is_measured_or_written(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.cli.measure._side_by_side", None)
    rows = [row for row in read_records(RESULTS) if row.dataset == "emoji"]
    write_records("a/records.jsonl", rows)
    write_records("b/records.jsonl", [replace(row, torch="9.9") for row in rows[1:]])
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", "a", "b/records.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("A: a\nB: b/records.jsonl\n11 rows are in both runs\ntorch: ")
    assert sorted(tmp_path.rglob("*")) == before
