"""Builders of what ships: from the known sources alone, and by the rules that their first lines say."""

import hashlib
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from packing import tarred, zipped
from safetensors import safe_open
from safetensors.torch import load, load_file
from timm.models.vision_transformer import VisionTransformer

from harness.datasets import get_dataset
from harness.datasets.base import FINAL, SPLITS
from tools import (
    DATA_DIR,
    build_emoji,
    build_fashion,
    build_photos,
    build_tower,
    read_known,
    read_members,
    write_or_check,
)
from tools.build_photos import LEAST, OVERLAP

TOWER_SHA256 = "848c0dacda94c9e7e69df655f2c4419bc5da5cbd56a5ad01287c9a3328465d53"


def test_check_tells_equal_from_different_and_a_source_must_be_the_known_one(tmp_path: Path):
    for content, check, code in ((b"1", True, 1), (b"1", False, 0), (b"1", True, 0), (b"2", True, 1)):
        assert write_or_check({"a": content}, tmp_path, check=check) == code
    assert (tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError, match=r"'x'.*`get x`"):
        read_known(tmp_path / "x", "0", "get x")
    with pytest.raises(ValueError, match=r"'a' has sha256 6b86b273.*expected 0"):
        read_known(tmp_path / "a", "0", "get x")
    files = {"./in/a": b"1", "./in/b": b"2", "out": b"3"}
    assert read_members(Path("x.tgz"), tarred(files.items(), "w:gz"), ("in/",)) == {"in/a": b"1", "in/b": b"2"}
    assert read_members(Path("x.whl"), zipped(files.items()), ("out",)) == {"out": b"3"}


def test_emoji_are_shared_out_by_their_groups():
    emoji = get_dataset("emoji").emoji
    groups = [build_emoji.group_of(one.name, one.subcategory) for one in emoji]
    first: dict[str, int] = defaultdict(lambda: len(SPLITS))  # that a group has a member in
    for one, own in zip(emoji, groups, strict=True):
        assert one.group == build_emoji.TWINS.get(one.name, build_emoji.TWINS.get(own, own))
        if one.split != FINAL:
            first[one.group] = min(first[one.group], SPLITS.index(build_emoji.split_of(own)))
    for one, own in zip(emoji, groups, strict=True):
        split = build_emoji.split_of(own)
        if one.split == FINAL:
            assert one.group not in first
        else:
            assert one.split == (split if split == SPLITS[first[one.group]] else None)


def test_photographs_are_shared_out_by_their_series():
    shared: dict[str, str] = {}
    for dataset in (get_dataset("photos").released(), get_dataset("frames").released()):
        rows, shares = dataset.photos, build_photos.SHARES[dataset.name]
        splits = [(name, dataset.split(name).image_ids) for name in (*SPLITS, FINAL)]
        found = {(dataset.group_of(image_id), name) for name, image_ids in splits for image_id in image_ids}
        shared = build_photos.split_of(rows, shares, shared)
        assert found == shared.items()
        assert Counter(row["split"] for row in rows) == shares


def test_crops_after_the_first_are_large_and_hardly_overlap():
    for row in get_dataset("photos").photos:
        squares = [box[:4] for box in row["crops"][1:]]
        assert all(right - left >= LEAST for left, _, right, _ in squares)
        for one, other in combinations(squares, 2):
            width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
            smaller = min(right - left for left, _, right, _ in (one, other)) ** 2
            assert max(width, 0) * max(height, 0) <= OVERLAP * smaller


def test_the_shipped_tower_is_the_pinned_one_and_its_features_are_onnx_runtime_s():
    """Stored: onnxruntime on the source graph at 196 px, output of block 8, final norm (fp32)."""
    assert hashlib.sha256(build_tower.TOWER.read_bytes()).hexdigest() == TOWER_SHA256
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
    monkeypatch.setattr(build_photos.PIL, "__version__", "0.1")
    with pytest.raises(ValueError, match=r"Pillow 0\.1 "):
        build_photos.build(tmp_path)


@pytest.mark.network
@pytest.mark.parametrize("builder", [build_emoji, build_fashion, build_photos, build_tower])
def test_rebuild_from_the_registries_gives_the_shipped_bytes(builder, tmp_path: Path) -> None:
    folder = build_tower.TOWER.parent if builder is build_tower else DATA_DIR
    assert write_or_check(builder.build(builder.fetch(tmp_path)), folder, check=True) == 0
