"""Adaptive towers: each picture gets what the tower of its budget gives, at the mean cost that is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from some_budgets import adaptive, budgets_for, file_of, pictures
from timm.models import save_for_hf
from tiny_towers import OPEN_CLIP, TIMM, build, images_of
from torch import Tensor

import zoo
from zoo.core.adaptive import Budgets, signal
from zoo.core.files import cache_folder
from zoo.loading.learned_files import budgets_name
from zoo.loading.towers import load_tower, reduce_tower

pytestmark = pytest.mark.usefixtures("no_grad")


def features(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def check_each(vit: Any, images: Tensor) -> None:
    """Each picture is given what the tower of its budget gives, wherever it stands; several budgets are taken."""
    keeps, output = vit.assign(images), features(vit(images))
    assert len(keeps.unique()) > 1
    for number, keep in enumerate(vit.adaptive.budgets.keeps):
        rows = keeps == keep
        if rows.any():
            assert torch.allclose(output[rows], features(vit.budget(number)(images[rows])), atol=1e-5)
    assert torch.allclose(features(vit(images.flip(0))).flip(0), output, atol=1e-5)


def test_every_method(method: str, tower: zoo.ReducedViT):
    images = pictures(64)
    vit = adaptive(tower, images, method)
    check_each(vit, images)
    assert torch.allclose(vit.budget(0)(images), tower(images), atol=1e-5)  # keep rate 1 is the dense tower


@pytest.mark.parametrize("kind", sorted(TIMM.keys() | OPEN_CLIP.keys()))
def test_every_tower(kind: str):
    tower = build(kind)
    images = pictures(images_of(tower, 1).shape[-1])
    check_each(adaptive(tower, images, reduce_at=1), images)


def test_the_mean_cost_is_met_and_plain_pictures_take_less(tower: zoo.ReducedViT):
    images = pictures(64)
    vit = adaptive(tower, images, cost=0.8)
    keeps = vit.assign(images)
    costs = dict(zip(vit.adaptive.budgets.keeps, vit.adaptive.budgets.costs, strict=True))
    assert 0.7 < sum(costs[round(keep, 4)] for keep in keeps.tolist()) / len(keeps) <= 0.8
    order = signal(zoo.reduce(tower, method=None).embed(images)).argsort()
    assert torch.equal(keeps[order], keeps.sort().values)


def test_intermediates_and_traces_tell_of_each_picture(tower: zoo.ReducedViT):
    images = pictures(64, 5)  # groups of different sizes, one of dense
    vit = adaptive(tower, images)
    maps, trace, keeps = vit.forward_intermediates(images, indices=[2, 5])[1], vit.trace(images), vit.assign(images)
    assert all(each.isfinite().all() for each in maps)
    for at, keep in enumerate(keeps.tolist()):
        alone = vit.budget(vit.adaptive.budgets.keeps.index(round(keep, 4)))
        one = alone.forward_intermediates(images[at : at + 1], indices=[2, 5])[1]
        assert all(torch.allclose(own[at], other[0], atol=1e-5) for own, other in zip(maps, one, strict=True))
        kept = alone.trace(images[at : at + 1]).kept[0]
        assert torch.equal(trace.kept[at, : len(kept)], kept)
        assert (trace.kept[at, len(kept) :] == -1).all()


def test_a_saved_model_is_the_same(tower: zoo.ReducedViT, tmp_path: Path):
    images = pictures(64)
    vit = adaptive(tower, images, "patchrank")
    save_for_hf(vit, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images), vit(images))
    assert torch.equal(loaded.assign(images), vit.assign(images))


def test_a_file_and_a_name_give_one_model(tmp_path: Path):
    """A name's keep rate decides the cost; the predictor of Patch Ranking is found."""
    tower = load_tower("clip_vit_s14")
    images = pictures(196)
    path = file_of(tower.vit, images, tmp_path, "patchrank", options=_plain(tower, "patchrank"))
    named = timm.create_model("clip_vit_s14_patchrank60", pretrained=True, budgets=path).eval()
    assert named.adaptive.config.cost == pytest.approx(0.6 + 0.2 * (0.6 - 0.5) / 0.25)
    check_each(named, images)
    assert named.assign(torch.zeros(1, 3, 196, 196)).tolist() == [0.5]  # a plain colour
    fixed = timm.create_model("clip_vit_s14_patchrank50", pretrained=True).eval()
    assert torch.allclose(named.budget(2)(images), fixed(images), atol=1e-5)


