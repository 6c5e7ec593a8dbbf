"""The table of docs/towers.md: what works for each family of towers, tried on tiny ones of random weights.

``python -m tools.write_towers`` in a checkout writes it anew; it needs the extra ``transformers``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

import zoo
from tools import replace_part
from zoo.core.files import write_whole
from zoo.core.host import FeatureTower, Host
from zoo.core.reducer import configure
from zoo.loading.recovery_file import RecoveryConfig
from zoo.loading.registry import load_methods
from zoo.ranking.golden import GoldenConfig, GoldenEngine
from zoo.towers.vit import TimmHost

PAGE = Path("docs/towers.md")
REWRITE = "python -m tools.write_towers"
BEGIN, END = f"<!-- generated: {REWRITE} -->", "<!-- end of what is generated -->"
SIZES: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
P8: dict[str, Any] = {"patch_size": 8}
P14: dict[str, Any] = {"patch_size": 14, "img_size": 56}
AVERAGED = "vit_tiny_patch16_224"
# By a name of ours: timm's, and what makes it tiny: 3 blocks with 16 patches, 4 x 4 of 8 or 14 pixels.
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip b16": ("vit_base_patch16_siglip_224", P8),
    "siglip so400m": ("vit_so400m_patch14_siglip_224", P14),
    "siglip 2": ("vit_base_patch16_siglip_224.v2_webli", P8),
    "siglip averaged": ("vit_base_patch16_siglip_gap_224", P8),
    "dinov2": ("vit_small_patch14_dinov2", P14),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", P14),
    "deit 3": ("deit3_small_patch16_224", P8),
    "registers averaged": ("vit_medium_patch16_reg4_gap_256", P8),
    "averaged": (AVERAGED, {**P8, "global_pool": "avg", "class_token": False}),
    "averaged with maximum": (AVERAGED, {**P8, "global_pool": "avgmax"}),
    "maximum": (AVERAGED, {**P8, "global_pool": "max"}),
    "dinov3 s": ("vit_small_patch16_dinov3", P8),
    "dinov3 qkv bias": ("vit_small_patch16_dinov3_qkvb", P8),
    "eva02 tiny": ("eva02_tiny_patch14_224", P14),
    "eva clip b": ("eva02_base_patch16_clip_224", P8),
    "eva clip e": ("eva02_enormous_patch14_clip_224", {**P14, "mlp_ratio": 4.0}),  # norms behind
    "pe core": ("vit_pe_core_base_patch16_224", P8),
    "rope mixed": ("vit_small_patch16_rope_mixed_ape_224", P8),
    "rope averaged": ("vit_medium_patch16_rope_reg1_gap_256", P8),
    "beit": ("beit_base_patch16_224", P8),
    "beit v2": ("beitv2_base_patch16_224", P8),
    "naflex siglip 2": ("naflexvit_base_patch16_siglip", {**P8, "pos_embed_grid_size": (4, 4)}),
    "naflex rope": ("naflexvit_base_patch16_gap", {**P8, "pos_embed_grid_size": (4, 4), "rope_type": "axial"}),
}
TINY = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0, "output_dim": 16}
POOLER = {"attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True}
# Arguments of open_clip's own tower.
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip": {},
    "open_clip averaged": {"pool_type": "avg"},
    "coca": {**POOLER, "attentional_pool": True},
    "coca parallel": {**POOLER, "attentional_pool": "parallel", "output_dim": 32},
}
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8}
SQUARE = {"image_size": 32, "intermediate_size": 48}
# Classes of transformers, without Model and Config, and arguments of their configurations.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformers clip": ("CLIPVision", SQUARE),
    "transformers siglip": ("SiglipVision", SQUARE),
    "transformers siglip 2": ("Siglip2Vision", {"intermediate_size": 48, "num_patches": 16}),
    "transformers dinov2": ("Dinov2", {"image_size": 32, "mlp_ratio": 2}),
    "transformers dinov3": ("DINOv3ViT", {**SQUARE, "num_register_tokens": 2}),
}
# Their choice goes by the order of the sequence, too: alternate sets, which token of a pair or cluster stays.
ORDERED = ("atc", "tome", "tofu", "rankmerge")
YES = "yes"


def _built(kind: str) -> tuple[str, nn.Module]:
    """Return what a kind is called in its library, and a tower of it."""
    if kind in OPEN_CLIP:
        return "VisionTransformer", VisionTransformer(**{**TINY, **OPEN_CLIP[kind]})
    if kind in TRANSFORMERS:
        import transformers

        name, own = TRANSFORMERS[kind]
        return f"{name}Model", getattr(transformers, f"{name}Model")(
            getattr(transformers, f"{name}Config")(**WIDE, **own)
        )
    name, own = TOWERS[kind]
    return name, timm.create_model(name, **{**SIZES, **own})


def tiny(kind: str) -> tuple[str, nn.Module]:
    """Return the tiny tower of that kind, with weights that make every patch matter, and its library's name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name, tower = _built(kind)
        with torch.no_grad():
            for weight in tower.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return name, tower.eval()


