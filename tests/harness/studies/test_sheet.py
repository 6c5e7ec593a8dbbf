"""A study's table: its differences judged together on the terminal, and not in Markdown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness.records.record import Record, pack_correct, read_records
from harness.records.statistics import holm, mcnemar_exact, paired_p
from harness.studies.run import NOTES, Sheet, entries

IMAGES = 300
TRUTH = np.arange(IMAGES) < 200
[KNOWN] = read_records(Path(__file__).parents[1] / "schema" / "v6.jsonl")


def judged(lost: int, won: int = 0, **changes: object) -> Record:
    right = TRUTH.copy()
    right[:lost], right[200 : 200 + won] = False, True
    facts = {"image_count": IMAGES, "correct_bits": pack_correct(right), "top1": right.mean()}
    return replace(KNOWN, **facts, **{"top1_low": 0.0, "top1_high": 1.0} | changes)


def sheet(*lines: list[Record]) -> Sheet:
    told = [({"line": f"l{at}"}, 0.5, records) for at, records in enumerate(lines)]
    dense = judged(0)
    return Sheet(study="s", title="t", dense=dense, entries=entries(told, dense))


def shown(found: Sheet) -> str:
    console = Console(width=220, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(found.table())
    return captured.get()


ONE = sheet([judged(10, 1)], [judged(14, 5)], [judged(60, 3)], [judged(10, 1)])


def test_each_column_is_a_family_judged_by_holm():
    dense = [mcnemar_exact(e.records[0].correct, TRUTH) for e in ONE.entries]
    family = ONE.judged()["to dense"]
    assert list(family.adjusted.values()) == pytest.approx(list(holm(dense)))
    first = ONE.judged()["to first"]
    assert sorted(first.alone) == [1, 2, 3]
    assert first.alone[3] == 1
    assert family.clear == {0, 2, 3}
    assert first.clear == {2}
    assert dense[1] > 0.05 > dense[0]


def test_the_terminal_has_marks_where_markdown_has_spaces():
    text = shown(ONE)
    cells = [cell for row in ONE.cells(marked=True)[1] for cell in row]
    assert sum("*[" in cell for cell in cells) == text.count("*[") == 3 + 1
    assert all(cell in text for cell in cells)
    flat = " ".join(text.split())
    assert "all of a column judged together (exact McNemar test, Holm, 5 %)" in flat
    plain = ONE.markdown()
    assert "*" not in plain
    unmarked = [[cell.replace("*[", " [") for cell in row] for row in ONE.cells(marked=True)[1]]
    assert unmarked == ONE.cells()[1]
    assert "*" not in NOTES


def test_means_over_seeds_are_judged_by_sign_flips():
    seeds = [judged(20, 2), judged(25, 4)]
    found = sheet([judged(3)], seeds)
    hits = np.sum([record.correct for record in seeds], axis=0)
    assert found.entries[1].p_dense == paired_p(hits, TRUTH, 2, 1)
    assert found.entries[1].p_first == paired_p(hits, judged(3).correct, 2, 1)
    assert (found.entries[0].p_first, found.entries[0].to_first) == (None, None)
    assert "exact sign-flip test over images" in " ".join(shown(found).split())


def test_operators_that_nobody_can_count_are_told():
    lacking = sheet([judged(3, uncounted_operators=("aten::fft_fft",))])
    assert "GFLOPs lack operators of unknown cost: aten::fft_fft" in " ".join(
        shown(lacking).split()
    )
    assert "GFLOPs lack" not in shown(ONE)


@pytest.mark.parametrize("change", [{"images_sha256": "cd" * 32}, {"dtype": "bfloat16"}])
def test_lines_of_other_images_or_conditions_are_refused(change: dict[str, object]):
    with pytest.raises(ValueError, match=f"records of different {next(iter(change))} cannot"):
        sheet([judged(3)], [judged(3, **change)])


def test_lines_may_be_tuned_otherwise():
    tuned = [judged(3, shots=4, tuning="t", prompt_tokens=8, seed=seed) for seed in (0, 1)]
    assert len(sheet([judged(3)], tuned).entries) == 2
