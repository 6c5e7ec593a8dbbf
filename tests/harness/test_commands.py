"""The set of commands and flags, their help, and the page made of it."""

import argparse
import difflib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.flags import COMMANDS, FAMILIES, build_parser, leaves
from harness.flags.command import GROUPS, Command
from harness.reference import END, REWRITE, frozen, page, rewrite, spliced

from harness import reference
from harness.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLES = [(c.path, line) for c in COMMANDS.values() for line, _ in c.examples]


def words_of(example: str) -> list[str]:
    return shlex.split(example.partition(" > ")[0])


def test_commands_and_flags_are_those_of_the_list():
    written = (ROOT / reference.LIST).read_text("utf-8")
    now = frozen()
    diff = difflib.unified_diff(
        written.splitlines(), now.splitlines(), "was", "is", lineterm="", n=0
    )
    told = "\n".join(diff)
    assert now == written, f"flags have changed; if that's meant, run: {REWRITE}\n{told}"


def test_the_page_is_what_the_parser_says():
    text = (ROOT / reference.PAGE).read_text("utf-8")
    assert spliced(text) == text, f"docs/commands.md is out of date; run: {REWRITE}"


def test_rewriting_keeps_what_stands_around(tmp_path: Path):
    for name in (reference.LIST, reference.PAGE):
        (tmp_path / name).parent.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"commands\.md"):
        rewrite(tmp_path)
    (tmp_path / reference.PAGE).write_text(f"before\n{reference.BEGIN}\nold\n{END}\nafter\n")
    assert rewrite(tmp_path) == [tmp_path / reference.LIST, tmp_path / reference.PAGE]
    assert (tmp_path / reference.LIST).read_text() == frozen()
    assert (tmp_path / reference.PAGE).read_text() == f"before\n{page()}after\n"


def test_a_page_without_its_place_is_refused():
    with pytest.raises(ValueError, match=r"docs/commands\.md lacks the lines"):
        spliced(f"{END}\n")


@pytest.mark.parametrize(("path", "example"), EXAMPLES)
def test_every_example_parses_as_its_command(path: str, example: str):
    assert build_parser().parse_args(words_of(example)).command == path


@pytest.mark.parametrize(
    "example", ["list", "list --json", "datasets list", "study list", "push", "compare"]
)
def test_cheap_examples_run(example: str, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.chdir(tmp_path)
    words = {
        "push": next(line for path, line in EXAMPLES if path == "push"),
        "compare": next(line for path, line in EXAMPLES if line.startswith("compare results")),
    }.get(example, example)
    assert words in [line for _, line in EXAMPLES]
    for name in ("results", "equal"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "docs" / "results" / "records.jsonl", tmp_path / name)
    assert main(words_of(words)) == 0
    assert len(capsys.readouterr().out) > 500


@pytest.mark.parametrize("path", COMMANDS)
def test_help_of_a_command_fits_and_tells_all(path: str, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([*path.split(), "--help"])
    text = capsys.readouterr().out
    head, _, examples = text.partition("\nexample")
    assert text.startswith(f"usage: python -m harness {path}")
    assert max(map(len, head.splitlines())) <= 80
    for line, purpose in COMMANDS[path].examples:
        assert f"  # {purpose}\n  python -m harness {line}\n" in examples
    for word in ("output:", "exit codes: 0 fine", "--json", "--quiet", "--color"):
        assert word in text
    assert "==SUPPRESS==" not in text


def test_every_argument_has_a_help():
    silent = [
        (path, action.dest)
        for path, parser in leaves(build_parser()).items()
        for action in parser._actions
        if not action.help
    ]
    assert silent == []


def test_the_help_lists_every_command_by_what_it_is_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    places = [text.index(f"\n{title}:\n") for title in GROUPS.values()]
    assert places == sorted(places)
    for path, command in COMMANDS.items():
        assert f"\n  {path} " in text
        assert command.group in GROUPS


def test_every_command_names_a_function_that_is_there():
    assert {command.function().__name__[:4] for command in COMMANDS.values()} == {"run_"}


def test_families_are_those_of_two_words():
    assert {path.split()[0] for path in COMMANDS if " " in path} == set(FAMILIES)


@pytest.mark.parametrize(("field", "value"), [("group", "misc"), ("examples", ())])
def test_a_command_needs_a_group_and_an_example(field: str, value: object):
    facts = vars(COMMANDS["list"]) | {field: value}
    with pytest.raises(AssertionError, match="list"):
        Command(**facts)


def test_help_and_version_import_nothing_heavy():
    """Of the program and of every command, in one process."""
    asked = [["--version"], ["--help"], *([*path.split(), "--help"] for path in COMMANDS)]
    code = (
        f"import sys\nfrom harness.cli import main\nfor words in {asked!r}:\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "    heavy = {'torch', 'timm', 'numpy', 'zoo', 'pyarrow', 'matplotlib', 'scipy'}\n"
        "    assert not heavy & set(sys.modules), words"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_version_names_what_figures_rest_on(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args(["--version"])
    out = capsys.readouterr().out
    assert out.startswith("clip-patchrank ")
    for name in ("python ", "torch ", "timm ", "open_clip_torch "):
        assert name in out


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("compair", "'compair': did you mean 'compare'?"),
        ("fit predictors", "'predictors': did you mean 'predictor'?"),
        ("compare --method evit", "no flag '--method': did you mean '--methods'?"),
        ("compare --lim=3", "no flag '--lim': did you mean"),
        ("compare --what", "more (python -m harness compare --help)"),
        ("compare --split tset", "argument --split: 'tset': did you mean 'test'?"),
        (
            "list everything",
            "no argument 'everything' is expected here; see python -m harness list",
        ),
        ("--color red list", "argument --color: 'red': expected one of auto, always, never"),
        ("completion ksh", "'ksh': did you mean 'zsh'? expected one of bash, zsh, fish, tcsh"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(command: str, match: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(command.split())
    out, err = capsys.readouterr()
    assert out == ""
    assert match in err


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_flags_of_every_command_stand_before_it_or_after_it(place: str):
    shared = ["--quiet", "--color", "never"]
    words = {
        "before": [*shared, "list", "--json"],
        "after": ["--json", "list", *shared],
        "both": ["-q", "--json", "list", *shared],
    }[place]
    args = build_parser().parse_args(words)
    assert (args.json, args.quiet, args.color) == (True, True, "never")


def test_without_them_they_are_off():
    args = build_parser().parse_args(["list"])
    assert (args.json, args.quiet, args.color) == (False, False, "auto")


def test_flags_are_added_to_the_command_that_is_chosen_and_once():
    parser = build_parser()
    parser.parse_args(["eval", "clip_vit_s14", "--dataset", "emoji"])
    choices = parser._subparsers._group_actions[0].choices
    assert [len(choices[name]._actions) for name in ("compare", "floor")] == [0, 0]
    chosen: argparse.ArgumentParser = choices["eval"].filled()
    flags = [name for action in chosen._actions for name in action.option_strings]
    assert len(flags) == len(set(flags)) > 10
