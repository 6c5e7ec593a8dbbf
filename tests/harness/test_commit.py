"""The commit that a record names."""

import re
import subprocess

from harness import git_commit


def test_the_commit_is_told_only_from_a_checkout_of_this_package(monkeypatch, tmp_path):
    module = tmp_path / "harness" / "__init__.py"
    monkeypatch.setattr("harness.__file__", str(module))
    git_commit.cache_clear()
    assert git_commit() is None
    module.parent.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    git_commit.cache_clear()
    assert re.fullmatch(r"[0-9a-f]{12}", git_commit() or "")
    git_commit.cache_clear()
