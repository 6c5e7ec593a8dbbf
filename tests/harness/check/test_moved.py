"""What counts as moved: nothing within the bounds, each quantity beyond its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.check.bounds import EXACT, Bounds
from harness.check.measured import Outcome
from harness.check.moved import differing, moved
from harness.check.wanted import Wanted
from harness.records import Latency, Record

Make = Callable[..., Record]
RIGHT = np.arange(40) % 4 > 0


def between(then: Record | None, now: Record | None, bounds: Bounds | None = None) -> list[Any]:
    wanted = Wanted(method="tome", keep=0.3, options={}, record=then)
    place = {"tower": "clip_vit_s14.imgfocus_lit", "dataset": "fashion"}
    return moved(Outcome(**place, wanted=wanted, now=now), bounds or Bounds())


def quantities(then: Record, now: Record, **bounds: Any) -> list[str]:
    return [one.quantity for one in between(then, now, Bounds(**bounds))]


def flipped(*images: int) -> Any:
    right = RIGHT.copy()
    right[list(images)] ^= True
    return right


def timed(ratio: float, low: float, batch: int = 1) -> tuple[Latency, ...]:
    told = {"median_ms": 9.0, "q1_ms": 8.0, "q3_ms": 10.0, "images_per_s": 100.0}
    return (Latency(batch=batch, ratio_to_dense=ratio, ratio_low=low, ratio_high=9.0, **told),)


def test_equal_records_moved_in_nothing(record: Make):
    assert between(record(), record(), EXACT) == []


@pytest.mark.parametrize(
    ("field", "value", "by"),
    [
        ("gflops", 2.196547264 + 1e-9, pytest.approx(1e-9)),
        ("params", 16378625, 1),
        ("final_tokens", 58, -1),
        ("tokens_per_block", (182, 167, 60, 59), None),
        ("weights_sha256", "cd" * 8, None),
        ("golden_images", 39, None),
        ("dtype", "bfloat16", None),
    ],
)
def test_what_is_counted_or_given_may_not_move_at_all(
    record: Make, field: str, value: Any, by: Any
):
    [one] = between(record(), record(**{field: value}))
    assert (one.quantity, one.expected, one.now) == (field, getattr(record(), field), value)
    assert (one.by, one.allowed) == (by, "nothing")


@pytest.mark.parametrize("names", [("uncounted_operators", ("aten::new",)), ("activations", 5)])
def test_what_an_earlier_record_did_not_measure_is_not_judged(record: Make, names: Any):
    name, value = names
    assert between(record(), record(**{name: value})) == []
    [one] = between(record(**{name: value}), record())
    assert (one.quantity, one.now) == (name, None)


@pytest.mark.parametrize("field", ["gflops", "tau", "cosine_to_dense", "margin"])
def test_what_is_not_measured_any_more_moved(record: Make, field: str):
    ends = {"tau": ("tau_low", "tau_high"), "cosine_to_dense": ("cosine_low", "cosine_high")}
    now = record(**dict.fromkeys((field, *ends.get(field, ()))))
    assert quantities(record(), now)[-1] == field.replace("_", " ")


def test_a_changed_setting_goes_by_its_name(record: Make):
    now = record(method_config={"keep": 0.3, "reduce_at": [2], "r": None})
    assert [(m.quantity, m.expected, m.now) for m in between(record(), now)] == [
        ("reduce_at", None, [2]),
        ("r", "(absent)", None),
    ]


def test_answers_are_judged_by_their_number_and_by_the_images_that_flipped(record: Make):
    assert quantities(record(), record(flipped(0, 1))) == []  # one won, one lost
    assert quantities(record(), record(flipped(0, 4))) == ["images right"]
    assert quantities(record(), record(flipped(0, 1, 4, 5))) == ["answers flipped"]
    [right, flips] = between(record(), record(flipped(1, 2, 3)))
    assert (right.expected, right.now, right.by, right.allowed) == (30, 27, -3, "±1")
    assert (flips.now, flips.by, flips.allowed) == ("3 lost, 0 won", 3, "2")
    assert quantities(record(), record(flipped(1, 2, 3)), images=3, flips=3) == []


@pytest.mark.parametrize(
    ("field", "name"), [("margin", "margin"), ("cosine_to_dense", "cosine to dense")]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_cosines_may_move_by_their_bound(record: Make, field: str, name: str, sign: int):
    then = getattr(record(), field)
    assert quantities(record(), record(**{field: then + sign * 4e-4})) == []
    assert quantities(record(), record(**{field: then + sign * 6e-4})) == [name]
    assert quantities(record(), record(**{field: then + sign * 6e-4}), cosine=1e-3) == []


def test_tau_stays_within_its_bound_and_within_its_interval(record: Make):
    def now(tau: float) -> Record:
        return record(tau=tau, tau_low=-1.0, tau_high=1.0)

    assert quantities(record(), now(0.3015)) == []
    assert quantities(record(), now(0.303)) == ["tau"]
    assert quantities(record(), now(0.297)) == ["tau"]
    assert quantities(record(), now(0.309), tau=0.5) == []
    assert quantities(record(), now(0.311), tau=0.5) == ["tau"]  # beyond the interval


def test_rounding_is_no_news_where_the_interval_has_no_width(record: Make):
    golden = record(tau=1.0, tau_low=1.0, tau_high=1.0)
    assert quantities(golden, replace(golden, tau=0.99997, tau_low=0.9)) == []
    assert quantities(golden, replace(golden, tau=0.9999, tau_low=0.9)) == ["tau"]


def test_other_images_are_told_and_nothing_else_of_them_is_compared(record: Make):
    now = record(flipped(1, 2, 3), dataset_revision="ffff", margin=0.9)
    [one] = between(record(), now)
    assert one.quantity == "images"
    assert "dataset_revision '12ab34cd' in A, 'ffff' in B" in one.expected


def test_latency_fails_only_if_even_the_least_ratio_is_beyond_the_factor(record: Make):
    then = record(latency=timed(0.6, 0.5))
    assert quantities(then, record(latency=timed(1.2, 0.89))) == []
    assert quantities(then, record(latency=timed(0.1, 0.05))) == []  # faster is never wrong
    [one] = between(then, record(latency=timed(1.2, 0.91)))
    assert (one.quantity, one.now, one.allowed) == ("time to dense, batch 1", 1.2, "up to 0.90")
    slow = record(latency=timed(9.0, 8.0))
    assert quantities(then, slow, slower=None) == []
    assert quantities(then, replace(slow, latency=timed(9.0, 8.0, batch=2))) == []
    assert quantities(then, replace(slow, device="cuda")) == []


def test_new_and_missing_rows_moved_as_a_whole(record: Make):
    [new], [gone] = between(None, record()), between(record(), None)
    assert (new.quantity, new.expected, new.now) == ("row", None, "measured")
    assert (gone.quantity, gone.expected, gone.now) == ("row", "measured", None)


def test_machine_and_software_are_told_and_not_judged(record: Make):
    now = record(device_name="another", threads=1, torch="3.0", git_commit="fff")
    assert between(record(), now) == []
    assert differing(record(), now) == [
        "torch: 2.13.0 expected, 3.0 now",
        "device_name: a processor expected, another now",
        "threads: 2 expected, 1 now",
    ]
    timed_then = record(latency=timed(0.6, 0.5))
    assert differing(timed_then, replace(timed_then, device="cuda"))[-1].startswith("latency isn't")


@pytest.mark.parametrize(
    "bad", [{"images": -1}, {"flips": -2}, {"cosine": -0.1}, {"tau": float("nan")}]
)
def test_bounds_below_nothing_are_refused(bad: dict[str, Any]):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"--{name} {value}: expected a number from 0"):
        Bounds(**bad)


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match=r"--slower 0\.5: expected a factor from 1"):
        Bounds(slower=0.5)
