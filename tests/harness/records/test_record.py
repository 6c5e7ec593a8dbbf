"""Records: lines round trip, bad ones are refused, like ones are used again, others never mixed."""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import ANOTHER, BY_TEXT, FROZEN, KNOWN, UNLABELLED, answers, per_image, replace, timed
from hypothesis import given
from hypothesis.extra import numpy as arrays

from harness.records.metrics import METRICS, pack, unpack
from harness.records.record import (
    CONDITIONS,
    MEASURED,
    SCHEMA_VERSION,
    Record,
    fitting,
    halves,
    images_digest,
    pack_groups,
    read_records,
    read_run,
    refuse_mixed,
    write_records,
)

CORRECT = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0], dtype=bool)
ANSWERS = answers(CORRECT) | {"shots": 16, "tuning": "t", "prompt_tokens": 8}
CONFIG = {"reduce_at": [3], "name": "ü", "fuse": False, "rate": None}
TODAY = {name: own for name, own in KNOWN.metrics.items() if name in METRICS}  # the line has one that is gone
FULL = replace(KNOWN, **ANSWERS, metrics=TODAY, method_config=CONFIG, uncounted_operators=("aten::linalg_inv",))
OTHERS = [name for name in METRICS if name != "top1"]
NOTHING = dict.fromkeys((*set(MEASURED) - {"metrics"}, *OTHERS)) | {"latency": ()}
NAMED = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0, "method_config": {}}
DENSE = replace(FULL, git_commit=None, **NOTHING, **NAMED)


def test_records_round_trip_and_append(tmp_path: Path):
    path = tmp_path / "new" / "records.jsonl"
    write_records(path, [DENSE, FULL])
    before = path.read_bytes()
    write_records(path, [FULL])
    assert read_records(path) == read_run(path) == read_run(path.parent) == [DENSE, FULL, FULL]
    assert path.read_bytes().startswith(before)


def test_halves_are_of_the_images_of_less_and_of_more_detail():
    detail = np.array([3.0, 9, 1, 8, 2, 7, 4, 6, 5])
    distance, groups = detail / 8, np.array([0, 1, 0, 2, 3, 4, 5, 6, 7])
    images: dict[str, Any] = {"image_count": 9, "image_groups": pack_groups([str(group) for group in groups])}
    dense = replace(DENSE, **images, metrics=per_image("detail", detail))
    row = replace(
        FULL, **images, gflops=2.0, tau=0.5, tau_low=0.4, tau_high=0.6, metrics=per_image("cosine_distance", distance)
    )
    for whole, part in zip(halves([dense, row]), (detail <= 5, detail > 5), strict=True):
        base, own = whole
        assert own.per_image("cosine_distance").tolist() == distance[part].tolist()
        assert own.mean("cosine_distance") == pytest.approx(distance[part].mean())
        assert base.per_image("detail").tolist() == detail[part].tolist()
        assert (own.groups is not None) == part[0]
        assert (own.mean("gflops"), own.mean("tau"), own.image_count) == (2.0, None, part.sum())
        assert own.dataset == base.dataset != row.dataset
        refuse_mixed(whole)
    with pytest.raises(ValueError, match=f"--halves: .*{row.dataset}.*--fresh"):
        halves([row])


def test_the_frozen_line_is_read_and_written_as_it_is(tmp_path: Path):
    """Fields changed: raise SCHEMA_VERSION, and freeze a line of the new version."""
    assert json.loads(FROZEN.read_text())["schema_version"] == SCHEMA_VERSION
    write_records(tmp_path / "again.jsonl", [KNOWN])
    assert (tmp_path / "again.jsonl").read_text() == FROZEN.read_text()


