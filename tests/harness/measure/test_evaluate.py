"""What rows make of images: features, classes, closeness to dense, agreement with golden rankings."""

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

from harness.base.terminal import Progress
from harness.datasets import few_shot as sampling
from harness.datasets.base import Split
from harness.datasets.few_shot import subset
from harness.datasets.text_features import text_classifier
from harness.measure.bench import linear_probe, measurements
from harness.measure.rows import OutputCache, RowOutput, feature_probe, run, run_split, variants
from harness.records.metrics import (
    LEAST_GALLERY,
    METRICS,
    MetricInput,
    cosine_distance,
    margin,
    measure,
    neighbours,
    overlap,
    predicted,
)
from zoo.loading.clip import class_features


def refuse(*_: Any) -> Any:
    raise AssertionError("drawn")


def test_classes_give_in_turn_and_smaller_subsets_are_parts_of_larger_ones():
    """Of 25, 12 and 3 images each class gives one per round, as long as it has some."""
    labels = np.random.default_rng(0).permutation([0] * 25 + [1] * 12 + [2] * 3)
    split = Split(labels.astype(np.int64), "{:02}".format, refuse)
    chosen = [subset(split, limit) for limit in range(1, 41)]
    for limit, part in enumerate(chosen, start=1):
        rounds = max(np.bincount(part.labels))
        for count, whole in zip(np.bincount(part.labels, minlength=3), (25, 12, 3), strict=True):
            assert min(rounds - 1, whole) <= count <= rounds  # whose turn comes first in a round isn't promised
        assert len(part) == limit
        assert list(part.image_ids) == sorted(part.image_ids)
    assert all(set(a.image_ids) < set(b.image_ids) for a, b in itertools.pairwise(chosen))
    assert all(subset(split, limit) is split for limit in (None, 1000))


def test_outcomes_in_batches_are_those_of_one_run_in_order(toy, parts, tower, ranked, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 4)
    *rows, golden = variants(tower, ["dense", "random", "golden"], [0.5])
    split, done = toy.split("test"), []
    rows.append(replace(golden, rankings=ranked()))
    found = run_split(rows, split, parts.preprocess, done.append)
    assert done == [*range(4, len(split), 4), len(split)]
    images = torch.stack([parts.preprocess(example.image) for example in split])
    importance = torch.from_numpy(ranked().of(split.image_ids))
    for key, whole in run(rows, images, {golden.key: importance}).items():
        assert torch.allclose(found[key].features, whole.features, atol=1e-5)
        assert found[key].final_tokens == whole.final_tokens
        assert ("scores" in whole.per_image) == (key != rows[0].key)
        assert found[key].per_image.keys() == whole.per_image.keys() | ({"detail"} if key == rows[0].key else set())
        for name, values in whole.per_image.items():
            np.testing.assert_allclose(found[key].per_image[name], values, atol=1e-5)
        assert not found[key].features.is_inference()
    undrawn = Split(split.labels, lambda index: split.image_ids[index], refuse)
    with pytest.raises(ValueError, match="no golden ranking for image 'toy/test-5'"):
        run_split([replace(golden, rankings=ranked(count=5))], undrawn, parts.preprocess)


def test_text_classifier_leaves_out_what_it_can_not_name(parts, toy):
    classifier, left_out = text_classifier(parts, toy)
    assert (left_out, classifier.shape) == (("zebra",), (4, 7))
    known = class_features(parts.model, parts.tokenizer, toy.classes[:3], toy.templates)
    assert torch.allclose(classifier[:3], known, atol=1e-6)
    assert classifier[3].isnan().all()
    toy.skip_unknown = False
    words = "toy: 1 of 4 classes, with 10 of 42 images, have words that the text tower never saw: 'zebra' (zebra); "
    with pytest.raises(ValueError, match=re.escape(words) + ".*--skip-unknown-classes"):
        text_classifier(parts, toy)


