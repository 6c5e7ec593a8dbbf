"""``check``: rows come back from records, what counts as moved, and the command on the toy benchmark."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
from by_hand import KNOWN, UNLABELLED, answers, part, replace

from harness.apps.check import Case, CheckPlan, CheckRow, cases_of, measure, shipped_cases, shipped_rows, tower_names
from harness.base.table import Shown
from harness.base.terminal import Progress
from harness.cli.apps import run_check
from harness.cli.entry import parse
from harness.measure.settings import Plan
from harness.measure.timing import BusyError
from harness.records.record import MEASURED, Record, Times, read_records, write_records
from harness.report.changes import EXACT, Movement, Tolerances, find_movements
from zoo.core.reducer import METHODS
from zoo.loading.towers import Tower

MINE = Path("mine.jsonl")
LIMIT, BATCHES = 48, (1,)  # what the shipped expectation is measured on
RIGHT = np.arange(40) % 4 > 0  # 30 of 40


def record(right: Any = RIGHT, **changed: Any) -> Record:
    """Make a record; ``right`` are the images that were."""
    facts: dict[str, Any] = dict.fromkeys(MEASURED) | answers(right)
    facts |= {
        **{"model": "clip_vit_s14_tome30", "method": "tome", "keep": 0.3, "dataset_revision": "12ab34cd"},
        **{"method_config": {"keep": 0.3, "reduce_at": None}, "latency": ()},
        **{"margin": 0.05, "cosine_distance": 0.1, "cosine_low": 0.05, "cosine_high": 0.2},
        **{"gflops": 2.196547264, "params": 16378624, "final_tokens": 59},
        **{"tokens_per_block": (182, 167, 60, 60), "uncounted_operators": ()},
        **{"tau": 0.3, "tau_low": 0.29, "tau_high": 0.31, "golden_images": len(right)},
        **{"device_name": "a processor", "threads": 2, "torch": "2.13.0"},
    }
    return replace(KNOWN, **facts | changed)


def test_the_first_row_of_a_name_says_the_defaults():
    dense = record(model="clip_vit_s14", method="dense", keep=1.0, method_config={}, cosine_distance=None, tau=None)
    keywords = {"method_config": {"keep": 0.3, "reduce_at": [2, 4], "predictor": "abc"}}
    [case] = cases_of([record(), dense, record(**keywords)], MINE)
    assert [row.name for row in case.rows] == ["dense", "tome30", "tome30 reduce_at=[2,4]"]
    assert (case.tower, case.plan.limit) == ("clip_vit_s14.imgfocus_lit", 40)


@pytest.mark.parametrize(("ask", "match"), [
    (lambda: cases_of([record()], MINE), r"mine\.jsonl: no dense row of clip_vit_s14\.imgfocus_lit"),
    (lambda: cases_of([record(shots=16, tuning="probe")], MINE), "is 16 shots, linear probe; check measures"),
    (lambda: Tolerances(answers=-1), "answers=-1: expected an integer"),
    (lambda: Tolerances(tau=math.nan), "tau=nan: expected a number"),
    (lambda: Tolerances(slower=0.5), "slower=0.5: expected a number"),
])  # fmt: skip
def test_refusals(ask: Any, match: str):
    with pytest.raises(ValueError, match=match):
        ask()


def test_the_shipped_expectation_has_every_row_and_nothing_more():
    """A method without rows fails here: patchrank check --update enters them."""
    assert tower_names(["timm:clip_vit_b16"]) == {"clip_vit_b16.openai": "timm:clip_vit_b16"}
    [shipped] = shipped_cases()
    assert (shipped.plan.limit, shipped.plan.batches) == (LIMIT, BATCHES)
    assert all(row.record is not None and row.record.git_commit for row in shipped.rows)
    for dataset in shipped.plan.datasets:
        names = sorted(row.name for row in shipped.rows if row.dataset == dataset)
        assert names == sorted(row.name for row in shipped_rows(shipped.tower, dataset))


def test_a_method_of_ours_must_be_expected_and_a_strangers_need_not(monkeypatch):
    for name, module in (("ours", "baselines.ours"), ("theirs", "elsewhere.theirs")):
        monkeypatch.setitem(METHODS, name, type(name, (METHODS["random"],), {"__module__": module}))
    [case] = shipped_cases()
    assert [row.name for row in case.rows if row.dataset == "emoji" and row.record is None] == ["ours60", "ours30"]


def between(then: Record | None, now: Record | None, bounds: Tolerances | None = None) -> list[Movement]:
    return list(find_movements(then, now, bounds or Tolerances()))


def quantities(then: Record, now: Record, **bounds: Any) -> list[str]:
    return [one.quantity for one in between(then, now, Tolerances(**bounds))]


def flipped(*images: int) -> Any:
    right = RIGHT.copy()
    right[list(images)] ^= True
    return right


def timed(ratio: float, low: float, batch: int = 1) -> tuple[Times, ...]:
    return (by_hand.timed(batch, ratio=ratio, low=low, high=9.0),)


@pytest.mark.parametrize(("field", "value", "by"), [
    ("gflops", 2.196547264 + 1e-9, pytest.approx(1e-9)),
    ("gflops", math.nextafter(2.196547264, 3), pytest.approx(0)),
    *(("params", 16378625, 1), ("final_tokens", 58, -1), ("golden_images", 39, None)),
    *(("tokens_per_block", (182, 167, 60, 59), None), ("uncounted_operators", ("aten::x",), None)),
    *(("precision", "bfloat16", None), ("weights_sha256", "cd" * 8, None)),
])  # fmt: skip
def test_what_is_counted_or_given_may_not_move_at_all(field: str, value: Any, by: Any):
    [one] = between(record(), record(**{field: value}))
    assert (one.quantity, one.then, one.now) == (field, part(record(), field), value)
    assert (one.by, one.allowed) == (by, "nothing")


def test_a_changed_setting_goes_by_its_name():
    now = record(method_config={"keep": 0.3, "reduce_at": [2], "r": None})
    assert [m[:3] for m in between(record(), now)] == [("reduce_at", None, [2]), ("r", "(absent)", None)]
    # How a keep rate was found isn't asked of what is measured at it.
    then = record(method_config={"keep": 0.3, "matched": {"time_of": "patchrank"}})
    assert between(then, record(method_config={"keep": 0.3})) == []


def test_answers_are_judged_by_their_number_and_by_the_images_that_flipped():
    assert quantities(record(), record(flipped(0, 1))) == []  # one won, one lost
    assert quantities(record(), record(flipped(0, 4))) == ["images right"]
    assert quantities(record(), record(flipped(0, 1, 4, 5))) == ["answers flipped"]
    [right, flips] = between(record(), record(flipped(1, 2, 3)))
    assert right[1:5] == (30, 27, -3, "±1")
    assert (flips.now, flips.by, flips.allowed) == ("3 lost, 0 won", 3, "2")
    assert quantities(record(), record(flipped(1, 2, 3)), answers=3, flips=3) == []


@pytest.mark.parametrize(("fields", "small", "large", "name"), [
    *(({}, {field: then + sign * 4e-4}, {field: then + sign * 6e-4}, field.replace("_", " "))
      for field, then in (("margin", 0.05), ("cosine_distance", 0.1)) for sign in (-1, 1)),
    ({}, {"dense_agreement": 0.95}, {"dense_agreement": 0.925}, "dense agreement"),  # 2 and 3 of 40 images
    ({}, {"kl_to_dense": 0.0015}, {"kl_to_dense": 0.0025}, "kl to dense"),
    ({}, {"feature_probe": (0.1, 0.20018)}, {"feature_probe": (0.1, 0.20022)}, "feature probe"),
    (UNLABELLED, {"feature_probe": (0.1, 0.20018)}, {"feature_probe": (0.10022, 0.2)}, "feature probe"),
])  # fmt: skip
def test_fidelity_and_the_probe_may_move_by_their_bounds(fields: Any, small: Any, large: Any, name: str):
    def near(**changed: Any) -> Record:
        values = {"dense_agreement": 1.0, "kl_to_dense": 0.0, "feature_probe": (0.1, 0.2)} | changed
        ends = {"agreement_low": 0.0, "agreement_high": 1.0, "kl_low": 0.0, "kl_high": 1.0}
        return record(**values, **ends, **fields)

    assert quantities(near(), near(**small)) == []
    assert quantities(near(), near(**large)) == [name]
    if name in ("margin", "cosine distance"):
        assert quantities(near(), near(**large), cosine=1e-3) == []


def test_tau_stays_within_its_bound_and_within_its_interval():
    def now(tau: float) -> Record:
        return record(tau=tau, tau_low=-1.0, tau_high=1.0)

    assert quantities(record(), now(0.3015)) == []
    assert quantities(record(), now(0.303)) == ["tau"]
    assert quantities(record(), now(0.297)) == ["tau"]
    assert quantities(record(), now(0.309), tau=0.5) == []
    assert quantities(record(), now(0.311), tau=0.5) == ["tau"]  # beyond the interval
    # Rounding is no news where the interval has no width.
    golden = record(tau=1.0, tau_low=1.0, tau_high=1.0)
    assert quantities(golden, replace(golden, tau=0.99997, tau_low=0.9)) == []
    assert quantities(golden, replace(golden, tau=0.9999, tau_low=0.9)) == ["tau"]


def test_other_images_are_told_and_nothing_else_of_them_is_compared():
    now = record(flipped(1, 2, 3), dataset_revision="ffff", margin=0.9)
    [one] = between(record(), now)
    assert one.quantity == "images"
    assert "dataset_revision '12ab34cd' and 'ffff'" in one.then


def test_latency_fails_only_if_even_the_least_ratio_is_beyond_the_factor():
    then = record(latency=timed(0.6, 0.5))
    assert quantities(then, record(latency=timed(1.2, 0.89))) == []
    assert quantities(then, record(latency=timed(0.1, 0.05))) == []  # faster is never wrong
    [one] = between(then, record(latency=timed(1.2, 0.91)))
    assert (one.quantity, one.now, one.allowed) == ("time to dense, batch 1", 1.2, "up to 0.90")
    slow = record(latency=timed(9.0, 8.0))
    assert quantities(then, slow, slower=math.inf) == []
    assert quantities(then, replace(slow, latency=timed(9.0, 8.0, batch=2))) == []
    assert quantities(then, replace(slow, device="cuda")) == []


def test_new_and_missing_rows_moved_as_a_whole_and_equal_ones_in_nothing():
    assert between(record(), record(), EXACT) == between(record(gflops=None), record()) == []
    [new], [gone] = between(None, record()), between(record(), None)
    assert new[:3] == ("row", None, "measured")
    assert gone[:3] == ("row", "measured", None)


Run = Callable[..., Shown]


@pytest.fixture
def run(tower: Tower, toy: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("harness.apps.check.load_tower", lambda name: tower)
    monkeypatch.setattr("harness.apps.check.get_dataset", lambda name: toy)

    def call(*words: str) -> Shown:
        return run_check(parse(["check", *words]), Progress())

    return call


_WRITTEN: list[bytes] = []


@pytest.fixture
def file(run: Run, tmp_path: Path) -> Path:
    """Write an expectation of five rows, measured once for all tests."""
    path = tmp_path / "mine.jsonl"
    if not _WRITTEN:
        plan = Plan(models=("clip_vit_b16",), methods=(), datasets=("toy",), limit=12, batches=BATCHES)
        rows = [CheckRow(dataset="toy", method=name, keep=0.5) for name in ("random", "tome", "evit")]
        rows = [CheckRow(dataset="toy", method="dense", keep=1.0), *rows, replace(rows[-1], options={"fuse": True})]
        case = Case("clip_vit_b16.openai", plan, rows, path)
        write_records(path, [now for *_, now in measure([case], CheckPlan(), Progress()) if now is not None])
        _WRITTEN.append(path.read_bytes())
    path.write_bytes(_WRITTEN[0])
    return path


@pytest.mark.command("check")
def test_what_was_written_is_found_again_and_flags_take_some_rows_and_the_dense_one(run, file: Path):
    shown = run(str(file), "--no-latency")
    assert (shown.code, shown.data["rows"], shown.data["moved"]) == (0, 5, [])
    # The toy's last class has no word, so it takes more of its images to leave 12.
    assert {record.image_count for record in read_records(file)} == {12}
    assert run(str(file), "--no-latency", "--methods", "random").data["rows"] == 2
    assert run(str(file), "--no-latency", "--keeps", "0.25").data["rows"] == 1


def test_a_busy_machine_judges_no_latency_and_leaves_the_expectation_its_times(run, file: Path, request):
    request.getfixturevalue("busy_machine")
    assert "latency isn't judged: it wasn't measured" in str(run(str(file)))
    with pytest.raises(BusyError, match="would lose its times"):
        run(str(file), "--update")
    assert file.read_bytes() == _WRITTEN[0]


def test_an_update_without_a_method_tells_that_its_rows_are_gone(run, file: Path, monkeypatch):
    monkeypatch.delitem(METHODS, "evit")
    shown = run(str(file), "--update", "--no-latency")
    moved = {(one["row"], one["expected"], one["now"]) for one in shown.data["moved"]}
    assert moved == {(name, "measured", None) for name in ("evit50", "evit50 fuse=true")}
    assert [record.method for record in read_records(file)] == ["dense", "random", "tome"]
