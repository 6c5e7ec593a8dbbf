"""Tiny towers of every family and pool, of the libraries' real classes, and what each must do under every method."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lively import lively
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, VisionTransformer
from PIL import Image
from safetensors.torch import save_model
from torch import Tensor, nn

import zoo
from harness.cli.entry import main
from zoo.core.host import Host, give_features
from zoo.core.reducer import configure
from zoo.towers.vit import TimmHost

SIZES: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7,
}  # fmt: skip
P14: dict[str, Any] = {"patch_size": 14, "img_size": 56}
NORMS = {"qk_norm": True, "init_values": 0.5, "scale_attn_norm": True, "scale_mlp_norm": True}
NAFLEX = {"pos_embed_grid_size": (4, 4)}
AVERAGED = "vit_tiny_patch16_224"
# By a name of ours: timm's, and what makes it tiny: 3 blocks with 16 patches, 4 x 4 of 8 or 14 pixels.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip b16": ("vit_base_patch16_siglip_224", {}),
    "siglip averaged": ("vit_base_patch16_siglip_gap_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", P14),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", P14),
    "deit 3": ("deit3_small_patch16_224", {}),
    "registers averaged": ("vit_medium_patch16_reg4_gap_256", {}),
    "averaged": (AVERAGED, {"global_pool": "avg", "class_token": False}),
    "averaged with maximum": (AVERAGED, {"global_pool": "avgmax"}),
    "maximum": (AVERAGED, {"global_pool": "max"}),
    "dinov3 s": ("vit_small_patch16_dinov3", {}),
    "dinov3 qkv bias": ("vit_small_patch16_dinov3_qkvb", {}),
    "eva clip b": ("eva02_base_patch16_clip_224", {}),
    "eva clip e": ("eva02_enormous_patch14_clip_224", {**P14, "mlp_ratio": 4.0}),  # norms behind
    "pe core": ("vit_pe_core_base_patch16_224", {}),
    "rope mixed": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "rope averaged": ("vit_medium_patch16_rope_reg1_gap_256", {}),
    "beit": ("beit_base_patch16_224", {}),
    "beit v2": ("beitv2_base_patch16_224", {}),
    "naflex siglip 2": ("naflexvit_base_patch16_siglip", NAFLEX),
    "naflex rope": ("naflexvit_base_patch16_gap", {**NAFLEX, "rope_type": "axial"}),
    "all norms": (AVERAGED, NORMS),
    "dynamic": (AVERAGED, {"dynamic_img_size": True}),
    "swiglu": ("vit_giant_patch14_dinov2", {"mlp_ratio": 2.0}),
}
TINY = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0, "output_dim": 16}
POOLER = {"attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True}
# Arguments of open_clip's own tower.
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip": {},
    "open_clip averaged": {"pool_type": "avg"},
    "coca": {**POOLER, "attentional_pool": True},
    "coca parallel": {**POOLER, "attentional_pool": "parallel", "output_dim": 32},
    "quick": {"ls_init_value": 0.5, "act_layer": QuickGELU, "no_ln_pre": True},
    "norm behind": {"pool_type": "avg", "final_ln_after_pool": True, "output_tokens": True},
    "cascade": {**POOLER, "attentional_pool": "cascade", "output_dim": 32},
}
NEEDS_QUERY = {name for name in zoo.METHODS if configure(name, {"keep": 0.5}, 3).needs_query}


def build(kind: str, **overrides: Any) -> nn.Module:
    if kind in OPEN_CLIP:
        return lively(VisionTransformer(**{**TINY, **OPEN_CLIP[kind], **overrides}))
    name, own = TIMM[kind]
    return lively(timm.create_model(name, **{**SIZES, **own, **overrides}))


def save(kind: str, folder: Path) -> str:
    """Save a tower of two blocks, open_clip's with a text tower, and return its name."""
    folder.mkdir()
    if kind in TIMM:
        size = {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}} if "naflex" in kind else {}
        timm.models.save_for_hf(build(kind, depth=2, **size), folder, safe_serialization=True)
        return f"local-dir:{folder}"
    vision = {**TINY, **OPEN_CLIP[kind], "layers": 2}
    vision["head_width"] = vision["width"] // vision.pop("heads")
    config = {"embed_dim": vision.pop("output_dim"), "quick_gelu": vision.pop("act_layer", None) is QuickGELU}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config |= {"vision_cfg": vision, "text_cfg": text}
    described = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_model(lively(CLIP(**config)), str(folder / "open_clip_model.safetensors"))
    return f"open_clip:local-dir:{folder}"


