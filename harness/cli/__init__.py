"""The command line: ``patchrank`` and ``python -m harness``."""

from harness.cli.entry import main

__all__ = ["main"]
