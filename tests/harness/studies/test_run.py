"""One contract for every study; its table, judged together; the command and its records."""

from pathlib import Path

import numpy as np
import pytest
from by_hand import replace
from rich.console import Console

from harness.cli import main
from harness.records.metrics import pack, unpack
from harness.records.record import Record, read_records, utc_now
from harness.records.statistics import bootstrap_mean, holm, mcnemar_exact, paired_p
from harness.studies import run as module
from harness.studies.run import NOTES, Sheet, entries, get_study, list_studies
from harness.studies.workshop import StudyConfig

NOW = utc_now()
IMAGES = 300
TRUTH = np.arange(IMAGES) < 200
[KNOWN] = read_records(Path(__file__).parents[1] / "schema" / "record.jsonl")
FLAGS = (
    "--model clip_vit_b16 --dataset plain --limit 7 --train-limit 9 --seeds 2 --block 2 "
    "--window 4 --stride 4 --arch mlp --width 8 --epochs 2 --keeps 0.5"
)


@pytest.mark.parametrize("name", list_studies())
@pytest.mark.usefixtures("predictor_file")
def test_a_study_answers_and_again_without_measuring(few: StudyConfig, name: str, studied, forbid):
    few = replace(few, split=get_study(name).split)
    results = studied(name, few)
    assert list(results) == ["plain"]
    sheet, records = results["plain"]
    first = [entry for entry in sheet.entries if entry.to_first is None]
    begins = {entry.group: entry for entry in reversed(sheet.entries)}
    assert first == list(reversed(begins.values()))
    assert sheet.dense == records[0]
    assert sum(len(entry.records) for entry in sheet.entries) == len(records) - 1
    for entry in sheet.entries:
        assert {(record.image_count, record.split) for record in entry.records} == {(7, few.split)}
        golden = "golden" in {record.method for record in entry.records}
        assert (entry.row.mean("gflops") is None) == golden
        if golden:
            assert entry.row.mean("tau") > 0.95  # in several steps, ties are broken otherwise
    table = sheet.table()
    assert {len(row) for row in table.rows} == {len(table.heads)}
    labels = [tuple(entry.labels.values()) for entry in sheet.entries]
    assert len(set(labels)) == len(labels)

    forbid()
    again = studied(name, few, records)
    # Two lines may stand for the same model: then the later record serves both.
    first, second = ([replace(r, created=NOW) for r in run["plain"][1]] for run in (results, again))
    assert second == first


def test_differences_are_of_the_mean_over_seeds(few: StudyConfig, studied):
    sheet, records = studied("losses", few)["plain"]
    right = [np.mean([r.correct for r in e.records], axis=0) for e in sheet.entries]
    for entry, hits in zip(sheet.entries, right, strict=True):
        assert len(entry.records) == 2
        assert entry.to_dense == bootstrap_mean(hits - records[0].correct, seed=0)
        if entry.to_first is not None:
            assert entry.to_first == bootstrap_mean(hits - right[0], seed=0)


def judged(lost: int, won: int = 0, **changes: object) -> Record:
    """Make a record that is wrong where the dense one is right, and the other way round."""
    right = TRUTH.copy()
    right[:lost], right[200 : 200 + won] = False, True
    facts = {"image_count": IMAGES, "correct_bits": pack(right), "top1": right.mean()}
    return replace(KNOWN, **facts, **{"top1_low": 0.0, "top1_high": 1.0} | changes)


def make_sheet(*records: list[Record]) -> Sheet:
    lines = [({"line": f"l{at}"}, 0.5, own) for at, own in enumerate(records)]
    dense = judged(0)
    return Sheet(title="t", dense=dense, entries=entries(lines, dense))


def text_of(sheet: Sheet) -> str:
    console = Console(width=220)
    with console.capture() as captured:
        console.print(sheet.table())
    return captured.get()


ONE = make_sheet([judged(10, 1)], [judged(14, 5)], [judged(60, 3)], [judged(10, 1)])


def test_each_column_is_a_family_judged_by_holm():
    dense = [mcnemar_exact(e.records[0].correct, TRUTH) for e in ONE.entries]
    family = ONE.judged()["to_dense"]
    assert list(family.adjusted.values()) == pytest.approx(list(holm(dense)))
    first = ONE.judged()["to_first"]
    assert sorted(first.alone) == [1, 2, 3]
    assert first.alone[3] == 1
    assert family.clear == {0, 2, 3}
    assert first.clear == {2}
    assert dense[1] > 0.05 > dense[0]


def test_the_terminal_has_marks_where_markdown_has_spaces():
    text = text_of(ONE)
    cells = [cell.tight for row in ONE.table().rows for cell in row]
    assert sum("*[" in cell for cell in cells) == text.count("*[") == 3 + 1
    assert all(cell in text for cell in cells)
    flat = " ".join(text.split())
    assert "all of a column judged together (exact McNemar test or sign-flip test over images, Holm, 5 %)" in flat
    plain = ONE.markdown()
    assert "*" not in plain
    assert all(cell in plain for row in ONE.table().rows for cell in row)
    assert "*" not in NOTES


