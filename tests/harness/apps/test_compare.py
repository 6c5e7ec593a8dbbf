"""The main job on a benchmark in miniature: right numbers, and none measured twice."""

import re
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import part, replace
from rich.console import Console

import zoo
from harness.apps.compare import compare
from harness.base.terminal import Progress
from harness.datasets import few_shot
from harness.datasets.images import measure_detail
from harness.measure import rows, timing
from harness.measure.bench import linear_probe
from harness.measure.rows import feature_probe, run_split, shrink, variants
from harness.measure.settings import Plan
from harness.records.metrics import predicted
from harness.records.record import ADAPTIVE, Record, read_records, refuse_mixed, write_records
from zoo.deploy.runtime import TOLERANCES, FeatureTolerance
from zoo.loading.clip import class_features

ARCH = "clip_vit_b16"
WHERE: dict[str, Any] = {"models": (ARCH,), "datasets": ("toy",), "limit": None, "keeps": (0.5,)}
PLAN = Plan(**WHERE, methods=("random", "golden", "evit"), batches=(1,), rounds=6)
pytestmark = pytest.mark.usefixtures("benchmark")


def one_group(plan: Plan, known: list[Record], console: Console | None = None) -> list[Record]:
    [group] = compare(plan, known, Progress(console))
    return group


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every measurement an error, and every image."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    def call() -> None:
        for name in ("rows.run_split", "bench.costs", "bench.linear_probe", "bench.Split.__getitem__"):
            monkeypatch.setattr(f"harness.measure.{name}", fail)

    return call


@torch.no_grad()
def test_records_by_hand(shipped, dense, parts, toy):
    ranked_test = shipped()
    found = one_group(PLAN, [])
    refuse_mixed(found)
    records = {record.method: record for record in found}
    assert list(records) == ["dense", "random", "golden", "evit"]
    ours, random, golden, evit = found
    text = class_features(parts.model, parts.tokenizer, toy.classes[:3], toy.templates)
    named = [each for each in toy.split("test") if each.label < 3]  # the others' class can't be named
    images = torch.stack([parts.preprocess(each.image) for each in named])
    reduced = zoo.reduce(dense, method="random", keep=0.5).eval()
    features = {"dense": dense(images), "random": reduced(images)}
    for name, feature in features.items():
        best = (feature @ text.T).argmax(1).tolist()
        hits = [label == each.label for label, each in zip(best, named, strict=True)]
        assert records[name].correct.tolist() == hits
        assert records[name].mean("top1") == pytest.approx(np.mean(hits))
        assert records[name].image_count == 16
    assert golden.mean("diff_to_dense") == pytest.approx(golden.mean("top1") - ours.mean("top1"))
    assert 0 < ours.mean("top1") < 1

    a, b = (F.normalize(features[name], dim=1) for name in ("dense", "random"))
    p, q = (20 * one @ text.T for one in (a, b))
    expected = {
        "cosine_distance": 1 - (a * b).sum(1),
        "dense_agreement": (p.argmax(1) == q.argmax(1)).float(),
        "kl_to_dense": F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none").sum(1),
    }
    for name, values in expected.items():
        assert random.per_image(name) == pytest.approx(values.numpy(), rel=2e-3, abs=1e-5)
        assert part(random, name) == pytest.approx(float(values.mean()), rel=2e-3)
        assert part(ours, name) is ours.per_image(name) is None
    detail = [measure_detail(each.image, (64, 64)) for each in named]
    assert ours.per_image("detail") == pytest.approx(detail, rel=1e-3)
    assert random.mean("detail") is None
    assert ours.feature_probe == pytest.approx(feature_probe(a), abs=1e-6)
    assert (random.mean("neighbour_overlap"), ours.mean("tau"), ours.mean("diff_to_dense")) == (None, None, None)

    assert [r.model for r in (ours, evit)] == [ARCH, f"{ARCH}_evit50"]
    assert [r.mean("final_tokens") for r in found] == [64, 32, 32, 32]
    assert (golden.mean("tau"), golden.mean("match_at_k"), golden.golden_images) == (pytest.approx(1), 1.0, 16)
    assert (part(random, "match_k"), part(random, "match_chance")) == (32, 0.5)
    assert part(random, "match_low") < 0.5 < part(random, "match_high")
    assert (golden.mean("gflops"), golden.latency) == (None, ())
    assert evit.mean("gflops") < ours.mean("gflops")
    assert [entry.batch for entry in evit.latency] == [1]
    assert (ours.dataset_revision, ours.weights_sha256) == (toy.revision, ranked_test.provenance.weights)
    assert ours.classes_judged == (3, 4)
    half = one_group(replace(PLAN, precision="bfloat16"), [])
    for whole, theirs in zip(found, half, strict=True):
        assert (theirs.precision, theirs.weights_sha256) == ("bfloat16", whole.weights_sha256)
        assert (whole.correct == theirs.correct).mean() > 0.8


