"""Rows of a comparison: shared weights, shared prefix, and the same answers as each model alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import zoo
from harness.measure.rows import Variant, run, usual_methods, variants
from harness.records.record import DENSE, GOLDEN
from zoo.core.reducer import final_count
from zoo.loading.adopt import load_predictor
from zoo.loading.learned_files import PredictorFile, read_facts, write_learned
from zoo.loading.towers import Tower

ARCH = "clip_vit_b16"
REDUCERS = [name for name in sorted(zoo.METHODS) if zoo.METHODS[name].by_default]


@pytest.fixture
def rows(tower: Tower, predictor_file: Path) -> list[Variant]:
    return variants(tower, usual_methods(), (0.6, 0.3))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


def test_a_row_per_method_and_keep_rate_on_the_towers_own_weights(rows, dense):
    assert usual_methods() == (DENSE, *REDUCERS, GOLDEN)
    assert [row.model for row in rows] == [ARCH, *(f"{ARCH}_{m}{k}" for m in (*REDUCERS, GOLDEN) for k in (60, 30))]
    assert [row.keep for row in rows] == [1.0] + [0.6, 0.3] * (len(REDUCERS) + 1)
    leaves = {DENSE: 6, "clsattn": 3, "evit": 2, "patchrank": 3, "random": 3, "rankmerge": 0, "tome": 0, GOLDEN: 3}
    assert leaves.items() <= {row.method: row.first_block for row in rows}.items()
    ours = dict(dense.named_parameters())
    for row in rows:
        assert not row.vit.training
        theirs = dict(row.vit.named_parameters())
        assert all(theirs[name] is ours[name] for name in ours)
        extra = {name for name in theirs if name not in ours}
        assert all(name.startswith("reducer.predictor.") for name in extra)
        assert bool(extra) == (row.method == "patchrank")


def test_settings_are_json_values_and_tell_predictors(rows, tower, predictor_file):
    """Records are compared with earlier ones, which come from JSON: a tuple would never fit."""
    for row in rows:
        assert json.loads(json.dumps(row.config)) == row.config
        assert row.config.get("keep", 1.0) == row.keep
    [first, _] = [row.config for row in rows if row.method == "patchrank"]
    assert (first["arch"], first["width"], first["reduce_at"]) == ("conv", 16, [3])
    facts, tensors = read_facts(predictor_file, "predictor"), load_file(predictor_file)
    facts.pop("hash")
    write_learned(predictor_file, "predictor", {name: 2 * value for name, value in tensors.items()}, facts)
    [again] = variants(tower, ["patchrank"], [0.6])
    assert again.config != first


@torch.no_grad()
def test_features_per_patch_are_compared_with_denses(tower, predictor_file, images):
    rows = variants(tower, [DENSE, "random", "rankmerge"], [0.5])
    judged = {}
    found = run(rows, images, judge=lambda key, patches: judged.setdefault(key, patches)[:, :2, 0].numpy())
    for row in rows:
        wanted = row.vit.forward_intermediates(images, 1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
        torch.testing.assert_close(judged[row.key], F.normalize(wanted, dim=-1))
        assert found[row.key].per_image["foreground"].shape == (3, 2)
        if row.method == DENSE:
            assert "patch_distance" not in found[row.key].per_image
        else:
            cosine = F.cosine_similarity(wanted, judged[rows[0].key], dim=-1).mean(dim=1)
            assert found[row.key].per_image["patch_distance"][:, 0] == pytest.approx(1 - cosine.numpy(), abs=1e-6)
    [_, alone] = run([rows[0], *variants(tower, ["tome"], [1.0])], images).values()
    assert not alone.per_image["patch_distance"].any()


@pytest.mark.parametrize("method", [DENSE, *REDUCERS])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_equals_each_model_alone(method, keep, tower, predictor_file, images):
    """The slow way: build the model, run the whole of it, read its trace."""
    rows = variants(tower, [*REDUCERS, DENSE], [keep])
    found = run(rows, images)
    row = next(row for row in rows if row.method == method)
    shape = {"arch": "conv", "width": 16} if method == "patchrank" else {}
    options = {"method": None} if method == DENSE else {"method": method, "keep": keep, **shape}
    alone = zoo.reduce(tower.vit, **options).eval()
    if method == "patchrank":
        load_predictor(alone, PredictorFile.read(predictor_file))
    with torch.inference_mode():
        trace = alone.trace(images)
        whole = F.normalize(alone(images), dim=-1)
    output = found[row.key]
    assert torch.allclose(output.features, whole, atol=1e-5)
    assert output.final_tokens == trace.final_tokens == final_count(64, row.keep)
    assert ("scores" in output.per_image) == (trace.scores is not None)
    if trace.scores is not None:
        np.testing.assert_allclose(output.per_image["scores"], trace.scores.numpy(), rtol=1.3e-6, atol=1e-5)


@torch.no_grad()
def test_golden_keeps_exactly_the_best(dense, tower, images):
    [row], golden = variants(tower, [GOLDEN], [0.3]), torch.randn(3, 64)
    output = run([row], images, {row.key: golden})[row.key]
    count = round(0.3 * 64)
    assert output.final_tokens == count
    for image in range(3):
        best = golden[image].argsort(descending=True)[:count].sort().values
        x = dense.norm_pre(dense._pos_embed(dense.patch_embed(images[image : image + 1])))
        for block in dense.blocks[:3]:
            x = block(x)
        x = torch.cat((x[:, :1], x[:, 1:][:, best]), dim=1)
        for block in dense.blocks[3:]:
            x = block(x)
        slow = F.normalize(dense.head(dense.norm(x)[:, 0]), dim=-1)
        assert torch.allclose(output.features[image], slow[0], atol=1e-5)
        order = (-output.per_image["scores"][image]).argsort(kind="stable")
        assert order.tolist() == golden[image].argsort(descending=True).tolist()


@pytest.mark.parametrize(("method", "keeps", "error", "match"), [
    ("radnom", [0.5], ValueError, "method 'radnom': did you mean 'random'?"),
    ("random", [0.6, 0.604], ValueError, "random60 twice, for keep rates 0.6 and 0.604: give"),
    ("patchrank", [0.5], FileNotFoundError, "no predictor for clip_vit"),
])  # fmt: skip
def test_refused_rows(method, keeps, error, match, tower):
    with pytest.raises(error, match=re.escape(match)):
        variants(tower, [method], keeps)
