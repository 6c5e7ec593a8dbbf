"""`study final`: the one reader of the split that nothing was chosen by, and refusals of all others."""

from pathlib import Path

import pytest

import harness.cli.study
import harness.measure.bench
from harness.cli.entry import main
from harness.datasets.base import FINAL, Dataset
from harness.records.record import read_records
from zoo.loading.clip import ClipParts


@pytest.fixture
def readers(parts: ClipParts, toy: Dataset, predictor_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Give the toy dataset a final split; note of each look at it whether it was released."""
    looks: list[bool] = []

    def split(self, name):
        looks.extend([self._released] * (name == FINAL))
        return real(self, name)

    real = type(toy).split
    monkeypatch.setattr(type(toy), "split", split)
    monkeypatch.setattr(type(toy), "has_final", True)
    monkeypatch.setitem(type(toy)._split.__globals__["COUNTS"], FINAL, 5)
    monkeypatch.setattr("harness.models.towers.create_clip", lambda name: parts)
    monkeypatch.setattr("harness.measure.bench.get_dataset", lambda name: toy)
    return looks


def test_it_measures_every_method_at_equal_keep_and_at_equal_cost(
    readers: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(harness.measure.bench, "git_commit", lambda: "1-dirty")
    monkeypatch.setattr(harness.cli.study, "FINAL_KEEPS", (0.6,))
    command = ["study", "final", "--model", "clip_vit_b16", "--dataset", "emoji", "--output", str(tmp_path)]
    assert main(command) == 0
    records = read_records(tmp_path / "records.jsonl")
    assert {record.split for record in records} == {FINAL}
    assert {record.git_commit for record in records} == {"1-dirty"}
    rows = [(record.method, round(record.keep, 2)) for record in records]
    for method in ("patchrank", "clsattn", "evit", "tome", "random"):
        assert (method, 0.6) in rows
    assert [method for method, _ in rows].count("dense") == 2
    assert readers
    assert all(readers)
