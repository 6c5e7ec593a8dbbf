"""``check`` on the toy benchmark: written, checked, narrow, and refused kindly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from by_hand import replace
from rich.console import Console

from harness.base.table import Shown
from harness.cli.apps import run_check
from harness.cli.entry import build_parser
from harness.records.metrics import Measured, pack
from harness.records.record import read_records, record_lines
from zoo.loading.clip import ClipParts

Run = Callable[..., Shown]


@pytest.fixture
def run(parts: ClipParts, toy: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``check`` on the toy tower and dataset, whatever the names."""
    told = (parts, "clip_vit_b16", "openai")
    monkeypatch.setattr("harness.apps.check.check.load_clip", lambda name: told)
    monkeypatch.setattr("harness.apps.check.check.get_dataset", lambda name: toy)
    monkeypatch.setattr("harness.apps.check.check.list_datasets", lambda: ("toy",))

    def call(*words: str) -> Shown:
        return run_check(build_parser().parse_args(["check", *words]), Console(quiet=True))

    return call


_WRITTEN: list[bytes] = []


@pytest.fixture
def file(run: Run, tmp_path: Path) -> Path:
    """Write an expectation of five rows, measured once for all tests."""
    path = tmp_path / "mine.jsonl"
    if not _WRITTEN:
        what = ("--model", "clip_vit_b16", "--dataset", "toy", "--keeps", "0.5", "--limit", "12")
        methods = ("--methods", "random", "tome", "evit:fuse=true")
        assert run(str(path), "--update", *what, *methods, "--rounds", "1").code == 0
        _WRITTEN.append(path.read_bytes())
    path.write_bytes(_WRITTEN[0])
    return path


def test_what_was_written_is_found_again(run, file: Path, tmp_path: Path):
    shown = run(str(file), "--no-latency", "--markdown", str(tmp_path / "check.md"))
    assert (shown.code, shown.data["rows"], shown.data["moved"]) == (0, 5, [])
    text = (tmp_path / "check.md").read_text()
    assert text.startswith("### check passed: nothing moved in 5 rows\n")


def test_flags_take_some_rows_and_the_dense_one(run, file: Path):
    # The toy's last class has no word, so it takes more of its images to leave 12.
    assert {record.image_count for record in read_records(file)} == {12}
    assert run(str(file), "--no-latency", "--methods", "random").data["rows"] == 2
    assert run(str(file), "--no-latency", "--keeps", "0.25").data["rows"] == 1


def test_an_update_with_other_rows_tells_which_are_new_and_which_are_gone(run, file: Path):
    what = ("--model", "clip_vit_b16", "--dataset", "toy", "--keeps", "0.5", "--limit", "12")
    shown = run(str(file), "--update", *what, "--methods", "random", "clsattn", "--no-latency")
    moved = {(one["row"], one["expected"], one["now"]) for one in shown.data["moved"]}
    gone = {(name, "measured", None) for name in ("tome50", "evit50", "evit50 fuse=true")}
    assert moved == {("clsattn50", None, "measured"), *gone}
    assert [record.method for record in read_records(file)] == ["dense", "random", "clsattn"]


def test_shuffled_answers_are_told_by_row(run, file: Path):
    first, *rest = read_records(file)
    wrong = ~first.correct
    changed = replace(first, top1=Measured(mean=float(wrong.mean()), low=0.0, high=1.0, values=pack(wrong)))
    file.write_bytes(record_lines([changed, *rest]))
    shown = run(str(file), "--no-latency")
    moved = shown.data["moved"]
    assert shown.code == 1
    assert {one["row"] for one in moved} == {"dense"}
    assert "answers flipped" in {one["quantity"] for one in moved}


@pytest.mark.parametrize(("words", "message"), [
    ("--limit 5", "--limit without --update: a check measures what the expectation did"),
    ("--update --model clip_vit_s14", "--model with --update and no FILE"),
    ("a.jsonl b.jsonl --update --limit 5", "--update of several FILEs with other rows"),
    ("a.jsonl --update --limit 0", "--limit 0: expected a number from 1"),
    ("a.jsonl --update --dtype float3", "--dtype 'float3': did you mean 'float32'"),
    ("--keeps 2", r"--keeps 2: expected fractions in \(0, 1\]"),
    ("--slower 0.5", "--slower 0.5: expected a factor from 1"),
    ("--methods evitt", "method 'evitt': did you mean 'evit'"),
    ("--dataset cifar", "--dataset: the expectation has no such row; it is of clip_vit_s14"),
])  # fmt: skip
def test_wrong_use_is_refused_before_anything_is_measured(words: str, message: str, monkeypatch):
    monkeypatch.setattr("harness.apps.check.check.measure", None)
    with pytest.raises(ValueError, match=message):
        run_check(build_parser().parse_args(["check", *words.split()]), Console(quiet=True))


@pytest.mark.parametrize(("words", "message"), [
    ("--markdown {0}/no/check.md", "its folder doesn't exist"),
    ("--markdown {0}", r"--markdown '.*' is a folder; give a file, such as '.*check\.md'"),
    ("{0} --update", r"--update of '.*', which is a folder; give a file of records"),
    ("{0}/file/x.jsonl --update", r"--update in '.*file' is a file, or lies in one; expected"),
])  # fmt: skip
def test_what_can_not_be_written_is_told_first(words: str, message: str, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("harness.apps.check.check.measure", None)
    args = build_parser().parse_args(["check", *words.format(tmp_path).split()])
    with pytest.raises(OSError, match=message):
        run_check(args, Console(quiet=True))
