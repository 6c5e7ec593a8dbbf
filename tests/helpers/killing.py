"""Processes that are killed while they work, as by the system for lack of memory."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def kill_when(
    ready: Callable[[int], object], command: Sequence[str | Path], *, limit_s: float = 300, **how: Any
) -> None:
    """Run a command, and kill its process as soon as ``ready`` of its id holds, which it must do before it ends."""
    limit = time.monotonic() + limit_s
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **how) as process:
        try:
            while not ready(process.pid):
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.001)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
