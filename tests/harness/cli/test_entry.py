"""The command line as a stranger uses it: results, second runs, JSON, mistakes, exit codes."""

import base64
import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from by_hand import replace
from killing import kill_when

import zoo
from harness.base.lines import lock_file
from harness.base.store import lock_folder
from harness.base.table import Shown, Table
from harness.cli.entry import BROKEN_PIPE, COMMANDS, main
from harness.datasets import list_datasets
from harness.records.record import read_records
from harness.report import folder
from zoo.core.errors import NoRoomError
from zoo.loading.sizes import SIZES

ROOT = Path(__file__).parents[3]
LIST = [sys.executable, "-m", "harness", "list"]
RANDOM = "compare --dataset emoji --methods random --keeps 0.6 --limit 8 --batches 1 --rounds 6"
TWO_BATCHES = "compare --dataset emoji --methods random evit --keeps 0.3 --limit 40 --batches"


@pytest.mark.command("compare")
def test_compare_writes_what_it_measured_and_a_second_run_reuses_all_of_it(tmp_path: Path, monkeypatch, capsys):
    results = tmp_path / "results[bold]"  # brackets are no markup
    assert main([*RANDOM.split(), "--output", str(results)]) == 0
    names = "accuracy_gflops.svg fidelity_gflops.svg gallery_emoji_clip_vit_s14.jpg records.jsonl report.html "
    names += "table.csv table.md table.tex"
    assert sorted(path.name for path in results.iterdir()) == names.split()
    dense, random = read_records(results / "records.jsonl")
    assert (dense.model, random.model) == ("clip_vit_s14", "clip_vit_s14_random60")
    assert [entry.batch for entry in random.latency] == [1]
    before = (results / "records.jsonl").read_text("utf-8")
    for name in ("rows.run_split", "bench.costs"):
        monkeypatch.setattr(f"harness.measure.{name}", Mock(side_effect=AssertionError("measured again")))
    capsys.readouterr()
    assert main([*RANDOM.split(), "--output", str(results)]) == 0
    assert (results / "records.jsonl").read_text("utf-8") == before
    out, err = capsys.readouterr()
    assert f"records: {results / 'records.jsonl'}; report: {results / 'report.html'}" in err
    for record in (dense, random):
        row = next(line for line in out.splitlines() if line.startswith(f"│ {record.method} "))
        assert f" {record.mean('gflops'):.2f} " in row
    assert main(["--json", *RANDOM.split(), "--output", str(results)]) == 0
    assert document(capsys) == {"records": [json.loads(line) for line in before.splitlines()], "conclusion": []}


@pytest.mark.parametrize(("name", "match"), [("records.jsonl", "is a file, or lies in one"), ("", "jsonl, line 1: ")])
def test_an_output_that_can_not_be(name: str, match: str, tmp_path, capsys):
    (tmp_path / "records.jsonl").write_text("{}\n")
    assert main([*RANDOM.split(), "--output", str(tmp_path / name)]) == 2
    assert match in capsys.readouterr().err
    assert (tmp_path / "records.jsonl").read_text() == "{}\n"


def document(capsys) -> Any:
    return json.loads(capsys.readouterr().out, parse_constant=Mock(side_effect=AssertionError("NaN or infinity")))


@pytest.fixture
def command(monkeypatch) -> Any:
    return lambda run: monkeypatch.setitem(COMMANDS, "list", replace(COMMANDS["list"], run=run))


def test_long_work_shows_parts_as_they_come_and_its_data_at_the_end(command, capsys):
    seen: list[str] = []

    def work(args, progress):
        yield "first"
        seen.append(capsys.readouterr().out)
        yield Table.of("second", ("n",), ())
        return Shown(parts=("last",), data={"n": 2}, code=1)

    command(work)
    assert main(["list"]) == 1
    assert seen == ["first\n"]
    assert capsys.readouterr().out.endswith("last\n")
    assert main(["list", "--json"]) == 1
    assert (seen[1], document(capsys)) == ("", {"n": 2})


