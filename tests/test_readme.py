"""The README's Python runs as it stands, and its figures are the ones a command wrote."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_is_what_compare_wrote():
    """The table between the marks is docs/results/summary.md, which `compare` writes, unchanged."""
    table = (ROOT / "docs" / "results" / "summary.md").read_text(encoding="utf-8").strip()
    assert f"<!-- results -->\n{table}\n<!-- end -->" in README


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
