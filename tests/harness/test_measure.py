"""Costs, agreement with the golden ranking, and which earlier record may be used again."""

import re
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from scipy.stats import kendalltau, weightedtau

import zoo
from harness.evaluate import Outcome
from harness.measure import agreement, costs, device_name, fitting, git_commit
from harness.progress import Progress
from harness.records import Latency, Record, pack_correct, read_records, write_records
from harness.variants import variants

N, KEPT = 20, 8


def outcome(scores: np.ndarray | None) -> Outcome:
    return Outcome(features=torch.zeros(1, 2), scores=scores, final_tokens=KEPT)


@pytest.fixture
def golden() -> np.ndarray:
    return np.random.default_rng(0).random((30, N)).astype(np.float32)


def test_the_golden_ranking_agrees_with_itself(golden: np.ndarray):
    found = agreement(outcome(golden.copy()), golden)
    assert (found["tau"], found["weighted_tau"]) == (pytest.approx(1), pytest.approx(1))
    assert (found["match_at_k"], found["border_overlap"]) == (1.0, 1.0)
    assert (found["match_k"], found["golden_images"], found["tau_undefined"]) == (KEPT, 30, 0)
    assert found["match_chance"] == KEPT / N
    assert found["border_chance"] == (2 * KEPT / N + 2 * (1 - KEPT / N)) / 4
    assert agreement(outcome(-golden), golden)["tau"] == pytest.approx(-1)
    assert agreement(outcome(-golden), golden)["match_at_k"] == 0.0  # 8 best of 20, 8 worst


def test_planted_scores_against_scipy_and_sets(golden: np.ndarray):
    noise = np.random.default_rng(1).normal(scale=0.3, size=golden.shape)
    scores = (golden + noise).astype(np.float32)
    found = agreement(outcome(scores), golden)
    taus = [kendalltau(s, g).statistic for s, g in zip(scores, golden, strict=True)]
    best = [
        len(set(np.argsort(-s)[:KEPT]) & set(np.argsort(-g)[:KEPT])) / KEPT
        for s, g in zip(scores, golden, strict=True)
    ]
    assert found["tau"] == pytest.approx(np.mean(taus))
    assert found["match_at_k"] == pytest.approx(np.mean(best))
    assert 0.3 < found["tau"] < 0.9
    assert found["tau_low"] < found["tau"] < found["tau_high"]
    tops = [weightedtau(s, g).statistic for s, g in zip(scores, golden, strict=True)]
    assert found["weighted_tau"] == pytest.approx(np.mean(tops))
    assert found["weighted_tau_low"] < found["weighted_tau"] < found["weighted_tau_high"]
    sides = []  # of the two patches on either side of the border
    for s, g in zip(scores, golden, strict=True):
        kept, order = set(np.argsort(-s)[:KEPT]), np.argsort(-g)
        sides.append(np.mean([(order[p] in kept) == (p < KEPT) for p in range(KEPT - 2, KEPT + 2)]))
    assert found["border_overlap"] == pytest.approx(np.mean(sides))
    assert found["border_low"] < found["border_overlap"] < found["border_high"]


def test_unrelated_scores_agree_by_chance():
    drawn = np.random.default_rng(2).random((2, 400, N)).astype(np.float32)
    found = agreement(outcome(drawn[0]), drawn[1])
    assert abs(found["tau"]) < 0.03
    assert found["match_at_k"] == pytest.approx(found["match_chance"], abs=0.02)


def test_images_without_a_ranking_do_not_count(golden: np.ndarray):
    scores = golden.copy()
    scores[10:] = -scores[10:]
    partly = golden.copy()
    partly[10:] = np.nan
    found = agreement(outcome(scores), partly)
    assert (found["tau"], found["match_at_k"]) == (pytest.approx(1), 1.0)
    assert (found["golden_images"], found["tau_undefined"]) == (10, 0)


def test_images_without_a_tau_are_counted(golden: np.ndarray):
    scores = golden.copy()
    scores[:3] = 0.5
    found = agreement(outcome(scores), golden)
    assert (found["tau"], found["weighted_tau"]) == (pytest.approx(1), pytest.approx(1))
    assert (found["golden_images"], found["tau_undefined"]) == (27, 3)


def test_without_a_border_there_is_no_overlap_at_it(golden: np.ndarray):
    whole = Outcome(features=torch.zeros(1, 2), scores=golden, final_tokens=N)
    found = agreement(whole, golden)
    assert found["match_at_k"] == 1.0
    assert not {"border_overlap", "border_chance"} & found.keys()


def test_nothing_to_compare_is_not_zero(golden: np.ndarray):
    assert agreement(outcome(None), golden) == {}
    assert agreement(outcome(golden), None) == {}
    assert agreement(outcome(golden), np.full_like(golden, np.nan)) == {}
    assert agreement(outcome(np.zeros_like(golden)), golden) == {}  # all tied: no tau


