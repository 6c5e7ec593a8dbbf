"""What ``reproduce`` prints and writes, how it goes on, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.datasets.base import Dataset, Split, SplitName
from harness.records import read_records

FLAGS = (
    "--model clip_vit_b16.openai --limit 7 --train-limit 9 --seeds 1 --block 2 --window 4 "
    "--stride 4 --arch mlp --width 8 --epochs 2 --labelled 1 --rounds 1 --num-tokens 2"
)
Staged = dict[str, Dataset]


def ask(*told: str) -> int:
    return main(["study", "reproduce", *" ".join(told).split()])


def test_ours_stand_beside_the_paper_s(
    staged: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ("figure5 --datasets caltech101 dtd", FLAGS, f"--output {tmp_path}")
    assert ask(*command) == 0
    shown = capsys.readouterr().out
    assert "Figure 5: pruning before block 1" in shown
    text = (tmp_path / "figure5.md").read_text()
    assert text.startswith(f"```\npython -m harness study reproduce {command[0]} {FLAGS}\n```\n")
    assert "NOT the paper's" not in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in text.splitlines() if line.startswith("|")]  # fmt: skip
    assert rows[0] == ["", "whose", "caltech101", "dtd", "mean", "compared with", "by"]
    ours, paper, off = rows[2:5]
    assert paper[:5] == ["", "paper", "93.5", "45.1", "69.3"]  # its mean over these two
    for column in (2, 3, 4):
        mean = 69.3 if column == 4 else float(paper[column])
        assert float(off[column]) == pytest.approx(float(ours[column].split()[0]) - mean, abs=0.11)
    records = read_records(tmp_path / "figure5.jsonl")
    assert {record.dataset for record in records} == {"caltech101", "dtd"}
    assert (tmp_path / "figure5.svg").read_bytes().startswith(b"<?xml")
    assert ask(*command) == 0  # nothing new to write
    assert read_records(tmp_path / "figure5.jsonl") == records
    assert (tmp_path / "figure5.md").read_text() == text


def test_another_tower_or_other_data_are_named(
    staged: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert ask("table3 --datasets elsewhere", FLAGS, f"--output {tmp_path}") == 0
    capsys.readouterr()
    text = (tmp_path / "table3.md").read_text()
    assert "NOT the paper's data: what differs is no failed reproduction" in text
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines()}
    assert rows["| keep 60, GFLOPs"][4] == "unpruned, GFLOPs"
    lines = text.splitlines()
    paper = lines[lines.index(" | ".join(rows["| keep 60, GFLOPs"])) + 1]
    assert paper.split(" | ")[2:6] == ["–", "16.80", "", "0.718 |"]
    off = lines[lines.index(" | ".join(rows["| keep 60, GFLOPs"])) + 2].split(" | ")
    assert off[2:4] == ["–", "–"]  # only the ratio may be compared
    assert off[5].startswith(("+", "-"))


def test_a_dry_run_measures_nothing_and_names_what_is_missing(
    staged: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("worked")

    for place in ("view.outcomes", "studies.workshop.fit", "studies.found.rank", "tuning.tune"):
        monkeypatch.setattr(f"harness.{place}", fail)
    told = ("table5 --datasets dtd food101", FLAGS, f"--output {tmp_path / 'out'} --dry-run")
    assert ask(*told) == 0
    shown = capsys.readouterr().out
    for line in (
        "rank",
        "fit predictors",
        "tune tokens",
        "judge",
        "missing",
        "food101: no dataset",
    ):
        assert line in shown
    assert not (tmp_path / "out").exists()


def test_what_was_stopped_goes_on(
    staged: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Stopped on the second dataset: the first is there, and isn't measured again."""
    from harness import view

    real, seen = view.outcomes, []

    def stopping(rows: Any, split: Any, *args: Any, **told: Any) -> Any:
        seen.append(split.image_ids[0])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(rows, split, *args, **told)

    monkeypatch.setattr(view, "outcomes", stopping)
    command = ("figure5 --datasets caltech101 dtd", FLAGS, f"--output {tmp_path}")
    assert ask(*command) == 130
    first = read_records(tmp_path / "figure5.jsonl")
    assert {record.dataset for record in first} == {"caltech101"}
    assert "caltech101 (7 images)" in (tmp_path / "figure5.md").read_text()
    assert ask(*command) == 0
    capsys.readouterr()
    assert len(seen) == 3
    records = read_records(tmp_path / "figure5.jsonl")
    assert records[: len(first)] == first
    assert len(records) == 2 * len(first)


def test_defaults_are_the_paper_s_with_a_root_and_the_embedded_ones_without():
    from harness.cli.parser import build_parser
    from harness.reproduction import get_reproduction
    from harness.reproduction.commands import study_config

    def config(table: str, *flags: str) -> Any:
        args = build_parser().parse_args(["study", "reproduce", table, *flags])
        return study_config(args, get_reproduction(table))

    paper = config("table4", "--root", "data")
    assert paper.model == "clip_vit_b16.openai"
    assert paper.datasets[-2:] == ("ucf101", "imagenet")
    assert len(config("table1", "--root", "data").datasets) == 7
    assert (paper.limit, paper.split, paper.golden.block) == (None, "test", 3)
    assert (paper.golden.window, paper.golden.stride) == (2, 2)
    assert (paper.tune.count, paper.tune.anchor, paper.labelled) == (16, 0.0, 16)
    ours = config("table1")
    assert (ours.model, ours.datasets) == ("clip_vit_s14", ("fashion", "emoji"))
    assert (ours.golden.window, ours.golden.stride, ours.limit) == (3, 2, 300)
    assert config("table1", "--full").limit is None


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("table8", "reproduce 'table8': did you mean 'table"),
        ("table1 --limit 0", "--limit 0: expected a number from 1"),
        ("table1 --seeds 0", "--seeds 0: expected a number from 1"),
        ("table1 --dtype int8", "--dtype 'int8'"),
        ("table1 --datasets dtdd", "no dataset is called 'dtdd'"),
        ("table1 --stride 3 --window 2", "stride=3: more than window=2 leaves patches out"),
        ("table1 --arch mixr", "arch='mixr': did you mean 'mixer'?"),
    ],
)
def test_refused(told: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert ask(told, f"--output {tmp_path}") == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_val_is_refused(
    staged: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    whole = staged["dtd"].split

    def split(name: SplitName) -> Split:
        return whole(name)[:0] if name == "val" else whole(name)

    monkeypatch.setattr(staged["dtd"], "split", split)
    assert ask("table1 --datasets caltech101 dtd", FLAGS, f"--output {tmp_path}") == 2
    said = "dataset 'dtd' has no val images, which fits are stopped by"
    assert said in capsys.readouterr().err


def test_a_tower_without_text_is_refused(
    staged: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    import harness.studies.run as module

    tower = module.load_tower("")._replace(clip=None)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    assert ask("table1 --datasets dtd", FLAGS, f"--output {tmp_path}") == 2
    assert "has no text tower here, so accuracy can't be judged" in capsys.readouterr().err
