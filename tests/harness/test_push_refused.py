"""What push refuses, before anything is written or sent."""

from pathlib import Path

import pytest

from harness.cli import main

PATCHRANK = "clip_vit_s14_patchrank60"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("to", ["pruned", "me/", "/pruned", "a/b/c", "me/p r", "../x", "me/.x"])
def test_repositories_that_cannot_be(to: str, capsys: pytest.CaptureFixture[str]):
    assert main(["push", PATCHRANK, "--to", to]) == 2
    assert f"--to {to!r}: expected OWNER/NAME" in said(capsys)


def test_a_folder_with_other_files_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.txt").touch()
    assert main(["push", "clip_vit_s14", "--to", "me/a", "--folder", str(tmp_path)]) == 2
    assert "holds 'mine.txt': give a new or empty one" in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_names_and_files_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = [
        (["clip_vit_s14_patchrnk60"], "model 'clip_vit_s14_patchrnk60': did you mean"),
        (["clip_vit_s14.openai"], "weight tag 'openai' of clip_vit_s14"),
        ([f"local-dir:{tmp_path}"], "no config.json there; timm.models.save_for_hf"),
        (["clip_vit_b16_evit60.openai"], "no weights of clip_vit_b16_evit60.openai: not in the"),
        (["hf-hub:nobody/nothing"], "no weights of hf-hub:nobody/nothing: not in the Hugging Fa"),
        ([f"local-dir:{tmp_path}", "--prompts", "p.safetensors"], "carries its weights: leave out"),
        ([PATCHRANK, "--predictor", str(tmp_path / "no")], "no predictor at"),
        ([PATCHRANK, "--records", str(tmp_path / "no.jsonl")], "no.jsonl': there is no such file"),
    ]
    for args, match in wrong:
        assert main(["push", *args, "--to", "me/a", "--dry-run"]) == 2
        assert match in said(capsys)
