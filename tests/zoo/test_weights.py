"""Where weights and predictors come from, and what is said when they are missing."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.predictor import PredictorFile, predictor_name
from zoo.sizes import SIZES
from zoo.weights import (
    SUFFIXES,
    blocks_fingerprint,
    cache_folder,
    find_clip,
    find_predictor,
    fingerprint,
    load_predictor,
)

NAME, TAG = "clip_vit_b16_patchrank60", "openai"


Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the user's cache at an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clip-patchrank" / "predictors"


@pytest.fixture
def tower(tiny: Build, tmp_path: Path) -> dict[str, Any]:
    """Save a dense tower; return how to load it."""
    path = tmp_path / "tower.safetensors"
    save_file(tiny(f"clip_vit_b16.{TAG}").state_dict(), path)
    return {"file": str(path), "num_classes": 7}


def save_predictor(path: Path, source: zoo.ReducedViT, **facts: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        k.removeprefix("reducer.predictor."): v.contiguous()
        for k, v in source.state_dict().items()
        if k.startswith("reducer.predictor.")
    }
    config = source.reducer.config
    options = {"arch": config.arch, "width": config.width}
    told = {"model": "clip_vit_b16", "tag": TAG, "block": 3, "options": options} | facts
    save_file(found, path, metadata={"predictor": json.dumps(told)})
    return path


def test_a_missing_predictor_is_an_error_with_the_command(tiny: Build, tower: dict[str, Any]):
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.openai") as error:
        tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower)
    command = "patchrank fit predictor --model clip_vit_b16.openai --block 3"
    assert command in str(error.value)
    assert "predictor=PATH" in str(error.value)
    assert "pretrained=False" in str(error.value)


def same_predictor(model: nn.Module, source: nn.Module) -> bool:
    ours, theirs = model.reducer.state_dict(), source.reducer.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("where", ["cache", "argument"])
def test_a_predictor_is_found_and_shapes_the_network(
    where: str, tiny: Build, tower: dict[str, Any], cache: Path, tmp_path: Path
):
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    folder = cache if where == "cache" else tmp_path
    path = save_predictor(folder / predictor_name("clip_vit_b16", TAG, 3), source)
    given = {} if where == "cache" else {"predictor": str(path)}
    model = tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower, noise=0, **given)
    assert (model.reducer.config.arch, model.reducer.config.width) == ("mlp", 24)
    assert same_predictor(model, source)


def test_a_predictor_serves_one_tower_only(tiny: Build, cache: Path, tower: dict[str, Any]):
    source = tiny(f"{NAME}.{TAG}", arch="mlp")
    path = save_predictor(cache / predictor_name("clip_vit_b16", TAG, 3), source)
    found = PredictorFile.read(path)
    assert found == find_predictor("clip_vit_b16", TAG, 3)
    assert cache_folder() in found.path.parents
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.laion2b"):
        find_predictor("clip_vit_b16", "laion2b", 3)
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_l14\.openai"):
        tiny("clip_vit_l14_patchrank60.openai", pretrained=True, pretrained_cfg_overlay=tower)


@pytest.mark.parametrize(
    ("facts", "options", "match"),
    [
        ({"tag": "laion2b"}, {}, "was fitted to clip_vit_b16.laion2b, not to clip_vit_b16.openai"),
        ({"model": "clip_vit_l14"}, {}, "was fitted to clip_vit_l14.openai, not to clip_vit_b16"),
        ({"block": 5}, {}, "was fitted at block 5, this model scores before block 3; fit one with"),
        ({}, {"reduce_at": [2, 4]}, "--block 2 --arch mlp --width 64 --dataset NAME"),
        ({}, {"arch": "conv"}, "arch='conv': the predictor"),
        ({}, {"width": 7}, "width=7: the predictor"),
        ({}, {"width": 7}, "--block 3 --arch mlp --width 7 --dataset NAME --out PATH, and give"),
    ],
)
def test_predictors_that_do_not_fit(
    facts: dict, options: dict, match: str, tiny: Build, tower: dict[str, Any], tmp_path: Path
):
    source = tiny(f"{NAME}.{TAG}", arch="mlp")
    path = save_predictor(tmp_path / "p.safetensors", source, **facts)
    with pytest.raises(ValueError, match=re.escape(match)):
        tiny(
            f"{NAME}.{TAG}",
            pretrained=True,
            pretrained_cfg_overlay=tower,
            predictor=str(path),
            **options,
        )


@pytest.fixture
def fitted(tiny: Build, tower: dict[str, Any], tmp_path: Path) -> Path:
    """A predictor that tells the weights of the tower in ``tower``."""
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    weights = blocks_fingerprint(load_file(tower["file"]))
    return save_predictor(tmp_path / "told.safetensors", source, weights=weights)


@pytest.mark.parametrize("overrides", [{}, {"num_classes": 0}, {"img_size": 96}], ids=str)
def test_head_and_image_size_are_free(
    overrides: dict, tiny: Build, tower: dict[str, Any], fitted: Path
):
    told = {"pretrained_cfg_overlay": tower, "predictor": str(fitted), "noise": 0, **overrides}
    model = tiny(f"{NAME}.{TAG}", pretrained=True, **told)
    assert model.reducer.config.arch == "mlp"


@pytest.mark.parametrize("where", ["blocks.0.attn.qkv.bias", "blocks.5.mlp.fc2.weight"])
def test_a_predictor_of_other_weights_is_refused(
    where: str, tiny: Build, tower: dict[str, Any], fitted: Path
):
    """The name is the same, one number in one block isn't: created by name, or by reduce."""
    state = load_file(tower["file"])
    state[where].view(-1)[0] += 1
    save_file(state, tower["file"])
    match = r"told\.safetensors' was fitted to clip_vit_b16\.openai with weights \w{16}, these are"
    told = {"pretrained_cfg_overlay": tower, "noise": 0}
    with pytest.raises(ValueError, match=match):
        tiny(f"{NAME}.{TAG}", pretrained=True, predictor=str(fitted), **told)
    dense = tiny(f"clip_vit_b16.{TAG}", pretrained=True, **told)
    reduced = zoo.reduce(dense, method="patchrank", keep=0.6, arch="mlp", width=24)
    with pytest.raises(ValueError, match=match):
        load_predictor(reduced, PredictorFile.read(fitted))


