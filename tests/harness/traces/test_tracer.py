"""What compare stores of single images is what the models did, and what records say."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import zoo
from harness.agreement import kendall_tau
from harness.datasets.base import Dataset
from harness.golden.store import Rankings, own_store
from harness.progress import Progress
from harness.records import Record
from harness.traces import Facts, RowTraces, Tracer, lacking, read_traces
from harness.traces.row import UNRANKED
from zoo.clip import ClipParts
from zoo.golden import GoldenConfig

Measure = Callable[..., list[Record]]


def by_model(run: Path) -> dict[str, RowTraces]:
    return {row.facts.model + " golden" * row.golden: row for row in read_traces(run)}


@pytest.mark.parametrize("method", ["evit", "tome", "random"])
def test_what_is_stored_is_what_the_model_does(
    method: str, measure: Measure, dense: zoo.ReducedViT, parts: ClipParts, toy: Dataset,
    tmp_path: Path,
):  # fmt: skip
    measure(methods=(method,), keeps=(0.5,))
    row = by_model(tmp_path / "run")[f"clip_vit_b16_{method}50"]
    model = zoo.reduce(dense, method=method, keep=0.5).eval()
    examples = {example.image_id: example for example in toy.split("test")}
    assert len(row) == 16
    for i, name in enumerate(row.image_ids):
        trace = model.trace(parts.preprocess(examples[name].image)[None])
        order = np.argsort(-row.importance[i], kind="stable")
        assert order.tolist() == trace.ranking[0].tolist()
        for patch in range(64):
            lost = [r.block for r in trace.reductions if patch not in r.after[0].tolist()]
            assert row.left[i, patch] == (lost[0] if lost else -1)
        assert row.kept[i].sum() == trace.final_tokens == len(set(row.token[i].tolist()) - {-1})
        assert row.labels[i] == toy.classes[examples[name].label]
        kept = row.kept[i]
        assert (row.token[i, kept] == np.flatnonzero(kept)).all()
        if method == "tome":  # whose patches are all in a token that is there
            assert kept[row.token[i]].all()
        else:
            assert (row.token[i, ~kept] == -1).all()


def test_the_dense_row_keeps_all_and_ranks_nothing(measure: Measure, tmp_path: Path):
    measure()
    row = by_model(tmp_path / "run")["clip_vit_b16"]
    assert row.kept.all()
    assert (row.token == np.arange(64)).all()
    assert not row.ranked.any()
    assert (row.importance == UNRANKED).all()


def test_answers_are_those_of_the_record(measure: Measure, golden: Rankings, toy: Dataset,
                                         tmp_path: Path):  # fmt: skip
    records = measure(images=9)
    judged = [name for name, label in zip(toy.split("test").image_ids, toy.labels("test"),
                                          strict=True) if label < 3]  # fmt: skip
    found = by_model(tmp_path / "run")
    for record in records:
        row = found[record.model]
        wanted = [bool(record.correct[judged.index(name)]) for name in row.image_ids]
        assert list(row.correct) == wanted
        assert (row.facts.weights_sha256, row.facts.keep) == (record.weights_sha256, record.keep)
    assert set(found["clip_vit_b16 golden"].correct) == {None}
    assert len(found) == len(records) + 1


def test_tau_with_the_stored_golden_ranking_is_the_records(
    measure: Measure, golden: Rankings, tmp_path: Path
):
    """All images are traced, so the means are of the same images."""
    records = measure()
    found = by_model(tmp_path / "run")
    truth = found["clip_vit_b16 golden"]
    for record in records[1:]:
        row = found[record.model].take(truth.image_ids)
        mean = kendall_tau(truth.importance, row.importance).mean()
        assert mean == pytest.approx(record.tau, abs=1e-12)
    assert len(records) == 9


def test_images_without_a_golden_ranking_have_none(
    measure: Measure, ranked: Callable[..., Rankings], golden: Rankings, tmp_path: Path
):
    store = own_store("clip_vit_b16.openai", "toy", "test", GoldenConfig())
    ranked(count=10).write(store.with_name(f"{store.name}.parquet"))
    measure(methods=("random",))
    truth = by_model(tmp_path / "run")["clip_vit_b16 golden"]
    some = [int(name.rpartition("-")[2]) < 10 for name in truth.image_ids]
    assert truth.ranked.tolist() == some
    assert 0 < sum(some) < len(some)


def test_fewer_images_are_the_first_of_more_whatever_the_limit(measure: Measure, tmp_path: Path):
    told = {"methods": ("random",), "keeps": (0.5,)}
    measure(run=tmp_path / "a", images=12, **told)
    measure(run=tmp_path / "b", images=5, **told)
    measure(run=tmp_path / "c", images=5, limit=9, **told)
    a, b, c = (by_model(tmp_path / name)["clip_vit_b16"] for name in "abc")
    assert a.image_ids[:5] == b.image_ids == c.image_ids
    assert len(set(a.labels[:3])) == 3  # classes take turns


def test_a_second_run_writes_nothing_and_says_nothing(measure: Measure, golden: Rankings,
                                                      tmp_path: Path):  # fmt: skip
    known = measure()
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*.parquet")}
    console = Console(record=True, width=300)
    assert measure(known=known, console=console) == known
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before
    assert "traces" not in console.export_text()


def test_records_used_again_without_traces_are_told_with_what_makes_them(
    measure: Measure, tmp_path: Path
):
    known = measure(images=0)
    assert not (tmp_path / "run").exists()
    assert lacking(tmp_path / "run", known) == known
    console = Console(record=True, width=300)
    measure(known=known, console=console)
    said = console.export_text()
    assert "7 of 7 rows have no traces of 16 images, as their records are used again" in said
    assert "the same command with --fresh makes them" in said
    measure(images=4)
    assert lacking(tmp_path / "run", known) == []
    console = Console(record=True, width=300)
    measure(known=known, images=5, console=console)  # more than there are
    assert "no traces of 5 images" in console.export_text()


def test_other_conditions_are_other_files(measure: Measure, tmp_path: Path):
    measure(methods=("random",), keeps=(0.5,))
    measure(methods=("random",), keeps=(0.5,), dtype="bfloat16")
    measure(methods=("random",), keeps=(0.5,), limit=9)
    rows = read_traces(tmp_path / "run")
    assert len({row.facts.name for row in rows}) == len(rows) == 6


def test_only_the_first_seed_is_traced_and_each_number_of_shots(
    measure: Measure, tuner: object, tmp_path: Path
):
    told = {"methods": ("random",), "keeps": (0.5,), "tokens": "vt", "num_tokens": 2, "seed": 3}
    measure(shots=(0, 1), seeds=2, **told)
    rows = read_traces(tmp_path / "run")
    assert [(row.facts.shots, row.facts.seed) for row in rows] == [(0, 3)] * 2 + [(1, 3)] * 2
    assert [row.facts.tuning for row in rows] == [None, None, "vt", "vt"]


def test_the_same_run_gives_the_same_bytes(measure: Measure, golden: Rankings, tmp_path: Path):
    measure(run=tmp_path / "a")
    measure(run=tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.parquet"))
    assert len(files) == 9 + 1 + 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_reading_takes_the_rows_of_records_and_their_golden_ranking(
    measure: Measure, golden: Rankings, tmp_path: Path
):
    records = measure()
    chosen = [record for record in records if record.method == "tome"]
    rows = read_traces(tmp_path / "run", chosen)
    assert [row.facts.method for row in rows] == ["golden ranking", "tome", "tome"]
    assert [row.golden for row in rows] == [True, False, False]
    others = [replace(record, weights_sha256="0" * 64) for record in chosen]
    assert read_traces(tmp_path / "run", others) == []


def test_a_golden_ranking_made_otherwise_takes_the_others_place(
    measure: Measure, ranked: Callable[..., Rankings], golden: Rankings, tmp_path: Path
):
    measure(methods=("random",))
    before = by_model(tmp_path / "run")["clip_vit_b16 golden"]
    store = own_store("clip_vit_b16.openai", "toy", "test", GoldenConfig())
    ranked(window=3).write(store.with_name(f"{store.name}.parquet"))
    records = measure(methods=("random",))
    after = by_model(tmp_path / "run")["clip_vit_b16 golden"]
    assert before.facts.method_config["window"] == 2
    assert after.facts.method_config["window"] == 3
    assert before.facts.name == after.facts.name
    assert len(read_traces(tmp_path / "run")) == len(records) + 1


def test_a_torn_file_of_another_row_does_not_matter(measure: Measure, tmp_path: Path):
    records = measure(methods=("random", "evit"), keeps=(0.5,))
    [torn] = [record for record in records if record.method == "evit"]
    path = tmp_path / "run" / "traces" / Facts.of(torn).name
    path.write_bytes(path.read_bytes()[:50])
    others = [record for record in records if record is not torn]
    assert len(read_traces(tmp_path / "run", others)) == 2
    with pytest.raises(ValueError, match="delete it, or make it again by the same `compare`"):
        read_traces(tmp_path / "run", records)


def test_a_number_of_images_below_zero_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="--traces -1: expected a number of images, 0 for none"):
        Tracer(run=tmp_path, progress=Progress(), images=-1)


def test_a_run_without_traces_says_what_makes_them(tmp_path: Path):
    words = f"run '{tmp_path}' has no folder 'traces'; `compare --fresh --output {tmp_path}`"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        read_traces(tmp_path)
