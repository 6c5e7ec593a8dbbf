"""Defaults that are read from source are those that the modules have."""

import importlib
import re
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from harness.flags.declared import declared

FLAGS = Path(__file__).parents[2] / "harness" / "flags"
ASKED = sorted(
    {
        (module, name)
        for path in FLAGS.glob("*.py")
        for module, name in re.findall(r'declared\("([\w.]+)", "(\w+)"\)', path.read_text("utf-8"))
    }
)


@pytest.mark.parametrize(("module", "name"), ASKED)
def test_what_flags_read_is_what_the_module_has(module: str, name: str):
    real = getattr(importlib.import_module(module), name)
    found = declared(module, name)
    if is_dataclass(real):
        real = {f.name: f.default for f in fields(real) if f.default is not MISSING}
        found = vars(found)
    assert found == real


def test_they_are_the_settings_of_four_classes():
    classes = {name for _, name in ASKED if name[1].islower()}
    assert classes == {"FitConfig", "LatencyPlan", "Plan", "TuneConfig"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "settings_here"
    folder.mkdir()
    (folder / "__init__.py").write_text('raise RuntimeError("imported")\n')
    (folder / "apart.py").write_text("class Base:\n    count: int = 7\n")
    text = """
        from settings_here.apart import Base as Apart
        LOW, HIGH = 1, -2.5
        KEY = "a"
        TABLE = {KEY: (LOW, HIGH), "b": None}
        class Config:
            count: int = Apart.count
            names: tuple[str, ...] = (KEY, "c")
            needed: str
        MADE = max(1, 2)
    """
    (folder / "one.py").write_text(textwrap.dedent(text))
    return "settings_here.one"


def test_names_tables_and_imports_are_followed_and_nothing_runs(module: str):
    assert declared(module, "TABLE") == {"a": (1, -2.5), "b": None}
    assert vars(declared(module, "Config")) == {"count": 7, "names": ("a", "c")}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("GONE", r"settings_here\.one declares no GONE"),
        ("MADE", r"'max\(1, 2\)' can't be read without"),
    ],
)
def test_what_cant_be_read_is_refused(module: str, name: str, match: str):
    with pytest.raises(AssertionError, match=match):
        declared(module, name)
