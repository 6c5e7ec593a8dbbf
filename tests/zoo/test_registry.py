"""One contract over every registered name; what is said of weights that can't be had, and files that stand for them."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from lively import Build, lively
from open_clip import pretrained
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor

import zoo
import zoo.loading.open_clip
import zoo.loading.weights
from zoo.core.reducer import HostSpec, build_reducer
from zoo.loading.registry import default_cfgs
from zoo.loading.sizes import PERCENTS, SIZES
from zoo.loading.weights import UnusableWeightsError

DEPTHS = {"b32": 12, "b16": 12, "l14": 24, "s14": 9}
PATCHES = {"b32": 49, "b16": 196, "l14": 256, "s14": 196}
THIRDS = {"b32": 90, "b16": 30, "l14": 60, "s14": 60}  # keep rates that are run, one for each size


def test_the_names_are_those_that_timm_lists():
    ends = ["", *(f"_{method}{percent}" for method in zoo.METHODS for percent in PERCENTS)]
    assert {f"clip_vit_{size}{end}" for size in DEPTHS for end in ends} <= set(zoo.MODELS)
    assert set(zoo.MODELS) == set(timm.list_models("clip_vit_*"))
    tags = {f"{name}.{tag}" for name, parts in zoo.MODELS.items() for tag in SIZES[parts.size].tags}
    assert set(timm.list_models("clip_vit_*", pretrained=True)) == tags


def test_every_name_builds_what_it_says_and_open_clip_knows_it():
    """The number is what is left at the end; run as narrow towers of the size's depth and grid at one rate a size."""
    for name, parts in zoo.MODELS.items():
        size, patches = SIZES[parts.size], PATCHES[parts.size]
        left = round(Fraction(parts.percent, 100) * patches)
        side, depth = int(patches**0.5), DEPTHS[parts.size]
        if parts.method is not None:
            host = HostSpec(embed_dim=8, depth=depth, grid=(side, side), device="meta")
            assert list(build_reducer(parts.method, parts.options, host).counts(patches).values())[-1] == left, name
        assert list(default_cfgs[name].cfgs) == list(size.tags)  # the first is the default
        for tag in size.tags:
            cfg, config = timm.get_pretrained_cfg(f"{name}.{tag}"), open_clip.get_model_config(f"{name}.{tag}")
            assert (cfg.num_classes, cfg.input_size) == (size.features, (3, size.image, size.image)), name
            assert (cfg.hf_hub_id is None) == (size.weights is None), name
            assert config["vision_cfg"]["timm_model_name"] == f"{name}.{tag}"
            assert config["quick_gelu"] == size.tags[tag].quick_gelu
            assert pretrained.is_pretrained_cfg(name, tag), name
        if parts.percent == THIRDS[parts.size]:
            model = timm.create_model(name, embed_dim=8, num_heads=1, mlp_ratio=1).eval()
            with torch.no_grad():
                trace = model.trace(torch.randn(1, 3, size.image, size.image))
            assert (len(model.blocks), model.num_classes) == (depth, size.features), name
            assert trace.final_tokens == trace.tokens_per_block[-1] - 1 == left, name


@pytest.mark.parametrize("size", [s for s in SIZES if SIZES[s].weights])
def test_cfgs_agree_with_timms_and_open_clips(size: str):
    config = open_clip.get_model_config(SIZES[size].open_clip)
    for tag, facts in SIZES[size].tags.items():
        ours = timm.get_pretrained_cfg(f"clip_vit_{size}.{tag}")
        assert facts.open_clip in pretrained.list_pretrained_tags_by_model(SIZES[size].open_clip)
        said = pretrained.get_pretrained_cfg(SIZES[size].open_clip, facts.open_clip)
        assert (ours.mean, ours.std) == (tuple(said["mean"]), tuple(said["std"]))
        assert ours.interpolation == said["interpolation"]
        assert facts.quick_gelu == bool(said.get("quick_gelu")), tag
        assert (ours.num_classes, ours.input_size[1]) == (config["embed_dim"], config["vision_cfg"]["image_size"])
        theirs = timm.get_pretrained_cfg(f"{SIZES[size].weights}.{tag}")
        # Their publishers say MIT; timm calls its copies of some Apache-2.0.
        permissive = {"mit", "apache-2.0"}
        assert ours.license == ("mit" if theirs.license in permissive else theirs.license), tag
        assert ours.num_classes == theirs.num_classes, tag
        assert (ours.first_conv, ours.classifier) == (theirs.first_conv, theirs.classifier)
        assert ours.hf_hub_id.rstrip("/") == f"timm/{SIZES[size].weights}.{tag}"


