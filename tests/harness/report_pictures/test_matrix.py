"""The agreement matrix as a picture: its numbers, bytes that don't change, colours that do."""

import io
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from harness.plots.style import INK
from harness.report_pictures import matrix, table
from harness.report_pictures.matrix import DARK, LIGHT


def shown(tau: float) -> str:
    return f"{tau:.2f}".replace("-0.00", "0.00")


def test_every_number_is_in_the_drawing_and_what_counts_in_its_words(run):
    [picture] = matrix(run.run)
    texts = [e.text for e in ElementTree.fromstring(picture.svg).iter() if e.tag.endswith("text")]
    for pair in table(run.run):
        told = [shown(pair[name]) for name in ("tau", "tau_low", "tau_high")]
        assert told[0] in texts
        assert f"{told[1]} to {told[2]}" in texts
        if pair["a"] == "golden ranking":
            assert f"golden ranking and {pair['b']} {told[0]}" in picture.alt
    others = [pair for pair in table(run.run)[:6] if pair["a"] != "golden ranking"]
    most = max(others, key=lambda pair: pair["tau"])
    assert (
        f"{most['a']} and {most['b']} agree most of the others, {shown(most['tau'])}" in picture.alt
    )
    assert "12 traced images" in picture.about
    assert "golden ranking comes first" in picture.about
    assert picture.title == "Agreement of rankings: toy test, by text, clip_vit_b16.openai"
    assert re.fullmatch(r"agreement_toy_test_clip_vit_b16_openai_[0-9a-f]{6}", picture.name)


def test_the_same_traces_give_the_same_bytes(run):
    [first], [again] = matrix(run.run), matrix(run.run)
    assert first == again


def test_without_a_golden_ranking_it_says_so(written):
    made = written()
    made.row("evit", 0.5)
    made.row("tome", 0.5)
    [picture] = matrix(made.run)
    assert "There is no golden ranking" in picture.about


def test_one_ranking_makes_no_matrix(written):
    made = written()
    made.row("dense", 1.0)
    made.row("evit", 0.5)
    assert matrix(made.run) == []


def test_a_page_can_change_the_ink_but_not_what_stands_on_cells(run):
    [picture] = matrix(run.run)
    assert INK.encode() in picture.svg
    assert DARK != INK
    assert DARK.encode() in picture.svg
    assert LIGHT != INK


def test_the_bitmap_is_on_white_and_small(run):
    [picture] = matrix(run.run)
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    assert len(picture.png) < 400_000
    assert len(picture.svg) < 400_000


def test_agreement_shows_on_a_scale_with_unrelated_in_its_middle(run):
    """The reverse of the golden ranking lies on the other side of the colours than itself."""
    golden = run.golden()
    same, back = run.row("evit", 0.5), run.row("patchrank", 0.5)
    same.importance[:] = golden.importance
    back.importance[:] = 35 - golden.importance
    run.put(same)
    run.put(back)
    [picture] = matrix(run.run)
    pixels = (
        np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).reshape(-1, 3).astype(int)
    )
    brown, violet = np.array([127, 59, 8]), np.array([45, 0, 75])
    for colour in (brown, violet):
        assert (np.abs(pixels - colour).max(axis=1) < 4).sum() > 1000
