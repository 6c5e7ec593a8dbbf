"""Builders of what ships: from the known sources alone, and as the shipped indexes say."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packing import tarred, zipped
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file
from timm.models.vision_transformer import VisionTransformer

from harness.datasets import get_dataset
from harness.datasets.base import DATA_DIR
from harness.datasets.packaged import CLOTHES, Fashion
from tools import build_data, build_tower, read_package, train_text
from tools.build_data import BUILDERS, write_or_check
from zoo.loading.clip import CompactText, tokenizer


def test_check_tells_equal_from_different_and_a_source_must_be_the_known_one(tmp_path: Path):
    for content, check, code in ((b"1", True, 1), (b"1", False, 0), (b"1", True, 0), (b"2", True, 1)):
        assert write_or_check({"a": content}, tmp_path, check=check) == code
    assert (tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError, match="'x' is not in"):
        read_package(tmp_path / "x", ("",))
    with pytest.raises(ValueError, match=r"'a' has sha256 6b86b273.*expected 0"):
        read_package(tmp_path / "a", ("",), "0")
    files = {"./in/a": b"1", "./in/b": b"2", "out": b"3"}
    (tmp_path / "x.tgz").write_bytes(tarred(files.items(), "w:gz"))
    (tmp_path / "x.whl").write_bytes(zipped(files.items()))
    assert read_package(tmp_path / "x.tgz", ("in/",)) == {"in/a": b"1", "in/b": b"2"}
    assert read_package(tmp_path / "x.whl", ("out",)) == {"out": b"3"}


def test_the_index_and_the_sources_give_what_ships(monkeypatch: pytest.MonkeyPatch):
    """Sources are stood in for by what ships, at the places that the index names."""
    members = [
        {f"{folder}{one.code}.{kind}": one.images[at] for one in get_dataset("emoji").emoji}
        for at, (folder, kind) in enumerate(zip(build_data.EMOJI_FOLDERS, ("png", "webp"), strict=True))
    ]
    monkeypatch.setattr(build_data, "read_package", lambda *_: members.pop(0))
    fashion, parts = get_dataset("fashion").released(), {}
    for name, split in build_data.FASHION["splits"].items():
        items, _ = parts.setdefault(split["part"], (np.zeros((60_000, 28, 28), np.uint8), None))
        items[split["source_index"]] = fashion.items[name]
    monkeypatch.setattr(build_data, "read_fashion", lambda _: parts)
    for name in ("emoji", "fashion"):
        assert write_or_check(BUILDERS[name].build(Path()), DATA_DIR, check=True) == 0


def test_squares_are_cut_as_the_index_says_and_it_gets_their_lengths():
    picture = Image.effect_noise((600, 500), 80)
    picture.save(file := io.BytesIO(), "PNG")
    row = {"member": "a.png", "crops": [[50, 0, 550, 500], [10, 20, 200, 210, 7]]}
    images = build_data.cut(row, file.getvalue(), "frames")
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(448, 448), (190, 190)]
    assert [crop[4] for crop in row["crops"]] == list(map(len, images))
    assert row["detail"] > 0


def test_the_shipped_tower_is_the_pinned_one_and_its_features_are_onnx_runtime_s():
    """Stored: onnxruntime on the source graph at 196 px, output of block 8, final norm (fp32)."""
    pinned = "848c0dacda94c9e7e69df655f2c4419bc5da5cbd56a5ad01287c9a3328465d53"
    assert hashlib.sha256(build_tower.TOWER.read_bytes()).hexdigest() == pinned
    with safe_open(build_tower.TOWER, "pt") as file:
        assert file.metadata() == build_tower.METADATA
    weights = load_file(build_tower.TOWER)
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    sizes = {"img_size": 196, "patch_size": 14, "embed_dim": 384, "depth": 9, "num_heads": 6}
    model = VisionTransformer(**sizes, init_values=1e-5, num_classes=0)
    model.load_state_dict(weights, strict=True)
    y = torch.linspace(-2, 2, 196)
    planes = [y[:, None] * y / 2, (3 * y).sin()[:, None].expand(196, 196), (5 * y).cos()]
    images = torch.stack([plane.expand(196, 196) for plane in planes])[None]
    with torch.no_grad():
        tokens = model.eval().forward_features(images)
    cls = torch.tensor([-1.2472, 1.6308, -1.0836, 0.8185, -1.3305, 0.2376])
    patch = torch.tensor([0.1678, 22.4255, -2.8283, -1.4895, -0.6611, -4.6071])
    torch.testing.assert_close(tokens[0, 0, :6], cls, atol=0.01, rtol=0)
    torch.testing.assert_close(tokens[0, 101, :6], patch, atol=0.01, rtol=0)


def test_another_order_gives_the_same_bytes_and_another_encoder_is_refused(tmp_path: Path, monkeypatch) -> None:
    tensors, metadata = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([0.1, -2.0])}, {"y": "1", "x": "é"}
    content = build_tower.serialise(tensors, metadata)
    assert build_tower.serialise(dict(reversed(tensors.items())), dict(reversed(metadata.items()))) == content
    for name, value in load(content).items():
        np.testing.assert_array_equal(value.numpy(), tensors[name].astype(np.float16))
    monkeypatch.setattr(build_data.PIL, "__version__", "0.1")
    with pytest.raises(ValueError, match=r"Pillow 0\.1 "):
        build_data.build_photos(tmp_path)


TEXTS = ["a cat", "a photo of a cat", "a dog", "a photo of a dog", "an animal", "a tree"]
CAPTIONS = [[0, 1, 4], [2, 3, 4], [5]]  # of cats, dogs and trees
GEOMETRY = {"context_length": 12, "width": 24, "heads": 2, "layers": 2, "output_dim": 10}


def test_fashion_takes_no_item_of_val_or_test(monkeypatch, tmp_path):
    """With a source made of shipped items, only what ships as training is left to draw."""
    fashion = Fashion()
    parts = [fashion.items[name] for name in ("train", "val", "test")]
    labels = [fashion.labels(name).astype(np.uint8) for name in ("train", "val", "test")]
    source = {"train": (np.concatenate(parts), np.concatenate(labels))}
    monkeypatch.setattr(train_text, "read_fashion", lambda _: source)
    taken = []
    monkeypatch.setattr(train_text, "sample_item", lambda items, _, i, rng: (taken.append(items[i].tobytes()),) * 2)
    source = train_text.fashion_source(tmp_path)
    for index in range(300):
        source.draw(index)
        assert any(name in source.captions(index)[0] for name in CLOTHES)
    assert len(set(taken)) > 200
    assert not {item.tobytes() for part in parts[1:] for item in part} & set(taken)


def test_images_come_to_their_own_captions():
    generator = torch.Generator().manual_seed(5)
    kinds = torch.arange(30) % 3
    images = 2 * torch.eye(3, 12)[kinds] + 0.2 * torch.randn(30, 12, generator=generator)
    captions, tokens = [CAPTIONS[int(kind)] for kind in kinds], tokenizer(12)(TEXTS)
    model = train_text.LitModel(12, CompactText(tokens.unique().tolist(), **GEOMETRY), 10)
    train_text.train_lit(model, images, captions, tokens, torch.ones(30), steps=40, batch=24, peak=3e-3, warmup=3)
    with torch.no_grad():
        nearest = (F.normalize(model.project(images)) @ F.normalize(model.text(tokens)).T).argmax(dim=1)
    assert all(int(text) in own for text, own in zip(nearest, captions, strict=True))


@pytest.mark.network
@pytest.mark.parametrize("name", BUILDERS)
def test_rebuild_from_the_registries_gives_the_shipped_bytes(name: str, tmp_path: Path) -> None:
    builder = BUILDERS[name]
    assert write_or_check(builder.build(builder.fetch(tmp_path)), builder.output, check=True) == 0
