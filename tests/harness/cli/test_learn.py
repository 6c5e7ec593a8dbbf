"""`fit predictor` and `show` from the command line: what they take, reach and refuse."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from packing import write_images
from PIL import Image
from safetensors import safe_open

import zoo
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.golden.store import shipped_rankings
from zoo.core.files import cache_folder
from zoo.loading.learned_files import PredictorFile
from zoo.loading.towers import Tower, load_tower

EMBEDDED = "clip_vit_s14.imgfocus_lit"


def test_shipped_rankings_are_taken_where_they_fit_and_nothing_is_ranked(monkeypatch):
    rank, fit = Mock(return_value=Mock(path=Path("ranked"))), Mock(return_value=(Path("out"), 0.5))
    monkeypatch.setattr("harness.learning.predictor.fit", fit)
    monkeypatch.setattr("harness.golden.rank.rank", rank)
    flags = "--dataset fashion emoji --arch mixer --learning-rate 0.001 --shots 4 --rankings a --val b c"
    assert main(["fit", "predictor", *flags.split()]) == 0
    assert not rank.called
    _, train, val, found = fit.call_args.args
    for split, paths, others in (("train", train, ["a"]), ("val", val, ["b", "c"])):
        names = [f"golden-{EMBEDDED}-{name}-{split}.parquet" for name in ("fashion", "emoji")]
        assert [path.name for path in paths] == [*others, *names]
    assert (found.arch, found.learning_rate, fit.call_args.kwargs["shots"]) == ("mixer", 0.001, 4)
    assert shipped_rankings(EMBEDDED, "fashion", "val", 2) is None


@pytest.mark.usefixtures("miniature")
def test_without_shipped_rankings_images_are_ranked_first(tower: Tower, toy: Dataset, monkeypatch, capsys):
    for place in ("harness.golden.rank", "zoo.loading.towers"):
        monkeypatch.setattr(f"{place}.load_tower", lambda name: tower)
    monkeypatch.setattr("harness.datasets.get_dataset", lambda name: toy)
    command = "fit predictor --model clip_vit_b16 --dataset toy --limit 6 --block 4"
    command += " --arch linear --loss bce --epochs 1 --shots 1"
    assert main(command.split()) == 0
    path = capsys.readouterr().out.removeprefix("wrote ").partition("; ")[0]
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["predictor"])
    assert facts["block"] == 4
    assert (facts["recipe"]["loss"], facts["options"]["arch"]) == ("bce", "linear")
    assert (facts["provenance"]["images"], facts["provenance"]["shots"]) == (4, 1)
    assert len(list((cache_folder() / "rankings").iterdir())) == 2  # train and val


@pytest.mark.command("rank", "fit predictor")
@pytest.mark.parametrize("foreign", ["local-dir"], indirect=True)
def test_from_a_folder_to_a_pruned_model_of_another_library(foreign: str, tmp_path: Path, capsys):
    pictures, store = write_images(tmp_path / "pictures", [f"{i}.png" for i in range(20)]), tmp_path / "rankings"
    rank = f"rank --model {foreign} --images {pictures} --full --window 2 --stride 2 --output {store}"
    (pictures / "x.heic").touch()
    assert main(rank.split()) == 0
    assert f"--images '{pictures}': left out: 1 image: 'x.heic'" in capsys.readouterr().err
    out = tmp_path / "p.safetensors"
    command = f"fit predictor --model {foreign} --rankings {store} --arch mlp --width 8 --epochs 2"
    assert main(f"{command} --images {pictures} --output {out}".split()) == 0
    assert "held out for early stopping: 4 ranked images" in capsys.readouterr().err
    pruned = zoo.reduce(load_tower(foreign).vit, method="patchrank", keep=0.5, predictor=out)
    assert all(torch.equal(pruned.state_dict()[k], v.float()) for k, v in PredictorFile.read(out).tensors().items())
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    for flags, said in (
        ("", "of the folder 'pictures', revision .*, which is not at hand; say where it is with"),
        (f"--images {tmp_path}", "not at hand .'.*' is of revision .*; say where it is with --images"),
        (f"--images {pictures} --shots 2", "--shots 2: the images of folder 'pictures' have no cl"),
        (f"--images {pictures}/none", "does not exist"),
    ):
        assert main(f"{command} {flags}".split()) == 2
        assert re.search(said, capsys.readouterr().err)