def test_means_over_seeds_are_judged_by_sign_flips():
    seeds = [judged(20, 2), judged(25, 4)]
    sheet = make_sheet([judged(3)], seeds)
    hits = np.sum([record.correct for record in seeds], axis=0)
    assert sheet.entries[1].p["to_dense"] == paired_p(hits, TRUTH, 2, 1)
    assert sheet.entries[1].p["to_first"] == paired_p(hits, judged(3).correct, 2, 1)
    assert sheet.entries[0].p.keys() == {"to_dense"}
    assert sheet.entries[0].to_first is None
    assert "exact sign-flip test over images" in " ".join(text_of(sheet).split())


def test_without_labels_lines_differ_by_their_distance_to_dense():
    blank = dict.fromkeys(("correct_bits", "top1", "top1_low", "top1_high", "diff_to_dense", "diff_low", "diff_high"))
    near = np.random.default_rng(0).uniform(0.01, 0.02, IMAGES).astype(np.float16).astype(np.float64)
    lines = []
    for values in (near, near + 0.25 * near, np.flip(near)):
        mean = unpack(pack(values), IMAGES).mean()
        fidelity = {
            "cosine_values": pack(values),
            "cosine_distance": mean,
            "cosine_low": 0.0,
            "cosine_high": 1.0,
        }
        lines.append([replace(judged(0), **blank, **fidelity)])
    sheet = Sheet(
        title="t",
        dense=replace(judged(0), **blank),
        entries=entries([({"line": "l"}, 0.5, own) for own in lines], replace(judged(0), **blank)),
    )
    table = sheet.table()
    assert {"1 - cos", "1 - cos to first"} <= set(table.heads)
    assert not {"top-1", "to dense", "to first"} & set(table.heads)
    difference = sheet.entries[1].distance_to_first
    assert difference.estimate == pytest.approx(0.25 * near.mean(), rel=1e-3)
    assert [family.clear for family in sheet.judged().values()] == [{1}, set(), set()]


def test_the_caption_names_operators_of_unknown_cost():
    lacking = make_sheet([judged(3, uncounted_operators=("aten::fft_fft",))])
    sentence = "GFLOPs lack operators of unknown cost: aten::fft_fft"
    assert sentence in lacking.table().caption
    assert "GFLOPs lack" not in ONE.table().caption


@pytest.mark.parametrize("change", [{"images_sha256": "cd" * 32}, {"dtype": "bfloat16"}])
def test_lines_of_other_images_or_conditions_are_refused(change: dict[str, object]):
    with pytest.raises(ValueError, match=f"records of different {next(iter(change))} cannot"):
        make_sheet([judged(3)], [judged(3, **change)])
    tuned = [judged(3, shots=4, tuning="t", prompt_tokens=8, seed=seed) for seed in (0, 1)]
    assert len(make_sheet([judged(3)], tuned).entries) == 2  # these may differ


def test_a_second_run_reads_the_records_that_the_first_wrote(studied, tmp_path: Path, capsys, monkeypatch):
    loads: list[str] = []
    load = module.load_tower
    monkeypatch.setattr(module, "load_tower", lambda name: loads.append(name) or load(name))
    command = ["study", "transfer", *FLAGS.split(), "--output", str(tmp_path)]
    assert main(command) == 0
    assert len(loads) == 1
    assert "Predictors fitted on one dataset" in capsys.readouterr().out
    text = (tmp_path / "transfer.md").read_text()
    assert text.startswith("## Predictors fitted on one dataset, judged on another")
    assert f"```\npatchrank study transfer {FLAGS}\n```" in text
    assert "predictors mlp of width 8, bce, 2 seeds, up to 9 ranked training images" in text
    records = read_records(tmp_path / "transfer.jsonl")
    assert [record.method for record in records] == ["dense", "patchrank", "patchrank", "golden"]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0].startswith(
        "| fitted on | keep | GFLOPs | 1 - cos | 1 - cos to first | top-1 | to dense | to first |"
    )
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| plain", "| (golden)"]
    assert main(command) == 0  # nothing new to write
    assert read_records(tmp_path / "transfer.jsonl") == records
    assert (tmp_path / "transfer.md").read_text() == text
    capsys.readouterr()
    assert main(["study", "list"]) == 0
    assert "Does a predictor need images of the dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("scroes", "study 'scroes': did you mean 'scores'?"),
        ("scroes", "more (patchrank study --help)"),
        ("scores --keeps 1.5", "--keeps 1.5: expected fractions in (0, 1]"),
        ("scores --seeds 0", "--seeds 0: expected a number from 1"),
        ("scores --limit 0", "--limit 0: expected a number from 1"),
        ("scores --dtype int8", "--dtype 'int8'"),
        ("scores --score labels", "score='labels': did you mean 'label'?"),
        ("scores --model clip_vit_s15", "model 'clip_vit_s15': did you mean"),
        ("scores --dataset photos", "study scores: dataset 'photos' has no labels; expected one with classes"),
        ("scores --dataset fashoin", "no dataset is called 'fashoin'"),
    ],
)
def test_refusals(flags: str, text: str, capsys):
    assert main(["study", *flags.split()]) == 2
    assert text in capsys.readouterr().err


def test_keep_rates_that_share_a_name_are_refused(few: StudyConfig, studied):
    match = (
        "--keeps: 0.5 and 0.504 are both called 'clip_vit_b16_golden50 block 0'; give keep rates that differ in whole"
    )
    with pytest.raises(ValueError, match=match):
        studied("early", replace(few, keeps=(0.5, 0.504)))