def reduced(tower: nn.Module, method: str | None, **options: Any) -> Host:
    """Reduce a tower; the result gives features, whatever the library's does."""
    host: Host = zoo.reduce(tower, method=method, **options)
    if isinstance(host, TimmHost):
        return host
    whole = FeatureTower(host)
    return whole.over(host)


def images_of(tower: nn.Module, count: int) -> Tensor:
    """Return random images of the tower's size."""
    size = reduced(tower, None).input_size
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def features_of(tower: Any, images: Tensor) -> Tensor:
    """Return what the library's own tower makes of images."""
    if "Siglip2" in type(tower).__name__:  # it takes patches
        size = tower.config.patch_size
        tiles = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        shapes = torch.tensor(tiles.shape[1:3]).expand(len(images), -1)
        mask = torch.ones(len(images), tiles.shape[1] * tiles.shape[2], dtype=torch.int32)
        output = tower(tiles.flatten(3).flatten(1, 2), pixel_attention_mask=mask, spatial_shapes=shapes)
    else:
        output = tower(images)
    output = output[0] if isinstance(output, tuple) else getattr(output, "pooler_output", output)
    features: Tensor = output
    return features.flatten(1)


def options_of(method: str) -> dict[str, Any]:
    """Return options with which a method reduces a tower of three blocks."""
    return {"reduce_at": 1} | ({"arch": "mlp", "width": 8} if method == "patchrank" else {})


def _methods(tower: nn.Module, refused: list[str]) -> str:
    """Try all methods: bit-equal at keep 1, and the right number of finite tokens at keep .5."""
    images, able = images_of(tower, 2), 0
    with torch.no_grad():
        wanted = features_of(tower, images)
        for method in sorted(zoo.METHODS):
            try:
                whole = reduced(tower, method, keep=1.0, **options_of(method))
            except ValueError as error:
                refused.append(str(error))
                continue
            if not torch.equal(whole(images), wanted):
                raise ValueError(f"{method} at keep 1 isn't bit-equal")
            trace = reduced(tower, method, keep=0.5, **options_of(method)).trace(images)
            if trace.final_tokens != 8 or not trace.output.isfinite().all():
                raise ValueError(
                    f"{method} at keep .5 leaves {trace.final_tokens} of 16 patch tokens, or not all finite"
                )
            able += 1
    return f"{able} of {len(zoo.METHODS)}"


def _permuted(tower: nn.Module, _refused: list[str]) -> str:
    """Permute the patches with their places under every method that doesn't go by their order."""
    images, query = images_of(tower, 2), reduced(tower, None).query
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    for method in sorted(zoo.METHODS):
        if method in ORDERED or (query is None and configure(method, {"keep": 0.5}, 3).needs_query):
            continue
        model = reduced(tower, method, keep=0.5, **options_of(method))
        with torch.no_grad():
            tokens = model.embed(images)
            x = torch.cat((tokens.x[:, : tokens.prefix], tokens.patches[:, order]), dim=1)
            straight, _ = model.advance(tokens)
            permuted, _ = model.advance(tokens._replace(x=x, patch_idx=tokens.patch_idx[:, order]))
            if not torch.allclose(model.finish(straight), model.finish(permuted), atol=1e-4):
                raise ValueError(f"{method} gives other features of permuted patches")
        for one, other in zip(straight.history, permuted.history, strict=True):
            same = torch.equal(one.after.sort(dim=1).values, other.after.sort(dim=1).values)
            # In the order of places, in which fused tokens come first.
            first, second = (each.importance.gather(1, each.before.argsort(dim=1)) for each in (one, other))
            if not same or not torch.allclose(first, second, atol=1e-4):
                raise ValueError(f"{method} ranks permuted patches otherwise")
    return YES


