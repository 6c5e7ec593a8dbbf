"""The page on ``check`` says what the code does, and its workflow does what it says."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.apps.check.cases import BATCHES, KEEPS, LIMIT
from harness.apps.check.verdict import MEANS, Tolerances
from harness.cli.entry import build_parser

PAGE = (Path(__file__).parents[4] / "docs" / "check.md").read_text(encoding="utf-8")
[WORKFLOW] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
JOB: dict[str, Any] = yaml.safe_load(WORKFLOW)["jobs"]["check"]
STEPS = {step["name"]: step for step in JOB["steps"] if "name" in step}
COMMANDS = re.findall(r"^(?: +run: )?(patchrank .*?)(?: +#.*)?$", PAGE, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_taken_by_the_parser(command: str):
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert args.command == "check"


def test_commands_and_bounds_of_the_page_are_the_parsers_and_the_defaults():
    assert len(COMMANDS) == 7
    assert COMMANDS[-1] == STEPS["check"]["run"]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `--(\w+)`", PAGE, re.M)
    told = {flag: float(re.findall(r"[\d.]+", text)[0]) for text, flag in rows}
    names = (*MEANS, "slower")
    assert told == {name: getattr(Tolerances(), name) for name in names}
    assert f"{LIMIT} images each" in PAGE
    assert f"at batch {BATCHES[0]}," in PAGE
    assert " and ".join(f"{100 * keep:.0f}" for keep in KEEPS) in PAGE


def test_the_workflow_hands_on_the_file_that_it_writes():
    args = build_parser().parse_args(shlex.split(STEPS["check"]["run"])[1:])
    for step in ("summary", "comment"):
        assert f"hashFiles('{args.markdown}')" in STEPS[step]["if"]
        assert f"cat {args.markdown}" in STEPS[step]["run"]


@pytest.mark.parametrize(
    ("there", "expected"),
    [("", "repos/me/it/issues/7/comments"), ("42\n43", "--method PATCH repos/me/it/issues/comments/42")],
)
def test_the_workflow_posts_one_comment_and_changes_it_the_next_time(there: str, expected: str, tmp_path: Path):
    """Run its step with a ``gh`` that only notes what it is asked."""
    (tmp_path / "check.md").write_text("### check passed\n")
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/bash\nprintf "%s\\n" "$@" --end-- >> calls\ncat there\n')
    gh.chmod(gh.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "there").write_text(there)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for name, value in STEPS["comment"]["env"].items():
        filled = value.replace("${{ github.repository }}", "me/it")
        env[name] = filled.replace("${{ github.event.number }}", "7")
    # As GitHub runs a step.
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS["comment"]["run"]]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    asked, posted, _ = (tmp_path / "calls").read_text().split("--end--\n")
    assert asked.splitlines()[:3] == ["api", "repos/me/it/issues/7/comments", "--paginate"]
    assert 'startswith("<!-- patchrank check -->")' in asked
    assert posted.split() == ["api", *expected.split(), "-F", "body=@comment.md"]
    body = (tmp_path / "comment.md").read_text()
    assert body == "<!-- patchrank check -->\n### check passed\n"