def test_a_mistake_of_ours_is_no_wrong_use_and_a_nan_is_no_result(command):
    command(Mock(side_effect=KeyError("ours")))
    with pytest.raises(KeyError, match="ours"):
        main(["list"])
    command(lambda args, progress: Shown(parts=(), data={"x": float("nan")}))
    with pytest.raises(AssertionError, match="list: Out of range"):
        main(["list", "--json"])


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(LIST, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")


def test_a_program_without_standard_output_runs():
    done = subprocess.run(["sh", "-c", f"{shlex.join(LIST)} >&-"], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("error", "code"), [(ValueError("wrong"), 2), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("left", [[], ["records.jsonl"]])
def test_a_failed_command_leaves_no_empty_folder(
    left: list[str], error: BaseException, code: int, tmp_path, monkeypatch
):
    place = tmp_path / "new" / "out"

    def fail(runs: Any, output: Path, *_: Any, **_flags: Any) -> None:
        (output / "empty" / "deeper").mkdir(parents=True)
        for name in left:
            (output / name).touch()
        raise error

    monkeypatch.setattr("harness.report.folder.read_runs", Mock())
    monkeypatch.setattr("harness.report.folder.write_report", fail)
    assert main(["report", "run", "--output", str(place)]) == code
    assert sorted(tmp_path.rglob("*")) == ([place.parent, place, place / "records.jsonl"] if left else [])


@pytest.mark.parametrize("name", ["baselines", "zoo"])
def test_another_package_of_the_same_name_is_refused(name: str, tmp_path: Path):
    """PyPI has a ``baselines``, and ``python -m`` looks into the folder first."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(LIST, cwd=tmp_path, env=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {name!r} is {str(tmp_path / name)!r}, not the package beside" in done.stderr


def test_two_runs_in_one_folder(tmp_path: Path, capsys):
    with lock_folder(tmp_path / "run"):
        assert main([*RANDOM.split(), "--output", str(tmp_path / "run")]) == 2
    assert f"another run is writing to {str(tmp_path / 'run')!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_in_its_first_dataset_the_same_command_goes_on(tmp_path: Path, runs):
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = [*TWO_BATCHES.split(), "--output"]
    assert main([*command, str(whole)]) == 0
    words = [sys.executable, "-P", "-m", "harness", *command, str(out)]  # the package that is tested, not this folder
    kill_when(
        lambda _: list(out.glob("records.unfinished/*/*/*.parquet")), words, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert main([*command, str(out)]) == 0
    assert [count for _, count in runs] == [32, 8, 8]  # the whole, and the rest
    pairs = zip(read_records(whole / "records.jsonl"), read_records(out / "records.jsonl"), strict=True)
    assert all(replace(own, created=other.created) == other for own, other in pairs)
    assert not (out / "records.unfinished").exists()


@pytest.mark.parametrize("command", [
    "choose --model clip_vit_s14 --dataset photos --min-cosine 0.9",
    "export --model clip_vit_s14_tome50 --runtime exported-program --limit 2",
    "fit predictor --model clip_vit_s14 --dataset photos",
    "fit prompts --model clip_vit_s14 --dataset emoji --shots 1",
    "fit recovery --model clip_vit_s14_tome50 --dataset photos",
    "fit schedule --model clip_vit_s14 --dataset photos",
])  # fmt: skip
def test_two_runs_into_one_file(command: str, tmp_path: Path, capsys):
    path = tmp_path / ("out.json" if command.startswith("choose") else "out.pt2")
    with lock_file(path):
        assert main([*command.split(), "--output", str(path)]) == 2
    assert f"another run is writing to {str(path)!r}: wait for its end" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "after"), [
    (["list"], "nothing is left half-written; the same command starts again"),
    (["rank", "--dataset", "photos"], "finished work is kept, and the same command continues it"),
])  # fmt: skip
def test_a_stopped_run_says_what_becomes_of_its_work(command: list[str], after: str, monkeypatch, capsys):
    stopped = replace(COMMANDS[command[0]], run=Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setitem(COMMANDS, command[0], stopped)
    assert main(command) == 130
    assert capsys.readouterr().err == f"stopped; {after}\n"


def test_warnings_and_lack_of_memory_are_a_line_each(command, capsys):
    def run(*_: Any) -> Shown:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("beware", stacklevel=1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you\nat line 7")

    command(run)
    assert main(["list"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "beware"
    assert "out of memory (DefaultCPUAllocator: can't allocate memory: you); free some" in second


def test_the_page_has_pictures_of_what_methods_leave(tmp_path: Path, capsys):
    assert main([*RANDOM.replace("--batches 1 --rounds 6", "--batches").split(), "--output", str(tmp_path)]) == 0
    [gallery] = tmp_path.glob("gallery_emoji_*.jpg")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert 'alt="What is left of 4 images at keep 60' in page
    assert base64.b64encode(gallery.read_bytes()).decode() in page
    gallery.write_bytes(b"torn")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page")]) == 2
    assert repr(str(gallery)) in capsys.readouterr().err


def test_a_disk_that_gets_full_keeps_what_was_measured(tmp_path: Path, monkeypatch, capsys):
    def full(path: Path, content: bytes) -> None:
        raise NoRoomError(f"can't write {str(path)!r}: the disk is full; {len(content):,} bytes needed, 3 free")

    monkeypatch.setattr(folder, "write_whole", full)
    assert main([*RANDOM.replace("random", "evit").split(), "--output", str(tmp_path / "run")]) == 2
    assert len(read_records(tmp_path / "run" / "records.jsonl")) == 2
    assert "the disk is full; " in capsys.readouterr().err


@pytest.mark.command("list")
def test_the_list_has_all_there_is(predictor_file: Path, capsys):
    assert main(["list", "--json"]) == 0
    found = document(capsys)
    assert {one["size"]: one["tags"] for one in found["towers"]} == {size: [*SIZES[size].tags] for size in SIZES}
    predictors = {one["size"]: one["predictors"] for one in found["towers"]}
    assert (predictors["b16"], predictors["l14"]) == ({"openai": [3]}, {})
    assert [one["method"] for one in found["methods"]] == sorted(zoo.METHODS)
    assert [one["name"] for one in found["datasets"]] == list(list_datasets())
    [dtd] = [one for one in found["datasets"] if one["name"] == "dtd"]
    assert (dtd["classes"], dtd["train"], dtd["val"], dtd["test"]) == (47, 2820, 1128, 1692)
