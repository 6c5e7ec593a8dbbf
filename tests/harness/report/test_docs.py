"""docs/reports.md names the files that there are; its commands parse and its Python runs."""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from harness.cli.parser import build_parser
from harness.plots.accuracy import batches_of
from harness.progress import Progress
from harness.records import Record
from harness.report.folder import plots_of, write_report
from harness.report.groups import grouped

TEXT = (Path(__file__).parents[3] / "docs" / "reports.md").read_text("utf-8")


def block(kind: str) -> str:
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.M | re.S)
    return found


def first_cells(heading: str) -> list[str]:
    part = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)`", part, re.M)


def test_the_commands_parse():
    commands = [shlex.split(line) for line in block("sh").splitlines()]
    assert len(commands) == 2
    for command in commands:
        assert command[:4] == ["python", "-m", "harness", "report"]
        assert build_parser().parse_args(command[3:]).runs


def test_the_files_are_those_that_are_written(records: list[Record], tmp_path: Path):
    written = [path.name for path in write_report(records, tmp_path, Progress(), drawn=()).files]
    assert sorted(first_cells("Files")) == sorted([*written, "agreement.csv", "latency.csv"])


def test_the_plots_are_those_that_are_drawn(records: list[Record], dense: Record, row: Any):
    shots = [row(m, 0.6, 50, 2.0, shots=n) for m in ("random", "evit") for n in (16, 4)]
    plots = [plot.name for plot in plots_of(grouped([*records, *shots]))]
    told = [name for name in first_cells("The plots") if not name.endswith("_...")]
    batches = batches_of(grouped(records).groups)
    assert batches == [1, 32]
    drawn = [name for name in plots if not name.endswith("_batch32")]
    assert told == [*drawn, "ratio_batches"]  # of times, in tests/harness/plots/test_times.py


def test_the_python_runs(records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_report(records, tmp_path / "report", Progress(), drawn=())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block("python"), names)
    assert len(names["table"]) == len(records)
    assert names["best"]["top1_fraction"].iloc[0] == max(record.top1 for record in records)
    assert "clip_vit_s14_patchrank60" in out.getvalue()