def check_commands(model: str, folder: Path, capsys: Any, slow: bool = True) -> dict[str, str]:
    """Run a saved model by the commands that take one, on six pictures; return what is refused, by one sentence.

    Without ``slow``, exports and times are left out.
    """
    cells = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    for at, pixels in enumerate(cells):
        place = folder / "photos" / ("train", "val", "test")[at // 2] / ("cat", "dog")[at % 2]
        place.mkdir(parents=True)
        Image.fromarray(pixels).resize((40, 32)).save(place / "it.png")
    photos, reduction = f"{folder}/photos", ["--methods", "rankmerge", "--keeps", "0.5"]
    lines = {
        "compare": [*reduction, "--match", "keep", "--dataset", f"images:{photos}", "--batches"],
        "show": [f"{photos}/val/cat/it.png", "--block", "1", "--stride", "2"],
        "embed": [photos, "--decoders", "0"],
        "export": ["--images", photos, "--batches", "2", "--runtime", "exported-program"],
        "latency": [*reduction, "--batches", "1", "--rounds", "6", "--seconds", "0"],
        "eval": ["--dataset", f"folder:{photos}", "--shots", "1", "--tokens", "vt"],
    }
    outputs = {"show": "it.png", "export": "it.pt2", "eval": ""}
    refusals = {}
    for command in lines.keys() - (set() if slow else {"export", "latency"}):
        words, output = lines[command], outputs.get(command, command)
        code = main([command, "-q", *words, "--model", model, *(["--output", f"{folder}/{output}"] if output else [])])
        sentence = capsys.readouterr().err
        assert code in (0, 2), (command, sentence)
        if code:
            assert sentence.startswith("patchrank: error: "), (command, sentence)
            assert sentence.count("\n") == 1, (command, sentence)
            refusals[command] = sentence
        elif command != "eval":
            assert (folder / output).exists(), command
    return refusals


def reduced(tower: nn.Module, method: str | None, **options: Any) -> Host:
    """Reduce a tower; the result gives features, whatever the library's does."""
    host: Host = zoo.reduce(tower, method=method, **options)
    return host if isinstance(host, TimmHost) else give_features(host)


def images_of(tower: nn.Module, count: int) -> Tensor:
    size = reduced(tower, None).input_size
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def options_of(method: str) -> dict[str, Any]:
    """Return options with which a method reduces a tower of three blocks."""
    return {"reduce_at": 1} | ({"arch": "mlp", "width": 8} if method == "patchrank" else {})


def check_methods(tower: nn.Module, wanted: Tensor) -> set[str]:
    """Check bit-equality at keep 1, and the number of tokens, all finite, at keep .5; return the refused methods.

    ``wanted`` are the library's features of two images.
    """
    images, refused = images_of(tower, 2), set[str]()
    for method in zoo.METHODS:
        try:
            whole = reduced(tower, method, keep=1.0, **options_of(method))
        except ValueError:
            refused.add(method)
            continue
        assert torch.equal(whole(images), wanted), method
        trace = reduced(tower, method, keep=0.5, **options_of(method)).trace(images)
        assert trace.final_tokens == 8, method
        assert trace.output.isfinite().all(), method
    return refused


def check_any_order(tower: nn.Module) -> None:
    """Check that patches permuted with their places are ranked alike and give the same features."""
    images, query = images_of(tower, 2), reduced(tower, None).query
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    for method in zoo.METHODS:
        if zoo.METHODS[method].ordered or (query is None and method in NEEDS_QUERY):
            continue
        model = reduced(tower, method, keep=0.5, **options_of(method))
        tokens = model.embed(images)
        x = torch.cat((tokens.x[:, : tokens.prefix], tokens.patches[:, order]), dim=1)
        straight, _ = model.advance(tokens)
        permuted, _ = model.advance(tokens._replace(x=x, patch_idx=tokens.patch_idx[:, order]))
        same = torch.allclose(model.finish(straight), model.finish(permuted), atol=1e-4)
        assert same, f"{method}: other features of permuted patches, and its class doesn't say ordered = True"
        for one, other in zip(straight.history, permuted.history, strict=True):
            assert torch.equal(one.after.sort(dim=1).values, other.after.sort(dim=1).values), method
            # In the order of places, in which fused tokens come first.
            first, second = (each.importance.gather(1, each.before.argsort(dim=1)) for each in (one, other))
            assert torch.allclose(first, second, atol=1e-4), method


def check_export(tower: nn.Module) -> None:
    """Check that torch.export of rankmerge with a free batch size gives the model's features."""
    model = reduced(tower, "rankmerge", keep=0.5, reduce_at=1)
    batch = torch.export.Dim("batch", min=1, max=16)
    graph = torch.export.export(model, (images_of(tower, 2),), dynamic_shapes=({0: batch},)).module()
    images = images_of(tower, 5)
    assert torch.allclose(graph(images), model(images), atol=1e-5)
