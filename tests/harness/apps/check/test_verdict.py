"""What counts as moved, each quantity beyond its own bound, and how it is told."""

from typing import Any

import numpy as np
import pytest
from by_hand import part, replace

from harness.apps.check.cases import CheckRow
from harness.apps.check.verdict import EXACT, CheckedRow, Tolerances, find_movements
from harness.records.record import Record, Times

RIGHT = np.arange(40) % 4 > 0
TOWER = "clip_vit_s14.imgfocus_lit"


def between(then: Record | None, now: Record | None, bounds: Tolerances | None = None) -> list[Any]:
    row = CheckRow(method="tome", keep=0.3, options={}, record=then)
    outcome = CheckedRow(tower=TOWER, dataset="fashion", row=row, now=now)
    return find_movements(outcome, bounds or Tolerances())


UNLABELLED = dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high", "margin"))


def quantities(then: Record, now: Record, **bounds: Any) -> list[str]:
    return [one.quantity for one in between(then, now, Tolerances(**bounds))]


def flipped(*images: int) -> Any:
    right = RIGHT.copy()
    right[list(images)] ^= True
    return right


def timed(ratio: float, low: float, batch: int = 1) -> tuple[Times, ...]:
    settings = {"median_ms": 9.0, "q1_ms": 8.0, "q3_ms": 10.0, "images_per_s": 100.0}
    return (Times(batch=batch, ratio_to_dense=ratio, ratio_low=low, ratio_high=9.0, **settings),)


@pytest.mark.parametrize(("field", "value", "by"), [
    ("gflops", 2.196547264 + 1e-9, pytest.approx(1e-9)),
    *(("params", 16378625, 1), ("final_tokens", 58, -1), ("golden_images", 39, None)),
    *(("tokens_per_block", (182, 167, 60, 59), None), ("dtype", "bfloat16", None)),
    ("weights_sha256", "cd" * 8, None),
])  # fmt: skip
def test_what_is_counted_or_given_may_not_move_at_all(record, field: str, value: Any, by: Any):
    [one] = between(record(), record(**{field: value}))
    assert (one.quantity, one.expected, one.now) == (field, part(record(), field), value)
    assert (one.by, one.allowed) == (by, "nothing")


def test_a_changed_setting_goes_by_its_name(record):
    now = record(method_config={"keep": 0.3, "reduce_at": [2], "r": None})
    assert [(m.quantity, m.expected, m.now) for m in between(record(), now)] == [
        ("reduce_at", None, [2]),
        ("r", "(absent)", None),
    ]
    # How a keep rate was found isn't asked of what is measured at it.
    assert (
        between(
            record(method_config={"keep": 0.3, "matched": {"time_of": "patchrank"}}),
            record(method_config={"keep": 0.3}),
        )
        == []
    )


def test_answers_are_judged_by_their_number_and_by_the_images_that_flipped(record):
    assert quantities(record(), record(flipped(0, 1))) == []  # one won, one lost
    assert quantities(record(), record(flipped(0, 4))) == ["images right"]
    assert quantities(record(), record(flipped(0, 1, 4, 5))) == ["answers flipped"]
    [right, flips] = between(record(), record(flipped(1, 2, 3)))
    assert (right.expected, right.now, right.by, right.allowed) == (30, 27, -3, "±1")
    assert (flips.now, flips.by, flips.allowed) == ("3 lost, 0 won", 3, "2")
    assert quantities(record(), record(flipped(1, 2, 3)), images=3, flips=3) == []


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("field", ["margin", "cosine_distance"])
def test_cosines_may_move_by_their_bound(record, field: str, sign: int):
    name = field.replace("_", " ")
    then = part(record(), field)
    assert quantities(record(), record(**{field: then + sign * 4e-4})) == []
    assert quantities(record(), record(**{field: then + sign * 6e-4})) == [name]
    assert quantities(record(), record(**{field: then + sign * 6e-4}), cosine=1e-3) == []


