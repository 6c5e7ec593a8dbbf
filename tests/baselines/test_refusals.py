"""Settings out of range are refused by the quoted value."""

import re
from typing import Any

import pytest
from timm.models.vision_transformer import VisionTransformer

import zoo


@pytest.mark.parametrize(
    ("method", "options", "quoted"),
    [
        ("avit", {"reduce_at": [0, 3]}, "reduce_at=0"),
        ("avit", {"channel": 48}, "channel=48"),
        ("avit", {"gamma": 0}, "gamma=0"),
        ("avit", {"beta": float("nan")}, "beta=nan"),
        ("clsattn", {"source": "prev"}, "source='prev'"),
        ("clsattn", {"source": "previous", "reduce_at": 0}, "reduction point 0"),
        ("evit", {"keep": None}, "keep or stage_rate, got none of them"),
        ("evit", {"stage_rate": 0.7}, "got keep=0.5, stage_rate=0.7"),
        ("evit", {"keep": None, "stage_rate": 0}, "stage_rate=0:"),
        ("pitome", {"margin": 1.5}, "margin=1.5"),
        ("pitome", {"alpha": 0}, "alpha=0"),
        ("pitome", {"energy_from": 2.5}, "energy_from=2.5"),
        ("pitome", {"proportional": 1}, "proportional=1"),
        ("pitome", {"reduce_at": 2, "keep": 0.4}, "block 2 to merge 38 of 64 patch tokens, at most half can"),
        ("tca", {"centers": 0}, "centers=0"),
        ("tca", {"merged": 0.0}, "merged=0.0"),
        ("tofu", {"merge_from": -1}, "merge_from=-1"),
        ("tome", {"keep": None}, "keep or r, got none of them"),
        ("tome", {"r": 8}, "got keep=0.5, r=8"),
        ("tome", {"keep": None, "r": -1}, "r=-1"),
        ("tome", {"keep": 0.2, "reduce_at": [0, 1]}, "at most half can"),
    ],
)
def test_refusals(method: str, options: dict[str, Any], quoted: str, tower: VisionTransformer):
    with pytest.raises(ValueError, match=re.escape(quoted)):
        zoo.reduce(tower, method=method, **{"keep": 0.5, **options})