def _ranked(config: GoldenConfig, precision: str = "float32") -> Callable[[nn.Module, list[str]], str]:
    def ranked(tower: nn.Module, _: list[str]) -> str:
        engine = GoldenEngine(reduced(tower, None), config, precision=precision)
        importance = engine.importance(images_of(tower, 2))
        if not importance.isfinite().all():
            raise ValueError("the importance isn't finite")
        return YES

    return ranked


def _predictor(tower: nn.Module, _: list[str]) -> str:
    model = reduced(tower, "rankmerge", rank="predictor", rank_at=1, arch="mlp", width=8, keep=0.5)
    with torch.no_grad():
        model(images_of(tower, 2))
    return YES


def _recovery(tower: nn.Module, _: list[str]) -> str:
    student = reduced(tower, "rankmerge", keep=0.3, reduce_at=0)
    images = [images_of(tower, 4)]
    zoo.recover(student, images, images, RecoveryConfig(rounds=1, steps=1, batch=2))
    return YES


def _export(tower: nn.Module, _: list[str]) -> str:
    model = reduced(tower, "rankmerge", keep=0.5, reduce_at=1)
    batch = torch.export.Dim("batch", min=1, max=16)
    graph = torch.export.export(model, (images_of(tower, 2),), dynamic_shapes=({0: batch},)).module()
    images = images_of(tower, 5)
    with torch.no_grad():
        if not torch.allclose(graph(images), model(images), atol=1e-5):
            raise ValueError("the exported program gives other features")
    return YES


CHECKS: dict[str, Callable[[nn.Module, list[str]], str]] = {
    "methods": _methods,
    "any order": _permuted,
    "golden": _ranked(GoldenConfig(block=1)),
    "golden by merging": _ranked(GoldenConfig(block=1, action="merge")),
    "follow": _ranked(GoldenConfig(block=1, approximate="follow:12")),
    "golden in bfloat16": _ranked(GoldenConfig(block=1), "bfloat16"),
    "predictor": _predictor,
    "recovery": _recovery,
    "export": _export,
}


def row_of(kind: str, notes: list[str]) -> list[str]:
    """Try everything on the tower of a kind; return the cells of its row and add reasons to ``notes``."""
    name, tower = tiny(kind)
    cells = [f"{kind}: `{name}`", reduced(tower, None).query or "none"]
    for check in CHECKS.values():
        refused: list[str] = []
        try:
            cell = check(tower, refused)
        except ValueError as error:
            cell = "no"
            refused.append(str(error))
        for reason in refused[:1]:
            if reason not in notes:
                notes.append(reason)
            cell += f" ({notes.index(reason) + 1})"
        cells.append(cell)
    return cells


def table() -> str:
    """Return the table with its notes, in Markdown."""
    load_methods()
    heads, notes = ["tower", "query", *CHECKS], list[str]()
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for kind in (*TOWERS, *OPEN_CLIP, *TRANSFORMERS):
        lines.append(f"| {' | '.join(row_of(kind, notes))} |")
    return "\n".join([*lines, "", *(f"{index}. {note}" for index, note in enumerate(notes, 1))]) + "\n"


def main() -> None:
    """Write the table into the page."""
    if not PAGE.is_file():
        sys.exit(f"{PAGE} isn't here: run {REWRITE} in a checkout")
    part = f"{BEGIN}\n{table()}{END}\n"
    write_whole(PAGE, replace_part(PAGE.read_text("utf-8"), part, BEGIN, END, PAGE).encode())
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
