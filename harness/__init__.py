"""Measure pruned CLIP vision transformers: accuracy, cost, latency, agreement of rankings."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def git_commit() -> str | None:
    """Return the commit this package is run from, "-dirty" if changed; None if not from a checkout.

    Only a checkout whose top holds this very package counts, not one that an environment lies in.
    """
    top = Path(__file__).parents[1]
    if not (top / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        done = subprocess.run(command, cwd=top, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