@pytest.mark.parametrize(("name", "kwargs", "match"), [
    ("b16_evit60", {"kep": 0.5}, "b16_evit60 has no argument 'kep': did you mean 'keep'"),
    ("b16", {"keep": 0.5}, "no argument 'keep': the method and its keep rate are part of the name"),
    ("b16_random60", {"predictor": "x"}, "has no argument 'predictor'"),
])  # fmt: skip
def test_refusals(name: str, kwargs: dict, match: str):
    error = TypeError if "has no argument" in match else ValueError  # the first is both
    with pytest.raises(error, match=re.escape(match)) as caught:
        timm.create_model(f"clip_vit_{name}", device="meta", **kwargs)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("name", "way"), [
    ("clip_vit_b16_evit10.laion2b", "'clip_vit_b16_evit30.laion2b', keep=0.1"),
    ("clip_vit_s14_patchrnk60", "did you mean 'clip_vit_s14_patchrank60'?"),
])  # fmt: skip
def test_a_name_that_is_none_is_refused_with_the_way(name: str, way: str):
    with pytest.raises(ValueError, match=f"model {name!r}: .*{re.escape(way)}"):
        zoo.create_clip(name)


REPO = "timm/vit_base_patch32_clip_224.openai"
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
Fill = Callable[[str, str, Callable[[Path], Any]], Path]


@pytest.mark.usefixtures("hub")
def test_a_missing_predictor_is_told_before_weights_are_fetched():
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b32\.openai at block 3"):
        zoo.create_clip("clip_vit_b32_patchrank60")
    with pytest.raises(FileNotFoundError, match=r"at block 3") as caught:
        zoo.create_clip("clip_vit_b32_patchrank60", reduce_at=[3, 5], width=9)
    assert caught.value.remedy.facts["options"]["width"] == 9


def test_cached_weights_that_are_damaged_or_of_another_model(fill: Fill):
    folder = fill(REPO, "model.safetensors", lambda path: save_file({"x": torch.ones(1)}, path))
    with pytest.raises(UnusableWeightsError, match=r"of clip_vit_b32\.openai can't be used"):
        timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)
    (blob,) = (folder / "blobs").iterdir()
    blob.write_bytes(b"<html>")
    with pytest.raises(UnusableWeightsError, match=r"can't be used: Error while deserializing"):
        timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_weights_in_timms_names_give_open_clips_features(name: str, fill: Fill, images: Tensor):
    vision = {"layers": 4, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 64}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
    original = lively(CLIP(512, vision, text, quick_gelu=True), 0.05)
    original = original.half().float()  # weights as exact as half precision is
    source = {"pretrained_cfg_overlay": {"state_dict": dict(original.state_dict())}, **SMALL}
    timms = timm.create_model("vit_base_patch32_clip_quickgelu_224.openai", pretrained=True, **source)
    state = {k: v.half().contiguous() for k, v in timms.state_dict().items()}
    save = save_file if name.endswith("safetensors") else torch.save
    fill(REPO, name, lambda path: save(state, path))
    model = timm.create_model("clip_vit_b32.openai", pretrained=True, **SMALL).eval()
    assert torch.allclose(model(images), original.encode_image(images), atol=1e-4)


@torch.no_grad()
def test_a_saved_model_in_the_cache(tiny: Build, fill: Fill, images: Tensor, tmp_path: Path):
    model = tiny("clip_vit_b16_patchrank50.openai", reduce_at=[1])
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    for file in (tmp_path / "saved").iterdir():
        content = file.read_bytes()
        fill("someone/pruned", file.name, lambda path, content=content: path.write_bytes(content))
    again = timm.create_model("hf_hub:someone/pruned@main", pretrained=True).eval()
    torch.testing.assert_close(again(images), model(images))
    fill("someone/empty", "config.json", (tmp_path / "saved" / "config.json").replace)
    with pytest.raises(FileNotFoundError, match="no weights of hf-hub:someone/empty"):
        timm.create_model("hf-hub:someone/empty", pretrained=True)
