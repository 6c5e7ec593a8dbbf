"""Completion as bash does it: the script is sourced, words are typed, the key is pressed."""

import subprocess
from pathlib import Path

import pytest

from harness.cli.entry import SHELLS, main

PRESS = (
    'source "$1"; shift; COMP_WORDS=(patchrank "$@"); COMP_CWORD=$#; '
    "f=$(complete -p patchrank); f=${f##*-F }; f=${f%% *}; "
    '"$f" patchrank "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
    'printf "%s\\n" "${COMPREPLY[@]}"'
)


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "imagenet-sketch" in script
        (tmp_path / shell).write_text(script)
    for words, expected in (
        ("comp", {"compare", "completion"}),
        ("fit p", {"predictor", "prompts"}),
        ("--quiet study fina", {"final"}),
        ("compare --meth", {"--methods"}),
        ("compare --methods evit to", {"tofu", "tome"}),
        ("eval --model clip_vit_s14_tome6", {"clip_vit_s14_tome60"}),
        ("rank --dataset fash", {"fashion"}),
        ("study reproduce fig", {"figure1", "figure5"}),
    ):
        command = ["bash", "-c", PRESS, "bash", str(tmp_path / "bash"), *words.split()]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert {line.strip() for line in out.splitlines()} == expected, words
