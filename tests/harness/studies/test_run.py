"""One contract for every study; what distinguishes some; their table, judged together; the command and its records."""

import csv
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import KNOWN, answers, replace

import harness.measure.bench
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import FINAL, Dataset
from harness.golden.store import Source, cache_store
from harness.measure.rows import usual_methods
from harness.records.metrics import pack, unpack
from harness.records.record import GOLDEN, Record, read_records, utc_now
from harness.records.statistics import bootstrap_mean, holm, mean_interval, sign_flip_exact
from harness.studies.answer import StudyTable, answer, take_inventory
from harness.studies.case import find
from harness.studies.questions import KINDS, four_points, list_studies, schedules
from harness.studies.study import StudyConfig
from zoo.core.recipes import GoldenConfig
from zoo.loading.clip import ClipParts

IMAGES = 300
TRUTH = np.arange(IMAGES) < 200
FLAGS = (
    "--model clip_vit_b16 --dataset plain --limit 7 --train-limit 9 --seeds 2 --golden block=2,window=4,stride=4 "
    "--fit arch=mlp,width=8,epochs=2 --keeps 0.5"
)


def inventory_of(name: str, config: StudyConfig) -> list[dict[str, Any]]:
    return take_inventory(list_studies()[name], config, Progress())


@pytest.mark.parametrize("name", list_studies())
@pytest.mark.usefixtures("predictor_file", "quick_costs")
def test_a_study_makes_what_its_dry_run_lists_and_nothing_again(few: StudyConfig, name: str, studied, work):
    study = list_studies()[name]
    few = replace(few, split="test" if study.tunes or study.foreground else "val", seeds=1)
    before = inventory_of(name, few)
    assert not work
    assert all(one["cached"] == 0 for one in before)
    [(table, records)] = studied(name, few).values()
    for kind in ("predictors", "prompts"):
        assert sum(one["missing"] for one in before if one["kind"] == kind) == work[kind]
    assert any(one["missing"] for one in before if one["kind"] == "rankings") == bool(work["rankings"])

    begins = {row.group: row for row in reversed(table.rows)}
    assert [row for row in table.rows if row.difference("to_first") is None] == list(reversed(begins.values()))
    if plot := list_studies()[name].plot:
        assert sum(map(len, table.chart(*plot).series.values())) > 1
    for row in table.rows:
        assert {(record.image_count, record.split) for record in row.records} == {(7, few.split)}
        golden = "golden" in {record.method for record in row.records}
        assert (row.average.mean("gflops") is None) == golden
        if golden:
            assert row.average.mean("tau") > 0.95  # in several steps, ties are broken otherwise
    assert len({tuple(row.labels.values()) for row in table.rows}) == len(table.rows)

    work["done"] = 1
    after = inventory_of(name, few)
    assert after == [one | {"cached": one["missing"], "missing": 0} for one in before]
    if name == "losses":  # a wider predictor is another one
        wider = replace(few, fit=replace(few.fit, width=4))
        assert not any(one["cached"] for one in inventory_of(name, wider) if one["kind"] != "rankings")
    again = studied(name, few, records)["plain"][1]
    # Two lines may stand for the same model: then the later record serves both.
    now = utc_now()
    assert [replace(r, created=now) for r in again] == [replace(r, created=now) for r in records]


@pytest.mark.usefixtures("quick_costs")
def test_transfer_fits_on_each_and_on_all(tiny: StudyConfig, studied):
    """The second dataset's predictors are loaded into the tower that the first was judged in, in half precision."""
    results = studied("transfer", replace(tiny, precision="bfloat16"))
    rows = results["other"][0].rows
    assert [row.labels["fitted on"] for row in rows] == ["other", "plain", "plain + other", "(golden)"]
    judged = [record for table, _ in results.values() for row in table.rows[:3] for record in row.records]
    assert len({r.method_config["predictor"] for r in judged}) == 6  # three training sets, two seeds
    every = [record for _, records in results.values() for record in records]
    assert {(r.precision, r.weights_sha256) for r in every} == {("bfloat16", every[0].weights_sha256)}


@pytest.mark.usefixtures("quick_costs")
def test_shots_count_images_of_all_datasets_as_far_as_there_are_some(tiny: StudyConfig, studied):
    table, _ = studied("shots", replace(tiny, keeps=(0.5,), seeds=1))["plain"]
    images = [(row.labels["images per class"], row.labels["images"]) for row in table.rows]
    assert images == [("all", "18"), ("2", "12"), ("1", "6")]


@pytest.mark.parametrize("name", ["schedule", "merging"])
@pytest.mark.usefixtures("predictor_file")
def test_lines_of_one_keep_rate_cost_the_same(few: StudyConfig, name: str, studied):
    """As nearly as whole tokens allow: one token more or less is the smallest step."""
    table, _ = studied(name, replace(few, seeds=1))["plain"]
    known = [cost for row in table.rows if (cost := row.average.mean("gflops")) is not None]
    assert known == pytest.approx([known[0]] * len(known), rel=0.04)
    if name == "schedule":  # a golden row has the keep rate of the predicted one
        keeps = [row.records[0].keep for row in table.rows]
        assert keeps[::2] == keeps[1::2]