def test_the_best_class_and_margin_by_hand_and_a_class_left_out_never_wins():
    """Not even where every other cosine is negative; its images count as wrong."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    classifier = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert predicted(features, classifier).tolist() == [0, 1, 2, 1]
    classifier = torch.tensor([[torch.nan, torch.nan], [1.0, 0.0], [0.8, 0.6]])
    assert predicted(-features[[0, 2]], classifier).tolist() == [2, 1]
    features, classes = units(5, 7), units(4, 7, seed=1)
    classes[2] = torch.nan  # can't be named, so no rival
    labels, gaps = np.array([0, 1, 3, 3, 0]), []
    for feature, label in zip(features, labels, strict=True):
        cosines = {k: float(feature @ classes[k]) for k in (0, 1, 3)}
        gaps.append(cosines.pop(int(label)) - max(cosines.values()))
    assert margin(features, classes, labels, 1.0) == pytest.approx(np.mean(gaps), abs=1e-6)
    assert margin(torch.ones(2, 1), torch.ones(1, 1), np.array([0, 0]), 1.0) is None


def test_a_linear_probe_ends_at_the_minimum():
    """The gradient, written out for every class, is zero there."""
    features = units(30, 6)
    labels = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(0))
    weights = linear_probe(features, labels, 3, decay=0.05)
    slope = [[2 * 0.05 * w / 3 for w in row] for row in weights.tolist()]
    for x, label in zip(features.tolist(), labels.tolist(), strict=True):
        logits = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weights.tolist()]
        total = sum(math.exp(v) for v in logits)
        for c in range(3):
            error = math.exp(logits[c]) / total - (c == label)
            slope[c] = [s + error * v / 30 for s, v in zip(slope[c], x, strict=True)]
    assert max(abs(s) for row in slope for s in row) < 1e-4


# --- outcomes are kept by image, whatever order and parts they were asked in


def test_parts_make_the_whole_in_any_order_and_no_image_is_run_twice(tower, monkeypatch):
    [row], cache, ran = variants(tower, ["dense"], []), OutputCache(None, Progress()), []

    def said(ids: str) -> RowOutput:
        """Say of each image the position of its letter."""
        numbers = np.array(["abcdef".index(name) for name in ids], dtype=np.float32)
        scores = numbers[:, None].repeat(3, axis=1)
        features = torch.from_numpy(numbers)[:, None].repeat(1, 2)
        return RowOutput(features=features, final_tokens=3, per_image={"scores": scores})

    def run_split(_: Any, rest: Split, *__: Any, **___: Any) -> dict[str, RowOutput]:
        ran.append("".join(rest.image_ids))
        return {row.key: said(ran[-1])}

    monkeypatch.setattr("harness.measure.rows.run_split", run_split)
    for ids in ("eb", "dcbae", "ad", "e"):
        split = Split(np.zeros(len(ids), dtype=np.int64), ids.__getitem__, refuse)
        found, wanted = cache.find([row], split, "")[row.key], said(ids)
        assert torch.equal(found.features, wanted.features)
        assert found.final_tokens == 3
        assert np.array_equal(found.per_image["scores"], wanted.per_image["scores"])
    assert ran == ["eb", "dca"]


# --- fidelity to the dense model


def units(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_distance_and_divergence_are_scipys_and_know_no_class_without_a_name():
    a, b, text, tuned = units(9, 16), units(9, 16, seed=1), units(5, 16, seed=2), units(5, 16, seed=3)
    expected = 1 - F.cosine_similarity(a.double(), b.double())
    np.testing.assert_allclose(cosine_distance(a, b), expected, atol=1e-6)
    assert (cosine_distance(a, a) == 0).all()
    p, q = ((20 * one.double() @ two.double().T).softmax(1) for one, two in ((b, text), (a, tuned)))

    def divergence(own: torch.Tensor, by: torch.Tensor, dense: torch.Tensor, dense_by: torch.Tensor) -> np.ndarray:
        return METRICS["kl_to_dense"].function(20.0, own, by, dense, dense_by)

    found = divergence(a, tuned, b, text)
    np.testing.assert_allclose(found, entropy(p.numpy(), q.numpy(), axis=1), rtol=1e-9)
    assert (divergence(a, text, a, text) == 0).all()
    unnamed = torch.cat([text, torch.full((1, 16), torch.nan)])
    np.testing.assert_array_equal(divergence(a, unnamed, b, unnamed), divergence(a, text, b, text))


def test_neighbours_are_the_nearest_others():
    a, gallery = units(40, 8), units(40, 8, seed=1)
    found = neighbours(a, gallery)
    for at, own in enumerate(found):
        cosines = (gallery @ a[at]).tolist()
        nearest = sorted((i for i in range(40) if i != at), key=lambda i: -cosines[i])[:10]
        assert sorted(own) == sorted(nearest)
    assert (overlap(found, found) == 1).all()
    shared = [len(set(x) & set(y)) / 10 for x, y in zip(found, neighbours(gallery, gallery), strict=True)]
    assert overlap(found, neighbours(gallery, gallery)).tolist() == pytest.approx(shared)


@pytest.mark.parametrize(("count", "classes", "scale"), [(12, 4, 9.0), (12, 4, None), (LEAST_GALLERY, 0, None)])
def test_what_is_said_beside_dense_hangs_on_classes_temperature_and_number(count, classes, scale):
    """Without classes there are no answers, of a probe no probabilities, of few images no neighbours."""
    facts = {"classifier": units(classes, 8, seed=3) if classes else None, "scale": scale}
    facts["per_image"] = {"labels": np.arange(count) % classes if classes else np.full(count, -1)}
    dense, own = (MetricInput(features=units(count, 8, seed=seed), **facts) for seed in (1, 0))
    expected = {"cosine_distance", "cosine_distance_95"} | (
        {"dense_agreement", "top1", "diff_to_dense"} if classes else set()
    )
    expected |= {"kl_to_dense", "margin"} if scale else set()
    expected |= {"neighbour_overlap"} if count == LEAST_GALLERY else set()
    found, same = (measure(replace(own, dense=other)) for other in (dense, own))
    assert found.keys() == expected
    assert found["cosine_distance"].low < found["cosine_distance"].mean < found["cosine_distance"].high
    assert same["cosine_distance"].mean == 0
    assert not classes or same["dense_agreement"].mean == 1
    assert measure(own).keys() == expected & {"top1", "margin"}  # as of the dense row itself


def test_the_probe_moves_with_all_images_and_not_with_rounding():
    features = units(48, 512)
    probe = np.array(feature_probe(features))
    assert probe.shape == (8,)
    assert probe == pytest.approx(feature_probe(features.flip(0)), abs=1e-12)
    for shift, least, most in ((1e-6 * torch.randn(48, 512), 0, 1e-6), (0.02 * units(512), 1e-4, 1)):
        other = np.array(feature_probe(F.normalize(features + shift, dim=-1)))
        assert least < np.abs(other - probe).max() < most


# --- agreement with golden rankings, whose values tests of records compare with scipy's

N, KEPT = 20, 8


def agreement(scores: np.ndarray | None, golden: np.ndarray | None) -> dict[str, Any]:
    features = torch.zeros(1 if golden is None else len(golden), 2)
    known = {name: values for name, values in (("scores", scores), ("golden", golden)) if values is not None}
    facts = measurements(MetricInput(features=features, per_image=known, final_tokens=KEPT))
    means = {name: own.mean for name, own in facts["metrics"].items() if name in ("tau", "weighted_tau", "match_at_k")}
    return means | {name: facts[name] for name in ("golden_images", "tau_undefined") if name in facts}


def test_the_golden_ranking_agrees_with_itself_and_what_has_none_does_not_count():
    golden = np.random.default_rng(0).random((30, N)).astype(np.float32)
    counts = {"golden_images": 30, "tau_undefined": 0}
    same = {"tau": 1, "weighted_tau": 1, "match_at_k": 1}
    assert agreement(golden.copy(), golden) == pytest.approx(same | counts)
    turned = agreement(-golden, golden)
    assert (turned["tau"], turned["match_at_k"]) == (pytest.approx(-1), 0.0)  # 8 best of 20, 8 worst
    scores, partly = golden.copy(), golden.copy()
    scores[10:] = -scores[10:]
    partly[10:] = np.nan
    scores[:3] = 0.5
    found = agreement(scores, partly)
    assert (found["tau"], found["golden_images"], found["tau_undefined"]) == (pytest.approx(1), 7, 3)
    for own, truth in ((None, golden), (golden, None), (golden, np.full_like(golden, np.nan)), (0 * golden, golden)):
        assert agreement(own, truth) == {}
