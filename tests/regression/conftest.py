"""A benchmark smaller still, measured once by the code as it is, for plants to be seen in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from harness.base.table import Shown
from harness.cli.apps import run_check
from harness.cli.entry import build_parser

ROWS = ("clsattn", "evit:fuse=true", "patchrank", "tome:reduce_at=[2,4,6]", "golden")
SMALL = ("--dataset", "fashion", "--keeps", "0.3", "--limit", "24")


@pytest.fixture(scope="session")
def run() -> Callable[..., Shown]:
    """Run ``check`` with words of a command line, quietly and without timing."""

    def call(*words: str) -> Shown:
        args = build_parser().parse_args(["check", "--no-latency", *words])
        return run_check(args, Console(quiet=True))

    return call


@pytest.fixture(scope="session")
def small(run: Callable[..., Shown], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write an expectation of 24 images at keep 30."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        file = tmp_path_factory.mktemp("expected") / "small.jsonl"
        assert run(str(file), "--update", *SMALL, "--methods", *ROWS).code == 0
        yield file


@pytest.fixture
def check(run: Callable[..., Shown], small: Path) -> Callable[..., Shown]:
    """Check some methods of the small benchmark."""
    return lambda *methods: run(str(small), "--methods", *methods)


@pytest.fixture(scope="session")
def captions(run: Callable[..., Shown], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an expectation of retrieval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        file = tmp_path_factory.mktemp("expected") / "captions.jsonl"
        assert run(str(file), "--update", "--dataset", "emoji-captions", "--methods", "dense").code == 0
        return file
