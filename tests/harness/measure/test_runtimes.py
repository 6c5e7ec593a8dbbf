"""``latency --runtimes``: what shares a round, what the ratios are to, and what can't be run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from harness.base.terminal import Progress
from harness.measure import latency, ways
from harness.measure.cost import count_costs
from harness.measure.latency import Family, LatencyPlan, measure_latency
from harness.measure.rows import variants
from harness.measure.ways import COMPILE, ONNX, OPENVINO
from harness.records.times import EAGER, LatencyRecord, read_latencies, write_latencies
from zoo.core.files import fingerprint

PLAN = LatencyPlan(models=("x",), runtimes=(EAGER,), batches=(2,), threads=(1,), rounds=6, seconds=0.0)
CPU = torch.device("cpu")


@pytest.fixture
def family(dense: zoo.ReducedViT, monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """Let a plan's models be the tiny tower, dense and by rankmerge."""
    rows = variants(dense, "clip_vit_b16", "openai", ["dense", "rankmerge"], [0.5])
    family = Family(tag="openai", weights=fingerprint(dense), rows=rows, counts=count_costs(rows, Progress()))
    monkeypatch.setattr(LatencyPlan, "groups", {"clip_vit_b16.openai": []})
    monkeypatch.setattr(latency, "load_family", lambda *_, **__: family)
    return family


def timed(plan: LatencyPlan, known: list[LatencyRecord] | None = None) -> tuple[list[LatencyRecord], int]:
    """Return all records of a plan, and how many of them are new."""
    [(records, new)] = list(measure_latency(plan, known or [], Progress()))
    return records, len(new)


def test_precisions_share_a_round_with_eager_float32(family: Family, tmp_path: Path):
    plan = replace(PLAN, dtypes=("bfloat16",))
    records, _ = timed(plan)
    assert [(one.dtype, one.method) for one in records] == [
        (dtype, method) for dtype in ("float32", "bfloat16") for method in ("dense", "rankmerge")
    ]
    reference, *others = records
    assert reference.ratio is None
    assert {one.reference for one in records} == {"the dense model in eager float32"}
    for one in others:
        pairs = zip(one.samples_ms, reference.samples_ms, strict=True)
        assert min(a / b for a, b in pairs) <= one.times.ratio_to_dense
        assert one.arrived is None
    assert 0 < others[1].deviation < ways.ALLOWED["bfloat16"]  # of features from eager float32's
    # All of it is used again, and none of it where ratios are to another dense model.
    write_latencies(tmp_path / "latency.jsonl", records)
    known = read_latencies(tmp_path / "latency.jsonl")
    assert timed(plan, known) == (records, 0)
    assert timed(replace(PLAN, runtimes=(), dtypes=("bfloat16",)), known)[1] == 2


def test_exported_files_are_timed(family: Family, monkeypatch: pytest.MonkeyPatch):
    """Whether they compute what the model does is a question to `zoo.export`'s own tests."""
    monkeypatch.setattr(ways, "check_runtimes", lambda *_: None)
    monkeypatch.setattr(ways, "as_runtime", lambda model, *_, **__: model)
    [*eager, dense, short] = timed(replace(PLAN, runtimes=(ONNX,)))[0]
    assert [one.way for one in eager] == [EAGER, EAGER]
    for one in (dense, short):
        assert one.failed is None
        assert one.deviation < 1e-4
        assert one.peak_mib is None  # another's allocator


def test_open_clips_own_code_is_timed_with_the_same_weights(family: Family):
    *_, dense, short = timed(replace(PLAN, runtimes=(ways.OPEN_CLIP,), dtypes=("float32", "bfloat16")))[0][:4]
    assert dense.deviation < 1e-5
    assert dense.samples_ms
    assert short.failed == "open_clip's own code takes the dense tower alone"


def test_a_runtime_that_errs_has_a_reason(family: Family, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ways, "check_runtimes", lambda *_: None)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("node 7 isn't known")

    monkeypatch.setattr(ways, "as_runtime", fail)
    records, _ = timed(replace(PLAN, runtimes=(ONNX,)))
    assert [one.failed for one in records[2:]] == ["RuntimeError: node 7 isn't known"] * 2
    assert all(one.samples_ms for one in records[:2])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "runtime": ({"runtimes": ("onyx",)}, "--runtimes 'onyx': did you mean 'onnx'"),
    "ways": ({"ways": (COMPILE,)}, "--runtimes with --ways compile: give one of the two"),
    "device": ({"runtimes": (ONNX,), "device": "cuda"}, "--runtimes onnx on --device 'cuda': exported files"),
}


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **wrong)


def test_a_missing_package_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zoo.deploy.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs openvino, onnx, onnxscript: pip install 'clip-patchrank\[export\]'"):
        ways.check_runtimes([OPENVINO], ["float32"], CPU)
