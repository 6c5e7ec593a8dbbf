"""Check tests against scipy, statsmodels, enumeration, simulation and their own definitions."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness import statistics as significance

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400)


def split(outcomes: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(outcomes, dtype=bool)
    return table[:, 0], table[:, 1]


@given(pairs)
def test_mcnemar_equals_scipys_binomial_test(outcomes: list[tuple[bool, bool]]) -> None:
    a, b = split(outcomes)
    only_a, trials = int((a & ~b).sum()), int((a != b).sum())
    expected = stats.binomtest(only_a, trials).pvalue if trials else 1.0
    assert significance.mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-9)
    assert significance.mcnemar_exact(b, a) == significance.mcnemar_exact(a, b)


def test_mcnemar_stays_exact_for_many_images() -> None:
    a, b = np.ones(20_000, bool), np.zeros(20_000, bool)
    a[:9_900], b[:9_900] = False, True
    assert significance.mcnemar_exact(a, b) == pytest.approx(stats.binomtest(9_900, 20_000).pvalue)


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@settings(max_examples=25)  # statsmodels collects garbage in every call
@given(p_values)
def test_holm_equals_statsmodels(values: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="needs test extra")
    expected = multitest.multipletests(values, method="holm")[1]
    assert significance.holm(values) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@given(p_values, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_stepping_down_by_hand_does(values: list[float], alpha: float) -> None:
    left, rejected = list(range(len(values))), set()
    while left:
        least = min(left, key=lambda at: values[at])
        if values[least] * len(left) > alpha:
            break
        rejected.add(least)
        left.remove(least)
    adjusted = significance.holm(values)
    assert {at for at, p in enumerate(adjusted) if p <= alpha} == rejected


@given(p_values, st.randoms())
def test_holm_only_raises_keeps_the_order_and_follows_it(values: list[float], dice: Random) -> None:
    adjusted = significance.holm(values)
    assert ((values <= adjusted) & (adjusted <= 1)).all()
    assert (np.diff(adjusted[np.argsort(values)]) >= 0).all()
    order = dice.sample(range(len(values)), len(values))
    assert list(significance.holm(np.array(values)[order])) == list(adjusted[order])


def found(n: int, discordance: float, difference: float, confidence: float) -> float:
    """Return how often the exact test finds a difference, among 4000 simulated pairs of models."""
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    drawn = np.random.default_rng(n).multinomial(n, shares, size=4000)
    distinct, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    p = [stats.binomtest(int(a), int(a + b)).pvalue if a + b else 1.0 for a, b in distinct]
    return float(times[np.array(p) <= 1 - confidence].sum() / 4000)


@pytest.mark.parametrize(
    ("n", "discordance", "power", "confidence"),
    [(60, 0.4, 0.8, 0.95), (300, 0.1, 0.8, 0.95), (300, 0.3, 0.9, 0.99), (2000, 0.05, 0.5, 0.95)],
)
def test_the_minimum_detectable_difference_is_found_with_the_asked_power(
    n: int, discordance: float, power: float, confidence: float
) -> None:
    least = significance.minimum_detectable_difference(n, discordance, power, confidence)
    assert 0 < least < discordance
    assert found(n, discordance, least, confidence) == pytest.approx(power, abs=0.025)
    assert found(n, discordance, 0.6 * least, confidence) < power - 0.1


def test_the_minimum_detectable_difference_of_many_images_is_the_normal_approximations() -> None:
    quantiles = stats.norm.ppf(0.975), stats.norm.ppf(0.8)

    def images(difference: float, discordance: float) -> float:
        """Return Connor's number of pairs, Biometrics 43 (1987)."""
        spread = discordance - difference**2
        terms = quantiles[0] * discordance**0.5 + quantiles[1] * spread**0.5
        return float((terms / difference) ** 2)

    for n, discordance in [(20_000, 0.1), (50_000, 0.3)]:
        least = significance.minimum_detectable_difference(n, discordance)
        assert images(least, discordance) == pytest.approx(n, rel=0.02)


@given(counts, st.sampled_from([0.5, 0.8, 0.95]))
def test_more_power_needs_a_larger_difference(case: tuple[int, int], power: float) -> None:
    k, n = case
    asked = (power, (1 + power) / 2)
    less, more = (significance.minimum_detectable_difference(n, k / n, p) for p in asked)
    assert less is None or 0 < less <= k / n
    assert more is None or (less is not None and less < more)


