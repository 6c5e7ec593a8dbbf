"""Fitting predictors: planted rankings are found, and saved files serve exactly their model."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import kendalltau
from torch import Tensor, nn

import zoo
from zoo import weights
from zoo.fit import FitConfig, RankedTokens, fit_predictor, loss_of, save_predictor
from zoo.predictor import ARCHITECTURES, Predictor
from zoo.weights import cache_folder, find_predictor, load_predictor, predictor_name

QUICK = FitConfig(width=32, epochs=30)


def planted(count: int, seed: int) -> RankedTokens:
    """Draw images of 4 x 4 tokens whose importance is one linear function of the token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 17, 12, generator=generator)
    direction = torch.linspace(-1, 1, 12)
    return RankedTokens(tokens=tokens, importance=tokens[:, 1:] @ direction, prefix=1, grid=(4, 4))


def noise(count: int, seed: int) -> RankedTokens:
    """Draw images whose importance has nothing to do with the tokens."""
    drawn = torch.rand(count, 16, generator=torch.Generator().manual_seed(seed + 1000))
    return replace(planted(count, seed), importance=drawn)


@torch.no_grad()
def mean_tau(predictor: Predictor, data: RankedTokens) -> float:
    predicted = predictor(data.tokens.float(), data.prefix, data.grid)
    taus = [
        kendalltau(p.numpy(), t.numpy()).statistic
        for p, t in zip(predicted, data.importance, strict=True)
    ]
    return sum(taus) / len(taus)


def val_loss(predictor: Predictor, data: RankedTokens) -> float:
    """Compute ListNet's loss image by image, as written down in the docstring."""
    total = 0.0
    for tokens, importance in zip(data.tokens, data.importance, strict=True):
        with torch.no_grad():
            predicted = predictor(tokens[None].float(), data.prefix, data.grid)[0].tolist()
        mean, sd = importance.mean().item(), importance.std().item()
        target = [math.exp((v - mean) / sd) for v in importance.tolist()]
        log_sum = math.log(sum(math.exp(p) for p in predicted))
        total -= sum(
            t / sum(target) * (p - log_sum) for t, p in zip(target, predicted, strict=True)
        )
    return total / len(data.tokens)


@pytest.mark.parametrize("loss", ["listnet", "mse"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_planted_ranking_is_found(arch: str, loss: str):
    losses: list[float] = []
    predictor = fit_predictor(
        planted(512, 0),
        planted(32, 1),
        replace(QUICK, arch=arch, loss=loss),
        on_epoch=lambda epoch, train, val: losses.append(train),
    )
    assert not predictor.training
    assert losses[-1] < losses[0]
    assert mean_tau(predictor, planted(64, 2)) > 0.8
    assert abs(mean_tau(predictor, noise(64, 2))) < 0.1


def test_the_seed_decides():
    data = planted(64, 0), planted(16, 1)
    config = replace(QUICK, epochs=3)
    first, again = (fit_predictor(*data, config).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    other = fit_predictor(*data, replace(config, seed=1)).state_dict()
    assert not any(torch.equal(first[k], other[k]) for k in first if k.endswith("token.weight"))


@pytest.mark.parametrize("loss", ["listnet", "mse"])
def test_scale_and_level_of_the_importance_do_not_count(loss: str):
    """The target is normalised per image; float16 tokens are taken as they are."""
    train, val, config = planted(64, 0), planted(16, 1), replace(QUICK, epochs=3, loss=loss)
    half = [replace(d, tokens=d.tokens.half()) for d in (train, val)]
    scale, level = torch.rand(64, 1) + 0.5, torch.randn(64, 1)
    moved = replace(half[0], importance=half[0].importance * scale + level)
    a, b = fit_predictor(half[0], half[1], config), fit_predictor(moved, half[1], config)
    x = planted(8, 2).tokens
    assert torch.allclose(a(x, 1, (4, 4)), b(x, 1, (4, 4)), atol=1e-2)


@pytest.mark.parametrize("name", ["listnet", "mse"])
def test_the_loss_is_least_at_the_target(name: str):
    target = torch.randn(3, 16, dtype=torch.float64)
    here = target.clone().requires_grad_()
    least = loss_of(name, here, target)
    least.backward()
    assert here.grad.abs().max() < 1e-12
    for step in (0.01, 0.1, 1.0):
        assert loss_of(name, target + step * torch.randn_like(target), target) > least


def test_listnet_ignores_the_level_and_mse_does_not():
    target = torch.randn(3, 16)
    for name, same in (("listnet", True), ("mse", False)):
        moved, plain = loss_of(name, target + 5, target), loss_of(name, target, target)
        assert torch.allclose(moved, plain, atol=1e-4) == same


def test_the_best_epoch_is_kept_and_patience_ends_it():
    """Nothing can be learnt here: validation is best early, training goes on getting better."""
    train, val = noise(16, 0), noise(32, 1)
    seen: list[tuple[float, float]] = []
    config = FitConfig(arch="mlp", epochs=60, patience=6, learning_rate=1e-2)
    predictor = fit_predictor(train, val, config, on_epoch=lambda epoch, t, v: seen.append((t, v)))
    losses = [v for _, v in seen]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + config.patience < config.epochs
    assert seen[-1][0] < seen[best][0]
    assert val_loss(predictor, val) == pytest.approx(losses[best], abs=1e-5)
    assert losses[-1] > losses[best] + 1e-3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "lisnet"}, "loss='lisnet': did you mean 'listnet'? expected one of listnet, mse"),
        ({"arch": "covn"}, "arch='covn': did you mean 'conv'? expected one of mlp, conv, mixer"),
    ],
)
def test_refused_recipes(options: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=re.escape(match)):
        FitConfig(**options)


