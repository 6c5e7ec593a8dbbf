"""The paper's tables and figures: what each promises, what is written, how a run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import part, replace

from harness.base.terminal import Progress
from harness.cli import main
from harness.cli.study import study_config
from harness.datasets.base import Dataset, Split, SplitName
from harness.records.record import Record, read_records
from harness.records.statistics import Interval
from harness.studies.dry_run import remaining
from harness.studies.paper import MATCH, REPRODUCTIONS, get_reproduction
from harness.studies.reproduce import Comparison, draw, mean_of, series, under_its_conditions
from harness.studies.workshop import StudyConfig
from zoo.core.reducer import final_count
from zoo.learning.prompt_learner import RECIPES, TuneConfig

Reproduced = Callable[..., tuple[Comparison, list[Record]]]
FLAGS = (
    "--model clip_vit_b16.openai --limit 7 --train-limit 9 --seeds 1 --block 2 --window 4 "
    "--stride 4 --arch mlp --width 8 --epochs 2 --labelled 1 --rounds 1 --num-tokens 2"
)
Staged = dict[str, Dataset]


def run(*flags: str) -> int:
    return main(["study", "reproduce", *" ".join(flags).split()])


def test_ours_stand_beside_the_paper_s(staged, tmp_path: Path, capsys):
    command = ("figure5 --dataset caltech101 dtd", FLAGS, f"--output {tmp_path}")
    assert run(*command) == 0
    assert "Figure 5: pruning before block 1" in capsys.readouterr().out
    text = (tmp_path / "figure5.md").read_text()
    assert text.startswith(f"```\npatchrank study reproduce {command[0]} {FLAGS}\n```\n")
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
    assert run(*command) == 0  # nothing new to write
    assert read_records(tmp_path / "figure5.jsonl") == records
    assert (tmp_path / "figure5.md").read_text() == text


def test_another_tower_or_other_data_are_named(staged, tmp_path: Path, capsys):
    assert run("table3 --dataset elsewhere", FLAGS, f"--output {tmp_path}") == 0
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


def test_a_dry_run_only_names_what_is_missing(staged, tmp_path: Path, capsys, forbid):
    forbid()
    where = f"--output {tmp_path / 'out'} --dry-run"
    assert run("table5 --dataset dtd food101", FLAGS, where) == 0
    out = capsys.readouterr().out
    steps = ("rank", "fit predictors", "tune tokens", "judge", "missing", "food101: no dataset")
    assert [step for step in steps if step not in out] == []
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_steps_of_epochs(paper_s: StudyConfig, staged: Staged):
    """Two images of each of three classes: three epochs of one batch of four, unvalidated or each by six others."""
    recipe, datasets = get_reproduction("table5"), [staged["dtd"]]
    changes = {"epochs": 3, "batch": 4, "steps": 99, "rounds": 99}
    for patience, each in ((0, 3 * 4), (1, 3 * (4 + 6))):
        tune = replace(paper_s.tune, patience=patience, seed=1, **changes)
        config = replace(paper_s, datasets=("dtd",), labelled=2, draws="coop", tune=tune)
        steps = remaining(recipe, under_its_conditions(recipe, config), datasets, [], Progress())
        passes = [step.passes for step in steps if step.kind == "tune tokens" and step.of.startswith("vt for")]
        assert passes == [each * paper_s.seeds] * 2  # the dense tower and the pruned one


def test_what_was_stopped_goes_on(staged, tmp_path: Path, capsys, monkeypatch):
    """Stopped on the second dataset: the first is there, and isn't measured again."""
    from harness.measure import bench

    real, calls = bench.outcomes, []

    def stopping(rows: Any, split: Any, *args: Any, **options: Any) -> Any:
        calls.append(split.image_ids[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(rows, split, *args, **options)

    monkeypatch.setattr(bench, "outcomes", stopping)
    command = ("figure5 --dataset caltech101 dtd", FLAGS, f"--output {tmp_path}")
    assert run(*command) == 130
    first = read_records(tmp_path / "figure5.jsonl")
    assert {record.dataset for record in first} == {"caltech101"}
    assert "caltech101 (7 images)" in (tmp_path / "figure5.md").read_text()
    assert run(*command) == 0
    capsys.readouterr()
    assert len(calls) == 3
    records = read_records(tmp_path / "figure5.jsonl")
    assert records[: len(first)] == first
    assert len(records) == 2 * len(first)


def test_defaults_are_the_paper_s_with_a_root_and_the_embedded_ones_without():
    from harness.cli.parser import build_parser

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
    assert (paper.draws, paper.tune.seed, paper.fit.seed) == ("coop", 1, 0)
    assert config("table5", "--root", "data", "--draws", "ours").tune.seed == 0
    maple = config("table5", "--root", "data", "--recipe", "maple", "--seed", "2").tune
    assert maple == replace(RECIPES["maple"], count=16, depth=1, seed=2)
    ours = config("table1")
    assert (ours.model, ours.datasets) == ("clip_vit_s14", ("fashion", "emoji"))
    assert (ours.golden.window, ours.golden.stride, ours.limit) == (3, 2, 300)
    assert (ours.draws, ours.tune) == ("ours", TuneConfig(count=16, anchor=0.0))
    assert config("table1", "--full").limit is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("table8", "reproduce 'table8': did you mean 'table"),
        ("table1 --limit 0", "--limit 0: expected a number from 1"),
        ("table1 --seeds 0", "--seeds 0: expected a number from 1"),
        ("table1 --dtype int8", "--dtype 'int8'"),
        ("table1 --dataset dtdd", "no dataset is called 'dtdd'"),
        ("table1 --stride 3 --window 2", "stride=3: more than window=2 leaves patches out"),
        ("table1 --arch mixr", "arch='mixr': did you mean 'mixer'?"),
        ("table4 --keeps 0.6", "--keeps 0.6: table4 drops as many tokens as the paper, keep 59.2 %"),
        ("table6 --keeps 1.0", "--keeps 1: expected a rate below 1"),
        ("figure5 --keeps 0.6 0.604", "--keeps 0.6 0.604: expected rates that differ by a whole percent"),
        (
            "table1 --keeps 0.51",
            "differ by a whole percent, and not 0.51, which table1 needs itself",
        ),
        ("figure3 --keeps 1.0", "expected at least one rate"),
        ("figure3 --images 0", "0: expected a number from 1"),
    ],
)
def test_refused(flags: str, text: str, capsys, tmp_path: Path):
    assert run(flags, f"--output {tmp_path}") == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_neither_data_without_val_nor_a_tower_without_text_is_taken(staged, tmp_path: Path, capsys, monkeypatch):
    whole = staged["dtd"].split

    def split(name: SplitName) -> Split:
        return whole(name)[:0] if name == "val" else whole(name)

    monkeypatch.setattr(staged["dtd"], "split", split)
    assert run("table1 --dataset caltech101 dtd", FLAGS, f"--output {tmp_path}") == 2
    text = "dataset 'dtd' has no val images, which fits are stopped by"
    assert text in capsys.readouterr().err
    import harness.studies.run as module

    monkeypatch.setattr(staged["dtd"], "split", whole)
    tower = module.load_tower("")._replace(clip=None)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    assert run("table1 --dataset dtd", FLAGS, f"--output {tmp_path}") == 2
    assert "has no text tower here, so accuracy can't be judged" in capsys.readouterr().err


