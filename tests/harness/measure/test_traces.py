"""Traces of a run: what is stored is what models did, and files prove that they are whole."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

import zoo
from harness.base.store import seal
from harness.base.terminal import Progress
from harness.measure import tracing
from harness.measure.bench import compare
from harness.measure.plan import Plan
from harness.records import traces as stored
from harness.records.record import Record
from harness.records.statistics import kendall_tau

ARCH = "clip_vit_b16"
WHERE: dict[str, Any] = {"models": (ARCH,), "datasets": ("toy",), "limit": None, "batches": ()}
PLAN = Plan(**WHERE, methods=("random",), keeps=(0.5,))
Measure = Callable[..., list[Record]]
PAGE = (Path(__file__).parents[3] / "docs" / "internals.md").read_text("utf-8").partition("\n## Traces\n")[2]
PAGE = PAGE.partition("\n## ")[0]
pytestmark = pytest.mark.usefixtures("benchmark")


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Measure into a folder, other fields of the plan or of the tracer as they are given."""

    def call(known: Any = (), console: Console | None = None, **changes: Any) -> list[Record]:
        facts = {"run": tmp_path / "run", "images": 64, "progress": Progress(console)}
        facts |= {name: changes.pop(name) for name in ("run", "images", "thumbnails") & changes.keys()}
        tracer = tracing.Tracer(**facts)
        return list(chain.from_iterable(compare(replace(PLAN, **changes), known, tracer.progress, tracer)))

    return call


def some(facts: stored.Facts) -> stored.RowTraces:
    """Return traces of five images by EViT, the third without a ranking."""
    drawn = np.random.default_rng(0)
    importance = np.argsort(drawn.random((5, 16)), axis=1).astype(np.int16)
    importance[2] = -1
    return stored.RowTraces(
        facts=replace(facts, model="clip_vit_b16_evit60", method="evit", keep=0.6, method_config={"reduce_at": [3, 6]}),
        grid=(4, 4),
        image_ids=tuple(f"image/{i}" for i in range(5)),
        labels=("cat",) * 5,
        predicted=("cat", "dog", "cat", "cat", "cat"),
        importance=importance,
        left=drawn.integers(-1, 12, (5, 16)).astype(np.int16),
        token=drawn.integers(-1, 16, (5, 16)).astype(np.int16),
    )


def put(run: Path, row: stored.RowTraces, content: bytes | None = None) -> Path:
    path = run / "traces" / row.facts.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(row.encode() if content is None else content)
    return path


def test_what_is_written_is_read_and_taken_in_any_order(tmp_path, facts):
    row = some(facts)
    put(tmp_path, row)
    [copy] = stored.read_traces(str(tmp_path))
    assert copy.encode() == row.encode()
    assert (copy.facts, copy.correct) == (row.facts, (True, False, True, True, True))
    assert copy.ranked.tolist() == [True, True, False, True, True]
    assert copy.left.dtype == np.int16
    assert np.array_equal(copy.take(["image/3", "image/1"]).left, row.left[[3, 1]])
    table = pd.read_parquet(tmp_path / "traces")
    assert list(table.columns) == re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert table["importance"][2] is None
    assert np.stack(table["left"]).tolist() == row.left.tolist()


def test_names_tell_facts_apart_but_for_what_is_shared(facts, tmp_path):
    facts = replace(facts, dataset="folder-my cats/and dogs", method_config={"keep": 0.6})
    assert re.fullmatch(r"folder-my-cats-and-dogs-test-\w+-[0-9a-f]{12}\.parquet", facts.name)
    changes = {"keep": 0.5, "weights_sha256": "cd" * 32, "method_config": {}, "dtype": "bfloat16"}
    assert len({facts.name} | {replace(facts, **{name: value}).name for name, value in changes.items()}) == 5
    assert len(replace(facts, dataset="x" * 400).name) < 255
    golden = replace(facts, method=stored.RANKING, method_config={"window": 2})
    assert golden.name == replace(golden, method_config={"window": 3}).name == facts.ranking_name
    same = {"method": "tome", "model": "clip_vit_b16_tome50", "keep": 0.5, "dtype": "bfloat16"}
    changes = ({}, same, {"dataset_revision": "other"}, {"weights_sha256": "0" * 64}, {"split": "val"})
    own, shared, *others = (stored.thumbnails_path(tmp_path, replace(facts, **change)) for change in changes)
    assert own == shared
    assert len({own, *others}) == 4


