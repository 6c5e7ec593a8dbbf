"""Keep arithmetic, settings and the register of methods."""

import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.core.reducer import Reducer, final_count, register_method, spread

SCHEDULE = st.sampled_from(["geometric", "linear"])
POINTS = st.sets(st.integers(0, 23), min_size=1, max_size=12).map(lambda s: tuple(sorted(s)))


@given(patches=st.integers(1, 1024), percent=st.integers(1, 100))
def test_final_count_is_the_rounded_share(patches: int, percent: int):
    exact = Fraction(percent * patches, 100)
    left = final_count(patches, percent / 100)
    assert 1 <= left <= patches
    assert abs(left - exact) <= Fraction(1, 2) or left == 1


@given(patches=st.integers(1, 1024), keep=st.floats(0.01, 1.0), points=POINTS, schedule=SCHEDULE)
def test_counts_fall_to_the_end(patches: int, keep: float, points: tuple[int, ...], schedule: str):
    counts = spread(patches, keep, points, schedule)
    assert tuple(counts) == points
    values = [patches, *counts.values()]
    assert all(a >= b for a, b in pairwise(values))
    assert values[-1] == final_count(patches, keep)


@given(patches=st.integers(100, 1024), keep=st.floats(0.3, 0.9), stages=st.integers(2, 6))
def test_schedules_do_what_their_names_say(patches: int, keep: float, stages: int):
    points = tuple(range(stages))
    values = [patches, *spread(patches, keep, points, "linear").values()]
    drops = [a - b for a, b in pairwise(values)]
    assert max(drops) - min(drops) <= 2
    values = [patches, *spread(patches, keep, points, "geometric").values()]
    shares = [b / a for a, b in pairwise(values)]
    assert max(shares) - min(shares) < 2 / (keep * patches)


def test_stored_schedules():
    assert spread(196, 0.6, (3,), "geometric") == {3: 118}
    assert spread(196, 0.6, (3, 6, 9), "geometric") == {3: 165, 6: 139, 9: 118}
    assert spread(196, 0.6, (3, 6, 9), "linear") == {3: 170, 6: 144, 9: 118}
    assert spread(196, 0.5, (0, 3, 6), (0.8, 0.75)) == {0: 157, 3: 147, 6: 98}
    assert spread(196, 0.5, (0, 3, 6), (0.8, 0.4)) == {0: 157, 3: 98, 6: 98}  # never fewer than in the end
    # Table 4 of the paper: 20 of 196 before each of four blocks.
    assert spread(196, 116 / 196, (3, 5, 7, 9), "linear") == {3: 176, 5: 156, 7: 136, 9: 116}


WHOLE = "scores whole grids only, and with rescore=True patches are gone before block 3: expected one of linear, mlp, "


@pytest.mark.parametrize(
    ("method", "options", "quoted"),
    [
        ("random", {"keep": 0}, "keep=0: expected a number in (0, 1]"),
        ("random", {"keep": float("nan")}, "keep=nan: expected"),
        ("random", {"keep": None}, "expected exactly one of keep"),
        ("random", {"reduce_at": -1}, "reduce_at=-1: expected block indices, integers from 0"),
        ("random", {"reduce_at": [3, 1]}, "reduce_at=[3, 1]: expected at least one index, ascending"),
        ("random", {"reduce_at": [1, 17]}, "reduce_at=17: this tower has blocks 0 to 5"),
        ("random", {"schedule": "cosine"}, "schedule='cosine': expected one of geometric, linear"),
        ("random", {"schedule": (0.5, 0.8)}, "schedule=(0.5, 0.8): expected keep rates in (0, 1], none larger"),
        ("random", {"schedule": [0.7, 0.6], "reduce_at": [1, 3]}, "schedule=(0.7, 0.6): expected 1 keep rates, one"),
        ("random", {"seed": True}, "seed=True: expected an integer in [0, inf)"),
        ("random", {"Keep": 0.6}, "has no option 'Keep': did you mean 'keep'?"),
        ("avit", {"reduce_at": [0, 3]}, "reduce_at=0"),
        ("avit", {"channel": 48}, "channel=48"),
        ("avit", {"gamma": 0}, "gamma=0"),
        ("avit", {"beta": float("nan")}, "beta=nan"),
        ("clsattn", {"source": "prev"}, "source='prev'"),
        ("clsattn", {"source": "previous", "reduce_at": 0}, "reduction point 0"),
        ("evit", {"keep": None}, "keep or stage_rate, got none of them"),
        ("evit", {"stage_rate": 0.7}, "got keep=0.5, stage_rate=0.7"),
        ("evit", {"keep": None, "stage_rate": 0}, "stage_rate=0:"),
        ("patchrank", {"arch": "mpl"}, "arch='mpl': did you mean 'mlp'? expected one of conv"),
        ("patchrank", {"rescore": 1}, "rescore=1: expected true or false"),
        ("patchrank", {"width": 0}, "width=0: expected an integer in [1, inf)"),
        ("patchrank", {"arch": "conv", "rescore": True, "reduce_at": [1, 3]}, f"arch='conv' {WHOLE}"),
        ("pitome", {"margin": 1.5}, "margin=1.5"),
        ("pitome", {"alpha": 0}, "alpha=0"),
        ("pitome", {"energy_from": 2.5}, "energy_from=2.5"),
        ("pitome", {"proportional": 1}, "proportional=1"),
        ("pitome", {"reduce_at": 2, "keep": 0.4}, "block 2 to merge 38 of 64 patch tokens, at most half can"),
        ("rankmerge", {"rank": "golden"}, "rank='golden': expected one of none, cls, predictor"),
        ("rankmerge", {"distance": -1}, "distance=-1: expected a number in [0, inf)"),
        ("rankmerge", {"rescale": 1}, "rescale=1: expected true or false"),
        ("rankmerge", {"rank": "cls", "reduce_at": [0, 2]}, "rank_at=3: expected a block up to the last"),
        ("tca", {"centers": 0}, "centers=0"),
        ("tca", {"merged": 0.0}, "merged=0.0"),
        ("tofu", {"merge_from": -1}, "merge_from=-1"),
        ("tome", {"keep": None}, "keep or r, got none of them"),
        ("tome", {"r": 8}, "got keep=0.5, r=8"),
        ("tome", {"keep": None, "r": -1}, "r=-1"),
        ("tome", {"keep": 0.2, "reduce_at": [0, 1]}, "at most half can"),
    ],
)
def test_settings_out_of_range_are_refused(method: str, options: dict[str, Any], quoted: str, tower: zoo.ReducedViT):
    with pytest.raises(ValueError, match=re.escape(quoted)):
        zoo.reduce(tower, method=method, **{"keep": 0.5, **options})
    if WHOLE in quoted:  # one point, or one ranking for all, needs no other predictor
        for enough in ({"rescore": False}, {"reduce_at": [3]}):
            assert not zoo.reduce(tower, method=method, keep=0.5, **options | enough).reducer.rescorers


@pytest.mark.parametrize(("name", "match"), [("Evit", "'Evit': expected lower-case"), ("random", "is taken by Ran")])
def test_refused_names_of_methods(name: str, match: str):
    with pytest.raises(ValueError, match=f"method name .*{match}"):
        register_method(name)(type("Other", (Reducer,), {}))
    assert zoo.METHODS["random"].__name__ == "RandomPrune"
