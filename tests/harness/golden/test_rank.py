"""Rankings of any images by any tower: right, resumable, and told apart by what made them."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from harness.base.store import shard_path, shard_paths
from harness.base.terminal import Progress
from harness.cli.entry import main
from harness.datasets.base import Dataset
from harness.datasets.few_shot import turns
from harness.datasets.text_features import text_classifier
from harness.golden import rank as module
from harness.golden.rank import Ranked, rank
from harness.golden.settings import RankJob
from harness.golden.store import Rankings, Source, find_rankings
from zoo.core.digests import fingerprint
from zoo.core.recipes import SCORES, GoldenConfig
from zoo.loading.towers import Tower
from zoo.ranking.golden import GoldenEngine

Run = Callable[..., Ranked]
SPARSE = GoldenConfig(window=2, stride=2)


@pytest.fixture
def run(tower: Tower, toy: Dataset, monkeypatch) -> Run:
    monkeypatch.setattr(module, "load_tower", lambda name: tower)

    def call(config: GoldenConfig = SPARSE, **facts: Any) -> Ranked:
        defaults = {"source": Source.of(toy, "test"), "limit": 10, "shard_size": 4, "batch": 16}
        job = RankJob(model="clip_vit_b16", config=config, **defaults | facts)
        return rank(job, Progress())

    return call


@pytest.fixture
def named(toy: Dataset, monkeypatch) -> None:
    """Give the toy images classes that the text tower has words for."""
    monkeypatch.setattr(type(toy), "classes", ("cat", "dog", "house", "dog house"))


@pytest.mark.parametrize("score", SCORES)
def test_ranks_like_one_call_on_all_images(score, run, parts, toy, dense, named):
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


def test_lands_where_compare_looks(run, toy, dense):
    done = run()
    assert done == (done.path, 10, 21)
    found = find_rankings("clip_vit_b16.openai", "toy", "test")
    source = {"dataset": "toy", "revision": toy.revision, "split": "test"}
    tower = {"model": "clip_vit_b16.openai", "weights": fingerprint(dense)}
    found.require(**source, **tower, **asdict(SPARSE), dtype="float32", batch=16)
    assert found.provenance.versions["torch"] == version("torch")
    assert found.image_ids == Rankings.read(done.path).image_ids


def test_a_larger_limit_redoes_only_the_last_shard(run, tmp_path):
    run(out=tmp_path / "r", limit=6)
    first = shard_path(tmp_path / "r", 0).stat().st_mtime_ns
    assert [run(out=tmp_path / "r", limit=limit).images for limit in (9, 5, None)] == [9, 5, 21]
    assert shard_path(tmp_path / "r", 0).stat().st_mtime_ns == first
    assert len(set(Rankings.read(tmp_path / "r").image_ids)) == 21


def test_other_settings_never_mix(run, tmp_path):
    first = run(out=tmp_path / "r").path
    assert first == tmp_path / "r"
    for config, batch in ((SPARSE, 8), (GoldenConfig(window=2, stride=1), 16)):
        with pytest.raises(ValueError, match=r"made with other settings: .* Use another --output"):
            run(config, out=first, batch=batch)


def test_a_folder_of_images_needs_no_labels(run, toy, tmp_path):
    (tmp_path / "holiday").mkdir()
    for i in range(9):
        toy.split("test")[i].image.save(tmp_path / "holiday" / f"{i}.png")
    source = Source.folder(tmp_path / "holiday")
    found = Rankings.read(run(source=source, out=tmp_path / "r").path)
    assert len(set(found.image_ids)) == 9
    assert (found.labels == -1).all()
    assert (found.provenance.dataset, found.provenance.split) == ("holiday", "all")
    with pytest.raises(ValueError, match="needs classes, and a folder of images has none"):
        run(GoldenConfig(score="label"), source=source, out=tmp_path / "r")
    with pytest.raises(ValueError, match="--variants 2: the images of 'holiday' can't be drawn anew"):
        run(source=source, variants=2, out=tmp_path / "r")
    last = int(turns(np.full(9, -1))[-1])
    (tmp_path / "holiday" / f"{last}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{last}.png"):
        run(source=Source.folder(tmp_path / "holiday"), out=tmp_path / "broken")
    assert sorted(shard_paths(tmp_path / "broken")) == [0, 1]  # finished shards stay


@pytest.mark.parametrize(("facts", "match"), [
    ({"config": GoldenConfig(block=6)}, "block=6: this tower has blocks 0 to 5"),
    ({"limit": 0}, "limit=0: expected an integer"),
    ({"config": GoldenConfig(score="label")}, "score='label' needs every class named, and --skip-unknown-classes"),
], ids=str)  # fmt: skip
def test_refusals_leave_no_folder(facts, match, run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=match):
        run(**facts, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(GoldenEngine, "importance", full)
    with pytest.raises(ValueError, match=r"out of memory on cpu with --batch 16: try --batch 8"):
        run()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "one_thread")
def test_workers_write_the_store_that_one_process_writes(tmp_path):
    images = "rank --model clip_vit_s14 --dataset emoji --split val --limit 6 --score label"
    command = f"{images} --window 7 --stride 7 --shard-size 2 --batch 8 --precision float32 --output".split()
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "many"), "--workers", "2"]) == 0
    parts = ((tmp_path / whose).rglob("part-*") for whose in ("one", "many"))
    alone, together = ({path.name: path.read_bytes() for path in own} for own in parts)
    assert len(alone) == 3
    assert together == alone
