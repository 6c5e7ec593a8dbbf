"""The table of docs/towers.md: what works for each family of timm's towers, tried on tiny ones of random weights.

``python -m harness.cli.towers`` in a checkout writes it anew.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import zoo
from harness.cli.reference import END, replaced
from zoo.files import write_whole
from zoo.golden import GoldenConfig, GoldenEngine
from zoo.recovery import RecoveryConfig
from zoo.registry import load_methods

PAGE = Path("docs/towers.md")
REWRITE = "python -m harness.cli.towers"
BEGIN = f"<!-- generated: {REWRITE} -->"
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
YES = "yes"


def tiny(kind: str) -> nn.Module:
    """Build the tiny tower of that kind, with weights that make every patch matter."""
    name, own = TOWERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower: nn.Module = timm.create_model(name, **{**SIZES, **own}).eval()
        with torch.no_grad():
            for weight in tower.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return tower


def images_of(tower: Any, count: int) -> Tensor:
    """Return random images of the tower's size."""
    size = zoo.reduce(tower, method=None).input_size
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def options_of(method: str) -> dict[str, Any]:
    """Return options with which a method reduces a tower of three blocks."""
    return {"reduce_at": 1} | ({"arch": "mlp", "width": 8} if method == "patchrank" else {})


def _methods(tower: nn.Module, refused: list[str]) -> str:
    """Try all methods: bit-equal at keep 1, and the right number of finite tokens at keep .5."""
    images, able = images_of(tower, 2), 0
    with torch.no_grad():
        wanted = tower(images)
        for method in sorted(zoo.METHODS):
            try:
                whole = zoo.reduce(tower, method=method, keep=1.0, **options_of(method))
            except ValueError as error:
                refused.append(str(error))
                continue
            if not torch.equal(whole(images), wanted):
                raise ValueError(f"{method} at keep 1 isn't bit-equal")
            trace = zoo.reduce(tower, method=method, keep=0.5, **options_of(method)).trace(images)
            if trace.final_tokens != 8 or not trace.output.isfinite().all():
                raise ValueError(
                    f"{method} at keep .5 leaves {trace.final_tokens} of 16 patch tokens, or not all finite"
                )
            able += 1
    return f"{able} of {len(zoo.METHODS)}"


def _ranked(config: GoldenConfig, precision: str = "float32") -> Callable[[nn.Module, list[str]], str]:
    def ranked(tower: nn.Module, _: list[str]) -> str:
        engine = GoldenEngine(zoo.reduce(tower, method=None), config, precision=precision)
        importance = engine.importance(images_of(tower, 2))
        if not importance.isfinite().all():
            raise ValueError("the importance isn't finite")
        return YES

    return ranked


def _predictor(tower: nn.Module, _: list[str]) -> str:
    model = zoo.reduce(tower, method="rankmerge", rank="predictor", rank_at=1, arch="mlp", width=8, keep=0.5)
    with torch.no_grad():
        model(images_of(tower, 2))
    return YES


def _recovery(tower: nn.Module, _: list[str]) -> str:
    student = zoo.reduce(tower, method="rankmerge", keep=0.3, reduce_at=0)
    images = [images_of(tower, 4)]
    zoo.recover(student, images, images, RecoveryConfig(rounds=1, steps=1, batch=2))
    return YES


def _export(tower: nn.Module, _: list[str]) -> str:
    model = zoo.reduce(tower, method="rankmerge", keep=0.5, reduce_at=1)
    batch = torch.export.Dim("batch", min=1, max=16)
    graph = torch.export.export(model, (images_of(tower, 2),), dynamic_shapes=({0: batch},)).module()
    images = images_of(tower, 5)
    with torch.no_grad():
        if not torch.allclose(graph(images), model(images), atol=1e-5):
            raise ValueError("the exported program gives other features")
    return YES


CHECKS: dict[str, Callable[[nn.Module, list[str]], str]] = {
    "methods": _methods,
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
    tower = tiny(kind)
    cells = [f"{kind}: `{TOWERS[kind][0]}`", zoo.reduce(tower, method=None).query or "none"]
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
    for kind in TOWERS:
        lines.append(f"| {' | '.join(row_of(kind, notes))} |")
    return "\n".join([*lines, "", *(f"{index}. {note}" for index, note in enumerate(notes, 1))]) + "\n"


def main() -> None:
    """Write the table into the page."""
    if not PAGE.is_file():
        sys.exit(f"{PAGE} isn't here: run {REWRITE} in a checkout")
    part = f"{BEGIN}\n{table()}{END}\n"
    write_whole(PAGE, replaced(PAGE.read_text("utf-8"), part, BEGIN, END, PAGE).encode())
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
