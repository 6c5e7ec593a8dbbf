"""timm's own tests, from its source distribution; run by tox's ``clients`` environment."""

import subprocess
import sys
import tarfile
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

PINNED = Path(__file__).with_name("timm-sdist.txt")
# What timm marks its tests with; strict markers refuse what isn't declared.
TIMM_MARKERS = (
    "base", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features", "fxforward",
    "fxbackward", "timeout",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-names", action="store_true", help="run timm's tests over every name")


def pytest_configure(config: pytest.Config) -> None:
    for marker in TIMM_MARKERS:
        config.addinivalue_line("markers", f"{marker}: timm's")


@pytest.fixture(scope="session")
def timm_tests(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """timm's tests/test_models.py, as pip brings it; what can't be had is an error, no skip."""
    folder = tmp_path_factory.mktemp("timm")
    options = ["--no-deps", "--no-binary", "timm", "--require-hashes", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(PINNED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist] = folder.glob("timm-*.tar.gz")
    member = f"{sdist.name.removesuffix('.tar.gz')}/tests/test_models.py"
    with tarfile.open(sdist) as archive:
        archive.extract(member, folder, filter="data")
    spec = util.spec_from_file_location("timm_test_models", folder / member)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
