"""Results as JSON values."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

from harness.console.table import Shown, json_values
from harness.records.statistics import Interval


@dataclass(frozen=True)
class Row:
    name: str
    share: Interval
    ways: tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Interval(0.5, 0.25, 0.75), {"estimate": 0.5, "low": 0.25, "high": 0.75}),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.0, np.nan]), [1.0, None]),
        (math.nan, None),
        (math.inf, None),
        (Path("a/b"), str(Path("a/b"))),
        ({1: (True, None, "x")}, {"1": [True, None, "x"]}),
        ({}.keys(), []),
    ],
)
def test_values_become_plain_ones(value: object, expected: object):
    found = json_values(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


def test_a_dataclass_becomes_an_object_by_field():
    found = json_values([Row("a", Interval(1.0, 0.0, 2.0), (1.0, math.nan))])
    share = {"estimate": 1.0, "low": 0.0, "high": 2.0}
    assert found == [{"name": "a", "share": share, "ways": [1.0, None]}]


@pytest.mark.parametrize("value", [object(), b"raw", Row, 1j, Table()])
def test_what_is_no_value_is_refused(value: object):
    with pytest.raises(TypeError, match="is no JSON value"):
        json_values(value)


def test_going_through_shows_the_parts():
    assert list(Shown(parts=("a", "b"), data={})) == ["a", "b"]