def test_records_from_a_file_are_used_again(shipped, tmp_path, predictor_file, no_run):
    shipped()
    plan = replace(PLAN, methods=("clsattn", "evit", "golden", "patchrank", "random", "tome"))
    write_records(tmp_path / "records.jsonl", one_group(plan, []))
    known = read_records(tmp_path / "records.jsonl")
    no_run()
    assert one_group(plan, known) == known
    assert one_group(replace(PLAN, methods=("tome",)), known) == [known[0], known[-1]]
    for change in ({"limit": 9}, {"keeps": (0.4,)}, {"batches": (1, 3)}, {"precision": "bfloat16"}):
        with pytest.raises(AssertionError, match="measured again"):
            one_group(replace(plan, **change), known)


def untimed(records: list[Record]) -> list[Record]:
    """Leave out what differs between two runs."""
    return [replace(record, latency=(), created="2026-01-01T00:00:00+00:00") for record in records]


def test_a_stopped_run_goes_on_from_its_last_batch(shipped, tmp_path, monkeypatch):
    """Whatever else was run in the folder meanwhile, by other code too."""
    shipped()
    monkeypatch.setattr(few_shot, "BATCH", 4)
    plan, run, ran = replace(PLAN, batches=()), rows.run_split, list[tuple[str, ...]]()
    whole = one_group(plan, [])

    def stop_at_the_third(every: Any, split: Any, *args: Any, **how: Any) -> Any:
        ran.append(split.image_ids)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(every, split, *args, **how)

    def resume(**changes: Any) -> list[Record]:
        [group] = compare(replace(plan, **changes), [], Progress(), folder=tmp_path / "unfinished")
        return group

    monkeypatch.setattr(rows, "run_split", stop_at_the_third)
    for commit, changes in ((None, {"keeps": (0.4,)}), ("other", {}), (None, {})):
        ran.clear()
        monkeypatch.setattr(rows, "git_commit", Mock(return_value=commit))
        with pytest.raises(KeyboardInterrupt):
            resume(**changes)
    assert untimed(resume()) == untimed(whole)
    assert [len(ids) for ids in ran] == [4] * 5
    assert ran[3] == ran[2]  # and those before it aren't run again
    assert not (tmp_path / "unfinished").exists()


