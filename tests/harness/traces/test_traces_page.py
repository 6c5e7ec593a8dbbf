"""docs/traces.md: its columns are the files', its examples run, its flags are there."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.parser import build_parser
from harness.golden.store import Rankings
from harness.plan import TRACED
from harness.records import Record
from harness.traces import read_traces
from harness.traces.thumbnails import SIDE

PAGE = (Path(__file__).parents[3] / "docs" / "traces.md").read_text(encoding="utf-8")


def test_columns_are_those_of_a_file(measure: Callable[..., list[Record]], tmp_path: Path):
    measure(methods=("evit",), keeps=(0.5,))
    columns = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert list(pd.read_parquet(tmp_path / "run" / "traces").columns) == columns
    assert len(read_traces(tmp_path / "run")) == 2


def test_the_examples_run(
    measure: Callable[..., list[Record]],
    golden: Rankings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    measure(run=tmp_path / "results", keeps=(0.5,))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    said = []
    for example in examples:
        exec(example, {})
        said.append(capsys.readouterr().out)
    assert len(said) == 4
    assert "clip_vit_b16_evit50" in said[0]
    assert "toy/test-" in said[0]
    assert re.search(r"clip_vit_b16_tome50\s+┆ 32.0", said[1])
    assert "Agreement(mean=" in said[2]
    assert "(64, 64, 3)" in said[2]
    assert "golden ranking evit" in said[3]
    assert "agreement_toy_test_clip_vit_b16_openai" in said[3]
    assert "gallery_first_toy_test" in said[3]


def test_flags_and_numbers_are_those_of_the_command():
    defaults = vars(build_parser().parse_args(["compare"]))
    assert (defaults["traces"], defaults["thumbnails"]) == (TRACED, True)
    assert f"the first {TRACED} images" in PAGE
    assert f"at most {SIDE} pixels" in PAGE
    given = vars(build_parser().parse_args(["compare", "--traces", "5", "--no-thumbnails"]))
    assert (given["traces"], given["thumbnails"]) == (5, False)
