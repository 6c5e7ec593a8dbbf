"""``--version``: of the package, and of what it rests on."""

import argparse
import platform
import sys
from importlib import metadata
from typing import Any

PACKAGE = "clip-patchrank"
RESTS_ON = ("torch", "timm", "open_clip_torch")


def versions() -> dict[str, str]:
    """Return the versions by name, without importing what they are of."""
    named = {PACKAGE: metadata.version(PACKAGE), "python": platform.python_version()}
    return named | {name: metadata.version(name) for name in RESTS_ON}


class Version(argparse.Action):
    """Print the versions and exit with code 0."""

    def __init__(self, **kwargs: Any) -> None:
        """Take no value."""
        super().__init__(nargs=0, **{"default": argparse.SUPPRESS} | kwargs)

    def __call__(self, parser: Any, *args: Any) -> None:
        """Print them."""
        from harness.commit import git_commit

        found = versions()
        package = f"{PACKAGE} {found.pop(PACKAGE)}"
        if (commit := git_commit()) is not None:
            package += f", commit {commit}"
        rest = ", ".join(f"{name} {version}" for name, version in found.items())
        parser._print_message(f"{package}\n{rest}\n", sys.stdout)
        parser.exit()
