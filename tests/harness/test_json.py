"""``--json`` prints one document, and exit codes say how it went."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from harness.flags import COMMANDS, FAMILIES
from rich.table import Table

from harness import cli
from harness.cli import BROKEN_PIPE, main, own_words
from harness.records import read_records, write_records
from harness.shown import Shown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "records.jsonl"


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    return json.loads(capsys.readouterr().out, parse_constant=no_constant)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `list` run something else."""

    def put(run: Any) -> None:
        monkeypatch.setattr("harness.listing.run_list", run)

    return put


def told(command: str) -> list[str]:
    """Return the fields that docs/commands.md tells of a command's document."""
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{command}` | `")]
    return row.split("|")[2]


def test_every_command_s_document_is_described():
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    heads = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [path for path in COMMANDS if f"`{path}`" not in "".join(heads)] == []


@pytest.mark.parametrize("words", ["list", "datasets list", "datasets check emoji --fast"])
def test_a_document_has_the_fields_that_are_told(words: str, capsys):
    assert main(["--json", *words.split()]) == 0
    found = document(capsys)
    names = " ".join(words.split()[:2])
    for field in found:
        assert f"`{field}`" in told(names)


def test_what_there_is(capsys):
    assert main(["list", "--json"]) == 0
    found = document(capsys)
    assert {"size": "s14", "tags": ["imgfocus_lit"], "predictors": {"imgfocus_lit": [3]}} in (
        found["towers"]
    )
    (fashion,) = [row for row in found["datasets"] if row["name"] == "fashion"]
    assert (fashion["classes"], fashion["train"], fashion["shipped"]) == (10, 1200, True)
    assert 60 in found["keep_percents"]


def test_two_runs_as_numbers(tmp_path: Path, capsys):
    rows = [row for row in read_records(RESULTS) if row.dataset == "emoji"][:3]
    write_records(tmp_path / "a.jsonl", rows)
    write_records(tmp_path / "b.jsonl", [replace(row, torch="9.9") for row in rows[1:]])
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--json"]) == 0
    found = document(capsys)
    assert len(found["pairs"]) == 2
    assert found["pairs"][0]["top1"] == {"a": rows[1].top1, "b": rows[1].top1}
    assert found["pairs"][0]["top1_difference"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert found["conditions"][0]["name"] == "torch"
    assert found["conditions"][0]["rows"] == 2
    assert [row["model"] for row in found["only_in_a"]] == [rows[0].model]
    for field in found:
        assert f"`{field}`" in told("compare RUN_A RUN_B")


def test_a_measurement_is_its_records(tmp_path: Path, capsys):
    words = "compare --datasets emoji --methods random --keeps 0.6 --limit 4 --batches --json"
    assert main([*words.split(), "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    lines = (tmp_path / "records.jsonl").read_text("utf-8").splitlines()
    assert json.loads(out) == {"records": [json.loads(line) for line in lines]}
    assert (
        json.loads(out)["records"][1]["top1"]
        == asdict(read_records(tmp_path / "records.jsonl")[1])["top1"]
    )
    assert "report.html" in err


def test_quiet_leaves_results_and_no_notes(tmp_path: Path, capsys):
    words = "-q compare --datasets emoji --methods random --keeps 0.6 --limit 4 --batches"
    assert main([*words.split(), "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "random" in out
    assert err == ""


def test_errors_stay_when_quiet_and_there_is_no_document(capsys):
    assert main(["-q", "--json", "rank", "--images", "gone"]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:7]) == ("", "error: ")


def test_long_work_shows_parts_as_they_come_and_its_data_at_the_end(command, capsys):
    seen = []

    def work(args, status):
        yield "first"
        seen.append(capsys.readouterr().out)
        yield Table(title="second")
        return Shown(parts=("last",), data={"n": 2}, code=1)

    command(work)
    assert main(["list"]) == 1
    assert seen == ["first\n"]
    assert capsys.readouterr().out.endswith("last\n")
    assert main(["list", "--json"]) == 1
    assert (seen[1], document(capsys)) == ("", {"n": 2})


def test_one_of_many_processes_may_have_nothing_to_say(command, capsys):
    command(lambda args, status: Shown(parts=(), data=None))
    assert main(["list", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_problem_is_1_and_its_table_is_shown(command, capsys):
    command(lambda args, status: Shown(parts=("a problem",), data={"problems": 1}, code=1))
    assert main(["list"]) == 1
    assert capsys.readouterr().out == "a problem\n"


def test_a_mistake_of_ours_is_no_wrong_use(command):
    def broken(args, status):
        raise KeyError("ours")

    command(broken)
    with pytest.raises(KeyError, match="ours"):
        main(["list"])


def test_a_nan_is_no_result(command):
    command(lambda args, status: Shown(parts=(), data={"x": float("nan")}))
    with pytest.raises(AssertionError, match="list: Out of range"):
        main(["list", "--json"])


@pytest.mark.parametrize("words", [[], *([word] for word in FAMILIES)])
def test_half_a_command_prints_the_help(words: list[str], capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"usage: {' '.join(['python -m harness', *words])} ")
    assert len(err.splitlines()) > 8


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("--json list -q", "list"),
        ("study order --color never --seeds 1 --quiet", "study order --seeds 1"),
        ("--color=always compare a b", "compare a b"),
        ("compare -- --json b", "compare -- --json b"),
    ],
)
def test_how_results_are_shown_is_no_part_of_what_is_measured(words: str, left: str):
    assert own_words(words.split()) == left.split()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_closed_pipe_is_quiet(flags: list[str]):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "harness", "list", *flags]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")


def test_the_installed_script_is_named_in_its_help(monkeypatch, capsys):
    monkeypatch.setattr(cli.sys, "argv", ["bin/patchrank"])
    with pytest.raises(SystemExit, match="0"):
        main(["floor", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: patchrank floor [flags]")
    assert "\n  patchrank floor --methods" in out


def test_a_line_is_wrapped_between_words_on_a_terminal_and_left_alone_in_a_pipe(
    command, monkeypatch, capsys
):
    text = "wrote " + "results/" * 6 + "records.jsonl: of two words"
    command(lambda args, status: Shown(parts=(text, f"{text}\n{text}"), data={}))
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["list"])
    assert capsys.readouterr().out == f"{text}\n{text}\n{text}\n"
    monkeypatch.setenv("COLUMNS", "40")
    main(["list"])
    path = "results/" * 6 + "records.jsonl:"
    assert capsys.readouterr().out == f"wrote\n{path}\nof two words\n{text}\n{text}\n"
