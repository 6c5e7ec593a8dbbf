"""The commits that may have moved something: those between the expectation's and this one."""

import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.commit import git_commit

TOP = Path(__file__).parents[2]
MOST = 20  # commits that are named
PACKAGES = ("zoo", "baselines", "harness")
_DIRTY = "-dirty"


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """A range of commits.

    Attributes:
        begin: commits that the expectation comes from; the range begins after them.
        commits: short hash and subject of those that touch the packages, newest first.
        more: how many more there are.
        uncommitted: whether the packages have changes that no commit holds.
        note: why nothing can be said, else "".
    """

    begin: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    more: int = 0
    uncommitted: bool = False
    note: str = ""

    def lines(self) -> list[str]:
        """Say it in words."""
        if self.note:
            return [self.note]
        span = f"since {', '.join(self.begin)}"
        where = f"touch {', '.join(f'{name}/' for name in PACKAGES)}"
        if not self.commits and not self.uncommitted:
            return [f"no commit {span} does {where}: look at what is installed, and at the machine"]
        found = ["uncommitted changes"] if self.uncommitted else []
        found += self.commits
        if self.more:
            found.append(f"and {self.more} more")
        return [f"suspects, {span} ({where}):", *(f"  {one}" for one in found)]


def require_revision(name: str) -> None:
    """Refuse a revision that the checkout doesn't know; outside of one nothing is asked.

    Raises:
        ValueError: there is no such revision.
    """
    if git_commit() is not None and not _is_known(name):
        raise ValueError(
            f"--since {name!r}: this checkout has no such revision; expected a commit, branch or "
            "tag that `git log` takes"
        )


def suspects(since: str | None, commits: Collection[str | None]) -> Suspects | None:
    """Find the commits that may have moved something; None outside of a checkout, or without git.

    Args:
        since: revision after which they begin; None for the expectation's own commits.
        commits: of the records that moved.
    """
    if git_commit() is None:
        return None
    told = {one.removesuffix(_DIRTY) for one in commits if one is not None}
    begin = (since,) if since is not None else tuple(sorted(told))
    if not begin:
        return None
    if unknown := [one for one in begin if not _is_known(one)]:
        return Suspects(
            note=f"the expectation's commit {unknown[0]} isn't in this checkout, so no suspects "
            "are named; a whole clone has it (actions/checkout: fetch-depth: 0), or name another "
            "with --since"
        )
    bases = _git("merge-base", "--octopus", *begin) or begin[0]
    span = (f"{bases.strip()}..HEAD", "--", *PACKAGES)
    log = _git("log", "--no-merges", "--no-color", "--format=%h %s", *span)
    changed = _git("status", "--porcelain", "--", *PACKAGES)
    if log is None or changed is None:
        return None
    found = log.splitlines()
    return Suspects(
        begin=begin,
        commits=tuple(found[:MOST]),
        more=max(0, len(found) - MOST),
        uncommitted=bool(changed),
    )


def _is_known(name: str) -> bool:
    return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") is not None


def _git(*words: str) -> str | None:
    """Ask git about this checkout; None if it can't tell, or isn't installed."""
    command: Sequence[str] = ("git", *words)
    try:
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