def test_the_budgets_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are found by name, and are of the embedded tower; a user's own come first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vit = timm.create_model("clip_vit_s14_rankmerge60", pretrained=True, budgets=True).eval()
    assert vit.adaptive.config.cost == pytest.approx(vit.adaptive.budgets.cost_of(0.6))
    keeps = vit.assign(pictures(196))
    assert keeps[3] < keeps[0]  # the plainest, the most detailed
    with pytest.raises(FileNotFoundError, match=r"no budgets of tome for clip_vit_s14\.imgfocus_lit: neither packaged"):
        timm.create_model("clip_vit_s14_tome60", pretrained=True, budgets=True)
    own = file_of(load_tower("clip_vit_s14").vit, pictures(196), tmp_path)
    place = cache_folder() / "budgets" / budgets_name("clip_vit_s14", "imgfocus_lit", "rankmerge")
    place.parent.mkdir(parents=True)
    own.rename(place)
    own_vit = timm.create_model("clip_vit_s14_rankmerge60", pretrained=True, budgets=True)
    assert own_vit.adaptive.budgets.keeps == (1.0, 0.75, 0.5)


@pytest.mark.parametrize(("name", "more", "quoted"), [
    ("clip_vit_s14", {"budgets": True}, "expected the name of a reduced model, such as clip_vit_s14_rankmerge60"),
    ("clip_vit_s14_rankmerge60", {"cost": 0.5}, "cost=0.5 without budgets"),
    ("clip_vit_s14_rankmerge60", {"budgets": "missing.json"}, "no budgets at 'missing.json'"),
])  # fmt: skip
def test_names_that_are_refused(name: str, more: dict[str, Any], quoted: str):
    with pytest.raises((ValueError, FileNotFoundError), match=quoted):
        timm.create_model(name, pretrained=True, **more)


def _plain(tower: Any, method: str) -> dict[str, Any]:
    vit, _ = reduce_tower(tower, method, {"keep": 0.5})
    return {name: value for name, value in vit.reducer.config.plain().items() if name != "keep"}


@pytest.mark.parametrize(("changes", "options", "quoted"), [
    ({"version": "0.0.1"}, {}, "fitted to tiny with version='0.0.1', this is version="),
    ({"weights": "another"}, {}, "weights='another'"),
    ({}, {"method": "tome"}, "method='rankmerge', this is method='tome'"),
    ({}, {"reduce_at": 1}, r"reduce_at=None, this is reduce_at=\[1\]"),
    ({}, {"keep": 0.5}, "keep=0.5 with budgets: .*expected cost=X"),
    ({}, {"cost": 0.3}, "cost=0.3: expected a share .* from 0.600, of keep rate 0.5"),
    ({}, {"method": None}, "budgets without method"),
])  # fmt: skip
def test_files_that_fit_no_other(
    changes: Mapping[str, Any], options: dict[str, Any], quoted: str, tower: zoo.ReducedViT, tmp_path: Path
):
    path = file_of(tower, pictures(64), tmp_path, **changes)
    with pytest.raises(ValueError, match=quoted):
        zoo.reduce(tower, **{"method": "rankmerge", "budgets": path, **options})


@pytest.mark.parametrize(("change", "quoted"), [
    ({"keeps": (0.5, 0.75, 1.0)}, r"keeps=\[0.5, 0.75, 1.0\]: expected two budgets at least, .* that fall"),
    ({"keeps": (0.5,)}, "expected two budgets at least"),
    ({"costs": (1.0, 0.5, 0.6)}, "costs=.*fall"),
    ({"slopes": (0, float("nan"), 1)}, "slopes=.*finite"),
    ({"spreads": (0, 1)}, "spreads has 2 values for 3 budgets"),
    ({"signals": ()}, "signals: expected one at least"),
    ({"signal_at": -1}, "signal_at=-1"),
])  # fmt: skip
def test_budgets_that_are_none(change: dict[str, Any], quoted: str, tower: zoo.ReducedViT):
    with pytest.raises(ValueError, match=quoted):
        Budgets(**budgets_for(tower, pictures(64), **change))


def test_pictures_and_uses_that_are_refused(tower: zoo.ReducedViT):
    images = pictures(64)
    vit = adaptive(tower, images)
    with pytest.raises(ValueError, match="a picture has no signal"):
        vit(images * float("nan"))
    with pytest.raises(ValueError, match=r"tower.budget\(i\)"):
        torch.export.export(vit, (images,))
    with pytest.raises(ValueError, match="signal_at=3: expected a block up to 0"):
        adaptive(tower, images, signal_at=3)
    with pytest.raises(ValueError, match="one keep rate for all pictures"):
        tower.assign(images)
    dynamic = build("dynamic")
    with pytest.raises(ValueError, match="pictures of 8 x 8 patches: the budgets were fitted on 16"):
        adaptive(dynamic, pictures(32))(images)
