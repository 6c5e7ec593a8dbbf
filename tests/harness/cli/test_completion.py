"""Completion as shells do it: the script is sourced, words are typed, the key is pressed."""

import shutil
import subprocess

import pytest

from harness.cli.command import CommandParser, leaves
from harness.cli.completion import NAMES, complete, script
from harness.cli.entry import COMMANDS, build_parser
from harness.studies.reproduce import list_targets
from zoo.loading.sizes import MODELS

SHELLS = ("bash", "zsh", "fish", "tcsh")
WORDS = [
    ("comp", {"compare", "completion"}),
    ("fit p", {"predictor", "prompts"}),
    ("--quiet study fina", {"final"}),
    ("compare --meth", {"--methods"}),
    ("compare --methods ev", {"evit", "evitfuse"}),
    ("compare --split v", {"val"}),
    ("eval --model clip_vit_s14_tome6", {"clip_vit_s14_tome60"}),
    ("rank --dataset fash", {"fashion"}),
    ("study sco", {"scores"}),
    ("study reproduce fig", {"figure1", "figure3", "figure4", "figure5"}),
    ("fit predictor --arch mi", {"mixer"}),
]


def _completed() -> dict[str, CommandParser]:
    parser = build_parser()
    complete(parser)
    return leaves(parser)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(script(shell, build_parser()))
    return {shell: str(folder / shell) for shell in SHELLS}


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("words", "expected"), [*WORDS, ("compare --methods evit to", {"tofu", "tome"})])
def test_bash_completes(words: str, expected: set[str], scripts: dict[str, str]):
    code = (
        'source "$1"; shift; COMP_WORDS=(patchrank "$@"); COMP_CWORD=$#; '
        "f=$(complete -p patchrank); f=${f##*-F }; f=${f%% *}; "
        '"$f" patchrank "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    out = run("bash", "-c", code, "bash", scripts["bash"], *words.split(" "))
    assert {line.strip() for line in out.splitlines()} == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish isn't installed")
@pytest.mark.parametrize(("words", "expected"), WORDS)
def test_fish_completes(words: str, expected: set[str], scripts: dict[str, str]):
    code = f"source {scripts['fish']}; complete -C 'patchrank {words}'"
    found = {line.split("\t")[0] for line in run("fish", "-N", "-c", code).splitlines()}
    assert found == expected


def test_names_are_those_of_the_registries():
    choices = {(path, a.dest): a.choices for path, p in _completed().items() for a in p._actions}
    assert set(choices["eval", "model"]) == set(MODELS)
    assert set(choices["compare", "models"]) < set(MODELS)
    assert "clip_vit_b16_tome60" not in choices["compare", "models"]
    assert "golden" in choices["compare", "methods"]
    assert "golden" not in choices["show", "methods"]
    assert choices["study reproduce", "names"] == list(list_targets())


def test_what_is_named_is_an_argument_of_a_command():
    known = {(path, a.dest) for path, p in _completed().items() for a in p._actions}
    for name in NAMES:
        path, _, dest = name.rpartition(" ")
        assert path in ("", *COMMANDS)
        assert any(d == dest and path in ("", p) for p, d in known), name
