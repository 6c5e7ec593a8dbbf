"""Agreement with the golden ranking."""

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, weightedtau

from harness.measure.bench import agreement
from harness.measure.rows import Outcome

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
        len(set(np.argsort(-s)[:KEPT]) & set(np.argsort(-g)[:KEPT])) / KEPT for s, g in zip(scores, golden, strict=True)
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


def test_images_without_a_ranking_do_not_count_and_those_without_a_tau_are_told(golden: np.ndarray):
    scores, partly = golden.copy(), golden.copy()
    scores[10:] = -scores[10:]
    partly[10:] = np.nan
    scores[:3] = 0.5
    found = agreement(outcome(scores), partly)
    assert (found["tau"], found["weighted_tau"]) == (pytest.approx(1), pytest.approx(1))
    assert (found["golden_images"], found["tau_undefined"]) == (7, 3)


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
