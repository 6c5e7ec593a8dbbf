"""A tower with its reduction as it is to be run, as a name, as a file, and as a model."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from some_budgets import file_of, pictures

import zoo
from harness.base.hints import describe_error
from zoo.core.digests import blocks_fingerprint
from zoo.core.files import cache_folder
from zoo.core.learned import Predictor
from zoo.core.recipes import FitConfig
from zoo.deploy.export import export_model, load_exported
from zoo.deploy.runtime import AOTI, OPENVINO
from zoo.deploy.setup import Setup
from zoo.learning.fit import save_predictor
from zoo.learning.recovery import Recovered
from zoo.loading.adopt import trainable
from zoo.loading.learned_files import predictor_name
from zoo.loading.towers import load_tower

NAME = "clip_vit_s14_rankmerge50"


def test_a_name_a_method_and_a_file_mean_the_same(tmp_path: Path):
    named = Setup.of(NAME)
    assert named == Setup.of("clip_vit_s14", method="rankmerge", keep=0.5)
    assert (named.name, Setup.of("clip_vit_s14").name) == (NAME, "clip_vit_s14")
    assert Setup.of("clip_vit_s14", method="dense") == Setup(model="clip_vit_s14")
    path = tmp_path / "one.json"
    named.write(path)
    assert Setup.read(path) == named
    old = '{"model": "m", "dtype": "bfloat16"}'
    for content in ("{", '{"model": 1}', '{"model": "m", "keeps": 1}', old, "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"one\.json' holds no setup .*patchrank choose"):
            Setup.read(path)
    Setup(model="strange.pt2").write(path)
    with pytest.raises(ValueError, match=r"names an exported file: give 'strange\.pt2' itself"):
        Setup.read(path)


def test_a_foreign_tower_is_built_with_its_predictor_and_recovery(foreign: str, tmp_path: Path):
    tower, setup = load_tower(foreign), Setup.of(foreign, method="patchrank", keep=0.5)
    path = cache_folder() / "predictors" / predictor_name(tower.arch, tower.tag, 3)
    facts: dict[str, Any] = {"model": tower.arch, "tag": tower.tag, "block": 3, "provenance": {}}
    facts |= {"config": FitConfig(arch="conv", width=16), "weights": blocks_fingerprint(tower.vit.state_dict())}
    save_predictor(Predictor("conv", 48, 16, (4, 4)), path, **facts)
    vit = setup.load().vit
    tensors = {n: 0.1 * torch.randn(vit.get_parameter(own).shape) for n, own in trainable(vit, "norm").items()}
    origin: dict[str, Any] = {"name": tower.arch, "tag": tower.tag, "datasets": [{"name": "toy"}]}
    recovered, recipe = Recovered(tensors, (1.0,), (0.5,)), zoo.RecoveryConfig()
    file = zoo.save_recovery(tmp_path / "r.safetensors", vit, recovered, recipe, **origin)
    images = torch.randn(2, 3, 32, 32)
    plain = zoo.reduce(tower.vit, method="patchrank", keep=0.5, predictor=str(path), recovery=file.path).eval()
    whole = replace(setup, recovery=str(file.path))
    with torch.inference_mode():
        torch.testing.assert_close(whole.load().vit(images), plain(images))
        torch.testing.assert_close(whole.build()(images), plain(images))
        assert not torch.allclose(setup.load().vit(images), plain(images))


@pytest.mark.usefixtures("no_grad")
def test_a_chosen_file_lies_beside_its_setup_and_is_run_as_it_is(foreign: str, tmp_path: Path):
    pytest.importorskip("openvino")
    vit, images = load_tower(foreign).vit, torch.randn(4, 3, 32, 32)
    made, path = tmp_path / "cache" / "file.xml", tmp_path / "setup.json"
    export_model(vit, made, images, runtime=OPENVINO)
    Setup(model=foreign, runtime=OPENVINO, exported=str(made)).write(path)
    assert sorted(file.name for file in tmp_path.glob("s*")) == [
        "setup.bin", "setup.json", "setup.xml", "setup.xml.json"
    ]  # fmt: skip
    setup = Setup.read(path)
    assert torch.equal(setup.build()(images), load_exported(made)(images))
    assert Setup.read(path).absolute().exported == str(tmp_path / "setup.xml")
    other = load_tower(foreign).vit
    other.norm.weight.data += 1
    with pytest.raises(ValueError, match=r"setup\.xml' was made of other weights"):
        setup.prepare(other, images)
    weights = tmp_path / "setup.bin"
    whole = weights.read_bytes()
    for content in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1000]):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"setup\.xml' (has changed|can't be loaded)") as refused:
            setup.build()
        assert re.findall("patchrank .*", describe_error(refused.value)) == ["patchrank choose --output FILE"]
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"setup\.bin', which is missing"):
        setup.build()
    for change, message in (
        ({"exported": "../setup.xml"}, "expected the name of a file beside it"),
        ({"runtime": AOTI}, "a file of aoti may run any code"),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match=message):
            Setup.read(path)


def test_budgets_say_method_and_cost(foreign: str, tmp_path: Path):
    tower, images = load_tower(foreign), pictures(32)
    file = str(file_of(tower.vit, images, tmp_path))
    setup = Setup.of(foreign, budgets=file)
    assert (setup.method, setup.cost, "keep" in setup.options) == ("rankmerge", 0.75, False)
    assert Setup.of(foreign, keep=0.75, budgets=file).cost == pytest.approx(0.8)
    adaptive = zoo.reduce(tower.vit, method="rankmerge", budgets=file).eval()
    with torch.no_grad():
        assert len(adaptive.assign(images).unique()) > 1
        torch.testing.assert_close(setup.build()(images), adaptive(images))
    for change, quoted in (
        ({"method": "tome"}, "--method 'tome' with --budgets .* of rankmerge: leave the method out"),
        ({"keep": 0.5, "cost": 0.7}, r"--keep 0\.5 with --cost 0\.7"),
        ({"cost": 0.2}, r"cost=0\.2: expected a share .* from 0\.600, of keep rate 0\.5"),
        ({"recovery": "r.safetensors"}, "recovery 'r.safetensors' with budgets: it was trained at one keep rate"),
        ({"budgets": None, "cost": 0.5}, "--cost and without --budgets"),
    ):
        with pytest.raises(ValueError, match=quoted):
            Setup.of(foreign, **{"budgets": file, **change})


@pytest.mark.parametrize(("make", "quoted"), [
    (lambda: Setup.of(NAME, method="tome", keep=0.5), "'tome'"),
    (lambda: Setup.of("clip_vit_s14", method="tome"), "--keep"),
    (lambda: Setup.of("clip_vit_s14", keep=0.5), "--method"),
    (lambda: Setup(model="clip_vit_s14", precision="int8"), "'int8'"),
    (lambda: Setup(model="clip_vit_s14", runtime="optimised"), "did you mean 'optimized'"),
    (lambda: Setup(model="clip_vit_s14", runtime="onnxruntime", precision="bfloat16"), "of onnxruntime: did"),
    (lambda: Setup.of("model.onnx", precision="float32"), "--precision: an exported file is fixed"),
    (lambda: Setup(model="model.pt2").load(), "exported already"),
    (lambda: Setup(model="clip_vit_s14", options={"keep": 0.5}), "name a method"),
    (lambda: Setup(model="clip_vit_s14", format=2), "format 2"),
    (lambda: Setup(model="clip_vit_s14", method="tome", options={"r": 8}), "without a keep rate"),
    (lambda: Setup(model="clip_vit_s14", method="tome", options={"keep": [1]}), r"\[1\]"),
])  # fmt: skip
def test_refusals(make: Any, quoted: str):
    with pytest.raises(ValueError, match=quoted):
        make()
