"""Tables of shots: which there are, and all of one judged together against dense."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.shot_table import shot_tables
from rich.console import Console

from harness.averages import Average, averages
from harness.records import Record, pack_correct, read_records
from harness.statistics import holm, sign_flip_exact

IMAGES = 60
SEEDS = (3, 4, 5)
SHARES = {"dense": 0.8, "evit": 0.75, "patchrank": 0.5}
[KNOWN] = read_records(Path(__file__).parent / "schema" / "v6.jsonl")


def record(method: str, seed: int, shots: int, **changed: Any) -> Record:
    right = np.random.default_rng((seed, shots, len(method))).random(IMAGES) < SHARES[method]
    tuned = {"tuning": "t", "prompt_tokens": 16} if shots else {}
    facts: dict[str, Any] = {"image_count": IMAGES, "correct_bits": pack_correct(right), **tuned}
    facts |= {"top1": right.mean(), "top1_low": 0.0, "top1_high": 1.0, "shots": shots, "seed": seed}
    facts |= {"diff_to_dense": 0.0, "diff_low": 0.0, "diff_high": 0.0} if method != "dense" else {}
    return replace(KNOWN, method=method, model=f"clip_vit_s14_{method}60", **facts | changed)


def group(shots: int, **changed: Any) -> list[Average]:
    """Three models, of three seeds if there are shots."""
    seeds = SEEDS if shots else SEEDS[:1]
    records = [record(method, seed, shots, **changed) for seed in seeds for method in SHARES]
    return averages(records)


def shown(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_all_of_a_table_of_shots_is_judged_together_on_the_terminal_only():
    groups = [group(0), group(4), group(8)]
    [table] = shot_tables(groups)
    alone = {}
    for place, rows in enumerate(groups):
        hits = {row.method: row.hits for row in rows}
        for at, cells in enumerate(table.rows):
            if cells[0] != "dense" and cells[0] in hits:
                alone[at, place] = sign_flip_exact(hits[cells[0]] - hits["dense"])
    assert table.family.alone == pytest.approx(alone)
    adjusted = dict(zip(alone, holm(list(alone.values())), strict=True))
    clear = {place for place, p in adjusted.items() if p <= 0.05}
    assert 0 < len(clear) < len(alone)
    text = shown(table.table())
    assert text.count("*[") == len(clear)
    assert not any("*" in cell for cells in table.rows for cell in cells)
    told = "* clear of the dense model's at as many shots, all of this table judged together (exact"
    assert told in " ".join(text.split())


def test_without_a_dense_row_no_table_of_shots_is_judged():
    groups = [[row for row in group(shots) if row.method != "dense"] for shots in (0, 4)]
    [table] = shot_tables(groups)
    assert (table.family.alone, table.note) == ({}, "")
    assert "*" not in shown(table.table())


def test_a_table_for_each_kind_of_tuning_and_none_of_a_single_column():
    probe = group(4, tuning="probe", prompt_tokens=None)
    tables = shot_tables([group(0), group(4), probe])
    kinds = [table.name.split(", ")[2] for table in tables]
    assert kinds == ["learned text tokens (16)", "linear probe"]
    assert shot_tables([group(0)]) == shot_tables([group(4)]) == []


@pytest.mark.parametrize("change", [{"device_name": "another"}, {"dataset_revision": "34cd"}])
def test_columns_differ_in_nothing_else(change: dict[str, Any]):
    with pytest.raises(ValueError, match=f"different {next(iter(change))}"):
        shot_tables([group(0), group(4, **change)])


def test_columns_may_be_of_other_images_as_by_text_some_classes_have_no_name():
    [table] = shot_tables([group(0, images_sha256="cd" * 32), group(4)])
    assert len(table.heads) == 4
