"""Two runs in pairs: the same rows meet, and nothing is compared that isn't alike."""

import math
from typing import Any

import numpy as np
import pytest

from harness.changes import ABSENT, Change, changes
from harness.records import Latency, Record, pack_correct

A = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)
B = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0], dtype=bool)


def answers(correct: Any) -> dict[str, Any]:
    flags = np.asarray(correct, dtype=bool)
    share = float(flags.mean())
    told = {"correct_bits": pack_correct(flags), "image_count": len(flags)}
    return told | {"top1": share, "top1_low": share / 2, "top1_high": 1.0}


def timed(batch: int, median: float) -> Latency:
    return Latency(batch=batch, median_ms=median, q1_ms=1.0, q3_ms=99.0, images_per_s=9.0)


def record(correct: Any = A, **changed: Any) -> Record:
    facts: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "git_commit": "0123abc",
        "model": "clip_vit_s14_patchrank60",
        "method": "patchrank",
        "keep": 0.6,
        "method_config": {"reduce_at": [3], "predictor": "12ab"},
        "tag": "imgfocus_lit",
        "weights_sha256": "ab" * 32,
        "dataset": "fashion",
        "dataset_revision": "12ab34cd",
        "images_sha256": "ab" * 32,
        "image_size": (196, 196),
        "split": "test",
        "shots": 16,
        "tuning": "vt",
        "prompt_tokens": 8,
        "seed": 0,
        "gflops": 2.5,
        "params": 22_000_000,
        "activations": 6_000_000,
        "uncounted_operators": (),
        "tokens_per_block": (197, 197, 119),
        "final_tokens": 118,
        "latency": (timed(1, 30.0), timed(32, 700.0)),
        "tau": 0.3,
        "tau_low": 0.2,
        "tau_high": 0.4,
        "golden_images": 10,
        "device": "cpu",
        "device_name": "a processor",
        "dtype": "float32",
        "threads": 2,
        "torch": "2.13.0",
        "timm": "1.0.31",
    }
    return Record(**{**facts, **answers(correct), **changed})


def only(a: Record, b: Record) -> Change:
    found = changes([a], [b])
    assert (found.only_a, found.only_b) == ((), ())
    [pair] = found.pairs
    return pair


def names(pair: Change) -> list[str]:
    return [one.name for one in pair.conditions]


def test_the_difference_is_b_minus_a_paired_by_image():
    pair = only(record(), record(B))
    assert pair.answers == (int((A & ~B).sum()), int((B & ~A).sum())) == (1, 2)
    assert pair.top1 is not None
    assert pair.top1.estimate == pytest.approx(B.mean() - A.mean()) == pytest.approx(0.1)
    assert pair.top1.low <= pair.top1.estimate <= pair.top1.high
    # All ways of 3 coins, twice the tail of at most 1 head.
    coins = [bin(way).count("1") for way in range(8)]
    assert pair.p_value == pytest.approx(min(1.0, 2 * sum(c <= 1 for c in coins) / 8))


def test_the_interval_is_a_bootstrap_over_images():
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.6, rng.random(400) < 0.7
    draws = rng.integers(400, size=(4000, 400))
    slow = np.percentile((b[draws].astype(float) - a[draws]).mean(1), [2.5, 97.5])
    pair = only(record(a), record(b))
    assert pair.top1 is not None
    assert pair.top1[1:] == pytest.approx(slow, abs=0.01)


def test_a_run_beside_itself_has_not_changed():
    rows = [record(), record(B, seed=1), record(B, method="dense", model="clip_vit_s14", keep=1.0)]
    found = changes(rows, rows)
    assert (found.only_a, found.only_b, found.replaced) == ((), (), (0, 0))
    assert [(pair.a, pair.b) for pair in found.pairs] == [(row, row) for row in rows]
    for pair in found.pairs:
        assert (pair.conditions, pair.costs, pair.answers, pair.p_value) == ([], [], (0, 0), 1.0)
        assert pair.top1 == (0.0, 0.0, 0.0)
        assert (pair.tau, pair.latency) == (0.0, {1: 1.0, 32: 1.0})
    assert found.conditions() == []