def test_too_few_discordant_images_detect_nothing() -> None:
    assert stats.binomtest(0, 5).pvalue > 0.05 > stats.binomtest(0, 6).pvalue
    for n, discordance in [(1, 0.0), (1000, 0.0), (5, 1.0), (1000, 0.002)]:
        assert significance.minimum_detectable_difference(n, discordance) is None
    assert significance.minimum_detectable_difference(6, 1.0) is not None
    assert found(1000, 0.002, 0.002, 0.95) < 0.8


def test_power_and_holm_refuse_what_lies_out_of_range() -> None:
    detectable = significance.minimum_detectable_difference
    with pytest.raises(ValueError, match=r"n >= 1 .* got 0 and 0\.1"):
        detectable(0, 0.1)
    with pytest.raises(ValueError, match=r"discordance in \[0, 1\], got 10 and 30"):
        detectable(10, 30)
    for power in (0.05, 1.0, 80.0, float("nan")):
        with pytest.raises(ValueError, match=rf"power must lie in \(0.05, 1\), got {power}"):
            detectable(10, 0.3, power)
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got 95"):
        detectable(10, 0.3, 0.8, 95)
    with pytest.raises(ValueError, match=r"p-values must lie in \[0, 1\], got 0\.1 to 1\.5"):
        significance.holm([0.1, 1.5])
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        significance.holm([0.1, float("nan")])


def enumerated(differences: list[int]) -> float:
    """Return how many of all ways to give signs have a sum as far from 0."""
    total = abs(sum(differences))
    ways = list(product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(way, differences, strict=True))) for way in ways]
    return sum(found >= total for found in sums) / len(ways)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=10))
def test_sign_flips_are_counted_as_if_one_by_one(differences: list[int]) -> None:
    found = significance.sign_flip_exact(differences)
    assert found == pytest.approx(enumerated(differences), rel=1e-12)


@settings(max_examples=20)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8))
def test_sign_flips_equal_scipys_permutation_test(differences: list[int]) -> None:
    sample = np.array(differences, dtype=float)
    expected = stats.permutation_test(
        (sample,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert significance.sign_flip_exact(differences) == pytest.approx(min(1.0, expected))


@given(pairs)
def test_sign_flips_of_one_seed_are_mcnemars_test(outcomes: list[tuple[bool, bool]]) -> None:
    a, b = split(outcomes)
    found = significance.sign_flip_exact(a.astype(int) - b.astype(int))
    assert found == pytest.approx(significance.mcnemar_exact(a, b), rel=1e-9)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(1, 5), st.randoms())
def test_sign_flips_know_no_order_scale_direction_or_ties(
    differences: list[int], scale: int, dice: Random
) -> None:
    sample = np.array(differences)
    p = significance.sign_flip_exact(sample)
    shuffled = np.array(dice.sample(differences, len(differences)))
    for same in (shuffled, -sample, scale * sample, np.append(sample, [0, 0])):
        assert significance.sign_flip_exact(same) == pytest.approx(p, rel=1e-12)


def test_sign_flips_of_many_images_are_quick_and_normal() -> None:
    drawn = np.random.default_rng(0).integers(-5, 6, size=50_000)
    drawn[:500] = 5
    z = abs(drawn.sum()) / np.sqrt((drawn**2).sum())
    assert 2 < z < 8
    assert significance.sign_flip_exact(drawn) == pytest.approx(2 * stats.norm.sf(z), rel=0.02)


def test_sign_flips_never_say_impossible() -> None:
    assert significance.sign_flip_exact([1] * 10) == 2**-9
    assert significance.sign_flip_exact([3] * 400 + [-1]) == pytest.approx(2.0**-400)
    assert 0 < significance.sign_flip_exact([2] * 5000) < 1e-300
    assert significance.sign_flip_exact([0, 0]) == significance.sign_flip_exact([1, -1]) == 1


def test_where_nothing_differs_few_p_values_are_small() -> None:
    """As often as asked at most: three seeds of two models that are equally good."""
    dice = np.random.default_rng(0)
    found = []
    for _ in range(400):
        share = dice.random(80)  # each image is as hard for both
        a, b = (dice.binomial(3, share) for _ in range(2))
        found.append(significance.sign_flip_exact(a - b))
    assert np.mean(np.array(found) <= 0.05) < 0.085  # 5 %, and three standard errors
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("wrong", [[], [0.5], [True], [[1]], [float("nan")]])
def test_sign_flips_refuse_what_is_not_whole_numbers(wrong: list) -> None:
    with pytest.raises(ValueError, match=r"differences must be \(n,\) integers, got"):
        significance.sign_flip_exact(wrong)
