"""Rows with something learned from shots: whose classifier judges whom, and nothing twice."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import zoo
from harness import towers
from harness.cli import main
from harness.datasets.base import Dataset
from harness.golden.store import Rankings, own_store
from harness.measure import compare as module
from harness.measure.compare import compare
from harness.measure.plan import Plan
from harness.progress import Progress
from harness.records import Record, read_records, write_records
from zoo.clip import ClipParts
from zoo.golden import GoldenConfig
from zoo.tune_config import TuneConfig

ARCH = "clip_vit_b16"
PLAN = Plan(
    models=(ARCH,),
    methods=("random", "golden"),
    keeps=(0.5,),
    datasets=("toy",),
    limit=None,
    batches=(),
    shots=(0, 1, 2),
    seeds=2,
    num_tokens=4,
)


@pytest.fixture(autouse=True)
def _miniature(
    parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch, ranked: Callable[..., Rankings]
) -> None:
    monkeypatch.setattr(towers, "create_clip", lambda name: parts)
    monkeypatch.setattr(module, "get_dataset", lambda name: toy)
    store = own_store(f"{ARCH}.openai", "toy", "test", GoldenConfig())
    ranked().write(store.with_name(f"{store.name}.parquet"))


def all_of(plan: Plan, known: Sequence[Record] = (), said: Console | None = None) -> list[Record]:
    return [record for group in compare(plan, known, Progress(said)) for record in group]


def told(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    return [(r.method, r.shots, r.seed, r.tuning, r.prompt_tokens) for r in records]


def test_a_record_per_row_shots_and_seed_and_the_test_images_are_run_once(tuner: Any, runs: list):
    groups = list(compare(replace(PLAN, seed=5), [], Progress()))
    assert [told(group) for group in groups] == [
        [(m, 0, 5, None, None) for m in ("dense", "random", "golden")],
        [(m, 1, s, "t", 4) for s in (5, 6) for m in ("dense", "random", "golden")],
        [(m, 2, s, "t", 4) for s in (5, 6) for m in ("dense", "random", "golden")],
    ]
    assert runs == [(["dense", "random", "golden"], 16)]  # for all five
    assert [(c["shots"], c["seed"], c["config"].seed) for c in tuner.calls] == [
        (1, 5, 5), (1, 6, 6), (2, 5, 5), (2, 6, 6),
    ]  # fmt: skip
    for call in tuner.calls:
        assert call["rows"] == [ARCH, f"{ARCH}_random50"]
        assert (call["config"].tokens, call["config"].count) == ("t", 4)
    facts = {name: tuner.facts[name] for name in ("model", "tag", "weights")}
    assert facts == {"model": ARCH, "tag": "openai", "weights": groups[0][0].weights_sha256}


def by_hand(vit: zoo.ReducedViT, words: torch.Tensor, parts: ClipParts, toy: Dataset) -> list:
    right = []
    for example in toy.split("test"):
        if example.label < 3:  # the others can't be named
            with torch.no_grad():
                feature = vit(parts.preprocess(example.image)[None])
            right.append(int((feature @ words[:3].T).argmax()) == example.label)
    return right


def test_each_row_is_judged_by_its_own_text_and_the_oracle_by_the_dense_ones(
    tuner: Any, dense: zoo.ReducedViT, parts: ClipParts, toy: Dataset
):
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
        for name in ("gflops", "params", "tokens_per_block", "tau", "cosine_to_dense"):
            assert getattr(zero, name) == getattr(tuned, name)


def test_known_prompts_are_not_judged_again_and_others_are(tuner: Any, runs: list, tmp_path: Path):
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


def test_probes_see_every_image_once_whatever_the_shots_and_seeds(runs: list):
    """Nested draws: two shots of a class are among its three. By label, no class is left out."""
    plan = replace(PLAN, tokens="probe", shots=(0, 1, 3, 2))
    groups = list(compare(plan, [], Progress()))
    assert [group[0].image_count for group in groups] == [16, 21, 21, 21]
    assert {told([r])[0][3:] for group in groups[1:] for r in group} == {("probe", None)}
    by_rows = {key: sum(n for rows, n in runs if key in rows) for key in ("dense", "golden")}
    assert by_rows == {"dense": 21 + 12, "golden": 21}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens": "tv"}, "--tokens 'tv': did you mean 'v'? expected one of t, v, vt, probe"),
        ({"tokens": "prob"}, "--tokens 'prob': did you mean 'probe'?"),
        ({"shots": (1, -2)}, "--shots -2: expected 0, which is by text, or a number from 1"),
        ({"seeds": 0}, "--seeds 0: expected a number from 1"),
        ({"num_tokens": 0}, "--num-tokens 0: expected a number from 1"),
        ({"split": "val"}, "--split val: labelled images of 'toy' for shots come from there"),
        ({"split": "train"}, "--split train: labelled images of 'toy' for shots come from there"),
        ({"shots": (4,)}, "4 shots asked for, but class 'cat' of 'toy' has 3 training images"),
    ],
)
def test_refusals_before_anything_is_run(
    change: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(towers, "create_clip", None)
    with pytest.raises(ValueError, match=re.escape(match)):
        all_of(replace(PLAN, **change))


def test_the_command_shows_means_and_shots_side_by_side(
    tuner: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = f"compare --models {ARCH} --datasets toy --keeps 0.5 --methods random golden"
    command += " --shots 0 1 2 2 --seeds 2 --full --batches --output"
    assert main([*command.split(), str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("mean of 2 seeds") == 2
    assert out.count("toy test, top-1 by shots, learned text tokens (16)") == 1
    assert len(read_records(tmp_path / "records.jsonl")) == 3 * (1 + 2 * 2)
    for name in ("table.md", "summary.md", "report.html"):
        shown = (tmp_path / name).read_text("utf-8")
        heading = "toy test, top-1 by shots, learned text tokens (16)"
        named = 2 if name == "report.html" else 1  # its contents name it, too
        assert shown.count(heading) == named
        assert "mean of seeds 0, 1" in shown
    assert "2 shots, learned text tokens" in (tmp_path / "accuracy_gflops.svg").read_text("utf-8")
    command = f"eval {ARCH}_random50 --dataset toy --shots 2 --seed 1"
    assert main(command.split()) == 0
    assert "2 shots, learned text tokens (16)" in " ".join(capsys.readouterr().out.split())