def test_schedules_stay_in_the_tower():
    assert schedules(3, 9) == [(3,), (3, 5), (3, 5, 7), (3, 4, 5, 6), (3, 4, 5, 6, 7, 8)]
    assert schedules(5, 6) == [(5,)]
    assert four_points(12) == [(3, 5, 7, 9), (1, 2, 3, 4), (3, 4, 5, 6), (0, 2, 4, 6)]
    with pytest.raises(ValueError, match="this tower has 4"):
        four_points(4)


@pytest.fixture
def tuned(few: StudyConfig, predictor_file: Path) -> StudyConfig:
    return replace(few, split="test")


def test_pruned_models_are_compared_with_the_dense_one_tuned_alike(tuned: StudyConfig, studied):
    table, records = studied("tuning", tuned)["plain"]
    lines = [(row.labels["tuned"], row.labels["model"].split("_")[-1]) for row in table.rows]
    assert lines == list(product(("none", "T", "V+T"), ("b16", "patchrank50")))
    dense, pruned = table.rows[4:]
    for row in (dense, pruned):
        facts = [(r.tuning, r.shots, r.seed, r.prompt_tokens) for r in row.records]
        assert facts == [("vt", 1, 0, 2), ("vt", 1, 1, 2)]
    pairs = zip(pruned.records, dense.records, strict=True)
    apart = [np.asarray(a.correct, float) - b.correct for a, b in pairs]
    assert pruned.difference("to_first") == bootstrap_mean(np.mean(apart, axis=0))
    assert pruned.difference("over_seeds") == pytest.approx(mean_interval([float(a.mean()) for a in apart]))
    assert dense.difference("over_seeds") is table.rows[1].difference("over_seeds") is None
    assert len({r.method_config["prompts"] for r in records if r.tuning}) == 8


def test_moved_prompts_are_the_ones_of_the_other_tower(tuned: StudyConfig, studied):
    table, _ = studied("order", tuned)["plain"]
    on_pruned, moved, on_dense, moved_back = ([r.method_config["prompts"] for r in row.records] for row in table.rows)
    assert on_pruned == moved_back != on_dense == moved


def test_every_kind_is_another(tuned: StudyConfig, studied):
    tuned = replace(tuned, seeds=1)
    table, records = studied("kinds", tuned)["plain"]
    assert [row.labels["tokens"] for row in table.rows] == list(KINDS)
    assert len({record.method_config["prompts"] for record in records if record.tuning}) == len(KINDS)
    with pytest.raises(ValueError, match="--split val"):
        studied("kinds", replace(tuned, split="val"))


def test_longer_sequences_cost_more_on_the_final_split_too(tuned: StudyConfig, studied, staged, monkeypatch):
    Toy: Any = type(staged["plain"]).__mro__[1]  # which counts images
    monkeypatch.setattr(Toy, "has_final", True)
    monkeypatch.setitem(Toy._split.__globals__["COUNTS"], FINAL, 6)
    table, records = studied("count", replace(tuned, split=FINAL, seeds=1))["plain"]
    assert {record.split for record in records} == {FINAL}
    assert not staged["plain"]._released
    costs = {row.labels["tokens"]: row.average.mean("gflops") for row in table.rows}
    assert costs["0"] < costs["4"] < costs["16"] < costs["32"]


def test_rankings_of_other_images_or_conditions_and_broken_ones_are_not_taken(toy: Dataset, ranked):
    model, made = "clip_vit_b16.openai", ranked("test", 5)
    path = cache_store(model, "toy", "test", GoldenConfig())
    made.write(path)
    source, weights = Source.of(toy, "test"), made.provenance.weights

    def search(count: int = 3, weights: str = weights, revision: str = source.revision, **golden: Any) -> Any:
        images = replace(source, revision=revision)
        return find(model, weights, images, GoldenConfig(**golden), source.images.image_ids[:count])

    for count, there in ((3, 3), (5, 5), (9, 5)):
        assert search(count).image_ids == toy.split("test").image_ids[:there]
    assert search(weights="0" * 16) is search(revision="another") is None
    assert search(score="label") is search(block=2) is search(stride=2) is None
    path.write_bytes(b"nothing")
    assert search() is None


@pytest.mark.usefixtures("staged", "quick_costs", "predictor_file")
def test_what_a_stopped_run_kept_of_another_dataset_stays(few: StudyConfig, tmp_path: Path):
    kept = tmp_path / "other"
    kept.mkdir()
    assert list(answer(list_studies()["merging"], replace(few, seeds=1), [], Progress(), folder=tmp_path))
    assert list(tmp_path.iterdir()) == [kept]


def make_record(lost: int, won: int = 0, **changes: object) -> Record:
    """Make a record that is wrong where the dense one is right, and the other way round."""
    right = TRUTH.copy()
    right[:lost], right[200 : 200 + won] = False, True
    return replace(KNOWN, **answers(right) | changes)


def make_table(*records: list[Record], dense: Record | None = None) -> StudyTable:
    lines = [({"line": f"l{at}"}, 0.5, own) for at, own in enumerate(records)]
    dense = dense or make_record(0)
    return StudyTable.of("t", dense, lines)


