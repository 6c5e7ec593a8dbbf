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


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_runs(code, tmp_path):
    """With the weights that ship instead of those that would be downloaded."""
    for name, ours in {"clip_vit_b16": "clip_vit_s14", "openai": "imgfocus_lit"}.items():
        assert name in code
        code = code.replace(name, ours)
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tables_are_what_report_writes_of_the_records():
    table = markdown(brief_tables(group_records(read_records(RESULTS / "records.jsonl"))))
    assert (RESULTS / "table.md").read_text(encoding="utf-8").startswith(table)
    assert f"<!-- results -->\n{table.strip()}\n<!-- end -->" in README
    tables = sections(group_records(read_records(RESULTS / "equal_time.jsonl")))
    at_equal_time = markdown([table for table in tables if table.title.startswith("at equal time")])
    assert (RESULTS / "equal_time.md").read_text(encoding="utf-8") == at_equal_time


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
    pages = [page.read_text(encoding="utf-8") for page in RESULTS.glob("*.md")]
    tables = sorted((RESULTS / "studies").glob("*.md"))
    assert {path.stem for path in tables} == set(list_studies())
    for path in tables:
        assert sum(f"(studies/{path.name})" in page for page in pages) == 1
        names = {record.dataset for record in read_records(path.with_suffix(".jsonl.gz"))}
        assert {"fashion", "emoji"} <= names <= {"fashion", "emoji", "photos"}


def test_its_commands_are_commands_and_its_links_lead_somewhere():
    lines = re.findall(r"^patchrank (.*)$", README, re.M)
    assert len(lines) == 4
    for line in lines:
        build_parser().parse_args(shlex.split(line, comments=True))
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", README):
        assert (ROOT / target).exists(), target


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"title": "name", "version": "version", "license": "license"}
    assert {ours: cited[ours] for ours in names} == {ours: project[theirs] for ours, theirs in names.items()}
