"""The set of commands and flags, their help and examples, and slips."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import entry
from harness.cli.command import leaves
from harness.cli.entry import COMMANDS, FAMILIES, build_parser, main
from harness.cli.flags import change
from harness.datasets import shipped_facts
from zoo.learning.tuning import TuneConfig

ROOT = Path(__file__).parents[3]


def test_flags_have_one_spelling_and_a_help_and_examples_are_commands(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for path, leaf in leaves(build_parser()).items():
        with pytest.raises(SystemExit, match="0"):
            main([*path.split(), "--help"])
        head, _, examples = capsys.readouterr().out.partition("\nexample")
        assert max(map(len, head.splitlines())) <= 80
        for line, _ in COMMANDS[path].examples:
            assert line in examples
            assert build_parser().parse_args(shlex.split(line.partition(" > ")[0])).command == path
        flags = {name for action in leaf._actions for name in action.option_strings}
        assert flags.isdisjoint({"--models", "--datasets", "--out"}), path
        assert "--method" not in flags or "--methods" not in flags, path  # one model has one method and one keep rate
        assert "--keep" not in flags or "--keeps" not in flags, path
        assert all(action.help for action in leaf._actions), path


def test_help_and_version_of_the_program_import_nothing_heavy():
    words = [["--version"], ["--help"], [], ["study"], *([name] for name in FAMILIES)]
    code = (
        f"import sys\nfrom harness.cli.entry import main\nfor words in {words!r}:\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'zoo', 'pyarrow', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"clip-patchrank .+\npython .+, torch .+, timm .+, open_clip_torch ", done.stdout)


@pytest.mark.parametrize(("command", "match"), [
    ("compair", "'compair': did you mean 'compare'?"),
    ("study ordre", "study 'ordre': did you mean 'order'?"),
    ("compare --methode evit", "no flag '--methode': did you mean '--methods'?"),
    ("compare --lim=3", "no flag '--lim': did you mean"),
    ("compare --split tset", "--split 'tset': did you mean 'test'?"),
    ("compare --limit x", "--limit 'x': expected a whole number"),
    ("compare --traces x", "--traces invalid int value: 'x'; see patchrank compare --help"),
    ("compare --keeps 0.6 1.5", "--keeps 1.5: expected fractions in (0, 1]"),
    ("compare --batches 1 0", "--batches 0: expected a number from 1"),
    ("compare --device nonsense", "--device 'nonsense' can't be used here"),
    ("rank --dataset emoji --images x", "--images: not allowed with argument --dataset"),
    ("rank", "one of the arguments --dataset --images is required; see patchrank rank --help"),
    ("list everything", "no argument 'everything' is expected here"),
])  # fmt: skip
def test_a_slip_is_answered_with_what_was_meant(command: str, match: str, capsys):
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err[:18]) == ("", "patchrank: error: ")
    assert match in err
    assert err.count("--help") <= 1


@pytest.mark.parametrize(("changes", "match"), [
    ("anchor", "--tune 'anchor': expected FIELD=VALUE"),
    ("ancor=2", "'ancor': did you mean 'anchor'"),
    ("seed=2", "'seed'"),
    ("count=2.5", "count=2.5: expected a whole number"),
    ("anchor=much", "anchor=much: expected a number"),
    ("augment=1", "augment=1: expected true or false"),
    ("count=none", "count=none"),
])  # fmt: skip
def test_changes_of_settings(changes: str, match: str):
    good = "init=a photo of a,anchor=2, learning-rate=5e-4,epochs=none,augment=false"
    made = replace(TuneConfig(), init="a photo of a", anchor=2.0, learning_rate=5e-4, epochs=None, augment=False)
    assert change(TuneConfig(), good, "--tune") == made
    with pytest.raises(ValueError, match=match):
        change(TuneConfig(), changes, "--tune")


def test_the_subcommand_of_the_extension_guide_is_one_like_the_others(monkeypatch, capsys):
    section = (ROOT / "docs" / "extend.md").read_text("utf-8").partition("\n## A subcommand\n")[2]
    [code] = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    [command] = names["COMMANDS"]
    monkeypatch.setitem(entry.COMMANDS, command.path, command)
    assert "Count the images of each class." in build_parser().format_help()
    dataset = shipped_facts("emoji")
    counts = [(dataset.labels("val") == label).sum() for label in range(len(dataset.classes))]
    assert main(["count", "emoji", "--split", "val"]) == 0
    shown = re.findall(r"│ (.+?) +│ (\d+) +│", capsys.readouterr().out)
    assert shown == [(name, str(n)) for name, n in zip(dataset.classes, counts, strict=True)]
    assert main(["count", "emoji", "--split", "vol"]) == 2
    assert "'vol': did you mean 'val'?" in capsys.readouterr().err
