"""Completion as bash does it: the script is sourced, words are typed, the key is pressed."""

import subprocess

import pytest

from harness.cli.entry import SHELLS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("completion") / "bash"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return str(path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("comp", {"compare", "completion"}),
        ("fit p", {"predictor", "prompts"}),
        ("--quiet study fina", {"final"}),
        ("compare --meth", {"--methods"}),
        ("compare --methods evit to", {"tofu", "tome"}),
        ("compare --split v", {"val"}),
        ("compare --model clip_vit_s14", {"clip_vit_s14"}),
        ("eval --model clip_vit_s14_tome6", {"clip_vit_s14_tome60"}),
        ("rank --dataset fash", {"fashion"}),
        ("study sco", {"scores"}),
        ("study reproduce fig", {"figure1", "figure3", "figure4", "figure5"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], script: str):
    code = (
        'source "$1"; shift; COMP_WORDS=(patchrank "$@"); COMP_CWORD=$#; '
        "f=$(complete -p patchrank); f=${f##*-F }; f=${f%% *}; "
        '"$f" patchrank "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ("bash", "-c", code, "bash", script, *words.split(" "))
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {line.strip() for line in out.splitlines()} == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_every_shell(shell: str, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    assert "imagenet-sketch" in capsys.readouterr().out