def test_swapped_runs_change_by_the_opposite():
    there, back = only(record(), record(B)), only(record(B), record())
    assert there.top1 is not None
    assert back.top1 is not None
    assert there.top1.estimate == -back.top1.estimate
    assert there.p_value == back.p_value
    assert there.answers == tuple(reversed(back.answers or ()))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (record(dataset_revision="99"), "dataset_revision '12ab34cd' in A, '99' in B"),
        (record([1, 0, 1, 1]), "image_count 10 in A, 4 in B"),
        (record([1, 0, 1, 1], images_sha256="cd" * 32), "image_count 10 in A, 4 in B"),
        (record(images_sha256="cd" * 32), f"images_sha256 '{'ab' * 32}' in A, '{'cd' * 32}' in B"),
    ],
)
def test_answers_on_other_images_are_not_paired(other: Record, reason: str):
    pair = only(record(), other)
    assert pair.other_images == reason
    assert (pair.top1, pair.p_value, pair.answers, pair.tau) == (None, None, None, None)
    assert pair.latency == {1: 1.0, 32: 1.0}  # which images don't enter


def test_other_weights_on_the_same_images_are_paired_and_told():
    pair = only(record(), record(B, weights_sha256="cd" * 32))
    assert pair.top1 is not None
    assert names(pair) == ["weights_sha256"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", "0.2.0"),
        ("git_commit", None),
        ("torch", "2.12.0"),
        ("timm", "1.0.30"),
        ("device", "cuda:0"),
        ("device_name", "another"),
        ("dtype", "bfloat16"),
        ("threads", 4),
        ("weights_sha256", "ef"),
        ("golden_images", 9),
        ("image_size", (224, 224)),
    ],
)
def test_every_condition_that_differs_is_told(name: str, value: Any):
    [told] = only(record(), record(**{name: value})).conditions
    assert (told.name, told.a, told.b) == (name, getattr(record(), name), value)


def test_settings_that_differ_are_told_one_by_one():
    config = {"reduce_at": [3], "predictor": "34cd", "fuse": None}
    told = only(record(), record(method_config=config)).conditions
    assert [(one.name, one.a, one.b) for one in told] == [
        ("method_config.predictor", "12ab", "34cd"),
        ("method_config.fuse", ABSENT, None),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gflops", math.nextafter(2.5, 3)),
        ("params", 22_000_001),
        ("activations", 6_000_001),
        ("uncounted_operators", ("aten::x",)),
        ("tokens_per_block", (197, 119, 119)),
        ("final_tokens", 117),
    ],
)
def test_counted_costs_must_be_equal_to_the_last_bit(name: str, value: Any):
    [cost] = only(record(), record(**{name: value})).costs
    assert (cost.name, cost.a, cost.b) == (name, getattr(record(), name), value)
    assert only(record(), record(**{name: None})).costs == []  # not measured


def test_latency_is_b_over_a_where_both_have_the_batch():
    faster = record(latency=(timed(1, 15.0), timed(8, 9.0)))
    assert only(record(), faster).latency == {1: 0.5}
    assert only(record(), record(latency=())).latency == {}


@pytest.mark.parametrize(
    "changed", [{"device": "cuda"}, {"device_name": "x"}, {"threads": 1}, {"dtype": "float16"}]
)
def test_latency_of_another_machine_or_precision_is_not_compared(changed: dict[str, Any]):
    pair = only(record(), record(B, **changed))
    assert pair.latency == {}
    assert pair.top1 is not None
    assert names(pair) == list(changed)


def test_tau_is_compared_where_both_have_it_of_as_many_images():
    other = {"tau": 0.5, "tau_low": 0.4, "tau_high": 0.6}
    assert only(record(), record(**other)).tau == pytest.approx(0.2)
    assert only(record(), record(**other, golden_images=9)).tau is None
    without = record(**dict.fromkeys(other), golden_images=None)
    assert only(record(), without).tau is None
    assert names(only(record(), without)) == []