NAME, TAG = "clip_vit_b16", "openai"
Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's cache at an empty folder, and the packaged weights at another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "packaged")


@pytest.fixture
def tower(tiny: Build, tmp_path: Path) -> dict[str, Any]:
    """Save a dense tower; return what makes a patchrank model load it."""
    save_file(tiny(f"{NAME}.{TAG}").state_dict(), tmp_path / "tower.safetensors")
    source = {"file": str(tmp_path / "tower.safetensors"), "num_classes": 7}
    return {"pretrained": True, "pretrained_cfg_overlay": source, "noise": 0}


def save(path: Path, seed: int = 0, arch: str = "conv", **facts: Any) -> Predictor:
    """Save a random predictor for the tiny tower; return it in the precision of the file."""
    torch.manual_seed(seed)
    config = FitConfig(arch=arch, width=24)
    predictor = Predictor(arch, 48, 24, (8, 8), None, None)
    told = {"model": NAME, "tag": TAG, "block": 3, "provenance": {"images": 9}} | facts
    save_predictor(predictor, path, config=config, **told)
    return copy.deepcopy(predictor).half().float()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_a_saved_predictor_ranks_in_the_model(
    arch: str, tiny: Build, tower: dict[str, Any], images: Tensor, tmp_path: Path
):
    path = tmp_path / "new" / "p.safetensors"
    saved = save(path, arch=arch)
    assert [p.name for p in path.parent.iterdir()] == ["p.safetensors"]
    created = tiny(f"{NAME}_patchrank60.{TAG}", predictor=str(path), **tower)
    dense = zoo.reduce(created, method=None)
    options: dict[str, Any] = {"keep": 0.6}
    found = find_predictor(NAME, TAG, path)
    found.fill(options, zoo.METHODS["patchrank"].Config)
    reduced = zoo.reduce(dense, method="patchrank", **options)
    load_predictor(reduced, found)
    entering, _ = dense.advance(dense.embed(images), stop=3)
    importance = saved(entering.x, 1, (8, 8))
    for model in (created, reduced):
        [went] = model.trace(images).reductions
        assert torch.equal(went.importance, importance)
    assert torch.equal(created(images), reduced(images))


def test_the_packaged_predictor_comes_before_the_users(tmp_path: Path):
    name = predictor_name(NAME, TAG)
    save(cache_folder() / "predictors" / name)
    assert find_predictor(NAME, TAG).path.is_relative_to(tmp_path / "cache")
    save(tmp_path / "packaged" / name)
    assert find_predictor(NAME, TAG).path == tmp_path / "packaged" / name


def test_a_predictor_of_another_architecture_does_not_load(tiny: Build, tmp_path: Path):
    save(tmp_path / "p.safetensors", arch="mlp")
    model = tiny(f"{NAME}_patchrank60", arch="conv")
    with pytest.raises(ValueError, match=re.escape("p.safetensors' has another architecture")):
        load_predictor(model, find_predictor(NAME, TAG, tmp_path / "p.safetensors"))


def test_a_file_that_is_no_safetensors_at_all(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=re.escape("notes.txt' is not a predictor")):
        find_predictor(NAME, TAG, path)
