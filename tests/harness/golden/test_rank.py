"""Rankings of any images by any tower: right, resumable, and told apart by what made them."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from rich.console import Console

import zoo
from harness.base.store import Store, shard_path, shard_paths
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.datasets.few_shot import turns
from harness.golden import rank as module
from harness.golden.budget import Point
from harness.golden.rank import Ranked, RankJob, Source, ahead
from harness.golden.store import Rankings, find_rankings
from harness.models.towers import Tower, text_classifier
from zoo.core.digests import fingerprint
from zoo.loading.clip import ClipParts
from zoo.ranking.golden import SCORES, GoldenConfig, GoldenEngine

Run = Callable[..., Ranked]
SPARSE = GoldenConfig(window=2, stride=2)


@pytest.mark.parametrize("score", SCORES)
def test_ranks_like_one_call_on_all_images(score: str, run, parts, toy, dense, named):
    whole = toy.split("test")
    split = whole.subset(turns(whole.labels)[:10])
    config = GoldenConfig(score=score, window=2, stride=2)
    found = Rankings.read(run(config).path)
    assert found.image_ids == split.image_ids
    assert found.labels.tolist() == split.labels.tolist()
    images = torch.stack([parts.preprocess(example.image) for example in split])
    engine = GoldenEngine(dense, config, text=text_classifier(parts, toy)[0], scale=20.0)
    exact = engine.importance(images, torch.from_numpy(split.labels)).numpy()
    assert np.allclose(found.importance + found.least[:, None], exact, rtol=2e-3, atol=2e-6)
    assert np.ptp(exact, axis=1).max() > 1e-4
    for importance, ranking in zip(exact, found.ranking, strict=True):
        assert (np.diff(importance[ranking]) <= 1e-6).all()


def test_lands_where_compare_looks(run: Run, toy: Dataset, dense: zoo.ReducedViT, tmp_path):
    done = run()
    assert done == (done.path, 10, 21)
    found = find_rankings("clip_vit_b16.openai", "toy", "test")
    source = {"dataset": "toy", "revision": toy.revision, "split": "test"}
    tower = {"model": "clip_vit_b16.openai", "weights": fingerprint(dense)}
    found.require(**source, **tower, **asdict(SPARSE), dtype="float32", batch=16)
    assert found.provenance.versions["torch"] == version("torch")
    assert found.image_ids == Rankings.read(done.path).image_ids
    assert run(out=tmp_path / "mine").path == tmp_path / "mine"
    assert Rankings.read(tmp_path / "mine").image_ids == found.image_ids


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("part-*")}


@pytest.mark.parametrize("options", [{}, {"action": "merge"}], ids=str)
def test_several_scores_are_ranked_in_the_passes_of_one(
    options: dict, run: Run, counted: list[int], named: None, tmp_path
):
    config = GoldenConfig(window=2, stride=2, **options)
    assert run(config, scores=SCORES, out=tmp_path / "all") == (tmp_path / "all" / "preservation", 10, 21)
    assert counted == [4, 4, 2]
    for score in SCORES:
        alone = run(GoldenConfig(score=score, window=2, stride=2, **options), out=tmp_path / score).path
        assert files_of(alone) == files_of(tmp_path / "all" / score)
        assert len(files_of(alone)) == 3


def test_stores_that_were_begun_differently_go_on_as_they_began(run: Run, counted: list[int], named: None, tmp_path):
    run(GoldenConfig(score="label", window=2, stride=2), limit=4, batch=5, out=tmp_path / "r" / "label")
    run(limit=4, batch=7, out=tmp_path / "r" / "preservation")
    counted.clear()
    run(scores=SCORES, batch=None, out=tmp_path / "r")
    batches = [Rankings.read(tmp_path / "r" / score).provenance.batch for score in SCORES]
    assert batches == [7, 5, 7]
    assert counted == [4, 4, 2, 4, 2]  # confidence, both, both, label, label


def test_a_greedy_search_ranks_by_one_score_at_a_time(run: Run, counted: list[int], named: None, tmp_path):
    config, console = GoldenConfig(window=2, stride=2, greedy=32), Console(record=True, width=300)
    run(config, scores=("label",), limit=2, out=tmp_path / "r", progress=Progress(console))
    assert counted == [2, 2]
    said = "--greedy 32 removes by its score: preservation, label are ranked one by one"
    assert said in console.export_text()
    for score in ("preservation", "label"):
        Rankings.read(tmp_path / "r" / score).require(score=score, greedy=32)


def test_stores_in_the_users_cache_whose_shards_vanish(run: Run, named: None, toy, monkeypatch):
    monkeypatch.setattr(Store, "write", lambda *_: None)
    with pytest.raises(ValueError, match=r"3 shards have vanished from '.*toy-test-b3w2s2'"):
        run(scores=("confidence",))
    with pytest.raises(ValueError, match="score='lable': did you mean 'label'"):
        RankJob(model="clip_vit_b16", source=Source.of(toy, "test"), scores=("lable",))


def test_a_larger_limit_redoes_only_the_last_shard(run: Run, counted: list[int], tmp_path):
    run(out=tmp_path / "r", limit=6)
    assert counted == [4, 2]
    first = shard_path(tmp_path / "r", 0).stat().st_mtime_ns
    assert run(out=tmp_path / "r", limit=9).images == 9
    assert counted == [4, 2, 4, 1]
    assert shard_path(tmp_path / "r", 0).stat().st_mtime_ns == first
    assert run(out=tmp_path / "r", limit=5).images == 5
    assert run(out=tmp_path / "r", limit=None).images == 21
    assert counted == [4, 2, 4, 1, 4, 4, 4, 1]
    found = Rankings.read(tmp_path / "r")
    assert len(set(found.image_ids)) == 21


def test_variants_come_after_the_images_themselves(run: Run, counted: list[int], toy: Dataset, tmp_path):
    once = toy.split("test").subset(turns(toy.split("test").labels))
    assert run(out=tmp_path / "r", limit=None).images == 21
    assert run(out=tmp_path / "r", limit=None, variants=2) == (tmp_path / "r", 42, 42)
    assert counted == [4, 4, 4, 4, 4, 1, 4, 4, 4, 4, 4, 2]
    assert Rankings.read(tmp_path / "r").image_ids == once.image_ids + once.variant(1).image_ids


@pytest.mark.parametrize(
    "other", [{"score": "confidence"}, {"stride": 1}, {"dtype": "bfloat16"}, {"batch": 8}], ids=str
)
def test_other_settings_never_mix(other: dict, run: Run, named: None, tmp_path):
    """Not in one folder; in another folder they give something else."""
    first = run(out=tmp_path / "r").path
    job = {name: other.pop(name) for name in ("dtype", "batch") if name in other}
    config = GoldenConfig(**{"window": 2, "stride": 2, **other})
    with pytest.raises(ValueError, match=r"made with other settings: .* Use another --output"):
        run(config, out=tmp_path / "r", **job)
    if "batch" not in job:
        again = Rankings.read(run(config, out=tmp_path / "other", **job).path)
        assert again.image_ids == Rankings.read(first).image_ids
        assert not np.array_equal(again.importance, Rankings.read(first).importance)


def test_auto_is_the_precision_of_the_store_else_the_fastest(run: Run, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "precision_on", lambda device, dtype: "bfloat16")
    run(out=tmp_path / "new", dtype="auto")
    assert Rankings.read(tmp_path / "new").provenance.dtype == "bfloat16"
    run(out=tmp_path / "old", dtype="float32", limit=4)
    run(out=tmp_path / "old", dtype="auto")
    assert Rankings.read(tmp_path / "old").provenance.dtype == "float32"


def test_a_damaged_image_ends_the_run_with_its_name_and_finished_shards_stay(run: Run, tmp_path, draw_pictures):
    draw_pictures(tmp_path / "holiday", 9)
    last = int(turns(np.full(9, -1))[-1])
    (tmp_path / "holiday" / f"{last}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{last}.png"):
        run(source=Source.folder(tmp_path / "holiday"), out=tmp_path / "r")
    assert sorted(shard_paths(tmp_path / "r")) == [0, 1]


def test_too_little_memory_names_a_smaller_batch(run: Run, monkeypatch):
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(GoldenEngine, "importances", full)
    with pytest.raises(ValueError, match=r"out of memory on cpu with --batch 16: try --batch 8"):
        run()


@pytest.mark.parametrize("score", ["label", "confidence"])
def test_classes_without_words_leave_no_holes_in_rankings(score: str, run: Run):
    """The posterior would be NaN, and so would every importance."""
    match = f"score='{score}' needs every class named, and --skip-unknown-classes leaves out 1 of toy: use"
    with pytest.raises(ValueError, match=match):
        run(GoldenConfig(score=score))


def test_scores_with_classes_need_a_text_tower(run: Run, parts: ClipParts, monkeypatch):
    tower = Tower(parts.model.visual, parts.preprocess, "vit.some", None)
    monkeypatch.setattr(module, "load_tower", lambda name: tower)
    with pytest.raises(ValueError, match=r"'label' needs a text tower.*--model open_clip:ARCH"):
        run(GoldenConfig(score="label"))
    assert run().images == 10


def test_a_folder_of_images_needs_no_labels(run: Run, tmp_path, draw_pictures):
    draw_pictures(tmp_path / "holiday", 5)
    source = Source.folder(tmp_path / "holiday")
    found = Rankings.read(run(source=source, out=tmp_path / "r").path)
    assert len(set(found.image_ids)) == 5
    assert (found.labels == -1).all()
    assert (found.provenance.dataset, found.provenance.split) == ("holiday", "all")
    with pytest.raises(ValueError, match="needs classes, and a folder of images has none"):
        run(GoldenConfig(score="label"), source=source, out=tmp_path / "r")
    with pytest.raises(ValueError, match="--variants 2: the images of 'holiday' can't be drawn anew"):
        run(source=source, variants=2, out=tmp_path / "r")


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"config": GoldenConfig(block=6)}, "block=6: this tower has blocks 0 to 5"),
        ({"config": GoldenConfig(window=9)}, "window=9: larger than the 8 x 8 patch grid"),
        ({"limit": 0}, "--limit 0: expected a number from 1"),
    ],
    ids=str,
)
def test_refusals_leave_no_folder(facts: dict[str, Any], match: str, run: Run, tmp_path):
    with pytest.raises(ValueError, match=match):
        run(**facts, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_budget_picks_by_the_tower_at_hand(run: Run, dense: zoo.ReducedViT, monkeypatch, tmp_path):
    best = Mock(return_value=Point(window=3, stride=2))
    monkeypatch.setattr(module, "best_within_budget", best)
    found = Rankings.read(run(GoldenConfig(block=2), budget=20.0, out=tmp_path / "r").path)
    best.assert_called_once_with(20.0, dense, 2, removal_only=False)
    found.require(block=2, window=3, stride=2, approximate=None)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "one_thread")
def test_workers_rank_by_several_scores_in_one_go(tmp_path):
    """Each score has the store that one process writes."""
    images = "rank --model clip_vit_s14 --dataset emoji --split val --limit 6 --score preservation label confidence"
    command = f"{images} --window 7 --stride 7 --shard-size 2 --batch 8 --dtype float32".split()
    assert main([*command, "--output", str(tmp_path / "one")]) == 0
    assert main([*command, "--output", str(tmp_path / "many"), "--workers", "2"]) == 0
    for score in SCORES:
        alone, together = (files_of(tmp_path / whose / score) for whose in ("one", "many"))
        assert len(alone) == 3
        assert together == alone


@pytest.mark.parametrize("threads", [1, 3])
def test_groups_come_in_order_and_only_the_next_one_is_loaded(threads: int):
    asked: list[int] = []

    def load(item: int) -> int:
        asked.append(item)
        return item * item

    for number, group in enumerate(ahead([range(0, 3), range(3, 6), range(6, 8)], load, threads)):
        assert group == [item * item for item in range(3 * number, min(3 * number + 3, 8))]
        assert set(asked) <= set(range(3 * number + 6))
    assert sorted(asked) == list(range(8))


def test_an_error_comes_where_its_group_would_have_come():
    groups = ahead([[0], [1], [2, 3], [4]], lambda item: 6 // (item - 2), 2)
    assert [next(groups), next(groups)] == [[-3], [-6]]
    with pytest.raises(ZeroDivisionError):
        next(groups)
