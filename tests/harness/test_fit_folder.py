"""Fitting for any tower, to rankings of a folder of images, without others for early stopping."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import zoo
from harness.cli import main
from harness.golden.fit import held_out
from harness.golden.store import Rankings
from harness.models.towers import load_tower
from zoo.predictor import PredictorFile

FIT = "--arch mlp --width 8 --epochs 2"


@pytest.fixture(scope="module")
def ranked_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A saved tower of timm's, a folder of 20 pictures, and the store of their rankings."""
    folder = tmp_path_factory.mktemp("small")
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}
    torch.manual_seed(15)
    save_for_hf(timm.create_model("deit_small_patch16_224", **shape), folder / "tower")
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    model, store = f"local-dir:{folder / 'tower'}", folder / "rankings"
    command = f"rank --model {model} --images {folder / 'pictures'} --full --window 4 --stride 4"
    assert main([*command.split(), "--out", str(store)]) == 0
    return model, folder / "pictures", store


def test_from_a_folder_to_a_pruned_model_of_another_library(
    ranked_folder: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, pictures, store = ranked_folder
    out = tmp_path / "p.safetensors"
    command = f"fit predictor --model {model} --rankings {store} --images {pictures} --out {out}"
    assert main([*command.split(), *FIT.split()]) == 0
    said = capsys.readouterr()
    assert f"wrote {out}" in said.out
    assert "held out for early stopping: 4 ranked images" in said.err
    vit = load_tower(model).vit
    pruned = zoo.reduce(vit, method="patchrank", keep=0.5, predictor=out).eval()
    assert pruned.reducer.config.arch == "mlp"
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        trace = pruned.trace(images)
        entering, _ = vit.advance(vit.embed(images), stop=3)
        scores = pruned.reducer.predictor(entering.x, 1, (8, 8))
    assert trace.final_tokens == 32
    assert torch.equal(trace.ranking, scores.argsort(dim=1, descending=True, stable=True))
    stored = PredictorFile.read(out).tensors("reducer.predictor.")
    assert all(torch.equal(pruned.state_dict()[k], v.float()) for k, v in stored.items())


def test_a_predictor_of_another_block_or_tower_is_refused_by_reduce(
    ranked_folder: tuple[str, Path, Path], tmp_path: Path
):
    model, pictures, store = ranked_folder
    out = tmp_path / "p.safetensors"
    command = f"fit predictor --model {model} --rankings {store} --images {pictures} --out {out}"
    assert main([*command.split(), *FIT.split()]) == 0
    vit = load_tower(model).vit
    with pytest.raises(ValueError, match="was fitted at block 3, this model scores before block 2"):
        zoo.reduce(vit, method="patchrank", keep=0.5, predictor=out, reduce_at=2)
    with pytest.raises(ValueError, match="arch='conv'"):
        zoo.reduce(vit, method="patchrank", keep=0.5, predictor=out, arch="conv")
    with torch.no_grad():
        vit.blocks[0].mlp.fc1.weight[0, 0] += 1
    with pytest.raises(ValueError, match="these are"):
        zoo.reduce(vit, method="patchrank", keep=0.5, predictor=out)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        zoo.reduce(vit, method="patchrank", keep=0.5, predictor=tmp_path / "none")
    with pytest.raises(ValueError, match="isn't reduced by patchrank"):
        zoo.reduce(vit, method="random", keep=0.5, predictor=[])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "of the folder 'pictures', revision .*, which is not at hand; say where it is with"),
        ("--images {other}", "not at hand .'.*' is of revision .*; say where it is with --images"),
        ("--images {pictures} --shots 2", "--shots 2: the images of folder 'pictures' have no cl"),
        ("--images {pictures}/none", "there is no such folder"),
    ],
)
def test_refused(
    flags: str,
    said: str,
    ranked_folder: tuple[str, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    model, pictures, store = ranked_folder
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    where = flags.format(other=tmp_path, pictures=pictures)
    assert main(f"fit predictor --model {model} --rankings {store} {FIT} {where}".split()) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_fifth_is_held_out_whatever_the_order(ranked: Callable[..., Rankings]):
    whole = ranked("train", 12)
    [learn], [stop] = held_out([whole])
    assert (len(learn), len(stop)) == (10, 2)
    assert {*learn.image_ids, *stop.image_ids} == set(whole.image_ids)
    turned = whole.take(whole.image_ids[::-1])
    assert {*held_out([turned])[1][0].image_ids} == {*stop.image_ids}
    assert np.array_equal(stop.of(stop.image_ids), whole.of(stop.image_ids))
    with pytest.raises(ValueError, match="4 ranked images of 'toy' are too few to hold one in 5"):
        held_out([replace(whole.take(whole.image_ids[:4]))])
    with pytest.raises(ValueError, match="1 images have no ranking, such as 'nowhere'"):
        whole.take(["nowhere"])
