"""Agreement with the golden ranking."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, weightedtau

from harness.measure.bench import measurements
from harness.records.metrics import Sample

N, KEPT = 20, 8


def agreement(scores: np.ndarray | None, golden: np.ndarray | None, kept: int = KEPT) -> dict[str, Any]:
    count = 1 if golden is None else len(golden)
    facts = measurements(Sample(features=torch.zeros(count, 2), scores=scores, golden=golden, final_tokens=kept))
    names = ("tau", "weighted_tau", "match_at_k", "border_overlap")
    metrics = {name: own for name, own in facts["metrics"].items() if name in names}
    return metrics | {name: facts[name] for name in ("golden_images", "tau_undefined") if name in facts}


@pytest.fixture
def golden() -> np.ndarray:
    return np.random.default_rng(0).random((30, N)).astype(np.float32)


def test_the_golden_ranking_agrees_with_itself(golden: np.ndarray):
    found = agreement(golden.copy(), golden)
    match, border = found["match_at_k"], found["border_overlap"]
    assert (found["tau"].mean, found["weighted_tau"].mean) == (pytest.approx(1), pytest.approx(1))
    assert (match.mean, match.at, match.chance, border.mean) == (1.0, KEPT, KEPT / N, 1.0)
    assert (found["golden_images"], found["tau_undefined"]) == (30, 0)
    assert border.chance == (2 * KEPT / N + 2 * (1 - KEPT / N)) / 4
    assert agreement(-golden, golden)["tau"].mean == pytest.approx(-1)
    assert agreement(-golden, golden)["match_at_k"].mean == 0.0  # 8 best of 20, 8 worst


def test_planted_scores_against_scipy_and_sets(golden: np.ndarray):
    noise = np.random.default_rng(1).normal(scale=0.3, size=golden.shape)
    scores = (golden + noise).astype(np.float32)
    found = agreement(scores, golden)
    pairs = list(zip(scores, golden, strict=True))
    best = [len(set(np.argsort(-s)[:KEPT]) & set(np.argsort(-g)[:KEPT])) / KEPT for s, g in pairs]
    sides = []  # of the two patches on either side of the border
    for s, g in pairs:
        kept, order = set(np.argsort(-s)[:KEPT]), np.argsort(-g)
        sides.append(np.mean([(order[p] in kept) == (p < KEPT) for p in range(KEPT - 2, KEPT + 2)]))
    expected = {
        "tau": np.mean([kendalltau(s, g).statistic for s, g in pairs]),
        "weighted_tau": np.mean([weightedtau(s, g).statistic for s, g in pairs]),
        "match_at_k": np.mean(best),
        "border_overlap": np.mean(sides),
    }
    for name, mean in expected.items():
        assert found[name].mean == pytest.approx(mean)
        assert found[name].low < found[name].mean < found[name].high
    assert 0.3 < found["tau"].mean < 0.9


def test_unrelated_scores_agree_by_chance():
    drawn = np.random.default_rng(2).random((2, 400, N)).astype(np.float32)
    found = agreement(drawn[0], drawn[1])
    assert abs(found["tau"].mean) < 0.03
    assert found["match_at_k"].mean == pytest.approx(found["match_at_k"].chance, abs=0.02)


def test_images_without_a_ranking_do_not_count_and_those_without_a_tau_are_told(golden: np.ndarray):
    scores, partly = golden.copy(), golden.copy()
    scores[10:] = -scores[10:]
    partly[10:] = np.nan
    scores[:3] = 0.5
    found = agreement(scores, partly)
    assert (found["tau"].mean, found["weighted_tau"].mean) == (pytest.approx(1), pytest.approx(1))
    assert (found["golden_images"], found["tau_undefined"]) == (7, 3)


def test_without_a_border_there_is_no_overlap_at_it(golden: np.ndarray):
    found = agreement(golden, golden, N)
    assert found["match_at_k"].mean == 1.0
    assert "border_overlap" not in found


def test_nothing_to_compare_is_not_zero(golden: np.ndarray):
    assert agreement(None, golden) == {}
    assert agreement(golden, None) == {}
    assert agreement(golden, np.full_like(golden, np.nan)) == {}
    assert agreement(np.zeros_like(golden), golden) == {}  # all tied: no tau
