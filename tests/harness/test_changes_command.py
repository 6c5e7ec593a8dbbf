"""`compare RUN_A RUN_B` as a stranger types it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import main
from harness.records import read_records, write_records

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "records.jsonl"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with two runs, a and b, of which b is newer; nothing may be measured."""
    monkeypatch.chdir(tmp_path)
    rows = [row for row in read_records(RESULTS) if row.dataset == "emoji"]
    write_records("a/records.jsonl", rows)
    write_records("b/records.jsonl", [replace(row, torch="9.9") for row in rows[1:]])

    def fail(*args: object) -> None:
        raise AssertionError("measures")

    monkeypatch.setattr("harness.cli.measure._side_by_side", fail)
    return tmp_path


def test_two_runs_are_compared_and_nothing_is_measured_or_written(
    runs: Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(runs.rglob("*"))
    assert main(["compare", "a", "b/records.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("A: a\nB: b/records.jsonl\n12 rows are in both runs\n")
    assert '"9.9" in B (every row)' in out
    assert "only in A: clip_vit_s14.imgfocus_lit on emoji test" in out
    assert "│ patchrank │   60 │" in out
    assert "+0.0 [+0.0, +0.0]" in out
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize(
    "command", ["a b --output new/out", "--output new/out a b", "--output=new/out a b"]
)
def test_output_is_a_folder_for_the_same_in_markdown(
    command: str, runs: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", *command.split()]) == 0
    out, err = capsys.readouterr()
    assert err == f"wrote {Path('new/out/changes.md')}\n"
    assert [path.name for path in Path("new/out").iterdir()] == ["changes.md"]
    text = Path("new/out/changes.md").read_text("utf-8")
    for line in out.splitlines()[:4]:
        assert f"- {line}\n" in text
    assert "| patchrank | 60 | " in text


def test_a_run_of_an_earlier_version_is_read(runs: Path, capsys: pytest.CaptureFixture[str]):
    lines = [json.loads(line) for line in Path("a/records.jsonl").read_text().splitlines()]
    later = ("tuning", "prompt_tokens", "match_low", "match_high")
    old = [{name: line[name] for name in line if name not in later} for line in lines]
    text = "".join(json.dumps(line | {"schema_version": 3}) + "\n" for line in old)
    Path("old.jsonl").write_text(text)
    assert main(["compare", "old.jsonl", "a"]) == 0
    assert "13 rows are in both runs\nconditions are the same in every" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("a", "compare 'a': expected two runs, python -m harness compare RUN_A RUN_B, or none"),
        ("a b a", "compare 'a' 'b' 'a': expected two runs"),
        ("a gone", "run 'gone': there is no such file or folder; expected a file of records"),
        (". b", "run '.': it holds no records.jsonl; expected a file of records, or the folder"),
        ("torn b", "records.jsonl, line 1: torn, as what wrote it was stopped midway"),
        ("a b --full", "--full with runs to compare: it is for measuring; expected compare RUN_A"),
        ("a b --limit=250", "--limit=250 with runs to compare"),
        ("--seed 0 a b", "--seed with runs to compare"),
        ("a b --datasets gone", "--datasets with runs to compare"),
        ("a b --download", "--download with runs to compare"),
        ("a --output out --device cpu", "--device with runs to compare"),
        ("a b --output a/records.jsonl", "File exists"),
    ],
)
def test_wrong_use_is_told_and_nothing_is_written(
    command: str, complaint: str, runs: Path, capsys: pytest.CaptureFixture[str]
):
    Path("torn").mkdir()
    Path("torn/records.jsonl").write_text('{"schema_version": 5, "cre')
    before = sorted(runs.rglob("*"))
    assert main(["compare", *command.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("patchrank: error: ")
    assert complaint in err
    assert sorted(runs.rglob("*")) == before


def test_a_run_s_name_may_look_like_a_flag(runs: Path, capsys: pytest.CaptureFixture[str]):
    Path("a").rename("--full")
    assert main(["compare", "--", "--full", "b"]) == 0
    assert capsys.readouterr().out.startswith("A: --full\nB: b\n12 rows")


def test_without_runs_compare_measures(runs: Path):
    with pytest.raises(AssertionError, match="measures"):
        main(["compare"])
    with pytest.raises(AssertionError, match="measures"):
        main(["compare", "--limit", "8"])
