"""Which models can be tuned by name: our reduced ones, and open_clip's with their text tower."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

import zoo
from harness.cli import main
from harness.cli.golden import dense_name, load_row
from harness.datasets.base import Dataset
from harness.models.towers import load_tower
from zoo.prompts import PromptFile

VISION = {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.mark.parametrize("tokens", ["t", "v", "vt"])
def test_open_clips_towers_are_tuned_and_loaded(
    named: Dataset, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", CONFIG)
    monkeypatch.setattr("harness.datasets.get_dataset", lambda name: named)
    save_file(CLIP(**CONFIG).state_dict(), tmp_path / "w.safetensors")
    name, out = f"open_clip:tiny/{tmp_path}/w.safetensors", tmp_path / "p.safetensors"
    words = ["--model", name, "--dataset", "named", "--shots", "1", "--tokens", tokens]
    small = ["--num-tokens", "3", "--rounds", "1", "--out", str(out)]
    assert main(["fit", "prompts", *words, *small]) == 0
    file = PromptFile.read(out)
    counts = {"t": 3 * 16, "v": 3 * 48, "vt": 3 * 16 + 16 * 48}
    assert file.provenance["parameters"] == counts[tokens]
    assert str(tmp_path) not in f"{file.model} {file.tag} {file.provenance}"
    model = zoo.add_prompts(load_tower(name).vit, file)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    pruned = zoo.reduce(model, method="tome", keep=0.5).eval()
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_a_reduced_model_of_ours_by_name():
    parts, row, tag = load_row("clip_vit_s14_tome50")
    assert (row.model, row.method, row.keep, tag) == (
        "clip_vit_s14_tome50",
        "tome",
        0.5,
        "imgfocus_lit",
    )
    assert row.vit is parts.model.visual
    assert dense_name(row) == "clip_vit_s14"
    with pytest.raises(FileNotFoundError, match=r"no weights of clip_vit_b16\.openai"):
        load_row("clip_vit_b16_tome50")


def test_a_tuned_model_that_was_saved_is_a_dense_tower_again(tmp_path: Path, named: Dataset):
    from timm.models import save_for_hf

    from zoo.prompts import save_prompts
    from zoo.weights import blocks_fingerprint

    dense = load_tower("clip_vit_s14").vit
    tensors = {
        "visual": torch.randn(1, 2, 384),
        "classifier": torch.nn.functional.normalize(torch.randn(3, 256), dim=-1),
        "logit_scale": torch.tensor(3.0),
    }
    facts = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "width": 384, "dataset": "toy"}
    facts |= {"weights": blocks_fingerprint(dense.state_dict()), "recipe": {}, "provenance": {}}
    file = save_prompts(tmp_path / "p.safetensors", tensors, classes=("a", "b", "c"), **facts)
    save_for_hf(zoo.add_prompts(dense, file), str(tmp_path / "saved"), safe_serialization=True)
    tower = load_tower(f"local-dir:{tmp_path}/saved")
    images = torch.randn(2, 3, 196, 196)
    with torch.no_grad():
        expected = zoo.add_prompts(dense, file, classify=False)(images)
        assert torch.equal(tower.vit(images), expected)
    assert tower.vit.num_classes == 256
