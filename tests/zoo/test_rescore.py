"""Scoring anew at each reduction point what is left there."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.predictor import ARCHITECTURES
from zoo.reducer import HostSpec, build_reducer

FREE = ["linear", "mlp", "transformer"]
HOST = HostSpec(embed_dim=8, depth=6, grid=(4, 4), prefix=1)
Build = Callable[..., nn.Module]


def built(tiny: Build, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    return tiny("clip_vit_b16_patchrank50", width=16, **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_with_one_point_nothing_changes(arch: str, tiny: Build, images: Tensor):
    plain = built(tiny, arch=arch)
    again = built(tiny, arch=arch, rescore=True)
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(again(images), plain(images))


@pytest.mark.parametrize("arch", FREE)
@pytest.mark.parametrize("points", [(1, 3, 5), (0, 1), (4,)], ids=str)
@torch.no_grad()
def test_each_point_keeps_the_best_of_its_own_predictor(
    arch: str, points: tuple[int, ...], tiny: Build, images: Tensor
):
    """The slow way: dense blocks by hand, image by image, and the top of what is left."""
    model = built(tiny, arch=arch, rescore=True, reduce_at=points)
    scorers = [model.reducer.predictor, *model.reducer.rescorers.values()]
    counts = dict(model.reducer.counts(64))
    reductions = model.trace(images).reductions
    assert [r.block for r in reductions] == list(counts) == list(points)
    output = model(images)
    for image in range(3):
        x = model.embed(images[image : image + 1]).x
        left = torch.arange(64)
        for index, block in enumerate(model.blocks):
            if index in points:
                stage = points.index(index)
                scores = scorers[stage](x, 1, (8, 8))[0]
                best = scores.argsort(descending=True)[: counts[index]].sort().values
                left, x = left[best], torch.cat((x[:, :1], x[:, 1:][:, best]), dim=1)
                assert torch.allclose(reductions[stage].importance[image], scores, atol=1e-5)
                assert torch.equal(reductions[stage].after[image], left)
            x = block(x)
        slow = model.head(model.norm(x)[:, 0])[0]
        assert torch.allclose(output[image], slow, atol=1e-5)


@torch.no_grad()
def test_it_differs_from_one_ranking_carried_along(tiny: Build, images: Tensor):
    """The first stage is the same, and later ones know what the predictors of theirs say."""
    told = {"arch": "mlp", "reduce_at": (1, 3, 5)}
    anew, carried = built(tiny, rescore=True, **told), built(tiny, **told)
    carried.load_state_dict(anew.state_dict(), strict=False)
    new, old = (model.trace(images).reductions for model in (anew, carried))
    assert torch.equal(new[0].after, old[0].after)
    assert not torch.equal(new[2].after, old[2].after)


@pytest.mark.parametrize("arch", FREE)
@torch.no_grad()
def test_permuting_patches_permutes_what_stays(arch: str, tiny: Build, images: Tensor):
    model = built(tiny, arch=arch, reduce_at=(0, 2, 4), rescore=True)
    tokens = model.embed(images)
    order = torch.randperm(64)
    moved = tokens._replace(
        x=torch.cat((tokens.x[:, :1], tokens.patches[:, order]), dim=1),
        patch_idx=tokens.patch_idx[:, order],
    )
    plain, _ = model.advance(tokens)
    permuted, _ = model.advance(moved)
    assert torch.equal(permuted.patch_idx.sort(dim=1).values, plain.patch_idx)
    assert torch.allclose(model.finish(permuted), model.finish(plain), atol=1e-5)


@torch.no_grad()
def test_keeping_all_is_the_dense_tower(tiny: Build, images: Tensor):
    model = built(tiny, arch="mlp", reduce_at=(1, 3), rescore=True, keep=1.0)
    assert torch.equal(model(images), zoo.reduce(model, method=None)(images))


@torch.no_grad()
def test_a_point_where_nothing_goes_leaves_the_next_its_own_predictor(tiny: Build, images: Tensor):
    model = built(tiny, arch="mlp", reduce_at=(1, 3, 5), rescore=True, keep=0.985)
    assert model.reducer.counts(64) == {1: 64, 3: 63, 5: 63}
    [went] = model.trace(images).reductions
    entering, _ = model.advance(model.embed(images), stop=3)
    scores = model.reducer.rescorers["3"](entering.x, 1, (8, 8))
    assert (went.block, torch.equal(went.importance, scores)) == (3, True)


@torch.no_grad()
def test_any_image_size(tiny: Build):
    told = {"arch": "mlp", "reduce_at": (1, 3), "rescore": True}
    model = built(tiny, dynamic_img_size=True, **told)
    for size, patches in (((64, 64), 64), ((96, 48), 72)):
        trace = model.trace(torch.randn(1, 3, *size))
        assert trace.final_tokens == patches // 2
        counts = [patches, *model.reducer.counts(patches).values()]
        assert [r.importance.shape[1] for r in trace.reductions] == counts[:-1]


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES.keys() - set(FREE)))
def test_what_needs_the_whole_grid_can_not_rescore(arch: str):
    options = {"keep": 0.5, "arch": arch, "reduce_at": [1, 3], "rescore": True}
    match = (
        f"arch='{arch}' scores whole grids only, and with rescore=True patches are gone before "
        "block 3: expected one of linear, mlp, transformer, or rescore=False"
    )
    with pytest.raises(ValueError, match=re.escape(match)):
        build_reducer("patchrank", options, HOST)
    assert not build_reducer("patchrank", options | {"rescore": False}, HOST).rescorers
    assert not build_reducer("patchrank", options | {"reduce_at": [3]}, HOST).rescorers


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_rescore_is_true_or_false(value: Any):
    with pytest.raises(ValueError, match=f"rescore={value!r}: expected true or false"):
        build_reducer("patchrank", {"keep": 0.5, "rescore": value}, HOST)


def test_every_block_may_rescore():
    options = {"keep": 0.5, "arch": "mlp", "reduce_at": None, "rescore": True}
    reducer = build_reducer("patchrank", options, HOST)
    assert list(reducer.rescorers) == ["1", "2", "3", "4", "5"]
