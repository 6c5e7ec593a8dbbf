"""The shipped rankings and predictor: of this very tower and data, and as good as they must be."""

import numpy as np
import pytest

from harness.datasets import get_dataset
from harness.datasets.few_shot import subset
from harness.golden.store import Rankings, find_rankings
from harness.measure.rows import run_split, variants
from harness.measure.settings import Plan
from harness.records.statistics import kendall_tau
from zoo.core.digests import fingerprint
from zoo.core.recipes import GoldenConfig
from zoo.loading.clip import ClipParts, create_clip
from zoo.loading.towers import Tower
from zoo.ranking.golden import golden_importance

ARCH, TAG = "clip_vit_s14", "imgfocus_lit"
DATASETS = ("emoji", "fashion")
RANKED = (*DATASETS, "photos")


@pytest.fixture(scope="module")
def embedded() -> ClipParts:
    return create_clip(ARCH)


def shipped(dataset: str, split: str = "test") -> Rankings:
    found = find_rankings(f"{ARCH}.{TAG}", dataset, split)
    assert found is not None
    return found


@pytest.mark.parametrize("dataset", RANKED)
def test_rankings_are_of_this_tower_and_these_images_and_come_out_again(dataset: str, embedded: ClipParts):
    """Rank one image anew, in float32: the order is the stored one but for rounding."""
    found, data = shipped(dataset), get_dataset(dataset)
    weights = fingerprint(embedded.model.visual)
    facts = {"dataset": dataset, "revision": data.revision, "split": "test"}
    found.require(model=f"{ARCH}.{TAG}", weights=weights, score="preservation", block=3, **facts)
    assert np.isfinite(found.importance).all()
    assert (found.importance.max(axis=1) > 0).all()
    default = subset(data.split("test"), Plan(methods=()).limit)
    assert set(default.image_ids) <= set(found.image_ids)
    assert len(set(found.image_ids)) == len(found.image_ids)
    own, example = found.provenance, subset(data.split("test"), 1)[0]
    config = GoldenConfig(block=own.block, window=own.window, stride=own.stride)
    anew = golden_importance(embedded.model.visual, embedded.preprocess(example.image)[None], config).numpy()
    assert kendall_tau(anew, found.of([example.image_id]))[0] > 0.9


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_predictor_agrees_with_golden_rankings_it_never_saw(dataset: str, embedded: ClipParts):
    split = subset(get_dataset(dataset).split("test"), 16)
    tower = Tower(embedded.model.visual, embedded.preprocess, f"{ARCH}.{TAG}")
    rows = variants(tower, ["patchrank", "random", "clsattn"], [0.6])
    found = run_split(rows, split, embedded.preprocess)
    golden = shipped(dataset).of(split.image_ids)
    tau = {row.method: kendall_tau(found[row.model].per_image["scores"], golden).mean() for row in rows}
    assert tau["patchrank"] > 0.4  # it was fitted to rankings of single patches, these are of 3 x 3
    assert tau["patchrank"] > tau["clsattn"] + 0.1
    assert abs(tau["random"]) < 0.1
