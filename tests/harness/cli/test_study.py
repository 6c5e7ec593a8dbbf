"""`study final`: the one reader of the split that nothing was chosen by, and refusals of all others."""

from pathlib import Path

import pytest

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


def test_it_measures_every_method_at_equal_cost_and_goes_on(
    readers: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for place in (harness, harness.measure.bench):
        monkeypatch.setattr(place, "git_commit", lambda: "1-dirty")
    command = ["study", "final", "--model", "clip_vit_b16", "--dataset", "emoji", "--keeps", "0.6", "--output"]
    assert main([*command, str(tmp_path)]) == 0
    records = read_records(tmp_path / "records.jsonl")
    assert {(record.split, record.git_commit) for record in records} == {(FINAL, "1-dirty")}
    text = (tmp_path / "table.md").read_text("utf-8")
    assert text.count("commit 1, uncommitted changes") == 1
    assert text.count("| rankmerge |") == 2  # in the dataset's table, and in that of all
    methods = ["dense", "clsattn", "evit", "patchrank", "random", "rankmerge", "tome"]
    assert sorted(record.method for record in records) == sorted(methods)
    assert main([*command, str(tmp_path)]) == 0
    assert read_records(tmp_path / "records.jsonl") == records
    assert readers
    assert all(readers)