def test_files_that_do_not_tell_weights_serve_the_name(tiny: Build, tmp_path: Path):
    """As files did before there was the fingerprint."""
    source = tiny(f"{NAME}.{TAG}", arch="mlp", width=24)
    found = PredictorFile.read(save_predictor(tmp_path / "p.safetensors", source))
    assert found.weights is None
    load_predictor(source, found)


def test_a_model_that_reduces_elsewhere_is_not_filled(tiny: Build, fitted: Path):
    model = tiny(f"{NAME}.{TAG}", arch="mlp", width=24, reduce_at=[1, 3])
    with pytest.raises(ValueError, match="was fitted at block 3, this model scores before block 1"):
        load_predictor(model, PredictorFile.read(fitted))


@pytest.mark.parametrize("options", [{"arch": "mlp", "width": 8}, {"arch": "linear"}], ids=str)
def test_a_model_of_another_shape_is_not_filled(options: dict, tiny: Build, fitted: Path):
    with pytest.raises(ValueError, match="has another architecture"):
        load_predictor(tiny(f"{NAME}.{TAG}", **options), PredictorFile.read(fitted))


def test_a_predictor_for_random_weights_is_refused(tiny: Build, fitted: Path):
    with pytest.raises(ValueError, match=r"predictor='.+' without .* add pretrained=True"):
        tiny(f"{NAME}.{TAG}", predictor=str(fitted))


@torch.no_grad()
def test_another_predictor_for_a_saved_model(
    tiny: Build, tower: dict[str, Any], fitted: Path, tmp_path: Path
):
    """``local-dir:`` carries its predictor; ``predictor=PATH`` replaces it."""
    own = tiny(f"{NAME}.{TAG}", arch="mlp", width=24, noise=0)
    own.load_state_dict(load_file(tower["file"]), strict=False)
    save_for_hf(own, tmp_path / "saved", safe_serialization=True)
    folder = f"local-dir:{tmp_path / 'saved'}"
    carried = timm.create_model(folder, pretrained=True)
    assert same_predictor(carried, own)
    other = timm.create_model(folder, pretrained=True, predictor=str(fitted))
    assert not same_predictor(other, own)
    state = load_file(fitted)
    assert torch.equal(other.reducer.predictor.net.score.weight, state["net.score.weight"])


def test_files_that_are_no_predictors(tiny: Build, tower: dict[str, Any]):
    for path, error, match in (
        ("gone.safetensors", FileNotFoundError, "no predictor at 'gone.safetensors'"),
        (tower["file"], ValueError, "holds no predictor: it lacks the 'predictor' metadata"),
    ):
        with pytest.raises(error, match=match):
            tiny(f"{NAME}.{TAG}", pretrained=True, pretrained_cfg_overlay=tower, predictor=path)


