"""The predictor: networks by slow loops, Patch Ranking's use of it; what a file holds is what ranks, and only there."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lively import Build, lively
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from zoo.core.digests import blocks_fingerprint
from zoo.core.files import cache_folder
from zoo.core.learned import ARCHITECTURES, Mixer, PooledMixer, Predictor, TokenTransformer
from zoo.core.recipes import FitConfig
from zoo.learning.fit import save_predictor
from zoo.loading import learned_files
from zoo.loading.adopt import load_predictor
from zoo.loading.learned_files import (
    PredictorFile,
    find_fitted,
    find_predictor,
    predictor_name,
    with_predictor,
)

pytestmark = pytest.mark.usefixtures("no_grad")
FREE = ["linear", "mlp", "transformer"]  # of the place
GRID = (2, 3)


def predictor(arch: str) -> Predictor:
    return lively(Predictor(arch, 12, 8, (4, 4)), 0.3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("prefix", [1, 5])
def test_scores_each_image_alone_and_each_patch_where_places_do_not_count(arch: str, prefix: int):
    model, x = predictor(arch), torch.randn(3, prefix + 16, 12)
    scores = model(x, prefix, (4, 4))
    assert (scores.shape, scores.dtype) == ((3, 16), torch.float32)
    assert scores.std(dim=1).min() > 1e-3
    alone = torch.cat([model(image[None], prefix, (4, 4)) for image in x])
    assert torch.allclose(scores, alone, atol=1e-5)
    order = torch.randperm(16)
    moved = model(torch.cat((x[:, :prefix], x[:, prefix:][:, order]), dim=1), prefix, (4, 4))
    assert torch.allclose(moved, scores[:, order], atol=1e-5 if arch in FREE else 1e-2) == (arch in FREE)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_grids_of_other_sizes(arch: str, tiny: Build):
    model, images = tiny("clip_vit_b16_patchrank50", arch=arch, dynamic_img_size=True), torch.randn(1, 3, 96, 48)
    if "mixer" in arch:
        with pytest.raises(ValueError, match="made for 64 patches, got 72; use a predictor with arch='conv'"):
            model(images)
        return
    assert model.trace(images).final_tokens == 36


def test_conv_is_a_slow_neighbourhood_sum():
    """Check the first mixing step at each cell against a loop over its 5 x 5 neighbours."""
    net = predictor("conv").net
    x = torch.randn(1, 12, 8)  # 3 rows, 4 columns
    found = net._mix(net.mix1, x, (3, 4))
    for row in range(3):
        for column in range(4):
            total = net.mix1.bias.clone()
            for r in range(max(0, row - 2), min(3, row + 3)):
                for c in range(max(0, column - 2), min(4, column + 3)):
                    total += net.mix1.weight[:, 0, r - row + 2, c - column + 2] * x[0, 4 * r + c]
            assert torch.allclose(found[0, 4 * row + column], total, atol=1e-5)


def mlp(block: nn.Sequential, vector: Tensor) -> Tensor:
    first, norm, _, second = block
    x = first.weight @ vector + first.bias
    x = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    return second.weight @ x + second.bias


@pytest.mark.parametrize("width", [8, 12])
def test_the_mixer_vector_by_vector(width: int):
    """Channel MLP for each token, then token MLP for each channel, then the mean over channels."""
    net = lively(Mixer(12, width, GRID), 0.3)
    tokens = torch.randn(6, 12)
    x = tokens if width == 12 else tokens @ net.token.weight.T + net.token.bias
    x = torch.stack([row + mlp(net.channel_mlp, row) for row in x])
    x = torch.stack([column + mlp(net.token_mlp, column) for column in x.T], dim=1)
    found = net(tokens[None], torch.zeros(1, 1, 12), GRID)[0]
    assert torch.allclose(found, x.mean(dim=1), atol=1e-5)


def test_the_pooled_mixer_averages_channels_and_scores_linearly():
    net = lively(PooledMixer(12, 4, GRID), 0.3)
    inside = Mixer(4, 4, GRID)
    inside.load_state_dict({k: v for k, v in net.state_dict().items() if "score" not in k})
    inside._score = lambda x: (x @ net.score.weight[0]) + net.score.bias
    tokens, cls = torch.randn(2, 6, 12), torch.zeros(2, 1, 12)
    averaged = torch.stack([tokens[..., i : i + 3].mean(dim=-1) for i in (0, 3, 6, 9)], dim=-1)
    assert torch.allclose(net(tokens, cls, GRID), inside(averaged, cls, GRID), atol=1e-5)


def test_the_transformer_attends_to_class_token_and_patches():
    net = lively(TokenTransformer(12, 16, GRID), 0.3)
    tokens, cls = torch.randn(6, 12), torch.randn(1, 12)
    x = net.token(torch.cat((cls, tokens)))
    query, key, value = net.attn.qkv(net.norm1(x)).split(16, dim=1)
    weights = torch.stack([(key @ q / 4).softmax(dim=0) for q in query])
    x = x + net.attn.proj(weights @ value)
    x = x + net.mlp.fc2(torch.nn.functional.gelu(net.mlp.fc1(net.norm2(x))))
    slow = net.score(net.norm(x))[1:, 0]
    assert torch.allclose(net(tokens[None], cls[None], GRID)[0], slow, atol=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.985])  # of which nothing goes at the first point
def test_each_point_keeps_the_best_of_the_first_ranking(keep: float, tiny: Build, images: Tensor):
    """The slow way: dense blocks by hand, image by image, and the top of what is left."""
    points = (1, 3, 5)
    model = tiny("clip_vit_b16_patchrank50", width=16, reduce_at=points, keep=keep)
    counts, output = model.reducer.counts(64), model(images)
    reductions = {went.block: went for went in model.trace(images).reductions}
    before = dict(zip(points, [64, *counts.values()], strict=False))
    assert list(reductions) == [point for point in points if counts[point] < before[point]]
    for image in range(3):
        x, left = model.embed(images[image : image + 1]).x, torch.arange(64)
        for index, block in enumerate(model.blocks):
            if index in reductions:
                if len(left) == 64:
                    scores = model.reducer.predictor(x, 1, (8, 8))[0]
                best = scores.argsort(descending=True)[: counts[index]].sort().values
                left, x, scores = left[best], torch.cat((x[:, :1], x[:, 1:][:, best]), dim=1), scores[best]
                assert torch.equal(reductions[index].after[image], left)
            x = block(x)
        assert torch.allclose(output[image], model.head(model.norm(x)[:, 0])[0], atol=1e-5)


NAME, TAG = "clip_vit_b16", "openai"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's cache at an empty folder, and the packaged weights at another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(learned_files, "EMBEDDED", tmp_path / "packaged")


@pytest.fixture
def tower(tiny: Build, tmp_path: Path) -> dict[str, Any]:
    save_file(tiny(f"{NAME}.{TAG}").state_dict(), tmp_path / "tower.safetensors")
    source = {"file": str(tmp_path / "tower.safetensors"), "num_classes": 7}
    return {"pretrained": True, "pretrained_cfg_overlay": source, "noise": 0}


def save(path: Path, seed: int = 0, arch: str = "conv", **facts: Any) -> Predictor:
    """Save a random predictor for the tiny tower; return it in the precision of the file."""
    torch.manual_seed(seed)
    config = FitConfig(arch=arch, width=24)
    predictor = Predictor(arch, 48, 24, (8, 8))
    named = {"model": NAME, "tag": TAG, "block": 3, "provenance": {"images": 9}} | facts
    save_predictor(predictor, path, config=config, **named)
    return copy.deepcopy(predictor).half().float()


def test_a_file_that_does_not_say_what_it_was_fitted_to_is_named(tmp_path: Path):
    facts = {"model": NAME, "tag": TAG, "block": 3, "options": {}, "provenance": {"rankings": [{"dataset": 3}]}}
    with pytest.raises(ValueError, match=r"predictor '.*p' doesn't say what it was fitted to: 'dataset' of a data set"):
        sorted(PredictorFile(path=tmp_path / "p", **facts).datasets)


def holds(network: nn.Module, saved: Predictor) -> bool:
    pairs = zip(network.state_dict().values(), saved.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(("facts", "options", "match"), [
    ({"tag": "laion2b"}, {}, "clip_vit_b16.laion2b with tag='laion2b', this model has tag='openai'"),
    ({"block": 5}, {}, "was fitted to clip_vit_b16.openai with block=5, this model has block=3"),
    ({}, {"arch": "conv"}, "has arch='mlp', not arch='conv'"),
    ({}, {"pretrained": False}, "without the tower it was made for: add pretrained=True"),
])  # fmt: skip
def test_refused_predictors(facts: dict, options: dict, match: str, tiny: Build, tower: dict, tmp_path: Path):
    save(tmp_path / "p", arch="mlp", **facts)
    with pytest.raises(ValueError, match=re.escape(match)):
        tiny(f"{NAME}_patchrank60.{TAG}", **{**tower, "predictor": str(tmp_path / "p"), **options})


@pytest.mark.parametrize("where", ["blocks.0.attn.qkv.bias", "blocks.5.mlp.fc2.weight"])
def test_predictors_of_other_weights(where: str, tiny: Build, tower: dict, tmp_path: Path):
    """The name is the same, one number in one block isn't: created by name, or by reduce."""
    file = tower["pretrained_cfg_overlay"]["file"]
    state = load_file(file)
    save(tmp_path / "p", arch="mlp", weights=blocks_fingerprint(state))
    state[where].view(-1)[0] += 1
    save_file(state, file)
    match = r"' was fitted to clip_vit_b16\.openai with weights='\w{16}', this model has weights="
    with pytest.raises(ValueError, match=match):
        tiny(f"{NAME}_patchrank60.{TAG}", **tower, predictor=str(tmp_path / "p"))
    reduced = zoo.reduce(tiny(f"{NAME}.{TAG}", **tower), method="patchrank", keep=0.6, arch="mlp", width=24)
    with pytest.raises(ValueError, match=match):
        load_predictor(reduced, PredictorFile.read(tmp_path / "p"))


