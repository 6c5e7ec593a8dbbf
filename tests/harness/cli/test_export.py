"""`export` from the command line: what it writes and says, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import zoo
from harness.cli.entry import main
from harness.datasets import get_dataset
from zoo.deploy import export
from zoo.deploy.export import EXPORTED_PROGRAM, load_exported

# Of a tower that ships, by the format that takes no other package.
COMMAND = ["export", "--model", "clip_vit_s14_clsattn60", "--format", "exported-program"]
COMMAND += ["--limit", "3", "--batches", "2"]


def test_a_file_maps_preprocessed_images_to_features(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "new" / "model.pt2"
    assert main([*COMMAND, "--output", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(path)
    assert told["agreement"]["images"] == 3
    assert told["agreement"]["deviation"] < 1e-4
    about = json.loads(path.with_name("model.pt2.json").read_text())
    assert (about["model"], about["method"], about["features"]) == ("clip_vit_s14_clsattn60", "clsattn", 256)
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


def test_a_wrong_file_is_a_problem_found(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    def zeros(*_: object) -> export.Call:
        def call(images: Tensor) -> Tensor:
            return torch.ones(len(images), 256)

        return call

    wrong = export.FORMATS[EXPORTED_PROGRAM]._replace(write=lambda *_: None, load=zeros)
    monkeypatch.setitem(export.FORMATS, EXPORTED_PROGRAM, wrong)
    assert main([*COMMAND, "--output", str(tmp_path / "model.pt2")]) == 1
    assert "features differ from eager's by" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "precision": (["--format", "onnx", "--dtype", "bfloat16"], "dtype 'bfloat16' of onnx"),
    "suffix": (["--output", "model.onnx"], "'model.onnx': a file of exported-program ends with '.pt2'"),
    "one image": (["--limit", "1"], "1 images to check with of 'photos': expected two at least"),
    "method twice": (["--method", "tome", "--keep", "0.5"], "the name says its method"),
}


@pytest.mark.parametrize(("more", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(more: list[str], message: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "--output", "model.pt2", *more]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_names_itself(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert main(["export", "--output", str(tmp_path / "model.onnx")]) == 2
    assert "needs onnxruntime, onnx, onnxscript: pip install 'clip-patchrank[export]'" in capsys.readouterr().err
