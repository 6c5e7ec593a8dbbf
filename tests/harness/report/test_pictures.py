"""The painter of patches, panel by panel, and galleries of traces."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from by_hand import replace
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from harness.base.store import seal
from harness.records.traces import RANKING, Facts, RowTraces, read_traces, thumbnails_path
from harness.report import pictures
from harness.report.pictures import (
    BORDER,
    DIM,
    PatchRow,
    PatchSheet,
    TracedGroup,
    dim,
    draw,
    galleries,
    group_traces,
    heat_panel,
    image_panel,
    panel,
    ranks,
    token_panel,
)
from zoo.core.files import digest

GRID, CELLS, SIZE = (4, 6), 24, (80, 120)
View = NDArray[np.float64]


@pytest.fixture
def view() -> View:
    """A picture 40 high and 60 wide, neither dark nor light."""
    return np.random.default_rng(0).uniform(0.4, 0.6, (40, 60, 3))


def tiles(pixels: View) -> View:
    """Split a panel into (rows, columns, height, width, 3)."""
    return pixels.reshape(4, 20, 6, 20, 3).transpose(0, 2, 1, 3, 4)


def test_ranks_equal_a_slow_count():
    values = np.random.default_rng(2).integers(0, 8, 20).astype(np.float32)
    for value, rank in zip(values, ranks(values), strict=True):
        below, tied = (values < value).sum(), (values == value).sum() - 1
        assert rank == pytest.approx((below + tied / 2) / 19)
    assert ranks(np.array([2.0, -np.inf, np.inf])).tolist() == [0.5, 0.0, 1.0]


def test_a_patch_has_the_colour_of_its_rank_be_the_image_dark_or_light(view: View):
    importance = np.random.default_rng(3).random(CELLS)
    wanted = colormaps["viridis"](ranks(importance).reshape(GRID))[..., :3]
    inner = np.argsort(importance)[4:20]  # the colours of either end leave no room for the image's detail
    for image in (view - 0.35, view, view + 0.35):
        cells = tiles(heat_panel(image, importance, GRID, SIZE))
        off = np.abs(cells.mean(axis=(2, 3)) - wanted).reshape(CELLS, 3)
        assert off[inner].max() < 0.01
        assert cells.std(axis=(2, 3)).mean() > 0.005  # and yet the image shows


def test_kept_patches_are_as_they_were_and_dropped_ones_dimmed(view: View):
    kept = np.random.default_rng(4).random(CELLS) < 0.5
    pixels = token_panel(view, np.where(kept, np.arange(CELLS), -1), GRID, SIZE)
    cells, image = tiles(pixels), tiles(image_panel(view, SIZE))
    for cell, stays in enumerate(kept):
        inner, own = (each[divmod(cell, 6)][1:, 1:] for each in (cells, image))
        assert (inner == (own if stays else dim(own))).all()
        assert stays or np.abs(inner - DIM).max() < 0.08
    assert (cells[1:, :, 0] == BORDER).all()
    assert (cells[:, 1:, :, 0] == BORDER).all()


def test_patches_that_share_a_token_have_their_mean_colour_and_no_line_between(view: View):
    token = np.arange(CELLS)
    token[[0, 1, 7]] = 7  # rows 0 and 1
    token[20] = -1
    cells, image = tiles(token_panel(view, token, GRID, SIZE)), tiles(image_panel(view, SIZE))
    mean = np.mean([image[0, 0], image[0, 1], image[1, 1]], axis=(0, 1, 2))
    for place in ((0, 0), (0, 1), (1, 1)):
        assert cells[place][2:, 2:] == pytest.approx(np.broadcast_to(mean, (18, 18, 3)))
    assert (cells[0, 1, 1:, 0] != BORDER).any()
    assert (cells[0, 2, :, 0] == BORDER).all()
    assert (cells[2, 4, 1:, 1:] == image[2, 4, 1:, 1:]).all()
    assert (cells[3, 2, 1:, 1:] == dim(image[3, 2, 1:, 1:])).all()


@pytest.mark.parametrize("ground", [0.0, 1.0])
def test_dropped_patches_are_told_from_white_and_from_black_images(ground: float):
    linear = ((dim(np.full((1, 1, 3), ground)) + 0.055) / 1.055) ** 2.4  # luminance of sRGB, as WCAG defines it
    light = 0.05 + float((linear @ [0.2126, 0.7152, 0.0722]).item())
    assert max(light, 0.05 + ground) / min(light, 0.05 + ground) >= 3


def test_a_sheet_is_a_picture_of_any_names_the_same_bytes_every_time(view: View):
    ranked = PatchRow(name="猫 $x_1$ " + "name" * 20, label="boot", view=view, importance={"rank": np.arange(24.0)})
    kept = PatchRow(name="red.png", label="", view=view, tokens={"kept": np.arange(CELLS)})
    assert (panel(ranked, "rank", GRID, SIZE) == heat_panel(view, np.arange(24.0), GRID, SIZE)).all()
    assert (panel(kept, "kept", GRID, SIZE) == token_panel(view, np.arange(24), GRID, SIZE)).all()
    assert panel(kept, "rank", GRID, SIZE) is None
    columns = {"rank": "golden\nlabel", "kept": "kept"}
    sheet = PatchSheet(rows=[ranked, kept], grid=GRID, columns=columns, notes=["words " * 60])
    drawn = draw(sheet)
    assert draw(sheet) == drawn
    large, small = (Image.open(io.BytesIO(each)).size for each in (drawn, draw(sheet, "jpg", scale=0.5)))
    assert 1000 < large[0] < 2100
    assert small[0] == pytest.approx(large[0] / 2, rel=0.05)


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
        facts, labels = replace(self.facts, **(own | changes)), ("dog", "cat") * (IMAGES // 2)
        return self.put(
            RowTraces(
                **{"facts": facts, "grid": (SIDE, SIDE), "image_ids": self.ids, "labels": labels},
                **{"predicted": ("cat",) * IMAGES, "importance": importance, "left": left, "token": token},
            )
        )

    def golden(self) -> RowTraces:
        """Write a golden ranking."""
        row = self.row(RANKING, 1.0, model="clip_vit_b16", method_config={"score": "preservation"})
        return self.put(replace(row, predicted=(None,) * IMAGES))

    @property
    def groups(self) -> list[TracedGroup]:
        """What was written, as a report reads it."""
        return group_traces([self.run])

    def put(self, row: RowTraces) -> RowTraces:
        path = self.run / "traces" / row.facts.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.encode())
        return row

    def thumbnails(self, **changes: Any) -> None:
        """Write small copies of the images."""
        jpegs = []
        for pixels in np.random.default_rng(0).integers(0, 256, (IMAGES, 48, 48, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            jpegs.append(buffer.getvalue())
        path = thumbnails_path(self.run, replace(self.facts, **changes))
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


@pytest.mark.parametrize(
    ("name", "value"), [("weights_sha256", "cd" * 32), ("dataset_revision", "other"), ("version", "0.2.0")]
)
def test_rows_of_other_conditions_never_stand_side_by_side(name: str, value: str, run):
    run.row("evit", 0.5, **{name: value})
    run.row("patchrank", 0.5, **{name: value})
    groups = run.groups
    assert len(groups) == 2
    assert all(len({getattr(row.facts, name) for row in group.rows}) == 1 for group in groups)
    assert len({digest(group.facts.conditions) for group in groups}) == 2


def test_several_runs_stand_in_one_group_the_last_of_a_row_counting(written):
    one, other = written("one"), written("other")
    one.row("evit", 0.5)
    one.row("patchrank", 0.5)
    last = other.row("patchrank", 0.5, seed=9)
    other.row("tome", 0.5)
    [group] = group_traces([one.run, other.run])
    assert [row.facts.method for row in group.rows] == ["evit", "patchrank", "tome"]
    assert np.array_equal(group.rows[1].importance, last.importance)


def test_each_method_stands_with_its_lowest_keep_rate(written):
    made = written()
    for method, keeps in (("evit", (0.61, 0.31)), ("tome", (0.55, 0.28))):
        for keep in keeps:
            made.row(method, keep)
    [group] = made.groups
    assert [(row.facts.method, row.facts.keep) for row in group.lowest] == [("evit", 0.31), ("tome", 0.28)]


def path_of(run, method: str) -> Path:
    [row] = [r for r in read_traces(run.run) if (r.facts.method, r.facts.keep) == (method, 0.25)]
    return run.run / "traces" / row.facts.name


def test_torn_rows_and_files_of_others_are_named_and_the_rest_is_drawn(run):
    torn, foreign, renamed = (path_of(run, method) for method in ("evit", "patchrank", "random"))
    [small] = (run.run / "thumbnails").glob("*.parquet")
    whole = torn.read_bytes()
    torn.write_bytes(b"PAR1 not of ours PAR1")
    reasons: list[str] = []
    traced = group_traces([run.run], None, reasons.append)
    [reason] = reasons
    assert f"{str(torn)!r} is broken" in reason
    assert [(row.facts.method, row.facts.keep) for row in traced[0].lowest[1:]] == [("evit", 0.5), ("patchrank", 0.25)]
    assert len(galleries(traced)) == 1
    with pytest.raises(ValueError, match="is broken"):
        group_traces([run.run])
    torn.write_bytes(whole)
    renamed.write_bytes(whole)
    foreign.write_bytes(small.read_bytes())
    small.write_bytes(small.read_bytes()[:-5])
    reasons.clear()
    [group] = group_traces([run.run], None, reasons.append)
    assert len(reasons) == 3
    for words in ("a Parquet file, but not of traces", "traces of another row", str(small)):
        assert any(words in reason for reason in reasons)
    assert [row.facts.keep for row in group.lowest[1:]] == [0.25, 0.5]
    assert galleries([group]) == []


def test_galleries_are_of_the_first_images_without_labels_first(run, monkeypatch: pytest.MonkeyPatch):
    nothing = {"labels": (None,) * IMAGES, "predicted": (None,) * IMAGES}
    run.put(replace(run.row("evit", 0.5, dataset="photos"), **nothing))
    run.thumbnails(dataset="photos")
    sheets: list[PatchSheet] = []
    monkeypatch.setattr(pictures, "draw", lambda sheet, form, scale: sheets.append(sheet) or b"drawn")
    photos, toy = galleries(run.groups)
    assert photos.alt == f"4 images ({', '.join(run.ids[:4])}) and what is kept of them by evit."
    assert "right answers: dense 2, patchrank 2, evit 2" in toy.alt
    assert [row.captions for row in sheets[0].rows] == [{}] * 4
    [group], sheet = [group for group in run.groups if group.facts.dataset != "photos"], sheets[1]
    assert [row.name for row in sheet.rows] == list(run.ids[:4])
    [evit] = [row for row in group.rows if row.facts.model == "clip_vit_b16_evit25"]
    assert (sheet.rows[1].tokens["evit"] == evit.token[1]).all()
    assert (sheet.rows[1].importance["golden ranking"] == group.lowest[0].importance[1]).all()
    assert sheet.rows[1].captions == dict.fromkeys(("image", "patchrank", "evit"), "✓ cat")
    assert sheet.rows[0].captions["evit"] == "✗ cat"


def test_only_rows_of_the_records_are_shown(run):
    rows = [row for row in run.groups[0].rows if row.facts.method in ("evit", "dense")]
    records = [SimpleNamespace(**vars(row.facts)) for row in rows]
    [group] = group_traces([run.run], records)
    assert {row.facts.method for row in group.rows} == {"dense", "golden ranking", "evit"}
    assert group_traces([run.run], [SimpleNamespace(**vars(replace(rows[0].facts, dataset="other")))]) == []
