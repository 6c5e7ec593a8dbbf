"""Recovery: what changes, what must not, what is refused; stopped runs are at tests/harness/apps/test_recovery.py."""

from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from lively import Build
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor

import zoo
from zoo.core.digests import fingerprint
from zoo.core.recipes import RECOVERIES, RecoveryConfig
from zoo.learning.recovery import STRENGTHS, Recovered, WeightChanges, distance, recover, save_recovery
from zoo.loading.adopt import DOWN, HEAD, UP, add_recovery, additions, trainable, with_head
from zoo.loading.learned_files import RecoveryFile, read_facts, write_learned

FACTS: dict[str, Any] = {"name": "clip_vit_b16", "tag": "openai", "datasets": [{"name": "toy"}]}
QUICK = RecoveryConfig(rounds=3, steps=4, batch=4, rank=2, precision="float32", learning_rate=3e-3)
SIX = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model(tiny: Build) -> Any:
    return tiny("clip_vit_b16_tome50.openai")


def lively_file(model: Any, path: Path, what: str = "norm") -> RecoveryFile:
    """Write a recovery of a model with random changes, large enough to be told from none."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    model = with_head(model, what)
    for name, own in trainable(model, what).items():
        shape = model.get_parameter(own).shape
        low_rank = what.endswith("lora") and name != HEAD
        shapes = {f"{name}.up": (shape[0], 2), f"{name}.down": (2, shape[1])} if low_rank else {name: shape}
        tensors |= {key: 0.1 * torch.randn(each, generator=generator) for key, each in shapes.items()}
    return save_recovery(path, model, Recovered(tensors, (1.0,), (0.5,)), replace(QUICK, what=what), **FACTS)


@torch.no_grad()
def test_folded_updates_equal_updates_beside_the_weights(tiny: Build, images: Tensor, tmp_path: Path):
    """A hook adds each low-rank update to what its layer gives; attention reads weights, so they are added there."""
    model = tiny("clip_vit_b16_patchrank50").double()
    file = lively_file(model, tmp_path / "r", "lora")
    tensors = {name: value.double() for name, value in load_file(file.path).items()}
    beside = deepcopy(model)
    for name in trainable(model, "lora"):
        path = name.removesuffix(".weight")
        up, down = tensors[f"{name}.up"], tensors[f"{name}.down"]
        if path.endswith(("qkv", "proj")):
            beside.get_parameter(name).copy_(model.get_parameter(name) + up @ down)
        else:
            beside.get_submodule(path).register_forward_hook(
                lambda _, x, y, up=up, down=down: y + F.linear(F.linear(x[0], down), up)
            )
    folded = add_recovery(model, file)(images.double())
    assert torch.allclose(folded, beside(images.double()), atol=1e-6)
    assert not torch.allclose(folded, model(images.double()), atol=1e-3)


@pytest.mark.parametrize("what", RECOVERIES)
@torch.no_grad()
def test_changes_begin_as_none_in_the_named_weights(tiny: Build, images: Tensor, what: str, tmp_path: Path):
    model, config = tiny("clip_vit_b16_patchrank50.openai", arch="mlp", width=8), replace(QUICK, what=what)
    before, mark = deepcopy(model.state_dict()), fingerprint(model)
    fresh = WeightChanges(model, config).tensors()
    assert all(not value.any() for value in additions(fresh).values())
    file = save_recovery(tmp_path / "r", model, Recovered(fresh, (1.0,), (1.0,)), config, **FACTS)
    torch.testing.assert_close(add_recovery(model, file)(images), model(images))
    recovered = add_recovery(model, lively_file(model, tmp_path / "r", what))
    own, changed = dict(model.named_parameters()), set(trainable(model, what))
    for name, value in recovered.named_parameters():
        assert (value is own.get(name)) == (name not in changed)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert fingerprint(model) == mark != fingerprint(recovered)
    assert recovered(images).shape == model(images).shape


@pytest.mark.parametrize(("what", "options"), [("lora", {}), ("head", {}), ("head+norm", {"num_classes": 0})])
@torch.no_grad()
def test_saved_and_loaded(tiny: Build, images: Tensor, what: str, options: dict, tmp_path: Path):
    """Without classes a tower has no head, and gets one."""
    tower = tiny("clip_vit_b16.openai", **options)
    plain = zoo.reduce(tower, method="evit", keep=0.5)
    path = lively_file(plain, tmp_path / "r", what).path
    model, folder = zoo.reduce(tower, method="evit", keep=0.5, recovery=path), tmp_path / "saved"
    assert not torch.allclose(model(images), plain(images), atol=1e-3)
    save_for_hf(model, folder, safe_serialization=True)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(again(images), model(images))
    with pytest.raises(ValueError, match=r"trained on clip_vit_b16\.openai with weights"):
        add_recovery(again, path)


@torch.no_grad()
def test_by_name_with_a_predictor_that_is_checked_first(tmp_path: Path):
    plain = timm.create_model("clip_vit_s14_patchrank50", pretrained=True).eval()
    path = lively_file(plain, tmp_path / "r").path
    named = timm.create_model("clip_vit_s14_patchrank50", pretrained=True, recovery=path).eval()
    images = torch.randn(1, 3, 196, 196)
    torch.testing.assert_close(named(images), add_recovery(plain, path)(images))
    with pytest.raises(ValueError, match="add pretrained=True"):
        timm.create_model("clip_vit_s14_patchrank50", recovery=path)
    with pytest.raises(ValueError, match="not features_only=True"):
        timm.create_model("clip_vit_s14_patchrank50", pretrained=True, recovery=path, features_only=True)


@pytest.mark.parametrize(("method", "what"), [("patchrank", "norm"), ("rankmerge", "norm"), ("tome", "head+norm")])
def test_training_brings_features_nearer_and_moves_nothing_else(half: zoo.ReducedViT, what: str):
    before = deepcopy(half.state_dict())
    trained = {name: p.requires_grad for name, p in half.named_parameters()}
    result = recover(half, [SIX, SIX[:2]], [SIX, SIX[:2]], replace(QUICK, what=what))
    assert all(b >= a for b, a in zip(result.before, result.after, strict=True))
    if result.before[0] > 0.003:  # a method that merges may be near to perfect on random weights
        assert result.after[0] < 0.99 * result.before[0]
    assert all(torch.equal(before[name], value) for name, value in half.state_dict().items())
    assert {name: p.requires_grad for name, p in half.named_parameters()} == trained
    assert all(p.grad is None for p in half.parameters())


def test_the_head_is_the_ridge_regression_that_leaves_least(model: Any):
    """The reference appends the penalty as rows and solves by least squares."""
    sets, held = [SIX, SIX[:4].flip(-1)], [SIX[:3].roll(9, 2), SIX[3:].roll(9, 3)]
    result = recover(model, sets, held, replace(QUICK, what="head"))
    dense = zoo.reduce(model, method=None)
    weight, bias = (value.detach().double().numpy() for value in (model.head.weight.T, model.head.bias))

    def rows(vit: Any, images: Tensor) -> Any:
        with torch.no_grad():
            tokens, _ = vit.advance(vit.embed(images))
            return vit.forward_head(vit.norm(tokens.x), pre_logits=True).double().numpy()

    def left(images: Tensor, change: Any = 0.0) -> float:
        x, truth = rows(model, images) @ (weight + change) + bias, rows(dense, images) @ weight + bias
        cosine = (x * truth).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(truth, axis=1)
        return float(1 - cosine.mean())

    losses = [left(images) for images in held]
    assert result.before == pytest.approx(losses, rel=1e-4)
    x, y = [], []
    for images, loss in zip(sets, losses, strict=True):
        norm = np.linalg.norm(rows(dense, images) @ weight + bias, axis=1, keepdims=True)
        x.append(rows(model, images) / norm / np.sqrt(len(images) * loss))
        y.append(rows(dense, images) @ weight / norm / np.sqrt(len(images) * loss) - x[-1] @ weight)
    x, y = np.concatenate(x), np.concatenate(y)
    best = (1.0, None)
    for strength in STRENGTHS:
        penalty = np.sqrt(strength * (x**2).sum() / x.shape[1]) * np.eye(x.shape[1])
        change = np.linalg.lstsq(np.vstack((x, penalty)), np.vstack((y, np.zeros_like(weight))))[0]
        shares = np.divide([left(images, change) for images in held], losses)
        if shares.max() <= 1 and shares.prod() ** 0.5 < best[0]:
            best = (shares.prod() ** 0.5, change)
    assert best[0] < 1
    assert np.divide(result.after, result.before).prod() ** 0.5 == pytest.approx(best[0], rel=1e-3)
    [(name, tensor)] = result.tensors.items()
    assert name == HEAD
    np.testing.assert_allclose(tensor.T.numpy(), best[1], atol=1e-5)


@pytest.mark.parametrize("rate", [QUICK.learning_rate, 30.0])
def test_losses_are_those_of_the_folded_model(model: Any, rate: float, tmp_path: Path):
    """A rate that ruins everything changes nothing."""
    result = recover(model, [SIX], [SIX], replace(QUICK, learning_rate=rate))
    assert (rate == 30) == ((result.tensors, result.after) == ({}, result.before))
    file = save_recovery(tmp_path / "r", model, result, QUICK, **FACTS)
    dense = zoo.reduce(model, method=None)
    with torch.no_grad():
        truth = dense(SIX)
        losses = [float(distance(vit(SIX), truth).mean()) for vit in (model, add_recovery(model, file))]
    assert losses == pytest.approx([result.before[0], result.after[0]], rel=1e-4)
    assert file.datasets == [{"name": "toy", "before": result.before[0], "after": result.after[0]}]


def test_a_checkpoint_of_another_keep_rate_is_refused(model: Any, tmp_path: Path):
    path = tmp_path / "state.pt"
    recover(model, [SIX], [SIX], QUICK, checkpoint=path)
    with pytest.raises(ValueError, match="another recipe"):
        recover(zoo.reduce(model, method="tome", keep=0.6), [SIX], [SIX], QUICK, checkpoint=path)


OTHERS = {"method='evit'": {"method": "evit"}, "keep=0.6": {"keep": 0.6, "arch": "mlp", "width": 8}}
OTHERS |= {"predictor='": {"bias": "reducer.predictor.net.score.bias"}, "weights='": {"bias": "blocks.2.norm1.bias"}}


@pytest.mark.parametrize("words", OTHERS)
def test_refused_by_another_model(tiny: Build, tmp_path: Path, words: str):
    model = tiny("clip_vit_b16_patchrank50.openai", arch="mlp", width=8)
    path = lively_file(model, tmp_path / "r").path
    options = {"method": "patchrank", "keep": 0.5} | OTHERS[words]
    if name := options.pop("bias", ""):
        with torch.no_grad():
            model.get_parameter(name).add_(0.01)
    else:
        model = zoo.reduce(model, **options)
    with pytest.raises(ValueError, match=f"this model has {words}") as error:
        add_recovery(model, path)
    assert str(path) in str(error.value)
    assert error.value.remedy == ("recovery", {"datasets": [{"name": "toy", "before": 1.0, "after": 0.5}]})


def test_refused_where_the_methods_rule_has_changed(tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings that leave reduction points and shares to a rule are the same before and after."""
    model = tiny("clip_vit_b16_rankmerge50.openai")
    path = lively_file(model, tmp_path / "r").path
    monkeypatch.setattr("zoo.core.reducer.SHARE", 1.0)
    with pytest.raises(ValueError, match=r"with counts=\{'0': 49, .*, this model has counts=\{'0': 32, "):
        add_recovery(model, path)


