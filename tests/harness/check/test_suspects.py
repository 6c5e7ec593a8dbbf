"""Suspects come from the checkout's own history, and nothing fails for want of one."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.check import suspects as module
from harness.check.suspects import MOST, Suspects, require_revision, suspects

Commit = Callable[[str, str], str]


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commit:
    """Make a checkout take the place of this one; commit a file with a subject, return its hash."""

    def git(*words: str) -> str:
        told = ("-c", "user.name=x", "-c", "user.email=x@y", *words)
        done = subprocess.run(
            ["git", *told], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def make(file: str, subject: str) -> str:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(subject)
        git("add", "-A")
        git("commit", "-qm", subject)
        return git("rev-parse", "--short=12", "HEAD")

    git("init", "-q")
    monkeypatch.setattr(module, "TOP", tmp_path)
    monkeypatch.setattr(module, "git_commit", lambda: "here")
    return make


def test_commits_that_touch_the_packages_are_named_newest_first(commit: Commit):
    begin = commit("zoo/a.py", "before")
    commit("baselines/b.py", "first")
    commit("docs/c.md", "no code")
    commit("harness/d.py", "second")
    found = suspects(None, [f"{begin}-dirty", None])
    assert found is not None
    assert [one.partition(" ")[2] for one in found.commits] == ["second", "first"]
    assert (found.begin, found.more, found.uncommitted) == ((begin,), 0, False)
    assert found.lines()[0] == f"suspects, since {begin} (touch zoo/, baselines/, harness/):"


def test_since_takes_the_place_of_the_expectations_commit(commit: Commit):
    begin = commit("zoo/a.py", "before")
    later = commit("zoo/b.py", "between")
    commit("zoo/c.py", "after")
    found = suspects(later, [begin])
    assert found is not None
    assert [one.partition(" ")[2] for one in found.commits] == ["after"]


def test_of_several_commits_the_range_begins_at_the_oldest(commit: Commit):
    begin = commit("zoo/a.py", "before")
    later = commit("zoo/b.py", "between")
    found = suspects(None, [later, begin])
    assert found is not None
    assert [one.partition(" ")[2] for one in found.commits] == ["between"]


def test_changes_without_a_commit_are_suspects(commit: Commit, tmp_path: Path):
    begin = commit("zoo/a.py", "before")
    (tmp_path / "zoo" / "a.py").write_text("changed")
    found = suspects(None, [begin])
    assert found is not None
    assert found.lines()[1:] == ["  uncommitted changes"]


def test_many_commits_are_cut_short_and_counted(commit: Commit):
    begin = commit("zoo/a.py", "before")
    for number in range(MOST + 3):
        commit("zoo/a.py", f"number {number}")
    found = suspects(None, [begin])
    assert found is not None
    assert (len(found.commits), found.more) == (MOST, 3)
    assert found.lines()[-1] == "  and 3 more"


def test_without_a_suspect_it_says_where_else_to_look(commit: Commit):
    begin = commit("docs/a.md", "before")
    found = suspects(None, [begin])
    assert found is not None
    assert "look at what is installed" in found.lines()[0]


def test_a_commit_that_a_shallow_clone_lacks_is_told(commit: Commit):
    commit("zoo/a.py", "before")
    found = suspects(None, ["0123456789ab"])
    assert found == Suspects(note=found.note if found else "")
    assert "0123456789ab isn't in this checkout" in found.note
    assert "fetch-depth: 0" in found.note


def test_nothing_is_said_outside_of_a_checkout_or_without_a_commit(
    commit: Commit, monkeypatch: pytest.MonkeyPatch
):
    commit("zoo/a.py", "before")
    assert suspects(None, [None]) is None
    monkeypatch.setattr(module, "git_commit", lambda: None)
    assert suspects("HEAD", ["0123456789ab"]) is None
    require_revision("whatever")


def test_nothing_fails_without_git(commit: Commit, monkeypatch: pytest.MonkeyPatch):
    begin = commit("zoo/a.py", "before")
    monkeypatch.setenv("PATH", "")
    found = suspects(None, [begin])
    assert found is None or found.note


def test_an_unknown_revision_is_refused(commit: Commit):
    commit("zoo/a.py", "before")
    with pytest.raises(ValueError, match=r"--since 'nowhere': this checkout has no such revision"):
        require_revision("nowhere")
    require_revision("HEAD")
