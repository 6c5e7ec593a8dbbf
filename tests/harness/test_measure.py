"""Costs of rows, and agreement with the golden ranking."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from rich.console import Console
from scipy.stats import kendalltau, weightedtau

import zoo
from harness.conditions import device_name
from harness.cost import Cost
from harness.measure import cost as measure
from harness.measure.bench import agreement
from harness.measure.cost import costs, counts
from harness.measure.evaluate import Outcome
from harness.measure.rows import variants
from harness.progress import Progress

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


def test_activations_and_operators_of_unknown_cost_are_told(
    dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch
):
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "random"], [0.5])
    found = costs(rows, [], 1, Progress())
    # Width 48 in 3 heads, 65 tokens: linear maps give 9 widths more per token in each block.
    block = 65 * (3 + 1 + 1 + 4 + 1) * 48 + 3 * 65**2
    plain = found["clip_vit_b16"]
    assert plain["activations"] == 64 * 48 + 6 * block + dense.num_classes
    assert plain["uncounted_operators"] == ()
    assert found["clip_vit_b16_random50"]["activations"] < plain["activations"]
    counted = measure.gflops

    def unknown(*args: Any) -> Cost:
        return replace(counted(*args), unsupported=("aten::linalg_inv",))

    monkeypatch.setattr(measure, "gflops", unknown)
    console = Console(file=io.StringIO(), width=200)
    found = costs(rows[:1], [], 1, Progress(console))
    assert found["clip_vit_b16"]["uncounted_operators"] == ("aten::linalg_inv",)
    told = "clip_vit_b16: GFLOPs lack operators of unknown cost: aten::linalg_inv"
    assert told in console.file.getvalue()


def test_what_is_counted_does_not_depend_on_the_precision(dense: zoo.ReducedViT):
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "tome"], [0.5])
    single = counts(rows, Progress())
    assert list(single) == ["clip_vit_b16", "clip_vit_b16_tome50"]
    assert [one.final_tokens for one in single.values()] == [64, 32]
    for row in rows:
        row.vit.to(torch.bfloat16)
    assert counts(rows, Progress()) == single


def test_no_batches_no_latency(dense: zoo.ReducedViT):
    [dense_row] = variants(dense, "clip_vit_b16", "openai", ["dense"], [])
    assert costs([dense_row], [], 2, Progress())["clip_vit_b16"]["latency"] == ()


def test_the_device_has_a_name():
    assert device_name("cpu").strip()
