"""Runs hold records, times or both, and count once however often they are given."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.latency.record import LatencyRecord, write_latencies
from harness.progress import Progress
from harness.records import Record, write_records
from harness.report.folder import write_report
from harness.report.runs import latencies_in, once, records_in

Make = Callable[..., LatencyRecord]


@pytest.fixture
def times(latency_record: Make) -> list[LatencyRecord]:
    reduced = {"model": "clip_vit_b16_tome60", "method": "tome", "keep": 0.6}
    faster = tuple(0.7 * ms for ms in (10.0, 11.0, 10.5, 10.2, 10.1, 10.3))
    return [
        latency_record(),
        latency_record(faster, (10.0, 11.0, 10.5, 10.2, 10.1, 10.3), **reduced),
    ]


@pytest.fixture
def run(tmp_path: Path, records: list[Record], times: list[LatencyRecord]) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_records(folder / "records.jsonl", records[:2])
    write_latencies(folder / "latency.jsonl", times)
    return folder


def test_a_run_is_once_there_as_a_folder_or_as_its_file(run: Path, tmp_path: Path):
    file, other = run / "records.jsonl", tmp_path / "other"
    assert once([run, other, file, run]) == [run, other]
    assert once([file, run]) == [file]
    assert once([run / ".." / "run", run]) == [run / ".." / "run"]


def test_times_lie_beside_the_records_or_are_the_run(run: Path, tmp_path: Path, times):
    away = tmp_path / "gpu_times.jsonl"
    away.write_bytes((run / "latency.jsonl").read_bytes())
    told: list[str] = []
    for given in (run, run / "records.jsonl", run / "latency.jsonl", away):
        assert latencies_in([given], told.append) == [(str(given), time) for time in times]
    assert len(latencies_in([run, run / "latency.jsonl"], told.append)) == 2
    assert records_in(away) == records_in(run / "latency.jsonl") == []
    assert len(records_in(run)) == 2
    assert told == []


def test_torn_times_beside_records_are_told_and_alone_refused(run: Path):
    file = run / "latency.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    told: list[str] = []
    assert latencies_in([run], told.append) == []
    assert "latency.jsonl" in told[0]
    with pytest.raises(ValueError, match=r"latency\.jsonl"):
        latencies_in([file], told.append)
    (run / "records.jsonl").unlink()
    with pytest.raises(ValueError, match=r"latency\.jsonl"):
        latencies_in([run], told.append)


def test_times_that_are_none_are_refused(run: Path):
    (run / "records.jsonl").unlink()
    (run / "latency.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"latency\.jsonl holds no times"):
        latencies_in([run], print)


def test_a_run_of_times_alone_is_a_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (run / "records.jsonl").unlink()
    assert main(["report", str(run), "--output", str(tmp_path / "out"), "--json"]) == 0
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


def test_lines_of_both_csv_say_which_run_they_are_from(run: Path, tmp_path: Path, times):
    other = tmp_path / "other"
    other.mkdir()
    write_records(other / "records.jsonl", records_in(run)[:1])
    out = tmp_path / "out"
    assert main(["report", str(run), str(other), str(run), "--output", str(out)]) == 0
    table = list(csv.DictReader(io.StringIO((out / "table.csv").read_text("utf-8"))))
    assert [line["run"] for line in table] == [str(run), str(run), str(other)]
    timed = list(csv.DictReader(io.StringIO((out / "latency.csv").read_text("utf-8"))))
    assert [line["run"] for line in timed] == [str(run)] * 2
    assert [line["model"] for line in timed] == [time.model for time in times]
    assert timed[1]["ratio_to_dense"] == str(times[1].ratio_to_dense)
    assert timed[0]["machine_device_name"] == "A CPU"
    assert timed[0]["ratio_to_dense"] == ""


def test_what_is_left_out_is_told_on_the_page_and_beside_it(
    run: Path, tmp_path: Path, records: list[Record]
):
    from rich.console import Console

    (run / "latency.jsonl").write_text('{"torn')
    console = Console(record=True, width=300)
    written = write_report(records, tmp_path / "out", Progress(console), runs=[run], drawn=())
    [reason] = written.left_out
    assert f"left out of the report: {reason}" in console.export_text()
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "These files could not be read" in page
    assert "latency.jsonl" in page.partition("These files could not be read")[2]
    assert "These files" not in (tmp_path / "out" / "table.md").read_text("utf-8")