def test_each_column_is_a_family_judged_by_holm_and_marked():
    one = make_table([make_record(10, 1)], [make_record(14, 5)], [make_record(60, 3)], [make_record(10, 1)])
    dense = [sign_flip_exact(row.average.hits - TRUTH) for row in one.rows]
    family, first = one.families()["to_dense"], one.families()["to_first"]
    assert list(family.adjusted.values()) == pytest.approx(list(holm(dense)))
    assert sorted(first.alone) == [1, 2, 3]
    assert (family.clear, first.clear) == ({0, 2, 3}, {2})
    marked = [cell for row in one.table().rows for cell in row if cell.mark]
    assert len(marked) == 3 + 1
    assert [line["to_dense_p_holm"] for line in one.lines()] == [float(f"{p:.6g}") for p in holm(dense)]


def test_means_over_seeds_are_judged_by_sign_flips():
    seeds = [make_record(20, 2), make_record(25, 4)]
    table = make_table([make_record(3)] * 3, seeds)
    hits = np.sum([record.correct for record in seeds], axis=0)
    first, second = table.rows
    assert second.differences["to_dense"] == (bootstrap_mean(hits / 2 - TRUTH), sign_flip_exact(hits - 2 * TRUTH))
    assert second.differences["to_first"][1] == sign_flip_exact(3 * hits - 2 * first.average.hits)
    assert first.differences.keys() == {"to_dense"}


def test_without_labels_lines_differ_by_their_distance_to_dense():
    blank = dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high", "diff_to_dense", "diff_low", "diff_high"))
    near = np.random.default_rng(0).uniform(0.01, 0.02, IMAGES).astype(np.float16).astype(np.float64)
    lines = []
    for values in (near, near + 0.25 * near, np.flip(near)):
        mean = unpack(pack(values), IMAGES).mean()
        fidelity = {"cosine_values": pack(values), "cosine_distance": mean, "cosine_low": 0.0, "cosine_high": 1.0}
        lines.append([replace(make_record(0), **blank, **fidelity)])
    table = make_table(*lines, dense=replace(make_record(0), **blank))
    assert {"1 - cos", "1 - cos to first"} <= set(table.table().heads)
    assert not {"top-1", "to dense", "to first"} & set(table.table().heads)
    assert table.rows[1].difference("distance_to_first").estimate == pytest.approx(0.25 * near.mean(), rel=1e-3)
    assert {name: own.clear for name, own in table.families().items() if own.clear} == {"distance_to_first": {1}}


def test_lines_of_other_conditions_are_refused():
    with pytest.raises(ValueError, match="precision"):
        make_table([make_record(3)], [make_record(3, precision="bfloat16")])
    tuned = [make_record(3, shots=4, tuning="t", prompt_tokens=8, seed=seed) for seed in (0, 1)]
    assert len(make_table([make_record(3)], tuned).rows) == 2  # these may differ


@pytest.mark.command("study")
@pytest.mark.usefixtures("staged")
def test_a_second_run_reads_the_records_that_the_first_wrote(tmp_path: Path):
    command = ["study", "transfer", *FLAGS.split(), "--output", str(tmp_path)]
    assert main([*command, "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    assert main(command) == 0
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    text = written[tmp_path / "transfer.csv"].decode()
    assert [line["fitted on"] for line in csv.DictReader(io.StringIO(text))] == ["plain", "(golden)"]
    found = read_records(tmp_path / "transfer.jsonl")
    assert [record.method for record in found] == ["dense", "patchrank", "patchrank", "golden"]
    assert main(command) == 0  # nothing new to write
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


@pytest.fixture
def final_split(parts: ClipParts, toy: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the toy dataset a final split, which refuses whoever has no release."""
    monkeypatch.setattr(type(toy), "has_final", True)
    monkeypatch.setitem(type(toy)._split.__globals__["COUNTS"], FINAL, 5)
    monkeypatch.setattr("harness.apps.compare.get_dataset", lambda name: toy)
    monkeypatch.setattr("zoo.loading.towers.create_clip", lambda name: parts)


@pytest.mark.command("study final")
@pytest.mark.usefixtures("final_split")
def test_it_measures_every_method_at_equal_cost_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in (harness, harness.measure.bench):
        monkeypatch.setattr(place, "git_commit", lambda: "1-dirty")
    command = ["study", "final", "--model", "clip_vit_b16", "--dataset", "emoji", "--keeps", "0.6", "--output"]
    assert main([*command, str(tmp_path)]) == 0
    records = read_records(tmp_path / "records.jsonl")
    assert {(record.split, record.git_commit) for record in records} == {(FINAL, "1-dirty")}
    text = (tmp_path / "table.md").read_text("utf-8")
    assert text.count("commit 1, uncommitted changes") == 1
    assert text.count("| rankmerge |") == 2  # in the dataset's table, and in that of all
    assert sorted(record.method for record in records) == sorted(set(usual_methods()) - {GOLDEN})
    assert main([*command, str(tmp_path)]) == 0
    assert read_records(tmp_path / "records.jsonl") == records
