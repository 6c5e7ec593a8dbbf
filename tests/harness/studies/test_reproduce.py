"""The paper's tables and figures: its numbers, what each promises, what is written, how a run goes on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import part, replace

from harness.cli.entry import main, parse
from harness.cli.study import paper_config
from harness.datasets.base import Dataset
from harness.measure import rows as measured_rows
from harness.records.record import read_records
from harness.records.statistics import Interval
from harness.studies.reproduce import TABLES, mean_of, paper_rows
from harness.studies.study import StudyConfig, paper_tables
from zoo.core.reducer import final_count

FLAGS = (
    "--model clip_vit_b16.openai --limit 7 --train-limit 9 --seeds 1 --golden block=2,window=4,stride=4 "
    "--fit arch=mlp,width=8,epochs=2 --labelled 1 --tune rounds=1,steps=2,count=2"
)


def run(*flags: str) -> int:
    return main(["study", "reproduce", *" ".join(flags).split()])


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", TABLES)
def test_columns_make_the_printed_mean_and_rows_are_compared_with_earlier_ones(name: str):
    config = TABLES[name].conditions(StudyConfig(datasets=paper_tables()[name]["columns"]))
    rows = paper_rows(name, config, 12)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for place, row in enumerate(rows):
        if row.values:  # up to how they were rounded: EViT's mean is a little low
            assert len(row.values) == len(row.columns)
            assert np.mean(row.values) == pytest.approx(row.mean, abs=0.08)
        assert row.against is None or row.against in names[:place]
        assert row.keep is None or any(round(100 * keep) == row.keep for keep in config.keeps)


def test_a_mean_over_some_datasets_needs_each_of_them():
    every = paper_tables()["table1"]["columns"]
    rows = {row.name: row for row in paper_rows("table1", StudyConfig(datasets=every), 12)}
    assert rows["unpruned"].mean_over(["dtd", "ucf101"]) == pytest.approx((45.1 + 67.0) / 2)
    assert rows["unpruned"].mean_over(["dtd", "fashion"]) == 67.9  # others: as printed
    assert rows["golden, preservation, keep 60"].mean_over(["dtd"]) is None


@pytest.fixture
def one(paper_s: StudyConfig) -> StudyConfig:
    return replace(paper_s, datasets=("caltech101",), seeds=1)


# Those with a study, or keep rates, of their own; the others are made below.
@pytest.mark.parametrize("name", ["table1", "table3", "table4", "table6", "table7", "figure1"])
@pytest.mark.usefixtures("staged", "quick_costs")
def test_a_command_makes_a_table_as_its_dry_run_says_and_a_second_time_nothing(
    name: str, work: Counter[str], tmp_path: Path, capsys, monkeypatch
):
    if name == "figure1":  # costs are counted, which takes long
        monkeypatch.setitem(TABLES, name, replace(TABLES[name], keeps=(0.5,)))
    datasets = ("caltech101", "imagenet") if name == "table4" else ("caltech101",)
    flags = [name, "--dataset", *datasets, FLAGS, f"--output {tmp_path / 'out'}"]

    def missing() -> Counter[str]:
        """Count what is missing of each kind."""
        assert run(*flags, "--dry-run --json") == 0
        [found] = json.loads(capsys.readouterr().out)["plans"]
        counts = Counter[str]()
        for step in found["steps"]:
            counts[step["kind"]] += step["missing"]
        return +counts

    before = missing()
    assert not work
    assert not (tmp_path / "out").exists()
    assert run(*flags) == 0, capsys.readouterr().err
    capsys.readouterr()
    path = tmp_path / "out" / f"{name}.jsonl"
    records, text = read_records(path), path.with_suffix(".md").read_text()
    assert all(before[kind] == work[kind] for kind in ("predictors", "prompts"))
    rows = cells_of(text)
    ours = {row[0]: row for row in rows[2:] if row[1] == "ours"}
    assert len(ours) == len({row[0] for row in rows[2:]} - {""}) >= 2
    for label, row in ours.items():
        if label in ("before 4, 5, 6, 7", "before 1, 3, 5, 7"):  # of no tower of six blocks
            assert row[2] == "–"
        elif name != "figure1" or "keep 50" in label or "keep 100" in label:
            assert "–" not in row[2 : 2 + len(datasets)]
    assert path.with_suffix(".svg").exists() == bool(TABLES[name].plot)

    work["done"] = 1
    assert not missing()
    assert run(*flags) == 0, capsys.readouterr().err
    assert read_records(path) == records
    if name != "table3":  # of which times are shown as the first run wrote them
        assert path.with_suffix(".md").read_text() == text


@pytest.mark.command("study reproduce")
@pytest.mark.usefixtures("staged")
def test_ours_stand_beside_the_paper_s(tmp_path: Path, monkeypatch):
    """Stopped on the second dataset, the first is there; then its own mean over both stands beside the paper's."""
    real, calls = measured_rows.run_split, []
    monkeypatch.setitem(TABLES, "figure5", replace(TABLES["figure5"], keeps=(0.6,)))

    def stop(rows: Any, split: Any, *args: Any, **options: Any) -> Any:
        calls.append(split.image_ids[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(rows, split, *args, **options)

    command = ("figure5 --dataset caltech101 dtd", FLAGS, f"--output {tmp_path}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.measure.rows.run_split", stop)
        assert run(*command) == 130
        first = read_records(tmp_path / "figure5.jsonl")
        assert {record.dataset for record in first} == {"caltech101"}
        assert run(*command) == 0
    assert len(calls) == 3
    assert read_records(tmp_path / "figure5.jsonl")[: len(first)] == first
    text = (tmp_path / "figure5.md").read_text()
    assert "NOT the paper's" not in text
    ours, paper, off = cells_of(text)[2:5]
    assert paper[:5] == ["", "paper", "93.5", "45.1", "69.3"]  # its mean over these two
    for column in (2, 3, 4):
        mean = 69.3 if column == 4 else float(paper[column])
        assert float(off[column]) == pytest.approx(float(ours[column].split()[0]) - mean, abs=0.11)


def test_predictors_of_table_1_are_the_dataset_s_own(paper_s: StudyConfig, reproduced):
    comparison, records = reproduced("table1", replace(paper_s, seeds=1, keeps=(0.6, 0.51)))
    fits = {(r.dataset, r.method_config["predictor"]) for r in records if r.method == "patchrank"}
    assert len(fits) == len({predictor for _, predictor in fits}) == 6  # one per dataset and score
    [first, *_] = [row for row in comparison.results if row.row.measure == "match"]  # of half the patches
    [record, *_] = [r for r in records if (r.dataset, r.method, r.keep) == ("dtd", "patchrank", 0.51)]
    assert record.mean("match_at_k") == pytest.approx(first.ours["dtd"].estimate / 100)
    assert part(record, "match_k") == final_count(64, 0.51) == 33


def test_table_4_drops_the_same_at_the_same_blocks(one: StudyConfig, reproduced):
    comparison, records = reproduced("table4", replace(one, datasets=("caltech101", "imagenet")))
    pruned = [r for r in records if r.keep < 1]
    assert {tuple(r.method_config["reduce_at"]) for r in pruned} == {(1, 2, 3, 4)}
    assert {r.mean("final_tokens") for r in pruned} == {final_count(64, 116 / 196)}
    ours = {row.row.name: row.ours for row in comparison.results}
    assert ours["Patch Ranking, ImageNet-trained"]["imagenet"] == ours["Patch Ranking"]["imagenet"]


def test_table_2_has_the_target_s_own_on_its_diagonal(paper_s: StudyConfig, reproduced):
    comparison, _ = reproduced("table2", replace(paper_s, seeds=1))
    rows = {row.row.name: row for row in comparison.results}
    for name in ("caltech101", "dtd"):
        assert rows[f"fitted on {name}"].ours[name] == rows["fitted on the target"].ours[name]
        assert rows[f"fitted on {name}"].to[name] == (0, 0, 0)


def test_costs_are_compared_by_their_ratio(one: StudyConfig, reproduced):
    comparison, records = reproduced("table3", one)
    rows = {row.row.name: row for row in comparison.results}
    dense, pruned = (next(r for r in records if r.keep == keep) for keep in (1.0, 0.6))
    ratio = pruned.mean("gflops") / dense.mean("gflops")
    assert rows["keep 60, GFLOPs"].to["caltech101"].estimate == pytest.approx(ratio)
    timed = max(pruned.latency, key=lambda entry: entry.batch)
    assert rows["keep 60, ms"].to["caltech101"].estimate == timed.ratio_to_dense
    assert rows["keep 60, ms"].ours["caltech101"].estimate == timed.median_ms / 32


def test_a_mean_over_datasets_is_as_sure_as_independent_ones_make_it():
    mean, low, high = mean_of([Interval(10.0, 7.0, 12.0), Interval(20.0, 16.0, 21.0)])
    assert mean == 15.0
    assert mean - low == pytest.approx((3**2 + 4**2) ** 0.5 / 2)
    assert high - mean == pytest.approx((2**2 + 1**2) ** 0.5 / 2)


def test_conditions_are_the_paper_s_with_a_root_and_the_embedded_ones_without():
    def config(command: str) -> Any:
        words = command.split()
        return paper_config(parse(["study", "reproduce", *words]), words[0])

    paper = config("table4 --root data")
    assert (paper.model, paper.datasets[-2:]) == ("clip_vit_b16.openai", ("ucf101", "imagenet"))
    golden = paper.golden
    assert (paper.limit, paper.split, golden.block, golden.window, golden.stride) == (None, "test", 3, 2, 2)
    assert (paper.tune.count, paper.tune.anchor, paper.labelled) == (16, 0.0, 16)
    assert (paper.draws, paper.tune.seed, paper.fit.seed) == ("coop", 1, 0)
    ours = config("table1")
    assert (ours.model, ours.datasets, ours.limit) == ("clip_vit_s14", ("fashion", "emoji"), 300)


def test_other_data_are_named_and_what_cannot_be_read(staged: dict[str, Dataset], tmp_path: Path, capsys, monkeypatch):
    assert run("table3 --dataset elsewhere", FLAGS, f"--output {tmp_path}") == 0
    assert "NOT the paper's data" in (tmp_path / "table3.md").read_text()
    capsys.readouterr()
    assert run("table5 --dataset dtd food101 none", FLAGS, f"--output {tmp_path} --dry-run") == 2
    said = capsys.readouterr().err
    assert all(f"no dataset is called '{name}'" in said for name in ("food101", "none"))

    whole = staged["dtd"].split
    monkeypatch.setattr(staged["dtd"], "split", lambda name: whole(name)[:0] if name == "val" else whole(name))
    assert run("table1 --dataset caltech101 dtd", FLAGS, f"--output {tmp_path}") == 2
    assert "'dtd' has no val images" in capsys.readouterr().err