def test_the_users_predictor_comes_before_the_packaged_one_and_is_told(tmp_path: Path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(learned_files._log, "warning", lambda text, *values: said.append(text % values))
    name = predictor_name(NAME, TAG, 3)
    save(tmp_path / "packaged" / name)
    assert find_predictor(NAME, TAG, 3).path == tmp_path / "packaged" / name
    assert not said
    save(cache_folder() / "predictors" / name)
    assert find_predictor(NAME, TAG, 3).path.is_relative_to(tmp_path / "cache")
    assert len(said) == 1
    assert f"{name} of your own is used, not the packaged one" in said[0]


def test_a_saved_model_carries_its_predictor_and_scores_where_it_was_fitted(tiny: Build, tower: dict, tmp_path: Path):
    """``predictor=PATH`` replaces it."""
    saved = {name: save(tmp_path / name, seed, "mlp") for seed, name in enumerate("ab")}
    model = tiny(f"{NAME}_patchrank60.{TAG}", **tower, predictor=tmp_path / "a")
    for folder in ("saved", "again"):
        save_for_hf(model, tmp_path / folder)
        place = f"local-dir:{tmp_path / folder}"
        for options, name in (({"predictor": tmp_path / "b"}, "b"), ({}, "a")):
            model = timm.create_model(place, pretrained=True, **options)
            assert holds(model.reducer.predictor, saved[name])
        with pytest.raises(ValueError, match=r"fitted at block 3, these options score at block 4; leave reduce_at"):
            timm.create_model(place, pretrained=True, reduce_at=4)


@torch.no_grad()
def test_a_model_gets_the_predictor_of_its_first_point(tiny: Build, tower: dict, images: Tensor, tmp_path: Path):
    """Found in the cache, given to ``reduce`` by its file, or saved with the model."""
    folder = cache_folder() / "predictors"
    saved = {at: save(folder / predictor_name(NAME, TAG, at), at, "mlp", block=at) for at in (3, 1)}
    created = tiny(f"{NAME}_patchrank60.{TAG}", reduce_at=[1, 3], **tower)
    assert find_fitted(NAME, TAG) == (1, 3)
    with pytest.raises(FileNotFoundError, match=r"at block 0: .* \(fitted so far: block 1, 3\)"):
        tiny(f"{NAME}_patchrank60.{TAG}", reduce_at=(0,), **tower)
    path = folder / predictor_name(NAME, TAG, 1)
    reduced = zoo.reduce(created, method="patchrank", keep=0.6, reduce_at=[1, 3], predictor=path)
    for model in (created, reduced):
        assert holds(model.reducer.predictor, saved[1])
    torch.testing.assert_close(created(images), reduced(images))
    save_for_hf(created, tmp_path / "saved", safe_serialization=True)
    shutil.rmtree(folder)
    for pretrained in (True, False):
        again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=pretrained).eval()
        assert again.reducer.config == created.reducer.config
        assert torch.allclose(again(images), created(images), atol=1e-5) == pretrained


def test_models_that_a_file_does_not_fill(tiny: Build, tmp_path: Path):
    save(tmp_path / "a", arch="mlp")
    with pytest.raises(ValueError, match="has another architecture"):
        load_predictor(tiny(f"{NAME}_patchrank60.{TAG}", arch="mlp", width=8), PredictorFile.read(tmp_path / "a"))
    assert with_predictor(NAME, TAG, "tome", {"keep": 0.6}, 12) == ({"keep": 0.6}, None)
    with pytest.raises(ValueError, match="has no predictor to fill: it isn't reduced by patc"):
        load_predictor(tiny(f"{NAME}_tome60"), PredictorFile.read(tmp_path / "a"))