@pytest.mark.parametrize(("change", "complaint"), [
    ({"method_config": {"x": float("nan")}}, "clip_vit_s14: .*not JSON compliant"),
    ({"method_config": {"x": np.float32(1)}}, "clip_vit_s14: .*float32"),
    ({"device": 2}, "device must be str, got 2"),  # as reading would
])  # fmt: skip
def test_nothing_is_written_when_a_record_is_no_json(tmp_path: Path, change: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        write_records(tmp_path / "records.jsonl", [FULL, replace(DENSE, **change)])
    assert not list(tmp_path.iterdir())


def changed(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update(changes)


def metric(name: str, **changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["metrics"][name].update(changes)


def written(field: str, text: str) -> Callable[[dict[str, Any]], str]:
    """Return the end of a line, in which a field has a value that ``json`` wouldn't write."""
    return lambda values: f', "{field}": {text}}}' if values.pop(field) else ""


@pytest.mark.parametrize(("change", "complaint"), [
    (lambda values: values.pop("golden_images"), "missing field 'golden_images'"),
    (changed(image_sizes=1), "unknown field 'image_sizes', did you mean: image_size"),
    (changed(metrics={"tau": {}}), "metric 'tau': missing field 'mean'"),
    (changed(schema_version=6), "schema_version is 6, this version reads 9"),
    (changed(shots=1.5), "shots must be int, got 1.5"),
    (metric("tau", mean="0.3"), "metric 'tau': mean must be .* got '0.3'"),
    (metric("top1", mean=0.6), "top1 is 0.6, but its values say 0.5"),
    (metric("top1", low=0.51), "metric 'top1': need low <= mean <= high"),
    (metric("tau", high=float("nan")), "NaN is no number"),
    (metric("top1", values="bits:b1"), "values of 1 bytes are not of 10 images"),
    (metric("top1", values="b180"), "got 'b180'"),
    (changed(tuning=None), "tuning must .* got None"),
    (changed(shots=0), "tuning must .* got 't'"),
    (changed(tuning="probe"), "prompt_tokens must suit tuning 'probe', got 8"),
    (changed(images_sha256="ab"), "images_sha256 must be 64 hex digits, got 'ab'"),
    (changed(created="2026-01-02T03:04:05"), "created must be UTC"),
    (written("keep", "[" * 100_000 + "]" * 100_000), "nested too deeply"),
    (written("keep", "9" * 401), "has 401 digits"),
    (written("keep", "1e999"), "no finite number"),
    (written("metrics", '{"gflops": {"mean": -3.5}}'), r"gflops must lie in \[0, 1e\+09\], got -3.5"),
    (written("tag", '"a", "tag": "b"'), "field 'tag' is there twice"),
])  # fmt: skip
def test_reading_names_file_line_and_field(tmp_path: Path, change: Callable[[dict[str, Any]], object], complaint: str):
    path = tmp_path / "records.jsonl"
    write_records(path, [DENSE])
    values = asdict(FULL)
    end = change(values)
    with path.open("a") as file:
        file.write(json.dumps(values)[:-1] + (end if isinstance(end, str) else "}") + "\n")
    with pytest.raises(ValueError, match=rf"records\.jsonl, line 2: .*{complaint}"):
        read_records(path)


def test_all_that_differs_is_named_with_the_command_that_shows_both():
    refuse_mixed([])
    refuse_mixed([DENSE, FULL])
    others = [replace(FULL, device_name="another", torch=f"2.1{at}.0+cpu") for at in (2, 3)]
    with pytest.raises(ValueError, match=r"^records of different device_name, torch cannot") as no:
        refuse_mixed([DENSE, *others])
    assert "'another'; torch '2.13.0+cpu' and '2.12.0+cpu'; measure" in str(no.value)


def test_the_digest_of_images_tells_order_names_and_number():
    lists = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", "b"], ["a,b"], ["1:a"], [], [""], ["é"]]
    assert len({images_digest(names) for names in lists}) == len(lists)
    # sha256 of "1:a1:b", by another program
    assert images_digest(iter(["a", "b"])).startswith("facdde7abf1eac5b")


def row(**changes: Any) -> Record:
    """Return a row of random pruning without agreement, timed at batches 1 and 32."""
    named = {"model": "clip_vit_s14_random60", "method": "random", "method_config": {"keep": 0.6}}
    measured = {"cosine_distance": FULL.metrics["cosine_distance"], "latency": (timed(1), timed(32)), "gflops": 3.5}
    return replace(FULL, **NOTHING | named | measured | changes)


BLANK: dict[str, Any] = {**NOTHING, "top1": None, "created": "2026-02-02T02:02:02+00:00"}
AS_DENSE: dict[str, Any] = {"model": "clip_vit_s14", "method": "dense", "keep": 1.0}


@pytest.mark.parametrize("field", ANOTHER)
def test_another_condition_is_measured_anew_and_stands_in_no_column(field: str):
    assert set(CONDITIONS) < set(ANOTHER)
    change = {field: ANOTHER[field]}
    assert fitting(row(**BLANK), [row()], [1]) is not None
    assert fitting(row(**BLANK | change), [row()], [1]) is None
    if field in CONDITIONS:
        with pytest.raises(ValueError, match=f"records of different {field} cannot"):
            refuse_mixed([row(), row(**BLANK | change)])


def test_a_record_of_the_same_conditions_is_used_again(tmp_path: Path):
    write_records(tmp_path / "r.jsonl", [row(seed=1), row(git_commit="old"), row()])
    known = read_records(tmp_path / "r.jsonl")
    assert fitting(row(**BLANK), known, [1, 32]) is known[2]  # the newest
    assert fitting(row(**BLANK), known, [1, 8]) is known[2]  # which lacks latency at 8 alone
    assert fitting(row(**BLANK), [*known, row(latency=())], [1, 32]) is known[2]
    assert fitting(row(**BLANK), known[:2], []) is known[1]


def test_agreement_and_closeness_are_measured_where_they_were_not():
    known, blank = row(), row(**BLANK)
    assert fitting(blank, [known], [], ranked=True) is None  # golden rankings turned up
    agreed = replace(known, tau=0.5, tau_low=0.4, tau_high=0.6)
    assert fitting(blank, [agreed, known], [], ranked=True) is agreed
    whole = row(**AS_DENSE, cosine_distance=None)  # nothing was dropped, so there is no ranking to agree
    assert fitting(row(**BLANK | AS_DENSE), [whole], [], ranked=True) is whole
    assert fitting(row(**BLANK | BY_TEXT), [row(cosine_distance=None, **BY_TEXT)], []) is None
    alone = row(cosine_distance=None)  # tuned, and maybe judged without a dense row beside it
    assert fitting(blank, [alone], []) is alone


def test_a_run_is_a_file_or_the_folder_of_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone': there is no such file or folder; expec"):
        read_run(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"it holds no records\.jsonl; expected a file of"):
        read_run(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(ValueError, match=r"records\.jsonl holds no records"):
        read_run(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"pipe' is a pipe; expected a file of"):
        read_run(tmp_path / "pipe")


FLOATS = {"allow_nan": False, "allow_infinity": False}


@given(arrays.arrays(np.float16, arrays.array_shapes(min_dims=1, max_dims=1, max_side=99), elements=FLOATS))
def test_values_round_trip(values: np.ndarray):
    np.testing.assert_array_equal(unpack(pack(values), len(values)), values)


def test_values_are_kept_with_three_digits_and_are_finite():
    assert pack(CORRECT) == "bits:b180"
    np.testing.assert_array_equal(unpack("bits:b180", 10), CORRECT)
    assert unpack(pack([0.01234567]), 1)[0] == pytest.approx(0.01234567, rel=5e-4)
    for wrong in ([[1.0]], [float("nan")], [1e6]):
        with pytest.raises(ValueError, match=r"values must be \(n,\)|finite numbers"):
            pack(wrong)


def test_a_record_has_values_per_image_where_a_metric_names_them():
    values = np.linspace(0.01, 0.03, 10)
    own = replace(FULL, **per_image("cosine_distance", values), **per_image("dense_agreement", values > 0.015))
    np.testing.assert_allclose(own.per_image("cosine_distance"), values, rtol=5e-4)
    np.testing.assert_array_equal(own.per_image("dense_agreement"), values > 0.015)
    np.testing.assert_array_equal(own.per_image("top1"), CORRECT)
    assert own.per_image("kl_to_dense") is own.per_image("gflops") is None
    with pytest.raises(ValueError, match="fashion has no labels"):
        _ = replace(DENSE, **UNLABELLED).correct


def test_packed_records_are_read_and_what_is_no_whole_gzip_file_is_refused(tmp_path: Path):
    plain, packed = tmp_path / "records.jsonl", tmp_path / "records.jsonl.gz"
    write_records(plain, [KNOWN])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_records(packed) == read_run(packed) == [KNOWN]
    with pytest.raises(ValueError, match="plain files only; unpack it with gzip -d"):
        write_records(packed, [KNOWN])
    whole = packed.read_bytes()
    for spoilt in (whole[:-9], whole[:-20] + bytes(20), plain.read_bytes()):
        packed.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"records\.jsonl\.gz: not a whole gzip file"):
            read_records(packed)
