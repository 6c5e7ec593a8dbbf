"""Rows with learned visual tokens, and prompts from a file: run, counted and judged alone."""

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
from harness.measure import bench
from harness.measure import compare as module
from harness.measure.compare import compare, judge
from harness.measure.plan import Plan, tuning_of
from harness.progress import Progress
from harness.records import Record
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


def told(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    return [(r.method, r.shots, r.seed, r.tuning, r.prompt_tokens) for r in records]


def by_hand(vit: zoo.ReducedViT, words: torch.Tensor, parts: ClipParts, toy: Dataset) -> list:
    right = []
    for example in toy.split("test"):
        if example.label < 3:  # the others can't be named
            with torch.no_grad():
                feature = vit(parts.preprocess(example.image)[None])
            right.append(int((feature @ words[:3].T).argmax()) == example.label)
    return right


@pytest.mark.parametrize("tokens", ["v", "vt"])
def test_learned_visual_tokens_are_run_and_counted(
    tokens: str, tuner: Any, runs: list, dense: zoo.ReducedViT, parts: ClipParts, toy: Dataset,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    counted: list[list[str]] = []
    real = bench.costs
    monkeypatch.setattr(
        bench, "costs", lambda rows, *a: counted.append([r.key for r in rows]) or real(rows, *a)
    )
    console = Console(record=True, width=300)
    plan = replace(PLAN, tokens=tokens, batches=(1,), rounds=1)
    by_text, *groups = compare(plan, [], Progress(console))
    assert [record.method for record in by_text] == ["dense", "random", "golden"]
    assert [told(g) for g in groups] == [
        [(m, k, s, tokens, 4) for s in (0, 1) for m in ("dense", "random")] for k in (1, 2)
    ]
    assert console.export_text().count(f"no golden rows with --tokens {tokens} and shots") == 1
    assert runs[0] == (["dense", "random", "golden"], 16)
    assert runs[1:] == [(["dense", "random"], 16)] * 4
    assert counted[1:] == [[ARCH, f"{ARCH}_random50"]]  # once for all shots and seeds
    plain = {record.method: record for record in by_text}
    for record in (record for group in groups for record in group):
        zero = plain[record.method]
        assert record.gflops > zero.gflops
        assert record.params == zero.params + 4 * 48
        assert record.tokens_per_block == tuple(n + 4 for n in zero.tokens_per_block)
        assert record.final_tokens == zero.final_tokens
        assert [entry.batch for entry in record.latency] == [1]
        assert record.latency != zero.latency
    random = zoo.reduce(dense, method="random", keep=0.5).eval()
    config = TuneConfig(tokens=tokens, count=4, seed=1)
    own = tuner.one(random, f"{ARCH}_random50", 2, 1, config)
    assert groups[1][3].correct.tolist() == by_hand(own.vit, own.classifier, parts, toy)
    assert groups[1][3].method_config["prompts"] == own.digest
    features = [vit(torch.zeros(1, 3, 64, 64)) for vit in (own.vit, random)]
    assert not torch.allclose(*features, atol=0.1)


@pytest.mark.parametrize("tokens", ["t", "v"])
def test_a_file_of_prompts_is_judged_alone(
    tokens: str, dense: zoo.ReducedViT, parts: ClipParts, toy: Dataset, tuner: Any,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    random = zoo.reduce(dense, method="random", keep=0.5).eval()
    own = tuner.one(random, f"{ARCH}_random50", 2, 7, TuneConfig(tokens=tokens, count=4))
    [record] = judge(replace(PLAN, methods=("random",)), own.file.path, Progress())
    assert told([record]) == [("random", 2, 7, tokens, 4)]
    assert (record.diff_to_dense, record.cosine_to_dense) == (None, None)
    assert record.correct.tolist() == by_hand(own.vit, own.classifier, parts, toy)
    assert record.method_config["prompts"] == own.digest
    assert record.tokens_per_block[-1] == 33 + 4 * (tokens == "v")
    command = ["eval", f"{ARCH}_random50", "--dataset", "toy", "--prompts", str(own.file.path)]
    assert main(command) == 0
    assert "2 shots, learned" in " ".join(capsys.readouterr().out.split())


def test_prompts_of_other_classes_or_of_no_shots_are_refused(
    tuner: Any, dense: zoo.ReducedViT, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = replace(PLAN, methods=("random",))
    with pytest.raises(FileNotFoundError, match="no prompts at 'gone'"):
        judge(plan, Path("gone"), Progress())
    file = tuner.one(dense, ARCH, 2, 7, TuneConfig(tokens="t", count=4)).file
    monkeypatch.setattr(type(toy), "classes", ("cat", "cow", "house", "zebra"))
    with pytest.raises(ValueError, match="their class 1 is 'dog', not 'cow'"):
        judge(plan, file.path, Progress())
    with pytest.raises(ValueError, match=r"prompts .* don't say their shots"):
        tuning_of(replace(file, provenance={}))