@torch.no_grad()
def test_timms_own_checkpoint_loads(tiny: Build, images: Tensor, tmp_path: Path):
    theirs = tiny("vit_base_patch16_clip_quickgelu_224.openai")
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    source = {"file": str(tmp_path / "w.safetensors"), "num_classes": 7}
    for name in ("clip_vit_b16.openai", "clip_vit_b16_tome60.openai"):
        ours = tiny(name, noise=0, pretrained=True, pretrained_cfg_overlay=source)
        assert torch.equal(zoo.reduce(ours, method=None)(images), theirs(images))


PRUNED = "clip_vit_b32_clsattn50"


WORDS = ["a photo of a cat.", "a zebra crossing"]


@torch.no_grad()
def test_the_hubs_cache_gives_both_towers(small_clip):
    theirs = small_clip.original()
    small_clip.cached(theirs)
    model, _, tokenizer = zoo.create_clip("clip_vit_b32.openai")
    images, tokens = torch.randn(2, 3, 224, 224), tokenizer(WORDS)
    assert torch.equal(tokens, open_clip.get_tokenizer("ViT-B-32")(WORDS))
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert torch.allclose(model.encode_text(tokens), theirs.encode_text(tokens), atol=1e-5)
    assert not torch.allclose(*theirs.encode_text(tokens), atol=1e-2)
    assert model.logit_scale.item() == 3.5
    assert not model.training
    assert "state_dict" not in model.visual.pretrained_cfg


@torch.no_grad()
def test_a_reduced_model_has_the_same_towers(small_clip):
    small_clip.cached(small_clip.original())
    dense, pruned = (zoo.create_clip(n).model for n in ("clip_vit_b32.openai", PRUNED))
    images = torch.randn(2, 3, 224, 224)
    again = zoo.reduce(dense.visual, method="clsattn", keep=0.5)
    assert torch.equal(pruned.visual(images), again(images))
    assert pruned.visual.trace(images).final_tokens == round(0.5 * 49)
    words = open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert torch.equal(pruned.encode_text(words), dense.encode_text(words))


