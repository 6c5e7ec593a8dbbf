"""Towers that can't be had: unknown names, unfit models, absent and broken weights."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from harness.towers import load_tower

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
Saved = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Save a model as timm does and return the name that loads it."""

    def save(model: Any) -> str:
        save_for_hf(model, tmp_path / "mine", safe_serialization=True)
        return f"local-dir:{tmp_path / 'mine'}"

    return save


NOWHERE = "expected a dense name of `python -m harness list`, a ViT of timm.list_models(), local-"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "vit_smal_patch16_224",
            f"model 'vit_smal_patch16_224': did you mean 'vit_small_patch16_224'? {NOWHERE}",
        ),
        ("clip_vit_b61", "model 'clip_vit_b61': did you mean 'clip_vit_b16'? expected a dense"),
        ("ViT-B-16", "model 'ViT-B-16': did you mean 'open_clip:ViT-B-16/PRETRAINED'? expected"),
        ("9", f"model '9': {NOWHERE}"),
        ("", f"model '': {NOWHERE}"),
        ("laion/CLIP", f"model 'laion/CLIP': {NOWHERE}"),
        ("clip_vit_b16_evit60", "model 'clip_vit_b16_evit60': did you mean 'clip_vit_b16'?"),
        (
            "vit_small_patch16_224.augreg_in21k_ft_in1",
            "weight tag 'augreg_in21k_ft_in1' of vit_small_patch16_224: did you mean 'augreg_in21k",
        ),
        ("vit_base_patch16_xp_224", "model 'vit_base_patch16_xp_224': timm has no weights for it"),
        (
            "vit_base_patch16_clip_224.openai",
            "trained with QuickGELU, which this name leaves out; use "
            "vit_base_patch16_clip_quickgelu_224.openai",
        ),
        ("open_clip:ViT-B-61/openai", "open_clip model 'ViT-B-61': did you mean 'ViT-B-16'?"),
        ("open_clip:ViT-B-16", "weights '' of open_clip model 'ViT-B-16': expected one of openai"),
        ("open_clip:ViT-B-16/opnai", "weights 'opnai' of open_clip model 'ViT-B-16': did you mean"),
        ("open_clip:ViT-B-16/no/file.pt", "weights 'no/file.pt' of open_clip model 'ViT-B-16': "),
    ],
)
def test_unknown_names(name: str, match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        load_tower(name)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("test_resnet", {}, "ResNet is not a timm VisionTransformer"),
        ("deit_small_distilled_patch16_224", SMALL, "VisionTransformerDistilled overrides parts"),
        ("vit_base_patch16_siglip_224", SMALL, "this tower has no class token"),
        ("vit_base_patch16_224", {**SMALL, "global_pool": ""}, "global_pool='' gives tokens, not"),
    ],
)
def test_towers_that_cannot_be_ranked(name: str, options: dict, match: str, saved: Saved):
    with pytest.raises(ValueError, match=rf"model 'local-dir:.*mine': {re.escape(match)}"):
        load_tower(saved(timm.create_model(name, **options)))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("clip_vit_b16.openai", "no weights of clip_vit_b16.openai (timm/vit_base_patch16_clip_"),
        ("vit_small_patch14_dinov2", "no weights of vit_small_patch14_dinov2.lvd142m: not in the"),
        ("hf-hub:nobody/nothing", "no weights of hf-hub:nobody/nothing: not in the Hugging Face"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", "no weights of ViT-B-16/laion2b_s34b_b88k: not"),
        ("open_clip:hf-hub:nobody/nothing", "no weights of hf-hub:nobody/nothing: not in the Hu"),
    ],
)
def test_offline_the_error_names_what_is_wanted_and_ways_to_get_it(
    name: str,
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(match)) as caught:
        load_tower(name)
    way = "give a file: open_clip:ARCH/FILE" if "open_clip" in name else "pass local-dir:FOLDER"
    if name == "clip_vit_b16.openai":
        way = "or put a file of these weights at "
    assert way in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == []


def test_folders_that_hold_no_model(tmp_path: Path):
    for name in ("local-dir:", f"local-dir:{tmp_path}"):
        with pytest.raises(FileNotFoundError, match=r"no config.json there; timm.models.save_for_"):
            load_tower(name)
    (tmp_path / "open_clip_config.json").touch()
    with pytest.raises(ValueError, match=r"was saved by open_clip: use open_clip:local-dir:"):
        load_tower(f"local-dir:{tmp_path}")


class Evil:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def test_pickles_are_not_executed(saved: Saved, tmp_path: Path):
    name, mark = saved(timm.create_model("vit_small_patch16_224", **SMALL)), tmp_path / "mark"
    (tmp_path / "mine" / "model.safetensors").unlink()
    torch.save({"state_dict": Evil(mark)}, tmp_path / "mine" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"weights of local-dir:.* can't be used: weights_only=Tr"):
        load_tower(name)
    assert not mark.exists()
    torch.load(tmp_path / "mine" / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


def test_weights_that_do_not_fit_or_are_cut_short(saved: Saved, tmp_path: Path):
    name = saved(timm.create_model("vit_small_patch16_224", **SMALL))
    file = tmp_path / "mine" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"the weights of local-dir:.* can't be used: Error while"):
        load_tower(name)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"the weights of local-dir:.* can't be used: Error"):
        load_tower(name)


def test_a_broken_description_is_refused(saved: Saved, tmp_path: Path):
    name = saved(timm.create_model("vit_small_patch16_224", **SMALL))
    for text in ("{}", "{", '{"architecture": "no_such_model"}'):
        (tmp_path / "mine" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"the weights of local-dir:.* can't be used: "):
            load_tower(name)
