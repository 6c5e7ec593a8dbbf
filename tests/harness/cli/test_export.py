"""`export` from the command line: what it writes and says, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from killing import kill_when
from lively import Build
from PIL import Image

import zoo
from harness.cli.entry import main
from harness.datasets import get_dataset
from zoo.deploy.export import load_exported
from zoo.deploy.runtime import EXPORTED_PROGRAM

MODEL = "clip_vit_s14_clsattn60"
COMMAND = ["export", "--model", MODEL, "--runtime", EXPORTED_PROGRAM, "--limit", "3", "--batches", "2"]


@pytest.mark.command("export")
def test_a_file_maps_preprocessed_images_to_features(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "new" / "model.pt2"
    assert main([*COMMAND, "--output", str(path), "--json"]) == 0
    agreement = json.loads(capsys.readouterr().out)["agreement"]
    assert agreement["images"] == 3
    assert agreement["deviation"] < 1e-4
    about = json.loads(path.with_name("model.pt2.json").read_text())
    assert (about["model"], about["method"], about["features"]) == (MODEL, "clsattn", 256)
    preprocessing = about["preprocessing"]
    assert preprocessing["size"] == about["image_size"] == [196, 196]
    assert preprocessing["interpolation"] == "bicubic"
    # With what the file says, and nothing of ours, images give the model's features.
    picture = get_dataset("photos").split("val")[5].image.resize((196, 196), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(preprocessing[name])[:, None, None] for name in ("mean", "std"))
    features = load_exported(path)((pixels - mean) / std)
    with torch.no_grad():
        model = zoo.create_clip("clip_vit_s14").model.visual
        wanted = zoo.reduce(model, method="clsattn", keep=0.6)((pixels - mean) / std)
    assert torch.allclose(features, wanted, atol=1e-4)


def test_killed_at_any_moment_the_next_run_writes_the_same_bytes_and_leaves_nothing_else(tmp_path: Path):
    whole, path = tmp_path / "whole" / "model.pt2", tmp_path / "killed" / "model.pt2"
    assert main([*COMMAND, "--output", str(whole)]) == 0
    command = [sys.executable, "-m", "harness", *COMMAND, "--output", str(path)]
    kill_when(lambda _: list(path.parent.glob(".model.pt2.*.partial/model.pt2")), command)
    assert not path.exists()
    assert main([*COMMAND, "--output", str(path)]) == 0
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.pt2", "model.pt2.json"]
    for name in ("model.pt2", "model.pt2.json"):
        assert path.with_name(name).read_bytes() == whole.with_name(name).read_bytes()


def test_folders_for_other_servers_say_what_their_files_have(tiny: Build, tmp_path: Path, capsys, monkeypatch):
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    timm.models.save_for_hf(tiny("clip_vit_b16", num_classes=0), tmp_path / "tower", safe_serialization=True)
    command = ["export", "--model", f"local-dir:{tmp_path}/tower", "--limit", "3", "--batches", "2"]
    models = tmp_path / "models"
    assert main([*command, "--layout", "triton", "--output", str(models / "a")]) == 0
    graph = onnx.load(models / "a" / "1" / "model.onnx").graph
    config = (models / "a" / "config.pbtxt").read_text()
    for kind, [value] in (("input", graph.input), ("output", graph.output)):
        tensor = value.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        assert not tensor.shape.dim[0].HasField("dim_value")  # any batch
        dims = [one.dim_value for one in tensor.shape.dim][1:]
        assert f'{kind} {{ name: "{value.name}" data_type: TYPE_FP32 dims: {dims} }}' in config
    other, more = {"config": {"name": "z", "base_path": "z"}}, {"monitoring": {"metrics": {"enable": True}}}
    (models / "config.json").write_text(json.dumps({"model_config_list": [other], **more}))
    (models / "b").mkdir()
    monkeypatch.chdir(models / "b")
    assert main([*command, "--layout", "ovms", "--output", "."]) == 0
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    own = {"config": {"name": "b", "base_path": "b", "plugin_config": hint}}
    assert json.loads((models / "config.json").read_text()) == {"model_config_list": [other, own], **more}
    model = openvino.Core().read_model(models / "b" / "1" / "model.xml")
    assert model.input("images").partial_shape[0].is_dynamic
    assert main([*command, "--layout", "ovms", "--runtime", "onnxruntime", "--output", str(models / "d")]) == 2
    assert "expected openvino" in capsys.readouterr().err