def conditions(name: str, paper_s: StudyConfig) -> StudyConfig:
    """Give the table its datasets, ImageNet where it wants it; one fit will do."""
    datasets = ("caltech101", "imagenet") if name == "table4" else ("caltech101",)
    keeps = (0.5,) if name == "figure1" else None  # costs are counted, which takes long
    return replace(paper_s, datasets=datasets, keeps=keeps, seeds=1)


@pytest.mark.parametrize("name", [one.name for one in REPRODUCTIONS])
def test_a_second_run_measures_nothing_and_a_dry_run_knows_before(name: str, paper_s, reproduced, staged, forbid):
    recipe, asked = get_reproduction(name), conditions(name, paper_s)
    config = under_its_conditions(recipe, asked)
    datasets = [staged[one] for one in config.datasets]
    before = remaining(recipe, config, datasets, [], Progress())
    assert {step.cached for step in before} == {0}
    for step in before:
        shared = name == "table1" and "preservation" not in step.of  # one pass serves all three scores
        costs = step.kind != "fit predictors" and not (shared and step.kind == "rank images")
        assert (step.passes > 0) == (step.images > 0) == costs

    comparison, records = reproduced(name, asked)
    assert not comparison.differences
    for one in comparison.results:
        assert set(one.ours) == (set() if one.row.empty else set(config.datasets)), one.row.name
        assert set(one.to) == (set(one.ours) if one.row.against else set()), one.row.name
    table = comparison.table()
    assert {len(row) for row in table.rows} == {len(table.heads)}
    judged = {(r.dataset, r.model, str(r.method_config), r.seed, r.tuning) for r in records}
    steps = [step for step in before if step.kind == "judge rows"]
    assert sum(step.total for step in steps) == len(records) >= len(judged)
    assert sum(step.passes for step in steps) == sum(r.image_count for r in records)
    left = {one.kind: one for one in before}["rank images"]
    assert left.passes == 4 * left.images  # windows of 4 x 4 by 4 on 8 x 8 patches

    forbid()
    again, same = reproduced(name, asked, records)
    assert same == records
    assert again.table() == table
    after = remaining(recipe, config, datasets, records, Progress())
    assert [(s.kind, s.of, s.total) for s in after] == [(s.kind, s.of, s.total) for s in before]
    assert all((s.cached, s.images, s.passes) == (s.total, 0, 0) for s in after)


