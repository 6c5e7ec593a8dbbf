"""Pictures of traces: agreement of rankings as numbers and as a matrix, and galleries."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from harness.base.store import seal
from harness.records.agreement import kendall_tau, over_images
from harness.records.traces import RANKING, Facts, RowTraces, Thumbnails, read_traces, thumbnails_path
from harness.report.pictures import (
    LIMIT,
    TracedGroup,
    agreement_rows,
    choices,
    disagreement,
    fewer_colours,
    galleries,
    label,
    lighter,
    matrices,
    taus,
    traced_groups,
)
from harness.report.show import DIM, LEFT

IMAGES, SIDE = 12, 6


class Written:
    """Writes rows of a run as `compare` would."""

    def __init__(self, run: Path, facts: Facts) -> None:
        self.run, self.facts = run, facts
        self.ids = tuple(f"toy/test-{i}" for i in range(IMAGES))

    def row(self, method: str, keep: float, *, seed: int = 0, **changes: Any) -> RowTraces:
        """Draw a ranking and keep the first of each image; dense keeps all and ranks nothing."""
        drawn = np.random.default_rng((seed, len(method), round(100 * keep)))
        cells = SIDE**2
        importance = np.argsort(drawn.random((IMAGES, cells)), axis=1).astype(np.int16)
        left = np.where(importance >= cells - round(keep * cells), -1, 3).astype(np.int16)
        if method == "dense":
            importance[:] = -1
        token = np.where(left == -1, np.arange(cells), -1).astype(np.int16)
        name = "clip_vit_b16" + ("" if method == "dense" else f"_{method}{round(100 * keep)}")
        own = {"model": name, "method": method, "keep": keep, "method_config": {"keep": keep}}
        row = RowTraces(
            facts=replace(self.facts, **(own | changes)),
            grid=(SIDE, SIDE),
            image_ids=self.ids,
            labels=tuple("cat" if i % 2 else "dog" for i in range(IMAGES)),
            predicted=("cat",) * IMAGES,
            importance=importance,
            left=left,
            token=token,
        )
        return self.put(row)

    def golden(self, **changes: Any) -> RowTraces:
        """Write a golden ranking."""
        own = {"model": "clip_vit_b16", "method_config": {"score": "preservation"}}
        row = self.row(RANKING, 1.0, **(own | changes))
        return self.put(replace(row, predicted=(None,) * IMAGES))

    @property
    def groups(self) -> list[TracedGroup]:
        """What was written, as a report reads it."""
        return traced_groups([self.run])

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """How its rankings agree."""
        return agreement_rows(self.groups)

    def put(self, row: RowTraces) -> RowTraces:
        path = self.run / "traces" / row.facts.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.encode())
        return row

    def thumbnails(self, grain: int = 8, side: int = 48) -> None:
        """Write small copies of the images, the finer the grain the larger."""
        jpegs = []
        for i in range(IMAGES):
            drawn = np.random.default_rng(i).integers(0, 256, (side // grain, side // grain, 3))
            pixels = drawn.repeat(grain, axis=0).repeat(grain, axis=1).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
            jpegs.append(buffer.getvalue())
        path = thumbnails_path(self.run, self.facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image_id": list(self.ids), "jpeg": jpegs})
        path.write_bytes(seal(table, "thumbnails", {}))


@pytest.fixture
def written(tmp_path: Path, facts: Facts) -> Callable[..., Written]:
    """Return what writes into a folder."""
    return lambda name="run": Written(tmp_path / name, facts)


@pytest.fixture
def run(written: Callable[..., Written]) -> Written:
    """A run of two methods at two keep rates, random pruning and a golden ranking."""
    made = written()
    made.row("dense", 1.0)
    made.golden()
    for keep in (0.5, 0.25):
        for method in ("evit", "patchrank", "random"):
            made.row(method, keep)
    made.thumbnails()
    return made


def test_a_pair_has_the_mean_over_images_with_its_interval(run):
    rows = {row.facts.model: row for row in read_traces(run.run) if not row.golden}
    names = ("clip_vit_b16_evit50", "clip_vit_b16_patchrank50")
    [pair] = [pair for pair in run.pairs if (pair["a_model"], pair["b_model"]) == names]
    mean = over_images(kendall_tau(*(rows[name].importance for name in names)))
    assert (pair["tau"], pair["tau_low"], pair["tau_high"]) == (mean.mean, mean.low, mean.high)
    facts = tuple(pair[name] for name in ("a", "b", "dataset", "images"))
    assert facts == ("evit", "patchrank", "toy", 12)


def test_every_pair_of_a_keep_rate_is_there_golden_first(run):
    pairs = [(p["a"], p["b"], p["b_model"][-2:]) for p in run.pairs]
    wanted = [("golden ranking", m) for m in ("evit", "patchrank", "random")]
    wanted += [("evit", "patchrank"), ("evit", "random"), ("patchrank", "random")]
    assert pairs == [(*pair, keep) for keep in ("50", "25") for pair in wanted]
    json.dumps(run.pairs, allow_nan=False)


def test_a_ranking_agrees_with_itself_and_opposes_its_reverse(run):
    [row] = [row for row in read_traces(run.run) if row.facts.model == "clip_vit_b16_evit50"]
    back = replace(row, importance=(row.importance.max() - row.importance).astype(np.int16))
    assert taus(row, row).tolist() == pytest.approx([1.0] * 12)
    assert taus(row, back).tolist() == pytest.approx([-1.0] * 12)


def test_images_without_a_ranking_or_with_ties_throughout_do_not_count(run):
    golden, flat = run.golden(), run.row("evit", 0.5)
    golden.importance[:5] = -1
    flat.importance[:3] = 7
    run.put(golden)
    run.put(flat)
    counts = {(p["a"], p["b"]): (p["images"], p["undefined"]) for p in run.pairs[:6]}
    assert counts["golden ranking", "random"] == (7, 0)
    assert counts["patchrank", "random"] == (12, 0)
    assert counts["evit", "patchrank"] == (9, 3)


def test_one_image_has_no_mean(written):
    made = written()
    for method in ("evit", "patchrank"):
        made.put(made.row(method, 0.5).take(made.ids[:1]))
    [found] = made.pairs
    assert (found["tau"], found["tau_low"], found["images"]) == (None, None, 1)
    assert "none is defined" in matrices(made.groups)[0].alt


def test_a_row_of_the_oracle_stands_not_beside_the_ranking_itself(run):
    run.row("golden", 0.5, method_config={"score": "preservation", "keep": 0.5})
    assert "golden" not in {pair["b"] for pair in run.pairs}


def test_images_that_a_row_lacks_are_left_out_of_all(run):
    run.put(run.row("evit", 0.5).take(run.ids[2:9]))
    assert {pair["images"] for pair in run.pairs} == {7}


@pytest.mark.parametrize(
    ("name", "value"), [("weights_sha256", "cd" * 32), ("dataset_revision", "other"), ("version", "0.2.0")]
)
def test_rows_of_other_conditions_never_stand_side_by_side(name: str, value: str, run):
    other = run.row("evit", 0.5, **{name: value})
    run.row("patchrank", 0.5, **{name: value})
    groups = run.groups
    assert len(groups) == 2
    assert all(len({getattr(row.facts, name) for row in group.rows}) == 1 for group in groups)
    assert len({group.title for group in groups}) == len({group.slug for group in groups}) == 2
    assert f"({name} {value})" in groups[1].title + groups[0].title
    with pytest.raises(ValueError, match=f"traces of different {name} cannot stand side by side"):
        TracedGroup.of([other, run.row("random", 0.5)], Thumbnails(jpeg={}))


def test_other_patch_grids_and_other_images_are_refused(run):
    row = run.row("evit", 0.5)
    with pytest.raises(ValueError, match="different grid"):
        TracedGroup.of([row, replace(run.row("random", 0.5), grid=(4, 9))], Thumbnails(jpeg={}))
    with pytest.raises(ValueError, match="are of different images"):
        taus(row, row.take(run.ids[:3]))


def test_several_runs_stand_in_one_matrix_the_last_of_a_row_counting(written):
    one, other = written("one"), written("other")
    one.row("evit", 0.5)
    one.row("patchrank", 0.5)
    last = other.row("patchrank", 0.5, seed=9)
    other.row("tome", 0.5)
    [group] = traced_groups([one.run, other.run])
    assert [row.facts.method for row in group.rows] == ["evit", "patchrank", "tome"]
    assert np.array_equal(group.rows[1].importance, last.importance)


def test_a_run_is_its_folder_or_its_file_and_one_without_traces_adds_nothing(run, tmp_path: Path):
    file = run.run / "records.jsonl"
    file.write_text("")
    assert agreement_rows(traced_groups([file, run.run, tmp_path])) == run.pairs
    assert len(traced_groups([run.run, file, run.run])) == 1
    assert traced_groups([tmp_path]) == []


def test_methods_with_keep_rates_of_their_own_stand_by_their_order(written):
    made = written()
    for method, keeps in (("evit", (0.61, 0.31)), ("tome", (0.55, 0.28))):
        for keep in keeps:
            made.row(method, keep)
    [group] = made.groups
    labels = [[label(row, level) for row in level] for level in group.levels]
    assert labels == [["evit 61 %", "tome 55 %"], ["evit 31 %", "tome 28 %"]]
    assert "Kendall τ-b with 55 to 61 % of the patch tokens kept" in matrices(made.groups)[0].alt


def test_rows_of_one_method_and_keep_are_told_apart_by_their_settings(run):
    run.row("evit", 0.5, method_config={"keep": 0.5, "fuse": True})
    names = {pair["a"] for pair in run.pairs} - {"golden ranking", "patchrank", "evit"}
    assert len(names) == 2
    assert all(name.startswith("evit ") for name in names)


def rounded(tau: float) -> str:
    return f"{tau:.2f}".replace("-0.00", "0.00")


def test_every_number_is_in_the_drawing_and_what_counts_in_its_words(run):
    [picture] = matrices(run.groups)
    words = texts(picture.svg)
    for pair in run.pairs:
        tau, low, high = (rounded(pair[name]) for name in ("tau", "tau_low", "tau_high"))
        assert {tau, f"{low} to {high}"} <= set(words)
        if pair["a"] == "golden ranking":
            assert f"golden ranking and {pair['b']} {tau}" in picture.alt
    others = [pair for pair in run.pairs[:6] if pair["a"] != "golden ranking"]
    most = max(others, key=lambda pair: pair["tau"])
    best = f"{most['a']} and {most['b']} agree most of the others, {rounded(most['tau'])}"
    assert best in picture.alt
    assert "12 traced images" in picture.about
    assert "golden ranking comes first" in picture.about
    assert picture.title == "Agreement of rankings: toy test, by text, clip_vit_b16.openai"
    assert re.fullmatch(r"agreement_toy_test_clip_vit_b16_openai_[0-9a-f]{6}", picture.name)


def test_the_same_traces_give_the_same_bytes(run):
    assert matrices(run.groups) == matrices(run.groups)
    assert galleries(run.groups) == galleries(run.groups)


def test_one_ranking_makes_no_matrix(written):
    made = written()
    made.row("dense", 1.0)
    made.row("evit", 0.5)
    assert matrices(made.groups) == []


def test_agreement_shows_on_a_scale_with_unrelated_in_its_middle(run):
    """The reverse of the golden ranking lies on the other side of the colours than itself."""
    golden = run.golden()
    same, back = run.row("evit", 0.5), run.row("patchrank", 0.5)
    same.importance[:] = golden.importance
    back.importance[:] = 35 - golden.importance
    run.put(same)
    run.put(back)
    [picture] = matrices(run.groups)
    image = Image.open(io.BytesIO(picture.png)).convert("RGB")
    pixels = np.asarray(image, dtype=int).reshape(-1, 3)
    brown, violet = np.array([127, 59, 8]), np.array([45, 0, 75])
    for colour in (brown, violet):
        assert (np.abs(pixels - colour).max(axis=1) < 4).sum() > 1000


def texts(svg: bytes) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def bitmaps(svg: bytes) -> list[Image.Image]:
    """Return the bitmaps in an SVG, which matplotlib stores upside down."""
    found = re.findall(rb"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", svg)
    return [ImageOps.flip(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def panels(svg: bytes) -> list[Image.Image]:
    """Return the bitmaps that are panels and no colour bar, column by column."""
    return [image for image in bitmaps(svg) if image.width == image.height]


def test_there_is_one_of_the_first_images_and_one_of_those_rankings_disagree_on(run):
    first, other = galleries(run.groups)
    assert first.name.startswith("gallery_first_toy_test")
    assert other.name.startswith("gallery_disagreeing_toy_test")
    assert "the first 6 of the 12 traced ones" in first.about
    assert "over all pairs of golden ranking, evit, patchrank is least" in other.about
    assert "6 images (dog, cat, dog, cat, dog, cat)" in first.alt
    assert "right answers of 6: dense 3, patchrank 3, evit 3, random 3" in first.alt


def test_those_disagreed_on_are_the_least_by_a_slow_mean(run):
    [group] = run.groups
    names = ("clip_vit_b16_evit25", "clip_vit_b16_patchrank25")
    rows = [row for row in group.rows if row.golden or row.facts.model in names]
    values = {}
    for i, name in enumerate(group.image_ids):
        pairs = combinations([row.importance[i : i + 1] for row in rows], 2)
        values[name] = np.mean([kendall_tau(a, b)[0] for a, b in pairs])
    chosen = choices(group)[1]
    assert list(chosen.image_ids) == sorted(values, key=values.__getitem__)[:6]
    assert len(disagreement(group)[0]) == 3
    run.row("golden", 0.25)  # prunes by the ranking that is there itself
    assert len(disagreement(run.groups[0])[0]) == 3


def test_panels_are_an_image_a_golden_ranking_and_a_method_each(run):
    first, _ = galleries(run.groups)
    found = texts(first.svg)
    for words in ("image", "evit", "patchrank", "random", "9 tokens", "ranking"):
        assert words in found
    assert found.count("9 tokens") == 3
    assert found.count("✓ cat") == found.count("✗ cat") == 3 * 4  # dense and three methods
    assert [image for image in run.ids if image in found] == list(run.ids[:6])
    assert len(panels(first.svg)) == 6 * 5


def test_dropped_patches_are_dimmed_and_kept_ones_as_they_are(run):
    first, _ = galleries(run.groups)
    [group] = run.groups
    [row] = [row for row in group.rows if row.facts.model == "clip_vit_b16_evit25"]
    columns = panels(first.svg)[::6]
    original, shown = (np.asarray(columns[at].convert("RGB"), dtype=float) for at in (0, 3))
    side = original.shape[0] // 6
    for patch, kept in enumerate(row.kept[0]):
        y, x = (side * place for place in divmod(patch, 6))
        inner = (slice(y + 3, y + side - 3), slice(x + 3, x + side - 3))
        if kept:
            assert np.abs(shown[inner] - original[inner]).mean() < 12
        else:
            dim = (1 - LEFT) * 255 * np.array(DIM) + LEFT * original[inner].mean(axis=(0, 1))
            assert np.abs(shown[inner].mean(axis=(0, 1)) - dim).max() < 8  # but for JPEG
            assert shown[inner].std(axis=(0, 1)).max() < 12  # no pattern


def test_merging_is_said_and_shown_by_one_colour(run):
    row = run.row("tome", 0.25)
    token = np.tile(np.arange(36), (12, 1)).astype(np.int16)
    token[:, :27] = 27
    left = np.where(token == np.arange(36), -1, 2).astype(np.int16)
    run.put(replace(row, token=token, left=left))
    first, _ = galleries(run.groups)
    assert "Where a method merges (tome), patches that share a token" in first.about
    assert "nothing is dropped" in first.about
    shown = np.asarray(panels(first.svg)[5 * 6].convert("RGB"), dtype=float)
    side = shown.shape[0] // 6
    merged = shown[3 : 4 * side - 3, 3 : 3 * side - 3]
    assert merged.std(axis=(0, 1)).max() < 4


def test_few_images_or_one_ranking_make_the_first_gallery_alone(written):
    made = written()
    made.row("evit", 0.5)
    assert galleries(made.groups) == []  # without small copies
    made.thumbnails()
    [only] = galleries(made.groups)
    assert only.name.startswith("gallery_first")
    assert "golden" not in only.about


def test_pictures_of_photos_stay_below_the_limit(written):
    made = written()
    made.golden()
    for method in ("clsattn", "evit", "golden", "patchrank", "random", "tome"):
        made.row(method, 0.9)
    made.thumbnails(grain=1, side=222)  # noise, which is harder to store than any photo
    for picture in galleries(made.groups):
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
    rows = [row for row in run.groups[0].rows if row.facts.method in (wanted, "dense")]
    records = [SimpleNamespace(**vars(row.facts)) for row in rows]
    first = galleries(traced_groups([run.run], records))[0]
    assert wanted in texts(first.svg)
    assert {"evit", "patchrank", "random"} & set(texts(first.svg)) == {wanted}


def path_of(run, method: str) -> Path:
    [row] = [r for r in read_traces(run.run) if (r.facts.method, r.facts.keep) == (method, 0.25)]
    return run.run / "traces" / row.facts.name


@pytest.mark.parametrize("content", [b"PAR1 torn", b"", b"PAR1 not of ours PAR1"])
def test_a_torn_row_is_named_and_the_others_are_drawn(content: bytes, run):
    path = path_of(run, "evit")
    path.write_bytes(content)
    reasons: list[str] = []
    traced = traced_groups([run.run], None, reasons.append)
    [reason] = reasons
    assert f"{str(path)!r} is broken" in reason
    assert [row.facts.method for row in traced[0].levels[-1]] == ["patchrank", "random"]
    assert (len(matrices(traced)), len(galleries(traced))) == (1, 2)
    with pytest.raises(ValueError, match="is broken"):
        traced_groups([run.run])


def test_files_of_others_are_named_and_without_thumbnails_there_is_a_matrix_alone(run):
    foreign, renamed = path_of(run, "evit"), path_of(run, "patchrank")
    [small] = (run.run / "thumbnails").glob("*.parquet")
    renamed.write_bytes(foreign.read_bytes())
    foreign.write_bytes(small.read_bytes())
    small.write_bytes(small.read_bytes()[:-5])
    reasons: list[str] = []
    [group] = traced_groups([run.run], None, reasons.append)
    assert len(reasons) == 3
    for words in ("a Parquet file, but not of traces", "traces of another row", str(small)):
        assert any(words in reason for reason in reasons)
    assert [row.facts.method for row in group.levels[-1]] == ["random"]
    assert (len(matrices([group])), galleries([group])) == (1, [])


def test_groups_come_in_the_order_of_the_records(written):
    made = written()
    rows = [
        made.row(method, 0.5, dataset=dataset) for dataset in ("aardvark", "zebra") for method in ("evit", "patchrank")
    ]
    for order in (rows, rows[::-1]):
        records = [SimpleNamespace(**vars(row.facts)) for row in order]
        datasets = list(dict.fromkeys(record.dataset for record in records))
        assert [group.facts.dataset for group in traced_groups([made.run], records)] == datasets
    assert [group.facts.dataset for group in made.groups] == ["aardvark", "zebra"]


def test_facts_without_traces_make_no_group(run):
    [row] = [r for r in read_traces(run.run) if r.facts.method == "dense"]
    other = SimpleNamespace(**vars(replace(row.facts, dataset="other")))
    assert Facts.of(other).dataset == "other"
    assert traced_groups([run.run], [other]) == []
