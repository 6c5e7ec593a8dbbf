"""A tower with its reduction as it is to be run, as a name, as a file, and as lines of Python."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from harness.apps.setup import Setup
from harness.models.towers import load_tower
from zoo.core.files import blocks_fingerprint, cache_folder
from zoo.core.predictor import Predictor
from zoo.learning.fit import FitConfig, save_predictor
from zoo.loading.predictor_file import predictor_name
from zoo.loading.recovery_file import Recovered, trainable

NAME = "clip_vit_s14_rankmerge50"


def test_a_name_a_method_and_a_file_mean_the_same(tmp_path: Path):
    named = Setup.of(NAME)
    assert named == Setup.of("clip_vit_s14", method="rankmerge", keep=0.5)
    assert (named.name, Setup.of("clip_vit_s14").name) == (NAME, "clip_vit_s14")
    named.write(tmp_path / "one.json")
    assert Setup.read(tmp_path / "one.json") == named


@pytest.mark.parametrize("method", ["patchrank"])
def test_the_lines_of_python_build_foreign_towers_with_their_predictors_and_recoveries(
    foreign: str, method: str | None, tmp_path: Path
):
    """As `choose` writes them: the predictor is a file of one's own, found by the tower's name."""
    tower, options = load_tower(foreign), {} if method is None else {"keep": 0.5}
    setup = Setup(model=foreign, method=method, options=options)
    if method == "patchrank":
        path = cache_folder() / "predictors" / predictor_name(tower.arch, tower.tag, 3)
        facts: dict[str, Any] = {"model": tower.arch, "tag": tower.tag, "block": 3, "provenance": {}}
        weights = blocks_fingerprint(tower.vit.state_dict())
        predictor = Predictor("conv", 48, 16, (4, 4), None, None)
        save_predictor(predictor, path, config=FitConfig(arch="conv", width=16), weights=weights, **facts)
        setup = replace(setup, certificate={"predictors": [str(path)]})
    images = torch.randn(2, 3, 32, 32)
    if method is not None:
        vit, config = setup.load().vit, zoo.RecoveryConfig()
        names = trainable(vit, "norm")
        tensors = {name: 0.1 * torch.randn(vit.get_parameter(own).shape) for name, own in names.items()}
        origin: dict[str, Any] = {"name": tower.arch, "tag": tower.tag, "datasets": [{"name": "toy"}]}
        file = zoo.save_recovery(tmp_path / "r.safetensors", vit, Recovered(tensors, (1.0,), (0.5,)), config, **origin)
        setup = replace(setup, recovery=str(file.path))
    scope: dict[str, Any] = {}
    exec(setup.python(), scope)
    with torch.inference_mode():
        torch.testing.assert_close(scope["model"](images), setup.load().vit(images))


@pytest.mark.parametrize(("name", "arguments"), [
    ("open_clip:ViT-B-16/openai", "'ViT-B-16', pretrained='openai', force_quick_gelu=True))"),
    ("open_clip:hf-hub:a/b", "'hf-hub:a/b'))"),
    ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "'coca_ViT-B-32', pretrained='laion2b_s13b_b90k')"),
])  # fmt: skip
def test_the_lines_of_python_of_open_clip_are_those_of_its_weights(name: str, arguments: str):
    """CoCa's tower has no counterpart of timm's, so it stays open_clip's."""
    call = f"open_clip.create_model({arguments}"
    call = call if "coca" in name else f"zoo.from_open_clip({call}"
    assert Setup.of(name, method="tome", keep=0.5).python().splitlines()[1] == f"model = {call}.eval()"


@pytest.mark.parametrize(("make", "quoted"), [
    (lambda: Setup.of(NAME, method="tome", keep=0.5), "'tome'"),
    (lambda: Setup.of("clip_vit_s14", method="tome"), "--keep"),
    (lambda: Setup.of("clip_vit_s14", keep=0.5), "--method"),
    (lambda: Setup(model="clip_vit_s14", method="tomme"), "'tomme'"),
    (lambda: Setup(model="clip_vit_s14", options={"keep": 0.5}), "name a method"),
    (lambda: Setup(model="clip_vit_s14", format=2), "format 2"),
])  # fmt: skip
def test_refusals(make: Any, quoted: str):
    with pytest.raises(ValueError, match=quoted):
        make()


@pytest.mark.parametrize("content", ["{", '{"model": 1}', '{"model": "m", "keeps": 1}', "[" * 100_000])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, content: str):
    path = tmp_path / "setup.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"setup\.json' holds no setup .*patchrank choose"):
        Setup.read(path)


@pytest.mark.parametrize("name", [NAME])
def test_the_lines_of_python_have_the_precision(name: str):
    scope: dict[str, Any] = {}
    exec(Setup.of(name, dtype="bfloat16").python(), scope)
    assert {parameter.dtype for parameter in scope["model"].parameters()} == {torch.bfloat16}
    assert not scope["model"].training
