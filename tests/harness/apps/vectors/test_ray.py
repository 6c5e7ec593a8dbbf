"""Ray's actors, one of which is really killed, write the same bytes as one process."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.apps.vectors.embed import Job, embed
from harness.base import workers as module
from harness.base.store import shard_paths
from harness.base.terminal import Progress
from harness.cli import main

Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """Start a real Ray on this machine."""
    ray = pytest.importorskip("ray")
    settings = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as of the reference
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(num_cpus=3, **settings)
        yield
        ray.shutdown()


def actors() -> list[int]:
    """Return the ids of the processes that run Ray's actors."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds workers in /proc")
def test_a_killed_worker_changes_no_byte(
    job: Callable[..., Job], pictures: Path, tower: str, tmp_path: Path, files: Files, monkeypatch, capsys
):
    """Each worker decodes in a process of its own."""
    small: dict[str, Any] = {"batch": 1, "shard_size": 1}
    embed(job(out=tmp_path / "whole", **small), Progress())
    others, killed, out = set(actors()), list[int](), tmp_path / "vectors"
    show = Progress.long

    def watched(self: Progress, *args: Any, **facts: Any) -> Any:
        """Kill one worker as soon as there are three shards."""
        context = show(self, *args, **facts)
        inner = context.__enter__()

        class Watched:
            def __enter__(self) -> Any:
                return call

            def __exit__(self, *error: object) -> Any:
                return context.__exit__(*error)  # type: ignore[arg-type]

        def call(done: int) -> None:
            if not killed and len(shard_paths(out)) >= 3:
                killed.append(next(iter(set(actors()) - others)))
                os.kill(killed[0], signal.SIGKILL)
            inner(done)

        return Watched()

    monkeypatch.setattr(Progress, "long", watched)
    words = ["embed", str(pictures), "--model", tower, "--batch", "1", "--shard-size", "1", "--output", str(out)]
    assert main([*words, "--workers", "2", "--decoders", "1"]) == 0
    assert len(killed) == 1
    assert files(out) == files(tmp_path / "whole")
    output, errors = capsys.readouterr()
    assert f"wrote {out}: 40 of 44 images; 4 can't be embedded" in output
    assert re.search(r"binds: the model does \S+ images/s, decoding by 2 processes \S+ images/s", output)
    assert "44 of 44 images" in errors
    limit = time.monotonic() + 60
    while Path(f"/proc/{killed[0]}").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_without_ray_the_error_names_the_extra(pictures: Path, tower: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    words = ["embed", str(pictures), "--model", tower, "--output", str(tmp_path / "vectors")]
    assert main([*words, "--workers", "2"]) == 2
    assert "--workers 2 needs Ray: pip install 'clip-patchrank[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "vectors").exists()