def test_predictors_of_table_1_are_the_dataset_s_own(paper_s: StudyConfig, reproduced):
    comparison, records = reproduced("table1", replace(paper_s, seeds=1))
    fits = {
        name: {r.method_config["predictor"] for r in records if r.dataset == name and r.keep < 1
               and r.method == "patchrank"}
        for name in ("caltech101", "dtd")
    }  # fmt: skip
    assert [len(own) for own in fits.values()] == [3, 3]  # one per score
    assert not set.intersection(*fits.values())
    # The matching rate is of half the patches.
    rows = [one for one in comparison.results if one.row.measure == MATCH]
    assert next(one.row.name for one in rows) == "match at 100, preservation"
    [record] = [
        r for r in records
        if (r.dataset, r.method, r.keep) == ("dtd", "patchrank", 0.51)
        and r.mean("match_at_k") == pytest.approx(rows[0].ours["dtd"].estimate / 100)
    ][:1]  # fmt: skip
    assert part(record, "match_k") == final_count(64, 0.51) == 33


def test_table_4_drops_the_same_at_the_same_blocks(paper_s: StudyConfig, reproduced):
    comparison, records = reproduced("table4", conditions("table4", paper_s))
    pruned = [r for r in records if r.keep < 1]
    assert {tuple(r.method_config["reduce_at"]) for r in pruned} == {(1, 2, 3, 4)}
    assert {r.mean("final_tokens") for r in pruned} == {final_count(64, 116 / 196)}
    rows = {one.row.name: one for one in comparison.results}
    assert rows["A-ViT"].ours.keys() == rows["EViT"].ours.keys() != set()
    assert rows["A-ViT"].paper.mean == 63.8
    general = rows["Patch Ranking, ImageNet-trained"].ours
    assert general["imagenet"] == rows["Patch Ranking"].ours["imagenet"]


def test_table_2_has_the_target_s_own_on_its_diagonal(paper_s: StudyConfig, reproduced):
    comparison, _ = reproduced("table2", replace(paper_s, seeds=1))
    rows = {one.row.name: one for one in comparison.results}
    for name in ("caltech101", "dtd"):
        assert rows[f"fitted on {name}"].ours[name] == rows["fitted on the target"].ours[name]
        assert rows[f"fitted on {name}"].to[name] == (0, 0, 0)


def test_prompts_of_table_5_are_compared_with_prompts(paper_s: StudyConfig, reproduced):
    comparison, records = reproduced("table5", replace(paper_s, datasets=("dtd",)))
    row = next(one for one in comparison.results if one.row.name == "V+T, keep 60")
    assert row.row.against == "V+T, full"
    right = {
        method: np.mean([r.correct for r in records if (r.method, r.tuning) == (method, "vt")], 0)
        for method in ("dense", "patchrank")
    }
    lost = 100 * float(np.mean(right["patchrank"] - right["dense"]))
    assert row.to["dtd"].estimate == pytest.approx(lost)
    assert row.paper_to(("dtd",)) is None  # we know only the mean of all
    assert {r.method_config.get("predictor") is None for r in records if r.keep < 1} == {False}


def test_costs_are_compared_by_their_ratio(paper_s: StudyConfig, reproduced):
    comparison, records = reproduced("table3", paper_s)
    assert comparison.datasets == ("caltech101",)
    rows = {one.row.name: one for one in comparison.results}
    dense, pruned = (next(r for r in records if r.keep == keep) for keep in (1.0, 0.6))
    share = rows["keep 60, GFLOPs"].to["caltech101"].estimate
    assert share == pytest.approx(pruned.mean("gflops") / dense.mean("gflops"))
    assert rows["keep 60, GFLOPs"].paper_to(()) is None
    timed = max(pruned.latency, key=lambda entry: entry.batch)
    assert rows["keep 60, ms"].to["caltech101"].estimate == timed.ratio_to_dense
    assert rows["keep 60, ms"].ours["caltech101"].estimate == timed.median_ms / 32


def test_figure_5_is_drawn_along_the_keep_rate(paper_s: StudyConfig, reproduced):
    comparison, _ = reproduced("figure5", replace(paper_s, datasets=("elsewhere",), seeds=1))
    lines = series(comparison)
    paper = {name for name in lines if name.endswith(", paper")}
    assert paper == {"CLS attention, paper", "golden, paper"}
    rankings = ("CLS attention", "golden", "predicted", "random")
    assert set(lines) - paper == {f"{name}, ours" for name in rankings}
    for name, points in lines.items():
        percents = [50, 60, 100] if name in paper else [50, 60, 70, 80, 90, 100]
        assert [point.x.estimate for point in points] == percents
        assert points[-1].y == (0, 0, 0)  # the unpruned tower
        assert {point.hollow for point in points} == {name in paper}
    lost = {name: [point.y.estimate for point in lines[name][:2]] for name in paper}
    assert lost["CLS attention, paper"] == pytest.approx([62.0 - 67.9, 65.1 - 67.9])
    assert lost["golden, paper"] == pytest.approx([64.0 - 67.9, 66.3 - 67.9])
    assert draw(comparison) == draw(comparison)


def test_a_mean_over_datasets_is_as_sure_as_independent_ones_make_it():
    one, two = Interval(10.0, 7.0, 12.0), Interval(20.0, 16.0, 21.0)
    mean, low, high = mean_of([one, two])
    assert mean == 15.0
    assert mean - low == pytest.approx((3**2 + 4**2) ** 0.5 / 2)
    assert high - mean == pytest.approx((2**2 + 1**2) ** 0.5 / 2)
