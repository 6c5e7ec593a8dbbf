"""The matrix's numbers are those of harness.agreement, of images and rows that belong together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.agreement import kendall_tau, over_images
from harness.report_pictures import matrix, table
from harness.report_pictures.agreement import taus
from harness.report_pictures.groups import Group, groups, label
from harness.traces import Thumbnails, read_traces


def test_a_pair_has_the_mean_over_images_with_its_interval(run):
    rows = {row.facts.model: row for row in read_traces(run.run) if not row.golden}
    [found] = [
        pair
        for pair in table(run.run)
        if (pair["a_model"], pair["b_model"]) == ("clip_vit_b16_evit50", "clip_vit_b16_patchrank50")
    ]
    values = kendall_tau(
        rows["clip_vit_b16_evit50"].importance, rows["clip_vit_b16_patchrank50"].importance
    )
    wanted = over_images(values)
    assert (found["tau"], found["tau_low"], found["tau_high"]) == (
        wanted.mean, wanted.low, wanted.high,
    )  # fmt: skip
    assert found["images"] == 12
    assert (found["a"], found["b"], found["dataset"]) == ("evit", "patchrank", "toy")


def test_every_pair_of_a_keep_rate_is_there_golden_first(run):
    pairs = [(p["a"], p["b"], p["b_model"][-2:]) for p in table(run.run)]
    wanted = [("golden ranking", m) for m in ("evit", "patchrank", "random")]
    wanted += [("evit", "patchrank"), ("evit", "random"), ("patchrank", "random")]
    assert pairs == [(*pair, keep) for keep in ("50", "25") for pair in wanted]
    json.dumps(table(run.run), allow_nan=False)


def test_a_ranking_agrees_with_itself_and_opposes_its_reverse(run):
    [row] = [row for row in read_traces(run.run) if row.facts.model == "clip_vit_b16_evit50"]
    back = replace(row, importance=(row.importance.max() - row.importance).astype(np.int16))
    assert taus(row, row).tolist() == pytest.approx([1.0] * 12)
    assert taus(row, back).tolist() == pytest.approx([-1.0] * 12)


def test_images_without_one_of_the_rankings_do_not_count(run):
    golden = run.golden()
    golden.importance[:5] = -1
    run.put(golden)
    counts = {pair["a"]: pair["images"] for pair in table(run.run)}
    assert counts == {"golden ranking": 7, "evit": 12, "patchrank": 12}


def test_rankings_that_tie_throughout_are_undefined_not_zero(run):
    flat = run.row("evit", 0.5)
    flat.importance[:3] = 7
    run.put(flat)
    [found] = [p for p in table(run.run) if p["a_model"] == "clip_vit_b16_evit50"][:1]
    assert (found["images"], found["undefined"]) == (9, 3)


def test_one_image_has_no_mean(written):
    made = written()
    for method in ("evit", "patchrank"):
        made.put(made.row(method, 0.5).take(made.ids[:1]))
    [found] = table(made.run)
    assert (found["tau"], found["tau_low"], found["images"]) == (None, None, 1)
    assert "none is defined" in matrix(made.run)[0].alt


def test_a_row_of_the_oracle_stands_not_beside_the_ranking_itself(run):
    run.row("golden", 0.5, method_config={"score": "preservation", "keep": 0.5})
    assert "golden" not in {pair["b"] for pair in table(run.run)}


def test_images_that_a_row_lacks_are_left_out_of_all(run):
    run.put(run.row("evit", 0.5).take(run.ids[2:9]))
    assert {pair["images"] for pair in table(run.run)} == {7}


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights_sha256", "cd" * 32), ("dataset_revision", "other"), ("version", "0.2.0")],
)
def test_rows_of_other_conditions_never_stand_side_by_side(name: str, value: str, run):
    other = run.row("evit", 0.5, **{name: value})
    run.row("patchrank", 0.5, **{name: value})
    found = groups([run.run])
    assert len(found) == 2
    assert all(len({getattr(row.facts, name) for row in group.rows}) == 1 for group in found)
    assert len({group.title for group in found}) == len({group.slug for group in found}) == 2
    assert f"({name} {value})" in found[1].title + found[0].title
    with pytest.raises(ValueError, match=f"traces of different {name} cannot stand side by side"):
        Group.of([other, run.row("random", 0.5)], Thumbnails(jpeg={}))


def test_another_patch_grid_is_refused(run):
    row = run.row("evit", 0.5)
    with pytest.raises(ValueError, match="different grid"):
        Group.of([row, replace(run.row("random", 0.5), grid=(4, 9))], Thumbnails(jpeg={}))


def test_other_images_are_refused(run):
    row = run.row("evit", 0.5)
    with pytest.raises(ValueError, match="are of different images"):
        taus(row, row.take(run.ids[:3]))


def test_several_runs_stand_in_one_matrix_the_last_of_a_row_counting(written):
    one, other = written("one"), written("other")
    one.row("evit", 0.5)
    one.row("patchrank", 0.5)
    last = other.row("patchrank", 0.5, seed=9)
    other.row("tome", 0.5)
    [group] = groups([one.run, other.run])
    assert [row.facts.method for row in group.rows] == ["evit", "patchrank", "tome"]
    assert np.array_equal(group.rows[1].importance, last.importance)


def test_a_run_is_its_folder_or_its_file_and_one_without_traces_adds_nothing(run, tmp_path: Path):
    file = run.run / "records.jsonl"
    file.write_text("")
    assert table(file) == table(run.run, tmp_path)
    assert table(tmp_path) == matrix(tmp_path) == []


def test_methods_with_keep_rates_of_their_own_stand_by_their_order(written):
    made = written()
    for method, keeps in (("evit", (0.61, 0.31)), ("tome", (0.55, 0.28))):
        for keep in keeps:
            made.row(method, keep)
    [group] = groups([made.run])
    found = [[label(row, level) for row in level] for level in group.levels]
    assert found == [["evit 61 %", "tome 55 %"], ["evit 31 %", "tome 28 %"]]
    assert "Kendall τ-b with 55 to 61 % of the patch tokens kept" in matrix(made.run)[0].alt


def test_rows_of_one_method_and_keep_are_told_apart_by_their_settings(run):
    run.row("evit", 0.5, method_config={"keep": 0.5, "fuse": True})
    names = {pair["a"] for pair in table(run.run)} - {"golden ranking", "patchrank", "evit"}
    assert len(names) == 2
    assert all(name.startswith("evit ") for name in names)