@pytest.mark.parametrize(
    "kind", ["safetensors", "state dict", "training checkpoint", "custom text"]
)
@torch.no_grad()
def test_a_file_serves_as_well(kind: str, small_clip, tmp_path: Path):
    theirs = small_clip.original()
    state = theirs.state_dict()
    file = tmp_path / "weights.pt"
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    elif kind == "training":
        names = {f"module.{k}": v for k, v in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": names}, file)
    elif kind == "custom text":
        towers = ("visual.", "logit_scale")
        torch.save({k if k.startswith(towers) else f"text.{k}": v for k, v in state.items()}, file)
    else:
        torch.save({k: v.half() for k, v in state.items()}, file)
        theirs = theirs.half().float()
    model = zoo.create_clip("clip_vit_b32.openai", pretrained=file).model
    images, words = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert torch.allclose(model.encode_text(words), theirs.encode_text(words), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@torch.no_grad()
def test_a_file_laid_into_the_cache_is_taken_before_the_hub(
    suffix: str, small_clip, tmp_path: Path
):
    small_clip.cached(small_clip.original())
    own = small_clip.original()
    own.visual.proj.mul_(2)
    small_clip.weights.mkdir(parents=True)
    file = small_clip.weights / f"clip_vit_b32.openai{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write({k: v.contiguous() for k, v in own.state_dict().items()}, file)
    assert find_clip("b32", "openai") == file
    images = torch.randn(1, 3, 224, 224)
    wanted = own.encode_image(images)
    assert torch.allclose(
        zoo.create_clip("clip_vit_b32").model.encode_image(images), wanted, atol=1e-5
    )
    alone = timm.create_model("clip_vit_b32.openai", pretrained=True).eval()
    assert torch.allclose(alone(images), wanted, atol=1e-5)


@torch.no_grad()
def test_the_tag_decides_the_activation_of_both_towers(small_clip, tmp_path: Path):
    file = tmp_path / "weights.pt"
    torch.save(small_clip.original().state_dict(), file)
    images, words = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(WORDS)
    for tag, facts in SIZES["b32"].tags.items():
        model = zoo.create_clip(f"clip_vit_b32.{tag}", pretrained=file).model
        same, other = (
            small_clip.original(quick=q) for q in (facts.quick_gelu, not facts.quick_gelu)
        )
        for encode, data in (("encode_image", images), ("encode_text", words)):
            found = getattr(model, encode)(data)
            assert torch.allclose(found, getattr(same, encode)(data), atol=1e-5)
            assert not torch.allclose(found, getattr(other, encode)(data), atol=1e-4)


def test_without_weights_both_towers_are_random(small_clip):
    first, second = (zoo.create_clip("clip_vit_b32", pretrained=False).model for _ in range(2))
    assert not torch.equal(first.visual.head.weight, second.visual.head.weight)
    words = open_clip.get_tokenizer("ViT-B-32")(WORDS)
    assert not torch.equal(first.encode_text(words), second.encode_text(words))


def test_without_weights_anywhere_the_ways_to_supply_them_are_told(small_clip):
    wanted = "no weights of clip_vit_b32.openai (timm/vit_base_patch32_clip_224.openai/open_clip_"
    with pytest.raises(FileNotFoundError, match=re.escape(wanted)) as caught:
        zoo.create_clip("clip_vit_b32")
    assert str(small_clip.weights / "clip_vit_b32.openai") in str(caught.value)
    with pytest.raises(RuntimeError, match=re.escape(wanted)):
        open_clip.create_model("clip_vit_b32", pretrained="openai")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"visual.positional_embedding": torch.zeros(145, 64)}, "trained with 145 tokens, this"),
        ({"visual.positional_embedding": None}, "no image tower: 'visual.positional_embedding' is"),
        ({"text_projection": None}, 'no text tower of ViT-B-32: Missing key(s) in state_dict: "t'),
        ({"visual.ln_post.bias": None}, 'Missing key(s) in state_dict: "norm.bias"'),
        ({"ln_final.bias": torch.zeros(65)}, "no text tower of ViT-B-32: size mismatch for ln_fi"),
        (
            {"extra": torch.zeros(1)},
            'no text tower of ViT-B-32: Unexpected key(s) in state_dict: "',
        ),
    ],
    ids=["size", "no image", "no text", "holed", "width", "more"],
)
def test_a_file_of_another_model_is_refused(change: dict, match: str, small_clip, tmp_path: Path):
    state = {**small_clip.original().state_dict(), **change}
    file = tmp_path / "weights.pt"
    torch.save({k: v for k, v in state.items() if v is not None}, file)
    start = f"weights {str(file)!r} for clip_vit_b32.openai: "
    with pytest.raises(ValueError, match=re.escape(start) + ".*" + re.escape(match)):
        zoo.create_clip("clip_vit_b32", pretrained=file)


def test_the_embedded_size_takes_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="clip_vit_s14 has no weights but the embedded ones"):
        zoo.create_clip("clip_vit_s14", pretrained=tmp_path / "weights.pt")


@pytest.fixture
def halved(tiny: Build) -> zoo.ReducedViT:
    """A halved whose weights lost nothing to float16."""
    return tiny("clip_vit_b16", depth=2).half().float()


def test_is_16_hex_digits_and_the_same_for_a_copy(halved: nn.Module):
    digits = fingerprint(halved)
    assert len(digits) == 16
    int(digits, 16)
    assert fingerprint(copy.deepcopy(halved)) == digits == fingerprint(halved.eval())


def test_is_one_in_every_precision_that_loses_nothing(halved: nn.Module):
    digits = fingerprint(halved)
    assert fingerprint(copy.deepcopy(halved).half()) == digits
    assert fingerprint(copy.deepcopy(halved).double()) == digits
    assert fingerprint(copy.deepcopy(halved).bfloat16()) != digits  # this one loses digits


@pytest.mark.parametrize("options", [{"reduce_at": 0}, {"reduce_at": 1, "arch": "mlp"}], ids=str)
def test_leaves_the_reducer_out(options: dict, halved: nn.Module):
    digits = fingerprint(halved)
    reduced = zoo.reduce(halved, method="patchrank", keep=0.5, **options)
    assert reduced.reducer.state_dict()
    assert fingerprint(reduced) == digits
    assert fingerprint(zoo.reduce(halved, method="tome", keep=0.5)) == digits


def test_changes_with_every_single_weight(halved: nn.Module):
    seen = {fingerprint(halved)}
    for name, parameter in halved.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.5
        digits = fingerprint(halved)
        assert digits not in seen, name
        seen.add(digits)


def test_tells_which_weight_is_where(halved: nn.Module):
    """Two blocks that change places hold the same numbers in another order."""
    moved = copy.deepcopy(halved)
    moved.blocks = nn.Sequential(moved.blocks[1], moved.blocks[0])
    assert fingerprint(moved) != fingerprint(halved)
