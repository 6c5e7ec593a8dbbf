"""The report as a folder: files, figures for programs, what runs hold, and docs/reports.md."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.base.table import Shown
from harness.base.terminal import Progress
from harness.cli.entry import build_parser, main
from harness.records.record import Record, write_records
from harness.records.times import LatencyRecord, write_latencies
from harness.report.folder import latencies_in, records_in, write_report

RESULTS = Path(__file__).parents[3] / "docs" / "results"
COSTS = ("gflops", "ratio_batch1", "ratio_batch8")
PLOTS = (
    *(f"{quality}_{cost}" for quality in ("accuracy", "fidelity") for cost in COSTS),
    "tau_keep",
    "tokens_per_block",
)
TABLES = ("report.html", "summary.md", "table.csv", "table.md", "table.tex")


def shown(*words: str) -> Shown:
    args = build_parser().parse_args(["report", *words])
    return args.run(args, Console(quiet=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    folder.mkdir()
    write_records(folder / "records.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def reported(run: Path) -> tuple[Shown, Path]:
    """The run's whole report: drawing it takes seconds, so tests that only read it share it."""
    out = run.parent / "shared"
    return shown(str(run), "--output", str(out), "--title", "Two <machines>"), out


def test_a_committed_run_has_all_files_and_its_own_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The table in Markdown is to the last byte what stands in the repository."""
    folder = tmp_path / "made" / "here"
    assert main(["report", str(RESULTS), "--output", str(folder)]) == 0
    drawn = [f"{name}.{form}" for name in PLOTS for form in ("svg", "png")]
    assert sorted(path.name for path in folder.iterdir()) == sorted((*TABLES, "brief.md", *drawn))
    for name in ("brief.md",):
        assert (folder / name).read_bytes() == (RESULTS / name).read_bytes()
    out = capsys.readouterr().out
    assert f"wrote {folder / 'report.html'} and {len(TABLES) + len(drawn)} files" in out
    assert "Top-1 by shots: not measured; patchrank compare --shots 0 1 4 16 measures it" in out
    assert "Nearness to dense by GFLOPs: On the front: " in out
    assert "random 30 % (by rankmerge 30 %)" in out


def test_data_are_figures_and_json(reported: tuple[Shown, Path], patchrank: Record):
    shown, _ = reported
    data = json.loads(json.dumps(shown.data, allow_nan=False))
    assert (shown.code, data["records"]) == (0, 7)
    assert all(Path(name).exists() for name in data["files"])
    assert data["groups"][0]["conditions"]["device_name"] == patchrank.device_name
    rows = {row["model"]: row for row in data["groups"][0]["rows"]}
    row = rows[patchrank.model]
    assert (row["top1_fraction"]["estimate"], row["gflops"]) == (patchrank.mean("top1"), patchrank.mean("gflops"))
    assert row["latency"][0]["median_ms"] == patchrank.latency[0].median_ms
    assert row["pareto"]["gflops"] == {"verdict": "front", "beaten_by": None}
    assert rows["clip_vit_s14_random30"]["pareto"]["gflops"]["verdict"] in {"front", "open"}


def test_the_same_runs_give_the_same_bytes_in_place_of_the_earlier_ones(reported: tuple[Shown, Path], run: Path):
    folder = reported[1]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "report.html").write_text("older")
    shown(str(run), "--output", str(folder), "--title", "Two <machines>")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before["accuracy_gflops.png"].startswith(b"\x89PNG")


def test_compare_draws_only_what_is_asked_for(tmp_path: Path, records: list[Record]):
    write_report(records, tmp_path, Progress(), drawn=("accuracy_gflops.svg", "gone.svg"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted((*TABLES, "accuracy_gflops.svg"))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gone", "run 'gone': there is no such file or folder"),
        ("empty", "run 'empty': it holds no records.jsonl"),
        ("empty.jsonl", "run 'empty.jsonl': empty.jsonl holds no records"),
        ("bad.jsonl", "bad.jsonl, line 1: "),
        ("run", "is a file; expected a folder for the report"),
    ],
)
def test_refusals(
    name: str, match: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run)
    Path("empty").mkdir()
    Path("empty.jsonl").touch()
    Path("bad.jsonl").write_text('{"schema_version": 1}\n')
    out = "empty.jsonl" if name == "run" else "out"
    assert main(["report", "run", name, "--output", out]) == 2
    assert match in capsys.readouterr().err
    assert not Path("out").exists()


Make = Callable[..., LatencyRecord]


@pytest.fixture
def times(latency_record: Make, reduced_time: Make) -> list[LatencyRecord]:
    return [latency_record(), reduced_time("tome", 0.7)]


@pytest.fixture
def timed_run(tmp_path: Path, records: list[Record], times: list[LatencyRecord]) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_records(folder / "records.jsonl", records[:2])
    write_latencies(folder / "latency.jsonl", times)
    return folder


def test_times_lie_beside_the_records_or_are_the_run(timed_run: Path, tmp_path: Path, times):
    away = tmp_path / "gpu_times.jsonl"
    away.write_bytes((timed_run / "latency.jsonl").read_bytes())
    reasons: list[str] = []
    for run in (timed_run, timed_run / "records.jsonl", timed_run / "latency.jsonl", away):
        assert latencies_in([run], reasons.append) == [(str(run), time) for time in times]
    assert len(latencies_in([timed_run, timed_run / "latency.jsonl"], reasons.append)) == 2
    assert records_in(away) == records_in(timed_run / "latency.jsonl") == []
    assert (len(records_in(timed_run)), reasons) == (2, [])


def test_torn_times_beside_records_are_named_and_alone_refused(timed_run: Path):
    file = timed_run / "latency.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    reasons: list[str] = []
    assert latencies_in([timed_run], reasons.append) == []
    assert "latency.jsonl" in reasons[0]
    with pytest.raises(ValueError, match=r"latency\.jsonl"):
        latencies_in([file], reasons.append)
    (timed_run / "records.jsonl").unlink()
    with pytest.raises(ValueError, match=r"latency\.jsonl"):
        latencies_in([timed_run], reasons.append)
    file.write_text("")
    with pytest.raises(ValueError, match=r"latency\.jsonl holds no times"):
        latencies_in([timed_run], reasons.append)


def test_a_run_of_times_alone_is_a_report(timed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (timed_run / "records.jsonl").unlink()
    assert main(["report", str(timed_run), "--output", str(tmp_path / "out"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["records"], data["groups"]) == (0, [])
    assert [len(group["records"]) for group in data["latency"]] == [2]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "latency.csv", "ratio_batches.png", "ratio_batches.svg", "report.html", "table.md",
        "table.tex",
    ]  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Times alone, without records of accuracy." in page
    assert "tome60" in page


def test_lines_of_both_csv_say_which_run_they_are_from(timed_run: Path, tmp_path: Path, times):
    other = tmp_path / "other"
    other.mkdir()
    write_records(other / "records.jsonl", records_in(timed_run)[:1])
    out = tmp_path / "out"
    assert main(["report", str(timed_run), str(other), str(timed_run), "--output", str(out)]) == 0
    table = list(csv.DictReader(io.StringIO((out / "table.csv").read_text("utf-8"))))
    assert [line["run"] for line in table] == [str(timed_run), str(timed_run), str(other)]
    timed = list(csv.DictReader(io.StringIO((out / "latency.csv").read_text("utf-8"))))
    assert [line["run"] for line in timed] == [str(timed_run)] * 2
    assert [line["model"] for line in timed] == [time.model for time in times]
    assert timed[1]["ratio_to_dense"] == str(times[1].times.ratio_to_dense)
    assert timed[0]["machine_device_name"] == "A CPU"
    assert timed[0]["ratio_to_dense"] == ""


TEXT = (Path(__file__).parents[3] / "docs" / "reports.md").read_text("utf-8")


def block(kind: str) -> str:
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.M | re.S)
    return found


def first_cells(heading: str) -> list[str]:
    part = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)`", part, re.M)


def test_the_files_are_those_that_are_written(records: list[Record], tmp_path: Path):
    written = [path.name for path in write_report(records, tmp_path, Progress(), drawn=()).files]
    assert sorted(first_cells("Files")) == sorted(
        [*written, "agreement.csv", "brief.md", "equal_time.md", "latency.csv"]
    )


def test_the_python_runs(records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_report(records, tmp_path / "report", Progress(), drawn=())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block("python"), names)
    assert len(names["table"]) == len(records)
    assert names["best"]["top1_fraction"].iloc[0] == max(record.mean("top1") for record in records)
    assert "clip_vit_s14_patchrank60" in out.getvalue()
