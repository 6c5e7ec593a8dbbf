"""The README's Python runs as it stands, and its figures are the ones a command wrote."""

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from PIL import Image

from harness.cli.entry import build_parser
from harness.records.averages import match_costs
from harness.records.record import read_records
from harness.report.groups import brief_tables, group_records, sections
from harness.report.tables import comparison_table, matched_table
from harness.report.writers import markdown
from harness.studies.questions import list_studies

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


# The weights that ship stand in for those that would be downloaded.
STAND_INS = {"clip_vit_b16": "clip_vit_s14", "openai": "imgfocus_lit"}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_runs(code, tmp_path):
    for name, ours in STAND_INS.items():
        assert name in code
        code = code.replace(name, ours)
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_is_what_report_writes_of_the_records():
    """The table between the marks is the first of docs/results/table.md, which `report` makes of records.jsonl."""
    table = markdown(brief_tables(group_records(read_records(RESULTS / "records.jsonl"))))
    assert (RESULTS / "table.md").read_text(encoding="utf-8").startswith(table)
    assert f"<!-- results -->\n{table.strip()}\n<!-- end -->" in README


def test_the_tables_at_equal_time_are_what_report_writes_of_the_records():
    table = (RESULTS / "equal_time.md").read_text(encoding="utf-8")
    tables = sections(group_records(read_records(RESULTS / "equal_time.jsonl")))
    assert table == markdown([table for table in tables if table.title.startswith("at equal time")])
    assert "(equal_time.md)" in (RESULTS / "main_job.md").read_text(encoding="utf-8")


def test_the_tables_of_the_final_split_are_what_the_command_writes_of_the_records():
    records = read_records(RESULTS / "final.jsonl.gz")
    groups = [list(group) for _, group in groupby(records, key=lambda record: record.dataset)]
    assert len(groups) == 6  # three datasets at equal keep rates, then at equal GFLOPs
    parts = [comparison_table(group) for group in groups[:3]]
    parts += [matched_table(match_costs(group, "patchrank")) for group in groups[3:]]
    tables = [replace(part, title=f"{part.title}; commit {records[0].git_commit}") for part in parts]
    page = (RESULTS / "final.md").read_text(encoding="utf-8")
    assert f"<!-- final -->\n{markdown(tables).strip()}\n<!-- end -->" in page


def test_a_page_leads_to_the_table_of_each_study():
    """One page of docs/results/ leads to each; its records are beside it."""
    pages = [page.read_text(encoding="utf-8") for page in RESULTS.glob("*.md")]
    tables = sorted((RESULTS / "studies").glob("*.md"))
    assert {path.stem for path in tables} == set(list_studies())
    for path in tables:
        assert sum(f"(studies/{path.name})" in page for page in pages) == 1
        names = {record.dataset for record in read_records(path.with_suffix(".jsonl.gz"))}
        assert {"fashion", "emoji"} <= names <= {"fashion", "emoji", "photos"}


def test_its_commands_are_commands():
    """Those of the section on vectors; `tests/harness/cli` checks the flags of the reference."""
    parser = build_parser()
    lines = [line for line in README.splitlines() if line.startswith("patchrank ")]
    assert [shlex.split(line)[1] for line in lines] == ["choose", "embed", "search", "export"]
    for line in lines:
        parser.parse_args(shlex.split(line, comments=True)[1:])


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"title": "name", "version": "version", "license": "license"}
    assert {ours: cited[ours] for ours in names} == {ours: project[theirs] for ours, theirs in names.items()}


def test_it_is_short_and_every_link_leads_somewhere():
    assert len(README.split()) <= 900
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", README):
        assert (ROOT / target).exists(), target
