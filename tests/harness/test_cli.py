"""The command line as a stranger uses it: results, second runs, and mistakes told kindly."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.datasets.base import Dataset
from harness.golden import rank_command
from harness.layout import PIPE_WIDTH
from harness.measure import bench
from harness.measure import compare as compare_module
from harness.records import Record, read_records
from harness.towers import Tower
from zoo.clip import ClipParts

RANDOM = "compare --datasets emoji --methods random --keeps 0.6 --limit 8 --batches 1 --rounds 2"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run the embedded model on eight emoji, once for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("run") / "results[bold]"  # brackets are no markup
        assert main([*RANDOM.split(), "--output", str(folder)]) == 0
        yield folder


def fail(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("measured again")


def test_compare_writes_what_it_measured(results: Path):
    assert sorted(path.name for path in results.iterdir()) == [
        "accuracy_gflops.svg",
        "agreement.csv",
        "records.jsonl",
        "report.html",
        "summary.md",
        "table.csv",
        "table.md",
        "table.tex",
        "thumbnails",
        "traces",
    ]
    dense, random = read_records(results / "records.jsonl")
    assert (dense.model, random.model) == ("clip_vit_s14", "clip_vit_s14_random60")
    assert (dense.image_count, random.final_tokens) == (8, 118)
    assert dense.gflops > random.gflops > 2
    assert [entry.batch for entry in random.latency] == [1]
    for name in ("report.html", "table.md"):
        assert "random" in (results / name).read_text("utf-8")
    assert "<svg" in (results / "accuracy_gflops.svg").read_text("utf-8")


def test_a_second_run_reuses_all_of_it(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = (results / "records.jsonl").read_text("utf-8")
    for name in ("outcomes", "costs"):
        monkeypatch.setattr(f"harness.measure.bench.{name}", fail)
    assert main([*RANDOM.split(), "--output", str(results)]) == 0
    assert (results / "records.jsonl").read_text("utf-8") == before
    out, err = capsys.readouterr()
    assert f"records: {results / 'records.jsonl'}; report: {results / 'report.html'}" in err
    assert (
        "emoji (test, 8 images; text classifier: all class captions seen in text training)" in out
    )
    dense, random = read_records(results / "records.jsonl")
    for record in (dense, random):
        row = next(line for line in out.splitlines() if line.startswith(f"│ {record.method} "))
        assert f"{100 * record.top1:.1f} [" in row
        assert f" {record.gflops:.2f} " in row
        assert "…" not in row


def test_fresh_measures_again(results: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.measure.bench.outcomes", fail)
    with pytest.raises(AssertionError, match="measured again"):
        main([*RANDOM.split(), "--fresh", "--output", str(results)])


def test_eval_shows_one_model_beside_the_dense_one(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "clip_vit_s14_tome50", "--dataset", "emoji", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    [title, *_] = [line for line in out.splitlines() if line.strip()]
    assert "emoji (test, 2 images; text classifier" in title
    assert re.search(r"│ tome +│ +50 │.*│ +98 │", out)
    assert re.search(r"│ dense +│ +100 │.*│ +196 │", out)


def test_list(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in (
        "imgfocus_lit",
        "patchrank",
        "clip_vit_b16_evit60",
        "emoji-names",
        "Fashion-MNIST",
    ):
        assert word in out
    assert max(len(line) for line in out.splitlines()) <= PIPE_WIDTH


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("compare --datasets fasion", "no dataset is called 'fasion'. Did you mean 'fashion'?"),
        ("compare --methods tomee", "method 'tomee': did you mean 'tome'?"),
        ("compare --models clip_vit_s41", "model 'clip_vit_s41': did you mean 'clip_vit_s14'"),
        ("compare --models clip_vit_s14.imgfocus", "tag 'imgfocus' of clip_vit_s14: did you mean"),
        ("compare --models clip_vit_b16", "no weights of clip_vit_b16.openai (timm/vit_base_"),
        ("compare --dtype flaot32", "--dtype 'flaot32': did you mean 'float32'"),
        ("compare --device nonsense", "--device 'nonsense' can't be used here"),
        ("compare --keeps 0.6 1.5", "--keeps 1.5: expected fractions in"),
        ("compare --keeps 0", "--keeps 0: expected fractions in"),
        ("compare --keeps nan", "--keeps nan: expected fractions in"),
        ("compare --limit 0", "--limit 0: expected a number from 1, or --full"),
        ("compare --batches 1 0", "--batches 0: expected a number from 1"),
        ("compare --rounds 0", "--rounds 0: expected a number from 1"),
        ("compare --shots 4 -1", "--shots -1: expected 0, which is by text, or a number from 1"),
        ("compare --shots 1 --tokens vvt", "--tokens 'vvt': did you mean 'vt'? expected one of t,"),
        ("compare --tokens prob", "--tokens 'prob': did you mean 'probe'? expected one of t, v,"),
        ("compare --shots 1 --seeds 0", "--seeds 0: expected a number from 1"),
        ("compare --num-tokens 0", "--num-tokens 0: expected a number from 1"),
        ("eval clip_vit_s14 --dataset emoji --tokens x", "--tokens 'x': expected one of t, v, vt"),
        ("eval clip_vit_s14 --dataset emoji --shots 2 --prompts x", "--prompts 'x' with --shots 2"),
        ("compare --shots 9999", "9999 shots asked for, but class "),
        ("compare --shots 1 --seed -1", "--seed -1: expected a number from 0"),
        ("eval clip_vit_s14_rando60 --dataset emoji", "did you mean 'clip_vit_s14_random60'"),
        ("eval clip_vit_s14 --dataset emojis", "no dataset is called 'emojis'"),
        ("eval clip_vit_s14.imgfocus --dataset emoji", "weight tag 'imgfocus' of clip_vit_s14"),
        ("rank --dataset emoji --score lable", "score='lable': did you mean 'label'"),
        ("rank --dataset emoji --dtype flaot32", "--dtype 'flaot32': did you mean 'float32'"),
        ("rank --dataset emoji --limit 0", "--limit 0: expected a number from 1"),
        ("rank --dataset emoji --shard-size 0", "--shard-size 0: expected a number from 1"),
        ("rank --dataset emoji --budget 9 --stride 2", "--budget 9 with --stride: a budget picks"),
        ("rank --images gone", "--images 'gone': there is no such folder"),
        ("rank --dataset emoji --stride 3", "stride=3: more than window=2 leaves patches out"),
        ("rank --dataset emoji --model clip_vit_b16", "no weights of clip_vit_b16.openai (timm/"),
        ("fit predictor", "nothing to learn from: give --dataset, or --rankings"),
        ("fit predictor --arch covn", "arch='covn': did you mean 'conv'"),
        ("fit predictor --rankings gone --val gone", "rankings 'gone' do not exist"),
    ],
)
def test_mistakes(command: str, match: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    output = ["--output", str(tmp_path)] if command.startswith("compare") else []
    assert main([*command.split(), *output]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert match in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "compair",
        "eval",
        "rank",
        "rank --dataset emoji --images x",
        "compare --split tset",
    ],
)
def test_mistakes_in_the_grammar(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert "usage: python -m harness" in capsys.readouterr().err


def test_the_output_must_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    assert main([*RANDOM.split(), "--output", str(tmp_path / "file")]) == 2
    assert "is a file, or lies in one; expected a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_records_that_can_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "records.jsonl").write_text("{}\n")
    assert main([*RANDOM.split(), "--output", str(tmp_path)]) == 2
    assert "records.jsonl, line 1: " in capsys.readouterr().err


def test_stopping(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rank_command, "rank", stop)
    assert main(["rank", "--dataset", "emoji", "--limit", "1"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_whole_benchmark_in_miniature(
    parts: ClipParts,
    toy: Dataset,
    predictor_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """All methods, two numbers of shots, ranked first: what the plain command does, only small."""
    monkeypatch.setattr("harness.towers.create_clip", lambda name: parts)
    for module in (bench, compare_module, rank_command):
        monkeypatch.setattr(module, "get_dataset", lambda name: toy, raising=False)
    tower = Tower(parts.model.visual, parts.preprocess, "clip_vit_b16.openai", parts)
    for name in ("harness.golden.rank.load_tower", "harness.fit.load_tower"):
        monkeypatch.setattr(name, lambda name: tower)
    command = "rank --model clip_vit_b16 --dataset toy --stride 2 --limit 12"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    path, _, said = out.removeprefix("wrote ").strip().rpartition(": ")
    assert said == "12 of 21 images"
    assert (Path(path) / "part-00000.parquet").is_file()
    command = "compare --models clip_vit_b16 --datasets toy --limit 12 --shots 0 2 --batches 2"
    command += " --tokens probe --seeds 1"
    assert main([*command.split(), "--rounds", "1", "--output", str(tmp_path)]) == 0
    records = read_records(tmp_path / "records.jsonl")
    assert len(records) == 2 * (1 + 2 * 6)
    golden: list[Record] = [record for record in records if record.method == "golden"]
    assert len(golden) == 4
    assert all(record.tau > 0.99 for record in golden)  # ties of a window may be cut apart
    assert all(record.tau is not None for record in records if record.method != "dense")
    assert {r.method_config.get("predictor") is None for r in records} == {True, False}
