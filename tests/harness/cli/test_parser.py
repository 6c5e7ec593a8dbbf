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
from harness.cli.flags import change, tune_config
from harness.datasets import shipped_facts
from zoo.learning.tuning import TuneConfig

ROOT = Path(__file__).parents[3]


def test_the_commands_that_a_newcomer_sees():
    words = list(dict.fromkeys(path.split()[0] for path in COMMANDS))
    shown = (
        "compare eval latency report list datasets choose embed search export show check push rank fit study completion"
    )
    assert words == shown.split()
    assert {path.split()[0] for path in COMMANDS if " " in path} == set(FAMILIES)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_of_a_command_fits_and_tells_all(path: str, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*path.split(), "--help"])
    text = capsys.readouterr().out
    head, _, examples = text.partition("\nexample")
    assert text.startswith(f"usage: patchrank {path}")
    assert max(map(len, head.splitlines())) <= 80
    for line, purpose in COMMANDS[path].examples:
        assert f"  # {purpose}\n  patchrank {line}\n" in examples
        assert build_parser().parse_args(shlex.split(line.partition(" > ")[0])).command == path
    assert all(word in text for word in ("output:", "exit codes: 0 fine", "--json", "--quiet", "--color"))
    assert "==SUPPRESS==" not in text


def test_flags_have_one_spelling_and_a_help():
    for path, leaf in leaves(build_parser()).items():
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


@pytest.mark.parametrize("words", [[], *([word] for word in FAMILIES)])
def test_half_a_command_prints_the_help(words: list[str], capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"usage: {' '.join(['patchrank', *words])} ")


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("compair", "'compair': did you mean 'compare'?"),
        ("fit predictors", "'predictors': did you mean 'predictor'?"),
        ("study finl", "study 'finl': did you mean 'final'?"),
        ("study ordre", "study 'ordre': did you mean 'order'?"),
        ("compare --methode evit", "no flag '--methode': did you mean '--methods'?"),
        ("compare --lim=3", "no flag '--lim': did you mean"),
        ("compare --split tset", "--split 'tset': did you mean 'test'?"),
        ("compare --limit x", "--limit 'x': expected a whole number"),
        ("compare --traces x", "--traces invalid int value: 'x'; see patchrank compare --help"),
        ("compare --limit 0", "--limit 0: expected a number from 1, or --full"),
        ("compare --keeps 0.6 1.5", "--keeps 1.5: expected fractions in (0, 1]"),
        ("compare --batches 1 0", "--batches 0: expected a number from 1"),
        ("compare --dtype flaot32", "--dtype 'flaot32': did you mean 'float32'"),
        ("compare --device nonsense", "--device 'nonsense' can't be used here"),
        ("rank --dataset emoji --images x", "--images: not allowed with argument --dataset"),
        ("rank", "one of the arguments --dataset --images is required; see patchrank rank --help"),
        ("eval", "required: --model, --dataset; see patchrank eval --help"),
        ("list everything", "no argument 'everything' is expected here; see patchrank list"),
        ("--color red list", "--color 'red': expected one of auto, always, never"),
        ("completion ksh", "'ksh': did you mean 'zsh'? expected one of bash, zsh"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(command: str, match: str, capsys):
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err[:18]) == ("", "patchrank: error: ")
    assert match in err
    assert err.count("--help") <= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--json list --quiet --color never", (True, True, "never")),
        ("-q --json list --quiet --color never", (True, True, "never")),
        ("list", (False, False, "auto")),
    ],
)
def test_flags_of_every_command_stand_before_it_or_after_it(words: str, expected: tuple):
    args = build_parser().parse_args(words.split())
    assert (args.json, args.quiet, args.color) == expected


@pytest.mark.parametrize("words", ["fit prompts --dataset emoji", "study tuning"])
def test_without_flags_tokens_are_learned_by_the_recipe_s_own_settings(words: str):
    assert tune_config(build_parser().parse_args(words.split()), "ours") == TuneConfig()


@pytest.mark.parametrize(("changes", "fields"), [
    ("init=a photo of a,anchor=2, learning-rate=5e-4", {"init": "a photo of a", "anchor": 2.0, "learning_rate": 5e-4}),
    ("init=none,epochs=none", {"init": None, "epochs": None}),
    ("augment=false,count=4", {"augment": False, "count": 4}),
    (None, {}),
])  # fmt: skip
def test_changes_of_settings(changes: str | None, fields: dict[str, Any]):
    recipe = TuneConfig(init="a")
    assert change(recipe, changes, "--tune") == replace(recipe, **fields)


@pytest.mark.parametrize(("changes", "match"), [
    ("anchor", "--tune 'anchor': expected FIELD=VALUE"),
    ("anchor=", "expected FIELD=VALUE"),
    ("ancor=2", "'ancor': did you mean 'anchor'"),
    ("seed=2", "'seed'"),
    ("count=2.5", "count=2.5: expected a whole number"),
    ("anchor=much", "anchor=much: expected a number"),
    ("augment=1", "augment=1: expected true or false"),
    ("count=none", "count=none"),
    ("tokens=x", "'x': expected one of t, v, vt"),
])  # fmt: skip
def test_changes_that_make_no_settings(changes: str, match: str):
    with pytest.raises(ValueError, match=match):
        change(TuneConfig(), changes, "--tune")


@pytest.fixture
def count(monkeypatch) -> None:
    """Put the subcommand of docs/extend.md where the page says."""
    page = (ROOT / "docs" / "extend.md").read_text("utf-8")
    section = page.partition("\n## A subcommand\n")[2]
    [code] = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    names: dict[str, object] = {}
    exec(code, names)
    [command] = names["COMMANDS"]  # type: ignore[misc]
    monkeypatch.setitem(entry.COMMANDS, command.path, command)


@pytest.mark.usefixtures("count")
def test_a_new_command_is_one_like_the_others(capsys):
    assert "Count the images of each class." in build_parser().format_help()
    dataset = shipped_facts("emoji")
    counts = [(dataset.labels("val") == label).sum() for label in range(len(dataset.classes))]
    assert main(["count", "emoji", "--split", "val"]) == 0
    shown = re.findall(r"│ (.+?) +│ (\d+) +│", capsys.readouterr().out)
    assert shown == [(name, str(n)) for name, n in zip(dataset.classes, counts, strict=True)]
    for words, message in (
        ("emoji-names --split val", "--split 'val': emoji-names has no images there"),
        ("emojis", "Did you mean 'emoji'?"),
        ("emoji --split vol", "'vol': did you mean 'val'?"),
    ):
        assert main(["count", *words.split()]) == 2
        assert message in capsys.readouterr().err
