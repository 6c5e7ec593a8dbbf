"""The subcommand of docs/extend.md, put where the page says, is one like the others."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.flags import COMMANDS, build_parser

import harness
from harness.cli import main
from harness.datasets import shipped_facts

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put both files into the packages, and the first one's line into the table."""
    section = PAGE.read_text("utf-8").partition("\n## A subcommand\n")[2]
    added, run = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    (tmp_path / "counting.py").write_text(run)
    monkeypatch.setattr(harness, "__path__", [*harness.__path__, str(tmp_path)])
    names: dict[str, Any] = {}
    exec(added, names)
    [command] = names["COMMANDS"]
    monkeypatch.setitem(COMMANDS, command.path, command)
    yield
    sys.modules.pop("harness.counting", None)


@pytest.mark.usefixtures("count")
def test_it_counts_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]):
    dataset = shipped_facts("emoji")
    counts = [(dataset.labels("val") == label).sum() for label in range(len(dataset.classes))]
    assert main(["count", "emoji", "--split", "val"]) == 0
    shown = re.findall(r"│ (.+?) +│ (\d+) +│", capsys.readouterr().out)
    assert shown == [(name, str(n)) for name, n in zip(dataset.classes, counts, strict=True)]
    assert main(["count", "emoji", "--split", "val", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"dataset": "emoji", "images_by_class": {n: int(c) for n, c in shown}}


@pytest.mark.usefixtures("count")
def test_it_refuses_as_others_do(capsys: pytest.CaptureFixture[str]):
    assert main(["count", "emoji-names", "--split", "val"]) == 2
    assert "--split 'val': emoji-names has no images there" in capsys.readouterr().err
    assert main(["count", "emojis"]) == 2
    assert "Did you mean 'emoji'?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["count", "emoji", "--split", "vol"])
    assert "'vol': did you mean 'val'?" in capsys.readouterr().err


@pytest.mark.usefixtures("count")
def test_it_is_in_the_help():
    assert "Count the images of each class." in build_parser().format_help()
