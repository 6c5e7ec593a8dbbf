"""Galleries show what was kept of which images, why these, and what was answered."""

import base64
import io
import re
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageOps

from harness.agreement import kendall_tau
from harness.report_pictures import galleries
from harness.report_pictures.gallery import LIMIT, choices, disagreement, fewer_colours, lighter
from harness.report_pictures.groups import groups


def texts(svg: bytes) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def bitmaps(svg: bytes) -> list[Image.Image]:
    """Return the bitmaps in an SVG, which matplotlib stores upside down."""
    found = re.findall(rb"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", svg)
    return [ImageOps.flip(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_there_is_one_of_the_first_images_and_one_of_those_rankings_disagree_on(run):
    first, other = galleries(run.run)
    assert first.name.startswith("gallery_first_toy_test")
    assert other.name.startswith("gallery_disagreeing_toy_test")
    assert "the first 6 of the 12 traced ones" in first.about
    assert "over all pairs of golden ranking, evit, patchrank is least" in other.about
    assert "6 images (dog, cat, dog, cat, dog, cat)" in first.alt
    assert "right answers of 6: dense 3, evit 3, patchrank 3, random 3" in first.alt


def test_those_disagreed_on_are_the_least_by_a_slow_mean(run):
    [group] = groups([run.run])
    rows = [row for row in group.rows if row.golden or row.facts.model in (
        "clip_vit_b16_evit25", "clip_vit_b16_patchrank25",
    )]  # fmt: skip
    values = {}
    for i, name in enumerate(group.image_ids):
        found = [
            kendall_tau(a.importance[i : i + 1], b.importance[i : i + 1])[0]
            for a in rows
            for b in rows
            if a.facts.name < b.facts.name
        ]
        values[name] = sum(found) / len(found)
    chosen = choices(group)[1]
    assert list(chosen.image_ids) == sorted(values, key=values.__getitem__)[:6]
    assert len(disagreement(group)[0]) == 3
    run.row("golden", 0.25)  # prunes by the ranking that is there itself
    assert len(disagreement(groups([run.run])[0])[0]) == 3


def test_panels_are_an_image_a_golden_ranking_and_a_method_each(run):
    first, _ = galleries(run.run)
    found = texts(first.svg)
    for words in ("image", "evit", "patchrank", "random", "9 tokens", "ranking"):
        assert words in found
    assert found.count("9 tokens") == 3
    assert found.count("✓ cat") == found.count("✗ cat") == 3 * 4  # dense and three methods
    assert [image for image in run.ids if image in found] == list(run.ids[:6])
    panels = [image for image in bitmaps(first.svg) if image.width == image.height]
    assert len(panels) == 6 * 5


def test_dropped_patches_are_hatched_and_kept_ones_as_they_are(run):
    first, _ = galleries(run.run)
    [group] = groups([run.run])
    [row] = [row for row in group.rows if row.facts.model == "clip_vit_b16_evit25"]
    panels = [image for image in bitmaps(first.svg) if image.width == image.height]
    original, shown = (
        np.asarray(panel.convert("RGB"), dtype=float) for panel in (panels[0], panels[2 * 6])
    )
    side = original.shape[0] // 6
    for patch, kept in enumerate(row.kept[0]):
        y, x = (side * place for place in divmod(patch, 6))
        inner = (slice(y + 3, y + side - 3), slice(x + 3, x + side - 3))
        if kept:
            assert np.abs(shown[inner] - original[inner]).mean() < 12
        else:
            assert np.ptp(shown[inner], axis=2).mean() < 4  # grey, but for JPEG
            assert 90 < shown[inner].mean() < 150
            assert shown[inner].std() > 10


def test_merging_is_said_and_shown_by_one_colour(run):
    row = run.row("tome", 0.25)
    token = np.tile(np.arange(36), (12, 1)).astype(np.int16)
    token[:, :27] = 27
    run.put(
        replace(row, token=token, left=np.where(token == np.arange(36), -1, 2).astype(np.int16))
    )
    first, _ = galleries(run.run)
    assert "Where a method merges (tome), patches that share a token" in first.about
    assert "nothing is dropped" in first.about
    panels = [image for image in bitmaps(first.svg) if image.width == image.height]
    shown = np.asarray(panels[5 * 6].convert("RGB"), dtype=float)
    side = shown.shape[0] // 6
    merged = shown[3 : 4 * side - 3, 3 : 3 * side - 3]
    assert merged.std(axis=(0, 1)).max() < 4
    without = galleries(run.run)[0].about.replace("Where a method merges", "")
    assert without != first.about


def test_without_small_copies_there_is_no_gallery(written):
    made = written()
    made.row("evit", 0.5)
    assert galleries(made.run) == []


def test_few_images_or_one_ranking_make_the_first_gallery_alone(written):
    made = written()
    made.row("evit", 0.5)
    made.thumbnails()
    [only] = galleries(made.run)
    assert only.name.startswith("gallery_first")
    assert "golden" not in only.about


def test_the_same_traces_give_the_same_bytes(run):
    assert galleries(run.run) == galleries(run.run)


def test_pictures_of_photos_stay_below_the_limit(written):
    made = written()
    made.golden()
    for method in ("clsattn", "evit", "golden", "patchrank", "random", "tome"):
        made.row(method, 0.9)
    made.thumbnails(grain=1, side=222)  # noise, which is harder to store than any photo
    for picture in galleries(made.run):
        assert len(picture.svg) < LIMIT
        assert len(picture.png) < 2 * LIMIT
        assert len(bitmaps(picture.svg)) > 0


def test_coarser_bitmaps_keep_their_size():
    drawn = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "PNG")
    assert len(buffer.getvalue()) > LIMIT
    fewer = fewer_colours(buffer.getvalue())
    assert len(fewer) < len(buffer.getvalue()) / 2
    assert Image.open(io.BytesIO(fewer)).size == (900, 900)
    assert lighter(b"<svg/>") == b"<svg/>"


@pytest.mark.parametrize("wanted", ["evit", "patchrank"])
def test_only_rows_of_the_records_are_shown(wanted: str, run):
    rows = [row for row in groups([run.run])[0].rows if row.facts.method in (wanted, "dense")]
    records = [SimpleNamespace(**vars(row.facts)) for row in rows]
    first = galleries(run.run, records=records)[0]
    assert wanted in texts(first.svg)
    assert {"evit", "patchrank", "random"} & set(texts(first.svg)) == {wanted}
