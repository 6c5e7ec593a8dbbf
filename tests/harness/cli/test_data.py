"""What `list` shows: all there is, and nothing made up."""

import io
from pathlib import Path

import pytest
from rich.console import Console

import zoo
from harness.base.table import Table
from harness.cli.measure import list_data, list_tables
from harness.datasets import list_datasets, shipped_facts
from harness.datasets.public import RootedDataset
from zoo.loading.sizes import SIZES


def shown(table: Table) -> list[str]:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


def cells(lines: list[str], start: str) -> list[str]:
    [line] = [line for line in lines if line.startswith(f"│ {start} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_list_shows_all_there_is():
    towers, methods, datasets = ("\n".join(shown(table)) for table in list_tables())
    for size, spec in SIZES.items():
        assert f" {size} " in towers
        assert all(tag in towers for tag in spec.tags)
    for name in zoo.METHODS:
        assert f"clip_vit_b16_{name}60" in methods
    for name in list_datasets():
        dataset = shipped_facts(name)
        assert dataset.title in datasets
        classes, *sizes = map(int, cells(datasets.splitlines(), name)[2:6])
        if isinstance(dataset, RootedDataset):
            assert [dataset.class_count, *dataset.counts.values()] == [classes, *sizes]
        else:
            assert sizes == [len(dataset.split(split)) for split in ("train", "val", "test")]
            assert classes == len(dataset.classes)


def test_predictors_are_listed_where_there_are_some(monkeypatch: pytest.MonkeyPatch, predictor_file: Path):
    predictors = {tower["size"]: tower["predictors"] for tower in list_data()["towers"]}
    assert predictors["b16"] == {"openai": [3]}
    assert predictors["l14"] == {}
    assert predictors["s14"] == {"imgfocus_lit": [3]}  # packaged
