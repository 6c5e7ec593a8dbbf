"""Moved to `harness.console`; this name goes when the other rooms import it from there."""

from harness.console import Progress

__all__ = ["Progress"]