@pytest.mark.parametrize(("words", "facts", "tensors"), [
    ("has format 9", {"format": 9}, {}),
    ("'blocks.1.norm1.bias' of shape \\(3,\\)", {}, {"blocks.1.norm1.bias": torch.zeros(3)}),
    ("'head.weight' of shape", {}, {"head.weight": torch.zeros(7, 48)}),
    ("values that aren't finite", {}, {"norm.bias": torch.full((48,), torch.nan)}),
    *[
        (f"' without 'blocks.1.mlp.fc1.weight{end}'", {}, {f"blocks.1.mlp.fc1.weight{end}": None})
        for end in (UP, DOWN)
    ],
    ("missing field 'what'", {"recipe": {"rank": 2}}, {}),
    (r"rank must be int, got \[2\]", {"recipe": asdict(QUICK) | {"rank": [2]}}, {}),
    ("'name' of a data set must be str, got None", {"datasets": [{"revision": "1"}]}, {}),
    ("keep='half': expected", {"options": {"keep": "half"}}, {}),
])  # fmt: skip
def test_damaged_files_are_refused(model: Any, tmp_path: Path, words: str, facts: dict, tensors: dict):
    path = lively_file(model, tmp_path / "r", "lora" if None in tensors.values() else "norm").path
    known = read_facts(path, "recovery")
    del known["hash"]
    changed = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    write_learned(path, "recovery", changed, known | facts)
    with pytest.raises(ValueError, match=words) as error:
        add_recovery(model, path)
    assert str(path) in str(error.value)
    assert error.value.remedy.kind == "recovery"


def test_training_is_refused(model: Any):
    for vit, train, val, words in (
        (zoo.reduce(model, method=None), [SIX], [SIX], "this model is dense"),
        (model, [SIX], [SIX[:0]], "nothing to train on"),
        (model, [SIX, SIX], [SIX], "nothing to train on"),
    ):
        with pytest.raises(ValueError, match=words):
            recover(vit, train, val, QUICK)
    for options, words in (
        ({"learning_rate": 0.0}, r"learning_rate=0\.0: expected"),
        ({"what": "tokens"}, "what='tokens': expected one of head, norm, lora"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(QUICK, **options)


def test_where_nothing_is_lost_nothing_is_learned(tiny: Build):
    model = zoo.reduce(tiny("clip_vit_b16.openai"), method="tome", keep=1.0)
    assert recover(model, [SIX], [SIX], QUICK) == ({}, (0.0,), (0.0,))
