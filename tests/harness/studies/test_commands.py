"""What ``study`` writes: a table that stands alone, and records that a second run reads."""

from collections.abc import Callable
from typing import Any

import pytest

from harness.cli import main
from harness.records.record import read_records

FLAGS = (
    "--model clip_vit_b16 --datasets plain --limit 7 --train-limit 9 --seeds 2 --block 2 "
    "--window 4 --stride 4 --arch mlp --width 8 --epochs 2 --keeps 0.5"
)


def test_table_and_records(
    studied: Callable[..., Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]
):
    command = ["study", "transfer", *FLAGS.split(), "--output", str(tmp_path)]
    assert main(command) == 0
    assert "Predictors fitted on one dataset" in capsys.readouterr().out
    text = (tmp_path / "transfer.md").read_text()
    assert text.startswith(
        "## Predictors fitted on one dataset, judged on another (paper: Table 2)"
    )
    assert f"```\npatchrank study transfer {FLAGS}\n```" in text
    assert "predictors mlp of width 8, bce, 2 seeds, up to 9 ranked training images" in text
    records = read_records(tmp_path / "transfer.jsonl")
    assert [record.method for record in records] == ["dense", "patchrank", "patchrank", "golden"]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| fitted on | keep | GFLOPs | top-1 | to dense | to first |")
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| plain", "| (golden)"]
    assert main(command) == 0  # nothing new to write
    assert read_records(tmp_path / "transfer.jsonl") == records
    assert (tmp_path / "transfer.md").read_text() == text


def test_the_list(capsys: pytest.CaptureFixture[str]):
    assert main(["study", "list"]) == 0
    assert "Does a predictor need images of the dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("scroes", "study 'scroes': did you mean 'scores'?"),
        ("scroes", "more (patchrank study --help)"),
        ("scores --keeps 1.5", "--keeps 1.5: expected fractions in (0, 1]"),
        ("scores --seeds 0", "--seeds 0: expected a number from 1"),
        ("scores --limit 0", "--limit 0: expected a number from 1"),
        ("scores --dtype int8", "--dtype 'int8'"),
        ("scores --score labels", "score='labels': did you mean 'label'?"),
        ("scores --model clip_vit_s15", "model 'clip_vit_s15': did you mean"),
        ("scores --datasets fashoin", "no dataset is called 'fashoin'"),
    ],
)
def test_refused(flags: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["study", *flags.split()]) == 2
    assert said in capsys.readouterr().err
