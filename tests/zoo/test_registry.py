"""One contract over every registered name."""

import re
from fractions import Fraction

import open_clip
import pytest
import timm
import torch
from open_clip import pretrained

import zoo
from zoo.core.reducer import HostSpec, build_reducer
from zoo.loading.registry import default_cfgs
from zoo.loading.sizes import PERCENTS, SIZES

METHODS = ("patchrank", "rankmerge", "clsattn", "evit", "tome", "random")
DEPTHS = {"b32": 12, "b16": 12, "l14": 24, "s14": 9}
PATCHES = {"b32": 49, "b16": 196, "l14": 256, "s14": 196}
THIRDS = {"b32": 90, "b16": 30, "l14": 60, "s14": 60}  # keep rates that are run, one for each size


def test_the_names_are_those_that_timm_lists():
    ends = ["", *(f"_{method}{percent}" for method in METHODS for percent in PERCENTS)]
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


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("b16_evit60", {"kep": 0.5}, "b16_evit60 has no argument 'kep': did you mean 'keep'"),
        ("b16", {"keep": 0.5}, "no argument 'keep': the method and its keep rate are part of the name"),
        ("b16_random60", {"predictor": "x"}, "has no argument 'predictor'"),
        ("s14_evit60", {"reduce_at": [3, 6, 9]}, "reduce_at=9: this tower has blocks 0 to 8"),
        ("b16_tome30", {"reduce_at": [3]}, "at most half can; raise keep or add reduction points"),
    ],
)
def test_refusals(name: str, kwargs: dict, match: str):
    error = TypeError if "has no argument" in match else ValueError  # the first is both
    with pytest.raises(error, match=re.escape(match)) as caught:
        timm.create_model(f"clip_vit_{name}", device="meta", **kwargs)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("clip_vit_b16_evit10.laion2b", "'clip_vit_b16_evit30.laion2b', keep=0.1"),
        ("clip_vit_s14_patchrnk60", "did you mean 'clip_vit_s14_patchrank60'?"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_way(name: str, way: str):
    with pytest.raises(ValueError, match=f"model {name!r}: .*{re.escape(way)}"):
        zoo.create_clip(name)
