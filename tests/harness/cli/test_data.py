"""What `list` shows: all there is, and nothing made up."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

import zoo
from harness.cli.measure import run_list
from harness.datasets import list_datasets, shipped_facts
from zoo.loading.sizes import SIZES


def test_the_list_has_all_there_is(predictor_file: Path):
    assert predictor_file.is_file()
    shown = run_list(Namespace(root=None), Console())
    found = shown.data
    assert {tower["size"]: tower["tags"] for tower in found["towers"]} == {
        size: list(spec.tags) for size, spec in SIZES.items()
    }
    predictors = {tower["size"]: tower["predictors"] for tower in found["towers"]}
    assert predictors["b16"] == {"openai": [3]}
    assert predictors["l14"] == {}
    assert predictors["s14"] == {"imgfocus_lit": [3]}  # packaged
    assert [one["method"] for one in found["methods"]] == sorted(zoo.METHODS)
    assert [one["name"] for one in found["datasets"]] == list(list_datasets())
    sizes = {one["name"]: (one["classes"], one["train"], one["val"], one["test"]) for one in found["datasets"]}
    assert sizes["dtd"] == (47, 2820, 1128, 1692)
    fashion = shipped_facts("fashion")
    assert sizes["fashion"] == (10, *(len(fashion.split(split)) for split in ("train", "val", "test")))
    assert [len(table.rows) for table in shown.parts[:3]] == [len(found[n]) for n in ("towers", "methods", "datasets")]