@pytest.mark.parametrize(("fields", "small", "large", "name"), [
    ({}, {"dense_agreement": 0.95}, {"dense_agreement": 0.925}, "dense agreement"),  # 2 and 3 of 40 images
    ({}, {"kl_to_dense": 0.0015}, {"kl_to_dense": 0.0025}, "kl to dense"),
    ({}, {"feature_probe": (0.1, 0.20018)}, {"feature_probe": (0.1, 0.20022)}, "feature probe"),
    (UNLABELLED, {"feature_probe": (0.1, 0.20018)}, {"feature_probe": (0.10022, 0.2)}, "feature probe"),
])  # fmt: skip
def test_fidelity_and_the_probe_may_move_by_their_bounds(record, fields: Any, small: Any, large: Any, name: str):
    def near(**changed: Any) -> Record:
        values = {"dense_agreement": 1.0, "kl_to_dense": 0.0, "feature_probe": (0.1, 0.2)} | changed
        ends = {"agreement_low": 0.0, "agreement_high": 1.0, "kl_low": 0.0, "kl_high": 1.0}
        return record(**values, **ends, **fields)

    assert quantities(near(), near(**small)) == []
    assert quantities(near(), near(**large)) == [name]


def test_tau_stays_within_its_bound_and_within_its_interval(record):
    def now(tau: float) -> Record:
        return record(tau=tau, tau_low=-1.0, tau_high=1.0)

    assert quantities(record(), now(0.3015)) == []
    assert quantities(record(), now(0.303)) == ["tau"]
    assert quantities(record(), now(0.297)) == ["tau"]
    assert quantities(record(), now(0.309), tau=0.5) == []
    assert quantities(record(), now(0.311), tau=0.5) == ["tau"]  # beyond the interval
    # Rounding is no news where the interval has no width.
    golden = record(tau=1.0, tau_low=1.0, tau_high=1.0)
    assert quantities(golden, replace(golden, tau=0.99997, tau_low=0.9)) == []
    assert quantities(golden, replace(golden, tau=0.9999, tau_low=0.9)) == ["tau"]


def test_other_images_are_told_and_nothing_else_of_them_is_compared(record):
    now = record(flipped(1, 2, 3), dataset_revision="ffff", margin=0.9)
    [one] = between(record(), now)
    assert one.quantity == "images"
    assert "dataset_revision '12ab34cd' in A, 'ffff' in B" in one.expected


def test_latency_fails_only_if_even_the_least_ratio_is_beyond_the_factor(record):
    then = record(latency=timed(0.6, 0.5))
    assert quantities(then, record(latency=timed(1.2, 0.89))) == []
    assert quantities(then, record(latency=timed(0.1, 0.05))) == []  # faster is never wrong
    [one] = between(then, record(latency=timed(1.2, 0.91)))
    assert (one.quantity, one.now, one.allowed) == ("time to dense, batch 1", 1.2, "up to 0.90")
    slow = record(latency=timed(9.0, 8.0))
    assert quantities(then, slow, slower=None) == []
    assert quantities(then, replace(slow, latency=timed(9.0, 8.0, batch=2))) == []
    assert quantities(then, replace(slow, device="cuda")) == []


def test_new_and_missing_rows_moved_as_a_whole_and_equal_ones_in_nothing(record):
    assert between(record(), record(), EXACT) == []
    [new], [gone] = between(None, record()), between(record(), None)
    assert (new.quantity, new.expected, new.now) == ("row", None, "measured")
    assert (gone.quantity, gone.expected, gone.now) == ("row", "measured", None)


@pytest.mark.parametrize(("name", "value", "expected"), [
    *(("images", -1, "number from 0"), ("flips", -2, "number from 0")),
    *(("cosine", -0.1, "number from 0"), ("tau", float("nan"), "number from 0")),
    ("slower", 0.5, "factor from 1"),
])  # fmt: skip
def test_bounds_out_of_range_are_refused(name: str, value: float, expected: str):
    with pytest.raises(ValueError, match=f"--{name} {value}: expected a {expected}"):
        Tolerances(**{name: value})
