"""The set of commands and flags, their help, slips, aliases, and the page made of it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main, parser
from harness.cli.command import ALIASES, leaves
from harness.cli.flags import tune_config
from harness.cli.parser import COMMANDS, FAMILIES, build_parser
from harness.datasets import shipped_facts

ROOT = Path(__file__).parents[3]
EXAMPLES = [(c.path, line) for c in COMMANDS.values() for line, _ in c.examples]


def words_of(example: str) -> list[str]:
    return shlex.split(example.partition(" > ")[0])


def test_the_commands_that_a_newcomer_sees():
    words = list(dict.fromkeys(path.split()[0] for path in COMMANDS))
    shown = (
        "compare eval latency choose export rank fit show embed search report check push datasets list study completion"
    )
    assert words == shown.split()
    assert {path.split()[0] for path in COMMANDS if " " in path} == set(FAMILIES)


@pytest.mark.parametrize(("path", "example"), EXAMPLES)
def test_every_example_parses_as_its_command(path: str, example: str):
    assert build_parser().parse_args(words_of(example)).command == path


CHEAP = ["list", "list --json", "datasets list", "study list", "push", "compare results"]


@pytest.mark.parametrize("example", CHEAP)
def test_cheap_examples_run(example: str, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = next(line for _, line in EXAMPLES if line.startswith(example))
    for name in ("results", "equal"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "docs" / "results" / "records.jsonl", tmp_path / name)
    assert main(words_of(words)) == 0
    assert len(capsys.readouterr().out) > 500


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
    for word in ("output:", "exit codes: 0 fine", "--json", "--quiet", "--color"):
        assert word in text
    assert "==SUPPRESS==" not in text


def test_every_argument_has_a_help():
    every = [(path, a) for path, leaf in leaves(build_parser()).items() for a in leaf._actions]
    assert [(path, action.dest) for path, action in every if not action.help] == []


def test_help_and_version_of_the_program_import_nothing_heavy():
    words = [["--version"], ["--help"], [], ["study"], ["fit"], *([name] for name in FAMILIES)]
    code = (
        f"import sys\nfrom harness.cli import main\nfor words in {words!r}:\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'zoo', 'pyarrow', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version = r"clip-patchrank .+\npython .+, torch .+, timm .+, open_clip_torch "
    assert re.match(version, done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", [[], *([word] for word in FAMILIES)])
def test_half_a_command_prints_the_help(words: list[str], capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"usage: {' '.join(['patchrank', *words])} ")
    assert len(err.splitlines()) > 8


MOVED = ["floor", "curve", "speed", "objects", "overhead", "reproduce"]


@pytest.mark.parametrize(
    ("command", "match"),
    [
        *((name, f"'{name}': it is patchrank study {name}") for name in MOVED),
        ("compair", "'compair': did you mean 'compare'?"),
        ("fit predictors", "'predictors': did you mean 'predictor'?"),
        ("study flor", "study 'flor': did you mean 'floor'?"),
        ("study ordre", "study 'ordre': did you mean 'order'?"),
        ("compare --methode evit", "no flag '--methode': did you mean '--methods'?"),
        ("compare --lim=3", "no flag '--lim': did you mean"),
        ("compare --what", "more (patchrank compare --help)"),
        ("compare --split tset", "--split 'tset': did you mean 'test'?"),
        ("compare --limit x", "--limit 'x': expected a whole number"),
        ("compare --traces x", "--traces invalid int value: 'x'; see patchrank compare --help"),
        ("compare --limit 0", "--limit 0: expected a number from 1, or --full"),
        ("compare --keep 0.6 1.5", "--keeps 1.5: expected fractions in (0, 1]"),
        ("compare --keeps nan", "--keeps nan: expected fractions in (0, 1]"),
        ("compare --batches 1 0", "--batches 0: expected a number from 1"),
        ("compare --rounds 0", "--rounds 0: expected a number from 1"),
        ("compare --dtype flaot32", "--dtype 'flaot32': did you mean 'float32'"),
        ("compare --device nonsense", "--device 'nonsense' can't be used here"),
        ("rank --dataset emoji --workers 0", "--workers 0: expected a number from 1"),
        ("rank --dataset emoji --images x", "--images: not allowed with argument --dataset"),
        ("rank", "one of the arguments --dataset --images is required; see patchrank rank --help"),
        ("eval", "required: MODEL, --dataset; see patchrank eval --help"),
        ("list everything", "no argument 'everything' is expected here; see patchrank list"),
        ("--color red list", "--color 'red': expected one of auto, always, never"),
        ("completion ksh", "'ksh': did you mean 'zsh'? expected one of bash, zsh, fish, tcsh"),
        ("check --since HEAD", "no flag '--since'"),
        ("study speed --estimate 9", "no flag '--estimate'"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(command: str, match: str, capsys):
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err[:18]) == ("", "patchrank: error: ")
    assert match in err
    assert err.count("--help") <= 1


@pytest.mark.parametrize("path", COMMANDS)
def test_one_spelling_has_one_alias_everywhere(path: str):
    leaf = leaves(build_parser())[path]
    flags = {name for action in leaf._actions for name in action.option_strings}
    assert flags.isdisjoint({"--models", "--datasets", "--out"})
    assert "--method" not in flags or "--methods" not in flags  # one model has one method and one keep rate
    assert "--keep" not in flags or "--keeps" not in flags
    for flag, other in ALIASES.items():
        action = leaf._option_string_actions.get(flag)
        if action is not None:
            assert leaf._option_string_actions[other] is action


def test_an_alias_is_its_flag():
    def parsed(words: str) -> dict[str, object]:
        return vars(build_parser().parse_args(words.split()))

    plain = "compare --model a b --dataset c d --methods e --keeps 0.5 --batches 2 --output f"
    other = "compare --models a b --datasets c d --method e --keep 0.5 --batch 2 --out f"
    assert parsed(plain) == parsed(other)
    assert parsed("rank --dataset a --output b") == parsed("rank --datasets a --out b")
    assert parsed("rank --dataset a --batch 2")["batch"] == 2  # not sizes of batches, no alias


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--quiet --color never list --json", (True, True, "never")),
        ("--json list --quiet --color never", (True, True, "never")),
        ("-q --json list --quiet --color never", (True, True, "never")),
        ("list", (False, False, "auto")),
    ],
)
def test_flags_of_every_command_stand_before_it_or_after_it(words: str, expected: tuple):
    args = build_parser().parse_args(words.split())
    assert (args.json, args.quiet, args.color) == expected


def test_defaults_are_those_of_the_settings():
    from harness.measure.latency import LatencyPlan
    from harness.measure.plan import Plan
    from zoo.learning.fit import FitConfig

    for words, config in (
        (["compare"], Plan),
        (["latency", "m"], LatencyPlan),
        (["fit", "predictor"], FitConfig),
    ):
        args = vars(build_parser().parse_args(words))
        for name, value in vars(config).items():
            if name in args and name not in ("models", "methods", "threads", "batches"):
                assert args[name] == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize("words", ["fit prompts --dataset emoji", "study tuning"])
def test_without_flags_tokens_are_learned_by_the_recipe_s_own_settings(words: str):
    from zoo.learning.prompt_learner import TuneConfig

    assert tune_config(build_parser().parse_args(words.split()), "ours") == TuneConfig()


@pytest.fixture
def count(monkeypatch) -> None:
    """Put the subcommand of docs/extend.md where the page says."""
    page = (ROOT / "docs" / "extend.md").read_text("utf-8")
    section = page.partition("\n## A subcommand\n")[2]
    [code] = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    names: dict[str, object] = {}
    exec(code, names)
    [command] = names["COMMANDS"]  # type: ignore[misc]
    monkeypatch.setitem(parser.COMMANDS, command.path, command)


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