def test_what_a_busy_machine_left_untimed_is_timed_and_no_image_run_again(monkeypatch):
    plan = replace(PLAN, methods=("random",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.Patience, "time", Mock(side_effect=timing.BusyError("spread of dense 40 %")))
        known = one_group(plan, [])
    assert [record.latency for record in known] == [(), ()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "run_split", Mock(side_effect=AssertionError("run again")))
        timed = one_group(plan, known)
    assert untimed(timed) == untimed(known)
    assert [[times.batch for times in record.latency] for record in timed] == [[1], [1]]
    other = replace(plan, batches=(3,))
    more = one_group(other, timed)
    assert [[times.batch for times in record.latency] for record in more] == [[1, 3], [1, 3]]
    monkeypatch.setattr("harness.measure.bench.costs", Mock(side_effect=AssertionError("measured again")))
    assert one_group(other, [*timed, *more]) == more
    assert one_group(plan, [*known, *timed]) == timed
    # Of other images, at the same cost; a dense row alone is of other rounds.
    fewer = one_group(replace(plan, limit=9), [*known, *timed, more[0]])
    assert [record.latency for record in fewer] == [record.latency for record in timed]
    assert [record.mean("gflops") for record in fewer] == [record.mean("gflops") for record in timed]


def test_dense_rows_by_other_runtimes(no_run, monkeypatch):
    """What a runtime refuses is told; on the second run all is known."""
    for package in ("openvino", "nncf"):
        pytest.importorskip(package, reason="needs the extra `openvino`")
    monkeypatch.setitem(TOLERANCES, "int8", FeatureTolerance(1.0, 0.5))  # without VNNI sums overflow
    monkeypatch.setattr("harness.measure.exports.usual_precisions", lambda device: ("float32", "int8"))
    pictures = torch.randn(112, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("harness.measure.exports.calibration_pictures", lambda preprocess, count: pictures)
    for module in ("harness.measure.exports", "zoo.deploy.setup"):
        monkeypatch.setattr(f"{module}.describe_preprocessing", lambda preprocess: {})
    plan, console = replace(PLAN, methods=("random",), runtimes=("cuda-graphs", "openvino")), Console(record=True)
    found = one_group(plan, [], console)
    assert "by cuda-graphs in" in console.export_text()
    assert [record.label for record in found] == ["dense", "dense, openvino fp32", "dense, openvino int8", "random"]
    _, single, quantised, _ = found
    assert single.mean("cosine_distance") < 1e-6 < quantised.mean("cosine_distance") < 0.2
    assert quantised.method_config.keys() == {"precision", "recipe", "calibration"}
    assert all(record.latency for record in found)
    no_run()
    assert one_group(plan, found) == found


def test_without_golden_rankings_of_the_split_the_row_is_missing_and_the_command_told(shipped):
    console, plan = Console(record=True, width=300), replace(PLAN, split="val")
    records = one_group(plan, [], console)
    assert [record.method for record in records] == ["dense", "random", "evit"]
    assert all(record.mean("tau") is None for record in records)
    assert "patchrank rank --model clip_vit_b16.openai --dataset toy --split val" in console.export_text()
    shipped("val")  # rankings turned up, so known records without agreement aren't the answer any more
    _, random, golden, _ = one_group(plan, records)
    assert (golden.split, golden.image_count, random.golden_images) == ("val", 7, 7)
    shipped(count=8)  # of 16 that are judged
    assert [record.golden_images for record in one_group(PLAN, [])] == [None, 6, 6]


def test_few_shots_by_a_probe_on_each_models_own_features(shipped, tower, parts, toy, monkeypatch):
    """With labels instead of words even the class that can't be named is found."""
    shipped()
    used: list[torch.Tensor] = []
    monkeypatch.setattr("harness.records.metrics.predicted", lambda f, by: used.append(by) or predicted(f, by))
    groups = list(compare(replace(PLAN, shots=(0, 3), tokens="probe", seeds=1), [], Progress()))
    assert [[record.shots for record in group] for group in groups] == [[0] * 4, [3] * 4]
    models = variants(tower, ["dense", "random"], [0.5])
    split = toy.split("train")  # three of each class are the whole of it
    train = run_split(models, split, parts.preprocess)
    labels = torch.from_numpy(split.labels)
    probes = [linear_probe(train[row.model].features, labels, 4) for row in models]
    by_dense, by_random, by_golden, _ = used[4:]
    assert torch.allclose(by_dense, probes[0], atol=1e-5)
    assert torch.allclose(by_random, probes[1], atol=1e-5)
    assert torch.equal(by_golden, by_dense)  # no ranking of training images, so no own probe
    assert not torch.allclose(by_dense, by_random, atol=1e-2)
    assert groups[1][0].correct[toy.labels("test") == 3].mean() > 0.5  # never named
    assert [group[0].image_count for group in groups] == [16, 21]  # by text, they are left out


@pytest.mark.parametrize(("made", "change", "match"), [
    ({}, {"models": ("clip_vit_b61",)}, "model 'clip_vit_b61': did you mean 'clip_vit_b16'?"),
    ({}, {"shots": (4,)}, "--shots 4: class 'cat' of 'toy' has 3 training images"),
    ({"weights": "0" * 16}, {}, "these rankings were made with weights='0000000000000000', wanted "),
])  # fmt: skip
def test_refusals_before_any_run(made, change, match, shipped, no_run):
    shipped(**made)
    no_run()
    with pytest.raises(ValueError, match=re.escape(match)):
        one_group(replace(PLAN, **change), [])


@torch.no_grad()
def test_adaptive_rows_deal_what_their_budgets_make_at_equal_cost(dense, parts, toy, no_run, monkeypatch):
    for module in ("bench", "budgets"):
        monkeypatch.setattr(f"harness.measure.{module}.LEAST_PICTURES", 12)  # of toy's train images
    monkeypatch.setattr("harness.measure.bench.spread_keeps", lambda *_: [1.0, 0.7, 0.5, 0.3])
    plan = Plan(**WHERE, methods=("rankmerge",), budgets=("rankmerge",), batches=())
    found = one_group(plan, [])
    _, fixed, ours, random, known = found
    assert [record.label for record in found[1:]] == [
        "rankmerge",
        *(f"rankmerge, {word}" for word in ADAPTIVE.values()),
    ]
    assert not ours.control
    assert random.control
    assert known.control
    assert ours.method_config["fitted to"] == "12 images of train of toy"
    named = [each for each in toy.split("test") if each.label < 3]
    images = torch.stack([parts.preprocess(each.image) for each in named])
    truth = F.normalize(dense(images), dim=-1)
    towers = [zoo.reduce(dense, method="rankmerge", keep=keep).eval() for keep in ours.method_config["budgets"]]
    errors = torch.stack([1 - (F.normalize(vit(images), dim=-1) * truth).sum(1) for vit in towers])
    near = (torch.tensor(ours.per_image("cosine_distance")) - errors).abs() <= 1e-5 + 1e-3 * errors
    assert near.any(dim=0).all()  # each picture has what one of the budgets makes of it
    for record in (ours, random, known):
        assert 0.9 < record.mean("gflops") / fixed.mean("gflops") <= 1 + 1e-3  # stored in three digits
        assert record.mean("final_tokens") is None
    assert sorted(random.per_image("gflops")) == sorted(ours.per_image("gflops"))
    assert known.mean("cosine_distance") <= min(ours.mean("cosine_distance"), fixed.mean("cosine_distance"))
    assert known.mean("cosine_distance_95") == pytest.approx(
        np.quantile(known.per_image("cosine_distance"), 0.95), rel=1e-2
    )
    no_run()
    assert one_group(plan, found) == found


@torch.no_grad()
def test_smaller_images_are_a_row_at_equal_cost(dense, parts, toy):
    plan = Plan(**WHERE, methods=("rankmerge", "resize"), match="gflops", match_to="rankmerge", far=True, batches=())
    _, fixed, smaller = one_group(plan, [])
    rows, columns = (side // 8 for side in smaller.method_config["image_size"])
    assert smaller.keep == pytest.approx(rows * columns / 64)
    assert rows in (columns, columns - 1)
    assert smaller.mean("gflops") == pytest.approx(fixed.mean("gflops"), rel=0.1)  # as near as whole patches come
    vit = shrink(dense, smaller.keep).eval()
    images = torch.stack([parts.preprocess(each.image) for each in toy.split("test") if each.label < 3])
    assert vit.input_size == (rows * 8, columns * 8)
    features = [F.normalize(each(images), dim=-1) for each in (vit, dense)]
    apart = 1 - (features[0] * features[1]).sum(1)
    assert np.allclose(smaller.per_image("cosine_distance"), apart.numpy(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("change", "quoted"), [
    ({"budgets": ("tome",)}, "--budgets tome: expected one of rankmerge that are measured"),
    ({"methods": ("resize",), "match": "time"}, "method 'resize': expected --match gflops or keep"),
])  # fmt: skip
def test_adaptive_and_smaller_rows_that_are_refused(change, quoted):
    with pytest.raises(ValueError, match=quoted):
        one_group(Plan(**WHERE, **{"methods": ("rankmerge",), **change}), [])
