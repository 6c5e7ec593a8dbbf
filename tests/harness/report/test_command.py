"""The subcommand: files, figures for programs, and runs that can't be read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness.changes import read_run
from harness.cli import main
from harness.cli.parser import build_parser
from harness.progress import Progress
from harness.records import Record, write_records
from harness.report.command import run_report
from harness.report.folder import write_report
from harness.shown import Shown

RESULTS = Path(__file__).parents[3] / "docs" / "results"
PLOTS = (
    "accuracy_gflops", "accuracy_ms_batch1", "accuracy_ms_batch32", "accuracy_ratio_batch1",
    "accuracy_ratio_batch32", "tau_keep", "tokens_per_block",
)  # fmt: skip
TABLES = ("report.html", "summary.md", "table.csv", "table.md", "table.tex")


def shown(*words: str) -> Shown:
    args = build_parser().parse_args(["report", *words])
    return run_report(args, Console(quiet=True))


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


def test_a_committed_run_has_all_files_and_its_own_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """summary.md and table.md are to the last byte what stands in the repository."""
    folder = tmp_path / "made" / "here"
    assert main(["report", str(RESULTS), "--output", str(folder)]) == 0
    drawn = [f"{name}.{form}" for name in PLOTS for form in ("svg", "png")]
    assert sorted(path.name for path in folder.iterdir()) == sorted((*TABLES, *drawn))
    for name in ("summary.md", "table.md"):
        assert (folder / name).read_bytes() == (RESULTS / name).read_bytes()
    out = capsys.readouterr().out
    assert f"wrote {folder / 'report.html'} and {len(TABLES) + len(drawn) - 1} files" in out
    assert "Top-1 by shots: there is one number of shots only in fashion test" in out
    assert "Pareto fronts of fashion test" in out
    line = next(line for line in out.splitlines() if line.startswith("│ random 30 %"))
    assert "beaten by patchrank 30 %" in line


def test_data_are_figures_and_json(reported: tuple[Shown, Path], patchrank: Record):
    found, _ = reported
    data = json.loads(json.dumps(found.data, allow_nan=False))
    assert found.code == 0
    assert data["records"] == 7
    assert [Path(name).exists() for name in data["files"]] == [True] * len(data["files"])
    assert data["groups"][0]["conditions"]["device_name"] == patchrank.device_name
    rows = {row["model"]: row for row in data["groups"][0]["rows"]}
    row = rows[patchrank.model]
    assert row["top1_fraction"]["estimate"] == patchrank.top1
    assert row["gflops"] == patchrank.gflops
    assert row["latency"][0]["median_ms"] == patchrank.latency[0].median_ms
    assert row["pareto"]["gflops"] == {"verdict": "front", "beaten_by": None}
    assert rows["clip_vit_s14_random30"]["pareto"]["gflops"]["verdict"] in {"front", "open"}


def test_several_runs_are_one_report(
    run: Path, tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.report.folder.plots_of", lambda found: [])
    other = tmp_path / "other.jsonl"
    later = "2026-03-01T00:00:00+00:00"
    write_records(
        other,
        [
            *(replace(record, device_name="another processor") for record in records[:4]),
            replace(records[0], created=later),
        ],
    )
    data = shown(str(run), str(other), "--output", str(tmp_path / "out")).data
    assert (data["records"], data["replaced"]) == (12, 1)
    names = [group["name"] for group in data["groups"]]
    assert len(names) == 3
    assert names[0].endswith("; on a processor")
    assert names[2].endswith("; on another processor")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "1 earlier measurement" in page


def test_the_title_is_the_page_s(reported: tuple[Shown, Path]):
    page = (reported[1] / "report.html").read_text("utf-8")
    assert "<title>Two &lt;machines&gt;</title>" in page


def test_the_same_runs_give_the_same_bytes(run: Path, reported: tuple[Shown, Path], tmp_path: Path):
    shown(str(run), "--output", str(tmp_path / "again"), "--title", "Two <machines>")
    folders = (reported[1], tmp_path / "again")
    made = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert made[0] == made[1]
    assert made[0]["accuracy_gflops.png"].startswith(b"\x89PNG")


def test_compare_draws_only_what_is_asked_for(tmp_path: Path, records: list[Record]):
    write_report(records, tmp_path, Progress(), drawn=("accuracy_gflops.svg", "gone.svg"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted((*TABLES, "accuracy_gflops.svg"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("gone", "run 'gone': there is no such file or folder"),
        ("empty", "run 'empty': it holds no records.jsonl"),
        ("empty.jsonl", "run 'empty.jsonl': empty.jsonl holds no records"),
        ("bad.jsonl", "bad.jsonl, line 1: "),
    ],
)
def test_runs_that_cannot_be_read(
    given: str,
    match: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run)
    Path("empty").mkdir()
    Path("empty.jsonl").touch()
    Path("bad.jsonl").write_text('{"schema_version": 1}\n')
    assert main(["report", "run", given, "--output", "out"]) == 2
    assert match in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_output_that_is_a_file_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "out").touch()
    assert main(["report", str(run), "--output", str(tmp_path / "out")]) == 2
    assert "is a file; expected a folder for the report" in capsys.readouterr().err


def test_no_run_is_wrong_use(capsys: pytest.CaptureFixture[str]):
    assert main(["report"]) == 2
    assert "RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted((RESULTS / "studies").glob("*.jsonl")), ids=lambda p: p.stem
)
def test_records_of_a_study_are_grouped_and_none_is_lost(path: Path):
    from harness.report.groups import grouped
    from harness.report.markdown import markdown_tables

    records = read_run(path)
    found = grouped(records)
    rows = [record for group in found.groups for row in group.rows for record in row.records]
    assert len(rows) + found.replaced == len(records)
    assert len({group.name for group in found.groups}) == len(found.groups)
    assert markdown_tables(found).count("### ") >= len(found.groups)
