"""Pictures of traces: agreement of rankings as numbers and as a matrix, and galleries."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from by_hand import replace
from PIL import Image

from harness.base.store import seal
from harness.records.statistics import kendall_tau, over_images
from harness.records.traces import RANKING, Facts, RowTraces, Thumbnails, read_traces, thumbnails_path
from harness.report import pictures
from harness.report.patches import PatchSheet
from harness.report.pictures import TracedGroup, agreement_rows, galleries, group_traces, label, matrices

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
        return group_traces([self.run])

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """How its rankings agree."""
        return agreement_rows(self.groups)

    def put(self, row: RowTraces) -> RowTraces:
        path = self.run / "traces" / row.facts.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.encode())
        return row

    def thumbnails(self) -> None:
        """Write small copies of the images."""
        jpegs = []
        for i in range(IMAGES):
            buffer = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(buffer, "JPEG")
            jpegs.append(buffer.getvalue())
        path = thumbnails_path(self.run, self.facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seal(pa.table({"image_id": list(self.ids), "jpeg": jpegs}), "thumbnails", {}))


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


def test_several_runs_stand_in_one_matrix_the_last_of_a_row_counting(written):
    one, other = written("one"), written("other")
    one.row("evit", 0.5)
    one.row("patchrank", 0.5)
    last = other.row("patchrank", 0.5, seed=9)
    other.row("tome", 0.5)
    [group] = group_traces([one.run, other.run])
    assert [row.facts.method for row in group.rows] == ["evit", "patchrank", "tome"]
    assert np.array_equal(group.rows[1].importance, last.importance)


def test_methods_with_keep_rates_of_their_own_stand_by_their_order(written):
    made = written()
    for method, keeps in (("evit", (0.61, 0.31)), ("tome", (0.55, 0.28))):
        for keep in keeps:
            made.row(method, keep)
    [group] = made.groups
    labels = [[label(row, level) for row in level] for level in group.levels]
    assert labels == [["evit 61 %", "tome 55 %"], ["evit 31 %", "tome 28 %"]]
    assert "Kendall τ-b with 55 to 61 % of the patch tokens kept" in matrices(made.groups)[0].alt


def texts(svg: bytes) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def path_of(run, method: str) -> Path:
    [row] = [r for r in read_traces(run.run) if (r.facts.method, r.facts.keep) == (method, 0.25)]
    return run.run / "traces" / row.facts.name


@pytest.mark.parametrize("content", [b"PAR1 torn", b"", b"PAR1 not of ours PAR1"])
def test_a_torn_row_is_named_and_the_others_are_drawn(content: bytes, run):
    path = path_of(run, "evit")
    path.write_bytes(content)
    reasons: list[str] = []
    traced = group_traces([run.run], None, reasons.append)
    [reason] = reasons
    assert f"{str(path)!r} is broken" in reason
    assert [row.facts.method for row in traced[0].levels[-1]] == ["patchrank", "random"]
    assert (len(matrices(traced)), len(galleries(traced))) == (1, 1)
    with pytest.raises(ValueError, match="is broken"):
        group_traces([run.run])


def test_files_of_others_are_named_and_without_thumbnails_there_is_a_matrix_alone(run):
    foreign, renamed = path_of(run, "evit"), path_of(run, "patchrank")
    [small] = (run.run / "thumbnails").glob("*.parquet")
    renamed.write_bytes(foreign.read_bytes())
    foreign.write_bytes(small.read_bytes())
    small.write_bytes(small.read_bytes()[:-5])
    reasons: list[str] = []
    [group] = group_traces([run.run], None, reasons.append)
    assert len(reasons) == 3
    for words in ("a Parquet file, but not of traces", "traces of another row", str(small)):
        assert any(words in reason for reason in reasons)
    assert [row.facts.method for row in group.levels[-1]] == ["random"]
    assert (len(matrices([group])), galleries([group])) == (1, [])


def test_every_pair_of_a_keep_rate_is_in_the_numbers_and_the_drawing_golden_first(run):
    pairs = [(p["a"], p["b"], p["b_model"][-2:]) for p in run.pairs]
    wanted = [("golden ranking", m) for m in ("evit", "patchrank", "random")]
    wanted += [("evit", "patchrank"), ("evit", "random"), ("patchrank", "random")]
    assert pairs == [(*pair, keep) for keep in ("50", "25") for pair in wanted]
    json.dumps(run.pairs, allow_nan=False)
    [picture] = matrices(run.groups)
    words = texts(picture.files["svg"])
    for pair in run.pairs:
        tau, low, high = (f"{pair[name]:.2f}".replace("-0.00", "0.00") for name in ("tau", "tau_low", "tau_high"))
        assert {tau, f"{low} to {high}"} <= set(words)
        assert pair["a"] != "golden ranking" or f"golden ranking and {pair['b']} {tau}" in picture.alt
    assert "12 traced images" in picture.about
    assert picture.title == "Agreement of rankings: toy test, by text, clip_vit_b16.openai"
    assert matrices(run.groups) == [picture]  # the same bytes


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[PatchSheet]:
    """Sheets that galleries draw, in order."""
    drawn: list[PatchSheet] = []
    monkeypatch.setattr(pictures, "draw", lambda sheet, form, scale: drawn.append(sheet) or b"drawn")
    return drawn


def test_galleries_are_of_the_first_images(run, sheets):
    [first] = galleries(run.groups)
    assert first.name.startswith("gallery_toy_test")
    assert "right answers of 6: dense 3, patchrank 3, evit 3, random 3" in first.alt
    [group] = run.groups
    sheet = sheets[0]
    assert [row.name for row in sheet.rows] == list(run.ids[:6])
    heads = [f"{method}\n9 tokens" for method in ("patchrank", "evit", "random")]
    assert list(sheet.columns.values()) == ["golden\nranking", *heads]
    [evit] = [row for row in group.rows if row.facts.model == "clip_vit_b16_evit25"]
    assert (sheet.rows[1].tokens["evit"] == evit.token[1]).all()
    assert (sheet.rows[1].importance["golden ranking"] == group.golden[0].importance[1]).all()
    assert sheet.rows[1].captions == dict.fromkeys(("image", "patchrank", "evit", "random"), "✓ cat")
    assert sheet.rows[0].captions["evit"] == "✗ cat"


def test_a_gallery_is_a_jpeg(run):
    [first] = galleries(run.groups)
    assert Image.open(io.BytesIO(first.files["jpg"])).width > 500


def test_only_rows_of_the_records_are_shown(run):
    rows = [row for row in run.groups[0].rows if row.facts.method in ("evit", "dense")]
    records = [SimpleNamespace(**vars(row.facts)) for row in rows]
    [group] = group_traces([run.run], records)
    assert {row.facts.method for row in group.rows} == {"dense", "golden ranking", "evit"}
    assert group_traces([run.run], [SimpleNamespace(**vars(replace(rows[0].facts, dataset="other")))]) == []
