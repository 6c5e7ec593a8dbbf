"""Estimates are sums that can be done by hand."""

from dataclasses import replace

import pytest
from rich.console import Console

from harness.golden.budget import Point
from harness.golden.estimate import bytes_per_image, estimates
from harness.golden.products import Geometry
from harness.golden.runners import image_multiply_adds
from harness.golden.speed import Speed, Way
from harness.golden.speed_table import duration, estimate_table, speed_table
from harness.statistics import Interval
from zoo.golden import GoldenConfig

B16 = Geometry(
    grid=(14, 14), pixels=768, prefix=1, dim=768, hidden=3072, heads=12, depth=12, features=512
)
IMAGENET = 1_281_167


@pytest.fixture
def speed() -> Speed:
    """A measurement of B/16 that is easy to do sums with."""
    told = {"precision": "float32", "samples_ms": (1.0,), "tau": 1.0, "tau_least": 1.0, "same": 1.0}
    ways = [
        Way(
            name=name,
            batch=8,
            windows_per_s=Interval(rate, rate, rate),
            speed_up=Interval(rate, rate, rate),
            multiply_adds=1,
            multiply_adds_per_s=rate * 1e9,
            matmul_per_s=8e9,
            share=Interval(0.5, 0.25, 0.75),
            **told,
        )
        for name, rate in (("straightforward", 1.0), ("engine", 2.0), ("engine", 4.0))
    ]
    return Speed(
        created="2026-01-01T00:00:00+00:00",
        git_commit=None,
        model="clip_vit_b16",
        random_weights=False,
        block=3,
        window=2,
        stride=2,
        windows=49,
        images=1,
        dataset="fashion (val)",
        device="an abacus",
        threads=1,
        versions={},
        geometry=B16,
        ways=tuple(ways),
    )


def test_an_estimate_is_multiply_adds_by_rate(speed: Speed) -> None:
    found = {one.point: one for one in estimates(speed, IMAGENET)}
    exact = found[Point()]
    assert exact.passes == 169
    assert exact.multiply_adds == image_multiply_adds(B16, GoldenConfig())
    assert exact.here_s == pytest.approx(IMAGENET * exact.multiply_adds / 4e9)
    fast, slow = exact.gpu_s["A100", 8]
    assert fast == pytest.approx(IMAGENET * exact.multiply_adds / (8 * 0.5 * 19.5e12 / 2))
    assert slow == 2 * fast
    assert exact.gpu_s["A100", 1][0] == 8 * fast
    assert found[Point(stride=2)].passes == 49


def test_windows_go_in_the_fastest_precision_and_approximations_in_float32(speed: Speed) -> None:
    plain, slow, fast = speed.ways
    ways = (plain, replace(slow, precision="float32"), replace(fast, precision="bfloat16"))
    found = {one.point: one for one in estimates(replace(speed, ways=ways), 1000)}
    exact, follow = found[Point()], found[Point(approximate="follow:4")]
    assert exact.precision == "bfloat16"
    assert exact.multiply_adds == image_multiply_adds(B16, GoldenConfig(), "bfloat16")
    assert exact.here_s == pytest.approx(1000 * exact.multiply_adds / 4e9)
    assert exact.gpu_s["H100", 1][0] == pytest.approx(1000 * exact.multiply_adds / (989e12 / 4))
    assert follow.precision == "float32"
    assert follow.here_s == pytest.approx(1000 * follow.multiply_adds / 2e9)
    assert follow.gpu_s["H100", 1][0] == pytest.approx(1000 * follow.multiply_adds / (67e12 / 4))
    unknown = estimates(replace(speed, ways=(plain, ways[2])), 1000)
    assert [one.here_s is None for one in unknown] == [
        one.precision == "float32" for one in unknown
    ]


def test_the_cheaper_ways_cost_less_than_the_exact_one(speed: Speed) -> None:
    exact = estimates(speed, 1)[0]
    for one in estimates(speed, 1)[1:]:
        assert one.passes < exact.passes
        assert one.multiply_adds < exact.multiply_adds


def test_refuses_an_estimate_of_nothing(speed: Speed) -> None:
    with pytest.raises(ValueError, match="estimate=0: expected a number of images from 1"):
        estimates(speed, 0)


def test_a_store_takes_importance_ranking_and_id() -> None:
    # Two bytes for each importance, one or two for each place in the ranking, an id of 16 digits.
    assert 196 * 2 < bytes_per_image(196) < 196 * 4 + 16 + 64


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((30, 90), "0.5–1.5 min"),
        ((3600, 7200), "1–2 h"),
        ((12.5 * 86400,), "12 days"),
        ((3, 6), "0.05–0.1 min"),
    ],
)
def test_durations_have_the_unit_of_the_longest(seconds: tuple[float, ...], text: str) -> None:
    assert duration(*seconds) == text


def test_tables_show_every_way(speed: Speed, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=240)
    console.print(speed_table(speed))
    text = capsys.readouterr().out
    assert text.count("engine") == 2
    assert "4.00 [4.00, 4.00]" in text
    assert "50 [25, 75] %" in text
    console.print(estimate_table(speed, IMAGENET))
    text = capsys.readouterr().out
    assert "1,281,167 images" in text
    assert "4.0 G/s in float32, measured" in text
    assert "window 2, stride 2" in text
    assert "follow:4" in text


def test_random_weights_show_no_agreement(speed: Speed, capsys: pytest.CaptureFixture[str]) -> None:
    for random, count in ((False, 3), (True, 0)):
        Console(width=240).print(speed_table(replace(speed, random_weights=random)))
        assert capsys.readouterr().out.count("1.000 (1.000)") == count
