"""What a report lacks is told with a command that the program takes."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.changes import read_run
from harness.cli.parser import build_parser
from harness.records import Record
from harness.report.groups import grouped
from harness.report.missing import Missing, missing

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def told(records: list[Record]) -> dict[str, Missing]:
    return {one.title: one for one in missing(grouped(records), traced=False)}


def parsed(one: Missing) -> Any:
    words = shlex.split(one.command)
    assert words[:3] == ["python", "-m", "harness"]
    return build_parser().parse_args(words[3:])


def test_a_bare_record_lacks_every_plot(row: Any):
    found = told([row("random", 0.6, 50)])
    assert list(found) == [
        "Top-1 against GFLOPs",
        "Top-1 against time",
        "Kendall τ against keep rate",
        "Tokens per block",
        "Top-1 by shots",
        "Agreement of rankings, and kept patches",
    ]
    for one in found.values():
        args = parsed(one)
        assert args.command == "compare"
        assert args.models == ["clip_vit_s14.saliency"]
        assert args.datasets == ["fashion"]
        assert args.keeps == [0.6]
        assert (args.split, args.limit, args.device, args.dtype) == ("test", 100, "cpu", "float32")
    assert parsed(found["Top-1 against time"]).batches == [1, 32]
    assert parsed(found["Top-1 against time"]).shots == [16]
    assert parsed(found["Kendall τ against keep rate"]).methods == ["golden", "random"]
    assert parsed(found["Top-1 by shots"]).shots == [0, 1, 2, 4, 8, 16]
    assert parsed(found["Agreement of rankings, and kept patches"]).fresh


def test_what_is_there_is_not_missing():
    found = told(read_run(RESULTS))
    assert list(found) == ["Top-1 by shots", "Agreement of rankings, and kept patches"]
    assert not any(
        "patches" in one.title for one in missing(grouped(read_run(RESULTS)), traced=True)
    )
    assert len(found["Top-1 by shots"].groups) == 2


def test_only_groups_that_lack_it_are_named(dense: Record):
    other = replace(dense, dataset="emoji", latency=(), gflops=None)
    found = told([dense, other])
    for title in ("Top-1 against GFLOPs", "Top-1 against time"):
        assert [name.split()[0] for name in found[title].groups] == ["emoji"]
        assert parsed(found[title]).datasets == ["emoji"]


def test_the_command_measures_under_the_same_conditions(row: Any):
    change = {"split": "val", "device": "cuda:0", "dtype": "bfloat16"}
    [one, *_] = told([row("random", 0.6, 50, **change)]).values()
    args = parsed(one)
    assert (args.split, args.device, args.dtype) == ("val", "cuda:0", "bfloat16")


def test_conditions_that_differ_are_left_to_the_reader(row: Any):
    two = [row("random", 0.6, 50, dtype=dtype) for dtype in ("float32", "bfloat16")]
    [one, *_] = told(two).values()
    assert "--dtype" not in one.command


def test_shots_are_not_missing_where_there_are_several(dense: Record):
    few = replace(dense, shots=4)
    assert "Top-1 by shots" not in told([dense, few])


@pytest.mark.parametrize("name", ["a b", "x;rm", "$(x)", "'q'"])
def test_names_are_quoted_for_the_shell(name: str, row: Any):
    [one, *_] = told([row("random", 0.6, 50, dataset=name)]).values()
    assert parsed(one).datasets == [name]
