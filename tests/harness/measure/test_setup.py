"""A tower with its reduction as it is to be run, as a name, as a file, and as lines of Python."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.measure.setup import Setup

NAME = "clip_vit_s14_rankmerge50"


def test_a_name_a_method_and_a_file_mean_the_same(tmp_path: Path):
    named = Setup.of(NAME)
    assert named == Setup.of("clip_vit_s14", method="rankmerge", keep=0.5)
    assert (named.name, Setup.of("clip_vit_s14").name) == (NAME, "clip_vit_s14")
    named.write(tmp_path / "one.json")
    assert Setup.read(tmp_path / "one.json") == named


@pytest.mark.parametrize("setup", [Setup.of(NAME), Setup.of("clip_vit_s14"), Setup.of("clip_vit_s14_rankmerge30")])
def test_the_lines_of_python_build_the_model_that_loads(setup: Setup):
    scope: dict[str, Any] = {}
    exec(setup.python(), scope)
    tower = setup.load()
    images = torch.randn(2, 3, 196, 196)
    with torch.inference_mode():
        assert torch.equal(scope["model"](images), tower.vit(images))


@pytest.mark.parametrize(
    ("make", "quoted"),
    [
        (lambda: Setup.of(NAME, method="tome", keep=0.5), "'tome'"),
        (lambda: Setup.of("clip_vit_s14", method="tome"), "--keep"),
        (lambda: Setup.of("clip_vit_s14", keep=0.5), "--method"),
        (lambda: Setup(model="clip_vit_s14", method="tomme"), "'tomme'"),
        (lambda: Setup(model="clip_vit_s14", dtype="int8"), "'int8'"),
        (lambda: Setup(model="clip_vit_s14", options={"keep": 0.5}), "name a method"),
        (lambda: Setup(model="clip_vit_s14", format=2), "format 2"),
    ],
)
def test_refusals(make: Any, quoted: str):
    with pytest.raises(ValueError, match=quoted):
        make()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"model": 1}', '{"model": "m", "keeps": 1}', "[" * 100_000, '{"model": "m", "options": []}'],
)
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, content: str):
    path = tmp_path / "setup.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"setup\.json' holds no setup .*patchrank choose"):
        Setup.read(path)


def test_a_file_says_all_fields(tmp_path: Path):
    Setup.of(NAME, dtype="bfloat16").write(tmp_path / "one.json")
    facts = json.loads((tmp_path / "one.json").read_text())
    assert facts["options"] == {"keep": 0.5}
    assert facts["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["clip_vit_s14", NAME])
def test_the_lines_of_python_have_the_precision(name: str):
    scope: dict[str, Any] = {}
    exec(Setup.of(name, dtype="bfloat16").python(), scope)
    assert {parameter.dtype for parameter in scope["model"].parameters()} == {torch.bfloat16}
    assert not scope["model"].training