def test_torn_files_and_files_of_others_are_refused(facts, tmp_path):
    row = some(facts)
    path = put(tmp_path, row, row.encode()[:-1])
    with pytest.raises(ValueError, match=rf"{path.name}' is broken \(cut off.*with --fresh"):
        stored.read_traces(tmp_path)
    told: list[str] = []
    put(tmp_path, replace(row, facts=facts))
    assert [row.facts for row in stored.read_traces(tmp_path, left_out=told.append)] == [facts]
    assert len(told) == 1
    stored.Thumbnails(jpeg={"a": b"b"}).write(tmp_path, facts)
    small = stored.thumbnails_path(tmp_path, facts)
    small.write_bytes(small.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is broken \(cut off.*with --fresh"):
        stored.Thumbnails.read(tmp_path, facts)
    table = pq.read_table(pa.BufferReader(row.encode()))
    own = json.loads(table.schema.metadata[b"traces"])["facts"] | {"colour": "blue"}
    with pytest.raises(ValueError, match="unknown field 'colour'"):
        stored.RowTraces.decode(seal(table, "traces", {"facts": own, "grid": [4, 4]}))
    put(tmp_path, row, seal(pa.table({"image_id": ["a"]}), "thumbnails", {}))
    with pytest.raises(ValueError, match="a Parquet file, but not of traces"):
        stored.read_traces(tmp_path)
    put(tmp_path, row)
    path.rename(path.with_name("other.parquet"))
    with pytest.raises(ValueError, match=r"other.parquet' holds traces of another row"):
        stored.read_traces(tmp_path)


def by_model(run: Path) -> dict[str, stored.RowTraces]:
    return {row.facts.model + " golden" * row.golden: row for row in stored.read_traces(run)}


@pytest.mark.parametrize("method", ["evit", "tome"])
def test_what_is_stored_is_what_the_model_does(method, measure, dense, parts, toy, tmp_path):
    measure(methods=(method,))
    row = by_model(tmp_path / "run")[f"clip_vit_b16_{method}50"]
    model = zoo.reduce(dense, method=method, keep=0.5).eval()
    examples = {example.image_id: example for example in toy.split("test")}
    assert len(row) == 16
    for i, name in enumerate(row.image_ids):
        trace = model.trace(parts.preprocess(examples[name].image)[None])
        assert np.argsort(-row.importance[i], kind="stable").tolist() == trace.ranking[0].tolist()
        for patch in range(64):
            lost = [r.block for r in trace.reductions if patch not in r.after[0].tolist()]
            assert row.left[i, patch] == (lost[0] if lost else -1)
        assert (row.left[i] == -1).sum() == trace.final_tokens == len(set(row.token[i].tolist()) - {-1})
        assert row.labels[i] == toy.classes[examples[name].label]
        kept = row.left[i] == -1
        assert (row.token[i, kept] == np.flatnonzero(kept)).all()
        if method == "tome":  # whose patches are all in a token that is there
            assert kept[row.token[i]].all()
        else:
            assert (row.token[i, ~kept] == -1).all()


def test_answers_and_agreement_are_the_records(measure, shipped, toy, tmp_path):
    """All images are traced, so the means are of the same images."""
    shipped()
    records = measure(methods=("evit", "golden", "random", "tome"), keeps=(0.6, 0.5))
    assert len(records) == 9
    rows = by_model(tmp_path / "run")
    assert len(rows) == len(records) + 1
    truth, dense = rows["clip_vit_b16 golden"], rows["clip_vit_b16"]
    assert set(truth.correct) == {None}
    assert ((dense.left == -1) & (dense.token == np.arange(64))).all()
    assert not dense.ranked.any()
    ids, labels = toy.split("test").image_ids, toy.labels("test")
    judged = [name for name, label in zip(ids, labels, strict=True) if label < 3]
    for record in records:
        row = rows[record.model]
        assert list(row.correct) == [record.correct[judged.index(n)] for n in row.image_ids]
        if record.method != "dense":
            own = row.take(truth.image_ids).importance
            tau = kendall_tau(truth.importance, own).mean()
            assert tau == pytest.approx(record.mean("tau"), abs=1e-12)
    chosen = [record for record in records if record.method == "tome"]
    methods = [row.facts.method for row in stored.read_traces(tmp_path / "run", chosen)]
    assert methods == [stored.RANKING, "tome", "tome"]
    others = [replace(record, weights_sha256="0" * 64) for record in chosen]
    assert stored.read_traces(tmp_path / "run", others) == []


def test_a_second_run_writes_nothing_and_tells_what_has_no_traces(measure, shipped, tmp_path):
    shipped()
    known = measure()
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*.parquet")}
    console = Console(record=True, width=300)
    assert measure(known=known, console=console) == known
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before
    measure(known=known, console=console, run=tmp_path / "other")
    assert console.export_text().count("traces of 16 images") == 1


@pytest.mark.usefixtures("tuner")
def test_only_the_first_seed_is_traced_and_each_number_of_shots(measure, tmp_path):
    measure(shots=(0, 1), seeds=2, tokens="vt", num_tokens=2, seed=3)
    rows = [(row.facts.shots, row.facts.seed, row.facts.tuning) for row in stored.read_traces(tmp_path / "run")]
    assert rows == [(0, 3, None)] * 2 + [(1, 3, "vt")] * 2


def test_a_number_below_zero_and_a_run_without_traces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--traces -1: expected a number of images, 0 for none"):
        tracing.Tracer(run=tmp_path, progress=Progress(), images=-1)
    words = f"run '{tmp_path}' has no folder 'traces'; `compare --fresh --output {tmp_path}`"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        stored.read_traces(tmp_path)


def test_images_without_labels_are_traced_without_answers(measure, unlabelled, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.measure.bench.get_dataset", lambda name: unlabelled)
    measure(methods=("evit",), images=4)
    dense, evit = stored.read_traces(tmp_path / "run")
    assert evit.labels == evit.predicted == evit.correct == (None,) * 4
    assert ((evit.left == -1).sum(axis=1) == 32).all()
    assert len(stored.Thumbnails.read(tmp_path / "run", dense.facts).jpeg) == 4


def preprocess_wide(image: Image.Image) -> torch.Tensor:
    """Crop to twice as wide as high, and normalise by other constants than usual."""
    pixels = np.asarray(image.resize((600, 300)), dtype=np.float32) / 255
    return torch.from_numpy((pixels - 0.3) / np.array([0.1, 0.2, 0.4], np.float32)).permute(2, 0, 1)


def test_traced_images_have_small_copies_of_what_the_model_sees(measure, toy, tmp_path, monkeypatch):
    run = tmp_path / "run"
    measure(images=7, thumbnails=False)
    assert [path.name for path in run.iterdir()] == ["traces"]
    row = stored.read_traces(run)[0]
    assert stored.Thumbnails.read(run, row.facts).jpeg == {}
    split = toy.split("test").subset([5])
    tracer = tracing.Tracer(run=run, progress=Progress())
    tracer._keep_thumbnails(row.facts, split, preprocess_wide, lambda done: None)
    [content] = stored.Thumbnails.read(run, row.facts).jpeg.values()
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (224, 112)
        off = np.asarray(image, dtype=np.float32) - np.asarray(split[0].image.resize((224, 112)))
    assert np.abs(off).mean() < 6
    stored.thumbnails_path(run, row.facts).unlink()
    measure(images=4)
    drawn, real = [], tracing.batches
    monkeypatch.setattr(tracing, "batches", lambda s, *how: drawn.append(len(s)) or real(s, *how))
    measure(images=7, methods=("evit",))
    measure(images=5)
    assert drawn == [3]  # those that are there are not drawn again
    thumbnails = stored.Thumbnails.read(run, row.facts)
    assert sorted(thumbnails.jpeg) == sorted(row.image_ids)
    images = {example.image_id: example.image for example in toy.split("test")}
    for name in row.image_ids:
        off = thumbnails.view(name) * 255 - np.asarray(images[name], dtype=np.float32)
        assert np.abs(off).mean() < 3  # JPEG's error


def test_the_examples_run(measure, shipped, tmp_path, monkeypatch, capsys):
    shipped()
    measure(run=tmp_path / "results", methods=("evit", "golden", "random", "tome"))
    monkeypatch.chdir(tmp_path)
    for example in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S):
        exec(example, {})
        assert capsys.readouterr().out
