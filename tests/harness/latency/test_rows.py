"""Names to models: whose dense tower is whose, and where they come from."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

import zoo
from harness.latency import rows as rows_module
from harness.latency.plan import LatencyPlan
from harness.latency.rows import Family, families
from harness.progress import Progress
from harness.towers import Tower


def made(*models: str, **told: Any) -> list[Family]:
    plan = LatencyPlan(models=models, threads=(1,), **told)
    return list(families(plan, Progress()))


@pytest.fixture
def loaded(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Load the tiny tower, whatever the name; return the names asked for."""
    names: list[str] = []

    def load(name: str) -> Tower:
        names.append(name)
        return tower._replace(name=name)

    monkeypatch.setattr(rows_module, "load_tower", load)
    return names


def test_names_of_one_tower_are_one_family_with_the_dense_one_first(loaded: list[str]):
    [family] = made("clip_vit_b16_tome50", "clip_vit_b16_random50.openai", "clip_vit_b16")
    assert loaded == ["clip_vit_b16.openai"]
    assert [row.model for row in family.rows] == [
        "clip_vit_b16",
        "clip_vit_b16_tome50",
        "clip_vit_b16_random50",
    ]
    assert family.tag == "openai"
    dense, tome, _ = family.rows
    assert tome.vit.blocks[0].mlp.fc1.weight is dense.vit.blocks[0].mlp.fc1.weight
    assert family.counts[tome.key].gflops < family.counts[dense.key].gflops
    assert family.counts[dense.key].tokens_per_block == (65,) * 6
    assert family.counts[tome.key].final_tokens == 32


def test_another_tower_or_tag_is_another_family(loaded: list[str]):
    found = made("clip_vit_b16_tome50", "clip_vit_b16_tome50.laion2b", "clip_vit_b32_random60")
    assert loaded == ["clip_vit_b16.openai", "clip_vit_b16.laion2b", "clip_vit_b32.openai"]
    assert [len(family.rows) for family in found] == [2, 2, 2]


def test_towers_that_are_not_ours_are_reduced_by_flags(loaded: list[str]):
    told = {"methods": ("random", "tome"), "keeps": (0.5, 0.75)}
    [family] = made("open_clip:ViT-B-16/laion2b_s34b_b88k", **told)
    assert loaded == ["open_clip:ViT-B-16/laion2b_s34b_b88k"]
    assert [(row.method, row.keep) for row in family.rows] == [
        ("dense", 1.0), ("random", 0.5), ("random", 0.75), ("tome", 0.5), ("tome", 0.75),
    ]  # fmt: skip


def test_what_a_name_and_a_flag_ask_for_is_timed_once(loaded: list[str]):
    [family] = made("clip_vit_b16_tome50", methods=("tome",), keeps=(0.5,))
    assert [row.model for row in family.rows] == ["clip_vit_b16", "clip_vit_b16_tome50"]


def test_a_model_that_was_saved_with_its_method_is_timed_as_it_was_saved(tmp_path: Path):
    small = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 32}
    model = timm.create_model("clip_vit_b16_tome50", keep=None, r=1, **small)
    save_for_hf(model, tmp_path / "mine")
    [family] = made(f"local-dir:{tmp_path / 'mine'}", methods=("random",), keeps=(0.5,))
    assert [row.method for row in family.rows] == ["dense", "random", "tome"]
    dense, _, saved = family.rows
    assert str(tmp_path) not in saved.model
    assert saved.config["r"] == 1
    assert saved.keep == family.counts[saved.key].final_tokens / 4
    assert family.counts[saved.key].gflops < family.counts[dense.key].gflops
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(saved.vit(images), model.eval()(images))


def test_without_weights_nothing_is_loaded_and_predictors_are_random(
    monkeypatch: pytest.MonkeyPatch, tower: Tower
):
    monkeypatch.setattr(rows_module, "random_tower", lambda name: tower._replace(name=name))
    first, second = (
        made("clip_vit_b16_patchrank50", "clip_vit_b16_evit50", random_weights=True)[0]
        for _ in range(2)
    )
    assert [row.model for row in first.rows] == [
        "clip_vit_b16",
        "clip_vit_b16_patchrank50",
        "clip_vit_b16_evit50",
    ]
    assert first.counts == second.counts
    states = [family.rows[1].vit.reducer.state_dict() for family in (first, second)]
    assert states[0].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_without_weights_only_models_of_ours_can_be_built():
    for name in ("deit_small_patch16_224", "open_clip:ViT-B-32/openai", "local-dir:here"):
        said = f"--random-weights with model '{name}': .*clip_vit_b16; leave the flag out"
        with pytest.raises(ValueError, match=said):
            made(name, random_weights=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip_vit_b16_tomme50", "did you mean 'clip_vit_b16_tome50'"),
        ("clip_vit_b16_tome50.openay", "weight tag 'openay'.*did you mean 'openai'"),
        ("no_such_vit", "model 'no_such_vit'"),
    ],
)
def test_unknown_names_are_refused(name: str, said: str):
    with pytest.raises(ValueError, match=said):
        made(name)


def test_a_predictor_that_is_missing_is_named(loaded: list[str]):
    with pytest.raises(FileNotFoundError, match=r"no predictor for clip_vit_b16\.openai"):
        made("clip_vit_b16_patchrank50")


def test_the_tower_of_a_family_is_not_changed(loaded: list[str], dense: zoo.ReducedViT):
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    made("clip_vit_b16_tome50")
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert not dense.training
