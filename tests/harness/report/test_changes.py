"""Two runs in pairs: the same rows meet, what isn't alike is not compared, and tables say so."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import part, per_image, replace
from rich.console import Console

from harness.base.table import Table, fit
from harness.cli.entry import main
from harness.records.metrics import METRICS, pack
from harness.records.record import Record, Times, read_records, write_records
from harness.records.statistics import holm, paired_difference, paired_mean, sign_flip
from harness.report.changes import (
    TOP1,
    Change,
    changes_data,
    changes_table,
    judge_changes,
    notes,
    pair_runs,
)

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "records.jsonl"

A = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)
B = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0], dtype=bool)


def answers(correct: Any) -> dict[str, Any]:
    flags = np.asarray(correct, dtype=bool)
    share = float(flags.mean())
    told = {"correct_bits": pack(flags), "image_count": len(flags)}
    return told | {"top1": share, "top1_low": share / 2, "top1_high": 1.0}


def timed(batch: int, median: float, *to_dense: float) -> Times:
    ends = dict(zip(("ratio_to_dense", "ratio_low", "ratio_high"), to_dense, strict=False))
    return Times(batch=batch, median_ms=median, q1_ms=median / 2, q3_ms=2 * median, images_per_s=1.0, **ends)


[KNOWN] = read_records(Path(__file__).parents[1] / "schema" / "record.jsonl")


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


def only(a: Record, b: Record) -> Change:
    found = pair_runs([a], [b])
    assert found[1:] == ([], [])
    [pair] = found.pairs
    return pair


def tables(a: list[Record], b: list[Record]) -> list[Table]:
    return [changes_table(group) for group in judge_changes(pair_runs(a, b).pairs)]


def test_the_difference_is_b_minus_a_paired_by_image():
    pair = only(record(), record(B))
    assert pair.answers == (1, 2)
    assert pair.change(TOP1) == paired_difference(B, A, seed=0)
    assert pair.change(TOP1).estimate == pytest.approx(0.1)
    # All ways of 3 coins, twice the tail of at most 1 head.
    coins = [bin(way).count("1") for way in range(8)]
    assert pair.change_p(TOP1) == pytest.approx(min(1.0, 2 * sum(c <= 1 for c in coins) / 8))
    back = only(record(B), record())
    assert (back.change(TOP1).estimate, back.change_p(TOP1)) == (-pair.change(TOP1).estimate, pair.change_p(TOP1))
    assert back.answers == (2, 1)


def test_fidelity_changes_image_by_image_and_each_column_is_judged_by_itself():
    generator = np.random.default_rng(0)
    then, now = generator.uniform(0.01, 0.03, size=(2, 3, 40))
    now[0] = then[0] + 0.001  # clear, the others are not
    runs = [
        [record(np.ones(40), seed=at, **per_image("cosine_distance", one)) for at, one in enumerate(run)]
        for run in (then, now)
    ]
    found = pair_runs(*runs)
    metric = METRICS["cosine_distance"]
    for pair in found.pairs:
        a, b = pair.a.per_image(metric.name), pair.b.per_image(metric.name)
        assert pair.change(metric) == paired_mean(b, a, seed=0)
        assert pair.change_p(metric) == sign_flip(b - a, seed=0)
        assert (pair.change(METRICS["tau"]), pair.change_p(METRICS["tau"])) == (0.0, None)
    data = [one["metrics"][metric.name] for one in changes_data(found, judge_changes(found.pairs))["pairs"]]
    assert [one["p_value_holm"] for one in data] == pytest.approx(holm([one["p_value"] for one in data]))
    assert data[0]["difference"]["estimate"] == pytest.approx(0.001, abs=2e-5)
    [table] = tables(*runs)
    assert [cell.mark for cell in table.cells("1 - cosine")] == ["*", "", ""]
    other = only(
        record(np.ones(40), **per_image("cosine_distance", then[0])), record(np.ones(40), dataset_revision="99")
    )
    assert other.change(metric) is other.change_p(metric) is None


def test_without_labels_only_fidelity_is_compared():
    near = per_image("cosine_distance", np.linspace(0.01, 0.02, 10))
    unlabelled = dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high", "margin"))
    rows = [record(**unlabelled, **near)]
    [table] = tables(rows, rows)
    assert table.cells("1 - cosine") == ["+0.0000 [+0.0000, +0.0000]"]
    assert not any("top-1" in head.lower() for head in table.heads)


def test_a_run_beside_itself_has_not_changed():
    rows = [record(), record(B, seed=1), record(B, method="dense", model="clip_vit_s14", keep=1.0)]
    found = pair_runs(rows, rows)
    assert [(pair.a, pair.b) for pair in found.pairs] == [(row, row) for row in rows]
    for pair in found.pairs:
        assert (pair.conditions, pair.costs, pair.answers, pair.change_p(TOP1)) == ([], [], (0, 0), 1.0)
        assert (pair.change(TOP1), pair.change(METRICS["tau"])) == ((0.0, 0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (record(dataset_revision="99"), "dataset_revision '12ab34cd' in A, '99' in B"),
        (record([1, 0, 1, 1], images_sha256="cd" * 32), "image_count 10 in A, 4 in B"),
        (record(images_sha256="cd" * 32), f"images_sha256 '{'ab' * 32}' in A, '{'cd' * 32}' in B"),
    ],
)
def test_answers_on_other_images_are_not_paired(other: Record, reason: str):
    pair = only(record(), other)
    assert pair.other_images == reason
    assert pair.change(TOP1) is pair.change_p(TOP1) is pair.answers is pair.change(METRICS["tau"]) is None


CONDITIONS = {
    **{"version": "0.2.0", "git_commit": None, "torch": "2.12.0", "timm": "1.0.30", "device": "cuda:0"},
    **{"device_name": "another", "dtype": "bfloat16", "threads": 4, "weights_sha256": "ef", "golden_images": 9},
    "image_size": (224, 224),
}


@pytest.mark.parametrize(("name", "value"), CONDITIONS.items())
def test_every_condition_that_differs_is_told(name: str, value: Any):
    pair = only(record(), record(B, **{name: value}))
    assert pair.conditions == [(name, part(record(), name), value)]
    assert pair.change(TOP1) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("gflops", math.nextafter(2.5, 3)), ("params", 22_000_001), ("activations", 6_000_001)),
        *(("uncounted_operators", ("aten::x",)), ("tokens_per_block", (197, 119, 119))),
        ("final_tokens", 117),
    ],
)
def test_counted_costs_must_be_equal_to_the_last_bit(name: str, value: Any):
    assert only(record(), record(**{name: value})).costs == [(name, part(record(), name), value)]
    assert only(record(**{name: None}), record()).costs == []  # not measured


def shown(a: list[Record], b: list[Record], width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        for table in tables(a, b):
            console.print(fit(table.forms(), width))
    return captured.get()


def test_conditions_costs_and_rows_of_one_run_are_told_in_words():
    evit = record(method="evit", model="clip_vit_s14_evit60")
    config = {"reduce_at": [3], "predictor": "34cd", "fuse": True}
    newer = [record(params=22_000_001, torch="2.14.0"), record(seed=1, torch="2.14.0", method_config=config)]
    how = "16 shots, learned visual and text tokens (8), seed 0"
    assert list(notes(pair_runs([record(), record(), record(seed=1), evit], newer))) == [
        "2 rows are in both runs",
        'conditions differ: torch "2.13.0" in A, "2.14.0" in B (every row)',
        'conditions differ: method_config.predictor "12ab" in A, "34cd" in B (1 of 2 rows)',
        "conditions differ: method_config.fuse (absent) in A, true in B (1 of 2 rows)",
        f"clip_vit_s14_patchrank60.imgfocus_lit on birds test, {how}: "
        "cost differs: params 22000000 in A, 22000001 in B",
        f"only in A: clip_vit_s14_evit60.imgfocus_lit on birds test, {how}",
    ]


@pytest.mark.parametrize("hostile", ["x\x1b[2J", "[/]"])
def test_names_in_somebody_else_s_file_are_text_and_nothing_more(hostile: str):
    rows = [record(dataset=hostile, method=hostile, method_config={hostile: hostile})]
    text = shown(rows, rows)
    assert "\x1b" not in text
    assert ("\x1b" in hostile) != (hostile in text)


def flipped(lost: int, won: int, **changed: Any) -> tuple[Record, Record]:
    truth = np.arange(400) < 200
    right = truth.copy()
    right[:lost], right[200 : 200 + won] = False, True
    return record(truth, **changed), record(right, **changed)


def test_rows_of_a_table_are_judged_together():
    pairs = [flipped(14, 3, seed=0), flipped(14, 4, seed=1), flipped(60, 5, seed=2)]
    found = pair_runs(*map(list, zip(*pairs, strict=True)))
    alone = [pair.change_p(TOP1) for pair in found.pairs]
    assert alone[2] < alone[0] < 0.05 / 2 < alone[1] < 0.05
    [sheet] = tables(*map(list, zip(*pairs, strict=True)))
    marks = [len(cell.mark) for cell in sheet.cells("Top-1, %")]
    assert marks == [int(p <= 0.05) for p in holm(alone)] == [1, 1, 1]
    [weak] = tables(*map(list, zip(pairs[1], flipped(14, 4, seed=3), strict=True)))
    assert not any(cell.mark for cell in weak.cells("Top-1, %"))


@pytest.mark.parametrize(
    "changed",
    [
        *({"dataset": "emoji"}, {"split": "val"}, {"tag": "openai"}, {"method": "evit"}),
        *({"model": "clip_vit_b16_patchrank60"}, {"keep": 0.61}, {"shots": 8}, {"tuning": "v"}),
        *({"tuning": "probe", "prompt_tokens": None}, {"prompt_tokens": 4}, {"seed": 1}),
    ],
)
def test_another_row_is_no_partner(changed: dict[str, Any]):
    a, b = record(), record(**changed)
    found = pair_runs([a], [b])
    assert found == ([], [a], [b])


def test_a_row_under_several_conditions_meets_the_most_alike_and_none_twice():
    full, half = record(), record(dtype="bfloat16")
    short = record([True, False], dtype="bfloat16")
    found = pair_runs([short, full, half], [half, full])
    assert [(pair.a, pair.b) for pair in found.pairs] == [(full, full), (half, half)]
    assert found.only_a == [short]
    # The same images weigh more than the same precision.
    assert pair_runs([short, full], [half]).pairs[0].a == full


def test_the_ends_are_the_furthest_that_both_intervals_allow():
    a, b = (record(latency=(timed(8, *told),)) for told in ((9.0, 0.8, 0.72, 0.96), (1.0, 0.6, 0.54, 0.72)))
    there, back = Change(a=a, b=b).latency[8], Change(a=b, b=a).latency[8]
    assert there == pytest.approx((0.75, 0.54 / 0.96, 0.72 / 0.72))
    assert back == pytest.approx((1 / there.estimate, 1 / there.high, 1 / there.low))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with two runs, a and b, of which b is newer; nothing may be measured."""
    monkeypatch.chdir(tmp_path)
    rows = [row for row in read_records(RESULTS) if row.dataset == "emoji"]
    write_records("a/records.jsonl", rows)
    write_records("b/records.jsonl", [replace(row, torch="9.9") for row in rows[1:]])

    def fail(*args: object) -> None:
        raise AssertionError("measures")

    monkeypatch.setattr("harness.cli.measure._side_by_side", fail)
    return tmp_path


def test_two_runs_are_compared_and_nothing_is_measured_or_written(runs: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(runs.rglob("*"))
    assert main(["compare", "a", "b/records.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("A: a\nB: b/records.jsonl\n11 rows are in both runs\n")
    assert "+0.0 [+0.0, +0.0]" in out
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("a b a", "compare 'a' 'b' 'a': expected two runs"),
        ("a gone", "run 'gone': there is no such file or folder; expected a file of records"),
        ("a --device cpu", "--device can't be given with runs"),
    ],
)
def test_wrong_use_is_told_and_nothing_is_written(
    command: str, complaint: str, runs: Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(runs.rglob("*"))
    assert main(["compare", *command.split()]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before
