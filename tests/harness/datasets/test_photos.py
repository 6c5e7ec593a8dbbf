"""The photographs: what the index, NOTICE and the pack say together, splits by group, the build."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import get_dataset
from harness.datasets.base import Split
from harness.datasets.photos import SMALLEST, Photos
from tools import build_photos
from tools.build_photos import BY_2, BY_4, CC0, LEAST, OVERLAP, PHOTOS, PUBLIC, SIDE, boxes

ROOT = Path(__file__).parents[3]
NAMES = tuple(build_photos.SHARES)


@pytest.fixture
def photos() -> Photos:
    dataset = get_dataset("photos")
    assert isinstance(dataset, Photos)
    return dataset


def split_of(photos: Photos, name: str) -> Split:
    return photos.released().split(name)


def test_index_notice_and_pack_say_the_same(photos: Photos):
    notice = (ROOT / "NOTICE").read_text()
    assert len(photos.photos) >= 60
    for row, photo in zip(photos.photos, PHOTOS, strict=True):
        assert {name: row[name] for name in ("name", "package", "member", "author", "licence", "group")} == vars(photo)
        assert f"  {photo.name} | {photo.author} | {photo.licence}\n" in notice
        assert photo.package in notice
        assert photo.licence in (CC0, BY_4, BY_2, PUBLIC)
        for left, top, right, bottom, _ in row["crops"]:
            assert 0 <= left < right <= row["size"][0]
            assert 0 <= top < bottom <= row["size"][1]
            assert right - left == bottom - top
    file = io.BytesIO(photos.path("photos.pack").read_bytes())
    for row in photos.photos:
        for left, _, right, _, size in row["crops"]:
            with Image.open(io.BytesIO(file.read(size))) as image:
                assert image.size == (min(SIDE, right - left),) * 2
    assert not file.read()


def test_splits_share_no_photograph_and_no_series(photos: Photos):
    groups = {name: {photos.group_of(i) for i in split_of(photos, name).image_ids} for name in NAMES}
    assert Counter(group for some in groups.values() for group in some).most_common(1)[0][1] == 1
    assert {row["group"]: row["split"] for row in photos.photos} == build_photos.split_of(PHOTOS)
    assert Counter(row["split"] for row in photos.photos) == build_photos.SHARES
    for name, least in zip(NAMES, (100, 40, 100, 60), strict=True):
        split = split_of(photos, name)
        assert len(split) >= least
        assert (split.labels == -1).all()
    assert len(groups["test"]) == build_photos.SHARES["test"]  # a scene each


def test_other_variants_are_parts_of_the_crop_and_half_are_mirrored(photos: Photos):
    split = photos.split("val")
    for index in range(0, len(split), 24):
        whole, seen = np.asarray(split[index].image), set()
        for variant in range(1, 9):
            part = np.asarray(split.variant(variant)[index].image)
            side = len(part)
            assert len(whole) * SMALLEST // 100 <= side <= len(whole)
            windows = np.lib.stride_tricks.sliding_window_view(whole, (side, side, 3))[:, :, 0]
            mirrored = [(windows == image).all(axis=(2, 3, 4)).any() for image in (part, part[:, ::-1])]
            assert sum(mirrored) == 1
            seen.add(mirrored[0])
            assert np.array_equal(part, split.variant(variant)[index].image)
        assert seen == {False, True}


@pytest.mark.parametrize(("size", "most"), [((900, 600), 7), ((250, 230), 1), ((100, 90), 1)])
def test_regions_hardly_overlap_and_an_empty_half_has_none(size: tuple[int, int], most: int):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    noise[:, : size[0] // 2] = 128
    chosen = boxes(Image.fromarray(noise), 3)
    assert 1 <= len(chosen) <= most
    assert chosen == boxes(Image.fromarray(noise), 3)
    short = min(size)
    assert chosen[0] == ((size[0] - short) // 2, 0, (size[0] + short) // 2, short)
    covers = []
    for left, top, right, bottom in chosen[1:]:
        assert right - left >= LEAST
        cover = np.zeros((size[1], size[0]), dtype=bool)
        cover[top:bottom, left:right] = True
        assert cover[:, size[0] // 2 :].any()
        assert all((cover & other).sum() <= OVERLAP * min(cover.sum(), other.sum()) for other in covers)
        covers.append(cover)


def test_build_refuses_another_source_and_another_encoder(tmp_path: Path, monkeypatch):
    for kind, command in build_photos.FETCH.items():
        archive = next(name for name in build_photos.SHA256 if name.endswith(kind))
        with pytest.raises(FileNotFoundError, match=command.partition(" ")[0]):
            build_photos.read_members(tmp_path, archive, [], tmp_path)
        (tmp_path / archive).write_bytes(b"else")
        with pytest.raises(ValueError, match="has sha256"):
            build_photos.read_members(tmp_path, archive, [], tmp_path)
    index = json.loads(Photos.path("photos-index.json").read_text())
    assert index["sha256"] == build_photos.SHA256
    monkeypatch.setattr(build_photos.PIL, "__version__", "0.1")
    with pytest.raises(ValueError, match=r"Pillow 0\.1 encodes other bytes .* `pip install pillow==" + index["pillow"]):
        build_photos.build_from(tmp_path, tmp_path)
