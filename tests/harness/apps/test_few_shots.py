"""Rows with something learned from shots or from a file: who judges whom, and nothing twice."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import part, replace

import zoo
from harness.apps.compare import compare, judge
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.golden.store import Rankings
from harness.learning.prompts import tuning_of
from harness.measure import bench
from harness.measure.settings import Plan
from harness.records.record import Record, read_records, write_records
from zoo.core.recipes import TuneConfig
from zoo.loading import towers
from zoo.loading.clip import ClipParts

ARCH = "clip_vit_b16"
WHERE: dict[str, Any] = {"models": (ARCH,), "datasets": ("toy",), "limit": None, "keeps": (0.5,)}
SHOTS: dict[str, Any] = {"shots": (0, 1, 2), "seeds": 2, "num_tokens": 4}
PLAN = Plan(**WHERE, **SHOTS, methods=("random", "golden"), batches=())


@pytest.fixture(autouse=True)
def _ranked(benchmark: None, shipped: Callable[..., Rankings]) -> None:
    shipped()


def all_of(plan: Plan, known: Sequence[Record] = ()) -> list[Record]:
    return [record for group in compare(plan, known, Progress()) for record in group]


def told(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    return [(r.method, r.shots, r.seed, r.tuning, r.prompt_tokens) for r in records]


def test_a_record_per_row_shots_and_seed_and_the_test_images_are_run_once(tuner, runs):
    groups = list(compare(replace(PLAN, seed=5), [], Progress()))
    rows = ["dense", "random", "golden"]
    assert told(groups[0]) == [(m, 0, 5, None, None) for m in rows]
    for k in (1, 2):
        assert told(groups[k]) == [(m, k, s, "t", 4) for s in (5, 6) for m in rows]
    assert runs == [(rows, 16)]  # for all five
    seeds = [(c["shots"], c["seed"], c["config"].seed) for c in tuner.calls]
    assert seeds == [(1, 5, 5), (1, 6, 6), (2, 5, 5), (2, 6, 6)]
    for call in tuner.calls:
        assert call["rows"] == [ARCH, f"{ARCH}_random50"]
        assert (call["config"].tokens, call["config"].count) == ("t", 4)


def by_hand(vit: zoo.ReducedViT, words: torch.Tensor, parts: ClipParts, toy: Dataset) -> list:
    right = []
    for example in toy.split("test"):
        if example.label < 3:  # the others can't be named
            with torch.no_grad():
                feature = vit(parts.preprocess(example.image)[None])
            right.append(int((feature @ words[:3].T).argmax()) == example.label)
    return right


def test_each_row_is_judged_by_its_own_text_and_the_oracle_by_the_dense_ones(tuner, dense, parts, toy):
    before, after = compare(replace(PLAN, shots=(0, 2), seeds=1), [], Progress())
    found = {record.method: record for record in after}
    random = zoo.reduce(dense, method="random", keep=0.5).eval()
    for method, key, vit in (("dense", ARCH, dense), ("random", f"{ARCH}_random50", random)):
        own = tuner.one(vit, key, 2, 0, TuneConfig(tokens="t", count=4))
        assert found[method].correct.tolist() == by_hand(vit, own.classifier, parts, toy)
        assert found[method].method_config["prompts"] == own.digest
    digests = {method: found[method].method_config["prompts"] for method in found}
    assert digests["golden"] == digests["dense"] != digests["random"]
    for zero, tuned in zip(before, after, strict=True):
        assert "prompts" not in zero.method_config
        for name in ("gflops", "params", "tokens_per_block", "tau", "cosine_distance"):
            assert part(zero, name) == part(tuned, name)


def test_known_prompts_are_not_judged_again_and_others_are(tuner, runs, tmp_path):
    write_records(tmp_path / "records.jsonl", all_of(PLAN))
    known = read_records(tmp_path / "records.jsonl")
    runs.clear()
    assert all_of(PLAN, known) == known
    assert all_of(replace(PLAN, seeds=1, seed=1, shots=(2,)), known) == known[-3:]
    assert runs == []
    for change in ({"seeds": 3}, {"num_tokens": 5}, {"tokens": "probe"}, {"shots": (3,)}):
        assert set(map(id, all_of(replace(PLAN, **change), known))) - set(map(id, known))
    runs.clear()
    tuner.salt = 1  # learned anew
    assert [r in known for r in all_of(PLAN, known)] == [True] * 3 + [False] * 12
    assert len(runs) == 1


@pytest.mark.parametrize(("change", "match"), [
    ({"tokens": "tv"}, "tokens='tv': did you mean 'v'? expected one of t, v, vt, probe"),
    ({"shots": (1, -2)}, "--shots -2: expected 0, which is by text, or a number from 1"),
    ({"num_tokens": 0}, "num_tokens=0: expected an integer in [1, inf)"),
    ({"split": "val"}, "--split val: labelled images of 'toy' for shots come from there"),
])  # fmt: skip
def test_refusals_before_any_run(change, match, monkeypatch):
    monkeypatch.setattr(towers, "create_clip", None)
    with pytest.raises(ValueError, match=re.escape(match)):
        all_of(replace(PLAN, **change))


def test_learned_visual_tokens_are_run_and_counted(tuner, runs, dense, parts, toy, monkeypatch):
    counted, real = [], bench.costs
    monkeypatch.setattr(bench, "costs", lambda rows, *a: counted.append([r.key for r in rows]) or real(rows, *a))
    plan = replace(PLAN, tokens="vt", batches=(1,), rounds=6)
    by_text, *groups = compare(plan, [], Progress())
    assert [record.method for record in by_text] == ["dense", "random", "golden"]
    for shots, group in zip((1, 2), groups, strict=True):
        assert told(group) == [(m, shots, s, "vt", 4) for s in (0, 1) for m in ("dense", "random")]
    assert runs == [(["dense", "random", "golden"], 16)] + [(["dense", "random"], 16)] * 4
    assert counted[1:] == [[ARCH, f"{ARCH}_random50"]]  # once for all shots and seeds
    plain = {record.method: record for record in by_text}
    for record in (record for group in groups for record in group):
        zero = plain[record.method]
        assert record.mean("gflops") > zero.mean("gflops")
        assert record.mean("params") == zero.mean("params") + 4 * 48
        assert record.tokens_per_block == tuple(n + 4 for n in zero.tokens_per_block)
        assert record.mean("final_tokens") == zero.mean("final_tokens")
        assert [entry.batch for entry in record.latency] == [1]
        assert record.latency != zero.latency
    random = zoo.reduce(dense, method="random", keep=0.5).eval()
    own = tuner.one(random, f"{ARCH}_random50", 2, 1, TuneConfig(tokens="vt", count=4, seed=1))
    assert groups[1][3].correct.tolist() == by_hand(own.vit, own.classifier, parts, toy)
    assert groups[1][3].method_config["prompts"] == own.digest


@pytest.mark.parametrize("tokens", ["t", "v"])
def test_a_file_of_prompts_is_judged_beside_dense_and_untuned(tokens, dense, parts, toy, tuner, capsys):
    random = zoo.reduce(dense, method="random", keep=0.5).eval()
    own = tuner.one(random, f"{ARCH}_random50", 2, 7, TuneConfig(tokens=tokens, count=4))
    plan = replace(PLAN, methods=("random",))
    untuned, [record] = judge(plan, own.file.path, Progress())
    assert [(one.method, one.shots) for one in untuned] == [("dense", 0), ("random", 0)]
    assert [one.correct.tolist() for one in untuned] == [r.correct.tolist() for r in all_of(replace(plan, shots=(0,)))]
    assert told([record]) == [("random", 2, 7, tokens, 4)]
    assert (record.mean("diff_to_dense"), record.mean("cosine_distance")) == (None, None)
    assert record.correct.tolist() == by_hand(own.vit, own.classifier, parts, toy)
    assert record.method_config["prompts"] == own.digest
    assert record.tokens_per_block[-1] == 33 + 4 * (tokens == "v")
    for how in (["--shots", "2", "--seed", "1"], ["--prompts", str(own.file.path)]):
        assert main(["eval", "--model", f"{ARCH}_random50", "--dataset", "toy", *how]) == 0
        assert "2 shots, learned" in " ".join(capsys.readouterr().out.split())


def test_prompts_of_other_classes_or_of_no_shots_are_refused(tuner, dense, toy, monkeypatch):
    plan = replace(PLAN, methods=("random",))
    with pytest.raises(FileNotFoundError, match="no prompts at 'gone'"):
        judge(plan, Path("gone"), Progress())
    file = tuner.one(dense, ARCH, 2, 7, TuneConfig(tokens="t", count=4)).file
    monkeypatch.setattr(type(toy), "classes", ("cat", "cow", "house", "zebra"))
    with pytest.raises(ValueError, match="their class 1 is 'dog', not 'cow'"):
        judge(plan, file.path, Progress())
    with pytest.raises(ValueError, match=r"prompts .* don't say what .* shots must be int, got None"):
        tuning_of(replace(file, provenance={}))
