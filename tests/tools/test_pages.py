"""The generated page of commands: what the parser says."""

import re
import subprocess
import sys
from pathlib import Path

from harness.cli.entry import COMMANDS
from tools.site import commands

ROOT = Path(__file__).parents[2]


def test_every_command_is_in_its_page_once_and_its_json_is_described():
    heads = re.findall(r"^### (.*)$", commands(), re.M)
    assert sorted(head for head in heads if head in COMMANDS) == sorted(COMMANDS)
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    described = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [path for path in COMMANDS if f"`{path}`" not in described] == []


def test_the_site_needs_nothing_that_its_environment_lacks():
    code = (
        "import runpy, sys; runpy.run_path('tools/site.py')['commands'](); print({'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