def record(**changes: Any) -> Record:
    facts: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "model": "clip_vit_s14_random60",
        "method": "random",
        "keep": 0.6,
        "method_config": {"keep": 0.6, "reduce_at": [3]},
        "tag": "imgfocus_lit",
        "weights_sha256": "ab",
        "dataset": "fashion",
        "dataset_revision": "12ab",
        "split": "test",
        "shots": 0,
        "seed": 0,
        "image_count": 4,
        "correct_bits": pack_correct(np.array([True, False, True, True])),
        "top1": 0.75,
        "top1_low": 0.3,
        "top1_high": 0.95,
        "gflops": 3.5,
        "latency": (timed(1), timed(32)),
        "device": "cpu",
        "device_name": "a processor",
        "dtype": "float32",
        "threads": 2,
        "torch": "2.13.0",
        "timm": "1.0.31",
    }
    return Record(**{**facts, **changes})


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
    "seed": 1,
    "device": "cuda:0",
    "device_name": "another processor",
    "dtype": "bfloat16",
    "threads": 1,
    "torch": "2.14.0",
    "timm": "1.0.32",
}


@pytest.mark.parametrize("field", OTHER)
def test_another_condition_is_measured_anew(field: str):
    assert fitting(record(**BLANK), [record()], [1]) is not None
    assert fitting(record(**{**BLANK, field: OTHER[field]}), [record()], [1]) is None


def test_another_number_of_images_is_measured_anew():
    eight = {"image_count": 8, "correct_bits": pack_correct(np.zeros(8, dtype=np.bool_))}
    assert fitting(record(**{**BLANK, **eight}), [record()], []) is None


def test_every_field_is_either_a_condition_or_measured():
    """A field added to Record and forgotten here would stop, or fake, all reuse."""
    measured = {
        "top1", "top1_low", "top1_high", "diff_to_dense", "diff_low", "diff_high", "gflops",
        "params", "tokens_per_block", "final_tokens", "latency", "tau", "tau_low", "tau_high",
        "match_at_k", "match_k", "match_chance", "golden_images", "weighted_tau",
        "weighted_tau_low", "weighted_tau_high", "border_overlap", "border_low", "border_high",
        "border_chance", "tau_undefined",
    }  # fmt: skip
    free = {"created", "git_commit", "correct_bits", "schema_version", "image_count"}
    assert {f.name for f in fields(Record)} == measured | free | OTHER.keys()


@pytest.mark.parametrize(("batches", "found"), [([1, 32], True), ([1, 8], False), ([], True)])
def test_latency_at_a_new_batch_size_is_measured(batches: list[int], found: bool):
    assert (fitting(record(**BLANK), [record()], batches) is not None) == found


def test_agreement_is_measured_where_golden_rankings_turned_up():
    known, blank = record(), record(**BLANK)
    assert fitting(blank, [known], [], ranked=True) is None
    before = replace(known, golden_images=4)  # of the first version
    assert fitting(blank, [before], [], ranked=True) is None
    weighted = {"weighted_tau": 0.5, "weighted_tau_low": 0.4, "weighted_tau_high": 0.6}
    agreed = replace(before, **weighted)
    assert fitting(blank, [agreed, known], [], ranked=True) is agreed
    dense = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0}
    whole = record(**dense)  # nothing was dropped, so there is no ranking to agree
    assert fitting(record(**{**BLANK, **dense}), [whole], [], ranked=True) is whole


def test_a_golden_row_has_no_latency_to_wait_for():
    golden = {"model": "clip_vit_s14_golden60", "method": "golden"}
    known = replace(record(**golden), latency=(), gflops=None)
    assert fitting(record(**{**BLANK, **golden}), [known], [1, 32]) is known


def test_costs_of_every_row_that_is_a_model(dense: zoo.ReducedViT):
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "tome", "random", "golden"], [0.5])
    facts = costs(rows, [1, 8], 2, Progress())
    assert list(facts) == [row.model for row in rows]
    assert facts["clip_vit_b16_golden50"] == {}
    plain = facts["clip_vit_b16"]
    assert plain["tokens_per_block"] == (65,) * 6
    assert facts["clip_vit_b16_random50"]["tokens_per_block"] == (65,) * 3 + (33,) * 3
    # What fvcore says by itself, without the attention's own two products.
    counted = FlopCountAnalysis(dense, torch.zeros(1, 3, 64, 64))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    attention = 6 * 2 * 65 * 65 * 48
    assert plain["gflops"] == pytest.approx((counted.total() + attention) / 1e9, rel=0.02)
    assert plain["params"] == sum(p.numel() for p in dense.parameters())
    for name in ("clip_vit_b16_random50", "clip_vit_b16_tome50"):
        assert facts[name]["gflops"] < plain["gflops"]
        for entry, batch in zip(facts[name]["latency"], (1, 8), strict=True):
            assert (entry.batch, entry.ratio_to_dense > 0) == (batch, True)
            assert entry.q1_ms <= entry.median_ms <= entry.q3_ms
    assert [entry.ratio_to_dense for entry in plain["latency"]] == [None, None]


def test_no_batches_no_latency(dense: zoo.ReducedViT):
    [dense_row] = variants(dense, "clip_vit_b16", "openai", ["dense"], [])
    assert costs([dense_row], [], 2, Progress())["clip_vit_b16"]["latency"] == ()


def test_the_device_has_a_name():
    assert device_name("cpu").strip()


def test_the_commit_is_told_only_from_a_checkout_of_this_package(monkeypatch, tmp_path):
    module = tmp_path / "harness" / "measure.py"
    monkeypatch.setattr("harness.measure.__file__", str(module))
    git_commit.cache_clear()
    assert git_commit() is None
    module.parent.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    git_commit.cache_clear()
    assert re.fullmatch(r"[0-9a-f]{12}", git_commit() or "")
    git_commit.cache_clear()
